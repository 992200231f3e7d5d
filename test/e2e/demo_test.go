package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// world is what a lab could leave behind on the machine.
func world(t *testing.T) map[string][]string {
	t.Helper()
	w := map[string][]string{}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		w["link"] = append(w["link"], l.Name())
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for m := range strings.Lines(string(mounts)) {
		if strings.Contains(m, "porin") {
			w["mount"] = append(w["mount"], m)
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && (strings.Contains(string(b), "porin-agent") || strings.Contains(string(b), "bin/porin")) {
			w["process"] = append(w["process"], p+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		dirs, _ := filepath.Glob(root + "/*porin*")
		w["cgroup"] = append(w["cgroup"], dirs...)
	}
	labs, _ := filepath.Glob("/run/porin-lab/*")
	w["lab"] = labs
	pins, _ := filepath.Glob("/sys/fs/bpf/*porin*")
	w["pin"] = pins
	return w
}

// Every example holds, and nothing of it is left behind; twice in a row.
func TestRootExamplesHoldAndLeaveNothing(t *testing.T) {
	root(t)
	labs, err := filepath.Glob("../../examples/*/lab.yaml")
	if err != nil || len(labs) < 6 {
		t.Fatalf("examples: %v %v", labs, err)
	}
	for _, file := range labs {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			before := world(t)
			for range 2 {
				out, err := exec.Command(bin(t, "porin"), "lab", "run", file).CombinedOutput()
				if err != nil {
					t.Fatalf("porin lab run %s: %v\n%s", file, err, out)
				}
			}
			eventually(t, 5*time.Second, "processes and devices gone", func() bool {
				for k, now := range world(t) {
					for _, x := range now {
						if !slices.Contains(before[k], x) {
							t.Logf("left behind: %s %s", k, x)
							return false
						}
					}
				}
				return true
			})
		})
	}
}
