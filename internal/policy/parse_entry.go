package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"porin/internal/labels"
)

// The reference takes at most 40 ports in one ports list and 40 fields in one icmps element.
const maxPorts = 40

// entry reads one element of ingress, egress, ingressDeny or egressDeny; prefix is "from" or "to".
func (r *reader) entry(v value, prefix string, deny bool, p *Policy) *Entry {
	e := &Entry{Line: r.line(v.Node)}
	o, ok := r.object(v)
	if !ok {
		return e
	}
	r.peers(o, prefix, p, e)
	ports, hasPorts := o.take("toPorts")
	icmps, hasICMP := o.take("icmps")
	switch {
	case hasPorts && hasICMP:
		r.fail(icmps.Node, icmps.path, "cannot stand beside toPorts in one entry; write two entries")
	case hasPorts:
		e.Ports = r.toPorts(ports)
	case hasICMP:
		e.Ports = r.icmps(icmps)
	}
	o.refuse("toFQDNs", "toServices", "fromGroups", "toGroups", "fromNodes", "toNodes", "fromRequires", "toRequires")
	r.authentication(o, deny)
	o.done()
	if deny && e.selectsNothing() && len(o.order) == 0 {
		r.fail(v.Node, v.path, "an entry without peers and ports selects nothing; to deny everyone write %sEntities: [all]", prefix)
	}
	return e
}

// authentication is accepted where it demands nothing.
func (r *reader) authentication(o *object, deny bool) {
	v, ok := o.take("authentication")
	if !ok {
		return
	}
	if deny {
		r.fail(v.Node, v.path, "not allowed in a deny rule")
		return
	}
	a, ok := r.object(v)
	if !ok {
		return
	}
	if mode, ok := a.take("mode"); !ok {
		r.fail(v.Node, v.at("mode"), "missing")
	} else if s, ok := r.text(mode); ok && s != "disabled" {
		r.fail(mode.Node, mode.path, "%q is not supported yet; the whole document is refused, since a policy without it would allow more", s)
	}
	a.done()
}

// peers reads the one field of o that names peers.
func (r *reader) peers(o *object, prefix string, p *Policy, e *Entry) {
	kinds := []struct {
		name string
		kind PeerKind
		read func(value) // one element
	}{
		{"Endpoints", PeersEndpoints, func(v value) {
			s, ok := r.selector(v)
			if !ok {
				return
			}
			r.checkSources(v, s)
			e.Peers.Endpoints = append(e.Peers.Endpoints, s)
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
	}
	first := ""
	for _, k := range kinds {
		name := prefix + k.name
		v, ok := o.take(name)
		if !ok {
			continue
		}
		if first != "" {
			r.fail(v.Node, v.path, "cannot stand beside %s in one entry; write two entries", first)
			continue
		}
		first, e.Peers.Kind = name, k.kind
		list, _ := r.list(v)
		for _, el := range list {
			k.read(el)
		}
	}
}

// selector reads a Kubernetes label selector whose keys may carry a source.
func (r *reader) selector(v value) (labels.Selector, bool) {
	o, ok := r.object(v)
	if !ok {
		return labels.Selector{}, false
	}
	var reqs []labels.Requirement
	good := true
	add := func(v value, key string, req labels.Requirement) {
		var err error
		if req.Source, req.Key, err = labels.ParseSelectorKey(key); err == nil {
			req = trust(req)
			_, err = labels.NewSelector(req)
		}
		if err != nil {
			r.fail(v.Node, v.path, "%s", err)
			good = false
			return
		}
		reqs = append(reqs, req)
	}
	if m, ok := o.take("matchLabels"); ok {
		mo, isMap := r.object(m)
		good = good && isMap
		for isMap && len(mo.order) > 0 {
			key := mo.order[0]
			mo.order = mo.order[1:]
			val, ok := mo.take(key)
			if !ok {
				good = false
				continue
			}
			text, ok := r.text(val)
			good = good && ok
			if ok {
				add(val, key, labels.Requirement{Operator: labels.In, Values: []string{text}})
			}
		}
	}
	if m, ok := o.take("matchExpressions"); ok {
		list, isList := r.list(m)
		good = good && isList
		for _, e := range list {
			eo, ok := r.object(e)
			if !ok {
				good = false
				continue
			}
			var req labels.Requirement
			var key string
			if k, ok := eo.take("key"); ok {
				key, _ = r.text(k)
			}
			if op, ok := eo.take("operator"); ok {
				s, _ := r.text(op)
				req.Operator = labels.Operator(s)
			}
			if vs, ok := eo.take("values"); ok {
				list, _ := r.list(vs)
				for _, el := range list {
					if s, ok := r.text(el); ok {
						req.Values = append(req.Values, s)
					}
				}
			}
			eo.done()
			add(e, key, req)
		}
	}
	o.done()
	s, err := labels.NewSelector(reqs...)
	if err != nil {
		r.fail(v.Node, v.path, "%s", err)
		return s, false
	}
	return s, good
}

// trust binds keys that say where a workload lives to the source that only porin writes: a label of another source
// with the same key must not be taken for it.
func trust(req labels.Requirement) labels.Requirement {
	if req.Source == "" && labels.IsTrusted(req.Key) {
		req.Source = labels.SourceK8s
	}
	return req
}

func (r *reader) checkSources(v value, s labels.Selector) {
	for _, q := range s.Requirements() {
		switch q.Source {
		case labels.SourceCIDR, labels.SourceFQDN, labels.SourceCIDRGroup, labels.SourceNode:
			r.fail(v.Node, v.path, "labels of source %s cannot be selected; use the CIDR fields or entities", q.Source)
		}
	}
}

// checkSubject refuses selectors that could reach beyond what the document may govern.
func (r *reader) checkSubject(v value, p *Policy, s labels.Selector) {
	r.checkSources(v, s)
	if p.Namespace == "" {
		return
	}
	for _, q := range s.Requirements() {
		switch {
		case q.Source == labels.SourceReserved:
			r.fail(v.Node, v.path, "%s:%s is in no namespace; use a %s", q.Source, q.Key, KindClusterwideNetworkPolicy)
		case q.Key == labels.KeyNamespace && !q.Matches(labels.Labels{{Source: labels.SourceK8s, Key: labels.KeyNamespace, Value: p.Namespace}}):
			r.fail(v.Node, v.path, "%q excludes the policy's own namespace %q; a %s applies in its namespace only", q, p.Namespace, p.Kind)
		}
	}
}

// prefix reads addr/len, or a plain address if bare. Bits behind the length are cut off.
func (r *reader) prefix(v value, bare bool) (netip.Prefix, bool) {
	s, ok := r.text(v)
	if !ok {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(s)
	if err != nil && bare && !strings.Contains(s, "%") { // a zone would be lost
		var a netip.Addr
		if a, err = netip.ParseAddr(s); err == nil {
			p = netip.PrefixFrom(a, a.BitLen())
		}
	}
	switch {
	case err != nil:
		r.fail(v.Node, v.path, "%.60q is no CIDR; write address/length, like 10.0.0.0/8 or fd00::/64", s)
	case p.Addr().Is4In6():
		r.fail(v.Node, v.path, "%.60q: write IPv4 blocks in IPv4 notation", s)
	default:
		return p.Masked(), true
	}
	return netip.Prefix{}, false
}

// cidr reads an element of fromCIDRSet or toCIDRSet.
func (r *reader) cidr(v value) (CIDR, bool) {
	o, ok := r.object(v)
	if !ok {
		return CIDR{}, false
	}
	o.refuse("cidrGroupRef", "cidrGroupSelector")
	var c CIDR
	block, good := o.take("cidr")
	if good {
		c.Prefix, good = r.prefix(block, false)
	} else if o.fields["cidrGroupRef"].key == nil && o.fields["cidrGroupSelector"].key == nil {
		r.fail(v.Node, v.at("cidr"), "missing")
	}
	if except, ok := o.take("except"); ok {
		list, _ := r.list(except)
		for _, e := range list {
			p, ok := r.prefix(e, false)
			if !ok || !good {
				continue
			}
			if p.Bits() < c.Prefix.Bits() || !c.Prefix.Contains(p.Addr()) {
				r.fail(e.Node, e.path, "%s is not inside %s", p, c.Prefix)
				continue
			}
			c.Except = append(c.Except, p)
		}
	}
	o.done()
	slices.SortFunc(c.Except, comparePrefix)
	c.Except = slices.Compact(c.Except)
	return c, good
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// toPorts reads all ports lists of an entry. Empty lists are refused: in the reference they mean sometimes all ports
// and sometimes none.
func (r *reader) toPorts(v value) []Port {
	list, ok := r.list(v)
	if ok && len(v.Content) == 0 {
		r.fail(v.Node, v.path, "the list is empty; take the field out to mean every port")
	}
	out := []Port{}
	for _, e := range list {
		o, ok := r.object(e)
		if !ok {
			continue
		}
		o.refuse("rules", "listener", "serverNames", "terminatingTLS", "originatingTLS")
		ports, ok := o.take("ports")
		if !ok {
			r.fail(e.Node, e.at("ports"), "missing; take toPorts out to mean every port")
			continue
		}
		pl, ok := r.list(ports)
		if ok && len(ports.Content) == 0 {
			r.fail(ports.Node, ports.path, "the list is empty; take toPorts out to mean every port")
		}
		if len(pl) > maxPorts {
			r.fail(ports.Node, ports.path, "%d ports; at most %d in one list, write several toPorts elements", len(pl), maxPorts)
		}
		for _, p := range pl {
			if port, ok := r.port(p); ok {
				out = append(out, port)
			}
		}
		o.done()
	}
	return out
}

// protocolName returns the word for p's protocol.
func protocolName(p Port) string {
	switch p.Proto {
	case ProtoTCP:
		return "TCP"
	case ProtoUDP:
		return "UDP"
	case ProtoSCTP:
		return "SCTP"
	case ProtoICMP:
		return "ICMP"
	case ProtoICMPv6:
		return "ICMPV6"
	}
	return "ANY"
}

// port reads {port, endPort, protocol}.
func (r *reader) port(v value) (Port, bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return Port{}, false
	}
	p := Port{Any: true, AnyProto: true}
	number, numbered := o.take("port")
	if numbered {
		if n, ok := r.portNumber(number); ok && n > 0 {
			p.Any, p.First, p.Last = false, uint16(n), uint16(n)
		}
	}
	end, ok := o.take("endPort")
	if ok {
		if n, ok := r.number(end, 65535); ok && n > 0 {
			switch {
			case p.Any:
				r.fail(end.Node, end.path, "needs a port above 0 to start from")
			case uint16(n) < p.First:
				r.fail(end.Node, end.path, "%d is below port %d", n, p.First)
			}
			p.Last = uint16(n)
		}
	}
	protocol, named := o.take("protocol")
	if named {
		s, _ := r.text(protocol)
		for _, n := range []uint8{ProtoTCP, ProtoUDP, ProtoSCTP, ProtoICMP, ProtoICMPv6} {
			if protocolName(Port{Proto: n}) == strings.ToUpper(s) {
				p.Proto, p.AnyProto = n, false
			}
		}
		if p.AnyProto && strings.ToUpper(s) != "ANY" {
			r.fail(protocol.Node, protocol.path, "protocol %.40q is not supported; use TCP, UDP, SCTP, ICMP, ICMPV6 or ANY", s)
		}
	}
	if !numbered && !named {
		r.fail(v.Node, v.at("port"), "missing; write a port, a protocol or both")
	}
	if p.Last > 255 && (p.Proto == ProtoICMP || p.Proto == ProtoICMPv6) {
		r.fail(v.Node, v.at("port"), "the port of ICMP is its type, at most 255")
	}
	o.done()
	return p, len(r.errs) == errs
}

// portNumber reads a port, written as text or as a number.
func (r *reader) portNumber(v value) (int, bool) {
	if v.Kind == yaml.ScalarNode && v.Tag == "!!str" && v.Value != "" && strings.Trim(v.Value, "0123456789") != "" {
		r.fail(v.Node, v.path, "%.40q: named ports are not supported yet; write the number", v.Value)
		return 0, false
	}
	return r.number(v, 65535)
}

// number reads 0..limit in decimal, as text or as a number.
func (r *reader) number(v value, limit int) (int, bool) {
	if v.Kind == yaml.ScalarNode && (v.Tag == "!!str" || v.Tag == "!!int") {
		n, err := strconv.Atoi(v.Value)
		if err == nil && n >= 0 && n <= limit && strconv.Itoa(n) == v.Value {
			return n, true
		}
	}
	r.fail(v.Node, v.path, "%s where a number from 0 to %d is expected", describe(v.Node), limit)
	return 0, false
}

func (c CIDR) String() string {
	if len(c.Except) == 0 {
		return c.Prefix.String()
	}
	return fmt.Sprintf("%s except %v", c.Prefix, c.Except)
}
