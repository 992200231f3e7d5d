package policy

import (
	"strings"

	"porin/internal/labels"
)

const (
	maxClusterRules    = 25 // rules of a direction, peers of a rule, protocols of a rule, blocks or names of a peer
	maxClusterPriority = 1000
)

// clusterPolicy reads a ClusterNetworkPolicy.
func (r *reader) clusterPolicy(o *object, p *Policy) {
	o.skip("status")
	spec, ok := r.need(o, "spec")
	if !ok {
		return
	}
	so, ok := r.object(spec)
	if !ok {
		return
	}
	no := false
	rule := &Rule{Spec: -1, Line: r.line(spec.Node), Ingress: Section{DefaultDeny: &no}, Egress: Section{DefaultDeny: &no}}
	if t, ok := r.need(so, "tier"); ok {
		switch s, ok := r.text(t); {
		case s == "Admin":
			rule.Tier = TierAdmin
		case s == "Baseline":
			rule.Tier = TierBaseline
		case ok:
			r.fail(t.Node, t.path, "%.40q is unknown; use Admin or Baseline", s)
		}
	}
	if n, ok := r.need(so, "priority"); ok {
		i, _ := r.number(n, maxClusterPriority)
		rule.Priority = uint32(i)
	}
	if s, ok := r.need(so, "subject"); ok {
		rule.Subject, _ = r.clusterPods(s)
	}
	r.clusterSection(so, "ingress", &rule.Ingress)
	r.clusterSection(so, "egress", &rule.Egress)
	so.done()
	p.Rules = []*Rule{rule}
}

// one takes the only field of an object of which exactly one must be there.
func (r *reader) one(o *object, names ...string) (name string, v value, ok bool) {
	for _, n := range names {
		if _, there := o.fields[n]; !there {
			continue
		}
		got, good := o.take(n)
		if name != "" {
			r.fail(o.fields[n].key, o.at(n), "cannot stand beside %s; write two elements", name)
			return name, v, false
		}
		name, v, ok = n, got, good
	}
	if name == "" {
		r.fail(o.Node, o.path, "names nothing that porin knows, so nobody can tell what is meant; write one of %s", strings.Join(names, ", "))
	}
	return name, v, ok
}

// clusterPods reads a subject: the pods of namespaces, all or some.
func (r *reader) clusterPods(v value) (labels.Selector, bool) {
	o, ok := r.object(v)
	if !ok {
		return labels.Selector{}, false
	}
	name, field, ok := r.one(o, "namespaces", "pods")
	o.done()
	if !ok {
		return labels.Selector{}, false
	}
	return r.podsOf(name, field)
}

// podsOf reads namespaces or pods.
func (r *reader) podsOf(name string, v value) (s labels.Selector, good bool) {
	if name == "namespaces" {
		part, ok := r.selector(v, namespaceKey)
		s, err := part.And(inNamespaces())
		return s, ok && err == nil
	}
	o, ok := r.object(v)
	if !ok {
		return s, false
	}
	for _, field := range []string{"namespaceSelector", "podSelector"} {
		if _, there := o.fields[field]; !there {
			r.fail(v.Node, v.at(field), "missing; write {} for all")
		}
	}
	s, good = r.namespacedPods(o)
	o.done()
	return s, good
}

// clusterSection reads ingress or egress.
func (r *reader) clusterSection(o *object, name string, to *Section) {
	v, ok := o.take(name)
	if !ok {
		return
	}
	list, ok := r.atMost(v, 0)
	if !ok {
		return
	}
	for i, el := range list {
		entries, action := r.clusterRule(el, name == "ingress")
		for _, e := range entries {
			e.Line, e.Index, e.Priority = r.line(el.Node), i, uint32(i)
		}
		switch action {
		case "Accept":
			to.Allow = append(to.Allow, entries...)
		case "Deny":
			to.Deny = append(to.Deny, entries...)
		case "Pass":
			to.Pass = append(to.Pass, entries...)
		}
	}
}

// atMost reads a list of so many elements as one of these may have.
func (r *reader) atMost(v value, least int) ([]value, bool) {
	list, ok := r.list(v)
	switch {
	case !ok:
	case len(v.Content) < least:
		r.fail(v.Node, v.path, "the list is empty; nobody can tell whether nothing or everything is meant")
		return nil, false
	case len(v.Content) > maxClusterRules:
		r.fail(v.Node, v.path, "%d elements; at most %d", len(v.Content), maxClusterRules)
		return nil, false
	}
	return list, ok
}

// clusterRule reads one rule. It becomes an entry for each kind of peers that it names.
func (r *reader) clusterRule(v value, ingress bool) (entries []*Entry, action string) {
	o, ok := r.object(v)
	if !ok {
		return nil, ""
	}
	name := ""
	if n, ok := o.take("name"); ok {
		if name, _ = r.text(n); len(name) > 100 {
			r.fail(n.Node, n.path, "longer than 100 bytes")
		}
	}
	if a, ok := r.need(o, "action"); ok {
		if action, ok = r.text(a); ok && action != "Accept" && action != "Deny" && action != "Pass" {
			r.fail(a.Node, a.path, "%.40q is unknown; use Accept, Deny or Pass", action)
		}
	}
	var ports []Port
	named := false
	if list, ok := o.take("protocols"); ok {
		els, _ := r.atMost(list, 1)
		ports = []Port{}
		for _, el := range els {
			if p, ok := r.clusterPort(el); ok {
				ports = append(ports, p)
				named = named || p.Name != ""
			}
		}
	}
	end := site{ingress: ingress}.end()
	if list, ok := r.need(o, end); ok {
		els, _ := r.atMost(list, 1)
		for _, p := range r.clusterPeers(els, ingress, action) {
			if named && p.Kind != PeersEndpoints && p.Kind != PeersEntities {
				r.fail(list.Node, list.path, "nodes, networks and domainNames have no named ports; write numbers, or two rules")
			}
			entries = append(entries, &Entry{Name: name, Peers: p, Ports: ports})
		}
	}
	o.done()
	return entries, action
}

// clusterPeers reads from or to.
func (r *reader) clusterPeers(list []value, ingress bool, action string) (out []Peers) {
	kinds := []string{"namespaces", "pods"}
	if !ingress {
		kinds = append(kinds, "nodes", "networks", "domainNames")
	}
	var pods, nodes, names, blocks Peers
	for _, el := range list {
		o, ok := r.object(el)
		if !ok {
			continue
		}
		name, v, ok := r.one(o, kinds...)
		o.done()
		if !ok {
			continue
		}
		switch name {
		case "namespaces", "pods":
			if s, ok := r.podsOf(name, v); ok {
				pods.Kind, pods.Endpoints = PeersEndpoints, append(pods.Endpoints, s)
			}
		case "nodes":
			if s, ok := r.selector(v, clusterNodeKey); ok {
				nodes.Kind, nodes.Nodes = PeersNodes, append(nodes.Nodes, s)
			}
		case "networks":
			els, _ := r.atMost(v, 1)
			for _, n := range els {
				if c, ok := r.prefix(n, false); ok {
					blocks.Kind, blocks.CIDRs = PeersCIDR, append(blocks.CIDRs, CIDR{Prefix: c})
				}
			}
		case "domainNames":
			if action != "Accept" {
				r.fail(v.Node, v.path, "can be accepted only: names are learned from DNS answers, another action would come too late")
			}
			els, _ := r.atMost(v, 1)
			for _, n := range els {
				if f, ok := r.domainName(n); ok {
					names.Kind, names.FQDNs = PeersFQDNs, append(names.FQDNs, f)
				}
			}
		}
	}
	for _, p := range []Peers{pods, nodes, blocks, names, everyone(blocks.CIDRs, action)} {
		if p.Kind != PeersAny {
			out = append(out, p)
		}
	}
	return out
}

// everyone returns the peers inside of the cluster that networks of a whole family mean. Networks speak of all
// addresses, while blocks hold none of workloads and nodes. Of an identity nobody knows the family: one family alone
// counts only where that forbids.
func everyone(blocks []CIDR, action string) Peers {
	four, six := false, false
	for _, b := range blocks {
		if b.Prefix.Bits() == 0 {
			four, six = four || b.Prefix.Addr().Is4(), six || b.Prefix.Addr().Is6()
		}
	}
	if four && six || (four || six) && action == "Deny" {
		return Peers{Kind: PeersEntities, Entities: []string{"cluster-mesh"}}
	}
	return Peers{}
}

// clusterNodeKey reads a key of a node's labels.
func clusterNodeKey(s string) (source, key string, err error) {
	_, key, err = plainKey(s)
	return labels.SourceNode, key, err
}

// domainName reads a name, or "*." and a name for all names below it, however deep.
func (r *reader) domainName(v value) (f FQDN, ok bool) {
	s, ok := r.text(v)
	if !ok {
		return f, false
	}
	below, wild := strings.CutPrefix(s, "*.")
	one := *v.Node
	one.Value = below
	name, ok := r.dnsName(value{&one, v.path})
	switch {
	case !ok:
		return f, false
	case strings.Count(name, ".") < 2:
		r.fail(v.Node, v.path, "%.80q has one label only; write two at least", s)
		return f, false
	case wild:
		return FQDN{Pattern: "**." + name}, true
	}
	return FQDN{Name: name}, true
}

// clusterPort reads one of protocols.
func (r *reader) clusterPort(v value) (p Port, ok bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return p, false
	}
	name, field, ok := r.one(o, "tcp", "udp", "sctp", "destinationNamedPort")
	o.done()
	if !ok {
		return p, false
	}
	switch name {
	case "destinationNamedPort":
		if !isPortName(field) {
			r.fail(field.Node, field.path, "%s is no name of a port", describe(field.Node))
			return p, false
		}
		p.AnyProto, p.Name = true, r.podPortName(field)
		return p, len(r.errs) == errs
	case "tcp":
		p.Proto = ProtoTCP
	case "udp":
		p.Proto = ProtoUDP
	case "sctp":
		p.Proto = ProtoSCTP
	}
	if po, ok := r.object(field); ok {
		if dest, ok := r.need(po, "destinationPort"); ok {
			r.destinationPort(dest, &p)
		}
		po.done()
	}
	return p, len(r.errs) == errs
}

// destinationPort reads {number} or {range: {start, end}}.
func (r *reader) destinationPort(v value, p *Port) {
	o, ok := r.object(v)
	if !ok {
		return
	}
	name, field, ok := r.one(o, "number", "range")
	o.done()
	if !ok {
		return
	}
	if name == "number" {
		p.First = r.portNumber(field)
		p.Last = p.First
		return
	}
	ro, ok := r.object(field)
	if !ok {
		return
	}
	for i, to := range []*uint16{&p.First, &p.Last} {
		if n, ok := r.need(ro, []string{"start", "end"}[i]); ok {
			*to = r.portNumber(n)
		}
	}
	if p.First >= p.Last {
		r.fail(field.Node, field.path, "start must be below end")
	}
	ro.done()
}
