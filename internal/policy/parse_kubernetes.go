package policy

import (
	"net/netip"
	"strings"

	"porin/internal/labels"
)

// kubernetesPolicy reads a NetworkPolicy of Kubernetes.
func (r *reader) kubernetesPolicy(o *object, p *Policy) {
	o.skip("status")
	spec, ok := r.need(o, "spec")
	if !ok {
		return
	}
	so, ok := r.object(spec)
	if !ok {
		return
	}
	rule := &Rule{Spec: -1, Line: r.line(spec.Node), Tier: TierNormal}
	if s, ok := so.take("podSelector"); ok {
		rule.Subject, _ = r.selector(s, podKey)
	} else if _, null := so.fields["podSelector"]; !null {
		r.fail(so.Node, so.at("podSelector"), "missing; write {} to select every pod of the namespace")
	}
	ingress, egress := r.policyTypes(so)
	in, out := r.kubernetesSection(so, "ingress", "from"), r.kubernetesSection(so, "egress", "to")
	if !ingress && !egress {
		ingress, egress = true, len(out) > 0
	}
	if ingress {
		rule.Ingress.Allow = in
	}
	if egress { // a section whose type is not listed says nothing
		rule.Egress.Allow = out
	}
	so.done()
	p.Rules = []*Rule{rule}
}

// policyTypes tells which directions are listed; none if the field is missing or empty.
func (r *reader) policyTypes(o *object) (ingress, egress bool) {
	v, ok := o.take("policyTypes")
	if !ok {
		return false, false
	}
	list, _ := r.list(v)
	for _, el := range list {
		switch s, ok := r.text(el); {
		case s == "Ingress":
			ingress = true
		case s == "Egress":
			egress = true
		case ok:
			r.fail(el.Node, el.path, "%.40q is unknown; use Ingress or Egress", s)
		}
	}
	return ingress, egress
}

// kubernetesSection reads ingress or egress. The list is never nil: a section that counts isolates, also without rules.
func (r *reader) kubernetesSection(o *object, section, end string) []*Entry {
	out := []*Entry{}
	v, ok := o.take(section)
	if !ok {
		return out
	}
	list, _ := r.list(v)
	for i, el := range list {
		eo, ok := r.object(el)
		if !ok {
			continue
		}
		entry := Entry{Line: r.line(el.Node), Index: i}
		if ports, ok := eo.take("ports"); ok {
			entry.Ports = r.kubernetesPorts(ports)
		}
		var peers value
		if v, ok := eo.take(end); ok {
			peers = v
		}
		eo.done()
		if peers.Node == nil || len(peers.Content) == 0 {
			if peers.Node != nil {
				r.list(peers) // an empty one means the same as none, but it must be a list
			}
			entry.Peers = Peers{Kind: PeersEntities, Entities: []string{"all"}}
			out = append(out, &entry)
			continue
		}
		for _, p := range r.kubernetesPeers(peers) {
			one := entry
			one.Peers = p
			out = append(out, &one)
		}
	}
	return out
}

// kubernetesPeers reads from or to: pods of namespaces, and blocks of addresses.
func (r *reader) kubernetesPeers(v value) (out []Peers) {
	list, _ := r.list(v)
	pods, blocks := Peers{Kind: PeersEndpoints}, Peers{Kind: PeersCIDRSet}
	for _, el := range list {
		o, ok := r.object(el)
		if !ok {
			continue
		}
		block, isBlock := o.take("ipBlock")
		_, byPod := o.fields["podSelector"]
		_, byNamespace := o.fields["namespaceSelector"]
		switch {
		case isBlock && (byPod || byNamespace):
			r.fail(block.Node, block.path, "cannot stand beside a selector; write two elements")
		case isBlock:
			if c, ok := r.ipBlock(block); ok {
				blocks.CIDRs = append(blocks.CIDRs, c)
			}
		case byPod || byNamespace:
			if s, ok := r.namespacedPods(o); ok {
				pods.Endpoints = append(pods.Endpoints, s)
			}
		default:
			r.fail(el.Node, el.path, "names nobody; write podSelector, namespaceSelector or ipBlock")
		}
		o.done()
	}
	if pods.Endpoints != nil {
		out = append(out, pods)
	}
	if blocks.CIDRs != nil {
		out = append(out, blocks)
	}
	return out
}

// namespacedPods reads podSelector and namespaceSelector, which must both fit. Without a namespaceSelector the
// policy's own namespace is meant; the engine adds it.
func (r *reader) namespacedPods(o *object) (s labels.Selector, good bool) {
	good = true
	var reqs []labels.Requirement
	for _, field := range []struct {
		name string
		key  keyReader
	}{{"podSelector", podKey}, {"namespaceSelector", namespaceKey}} {
		_, there := o.fields[field.name]
		if !there {
			continue
		}
		v, ok := o.take(field.name)
		if ok {
			var part labels.Selector
			part, ok = r.selector(v, field.key)
			reqs = append(reqs, part.Requirements()...)
		}
		if good = good && ok; field.name == "namespaceSelector" {
			reqs = append(reqs, inNamespaces())
		}
	}
	s, err := labels.NewSelector(reqs...)
	if err != nil { // each condition was checked before
		r.fail(o.Node, o.path, "%s", err)
		return s, false
	}
	return s, good
}

// ipBlock reads {cidr, except}.
func (r *reader) ipBlock(v value) (CIDR, bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return CIDR{}, false
	}
	var c CIDR
	if b, ok := r.need(o, "cidr"); ok {
		c.Prefix, _ = r.prefix(b, false)
	}
	if x, ok := o.take("except"); ok {
		c.Except = r.excepts(x, c.Prefix)
	}
	o.done()
	return c, len(r.errs) == errs
}

// kubernetesPorts reads a ports list; an empty one means every protocol and port, as none does.
func (r *reader) kubernetesPorts(v value) []Port {
	list, _ := r.list(v)
	if len(list) > maxEntryPorts {
		r.fail(v.Node, v.path, "%d ports; at most %d in one rule, use endPort", len(list), maxEntryPorts)
		return nil
	}
	return append([]Port(nil), each(r, v, r.kubernetesPort)...)
}

// kubernetesPort reads {protocol, port, endPort}.
func (r *reader) kubernetesPort(v value) (Port, bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return Port{}, false
	}
	p := Port{Proto: ProtoTCP, Any: true}
	if s, ok := o.take("protocol"); ok {
		switch name, _ := r.text(s); name {
		case "TCP":
		case "UDP":
			p.Proto = ProtoUDP
		case "SCTP":
			p.Proto = ProtoSCTP
		default:
			r.fail(s.Node, s.path, "protocol %.40q is not supported; use TCP, UDP or SCTP", name)
		}
	}
	if n, ok := o.take("port"); ok {
		p.Any = false
		switch {
		case isPortName(n):
			p.Name = r.podPortName(n)
		case n.Tag == "!!str":
			r.fail(n.Node, n.path, "%s is text, so it would be the name of a port; take the quotes away", describe(n.Node))
		default:
			p.First = r.portNumber(n)
			p.Last = p.First
		}
	}
	if end, ok := o.take("endPort"); ok {
		switch last := r.portNumber(end); {
		case p.First == 0:
			r.fail(end.Node, end.path, "needs a port with a number to start from")
		case last < p.First:
			r.fail(end.Node, end.path, "%d is below port %d", last, p.First)
		default:
			p.Last = last
		}
	}
	o.done()
	return p, len(r.errs) == errs
}

// podPortName reads the name of a port as Kubernetes allows it: lower case.
func (r *reader) podPortName(v value) string {
	s := r.portName(v)
	if s != "" && s != v.Value {
		r.fail(v.Node, v.path, "%.40q: names of ports are lower case", v.Value)
	}
	return s
}

// portNumber reads 1..65535; 0 if it is none.
func (r *reader) portNumber(v value) uint16 {
	n, ok := r.number(v, 65535)
	if ok && n == 0 {
		r.fail(v.Node, v.path, "port 0 is none; take the field out to mean every port")
	}
	return uint16(n)
}

// cidrGroup reads a CiliumCIDRGroup.
func (r *reader) cidrGroup(o *object, p *Policy) {
	o.skip("status")
	p.Group = &CIDRGroup{}
	spec, ok := r.need(o, "spec")
	if !ok {
		return
	}
	so, ok := r.object(spec)
	if !ok {
		return
	}
	if list, ok := so.take("externalCIDRs"); ok {
		p.Group.CIDRs = each(r, list, func(v value) (netip.Prefix, bool) { return r.prefix(v, true) })
	} else if _, null := so.fields["externalCIDRs"]; !null {
		r.fail(so.Node, so.at("externalCIDRs"), "missing; write [] for a group without addresses")
	}
	so.done()
}

// service reads what policies need of a Service.
func (r *reader) service(o *object, p *Policy) {
	p.Service = &Service{}
	o.skip("status")
	spec, ok := o.take("spec")
	if !ok {
		return // a service without a spec means nobody
	}
	so, ok := r.object(spec)
	if !ok {
		return
	}
	selector, selects := so.take("selector")
	kind, typed := so.take("type")
	so.rest()
	name := ""
	if typed {
		name, _ = r.text(kind)
	}
	if !selects || name == "ExternalName" { // Kubernetes ignores the selector of those
		return
	}
	reqs, ok := r.matchLabels(selector, podKey)
	if !ok || len(reqs) == 0 {
		return
	}
	s, err := labels.NewSelector(reqs...)
	if err != nil {
		r.fail(selector.Node, selector.path, "%s", err)
		return
	}
	p.Service.Selector, p.Service.Selects = s, true
}

// Slices say in this label which service they belong to.
const keyServiceName = "kubernetes.io/service-name"

// slice reads what policies need of an EndpointSlice.
func (r *reader) slice(o *object, p *Policy) {
	p.Slice = &Slice{}
	p.Slice.Service, _ = p.Labels.Get(labels.SourceK8s, keyServiceName)
	family := ""
	if v, ok := o.take("addressType"); ok {
		if family, ok = r.text(v); ok && family != "IPv4" && family != "IPv6" && family != "FQDN" {
			r.fail(v.Node, v.path, "%.40q is unknown; use IPv4, IPv6 or FQDN", family)
		}
	} else if _, null := o.fields["addressType"]; !null {
		r.fail(o.Node, o.at("addressType"), "missing; write IPv4, IPv6 or FQDN")
	}
	endpoints, ok := o.take("endpoints")
	o.rest()
	if !ok || family == "FQDN" {
		return // names: nobody's address
	}
	list, _ := r.list(endpoints)
	for _, el := range list {
		eo, ok := r.object(el)
		if !ok {
			continue
		}
		if addresses, ok := eo.take("addresses"); ok {
			p.Slice.Addresses = append(p.Slice.Addresses, each(r, addresses, func(v value) (netip.Addr, bool) { return r.address(v, family) })...)
		}
		eo.rest()
	}
}

// address reads one address of a family.
func (r *reader) address(v value, family string) (netip.Addr, bool) {
	s, ok := r.text(v)
	if !ok {
		return netip.Addr{}, false
	}
	c, ok := r.prefix(v, true)
	if ok && (strings.Contains(s, "/") || c.Addr().Is4() != (family == "IPv4")) {
		r.fail(v.Node, v.path, "%.60q is no %s address", s, family)
		return netip.Addr{}, false
	}
	return c.Addr(), ok
}
