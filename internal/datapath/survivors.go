package datapath

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"porin/internal/endpoint"
	"porin/internal/identity"
)

// Survivors returns what the endpoints map holds, with the devices' present names: enough to deny, and to rebuild, an
// endpoint whose state file is damaged or lost.
func (d *Datapath) Survivors() ([]endpoint.Endpoint, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]endpoint.Endpoint, 0, len(d.attached))
	for ifindex, at := range d.attached {
		name, err := nameOf(int(ifindex))
		if err != nil {
			return nil, err
		}
		out = append(out, endpoint.Endpoint{
			ID: at.row.ID, Identity: identity.ID(at.row.Identity), IPv4: at.row.V4.Netip(), IPv6: at.row.V6.Netip(),
			MAC: slices.Clone(at.row.MAC[:]), Ifindex: int(ifindex), Device: name,
		})
	}
	slices.SortFunc(out, func(a, b endpoint.Endpoint) int { return int(a.ID) - int(b.ID) })
	return out, nil
}

// CheckDevice compares the workload's side with what CreateDevice made: somebody inside, or another plugin, may have
// changed it.
func (d *Datapath) CheckDevice(ep endpoint.Endpoint) error {
	ns, err := openNetns(ep.Netns)
	if err != nil {
		return err
	}
	defer ns.close()
	return ns.do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("netlink in %s: %w", ep.Netns, err)
		}
		defer h.Close()
		dev, err := h.LinkByName(ep.IfName)
		if err != nil {
			return fmt.Errorf("device %s in %s: %w", ep.IfName, ep.Netns, err)
		}
		switch a := dev.Attrs(); {
		case a.HardwareAddr.String() != ep.MAC.String():
			return fmt.Errorf("device %s in %s: its MAC is %s, not %s", ep.IfName, ep.Netns, a.HardwareAddr, ep.MAC)
		case a.Flags&net.FlagUp == 0:
			return fmt.Errorf("device %s in %s is down", ep.IfName, ep.Netns)
		}
		for _, addr := range []netip.Addr{ep.IPv4, ep.IPv6} {
			if addr.IsValid() {
				if err := checkWorkloadAddress(h, dev, addr, gateway(addr.Is6())); err != nil {
					return fmt.Errorf("in %s: %w", ep.Netns, err)
				}
			}
		}
		return nil
	})
}

func checkWorkloadAddress(h *netlink.Handle, dev netlink.Link, addr, gateway netip.Addr) error {
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	addrs, err := listAll(func() ([]netlink.Addr, error) { return h.AddrList(dev, family) })
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", dev.Attrs().Name, err)
	}
	if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(addr.AsSlice()) }) {
		return fmt.Errorf("device %s does not have %s", dev.Attrs().Name, addr)
	}
	routes, err := listAll(func() ([]netlink.Route, error) { return h.RouteList(dev, family) })
	if err != nil {
		return fmt.Errorf("routes by %s: %w", dev.Attrs().Name, err)
	}
	if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Gw.Equal(gateway.AsSlice()) }) {
		return fmt.Errorf("there is no route by %s", gateway)
	}
	return nil
}
