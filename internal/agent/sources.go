package agent

import (
	"net"
	"net/netip"
	"slices"

	"porin/bpf"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/ipam"
	"porin/internal/labels"
	"porin/internal/policy"
)

// What the flow observer wants to know (flow.Resolver).

// EndpointByID returns the endpoint with this number.
func (a *agent) EndpointByID(id uint16) (endpoint.Endpoint, bool) { return a.endpoints.ByID(id) }

// EndpointByAddr returns the endpoint that has addr.
func (a *agent) EndpointByAddr(addr netip.Addr) (endpoint.Endpoint, bool) {
	return a.endpoints.ByAddr(addr)
}

// IdentityLabels returns what a number stands for; nil if nobody knows.
func (a *agent) IdentityLabels(id identity.ID) labels.Labels {
	i, _ := a.identities.Get(id)
	return i.Labels
}

// NameByAddr returns what people call the owner of an address: an endpoint's name, or this node's.
func (a *agent) NameByAddr(addr netip.Addr) string {
	if ep, ok := a.endpoints.ByAddr(addr); ok {
		return ep.Name()
	}
	if r, ok := a.cluster.nodes.Lookup(addr); ok && r.Pod != "" {
		return r.Namespace + "/" + r.Pod
	}
	if name, ok := a.cluster.nodes.NameOf(addr); ok {
		return name
	}
	v4, v6 := a.addresses.Router()
	if addr == v4 || addr == v6 || a.names.isHost(addr) {
		return a.cfg.NodeName
	}
	return ""
}

// Explain returns the rules behind a verdict.
func (a *agent) Explain(c policy.Cookie) []policy.RuleRef { return a.engine.Explain(c) }

// DeviceName returns the name of a device of this node.
func (a *agent) DeviceName(ifindex uint32) string { return a.names.device(ifindex) }

// NodeName returns this node's name.
func (a *agent) NodeName() string { return a.cfg.NodeName }

// What the metrics want to know (metrics.Sources). Rooms that are not made yet have nothing to tell.

// Endpoints lists the endpoints.
func (a *agent) Endpoints() []endpoint.Endpoint {
	if a.endpoints == nil {
		return nil
	}
	return a.endpoints.List()
}

// PolicyCount counts the policies in force.
func (a *agent) PolicyCount() int {
	if a.endpoints == nil {
		return 0
	}
	return a.endpoints.PolicyTable().Len()
}

// PolicyRevision is the revision in force.
func (a *agent) PolicyRevision() uint64 {
	if a.endpoints == nil {
		return 0
	}
	return a.endpoints.Revision()
}

// Enforced tells in which directions a policy isolates ep.
func (a *agent) Enforced(ep endpoint.Endpoint) (ingress, egress bool) { return a.engine.enforced(ep) }

// Identities lists what this node knows.
func (a *agent) Identities() []identity.Identity {
	if a.identities == nil {
		return nil
	}
	return a.identities.List()
}

// Pools tells how full the address ranges are.
func (a *agent) Pools() []ipam.Pool {
	if a.addresses == nil {
		return nil
	}
	return a.addresses.Pools()
}

// Counters are the datapath's.
func (a *agent) Counters() map[[2]uint8]bpf.Counter {
	if a.datapath == nil {
		return nil
	}
	return a.datapath.Counters()
}

// MapPressure tells how full the maps are.
func (a *agent) MapPressure() map[string]float64 {
	if a.datapath == nil {
		return nil
	}
	return a.datapath.MapPressure()
}

// MapCapacity tells how many rows the maps can take.
func (a *agent) MapCapacity() map[string]uint32 {
	if a.datapath == nil {
		return nil
	}
	return a.datapath.MapCapacity()
}

// LostEvents counts flow events that did not arrive.
func (a *agent) LostEvents() map[string]uint64 {
	if a.observer == nil {
		return nil
	}
	c := a.observer.Counts()
	return map[string]uint64{"kernel": c.LostKernel, "reader": c.LostReaders}
}

// FlowEvents counts flow events by type and action.
func (a *agent) FlowEvents() map[[2]uint8]uint64 {
	if a.observer == nil {
		return nil
	}
	out := map[[2]uint8]uint64{}
	for k, n := range a.observer.Counts().FlowsByEvent {
		out[[2]uint8{k.Type, k.Action}] = n
	}
	return out
}

// hostAddresses lists this node's addresses that others can reach, sorted.
func hostAddresses() []netip.Addr {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil // shown only
	}
	var out []netip.Addr
	for _, a := range list {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(n.IP)
		if addr = addr.Unmap(); ok && addr.IsGlobalUnicast() {
			out = append(out, addr)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
