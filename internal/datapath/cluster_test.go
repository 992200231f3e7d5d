package datapath

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/node"
	"porin/internal/verdict"
)

// far is the other node: its namespace, its datapath, and a workload with an address in each family.
type far struct {
	ns  place
	d   *Datapath
	pod endpoint.Endpoint
}

// two is two nodes on a cable, each with a workload, that know each other as two agents would tell them.
type two struct {
	near    *Datapath
	pod     endpoint.Endpoint
	far     far
	farNode node.Node
	remote  []node.Remote
}

const farV4, farV6 = "192.0.2.2", "2001:db8:1::2"

// twoNodes makes both. cfg changes the configuration of each before it is opened.
func twoNodes(t testing.TB, underlay int, cfg func(*Config)) *two {
	t.Helper()
	a, outside := liveNode(t)
	for _, dev := range []string{"ptup0"} {
		mtu(t, dev, underlay)
	}
	inNS(t, outside, func() error { mtu(t, "ptout0", underlay); return nil })
	cfg(&a.cfg)
	b := newNode(t)
	b.sets = a.sets
	b.cfg.MTU, b.cfg.Masquerade = 0, true
	b.cfg.IPv4Range, b.cfg.RouterIPv4 = netip.MustParsePrefix("10.8.0.0/24"), netip.MustParseAddr("10.8.0.1")
	b.cfg.IPv6Range, b.cfg.RouterIPv6 = netip.MustParsePrefix("fd08::/112"), netip.MustParseAddr("fd08::1")
	cfg(&b.cfg)
	w := &two{near: a.open()}
	w.far.ns = place(outside)
	inNS(t, outside, func() (err error) {
		route(t, "ptout0", "0.0.0.0/0", nodeV4)
		route(t, "ptout0", "::/0", nodeV6)
		w.far.d, err = open(b.log(), b.cfg, b.sets())
		return err
	})
	t.Cleanup(func() {
		inNS(t, outside, func() error { return errors.Join(w.far.d.Close(), Clean(b.cfg.BPFRoot)) })
	})
	putAllow(t, w.near)
	putAllow(t, w.far.d)
	w.pod = wire(t, w.near, pod(t, 10))
	ep := pod(t, 20)
	ep.IPv4, ep.IPv6 = netip.MustParseAddr("10.8.0.20"), netip.MustParseAddr("fd08::14")
	inNS(t, outside, func() error { w.far.pod = wire(t, w.far.d, ep); return nil })
	w.meet(t)
	return w
}

// meet tells each node of the other.
func (w *two) meet(t testing.TB) {
	t.Helper()
	addrs := func(list ...string) (out []netip.Addr) {
		for _, a := range list {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	tell := func(d *Datapath, n node.Node, ep endpoint.Endpoint) []node.Remote {
		if err := d.PutNodes([]node.Node{n}); err != nil {
			t.Fatal(err)
		}
		at := d.place(n).Netip()
		list := []node.Remote{{Addr: ep.IPv4, Identity: ep.Identity, Node: at}, {Addr: ep.IPv6, Identity: ep.Identity, Node: at}}
		if err := d.PutRemotes(list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	near := node.Node{Cluster: "c", Name: "near", Addresses: addrs(nodeV4, nodeV6), PodCIDRs: []netip.Prefix{w.near.cfg.IPv4Range, w.near.cfg.IPv6Range}}
	w.farNode = node.Node{Cluster: "c", Name: "far", Addresses: addrs(farV4, farV6), PodCIDRs: []netip.Prefix{w.far.d.cfg.IPv4Range, w.far.d.cfg.IPv6Range}}
	w.remote = tell(w.near, w.farNode, w.far.pod)
	inNS(t, string(w.far.ns), func() error { tell(w.far.d, near, w.pod); return nil })
}

func mtu(t testing.TB, dev string, n int) {
	t.Helper()
	l, err := netlink.LinkByName(dev)
	if err == nil {
		err = netlink.LinkSetMTU(l, n)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// ways are all kinds of routing over both underlays.
func ways() map[string]func(*Config) {
	out := map[string]func(*Config){"native": func(c *Config) { c.Routing, c.DirectRoutes = RoutingNative, true }}
	for _, kind := range []string{RoutingGeneve, RoutingVXLAN} {
		for _, family := range []node.Family{node.IPv4, node.IPv6} {
			out[kind+" over "+string(family)] = func(c *Config) { c.Routing, c.Underlay = kind, family }
		}
	}
	out["kernel vxlan over ipv4"] = func(c *Config) {
		c.Routing, c.TunnelDevice, c.Underlay = RoutingVXLAN, TunnelByKernel, node.IPv4
	}
	out["kernel vxlan over ipv6"] = func(c *Config) {
		c.Routing, c.TunnelDevice, c.Underlay = RoutingVXLAN, TunnelByKernel, node.IPv6
	}
	return out
}

func TestRootTwoNodes(t *testing.T) {
	for name, cfg := range ways() {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			w := twoNodes(t, 1500, cfg)
			serve(t, place(w.far.pod.Netns), 80)
			serve(t, w.far.ns, 81)
			serve(t, "", 82)
			serve(t, place(w.pod.Netns), 83)
			check := func(what string, err error) {
				t.Helper()
				if err != nil {
					t.Errorf("%s: %v\n near %v\n far %v", what, err, drops(w.near), drops(w.far.d))
				}
			}
			sees := func(what string, from place, to string, port int, want string) {
				t.Helper()
				seen, err := tcp(t, patience, from, to, port)
				if err == nil && want != "" && seen != want {
					err = fmt.Errorf("the server sees %s, want %s", seen, want)
				}
				check(what, err)
			}
			near := place(w.pod.Netns)
			for _, to := range []string{"10.8.0.20", "fd08::14"} {
				own := w.pod.IPv4.String()
				if strings.Contains(to, ":") {
					own = w.pod.IPv6.String()
				}
				sees("tcp to "+to, near, to, 80, own)
				check("udp to "+to, udp(t, patience, near, to, 80, 100))
				check("datagram in fragments to "+to, udp(t, patience, near, to, 80, 8000))
				check("ping to "+to, ping(t, patience, near, to))
				sees("tcp of the node to "+to, "", to, 80, "")
				check("large datagram of the node to "+to, udp(t, patience, "", to, 80, 4000))
			}
			sees("pod to the other node's router", near, "10.8.0.1", 81, "10.7.0.10")
			sees("pod to the other node", near, farV4, 81, "10.7.0.10")
			sees("pod to the other node", near, farV6, 81, "fd07::a")
			sees("the other node to our pod", w.far.ns, "10.7.0.10", 83, "")
			sees("the other node to our pod", w.far.ns, "fd07::a", 83, "")
			sees("the other pod to our node", place(w.far.pod.Netns), nodeV4, 82, "10.8.0.20")
		})
	}
}

// drops are the reasons that a node's programs counted.
func drops(d *Datapath) (out []string) {
	for k, c := range d.Counters() {
		if k[0] != 0 {
			out = append(out, fmt.Sprintf("%s=%d", verdict.Reason(k[0]).Name(), c.Packets))
		}
	}
	return out
}

// counter sums a device's counter over both directions.
func sent(t testing.TB, dev string) (packets, bytes uint64) {
	t.Helper()
	l, err := netlink.LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Statistics.TxPackets, l.Attrs().Statistics.TxBytes
}

// badSums reads how many TCP segments with a wrong checksum a namespace has seen.
func badSums(t testing.TB, p place) (n int) {
	t.Helper()
	err := p.do(t, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var head []string
		for line := range strings.SplitSeq(string(b), "\n") {
			f := strings.Fields(line)
			if len(f) == 0 || f[0] != "Tcp:" {
				continue
			}
			if head == nil {
				head = f
				continue
			}
			for i, name := range head {
				if name == "InCsumErrors" {
					n, err = strconv.Atoi(f[i])
					return err
				}
			}
		}
		return fmt.Errorf("no counter TcpInCsumErrors")
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// bulk sends n bytes and reads them back.
func bulk(c net.Conn, n int) error {
	_ = c.SetDeadline(time.Now().Add(4 * patience))
	failed := make(chan error, 1)
	go func() {
		b := make([]byte, 256<<10)
		for left := n; left > 0; left -= len(b) {
			if _, err := c.Write(b[:min(left, len(b))]); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	got, err := io.CopyN(io.Discard, c, int64(n))
	if err != nil {
		return fmt.Errorf("%d of %d bytes came back: %w", got, n, err)
	}
	return <-failed
}

// TestRootTunnelKeepsSegments: what the stack hands down in one piece crosses the underlay in one piece, with checksums
// that are right wherever they are looked at.
func TestRootTunnelKeepsSegments(t *testing.T) {
	for _, kind := range []string{RoutingGeneve, RoutingVXLAN} {
		for _, family := range []node.Family{node.IPv4, node.IPv6} {
			t.Run(kind+"_over_"+string(family), func(t *testing.T) {
				w := twoNodes(t, 1500, func(c *Config) { c.Routing, c.Underlay = kind, family })
				serve(t, place(w.far.pod.Netns), 80)
				for _, to := range []string{"10.8.0.20", "fd08::14"} {
					c := dial(t, place(w.pod.Netns), "tcp", to, 80)
					var line string
					if _, err := fmt.Fscanln(c, &line); err != nil {
						t.Fatal(err)
					}
					packets, bytes := sent(t, "ptup0")
					if err := bulk(c, 8<<20); err != nil {
						t.Fatalf("to %s: %v; near %v, far %v", to, err, drops(w.near), drops(w.far.d))
					}
					p, b := sent(t, "ptup0")
					c.Close()
					// the echo comes the other way, so that many of these are bare acknowledgements
					if mean := (b - bytes) / max(p-packets, 1); mean < 3000 {
						t.Errorf("to %s: %d packets of %d bytes in the mean on the underlay: segments were cut", to, p-packets, mean)
					}
				}
				for _, p := range []place{place(w.pod.Netns), place(w.far.pod.Netns), "", w.far.ns} {
					if n := badSums(t, p); n != 0 {
						t.Errorf("%d segments with a wrong checksum in %q", n, p)
					}
				}
			})
		}
	}
}

// TestRootTunnelMTU: workloads get what the tunnel leaves, to the byte; those that have more are told.
func TestRootTunnelMTU(t *testing.T) {
	for _, family := range []node.Family{node.IPv4, node.IPv6} {
		t.Run(string(family), func(t *testing.T) {
			w := twoNodes(t, 1500, func(c *Config) { c.Routing, c.Underlay = RoutingGeneve, family })
			want := 1450
			if family == node.IPv6 {
				want = 1430
			}
			if got := w.near.MTU(); got != want {
				t.Fatalf("MTU of workloads: %d, want %d", got, want)
			}
			serve(t, place(w.far.pod.Netns), 80)
			wide := pod(t, 11)
			wide.MTU = 1500
			wide = wire(t, w.near, wide)
			via := netip.MustParseAddr(nodeV4)
			if family == node.IPv6 {
				via = netip.MustParseAddr(nodeV6)
			}
			if err := w.far.d.PutRemotes([]node.Remote{{Addr: wide.IPv4, Identity: wide.Identity, Node: via}, {Addr: wide.IPv6, Identity: wide.Identity, Node: via}}); err != nil {
				t.Fatal(err)
			}
			for _, v6 := range []bool{false, true} {
				to, head := "10.8.0.20", 28
				if v6 {
					to, head = "fd08::14", 48
				}
				c := dial(t, place(wide.Netns), "udp", to, 80)
				defer c.Close()
				whole(t, c.(*net.UDPConn), v6)
				if err := exchange(c, want-head); err != nil {
					t.Errorf("%s: datagram of exactly the MTU: %v; near %v", to, err, drops(w.near))
				}
				if _, err := c.Write(make([]byte, want-head+1)); err != nil {
					t.Fatalf("%s: %v", to, err)
				}
				wait(t, "the path MTU to "+to, func() bool { return pathMTU(t, c.(*net.UDPConn), v6) == want })
				err := exchange(c, want-head)
				if errors.Is(err, unix.EMSGSIZE) { // what was told about the one before
					err = exchange(c, want-head)
				}
				if err != nil {
					t.Errorf("%s: datagram of exactly the MTU, later: %v", to, err)
				}
				live := dial(t, place(wide.Netns), "tcp", to, 80)
				defer live.Close()
				var line string
				if _, err := fmt.Fscanln(live, &line); err != nil {
					t.Fatal(err)
				}
				if err := bulk(live, 1<<20); err != nil {
					t.Errorf("%s: %v", to, err)
				}
			}
		})
	}
}

// whole forbids fragments.
func whole(t testing.TB, c *net.UDPConn, v6 bool) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		e := raw.Control(func(fd uintptr) {
			if v6 {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			}
		})
		err = errors.Join(err, e)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// pathMTU is what the kernel knows of the way of a socket.
func pathMTU(t testing.TB, c *net.UDPConn, v6 bool) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		e := raw.Control(func(fd uintptr) {
			if v6 {
				n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU)
			} else {
				n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU)
			}
		})
		err = errors.Join(err, e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func exchange(c net.Conn, size int) error {
	if _, err := c.Write(make([]byte, size)); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	n, err := c.Read(make([]byte, size+1))
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes came back", n)
	}
	return err
}

// TestRootTunnelResolvesNeighbours: a neighbour entry that went is resolved for the tunnel as for anybody.
func TestRootTunnelResolvesNeighbours(t *testing.T) {
	w := twoNodes(t, 1500, func(c *Config) { c.Routing, c.Underlay = RoutingGeneve, node.IPv4 })
	serve(t, place(w.far.pod.Netns), 80)
	link, err := netlink.LinkByName("ptup0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tcp(t, patience, place(w.pod.Netns), "10.8.0.20", 80); err != nil {
		t.Fatal(err)
	}
	entries, err := listAll(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4) })
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		_ = netlink.NeighDel(&e)
	}
	if _, err := tcp(t, patience, place(w.pod.Netns), "10.8.0.20", 80); err != nil {
		t.Errorf("after the neighbour entry went: %v; near %v", err, drops(w.near))
	}
}

// TestRootAgentOfTwoDies: traffic goes on with both agents dead, and a new one finds everything as it was.
func TestRootAgentOfTwoDies(t *testing.T) {
	w := twoNodes(t, 1500, func(c *Config) { c.Routing = RoutingGeneve })
	serve(t, place(w.far.pod.Netns), 80)
	live := dial(t, place(w.pod.Netns), "tcp", "10.8.0.20", 80)
	defer live.Close()
	var line string
	if _, err := fmt.Fscanln(live, &line); err != nil {
		t.Fatal(err)
	}
	cfg, log := w.near.cfg, w.near.log
	before, err := w.near.peers.all()
	if err != nil {
		t.Fatal(err)
	}
	w.near.Close()
	if err := echo(live, patience); err != nil {
		t.Errorf("with the agent dead: %v", err)
	}
	if _, err := tcp(t, patience, place(w.pod.Netns), "fd08::14", 80); err != nil {
		t.Errorf("new connection with the agent dead: %v", err)
	}
	sets, err := compiled()
	if err != nil {
		t.Fatal(err)
	}
	d, err := open(log, cfg, sets)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	after, err := d.peers.all()
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(before) {
		t.Errorf("%d rows of peers, before the restart %d", len(after), len(before))
	}
	ranges, err := d.prefixes.rows.all()
	if err != nil {
		t.Fatal(err)
	}
	if row := ranges[bpf.PrefixKeyFrom(netip.MustParsePrefix("10.8.0.0/24"))]; row.Flags&bpf.PeerRemote == 0 {
		t.Errorf("the other node's pod range is %+v after the restart", row)
	}
	if err := echo(live, patience); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	// what is put again stays, the rest goes with ForgetFormer
	if err := d.PutNodes([]node.Node{w.farNode}); err != nil {
		t.Fatal(err)
	}
	if err := d.PutRemotes(w.remote[:1]); err != nil {
		t.Fatal(err)
	}
	if err := d.ForgetFormer(); err != nil {
		t.Fatal(err)
	}
	if err := echo(live, patience); err != nil {
		t.Errorf("after what is gone was forgotten: %v", err)
	}
	if _, ok, err := d.peers.get(bpf.AddrFrom(w.remote[1].Addr)); ok || err != nil {
		t.Errorf("a row that nobody put again is there: %v", err)
	}
	if _, ok, err := d.peers.get(bpf.AddrFrom(w.remote[0].Addr)); !ok || err != nil {
		t.Errorf("a row that was put again is gone: %v", err)
	}
}

// TestRootRemoteIdentityChanges: a live flow is judged anew as soon as its other end is somebody else, and ends when
// nobody has the address any more.
func TestRootRemoteIdentityChanges(t *testing.T) {
	w := twoNodes(t, 1500, func(c *Config) { c.Routing = RoutingGeneve })
	serve(t, place(w.far.pod.Netns), 80)
	live := dial(t, place(w.pod.Netns), "tcp", "10.8.0.20", 80)
	defer live.Close()
	var line string
	if _, err := fmt.Fscanln(live, &line); err != nil {
		t.Fatal(err)
	}
	other := w.remote[0]
	other.Identity = identity.ID(4242)
	if err := w.near.PutRemotes([]node.Remote{other}); err != nil {
		t.Fatal(err)
	}
	_ = live.SetDeadline(time.Now().Add(silence))
	if _, err := live.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := live.Read(make([]byte, 1)); err == nil {
		t.Error("an answer came by the tunnel from an address that is somebody else's by now")
	}
	if n := w.near.Counters()[[2]uint8{uint8(verdict.TunnelIdentity), uint8(verdict.Ingress)}].Packets; n == 0 {
		t.Errorf("no packet was dropped for its identity: %v", drops(w.near))
	}
	if err := w.near.PutRemotes(w.remote[:1]); err != nil {
		t.Fatal(err)
	}
	_ = live.SetDeadline(time.Now().Add(patience))
	if _, err := live.Read(make([]byte, 1)); err != nil {
		t.Errorf("after the record was right again: %v", err)
	}
}
