package datapath

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// twoPods wires a client and a server pod on a live node.
func twoPods(t testing.TB, d *Datapath) (a, b endpoint.Endpoint) {
	t.Helper()
	putAllow(t, d)
	a, b = wire(t, d, pod(t, 11)), wire(t, d, pod(t, 12))
	serve(t, place(a.Netns), 80)
	serve(t, place(b.Netns), 80)
	return a, b
}

// expect checks that everything that is said about a path holds.
func expect(t *testing.T, d *Datapath, from, name string, want bool, err error) {
	t.Helper()
	if (err == nil) != want {
		t.Errorf("%s -> %s: error %v, want it to pass: %v; counters %v", from, name, err, want, d.Counters())
	}
}

func kernelBefore(t testing.TB, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var a, b int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &a, &b); err != nil {
		t.Fatalf("release of the kernel: %v", err)
	}
	return a < major || a == major && b < minor
}

func TestRootLiveTraffic(t *testing.T) {
	for _, clsact := range []bool{false, true} {
		if clsact && kernelBefore(t, 6, 6) {
			break // the first turn was that already
		}
		t.Run(fmt.Sprintf("clsact=%v", clsact), func(t *testing.T) {
			n, outside := liveNode(t)
			n.cfg.ForceClsact = clsact
			d := n.open()
			// the kernel got TCX with 6.6
			if want := clsact || kernelBefore(t, 6, 6); want != (len(d.Fallbacks()) == 1) {
				t.Errorf("fallbacks %v, want one: %v", d.Fallbacks(), want)
			}
			a, b := twoPods(t, d)
			out := place(outside)
			serve(t, "", 8080, nodeV4, nodeV6, "10.7.0.1", "fd07::1")
			serve(t, out, 80)
			for _, path := range []struct {
				from, to  place
				name, dst string
				port      int
				seen      string
			}{
				{place(a.Netns), place(b.Netns), "pod -> pod", "10.7.0.12", 80, "10.7.0.11"},
				{place(a.Netns), place(b.Netns), "pod -> pod", "fd07::c", 80, "fd07::b"},
				{"", place(b.Netns), "host -> pod", "10.7.0.12", 80, "10.7.0.1"},
				{"", place(b.Netns), "host -> pod", "fd07::c", 80, "fd07::1"},
				{place(a.Netns), "", "pod -> router", "10.7.0.1", 8080, "10.7.0.11"},
				{place(a.Netns), "", "pod -> router", "fd07::1", 8080, "fd07::b"},
				{place(a.Netns), "", "pod -> node", nodeV4, 8080, "10.7.0.11"},
				{place(a.Netns), "", "pod -> node", nodeV6, 8080, "fd07::b"},
				{place(a.Netns), out, "pod -> outside", outsideV4, 80, nodeV4},
				{place(a.Netns), out, "pod -> outside", outsideV6, 80, nodeV6},
			} {
				seen, err := tcp(t, patience, path.from, path.dst, path.port)
				expect(t, d, path.name, "tcp "+path.dst, true, err)
				if err == nil && seen != path.seen {
					t.Errorf("%s %s: the server sees %s, want %s", path.name, path.dst, seen, path.seen)
				}
				expect(t, d, path.name, "udp "+path.dst, true, udp(t, patience, path.from, path.dst, path.port, 100))
				expect(t, d, path.name, "large udp "+path.dst, true, udp(t, patience, path.from, path.dst, path.port, 5000))
				expect(t, d, path.name, "ping "+path.dst, true, ping(t, patience, path.from, path.dst))
			}
			// a host outside with a route to the pods
			inNS(t, outside, func() error {
				route(t, "ptout0", "10.7.0.0/24", nodeV4)
				route(t, "ptout0", "fd07::/112", nodeV6)
				return nil
			})
			for _, dst := range []string{"10.7.0.12", "fd07::c"} {
				_, err := tcp(t, patience, out, dst, 80)
				expect(t, d, "outside", "tcp "+dst, true, err)
				expect(t, d, "outside", "ping "+dst, true, ping(t, patience, out, dst))
			}
			if _, err := tcp(t, silence, out, "10.7.0.99", 80); err == nil {
				t.Error("an address without an endpoint answered")
			}
			if d.Alarms() != nil && len(d.Alarms()) > 0 {
				t.Errorf("alarms %v", d.Alarms())
			}
		})
	}
}

// Policy: a rule lets one port through; a change cuts the live connection it no longer allows; a lock denies everything.
func TestRootLivePolicy(t *testing.T) {
	n, _ := liveNode(t)
	d := n.open()
	a, b := twoPods(t, d)
	serve(t, place(b.Netns), 81)
	if err := d.PutSubject(&policy.Subject{
		Key: "web only", Direction: verdict.Ingress, Isolated: true, Default: 77, Else: denyAll(),
		Peers: map[identity.ID]*policy.Table{a.Identity: ports("web", 80, 80)},
	}); err != nil {
		t.Fatal(err)
	}
	both := func(want80, want81 bool, what string) {
		t.Helper()
		for _, dst := range []string{"10.7.0.12", "fd07::c"} {
			_, err := tcp(t, within(want80), place(a.Netns), dst, 80)
			expect(t, d, what, "tcp 80 "+dst, want80, err)
			_, err = tcp(t, within(want81), place(a.Netns), dst, 81)
			expect(t, d, what, "tcp 81 "+dst, want81, err)
		}
	}
	both(true, true, "no rule")
	live := dial(t, place(a.Netns), "tcp", "10.7.0.12", 81)
	defer live.Close()
	if err := echo(live, patience); err != nil {
		t.Fatal(err)
	}

	var events eventLog
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Events(ctx, events.add) }()

	b.Ingress = "web only"
	if err := errors.Join(d.WriteEndpoint(b), d.Commit()); err != nil {
		t.Fatal(err)
	}
	both(true, false, "web only")
	if err := echo(live, silence); err == nil {
		t.Error("the connection to port 81 lives on")
	}
	if _, err := tcp(t, silence, "", "10.7.0.12", 80); err == nil {
		t.Error("the host passed a rule that does not name it")
	}
	wait(t, "an event that names the deny", func() bool {
		return events.has(func(e bpf.Event) bool {
			return e.Type == 1 && e.Dport.Host() == 81 && e.CookieIn == 77 && e.DstEP == b.ID && e.SrcIdentity == uint32(a.Identity)
		})
	})
	// an identity is added in place
	if err := errors.Join(d.PatchSubject(policy.Patch{Subject: "web only", Put: map[identity.ID]*policy.Table{identity.Host: ports("web", 80, 80)}}), d.Commit()); err != nil {
		t.Fatal(err)
	}
	if _, err := tcp(t, patience, "", "10.7.0.12", 80); err != nil {
		t.Errorf("the host after the patch: %v", err)
	}
	if err := d.LockEndpoint(b); err != nil {
		t.Fatal(err)
	}
	both(false, false, "locked")
	if err := errors.Join(d.WriteEndpoint(b), d.Commit()); err != nil {
		t.Fatal(err)
	}
	both(true, false, "unlocked")
	snapOf := func(long bool) func() bool {
		return func() bool {
			return events.has(func(e bpf.Event) bool {
				return e.Type == 5 && e.Dport.Host() == 80 && (e.SnapLen > bpf.EventSnapShort) == long && e.SnapLen >= bpf.EventSnapShort
			})
		}
	}
	wait(t, "an event of a packet that passed, with its Ethernet header", snapOf(false))
	if snapOf(true)() {
		t.Error("a packet that passed has its first bytes in its event, and nobody asked for them")
	}
	if err := d.WithSnap(func() error {
		err := d.WithSnap(func() error { return nil }) // another reader, who ends before this one
		both(true, false, "with the packets' first bytes")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	wait(t, "an event of a packet that passed, with its first bytes", snapOf(true))
	if s, _, err := d.settings.get(0); err != nil || s.Flags&bpf.SettingSnap != 0 {
		t.Errorf("settings %+v, %v: nobody reads first bytes any more", s, err)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("events: %v", err)
	}
	if d.Lost() != 0 {
		t.Errorf("%d events lost", d.Lost())
	}
}

func echo(c net.Conn, limit time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write([]byte("ping\n")); err != nil {
		return err
	}
	buf := make([]byte, 256)
	for got := ""; ; {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		if got += string(buf[:n]); len(got) >= 5 && got[len(got)-5:] == "ping\n" {
			return nil
		}
	}
}

type eventLog struct {
	mu  sync.Mutex
	all []bpf.Event
}

func (l *eventLog) add(e *bpf.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, *e)
}

func (l *eventLog) has(f func(bpf.Event) bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.all, f)
}

// A program that somebody took away leaves a device whose packets end in the stack, IPv4 and IPv6 alike, until it is back.
// Not even a datagram that wants no answer gets through.
func TestRootLiveMissingProgramDenies(t *testing.T) {
	n, outside := liveNode(t)
	d := n.open()
	a, b := twoPods(t, d)
	var heard atomic.Int64
	for _, p := range []place{"", place(outside), place(b.Netns)} {
		var pc net.PacketConn
		if err := p.do(t, func() (err error) { pc, err = net.ListenPacket("udp", ":9"); return err }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pc.Close() })
		go func() {
			for {
				if _, _, err := pc.ReadFrom(make([]byte, 16)); err != nil {
					return
				}
				heard.Add(1)
			}
		}()
	}
	targets := []string{"10.7.0.12", "fd07::c", "10.7.0.1", "fd07::1", nodeV4, nodeV6, outsideV4, outsideV6}
	send := func() {
		t.Helper()
		for _, dst := range targets {
			c := dial(t, place(a.Netns), "udp", dst, 9)
			if _, err := c.Write([]byte("x")); err != nil {
				t.Errorf("to %s: %v", dst, err)
			}
			c.Close()
		}
	}
	all, lost := int64(len(targets)), int64(-backlogDrops(t))
	send()
	wait(t, "every datagram arrives", func() bool { return heard.Load()+lost+int64(backlogDrops(t)) >= all })
	for _, ep := range []endpoint.Endpoint{a, b} {
		if err := d.hooks.links[hook{progPod, ep.Ifindex}].Detach(); err != nil {
			t.Fatal(err)
		}
	}
	send()
	emptyBacklogs(t)
	run(t, d)
	wait(t, "the programs are back", func() bool {
		return attachedNow(t, d, hook{progPod, a.Ifindex}) && attachedNow(t, d, hook{progPod, b.Ifindex})
	})
	send()
	wait(t, "every datagram arrives again", func() bool { return heard.Load()+lost+int64(backlogDrops(t)) >= 2*all })
	emptyBacklogs(t)
	if got := heard.Load(); got > 2*all {
		t.Errorf("%d datagrams passed a device without its program", got-2*all)
	}
}

// The first packet of a workload is delivered, and not one leaves before its policy is in force.
func TestRootLiveFirstPacket(t *testing.T) {
	n, _ := liveNode(t)
	d := n.open()
	putAllow(t, d)
	b := wire(t, d, pod(t, 12))
	var early, first atomic.Int64
	var pc net.PacketConn
	if err := place(b.Netns).do(t, func() (err error) { pc, err = net.ListenPacket("udp", ":9"); return err }); err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, 16)
		for {
			k, _, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if string(buf[:k]) == "early" {
				early.Add(1)
			} else {
				first.Add(1)
			}
		}
	}()
	const pods = 20
	before := backlogDrops(t)
	for i := range pods {
		ep := pod(t, uint16(100+i))
		var err error
		if ep.Ifindex, ep.MAC, err = d.CreateDevice(ep); err != nil {
			t.Fatal(err)
		}
		send := func(text, dst string) {
			c := dial(t, place(ep.Netns), "udp", dst, 9)
			defer c.Close()
			if _, err = c.Write([]byte(text)); err != nil && text == "first" {
				t.Errorf("pod %d to %s: %v", i, dst, err)
			}
		}
		send("early", "10.7.0.12")
		send("early", "fd07::c")
		if err := d.WriteEndpoint(ep); err != nil {
			t.Fatal(err)
		}
		send("first", "10.7.0.12")
		send("first", "fd07::c")
	}
	defer func() { t.Logf("%d of %d first packets; counters %v", first.Load(), 2*pods, d.Counters()) }()
	wait(t, "every first packet arrives", func() bool { return first.Load()+int64(backlogDrops(t)-before) >= 2*pods })
	if early.Load() != 0 {
		t.Errorf("%d packets left before policy was in force", early.Load())
	}
}

// Agents come and go under traffic: not a packet is lost and no connection notices, also when the map layout changes.
func TestRootLiveRestart(t *testing.T) {
	n, _ := liveNode(t)
	d := n.open()
	a, b := twoPods(t, d)
	live := dial(t, place(a.Netns), "tcp", "10.7.0.12", 80)
	defer live.Close()
	real, flow := n.sets, newStream(t, place(a.Netns), "10.7.0.12", 80)
	for i := range 6 {
		t.Logf("before restart %d: %v, counters %v", i, flow, d.Counters())
		d.Close()
		switch i % 3 {
		case 1: // another binary
			n.sets = func() []*ebpf.CollectionSpec {
				sets := real()
				for _, s := range sets {
					for _, p := range s.Programs {
						p.Instructions = append(asm.Instructions{asm.Mov.Imm(asm.R0, int32(i)).WithMetadata(p.Instructions[0].Metadata)}, p.Instructions...)
						p.Instructions[1].Metadata = asm.Metadata{}
					}
				}
				return sets
			}
		case 2: // another layout
			n.cfg.MapSizes[mapConntrack] += 4096
		}
		d = n.open()
		if err := echo(live, patience); err != nil {
			t.Fatalf("restart %d: live connection: %v", i, err)
		}
		if _, err := tcp(t, patience, place(a.Netns), "fd07::c", 80); err != nil {
			t.Errorf("restart %d: new connection: %v", i, err)
		}
	}
	wait(t, "a thousand datagrams", func() bool { return flow.count() >= 1000 })
	missing := flow.end()
	t.Logf("6 restarts: %v, %d lost by the machine's queues", flow, flow.spared())
	if len(missing) > flow.spared() {
		t.Errorf("%v; without answer: %v; counters %v; sockets: client %q, server %q", flow, missing, d.Counters(),
			socketLosses(t, place(a.Netns)), socketLosses(t, place(b.Netns)))
	}
}
