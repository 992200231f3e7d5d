package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"porin/test/kernels/guest/steps"
)

// A guest that is cut off anywhere, runs another kernel or complains of anything has not passed.
func TestReportWantsEveryVerdict(t *testing.T) {
	lines := []string{"[    0.1] Linux", steps.Boot + " 6.1.0-1"}
	for _, s := range todo {
		lines = append(lines, "  PASS", steps.Pass+" "+s.Name)
	}
	lines = append(lines, steps.Done)
	judge := func(lines []string) error {
		var r report
		for _, l := range lines {
			r.read(l)
		}
		return r.print(image{release: "6.1.0-1"})
	}
	if err := judge(lines); err != nil {
		t.Errorf("everything passed: %v", err)
	}
	for n := range lines {
		if judge(lines[:n]) == nil {
			t.Errorf("passed after %q", lines[:n])
		}
	}
	for _, bad := range []string{steps.Fail + " guest: mount proc: no such device", steps.Fail + " " + todo[0].Name + ": exit status 1", steps.Boot + " 6.2"} {
		if judge(append(lines[:len(lines):len(lines)], bad)) == nil {
			t.Errorf("passed with %q", bad)
		}
	}
}

// Without apt a cached kernel is used; without both, the error says what to do.
func TestFetchWithoutApt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	k := kernel{"6.1", "linux-image-cloud-amd64"}
	cache := t.TempDir()
	_, err := fetch(t.Context(), cache, k)
	if err == nil || !strings.Contains(err.Error(), k.meta) || !strings.Contains(err.Error(), "apt-get update") {
		t.Errorf("nothing cached: %v", err)
	}
	put := func(name string) error { return os.WriteFile(filepath.Join(cache, k.name, name), nil, 0o600) }
	if err := errors.Join(os.Mkdir(filepath.Join(cache, k.name), 0o700), put("vmlinuz-6.1.0-1")); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch(t.Context(), cache, k); err == nil {
		t.Error("a kernel without modules was used")
	}
	for _, m := range modules {
		if err := put(m + ".ko"); err != nil {
			t.Fatal(err)
		}
	}
	img, err := fetch(t.Context(), cache, k)
	if err != nil || img.release != "6.1.0-1" || len(img.modules) != len(modules) {
		t.Errorf("%+v, %v", img, err)
	}
}
