package space

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func needRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Getenv("PORIN_UNIT") != "":
		t.Skip("unit run without root")
	case os.Geteuid() != 0:
		t.Fatal("needs root: run with sudo")
	}
}

func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "pause" {
		fmt.Fprintln(os.Stderr, Pause(os.Args[2], "", os.Args[3:]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func dir(t *testing.T) string {
	t.Helper()
	needRoot(t)
	d := filepath.Join("/run", fmt.Sprintf("pt-space-%d", os.Getpid()))
	if err := MakeDir(d); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveDir(d); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(b), d) {
			t.Errorf("mounts of %s are left: %v", d, err)
		}
		if _, err := os.Stat(d); err == nil {
			t.Errorf("%s is left", d)
		}
	})
	return d
}

func devices(t *testing.T) string {
	t.Helper()
	links, err := netlink.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) { // somebody's device came or went meanwhile
		links, err = netlink.LinkList()
	}
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range links {
		out = append(out, l.Attrs().Name)
	}
	return strings.Join(out, " ")
}

// Namespaces, a bridge and cables: devices appear where they are said to and nowhere else.
func TestRootCables(t *testing.T) {
	d := dir(t)
	a, b := filepath.Join(d, "a"), filepath.Join(d, "b")
	for _, f := range []string{a, b} {
		if err := NewNetns(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := NewNetns(a); err == nil {
		t.Error("a namespace file was made twice")
	}
	if err := NewBridge(a, "ptbr0", []netip.Prefix{netip.MustParsePrefix("10.8.0.1/24"), netip.MustParsePrefix("fd88::1/64")}); err != nil {
		t.Fatal(err)
	}
	way := Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.8.0.1")}
	err := Connect(End{Netns: a, Name: "ptp0", Master: "ptbr0"},
		End{Netns: b, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24"), netip.MustParsePrefix("fd88::2/64")}, Routes: []Route{way}})
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	err = InNetns(b, func() error {
		inside = devices(t)
		routes, err := netlink.RouteGet(netip.MustParseAddr("192.0.2.1").AsSlice())
		if err != nil || !routes[0].Gw.Equal(netip.MustParseAddr("10.8.0.1").AsSlice()) {
			return fmt.Errorf("route to the outside: %v %v", routes, err)
		}
		return nil
	})
	if err != nil || inside != "lo eth0" && !strings.HasSuffix(inside, " eth0") {
		t.Errorf("devices inside: %q, %v", inside, err)
	}
	if all := devices(t); strings.Contains(all, "ptbr0") || strings.Contains(all, "ptp0") {
		t.Errorf("devices of the machine: %q", all)
	}
	if err := DeleteRoutes(b, "eth0", []Route{way}); err != nil {
		t.Error(err)
	}
	if err := RemoveNetns(a); err != nil {
		t.Error(err)
	}
	if err := RemoveNetns(a); err != nil {
		t.Errorf("removing again: %v", err)
	}
}

// A process with descendants that ignores signals ends with its cgroup; nothing is left of either.
func TestRootCgroupTakesAllProcesses(t *testing.T) {
	needRoot(t)
	root, err := CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	cg := filepath.Join(root, fmt.Sprintf("pt-space-%d", os.Getpid()))
	if err := NewCgroup(cg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = RemoveCgroup(context.Background(), cg) })
	if err := NewCgroup(filepath.Join(cg, "sub")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `trap '' TERM HUP INT; setsid sleep 1000 & echo $!; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo worked; wait`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := Start(cmd, Where{Cgroup: filepath.Join(cg, "sub")}); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	var grandchild int
	if _, err := fmt.Fscanln(r, &grandchild); err != nil {
		t.Fatal(err)
	}
	if line, err := r.ReadString('\n'); line != "worked\n" {
		t.Fatalf("%q %v", line, err)
	}
	if used, err := CgroupCPU(cg); err != nil || used == 0 {
		t.Errorf("CPU time of the cgroup: %s, %v", used, err)
	}
	p, err := ProcessOf(grandchild)
	if err != nil || !p.Alive() {
		t.Fatalf("the grandchild: %+v %v", p, err)
	}
	if (Process{p.PID, p.Start + 1}).Alive() {
		t.Error("a process with another start time counts as the same")
	}
	if err := RemoveCgroup(t.Context(), cg); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if p.Alive() {
		t.Error("the grandchild lives")
	}
	if _, err := os.Stat(cg); err == nil {
		t.Error("the cgroup is left")
	}
	if err := RemoveCgroup(t.Context(), cg); err != nil {
		t.Errorf("removing again: %v", err)
	}
}

// A node sees private, empty folders and its own bpffs, and namespace files made after it; the machine sees nothing of it.
func TestRootNodeHasItsOwnMounts(t *testing.T) {
	d := dir(t)
	ns := filepath.Join(d, "n")
	if err := NewNetns(ns); err != nil {
		t.Fatal(err)
	}
	private := filepath.Join(d, "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(private, "outside"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"x", "pause", "pt-node", private}, Stderr: os.Stderr}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := Start(cmd, Where{Netns: ns}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q %v", line, err)
	}
	later := filepath.Join(d, "later")
	if err := NewNetns(later); err != nil {
		t.Fatal(err)
	}
	look := exec.Command("/bin/sh", "-c", `hostname 2>/dev/null || cat /proc/sys/kernel/hostname; ls $0; ls /sys/fs/bpf; stat -f -c %t $1; ls /proc/self/net/dev >/dev/null && tail -n +3 /proc/self/net/dev | wc -l; pwd`, private, later)
	var text strings.Builder
	look.Stdout, look.Stderr = &text, os.Stderr
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	context.AfterFunc(ctx, func() { _ = look.Process.Kill() })
	if err := Run(look, Where{Netns: ns, Mounts: cmd.Process.Pid}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(text.String()), "\n")
	// 6e736673: the file system of namespace files
	if lines[0] != "pt-node" || strings.Contains(text.String(), "outside") || !strings.Contains(text.String(), "6e736673") {
		t.Errorf("the node sees:\n%s", text.String())
	}
	if name, err := os.Hostname(); err != nil || name == "pt-node" {
		t.Errorf("the machine is called %s, %v", name, err)
	}
}
