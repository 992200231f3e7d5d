package datapath

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"porin/internal/endpoint"
)

// Both are optional for endpoint, so nothing else would notice a changed signature.
var (
	_ endpoint.Survivors = (*Datapath)(nil)
	_ endpoint.Checker   = (*Datapath)(nil)
)

func TestRootSurvivorsAreReadBack(t *testing.T) {
	n := newNode(t)
	d := n.open()
	putAllow(t, d)
	a, b := wire(t, d, pod(t, 3)), wire(t, d, pod(t, 4))
	d.Close()
	if err := netlink.LinkSetDown(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: b.Ifindex}}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetName(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: b.Ifindex}}, "other0"); err != nil {
		t.Fatal(err)
	}
	d = n.open()
	got, err := d.Survivors()
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, want := range []endpoint.Endpoint{a, b} {
		g := got[i]
		if g.ID != want.ID || g.Identity != want.Identity || g.IPv4 != want.IPv4 || g.IPv6 != want.IPv6 || g.Ifindex != want.Ifindex || g.MAC.String() != want.MAC.String() {
			t.Errorf("got %+v, want %+v", g, want)
		}
	}
	if got[0].Device != a.Device || got[1].Device != "other0" {
		t.Errorf("devices %q and %q, want %q and other0", got[0].Device, got[1].Device, a.Device)
	}
	if err := netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: b.Ifindex}}); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Survivors(); err != nil || len(got) != 2 || got[1].Device != "" {
		t.Errorf("after a device went: %+v, %v", got, err)
	}
}

func TestRootCheckDevice(t *testing.T) {
	d := newNode(t).open()
	putAllow(t, d)
	ep := wire(t, d, pod(t, 3))
	if err := d.CheckDevice(ep); err != nil {
		t.Fatalf("as created: %v", err)
	}
	change := func(f func(netlink.Link) error) {
		inNS(t, ep.Netns, func() error {
			dev, err := netlink.LinkByName(ep.IfName)
			if err != nil {
				return err
			}
			return f(dev)
		})
	}
	want := func(text string) {
		t.Helper()
		if err := d.CheckDevice(ep); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
	}
	change(func(dev netlink.Link) error {
		return netlink.AddrDel(dev, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(ep.IPv6, 128))})
	})
	want("does not have " + ep.IPv6.String())
	change(func(dev netlink.Link) error {
		return netlink.RouteDel(&netlink.Route{LinkIndex: dev.Attrs().Index, Family: netlink.FAMILY_V4, Dst: defaultNet(netlink.FAMILY_V4)})
	})
	want("no route by 169.254.1.1")
	change(netlink.LinkSetDown)
	want("is down")
	change(netlink.LinkDel)
	want("device eth0")
}
