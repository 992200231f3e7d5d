package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// traces is what a lab of this name could leave behind on the machine. Other labs may run beside it.
func traces(t *testing.T, name string) (left []string) {
	t.Helper()
	dir, cgroup := "/run/porin-lab/"+name, "porin-lab-"+name
	if _, err := os.Stat(dir); err == nil {
		left = append(left, "folder "+dir)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for m := range strings.Lines(string(mounts)) {
		if strings.Contains(m, dir+"/") {
			left = append(left, "mount "+m)
		}
	}
	for _, root := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/unified/"} {
		if _, err := os.Stat(root + cgroup); err == nil {
			left = append(left, "cgroup "+root+cgroup)
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		in, _ := os.ReadFile(p + "/cgroup") // a process that has just ended has none
		cmd, _ := os.ReadFile(p + "/cmdline")
		if strings.Contains(string(in), cgroup+"/") || strings.Contains(string(in), cgroup+"\n") || strings.Contains(string(cmd), dir+"/") {
			left = append(left, "process "+p+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return left
}

// devices lists what is in the machine's own network namespace.
func devices(t *testing.T) (names []string) {
	t.Helper()
	list, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names
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
			name := filepath.Base(filepath.Dir(file))
			before := devices(t)
			for range 2 {
				out, err := exec.Command(bin(t, "porin"), "lab", "run", file).CombinedOutput()
				if err != nil {
					t.Fatalf("porin lab run %s: %v\n%s", file, err, out)
				}
				if !strings.Contains(string(out), "lab "+name+" ") {
					t.Fatalf("the lab is not called %s, so its traces are not looked for:\n%s", name, out)
				}
			}
			var left []string
			eventually(t, time.Minute, "everything of the lab gone", func() bool {
				left = traces(t, name)
				return len(left) == 0
			}, func() string { return strings.Join(left, "\n") })
			eventually(t, time.Minute, "every device of the lab gone", func() bool { // other labs' may come and go meanwhile
				left = slices.DeleteFunc(devices(t), func(d string) bool { return slices.Contains(before, d) })
				return len(left) == 0
			}, func() string { return strings.Join(left, "\n") })
		})
	}
}

// The look for traces sees a lab that is there: folder, mounts, cgroup and processes.
func TestRootTracesAreSeen(t *testing.T) {
	l := up(t, "nodes: 1\nworkloads: [{name: one}]\n")
	left := traces(t, l.name)
	for _, kind := range []string{"folder ", "mount ", "cgroup ", "process "} {
		if !slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, kind) }) {
			t.Errorf("no %sof a running lab among %q", kind, left)
		}
	}
}
