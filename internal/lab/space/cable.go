package space

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End of a cable: a device in a network namespace.
type End struct {
	Netns  string // namespace file
	Name   string
	Master string // bridge in the same namespace that the end is plugged into, if any
	Addrs  []netip.Prefix
	Routes []Route // set after both ends are up
	MTU    int     // 0: the kernel's default
}

// Route to Dst through the end's device; without Via the destination is on the link.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
	Src netip.Addr // preferred source, if valid
}

// Connect makes a veth pair with the two ends as said, up and addressed.
func Connect(a, b End) error {
	fa, err := os.Open(a.Netns)
	if err != nil {
		return fmt.Errorf("connect %s: %w", a.Name, err)
	}
	defer fa.Close()
	fb, err := os.Open(b.Netns)
	if err != nil {
		return fmt.Errorf("connect %s: %w", b.Name, err)
	}
	defer fb.Close()
	// Made from inside a's namespace, so that the machine's own namespace never sees either end.
	err = InNetns(a.Netns, func() error {
		veth := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: a.Name, MTU: a.MTU},
			PeerName:      b.Name,
			PeerNamespace: netlink.NsFd(fb.Fd()),
			PeerMTU:       uint32(b.MTU),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make veth %s-%s: %w", a.Name, b.Name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, end := range []End{a, b} {
		if err := InNetns(end.Netns, func() error { return end.up() }); err != nil {
			return fmt.Errorf("connect %s to %s: %w", a.Name, b.Name, err)
		}
	}
	for _, end := range []End{a, b} {
		if err := InNetns(end.Netns, func() error { return carries(end.Name) }); err != nil {
			return fmt.Errorf("connect %s to %s: %w", a.Name, b.Name, err)
		}
		if err := AddRoutes(end.Netns, end.Name, end.Routes); err != nil {
			return fmt.Errorf("connect %s to %s: %w", a.Name, b.Name, err)
		}
	}
	return nil
}

func (e End) up() error {
	l, err := netlink.LinkByName(e.Name)
	if err != nil {
		return fmt.Errorf("find %s: %w", e.Name, err)
	}
	if e.Master != "" {
		br, err := netlink.LinkByName(e.Master)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", e.Master, err)
		}
		if err := netlink.LinkSetMaster(l, br); err != nil {
			return fmt.Errorf("plug %s into %s: %w", e.Name, e.Master, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", e.Name, err)
	}
	return addAddrs(l, e.Addrs)
}

// carries waits until the device sends. The end that was set up first drops what it is given until the kernel's link
// watcher has seen the other one, which takes up to a second when both happen to have the same index.
func carries(name string) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for %s: it is %s, not up", name, l.Attrs().OperState)
		}
	}
}

func addAddrs(l netlink.Link, addrs []netip.Prefix) error {
	for _, p := range addrs {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, l.Attrs().Name, err)
		}
	}
	return nil
}

// AddRoutes adds (or replaces) routes through dev in the namespace.
func AddRoutes(netnsFile, dev string, routes []Route) error {
	return eachRoute(netnsFile, dev, routes, "add", netlink.RouteReplace)
}

// DeleteRoutes takes them away.
func DeleteRoutes(netnsFile, dev string, routes []Route) error {
	return eachRoute(netnsFile, dev, routes, "delete", netlink.RouteDel)
}

func eachRoute(netnsFile, dev string, routes []Route, verb string, do func(*netlink.Route) error) error {
	if len(routes) == 0 {
		return nil
	}
	return InNetns(netnsFile, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("find %s: %w", dev, err)
		}
		for _, r := range routes {
			nr := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.Dst), Flags: unix.RTNH_F_ONLINK}
			if r.Via.IsValid() {
				nr.Gw = r.Via.AsSlice()
			} else {
				nr.Flags = 0
				nr.Scope = netlink.SCOPE_LINK
			}
			if r.Src.IsValid() {
				nr.Src = r.Src.AsSlice()
			}
			if err := do(nr); err != nil {
				return fmt.Errorf("%s route %s via %s dev %s: %w", verb, r.Dst, r.Via, dev, err)
			}
		}
		return nil
	})
}

// NewBridge makes a bridge that also has addresses of its own.
func NewBridge(netnsFile, name string, addrs []netip.Prefix) error {
	return InNetns(netnsFile, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		if err := netlink.LinkAdd(br); err != nil {
			return fmt.Errorf("make bridge %s: %w", name, err)
		}
		if err := netlink.LinkSetUp(br); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
		return addAddrs(br, addrs)
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// blackholeTable is a routing table for Forbid.
const blackholeTable = 99

// Forbid keeps a router from passing packets from some networks to others.
func Forbid(netnsFile string, from, to []netip.Prefix) error {
	return InNetns(netnsFile, func() error {
		for i, n := range from {
			family := netlink.FAMILY_V4
			if n.Addr().Is6() {
				family = netlink.FAMILY_V6
			}
			rule := netlink.NewRule()
			rule.Family, rule.Src, rule.Table, rule.Priority = family, ipNet(n), blackholeTable, 1000+i
			if err := netlink.RuleAdd(rule); err != nil {
				return fmt.Errorf("forbid ways from %s: %w", n, err)
			}
		}
		for _, n := range to {
			hole := &netlink.Route{Dst: ipNet(n), Table: blackholeTable, Type: unix.RTN_BLACKHOLE}
			if err := netlink.RouteAdd(hole); err != nil {
				return fmt.Errorf("forbid ways to %s: %w", n, err)
			}
		}
		return nil
	})
}
