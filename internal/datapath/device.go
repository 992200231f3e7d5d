package datapath

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"porin/internal/endpoint"
)

// Every pod sees the same gateway. It answers to one MAC address, that of porin_host and of all host sides, and is written
// into the pod as a permanent neighbour: no pod ever asks for it, so none can be lied to.
func gateway(v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1})
	}
	return netip.AddrFrom4([4]byte{169, 254, 1, 1})
}

const (
	maxMTU     = 65535
	maxIfName  = unix.IFNAMSIZ - 1
	podPrefix  = "pn" // host sides of pod veths, followed by ten hex digits
	loopback   = 1    // ifindex of lo, in every namespace
	addrGenOff = "1"  // IN6_ADDR_GEN_MODE_NONE: no link-local address
)

// minMTU is what the families ask for: RFC 8200 section 5, RFC 791.
func minMTU(v6 bool) int {
	if v6 {
		return 1280
	}
	return 68
}

// checkIfName refuses what is no single, plain device name: it becomes a path below /proc/sys.
func checkIfName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("device name %q: not a name", name)
	case len(name) > maxIfName:
		return fmt.Errorf("device name %q: %d bytes, at most %d", name, len(name), maxIfName)
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r == '%' || r >= 0x7f }):
		return fmt.Errorf("device name %q: holds a character that the kernel or a path does not take", name)
	}
	return nil
}

func checkDevice(name string) error {
	if err := checkIfName(name); err != nil {
		return err
	}
	if !strings.HasPrefix(name, podPrefix) {
		return fmt.Errorf("device name %q: the host side of a workload's device begins with %q", name, podPrefix)
	}
	return nil
}

// podMAC is derived, so that a device made again has the address that conntrack and peers know.
func podMAC(ep endpoint.Endpoint) net.HardwareAddr {
	sum := sha256.Sum256([]byte("porin workload\x00" + ep.ContainerID + "\x00" + ep.IfName))
	return localMAC(sum[:6])
}

// localMAC makes b a locally administered unicast address.
func localMAC(b []byte) net.HardwareAddr {
	mac := append(net.HardwareAddr(nil), b[:6]...)
	mac[0] = mac[0]&^3 | 2
	return mac
}

// CreateDevice makes the veth pair. The workload's end is born inside its namespace, never seen in the host's; the host's
// end stays down until WriteEndpoint, so nothing flows before policy.
func (d *Datapath) CreateDevice(ep endpoint.Endpoint) (ifindex int, mac net.HardwareAddr, err error) {
	mtu := ep.MTU
	if mtu == 0 {
		mtu = d.host.mtu()
	}
	if err := errors.Join(checkDevice(ep.Device), checkIfName(ep.IfName), checkMTU(mtu, ep.IPv6.IsValid()), d.cfg.checkAddresses(ep)); err != nil {
		return 0, nil, fmt.Errorf("endpoint %d: create device: %w", ep.ID, err)
	}
	ns, err := openNetns(ep.Netns)
	if err != nil {
		return 0, nil, fmt.Errorf("endpoint %d: create device %s: %w", ep.ID, ep.Device, err)
	}
	defer ns.close()
	if ifindex, mac, ok := d.liveDevice(ep); ok {
		return ifindex, mac, nil
	}
	mac = podMAC(ep)
	ifindex, err = d.newPair(ep, ns, mac, mtu)
	if err != nil {
		return 0, nil, fmt.Errorf("endpoint %d: create device %s: %w", ep.ID, ep.Device, err)
	}
	return ifindex, mac, nil
}

func checkMTU(mtu int, v6 bool) error {
	if mtu < minMTU(v6) || mtu > maxMTU {
		return fmt.Errorf("mtu %d: must be %d to %d", mtu, minMTU(v6), maxMTU)
	}
	return nil
}

// checkAddresses refuses addresses that are not this node's to give: they would be routed elsewhere.
func (c Config) checkAddresses(ep endpoint.Endpoint) error {
	if !ep.IPv4.IsValid() && !ep.IPv6.IsValid() {
		return fmt.Errorf("no address is given")
	}
	for _, f := range []struct {
		addr, router netip.Addr
		pods         netip.Prefix
	}{{ep.IPv4, c.RouterIPv4, c.IPv4Range}, {ep.IPv6, c.RouterIPv6, c.IPv6Range}} {
		if f.addr.IsValid() && (!f.pods.Contains(f.addr) || f.addr == f.router) {
			return fmt.Errorf("address %s: not one of the pod range %s", f.addr, f.pods)
		}
	}
	return nil
}

// liveDevice finds a device that an endpoint row already names: asking twice must not cut a running workload off.
func (d *Datapath) liveDevice(ep endpoint.Endpoint) (int, net.HardwareAddr, bool) {
	i, ok := d.DeviceIndex(ep.Device)
	if !ok {
		return 0, nil, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	at := d.attached[uint32(i)]
	if at == nil || at.row.ID != ep.ID {
		return 0, nil, false
	}
	return i, net.HardwareAddr(at.row.MAC[:]), true
}

func (d *Datapath) newPair(ep endpoint.Endpoint, ns netns, mac net.HardwareAddr, mtu int) (ifindex int, err error) {
	create := d.pairRequest(ep, ns, mac, mtu)
	host, err := create.one()
	if _, there := ifindexOf(ep.Device); errors.Is(err, unix.EEXIST) && there == nil {
		if err := deleteLink(ep.Device); err != nil { // half of an attempt that died
			return 0, err
		}
		host, err = create.one()
	}
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, deleteLink(ep.Device))
		}
	}()
	// Should a program ever be missing from the host side, the packet reaches the stack. There it must end: the address of
	// a pod is routed by porin_host, so the strict reverse path test refuses IPv4, and IPv6 is switched off.
	if err = errors.Join(sysctl("ipv4/conf/"+ep.Device+"/rp_filter", "1"), sysctlV6(ep.Device, "disable_ipv6", "1")); err != nil {
		return 0, err
	}
	if err = ns.do(func() error { return setupWorkload(ep, host.Attrs().ParentIndex, d.host.mac) }); err != nil {
		return 0, fmt.Errorf("in %s: %w", ep.Netns, err)
	}
	return host.Attrs().Index, nil
}

// pairRequest creates the pair, the workload's end in its namespace, and asks what it has become.
func (d *Datapath) pairRequest(ep endpoint.Endpoint, ns netns, mac net.HardwareAddr, mtu int) *batch {
	name := func(s string) *nl.RtAttr { return attr(unix.IFLA_IFNAME, nl.ZeroTerminated(s)) }
	one := func(kind int) *nl.RtAttr { return attr32(kind, 1) } // the default is a queue per CPU of the machine
	info := attr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	for _, a := range []*nl.RtAttr{
		name(ep.IfName), attr32(unix.IFLA_MTU, uint32(mtu)), attr(unix.IFLA_ADDRESS, mac), attr32(unix.IFLA_NET_NS_FD, uint32(ns.fd())),
		one(unix.IFLA_NUM_TX_QUEUES), one(unix.IFLA_NUM_RX_QUEUES),
	} {
		peer.AddChild(a)
	}
	b := &batch{}
	b.add("veth pair with "+ep.IfName, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHead(0, 0, 0),
		name(ep.Device), attr32(unix.IFLA_MTU, uint32(mtu)), attr(unix.IFLA_ADDRESS, d.host.mac),
		one(unix.IFLA_NUM_TX_QUEUES), one(unix.IFLA_NUM_RX_QUEUES), info)
	b.add("ask for the veth pair", unix.RTM_GETLINK, 0, linkHead(0, 0, 0), name(ep.Device))
	return b
}

// sysctlV6 writes a device's IPv6 setting; a kernel without IPv6 has none.
func sysctlV6(dev, name, value string) error {
	err := sysctl("ipv6/conf/"+dev+"/"+name, value)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// setupWorkload runs inside the workload's namespace: addresses, gateway, routes.
func setupWorkload(ep endpoint.Endpoint, index int, gatewayMAC net.HardwareAddr) error {
	if ep.IPv6.IsValid() {
		for _, s := range [][2]string{{"disable_ipv6", "0"}, {"addr_gen_mode", addrGenOff}, {"accept_ra", "0"}} {
			if err := sysctl("ipv6/conf/"+ep.IfName+"/"+s[0], s[1]); err != nil {
				return err
			}
		}
	} else if err := sysctlV6(ep.IfName, "disable_ipv6", "1"); err != nil {
		return err
	}
	b := &batch{}
	b.setUp("lo", loopback)
	b.setUp(ep.IfName, index)
	for _, addr := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if addr.IsValid() {
			b.addWorkloadAddress(index, addr, gateway(addr.Is6()), gatewayMAC)
		}
	}
	if _, err := b.run(); err != nil {
		return err
	}
	if ep.IPv6.IsValid() {
		return awaitLocal(ep.IPv6)
	}
	return nil
}

// addWorkloadAddress gives the workload's device an address, the gateway as a permanent neighbour, and the way to it.
func (b *batch) addWorkloadAddress(index int, addr, gateway netip.Addr, gatewayMAC net.HardwareAddr) {
	family := uint8(unix.AF_INET)
	if addr.Is6() {
		family = unix.AF_INET6
	}
	ifa := nl.NewIfAddrmsg(int(family))
	ifa.Prefixlen, ifa.Index = uint8(addr.BitLen()), uint32(index)
	parts := []nl.NetlinkRequestData{ifa, attr(unix.IFA_LOCAL, addr.AsSlice()), attr(unix.IFA_ADDRESS, addr.AsSlice())}
	if addr.Is6() {
		parts = append(parts, attr32(unix.IFA_FLAGS, unix.IFA_F_NODAD))
	}
	b.add("address "+addr.String(), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, parts...)

	neighbour := &netlink.Ndmsg{Family: family, Index: uint32(index), State: netlink.NUD_PERMANENT}
	b.add("neighbour "+gateway.String(), unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		neighbour, attr(unix.NDA_DST, gateway.AsSlice()), attr(unix.NDA_LLADDR, gatewayMAC))

	route := nl.NewRtMsg()
	route.Family, route.Flags = family, unix.RTNH_F_ONLINK
	b.add("default route by "+gateway.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		route, attr(unix.RTA_GATEWAY, gateway.AsSlice()), attr32(unix.RTA_OIF, uint32(index)))
}

// awaitLocal waits until the kernel answers to an IPv6 address: it does so from a work queue (addrconf_dad_work), even for
// an address without duplicate detection, and drops what arrives before.
func awaitLocal(addr netip.Addr) error {
	for deadline := time.Now().Add(readyWait); ; time.Sleep(100 * time.Microsecond) {
		routes, err := netlink.RouteGet(addr.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("address %s: not in force after %v", addr, readyWait)
		}
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func defaultNet(family int) *net.IPNet {
	if family == netlink.FAMILY_V6 {
		return ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
	}
	return ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
}

// readyWait is how long to wait for what the kernel does in its own time. It needs well under 1 ms unless it is busy: taking
// down a network namespace holds the lock that all of this wants for seconds.
const readyWait = 10 * time.Second

// bringUp sets the host side up and waits until the workload's end carries packets: the kernel gets to that a moment later,
// drops what is sent before, and the first packet of a workload must not be lost. From Linux 6.8 the question alone makes
// the kernel do it.
func bringUp(name string, ifindex int) error {
	b := &batch{}
	b.setUp(name, ifindex)
	b.add("ask for "+name, unix.RTM_GETLINK, 0, linkHead(ifindex, 0, 0))
	host, err := b.one()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(readyWait); ; time.Sleep(100 * time.Microsecond) {
		// the other end is asked for by the namespace id that the kernel has for it here, so no thread need go there
		b := &batch{}
		b.add("ask for the other end of "+name, unix.RTM_GETLINK, 0, linkHead(host.Attrs().ParentIndex, 0, 0),
			attr32(unix.IFLA_TARGET_NETNSID, uint32(host.Attrs().NetNsID)))
		peer, err := b.one()
		if err != nil {
			return err
		}
		a := peer.Attrs()
		if a.OperState == netlink.OperUp || a.Flags&net.FlagUp == 0 || time.Now().After(deadline) { // down: the workload's wish
			return nil
		}
	}
}

// DeviceIndex returns the ifindex of the host side if it still exists.
func (d *Datapath) DeviceIndex(name string) (ifindex int, ok bool) {
	i, err := ifindexOf(name)
	return i, err == nil
}

// ifindexOf asks for one device where net.InterfaceByName would list them all.
func ifindexOf(name string) (int, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("device name %q: %w", name, err)
	}
	if err := askDevice(unix.SIOCGIFINDEX, req); err != nil {
		return 0, fmt.Errorf("device %s: %w", name, err)
	}
	return int(req.Uint32()), nil
}

// present tells whether a device exists; in doubt it does.
func present(ifindex int) bool {
	name, err := nameOf(ifindex)
	return err != nil || name != ""
}

// nameOf is the reverse of ifindexOf; empty if there is no such device.
func nameOf(ifindex int) (string, error) {
	req, err := unix.NewIfreq("")
	if err != nil {
		return "", fmt.Errorf("device %d: %w", ifindex, err)
	}
	req.SetUint32(uint32(ifindex))
	err = askDevice(unix.SIOCGIFNAME, req)
	if errors.Is(err, unix.ENODEV) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("device %d: %w", ifindex, err)
	}
	return req.Name(), nil
}

func askDevice(what uint, req *unix.Ifreq) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	return unix.IoctlIfreq(fd, what, req)
}

// DeleteDevice removes the veth pair; no error if it is gone.
func (d *Datapath) DeleteDevice(name string) error {
	if err := checkDevice(name); err != nil {
		return fmt.Errorf("delete device: %w", err)
	}
	return deleteLink(name)
}

// deleteLink removes a device; no error if it is gone.
func deleteLink(name string) error {
	i, err := ifindexOf(name)
	if err == nil {
		err = netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: i}})
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}

// Devices lists the host sides of workloads' devices that exist, whoever they belonged to.
func (d *Datapath) Devices() ([]string, error) { return podDevices() }

func podDevices() ([]string, error) {
	links, err := listAll(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var names []string
	for _, l := range links {
		if l.Type() == "veth" && isPodDevice(l.Attrs().Name) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// isPodDevice tells porin's names from somebody else's that begin alike.
func isPodDevice(name string) bool {
	rest, ok := strings.CutPrefix(name, podPrefix)
	return ok && len(rest) == 10 && !strings.ContainsFunc(rest, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) })
}
