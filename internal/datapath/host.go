package datapath

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"porin/internal/node"
)

// The veth pair between the host's stack and the pods. Packets of the host to pods are routed out of hostDevice, where
// host_egress judges and delivers them; packets of pods to the host come in by it.
const (
	hostDevice = "porin_host"
	hostPeer   = "porin_net" // only there because a veth has two ends
)

// uplink is a device by which pods leave the node.
type uplink struct {
	name  string
	index int
	mtu   int
}

// host keeps porin_host, its routes and the list of uplinks as they should be.
type host struct {
	log *slog.Logger
	cfg Config
	mac net.HardwareAddr // gateway of all pods

	mu      sync.Mutex
	ifindex int
	uplinks []uplink
	tunnel  int             // the kernel's tunnel device; 0: none
	odd     map[string]bool // devices already reported as unusable
}

func newHost(log *slog.Logger, cfg Config) *host {
	sum := sha256.Sum256([]byte("porin gateway\x00" + cfg.IPv4Range.String() + "\x00" + cfg.IPv6Range.String()))
	return &host{log: log, cfg: cfg, mac: localMAC(sum[:6]), odd: map[string]bool{}}
}

func (h *host) index() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ifindex
}

// mtu returns what pods get: as configured, else what the tunnel leaves of the narrowest uplink.
func (h *host) mtu() int {
	if h.cfg.MTU != 0 {
		return h.cfg.MTU
	}
	overhead := h.overhead()
	h.mu.Lock()
	defer h.mu.Unlock()
	m := 0
	for _, u := range h.uplinks {
		if m == 0 || u.mtu < m {
			m = u.mtu
		}
	}
	if m == 0 {
		m = 1500
	}
	return m - overhead
}

// MTU is what workloads get that ask for none.
func (d *Datapath) MTU() int { return d.host.mtu() }

func (h *host) uplinkIndexes() []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]int, len(h.uplinks))
	for i, u := range h.uplinks {
		out[i] = u.index
	}
	return out
}

func (h *host) uplinkNames() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]string, len(h.uplinks))
	for i, u := range h.uplinks {
		out[i] = u.name
	}
	return out
}

// ensure makes everything as it should be and changes nothing that is so already.
func (h *host) ensure() error {
	ups, missing := h.findUplinks() // a missing uplink is reported, but the rest must not suffer from it
	h.mu.Lock()
	h.uplinks = ups
	h.mu.Unlock()
	if err := h.forwarding(ups); err != nil {
		return errors.Join(missing, err)
	}
	dev, err := h.ensurePair()
	if err != nil {
		return errors.Join(missing, fmt.Errorf("device %s: %w", hostDevice, err))
	}
	h.mu.Lock()
	h.ifindex = dev.Attrs().Index
	h.mu.Unlock()
	return errors.Join(missing, h.ensureRoutes(dev), h.ensureTunnel())
}

func (h *host) ensurePair() (netlink.Link, error) {
	mtu := h.mtu()
	dev, err := netlink.LinkByName(hostDevice)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = hostDevice, mtu, h.mac
		pair := &netlink.Veth{LinkAttrs: attrs, PeerName: hostPeer, PeerMTU: uint32(mtu)}
		if err := netlink.LinkAdd(pair); err != nil {
			return nil, fmt.Errorf("create: %w", err)
		}
		if dev, err = netlink.LinkByName(hostDevice); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case dev.Type() != "veth":
		return nil, fmt.Errorf("it exists as %s, not veth: remove or rename it", dev.Type())
	}
	peer, err := netlink.LinkByName(hostPeer)
	if err != nil {
		return nil, fmt.Errorf("its other end %s: %w", hostPeer, err)
	}
	// what somebody changed since, and what a new device needs
	for _, l := range []netlink.Link{dev, peer} {
		if l.Attrs().MTU != mtu {
			if err := netlink.LinkSetMTU(l, mtu); err != nil {
				return nil, fmt.Errorf("mtu %d of %s: %w", mtu, l.Attrs().Name, err)
			}
		}
	}
	if dev.Attrs().HardwareAddr.String() != h.mac.String() {
		if err := netlink.LinkSetHardwareAddr(dev, h.mac); err != nil {
			return nil, fmt.Errorf("address %s: %w", h.mac, err)
		}
	}
	if dev.Attrs().RawFlags&unix.IFF_NOARP == 0 {
		if err := netlink.LinkSetARPOff(dev); err != nil {
			return nil, fmt.Errorf("switch ARP off: %w", err)
		}
	}
	if err := errors.Join(
		setSysctl("ipv4/conf/"+hostDevice+"/rp_filter", "0"),
		setSysctlV6(hostDevice, "addr_gen_mode", addrGenOff),
		setSysctlV6(hostDevice, "accept_ra", "0"),
		setSysctlV6(hostDevice, "accept_dad", "0"),
		setSysctlV6(hostPeer, "disable_ipv6", "1"),
	); err != nil {
		return nil, err
	}
	for _, l := range []netlink.Link{peer, dev} {
		if l.Attrs().Flags&net.FlagUp == 0 {
			if err := netlink.LinkSetUp(l); err != nil {
				return nil, fmt.Errorf("bring up %s: %w", l.Attrs().Name, err)
			}
		}
	}
	return dev, nil
}

// ensureRoutes gives porin_host the router addresses and leads the pod ranges to it. The source address of the routes
// makes the host speak to pods with an address that they can answer to.
func (h *host) ensureRoutes(dev netlink.Link) error {
	for _, f := range []struct {
		family int
		pods   netip.Prefix
		router netip.Addr
	}{{netlink.FAMILY_V4, h.cfg.IPv4Range, h.cfg.RouterIPv4}, {netlink.FAMILY_V6, h.cfg.IPv6Range, h.cfg.RouterIPv6}} {
		if !f.pods.IsValid() {
			continue
		}
		if err := ensureAddress(dev, f.family, f.router); err != nil {
			return err
		}
		if err := ensureRoute(dev, f.family, f.pods.Masked(), f.router); err != nil {
			return err
		}
	}
	return nil
}

func ensureAddress(dev netlink.Link, family int, router netip.Addr) error {
	have, err := listAll(func() ([]netlink.Addr, error) { return netlink.AddrList(dev, family) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", hostDevice, err)
	}
	there := false
	for _, a := range have {
		got, _ := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if got.Unmap() == router && ones == router.BitLen() {
			there = true
			continue
		}
		if err := netlink.AddrDel(dev, &a); err != nil { // of a former range
			return fmt.Errorf("remove address %s of %s: %w", a.IPNet, hostDevice, err)
		}
	}
	if there {
		return nil
	}
	a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(router, router.BitLen()))}
	if family == netlink.FAMILY_V6 {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrReplace(dev, a); err != nil {
		return fmt.Errorf("address %s of %s: %w", router, hostDevice, err)
	}
	return nil
}

func ensureRoute(dev netlink.Link, family int, pods netip.Prefix, router netip.Addr) error {
	want := &netlink.Route{LinkIndex: dev.Attrs().Index, Family: family, Dst: ipNet(pods), Src: router.AsSlice(), Scope: netlink.SCOPE_LINK}
	if family == netlink.FAMILY_V6 {
		want.Scope = netlink.SCOPE_UNIVERSE
	}
	have, err := listAll(func() ([]netlink.Route, error) {
		like := &netlink.Route{LinkIndex: want.LinkIndex, Dst: want.Dst, Table: unix.RT_TABLE_MAIN}
		return netlink.RouteListFiltered(family, like, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", hostDevice, err)
	}
	if slices.ContainsFunc(have, func(r netlink.Route) bool { return r.Src.Equal(want.Src) }) {
		return nil
	}
	if err := netlink.RouteReplace(want); err != nil {
		return fmt.Errorf("route %s by %s: %w", pods, hostDevice, err)
	}
	return nil
}

// forwarding switches routing on. A device that learns its own routes from advertisements would stop doing so the moment
// IPv6 forwarding starts (Documentation/networking/ip-sysctl: accept_ra), so uplinks are told to go on.
func (h *host) forwarding(ups []uplink) error {
	// the way to another node is looked up as one of forwarded packets: in the family of the underlay too
	if h.cfg.IPv4Range.IsValid() || h.cfg.tunnelled() && h.cfg.Underlay != node.IPv6 {
		if err := setSysctl("ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if !h.cfg.IPv6Range.IsValid() && (!h.cfg.tunnelled() || h.cfg.Underlay == node.IPv4) {
		return nil
	}
	for _, u := range ups {
		if getSysctl("ipv6/conf/"+u.name+"/accept_ra") == "1" {
			if err := setSysctl("ipv6/conf/"+u.name+"/accept_ra", "2"); err != nil {
				return err
			}
		}
	}
	return setSysctl("ipv6/conf/all/forwarding", "1")
}

func getSysctl(path string) string {
	b, err := os.ReadFile("/proc/sys/net/" + path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// setSysctl writes only what differs: some of these settings have effects of their own when written.
func setSysctl(path, value string) error {
	if getSysctl(path) == value {
		return nil
	}
	return sysctl(path, value)
}

func setSysctlV6(dev, name, value string) error {
	if getSysctl("ipv6/conf/"+dev+"/"+name) == value {
		return nil
	}
	return sysctlV6(dev, name, value)
}

// findUplinks returns the configured devices, or those with a default route. They must be Ethernet: the programs read
// and write Ethernet headers.
func (h *host) findUplinks() (ups []uplink, missing error) {
	var indexes []int
	for _, name := range h.cfg.Devices {
		i, err := ifindexOf(name)
		if err != nil {
			missing = errors.Join(missing, fmt.Errorf("uplink %s: %w; correct --devices", name, err))
			continue
		}
		indexes = append(indexes, i)
	}
	if len(h.cfg.Devices) == 0 {
		var err error
		if indexes, err = defaultRouteDevices(); err != nil {
			return nil, err
		}
	}
	for _, i := range indexes {
		l, err := netlink.LinkByIndex(i)
		if err != nil {
			continue // gone since the routes were listed
		}
		a := l.Attrs()
		if a.Name == hostDevice || a.Name == hostPeer || a.Name == tunnelDevice || isPodDevice(a.Name) {
			continue
		}
		if a.EncapType != "ether" {
			if len(h.cfg.Devices) > 0 {
				missing = errors.Join(missing, fmt.Errorf("uplink %s: its frames are %s, porin needs Ethernet; choose others with --devices", a.Name, a.EncapType))
			} else if !h.odd[a.Name] {
				h.odd[a.Name] = true
				h.log.Warn("device with a default route is not Ethernet and not used", "device", a.Name, "kind", a.EncapType)
			}
			continue
		}
		ups = append(ups, uplink{a.Name, a.Index, a.MTU})
	}
	return ups, missing
}

func defaultRouteDevices() ([]int, error) {
	var out []int
	add := func(i int) {
		if i > 0 && !slices.Contains(out, i) {
			out = append(out, i)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := listAll(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		slices.SortStableFunc(routes, func(a, b netlink.Route) int { return a.Priority - b.Priority })
		for _, r := range routes {
			if !isDefault(r) || r.Type != unix.RTN_UNICAST {
				continue
			}
			add(r.LinkIndex)
			for _, hop := range r.MultiPath {
				add(hop.LinkIndex)
			}
		}
	}
	return out, nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// natPorts returns source ports that the node's own sockets do not take by themselves: a translated flow must not meet a
// socket of the node with the same four numbers.
func (c Config) natPorts() (first, last uint16) {
	if c.NATMax != 0 {
		return c.NATMin, c.NATMax
	}
	lo, hi := 32768, 60999
	if f := strings.Fields(getSysctl("ipv4/ip_local_port_range")); len(f) == 2 {
		a, errA := strconv.Atoi(f[0])
		b, errB := strconv.Atoi(f[1])
		if errA == nil && errB == nil && a <= b {
			lo, hi = a, b
		}
	}
	const lowest, highest = 1024, 65535
	if lo-lowest >= highest-hi {
		return lowest, uint16(max(lo-1, lowest))
	}
	return uint16(min(hi+1, highest)), highest
}
