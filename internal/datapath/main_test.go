package datapath

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// TestMain gives the tests a network and mount namespace of their own: they are a node, and the machine's devices, routes
// and mounts are out of their reach.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv("PORIN_UNIT") == "1" {
		os.Exit(m.Run())
	}
	const inside = "PORIN_DATAPATH_TEST_NODE"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, "start the tests in namespaces of their own:", err)
			os.Exit(1)
		}
		os.Exit(cmd.ProcessState.ExitCode())
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Fprintln(os.Stderr, "make mounts private:", err)
		os.Exit(1)
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		_ = netlink.LinkSetUp(lo)
	}
	os.Exit(m.Run())
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getenv("PORIN_UNIT") == "1" {
		t.Skip("unit run without root")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run with sudo")
	}
}

// logBuffer collects log lines; it is read while the datapath writes.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// scene is the test's node: where its pins are, what it is configured as, what it logged.
type scene struct {
	t    testing.TB
	cfg  Config
	logs *logBuffer
	sets func() []*ebpf.CollectionSpec
}

func newNode(t testing.TB) *scene {
	t.Helper()
	needRoot(t)
	n := &scene{t: t, logs: &logBuffer{}, sets: func() []*ebpf.CollectionSpec { return plainSets(t) }}
	n.cfg = Config{
		BPFRoot:   filepath.Join(t.TempDir(), "bpf"),
		IPv4Range: netip.MustParsePrefix("10.7.0.0/24"), RouterIPv4: netip.MustParseAddr("10.7.0.1"),
		IPv6Range: netip.MustParsePrefix("fd07::/112"), RouterIPv6: netip.MustParseAddr("fd07::1"),
		MTU: 1500, Grace: 20 * time.Millisecond, CheckInterval: 50 * time.Millisecond,
		MapSizes: map[string]uint32{mapConntrack: 4096, mapNat: 4096, mapPeers: 4096},
	}
	t.Cleanup(func() {
		if err := Clean(n.cfg.BPFRoot); err != nil {
			t.Errorf("clean: %v", err)
		}
		for unix.Unmount(n.cfg.BPFRoot, 0) == nil {
		}
	})
	return n
}

func (n *scene) log() *slog.Logger { return slog.New(slog.NewTextHandler(n.logs, nil)) }

// open opens the node's datapath; it is closed with the test at the latest.
func (n *scene) open() *Datapath {
	n.t.Helper()
	d, err := n.tryOpen()
	if err != nil {
		n.t.Fatalf("open: %+v\n%s", err, n.logs)
	}
	return d
}

func (n *scene) tryOpen() (*Datapath, error) {
	d, err := open(n.log(), n.cfg, n.sets())
	if err == nil {
		n.t.Cleanup(func() { d.Close() })
	}
	return d, err
}

// plainSets are the real maps with programs that drop everything and use every map: what is tested here is not what the
// programs do.
func plainSets(t testing.TB) []*ebpf.CollectionSpec {
	t.Helper()
	set, err := bpf.LoadPod()
	if err != nil {
		t.Fatal(err)
	}
	set.Programs = map[string]*ebpf.ProgramSpec{}
	set.Variables = nil
	for name := range set.Maps {
		if name[0] == '.' {
			delete(set.Maps, name)
		}
	}
	var code asm.Instructions
	for _, name := range sortedKeys(set.Maps) {
		code = append(code, asm.LoadMapPtr(asm.R1, 0).WithReference(name))
	}
	code = append(code, asm.Mov.Imm(asm.R0, 2), asm.Return())
	for _, name := range []string{progPod, progHost, progUplinkIngress, progUplinkEgress} {
		set.Programs[name] = &ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, Instructions: slices.Clone(code), License: "Dual BSD/GPL"}
	}
	return []*ebpf.CollectionSpec{set}
}

// newNS makes a network namespace that lives as long as the test and returns its path.
func newNS(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // stays locked if the way home fails: then the thread dies with the goroutine
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			err = unix.Unshare(unix.CLONE_NEWNET)
		}
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
			if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
				runtime.UnlockOSThread()
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
	return path
}

// inNS runs f on a thread in the namespace at path.
func inNS(t testing.TB, path string, f func() error) {
	t.Helper()
	ns, err := openNetns(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.close()
	if err := ns.do(f); err != nil {
		t.Fatal(err)
	}
}

// pod returns an endpoint with a namespace of its own.
func pod(t testing.TB, id uint16) endpoint.Endpoint {
	t.Helper()
	var tag [5]byte
	if _, err := rand.Read(tag[:]); err != nil {
		t.Fatal(err)
	}
	return endpoint.Endpoint{
		ID: id, ContainerID: hex.EncodeToString(tag[:]), IfName: "eth0", Netns: newNS(t), Namespace: "default", Pod: fmt.Sprintf("pod%d", id),
		Identity: identity.ID(1000 + uint32(id)), IPv4: netip.AddrFrom4([4]byte{10, 7, 0, byte(id)}),
		IPv6:   netip.AddrFrom16([16]byte{0: 0xfd, 1: 7, 14: byte(id >> 8), 15: byte(id)}),
		Device: podPrefix + hex.EncodeToString(tag[:]), Ingress: "allow-in", Egress: "allow-out",
	}
}

// allow is a table that lets everything pass.
func allow(key string) *policy.Table {
	return &policy.Table{Key: key, Rows: []policy.Row{{AnyPort: true, Verdict: policy.PortVerdict{Action: verdict.Allow}}}}
}

// ports is a table that allows TCP ports.
func ports(key string, first, last uint16) *policy.Table {
	return &policy.Table{Key: key, Rows: []policy.Row{{Proto: 6, First: first, Last: last, Verdict: policy.PortVerdict{Action: verdict.Allow, Cookie: 7}}}}
}

func denyAll() *policy.Table { return &policy.Table{Key: "empty"} }

// putAllow puts the two subjects that pod names.
func putAllow(t testing.TB, d *Datapath) {
	t.Helper()
	for _, s := range []*policy.Subject{
		{Key: "allow-in", Direction: verdict.Ingress, Else: allow("all")}, {Key: "allow-out", Direction: verdict.Egress, Else: allow("all")},
	} {
		if err := d.PutSubject(s); err != nil {
			t.Fatal(err)
		}
	}
}

// wire creates the device of ep and puts it in force.
func wire(t testing.TB, d *Datapath, ep endpoint.Endpoint) endpoint.Endpoint {
	t.Helper()
	var err error
	if ep.Ifindex, ep.MAC, err = d.CreateDevice(ep); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteEndpoint(ep); err != nil {
		t.Fatal(err)
	}
	return ep
}

// wait polls until cond holds. The deadline is for what never comes, not for what is slow.
func wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); pause() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func pause() { unix.Nanosleep(&unix.Timespec{Nsec: int64(time.Millisecond)}, nil) }
