package datapath

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/internal/endpoint"
)

// run starts Run. It ends with stop, which comes before Close as it does in an agent, or with the test.
func run(t testing.TB, d *Datapath) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// attachedNow asks the kernel, not the agent, whether a hook runs the agent's program.
func attachedNow(t testing.TB, d *Datapath, k hook) bool {
	t.Helper()
	d.hooks.mu.Lock()
	defer d.hooks.mu.Unlock()
	if d.hooks.clsact {
		return filterThere(k)
	}
	l := d.hooks.links[k]
	if l == nil {
		return false
	}
	info, err := l.Info()
	return err == nil && alive(l) && info.Program == idOf(t, d.progs[k.prog])
}

func TestRootTakenProgramsComeBack(t *testing.T) {
	for _, kind := range []string{"tcx", "clsact"} {
		t.Run(kind, func(t *testing.T) {
			n := newNode(t)
			n.cfg.ForceClsact = kind == "clsact"
			d := n.open()
			putAllow(t, d)
			ep := wire(t, d, pod(t, 11))
			k := hook{progPod, ep.Ifindex}
			if !attachedNow(t, d, k) {
				t.Fatal("not attached")
			}
			run(t, d)
			if kind == "clsact" {
				if err := netlink.QdiscDel(clsactOf(ep.Ifindex)); err != nil {
					t.Fatal(err)
				}
			} else {
				l, err := link.LoadPinnedLink(filepath.Join(d.dir.links(), k.pinName()), nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(l.Detach(), l.Close()); err != nil {
					t.Fatal(err)
				}
			}
			wait(t, "the program is back", func() bool { return attachedNow(t, d, k) })
			wait(t, "it is logged", func() bool {
				return strings.Contains(n.logs.String(), "program=pod_egress ifindex="+num(uint32(ep.Ifindex)))
			})
			if kind == "tcx" {
				if _, ok := linkIDs(t, d.dir)[k.pinName()]; !ok {
					t.Error("the new link is not pinned")
				}
			}
		})
	}
}

// From TCX links to clsact filters and back: at no moment is the hook empty, at the end nothing of the other kind is left.
func TestRootKindOfHookChanges(t *testing.T) {
	n := newNode(t)
	d := n.open()
	putAllow(t, d)
	ep := wire(t, d, pod(t, 11))
	k := hook{progPod, ep.Ifindex}
	d.Close()
	for _, clsact := range []bool{true, true, false, false} {
		n.cfg.ForceClsact = clsact
		d = n.open()
		if !attachedNow(t, d, k) || filterThere(k) != clsact || (len(linkIDs(t, d.dir)) == 0) != clsact {
			t.Fatalf("clsact %v: attached %v, filter %v, links %v", clsact, attachedNow(t, d, k), filterThere(k), linkIDs(t, d.dir))
		}
		if want := []string{"TCX links (Linux 6.6): clsact filters instead"}; clsact && !slices.Equal(d.Fallbacks(), want) {
			t.Errorf("fallbacks %v", d.Fallbacks())
		}
		d.Close()
	}
}

func TestRootLostPinsComeBack(t *testing.T) {
	n := newNode(t)
	d := n.open()
	putAllow(t, d)
	ep := wire(t, d, pod(t, 11))
	links := linkIDs(t, d.dir)
	run(t, d)
	complete := func() bool {
		for name := range d.maps {
			if !exists(d.dir.mapPin(name)) || !exists(d.dir.shapePin(name)) {
				return false
			}
		}
		for k := range links {
			if !exists(filepath.Join(d.dir.links(), k)) {
				return false
			}
		}
		return d.dir.complete()
	}
	if !complete() {
		t.Fatal("not complete at the start")
	}
	if err := os.RemoveAll(filepath.Join(n.cfg.BPFRoot, "porin")); err != nil {
		t.Fatal(err)
	}
	wait(t, "pins are back", complete)
	if err := unix.Unmount(n.cfg.BPFRoot, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	wait(t, "bpffs and pins are back", complete)
	if got := linkIDs(t, d.dir); len(got) != len(links) || got[hook{progPod, ep.Ifindex}.pinName()] != links[hook{progPod, ep.Ifindex}.pinName()] {
		t.Errorf("links %v, want those of before %v: nothing that runs may notice", got, links)
	}
	if err := unix.Unmount(n.cfg.BPFRoot, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	mountTmpfs(t, n.cfg.BPFRoot)
	wait(t, "an alarm names the foreign file system", func() bool { return strings.Contains(strings.Join(d.Alarms(), "\n"), "tmpfs") })
	if !attachedNow(t, d, hook{progPod, ep.Ifindex}) {
		t.Error("the program went with the pins")
	}
	if err := unix.Unmount(n.cfg.BPFRoot, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	wait(t, "the alarm ends", func() bool { return len(d.Alarms()) == 0 && complete() })
}

func TestRootHostIsRepaired(t *testing.T) {
	n := newNode(t)
	d := n.open()
	run(t, d)
	before := d.host.index()
	row := func(a string) (bpf.Peer, bool) {
		p, ok, err := d.peers.get(bpf.AddrFrom(netip.MustParseAddr(a)))
		if err != nil {
			t.Fatal(err)
		}
		return p, ok
	}
	if p, ok := row("10.7.0.1"); !ok || p.Identity != hostIdentity || p.Flags&bpf.PeerHost == 0 {
		t.Errorf("row of the router's address: %+v %v", p, ok)
	}
	if err := deleteLink(hostDevice); err != nil {
		t.Fatal(err)
	}
	wait(t, "porin_host is back with its program", func() bool {
		i := d.host.index()
		s, _, err := d.settings.get(0)
		return err == nil && i != before && s.HostIfindex == uint32(i) && attachedNow(t, d, hook{progHost, i})
	})
	for _, dst := range []string{"10.7.0.77", "fd07::77"} {
		r, err := netlink.RouteGet(netip.MustParseAddr(dst).AsSlice())
		if err != nil || len(r) != 1 || r[0].LinkIndex != d.host.index() {
			t.Errorf("route to %s: %v %v", dst, r, err)
		}
	}
	dev, err := netlink.LinkByName(hostDevice)
	if err != nil {
		t.Fatal(err)
	}
	routes, err := netlink.RouteList(dev, netlink.FAMILY_V4)
	if err != nil || len(routes) == 0 {
		t.Fatalf("routes %v %v", routes, err)
	}
	if err := netlink.RouteDel(&routes[0]); err != nil {
		t.Fatal(err)
	}
	wait(t, "the route is back", func() bool {
		r, err := netlink.RouteList(dev, netlink.FAMILY_V4)
		return err == nil && len(r) == len(routes)
	})
	// an address of the node appears and goes
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	a := &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("198.51.100.9/32"))}
	if err := netlink.AddrAdd(lo, a); err != nil {
		t.Fatal(err)
	}
	wait(t, "the node's new address is known", func() bool { p, ok := row("198.51.100.9"); return ok && p.Flags&bpf.PeerHost != 0 })
	if err := netlink.AddrDel(lo, a); err != nil {
		t.Fatal(err)
	}
	wait(t, "the node's former address is forgotten", func() bool { _, ok := row("198.51.100.9"); return !ok })
}

func TestRootUplinks(t *testing.T) {
	n, _ := uplinkNode(t)
	d := n.open()
	stop := run(t, d)
	if got := d.host.uplinkNames(); !slices.Equal(got, []string{"ptup0"}) {
		t.Fatalf("uplinks %v, want the device with a default route", got)
	}
	up, err := ifindexOf("ptup0")
	if err != nil {
		t.Fatal(err)
	}
	for _, prog := range []string{progUplinkIngress, progUplinkEgress} {
		if !attachedNow(t, d, hook{prog, up}) {
			t.Errorf("%s is not on the uplink", prog)
		}
	}
	s, _, err := d.settings.get(0)
	if err != nil || s.Masq4.Netip().String() != nodeV4 || s.Masq6.Netip().String() != nodeV6 || s.Flags&(bpf.SettingMasq4|bpf.SettingMasq6) != bpf.SettingMasq4|bpf.SettingMasq6 {
		t.Errorf("settings %+v: %v", s, err)
	}
	if s.NatMin < 1024 || s.NatMax <= s.NatMin {
		t.Errorf("masquerade ports %d-%d", s.NatMin, s.NatMax)
	}
	if d.host.mtu() != 1480 {
		t.Errorf("mtu %d, want the uplink's", d.host.mtu())
	}
	for _, dst := range []string{"0.0.0.0/0", "::/0"} {
		if err := netlink.RouteDel(&netlink.Route{LinkIndex: up, Dst: ipNet(netip.MustParsePrefix(dst))}); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, "the former uplink is let go", func() bool { return len(d.host.uplinkNames()) == 0 && !attachedNow(t, d, hook{progUplinkIngress, up}) })
	stop()
	d.Close()
	n.cfg.Devices = []string{"ptup0"}
	d = n.open()
	if got := d.host.uplinkNames(); !slices.Equal(got, []string{"ptup0"}) {
		t.Errorf("uplinks %v, want the named one", got)
	}
	d.Close()
	n.cfg.Devices = []string{"lo"}
	if _, err := n.tryOpen(); err == nil || !strings.Contains(err.Error(), "Ethernet") {
		t.Errorf("loopback as uplink: %v", err)
	}
	n.cfg.Devices = []string{"ptnone"}
	if _, err := n.tryOpen(); err == nil || !strings.Contains(err.Error(), "ptnone") {
		t.Errorf("missing uplink: %v", err)
	}
}

// A vanished device, with or without an agent to see it, leaves neither rows nor pins in the way of its successor.
func TestRootVanishedDevice(t *testing.T) {
	n := newNode(t)
	d := n.open()
	putAllow(t, d)
	a, b := wire(t, d, pod(t, 11)), wire(t, d, pod(t, 12))
	stop := run(t, d)
	if err := d.DeleteDevice(a.Device); err != nil {
		t.Fatal(err)
	}
	wait(t, "the dead link's pin is gone", func() bool { _, ok := linkIDs(t, d.dir)[hook{progPod, a.Ifindex}.pinName()]; return !ok })
	if err := d.RemoveEndpoint(a); err != nil {
		t.Fatal(err)
	}
	if a.Ifindex, a.MAC, _ = d.CreateDevice(a); a.Ifindex == 0 {
		t.Fatal("not created again")
	}
	if err := d.WriteEndpoint(a); err != nil {
		t.Fatal(err)
	}
	stop()
	d.Close()
	if err := d.DeleteDevice(b.Device); err != nil {
		t.Fatal(err)
	}
	d = n.open()
	if _, ok, _ := d.endpoints.get(uint32(b.Ifindex)); ok {
		t.Error("row of a device that went while no agent ran")
	}
	if _, ok, _ := d.peers.get(bpf.AddrFrom(b.IPv4)); ok {
		t.Error("peers row of a device that went while no agent ran")
	}
	if _, ok, _ := d.peers.get(bpf.AddrFrom(a.IPv4)); !ok {
		t.Error("the other endpoint lost its row")
	}
}

func TestRootSweep(t *testing.T) {
	n := newNode(t)
	d := n.open()
	now := monotonic()
	src, dst, masq := bpf.AddrFrom(netip.MustParseAddr("10.7.0.11")), bpf.AddrFrom(netip.MustParseAddr("8.8.8.8")), bpf.AddrFrom(netip.MustParseAddr("192.0.2.1"))
	flow := func(sport uint16, proto uint8, expires uint64, flags uint8, used uint64, withNat, withCT bool) (bpf.CTKey, bpf.NatKey, bpf.NatKey) {
		t.Helper()
		out := bpf.NatKey{Src: src, Dst: dst, Sport: bpf.PortFrom(sport), Dport: bpf.PortFrom(53), Proto: proto}
		if proto == unix.IPPROTO_ICMP {
			out.Dport = out.Sport
		}
		e := bpf.NatEntry{Addr: masq, Port: bpf.PortFrom(sport + 1), Used: used}
		back := backOf(out, e)
		k := ctKeyOf(out)
		var initiator uint8
		if k.Lo != src {
			initiator = 1
		}
		if withCT {
			if err := d.conntrack.put(k, bpf.CTEntry{Expires: expires, Initiator: initiator, Flags: flags}); err != nil {
				t.Fatal(err)
			}
		}
		if withNat {
			if err := errors.Join(d.nat.put(out, e), d.nat.put(back, bpf.NatEntry{Addr: src, Port: out.Sport, Used: used})); err != nil {
				t.Fatal(err)
			}
		}
		return k, out, back
	}
	const second = uint64(1e9)
	old := now - 60*second
	check := func(what string, k bpf.CTKey, out, back bpf.NatKey, wantCT, wantNat bool) {
		t.Helper()
		_, ct, _ := d.conntrack.get(k)
		_, o, _ := d.nat.get(out)
		_, b, _ := d.nat.get(back)
		if ct != wantCT || o != wantNat || b != wantNat {
			t.Errorf("%s: conntrack %v, nat %v %v; want %v %v", what, ct, o, b, wantCT, wantNat)
		}
	}
	type kept struct {
		what    string
		k       bpf.CTKey
		o, b    bpf.NatKey
		ct, nat bool
	}
	var all []kept
	add := func(what string, ct, nat bool, sport uint16, proto uint8, expires uint64, flags uint8, used uint64, withNat, withCT bool) {
		k, o, b := flow(sport, proto, expires, flags, used, withNat, withCT)
		all = append(all, kept{what, k, o, b, ct, nat})
	}
	add("live", true, true, 1000, 17, now+second, bpf.CTNat, old, true, true)
	add("expired, its ports are free at once", false, false, 1001, 6, now-second, bpf.CTNat, now, true, true)
	add("expired ping", false, false, 1002, 1, now-second, bpf.CTNat, now, true, true)
	add("live ping", true, true, 1003, 1, now+second, bpf.CTNat, old, true, true)
	add("translation whose flow the LRU forgot", false, false, 1004, 17, 0, 0, old, true, false)
	add("translation a moment old", false, true, 1005, 17, 0, 0, now, true, false)
	add("expired without translation", false, false, 1006, 17, now-second, 0, 0, false, true)
	lonely := bpf.NatKey{Src: dst, Dst: masq, Sport: bpf.PortFrom(53), Dport: bpf.PortFrom(4000), Proto: 17, Dir: 1}
	if err := d.nat.put(lonely, bpf.NatEntry{Addr: src, Port: bpf.PortFrom(4001), Used: old}); err != nil {
		t.Fatal(err)
	}
	if err := d.sweep(now); err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		check(f.what, f.k, f.o, f.b, f.ct, f.nat)
	}
	if _, ok, _ := d.nat.get(lonely); ok {
		t.Error("an answers' row without partner is left")
	}
	if p := d.MapPressure(); p[mapConntrack] != 2.0/4096 || p[mapNat] != 6.0/4096 {
		t.Errorf("pressure %v", p)
	}
	for name, want := range map[string]uint64{"ct": 2, "nat": 6} {
		if n, err := d.FlushMap(name); err != nil || n != want {
			t.Errorf("flush %s: %d %v, want %d", name, n, err, want)
		}
	}
	if _, err := d.FlushMap("policy"); err == nil {
		t.Error("policy was flushed")
	}
}

func TestRootCleanLeavesNothing(t *testing.T) {
	before := deviceNames(t)
	for _, clsact := range []bool{false, true} {
		n, _ := uplinkNode(t)
		n.cfg.ForceClsact = clsact
		d := n.open()
		putAllow(t, d)
		wire(t, d, pod(t, 11))
		// the links are still held by this process: taking the pins away would not detach
		for range 2 {
			if err := Clean(n.cfg.BPFRoot); err != nil {
				t.Fatal(err)
			}
		}
		up, err := ifindexOf("ptup0")
		if err != nil {
			t.Fatal(err)
		}
		for _, prog := range []string{progUplinkIngress, progUplinkEgress} {
			if attachedNow(t, d, hook{prog, up}) {
				t.Errorf("clsact %v: %s is still on the uplink", clsact, prog)
			}
		}
		if exists(filepath.Join(n.cfg.BPFRoot, "porin")) {
			t.Error("pins are left")
		}
		if got := newDevices(t, before); !slices.Equal(got, []string{"ptup0"}) {
			t.Errorf("devices %v are left, want ptup0 alone", got)
		}
		if err := deleteLink("ptup0"); err != nil {
			t.Fatal(err)
		}
	}
	if err := Clean(filepath.Join(t.TempDir(), "nothing")); err != nil {
		t.Errorf("clean of nothing: %v", err)
	}
}

func TestRootListMaps(t *testing.T) {
	n := newNode(t)
	d := n.open()
	busy(t, d)
	rows := func(name, key string) (out []string) {
		t.Helper()
		if err := d.ListMap(name, key, func(c, r []string) error {
			if len(c) != len(r) {
				t.Errorf("%s: %d columns, %d fields", name, len(c), len(r))
			}
			out = append(out, strings.Join(r, " "))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := rows("endpoints", "11"); len(got) != 1 || !strings.Contains(got[0], "10.7.0.11 fd07::b 1011") {
		t.Errorf("endpoints %v", got)
	}
	if got := strings.Join(rows("policy", ""), "\n"); !strings.Contains(got, "tcp/80 allow") || !strings.Contains(got, "tcp/1024-1535 allow") || !strings.Contains(got, "else 0 - deny 00000009") {
		t.Errorf("policy\n%s", got)
	}
	if got := rows("ipcache", "10.7.0.12"); len(got) != 1 || !strings.Contains(got[0], "local,cluster") {
		t.Errorf("ipcache %v", got)
	}
	for key, want := range map[string]string{
		"192.0.2.77": "192.0.2.0/24 16777217 ", "::ffff:192.0.2.77": "192.0.2.0/24 16777217 ", "2001:db8::5": "2001:db8::/32 16777218 ",
		"192.0.2.0/24": "192.0.2.0/24 16777217 ", "8.8.8.8": "0.0.0.0/0 reserved:world-ipv4 ", "2606::1": "- reserved:world-ipv6 ",
	} {
		if got := rows("ipcache", key); len(got) != 1 || !strings.HasPrefix(got[0], want) {
			t.Errorf("ipcache of %s: %v, want %s", key, got, want)
		}
	}
	if got := rows("ipcache", "192.0.0.0/16"); len(got) != 0 {
		t.Errorf("ipcache of a CIDR without a row: %v", got)
	}
	if got := rows("ct", ""); len(got) != 1 || !strings.HasPrefix(got[0], "10.7.0.11:4000 10.7.0.12:80 tcp allow") {
		t.Errorf("ct %v", got)
	}
	for key, want := range map[string]int{"10.7.0.11": 1, "10.7.0.12:80": 1, "::ffff:10.7.0.12": 1, "10.7.0.13": 0, "10.7.0.12:81": 0} {
		if got := rows("ct", key); len(got) != want {
			t.Errorf("ct of %s: %v, want %d rows", key, got, want)
		}
	}
	for name, key := range map[string]string{"ct": "tcp", "nat": "10.7.0.300", "ipcache": "everything"} {
		if err := d.ListMap(name, key, nil); !errors.Is(err, ErrKey) {
			t.Errorf("%s of %q: %v, want ErrKey", name, key, err)
		}
	}
	if err := d.ListMap("bogus", "", nil); err == nil {
		t.Error("an unknown map was listed")
	}
}

func TestNamesAndConfig(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "sixteen-letters-", "a b", "a\n", "é", "eth0:1", "%d"} {
		if checkIfName(name) == nil {
			t.Errorf("device name %q was taken", name)
		}
	}
	for name, want := range map[string]bool{"pn0123456789": true, "pn012345678": false, "pnABCDEF0123": false, "png123456789": false, "eth0": false} {
		if isPodDevice(name) != want {
			t.Errorf("%s is a pod's device: %v", name, !want)
		}
	}
	good := Config{BPFRoot: "/x", IPv4Range: netip.MustParsePrefix("10.0.0.0/24"), RouterIPv4: netip.MustParseAddr("10.0.0.1")}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no root": func(c *Config) { c.BPFRoot = "" }, "no range": func(c *Config) { c.IPv4Range = netip.Prefix{} },
		"router": func(c *Config) { c.RouterIPv4 = netip.MustParseAddr("10.1.0.1") }, "mtu": func(c *Config) { c.MTU = 20 },
		"ports": func(c *Config) { c.NATMin = 9 },
	} {
		c := good
		spoil(&c)
		if c.check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := good.checkAddresses(endpoint.Endpoint{}); err == nil {
		t.Error("an endpoint without address was taken")
	}
}
