package bpf_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"porin/bpf/packettest"
)

// needRoot fails where a packet cannot be sent through a real kernel; make test-unit says that it does not want to.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("PORIN_UNIT") == "1" {
		t.Skip("unit run without root")
	}
	t.Fatal("needs root: run with sudo")
}

// TestRootStories plays every story in testdata on the real programs.
func TestRootStories(t *testing.T) {
	needRoot(t)
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories in testdata: %v", err)
	}
	k := packettest.New(t)
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			on := k
			if strings.Contains(string(text), "\n# kernel: conntrack of one flow\n") {
				on = packettest.New(t, packettest.SmallConntrack(1))
			}
			on.Play(t, string(text))
		})
	}
}
