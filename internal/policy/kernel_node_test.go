package policy_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/bpf/packet"
	"porin/internal/datapath"
	"porin/internal/identity"
)

// inNamespaces runs the calling test again, in a process with a network and mount namespace of its own, and tells whether
// this is that process: its devices, routes and mounts are a node's, and gone when it ends.
func inNamespaces(t testing.TB) bool {
	t.Helper()
	if os.Getenv("PORIN_UNIT") == "1" {
		t.Skip("unit run without root")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run with sudo")
	}
	const inside = "PORIN_POLICY_TEST_NODE"
	if os.Getenv(inside) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatalf("make mounts private: %v", err)
		}
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v=true")
	if _, timed := t.(*testing.B); timed {
		cmd = exec.Command("/proc/self/exe", "-test.run=^$", "-test.bench=^"+t.Name()+"$", "-test.benchtime=1x")
	}
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("in namespaces of its own:\n%s", out)
	if err != nil {
		t.Fatal(err)
	}
	return false
}

func routerMAC() packet.MAC { return packet.MAC{2, 0, 0, 0, 1, 0xfe} }

// kernelNode is a node whose datapath is the real one; packets go through the programs that it pinned.
type kernelNode struct {
	dual     bool
	datapath *datapath.Datapath
	progs    map[string]*ebpf.Program
	ct       *ebpf.Map
	epoch    *ebpf.Map
	events   *ringbuf.Reader
	gateway  packet.MAC
	host     int // ifindex of porin_host
	uplink   netlink.Link
	netns    []string
}

const pods = 4

func newKernelNode(t testing.TB, dual bool) *kernelNode {
	t.Helper()
	n := &kernelNode{dual: dual, progs: map[string]*ebpf.Program{}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("make the node: %v", err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up0"
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire"}))
	wire, err := netlink.LinkByName("wire")
	must(err)
	must(netlink.LinkSetUp(wire))
	up, err := netlink.LinkByName("up0")
	must(err)
	n.uplink = up
	must(netlink.LinkSetUp(up))
	for _, a := range []string{"192.0.2.1/24", "2001:db8:1::1/64"} {
		addr, err := netlink.ParseAddr(a)
		must(err)
		addr.Flags = unix.IFA_F_NODAD
		must(netlink.AddrAdd(up, addr))
	}
	for _, gw := range []string{"192.0.2.254", "2001:db8:1::fe"} {
		must(netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.ParseIP(gw)}))
	}

	cfg := datapath.Config{
		BPFRoot: filepath.Join(t.TempDir(), "bpf"), Devices: []string{"up0"}, MTU: 1500, Grace: 5 * time.Millisecond,
		IPv4Range: netip.MustParsePrefix("10.7.0.0/24"), RouterIPv4: netip.MustParseAddr("10.7.0.1"),
		MapSizes: map[string]uint32{"conntrack": 1 << 16, "nat": 4096, "peers": 4096, "events": 1 << 20},
	}
	if dual {
		cfg.IPv6Range, cfg.RouterIPv6 = netip.MustParsePrefix("fd07::/112"), netip.MustParseAddr("fd07::1")
	}
	t.Cleanup(func() {
		if err := datapath.Clean(cfg.BPFRoot); err != nil {
			t.Errorf("clean: %v", err)
		}
		for unix.Unmount(cfg.BPFRoot, 0) == nil {
		}
	})
	n.datapath, err = datapath.Open(slog.New(slog.DiscardHandler), cfg)
	must(err)
	t.Cleanup(func() { must(n.datapath.Close()) })
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.datapath.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		must(<-done)
	})

	pins, err := filepath.Glob(filepath.Join(cfg.BPFRoot, "porin", "*", "progs", "*"))
	must(err)
	for _, p := range pins {
		n.progs[filepath.Base(p)], err = ebpf.LoadPinnedProgram(p, nil)
		must(err)
		t.Cleanup(func() { _ = n.progs[filepath.Base(p)].Close() })
	}
	open := func(name string) *ebpf.Map {
		paths, err := filepath.Glob(filepath.Join(cfg.BPFRoot, "porin", "*", "maps", name))
		if err != nil || len(paths) != 1 {
			t.Fatalf("pin of map %s: %v, %v", name, paths, err)
		}
		m, err := ebpf.LoadPinnedMap(paths[0], nil)
		must(err)
		t.Cleanup(func() { _ = m.Close() })
		return m
	}
	n.ct, n.epoch = open("conntrack"), open("epoch")
	n.events, err = ringbuf.NewReader(open("events"))
	must(err)
	t.Cleanup(func() { _ = n.events.Close() })

	host, err := netlink.LinkByName("porin_host")
	must(err)
	n.host, n.gateway = host.Attrs().Index, packet.MAC(host.Attrs().HardwareAddr)
	for range pods {
		n.netns = append(n.netns, newNetns(t))
	}
	return n
}

// newNetns makes a network namespace that lives as long as the test and returns its path.
func newNetns(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
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

// skb is struct __sk_buff up to the fields that matter here.
type skb struct {
	_       [10]uint32
	Ifindex uint32
	_       [37]uint32
}

// send runs one frame through a program and returns what the kernel is told, and the events.
func (n *kernelNode) send(program string, ifindex int, frame []byte) (forwarded bool, events []bpf.Event, err error) {
	code, err := n.progs[program].Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: skb{Ifindex: uint32(ifindex)}})
	if err != nil {
		return false, nil, fmt.Errorf("run %s: %w", program, err)
	}
	const shot, redirect = 2, 7
	if code != shot && code != redirect {
		return false, nil, fmt.Errorf("%s left the packet to the stack: %d", program, int32(code))
	}
	for {
		n.events.SetDeadline(time.Unix(1, 0))
		rec, err := n.events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return code == redirect, events, nil
		}
		if err != nil {
			return false, nil, fmt.Errorf("read events: %w", err)
		}
		var e bpf.Event
		if !e.Decode(rec.RawSample) {
			return false, nil, fmt.Errorf("an event of %d bytes is not what types.h says", len(rec.RawSample))
		}
		events = append(events, e)
	}
}

// store gives numbers to label sets, as a cluster's store does.
type store struct {
	mu   sync.Mutex
	byID map[string]identity.ID
	next identity.ID
}

func (s *store) Allocate(_ context.Context, key string) (identity.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID == nil {
		s.byID = map[string]identity.ID{}
	}
	if s.byID[key] == 0 {
		s.next++
		s.byID[key] = 1000 + s.next
	}
	return s.byID[key], nil
}

func (s *store) Adopt(string, identity.ID) {}

func (s *store) Release(context.Context, string, identity.ID) error { return nil }

func (s *store) Watch(ctx context.Context, _ func(bool, identity.ID, string)) error {
	<-ctx.Done()
	return nil
}
