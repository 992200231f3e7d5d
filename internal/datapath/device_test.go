package datapath

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/internal/endpoint"
)

func mountTmpfs(t testing.TB, dir string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
}

func deviceNames(t testing.TB) []string {
	t.Helper()
	links, err := listAll(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return names
}

// newDevices are those that were not there before. Of a former test's namespaces, which the kernel takes down in its own
// time, devices may still go.
func newDevices(t testing.TB, before []string) []string {
	t.Helper()
	return slices.DeleteFunc(deviceNames(t), func(name string) bool { return slices.Contains(before, name) })
}

func TestRootCreateDeviceErrorsLeaveNothing(t *testing.T) {
	n := newNode(t)
	d := n.open()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := deviceNames(t)
	for name, spoil := range map[string]func(*endpoint.Endpoint){
		"own namespace":       func(ep *endpoint.Endpoint) { ep.Netns = "/proc/thread-self/ns/net" },
		"machine's namespace": func(ep *endpoint.Endpoint) { ep.Netns = "/proc/1/ns/net" },
		"no path":             func(ep *endpoint.Endpoint) { ep.Netns = "" },
		"no such path":        func(ep *endpoint.Endpoint) { ep.Netns = "/nonexistent" },
		"plain file":          func(ep *endpoint.Endpoint) { ep.Netns = file },
		"other namespace":     func(ep *endpoint.Endpoint) { ep.Netns = "/proc/self/ns/mnt" },
		"long name":           func(ep *endpoint.Endpoint) { ep.IfName = "sixteen-letters-" },
		"slash":               func(ep *endpoint.Endpoint) { ep.IfName = "../eth0" },
		"newline":             func(ep *endpoint.Endpoint) { ep.IfName = "eth\n0" },
		"dots":                func(ep *endpoint.Endpoint) { ep.IfName = ".." },
		"empty name":          func(ep *endpoint.Endpoint) { ep.IfName = "" },
		"foreign host side":   func(ep *endpoint.Endpoint) { ep.Device = "eth0" },
		"mtu":                 func(ep *endpoint.Endpoint) { ep.MTU = 1 },
		"name taken in pod":   func(ep *endpoint.Endpoint) { ep.IfName = "lo" },
		"multicast address":   func(ep *endpoint.Endpoint) { ep.IPv4 = netip.MustParseAddr("224.0.0.1") },
	} {
		ep := pod(t, 30)
		spoil(&ep)
		if _, _, err := d.CreateDevice(ep); err == nil {
			t.Errorf("%s: created", name)
		}
		if got := newDevices(t, before); len(got) > 0 {
			t.Errorf("%s: devices left: %v", name, got)
			before = append(before, got...)
		}
	}
}

func TestRootWorkloadIsWired(t *testing.T) {
	n := newNode(t)
	d := n.open()
	putAllow(t, d)
	ep := pod(t, 31)
	var err error
	if ep.Ifindex, ep.MAC, err = d.CreateDevice(ep); err != nil {
		t.Fatal(err)
	}
	host, err := netlink.LinkByName(ep.Device)
	if err != nil || host.Attrs().Index != ep.Ifindex || host.Attrs().HardwareAddr.String() != d.host.mac.String() {
		t.Fatalf("host side %+v: %v", host, err)
	}
	if host.Attrs().Flags&net.FlagUp != 0 {
		t.Error("the host side is up before policy")
	}
	if d.hooks.has(progPod, ep.Ifindex) {
		t.Error("attached before its rows were written")
	}
	if err := d.WriteEndpoint(ep); err != nil {
		t.Fatal(err)
	}
	if i, mac, err := d.CreateDevice(ep); err != nil || i != ep.Ifindex || mac.String() != ep.MAC.String() {
		t.Errorf("asked again: %d %s %v, want the same device %d %s", i, mac, err, ep.Ifindex, ep.MAC)
	}
	inNS(t, ep.Netns, func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if a := dev.Attrs(); a.HardwareAddr.String() != ep.MAC.String() || a.MTU != 1500 || a.OperState != netlink.OperUp {
			t.Errorf("device %+v", a)
		}
		addrs, err := netlink.AddrList(dev, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		var got []string
		for _, a := range addrs {
			got = append(got, a.IPNet.String())
			if a.Flags&unix.IFA_F_TENTATIVE != 0 {
				t.Errorf("address %s is tentative", a.IPNet)
			}
		}
		slices.Sort(got)
		if want := []string{"10.7.0.31/32", "fd07::1f/128"}; !slices.Equal(got, want) {
			t.Errorf("addresses %v, want %v", got, want)
		}
		for _, dst := range []string{"192.0.2.1", "2001:db8::1"} {
			r, err := netlink.RouteGet(net.ParseIP(dst))
			if err != nil || len(r) != 1 || r[0].LinkIndex != dev.Attrs().Index {
				t.Errorf("route to %s: %v %v", dst, r, err)
			}
		}
		neighbours, err := netlink.NeighList(dev.Attrs().Index, 0)
		if err != nil {
			return err
		}
		permanent := 0
		for _, nb := range neighbours {
			if nb.State == netlink.NUD_PERMANENT && nb.HardwareAddr.String() == d.host.mac.String() {
				permanent++
			}
		}
		if permanent != 2 {
			t.Errorf("%d permanent gateway neighbours, want 2: %v", permanent, neighbours)
		}
		return nil
	})
	if got := getSysctl("ipv4/conf/" + ep.Device + "/rp_filter"); got != "1" {
		t.Errorf("rp_filter of the host side is %s", got)
	}

	// removal: rows of another owner stay
	other := bpf.Peer{Identity: 4242, Ifindex: 999999, Flags: bpf.PeerLocal}
	if err := d.peers.put(bpf.AddrFrom(ep.IPv6), other); err != nil {
		t.Fatal(err)
	}
	stranger := ep
	stranger.ID++
	if err := d.RemoveEndpoint(stranger); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := d.endpoints.get(uint32(ep.Ifindex)); !ok {
		t.Error("a late delete of another endpoint removed the row")
	}
	if err := errors.Join(d.RemoveEndpoint(ep), d.RemoveEndpoint(ep)); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := d.endpoints.get(uint32(ep.Ifindex)); ok {
		t.Error("the row is left")
	}
	if _, ok, _ := d.peers.get(bpf.AddrFrom(ep.IPv4)); ok {
		t.Error("the peers row is left")
	}
	if row, ok, _ := d.peers.get(bpf.AddrFrom(ep.IPv6)); !ok || row != other {
		t.Error("the peers row of another owner was removed")
	}
	if pins := linkIDs(t, d.dir); slices.ContainsFunc(sortedKeys(pins), func(s string) bool { return strings.HasPrefix(s, progPod) }) {
		t.Errorf("pins left: %v", pins)
	}
	if err := errors.Join(d.DeleteDevice(ep.Device), d.DeleteDevice(ep.Device)); err != nil {
		t.Fatal(err)
	}
	if err := d.DeleteDevice("lo"); err == nil {
		t.Error("deleted a device that is not a workload's")
	}
}

// No endpoint loads a program. What one costs is measured by test/bench.
func TestRootManyEndpointsShareThePrograms(t *testing.T) {
	n := newNode(t)
	d := n.open()
	putAllow(t, d)
	before := programHandles(t)
	const count = 200
	eps := make([]endpoint.Endpoint, count)
	for i := range eps {
		eps[i] = pod(t, uint16(i+50))
	}
	for i := range eps {
		eps[i] = wire(t, d, eps[i])
	}
	if got := programHandles(t); got != before || before != 4 {
		t.Errorf("%d programs held, before %d, want 4", got, before)
	}
	for _, ep := range eps {
		if got, want := programOf(t, d, progPod, ep.Ifindex), idOf(t, d.progs[progPod]); got != want {
			t.Fatalf("endpoint %d runs program %d, want the one of all, %d", ep.ID, got, want)
		}
	}
	if links := linkIDs(t, d.dir); len(links) < count {
		t.Errorf("%d links for %d endpoints", len(links), count)
	}
}

// programHandles counts the programs that this process holds. Those of the machine would do as well, were it not for others
// on it that load and unload.
func programHandles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		if what, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && what == "anon_inode:bpf-prog" {
			n++
		}
	}
	return n
}
