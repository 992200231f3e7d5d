package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"porin/internal/node"
)

// routeProtocol marks routes as ours (rtnetlink: 128 to 255 are free for administrators' programs).
const routeProtocol = 187

// nodeRoute is the way of this node's stack to the workloads of another node.
type nodeRoute struct {
	cidr netip.Prefix
	via  netip.Addr // the node itself, natively; invalid: by porin_host, where host_egress frames
}

// wantedRoutes says how the stack reaches each pod range of other nodes: by porin_host, where packets are judged and framed,
// or natively by the node, where that is wanted of us.
func (d *Datapath) wantedRoutes() (routes []nodeRoute, missing error) {
	for _, key := range d.cluster.nodeKeys() {
		n := d.cluster.nodes[key]
		for _, cidr := range n.PodCIDRs {
			v4 := cidr.Addr().Is4()
			if v4 && !d.cfg.IPv4Range.IsValid() || !v4 && !d.cfg.IPv6Range.IsValid() {
				continue
			}
			r := nodeRoute{cidr: cidr.Masked()}
			if !d.cfg.tunnelled() {
				if !d.cfg.DirectRoutes {
					continue
				}
				r.via = addressOf(n, v4)
				if !r.via.IsValid() {
					missing = errors.Join(missing, fmt.Errorf("pod range %s of node %s: the node has no address of its family", cidr, key))
					continue
				}
			}
			routes = append(routes, r)
		}
	}
	return routes, missing
}

func addressOf(n node.Node, v4 bool) netip.Addr {
	for _, a := range n.Addresses {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

// ensureNodeRoutes makes the routes to other nodes' pod ranges. Only routes that porin made are ever removed, and none of a
// former agent's before it is known what there is. The lock is held.
func (d *Datapath) ensureNodeRoutes() error {
	want, errs := d.wantedRoutes()
	have, err := listAll(func() ([]netlink.Route, error) {
		like := &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, like, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return errors.Join(errs, fmt.Errorf("list routes to other nodes: %w", err))
	}
	byRange := map[netip.Prefix]netlink.Route{}
	for _, r := range have {
		byRange[prefixOf(r.Dst)] = r
	}
	host := d.host.index()
	for _, r := range want {
		old, there := byRange[r.cidr]
		delete(byRange, r.cidr)
		if there && (r.via.IsValid() && old.Gw.Equal(r.via.AsSlice()) || !r.via.IsValid() && old.LinkIndex == host) {
			continue
		}
		if err := d.addNodeRoute(r, host); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	if !d.cluster.settled {
		return errs
	}
	for _, r := range byRange {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = errors.Join(errs, fmt.Errorf("remove route %s: %w", r.Dst, err))
		}
	}
	return errs
}

func (d *Datapath) addNodeRoute(r nodeRoute, host int) error {
	route := &netlink.Route{Dst: ipNet(r.cidr), Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
	if r.via.IsValid() {
		// the next hop must be a neighbour: a router in between knows nothing of pods
		ways, err := netlink.RouteGet(r.via.AsSlice())
		if err != nil || len(ways) == 0 || ways[0].Gw != nil {
			return fmt.Errorf("route %s: node %s is no neighbour of this one; switch --auto-direct-node-routes off and let the network route pods, or use a tunnel", r.cidr, r.via)
		}
		route.Gw, route.LinkIndex = r.via.AsSlice(), ways[0].LinkIndex
	} else {
		route.LinkIndex, route.Scope, route.Src = host, netlink.SCOPE_LINK, d.cfg.RouterIPv4.AsSlice()
		if r.cidr.Addr().Is6() {
			route.Scope, route.Src = netlink.SCOPE_UNIVERSE, d.cfg.RouterIPv6.AsSlice()
		}
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route %s: %w", r.cidr, err)
	}
	return nil
}

// syncNodeRoutes repairs the routes: porin_host may be another device by now.
func (d *Datapath) syncNodeRoutes() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ensureNodeRoutes()
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}

// cleanRoutes removes all routes that porin made.
func cleanRoutes() error {
	have, err := listAll(func() ([]netlink.Route, error) {
		like := &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, like, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes to other nodes: %w", err)
	}
	var errs error
	for _, r := range have {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = errors.Join(errs, fmt.Errorf("remove route %s: %w", r.Dst, err))
		}
	}
	return errs
}
