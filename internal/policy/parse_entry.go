package policy

import (
	"slices"
	"strings"
)

// site is where in a document an entry stands.
type site struct {
	policy        *Policy
	ingress, deny bool
	host          bool // the rule selects nodes
}

// end is how the fields for peers begin.
func (s site) end() string {
	if s.ingress {
		return "from"
	}
	return "to"
}

const notInDeny = "not allowed in a deny rule"

// entry reads one element of ingress, egress, ingressDeny or egressDeny.
func (r *reader) entry(v value, at site) *Entry {
	e := &Entry{Line: r.line(v.Node)}
	o, ok := r.object(v)
	if !ok {
		return e
	}
	r.peers(o, at, e)
	r.requires(o, at, e)
	ports, hasPorts := o.take("toPorts")
	icmps, hasICMP := o.take("icmps")
	switch {
	case hasPorts && hasICMP:
		r.fail(icmps.Node, icmps.path, "cannot stand beside toPorts in one entry; write two entries")
	case hasPorts:
		e.Ports = r.toPorts(ports, at)
	case hasICMP:
		e.Ports = r.icmps(icmps)
	}
	if len(e.Ports) > maxEntryPorts {
		r.fail(v.Node, v.path, "%d ports; at most %d in one entry, use ranges", len(e.Ports), maxEntryPorts)
	}
	r.authentication(o, at, e)
	o.done()
	if at.deny && e.selectsNothing() && len(o.order) == 0 {
		r.fail(v.Node, v.path, "an entry without peers and ports selects nothing; to deny everyone write %sEntities: [all]", at.end())
	}
	return e
}

// authentication reads what an entry demands of both ends.
func (r *reader) authentication(o *object, at site, e *Entry) {
	v, ok := o.take("authentication")
	if !ok {
		return
	}
	if at.deny {
		r.fail(v.Node, v.path, notInDeny)
		return
	}
	a, ok := r.object(v)
	if !ok {
		return
	}
	if mode, ok := a.take("mode"); ok {
		if s, ok := r.text(mode); ok {
			if e.Auth, ok = authModes()[s]; !ok {
				r.fail(mode.Node, mode.path, "%.40q is unknown; use disabled, required or test-always-fail", s)
			}
		}
	} else if _, null := a.fields["mode"]; !null {
		r.fail(v.Node, v.at("mode"), "missing; write disabled, required or test-always-fail")
	}
	a.done()
}

func authModes() map[string]Auth {
	return map[string]Auth{"disabled": AuthDisabled, "required": AuthRequired, "test-always-fail": AuthTestAlwaysFail}
}

// requires reads fromRequires or toRequires.
func (r *reader) requires(o *object, at site, e *Entry) {
	v, ok := o.take(at.end() + "Requires")
	if !ok {
		return
	}
	if at.deny {
		r.fail(v.Node, v.path, notInDeny)
		return
	}
	list, _ := r.list(v)
	for _, el := range list {
		if s, ok := r.selector(el, endpointKey); ok {
			r.checkSources(el, s)
			e.Requires = append(e.Requires, s)
		}
	}
}

// peers reads the one field of o that names peers.
func (r *reader) peers(o *object, at site, e *Entry) {
	end := at.end()
	o.refuse(end+"Groups", "not supported here: groups of cloud providers; list their addresses in a CiliumCIDRGroup and name it in "+end+"CIDRSet")
	type peerField struct {
		name string
		kind PeerKind
		read func(value) // one element
	}
	fields := []peerField{
		{"Endpoints", PeersEndpoints, func(v value) {
			if s, ok := r.selector(v, endpointKey); ok {
				r.checkSources(v, s)
				e.Peers.Endpoints = append(e.Peers.Endpoints, s)
			}
		}},
		{"Entities", PeersEntities, func(v value) {
			s, ok := r.text(v)
			if !ok {
				return
			}
			if !slices.Contains(EntityNames(), s) {
				r.fail(v.Node, v.path, "entity %.40q is unknown; use one of %s", s, strings.Join(EntityNames(), ", "))
			}
			e.Peers.Entities = append(e.Peers.Entities, s)
		}},
		{"CIDR", PeersCIDR, func(v value) {
			if prefix, ok := r.prefix(v, true); ok {
				e.Peers.CIDRs = append(e.Peers.CIDRs, CIDR{Prefix: prefix})
			}
		}},
		{"CIDRSet", PeersCIDRSet, func(v value) {
			if c, ok := r.cidr(v); ok {
				e.Peers.CIDRs = append(e.Peers.CIDRs, c)
			}
		}},
		{"Nodes", PeersNodes, func(v value) {
			if s, ok := r.selector(v, nodeKey); ok {
				e.Peers.Nodes = append(e.Peers.Nodes, s)
			}
		}},
	}
	if !at.ingress {
		fields = append(fields, peerField{"Services", PeersServices, func(v value) {
			if s, ok := r.servicePeer(v, at.policy); ok {
				e.Peers.Services = append(e.Peers.Services, s)
			}
		}})
		if at.deny {
			o.refuse("toFQDNs", notInDeny+": names are learned from DNS answers, a denial would come too late; use toCIDR")
		} else {
			fields = append(fields, peerField{"FQDNs", PeersFQDNs, func(v value) {
				if f, ok := r.fqdn(v); ok {
					e.Peers.FQDNs = append(e.Peers.FQDNs, f)
				}
			}})
		}
	}
	first := ""
	for _, k := range fields {
		v, ok := o.take(end + k.name)
		if !ok {
			continue
		}
		if first != "" {
			r.fail(v.Node, v.path, "cannot stand beside %s in one entry; write two entries", first)
			continue
		}
		first, e.Peers.Kind = end+k.name, k.kind
		list, _ := r.list(v)
		for _, el := range list {
			k.read(el)
		}
	}
}
