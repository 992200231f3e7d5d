package packettest

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"

	"porin/bpf/packet"
)

// The node that stories play on: porin_host, one uplink and pods a, b, c.
//
//	a 10.0.0.10 fd00::10 ─┐                     ┌─ 192.0.2.254, 2001:db8::fe (gateway, neighbour known)
//	b 10.0.0.11 fd00::11 ─┼─ this node ── up0 ──┼─ 192.0.2.253, 2001:db8::fd (gateway, neighbour unknown)
//	c 10.0.0.12 fd00::12 ─┘  10.0.0.1 fd00::1   └─ the world
//	                         192.0.2.1 2001:db8::1       and 192.0.2.2, 2001:db8::2 beside it (neighbour known)
const (
	hostDevice   = "porin_host"
	uplinkDevice = "up0"
)

// Pod is a workload of the node.
type Pod struct {
	Name    string
	ID      uint16
	Ifindex uint32
	MAC     packet.MAC
	V4, V6  netip.Addr
}

type node struct {
	host, uplink uint32 // ifindexes
	pods         map[string]Pod
}

func gatewayMAC() packet.MAC { return packet.MAC{2, 0, 0, 0, 0, 0xfe} }
func uplinkMAC() packet.MAC  { return packet.MAC{2, 0, 0, 0, 1, 0} }
func routerMAC() packet.MAC  { return packet.MAC{2, 0, 0, 0, 1, 0xfe} }

// newNode builds the devices, addresses and routes in the namespace of the calling thread.
func newNode() (*node, error) {
	n := &node{pods: map[string]Pod{}}
	for path, value := range map[string]string{
		"/proc/sys/net/ipv4/ip_forward":                "1",
		"/proc/sys/net/ipv6/conf/all/forwarding":       "1",
		"/proc/sys/net/ipv6/conf/default/accept_dad":   "0",
		"/proc/sys/net/ipv6/conf/default/forwarding":   "1",
		"/proc/sys/net/ipv6/conf/default/accept_ra":    "0",
		"/proc/sys/net/ipv4/conf/default/arp_announce": "2",
	} {
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return nil, fmt.Errorf("set %s: %w", path, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("set lo up: %w", err)
	}
	if n.host, err = veth(hostDevice, gatewayMAC(), "10.0.0.1/32", "fd00::1/128"); err != nil {
		return nil, err
	}
	if n.uplink, err = veth(uplinkDevice, uplinkMAC(), "192.0.2.1/24", "2001:db8::1/64"); err != nil {
		return nil, err
	}
	for i, name := range []string{"a", "b", "c"} {
		p := Pod{
			Name: name, ID: uint16(i + 1), MAC: packet.MAC{2, 0, 0, 0, 0, byte(0x10 + i)},
			V4: netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + i)}), V6: netip.MustParseAddr(fmt.Sprintf("fd00::1%d", i)),
		}
		if p.Ifindex, err = veth("pod_"+name, gatewayMAC()); err != nil {
			return nil, err
		}
		n.pods[name] = p
	}
	return n, n.routes()
}

// veth makes a pair and sets its first end up, with an own MAC and addresses. The other end is its wire.
func veth(name string, mac packet.MAC, addrs ...string) (uint32, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = name, mac[:], 1500
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: name + "_w"}
	if err := netlink.LinkAdd(v); err != nil {
		return 0, fmt.Errorf("add device %s: %w", name, err)
	}
	for _, end := range []string{name, name + "_w"} {
		l, err := netlink.LinkByName(end)
		if err != nil {
			return 0, fmt.Errorf("find device %s: %w", end, err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return 0, fmt.Errorf("set %s up: %w", end, err)
		}
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return 0, fmt.Errorf("parse %s: %w", a, err)
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return 0, fmt.Errorf("give %s the address %s: %w", name, a, err)
		}
	}
	return uint32(l.Attrs().Index), nil
}

func (n *node) routes() error {
	router := routerMAC()
	for _, ip := range []string{"192.0.2.254", "2001:db8::fe", "192.0.2.2", "2001:db8::2"} {
		neigh := &netlink.Neigh{
			LinkIndex: int(n.uplink), State: netlink.NUD_PERMANENT, IP: net.ParseIP(ip), HardwareAddr: router[:],
		}
		if err := netlink.NeighSet(neigh); err != nil {
			return fmt.Errorf("set neighbour %s: %w", ip, err)
		}
	}
	for _, r := range []struct {
		dst, via string
		link     uint32
		kind     int
		mtu      int
	}{
		{"0.0.0.0/0", "192.0.2.254", n.uplink, 0, 0},
		{"::/0", "2001:db8::fe", n.uplink, 0, 0},
		{"10.0.0.0/24", "", n.host, 0, 0},
		{"fd00::/64", "", n.host, 0, 0},
		{"198.51.100.0/24", "192.0.2.253", n.uplink, 0, 0},
		{"2001:db8:51::/48", "2001:db8::fd", n.uplink, 0, 0},
		{"203.0.113.0/24", "", 0, blackhole, 0},
		{"2001:db8:b::/48", "", 1, blackhole, 0},
		{"198.18.0.0/24", "", 0, unreachable, 0},
		{"198.18.1.0/24", "192.0.2.254", n.uplink, 0, 1000},
		{"2001:db8:18::/48", "2001:db8::fe", n.uplink, 0, 1400},
	} {
		_, dst, err := net.ParseCIDR(r.dst)
		if err != nil {
			return fmt.Errorf("parse %s: %w", r.dst, err)
		}
		route := &netlink.Route{Dst: dst, LinkIndex: int(r.link), Type: r.kind, MTU: r.mtu, MTULock: r.mtu != 0, Gw: net.ParseIP(r.via)}
		if r.via == "" {
			route.Gw = nil
			if r.kind == 0 {
				route.Scope = netlink.SCOPE_LINK
			}
		}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("add route %s: %w", r.dst, err)
		}
	}
	return nil
}

// Kinds of routes, RTN_* of linux/rtnetlink.h.
const (
	blackhole   = 6
	unreachable = 7
)

// Device names an interface: that of a pod by the pod's name.
func (k *Kernel) Device(name string) (ifindex uint32, ok bool) {
	switch name {
	case hostDevice:
		return k.node.host, true
	case uplinkDevice:
		return k.node.uplink, true
	}
	p, ok := k.node.pods[name]
	return p.Ifindex, ok
}

// DeviceName is the reverse of Device.
func (k *Kernel) DeviceName(ifindex uint32) string {
	switch ifindex {
	case k.node.host:
		return hostDevice
	case k.node.uplink:
		return uplinkDevice
	}
	for name, p := range k.node.pods {
		if p.Ifindex == ifindex {
			return name
		}
	}
	return fmt.Sprintf("if%d", ifindex)
}

// Pod returns a pod of the node.
func (k *Kernel) Pod(name string) Pod { return k.node.pods[name] }
