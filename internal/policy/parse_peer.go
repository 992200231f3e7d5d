package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

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
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return CIDR{}, false
	}
	var c CIDR
	given := ""
	for _, name := range []string{"cidr", "cidrGroupRef", "cidrGroupSelector"} {
		if _, ok := o.fields[name]; !ok {
			continue
		}
		if given != "" {
			r.fail(o.fields[name].key, v.at(name), "cannot stand beside %s; write two elements", given)
		}
		given = name
		field, ok := o.take(name)
		if !ok {
			continue
		}
		switch name {
		case "cidr":
			c.Prefix, _ = r.prefix(field, false)
		case "cidrGroupRef":
			c.Group, _ = r.objectName(field, KindCIDRGroup)
		case "cidrGroupSelector":
			if s, ok := r.selector(field, groupKey); ok {
				c.GroupSelector = &s
			}
		}
	}
	if given == "" {
		r.fail(v.Node, v.at("cidr"), "missing; write cidr, cidrGroupRef or cidrGroupSelector")
	}
	if except, ok := o.take("except"); ok {
		c.Except = r.excepts(except, c.Prefix)
	}
	o.done()
	return c, len(r.errs) == errs
}

// excepts reads the blocks that are not meant. Those of a group need not be inside of its blocks: the group may change.
func (r *reader) excepts(v value, outer netip.Prefix) (out []netip.Prefix) {
	list, _ := r.list(v)
	for _, e := range list {
		p, ok := r.prefix(e, false)
		if !ok {
			continue
		}
		if outer.IsValid() && !covers(outer, p) {
			r.fail(e.Node, e.path, "%s is not inside %s", p, outer)
			continue
		}
		out = append(out, p)
	}
	slices.SortFunc(out, comparePrefix)
	return slices.Compact(out)
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func (c CIDR) String() string {
	s := c.Prefix.String()
	switch {
	case c.Group != "":
		s = "group " + c.Group
	case c.GroupSelector != nil:
		s = "groups with " + cmp.Or(c.GroupSelector.String(), "any labels")
	}
	if len(c.Except) == 0 {
		return s
	}
	return fmt.Sprintf("%s except %v", s, c.Except)
}

// objectName reads the name of another document.
func (r *reader) objectName(v value, kind string) (string, bool) {
	s, ok := r.text(v)
	if ok && !isName(s) {
		r.fail(v.Node, v.path, "%.80q is no name of a %s; use lower-case letters, digits, '-' and '.', at most 253", s, kind)
		return "", false
	}
	return s, ok
}

// servicePeer reads an element of toServices.
func (r *reader) servicePeer(v value, p *Policy) (s ServicePeer, ok bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return s, false
	}
	byName, named := o.take("k8sService")
	bySelector, selected := o.take("k8sServiceSelector")
	switch {
	case named && selected:
		r.fail(bySelector.Node, bySelector.path, "cannot stand beside k8sService; write two elements")
	case named:
		if so, ok := r.object(byName); ok {
			s.Namespace = p.Namespace
			if n, ok := so.take("serviceName"); ok {
				s.Name, _ = r.objectName(n, KindService)
			} else {
				r.fail(byName.Node, byName.at("serviceName"), "missing")
			}
			if n, ok := so.take("namespace"); ok {
				s.Namespace, _ = r.namespace(n)
			} else if p.Namespace == "" {
				r.fail(byName.Node, byName.at("namespace"), "missing; a %s has no namespace of its own", p.Kind)
			}
			so.done()
		}
	case selected:
		if so, ok := r.object(bySelector); ok {
			if sel, ok := so.take("selector"); ok {
				if got, ok := r.selector(sel, serviceKey); ok {
					s.Selector = &got
				}
			} else {
				r.fail(bySelector.Node, bySelector.at("selector"), "missing; write {} for every service")
			}
			if n, ok := so.take("namespace"); ok {
				s.Namespace, _ = r.namespace(n)
			}
			so.done()
		}
	default:
		r.fail(v.Node, v.at("k8sService"), "missing; write k8sService or k8sServiceSelector")
	}
	o.done()
	return s, len(r.errs) == errs
}

// fqdn reads {matchName} or {matchPattern}, of toFQDNs and of DNS rules.
func (r *reader) fqdn(v value) (f FQDN, ok bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return f, false
	}
	name, named := o.take("matchName")
	pattern, patterned := o.take("matchPattern")
	switch {
	case named && patterned:
		r.fail(pattern.Node, pattern.path, "cannot stand beside matchName; write two elements")
	case named:
		f.Name, _ = r.dnsName(name)
	case patterned:
		f.Pattern, _ = r.dnsPattern(pattern)
	default:
		r.fail(v.Node, v.at("matchName"), "missing; write matchName or matchPattern")
	}
	o.done()
	return f, len(r.errs) == errs
}

const dnsLetters = "abcdefghijklmnopqrstuvwxyz0123456789-_"

// dnsName reads one DNS name: lower case, with the final dot.
func (r *reader) dnsName(v value) (string, bool) {
	s, ok := r.text(v)
	if !ok {
		return "", false
	}
	name := strings.ToLower(s)
	if !strings.HasSuffix(name, ".") {
		name += "."
	}
	if s != "." && !isDNS(name, dnsLetters) {
		r.fail(v.Node, v.path, "%.80q is no DNS name; use letters, digits, '-' and '_' between dots, at most 63 in a label and 253 in all", s)
		return "", false
	}
	return name, true
}

// dnsPattern reads a pattern of DNS names: lower case, with the final dot unless it is "*", every name there is.
func (r *reader) dnsPattern(v value) (string, bool) {
	s, ok := r.text(v)
	if !ok || s == "*" {
		return s, ok
	}
	pattern := strings.ToLower(s)
	if !strings.HasSuffix(pattern, ".") {
		pattern += "."
	}
	rest, deep := strings.CutPrefix(pattern, "**.")
	for strings.Contains(rest, "**") {
		rest = strings.ReplaceAll(rest, "**", "*") // any number of characters, twice
	}
	if !isDNS(rest, dnsLetters+"*") {
		r.fail(v.Node, v.path, "%.80q is no pattern of DNS names; use letters, digits, '-', '_' and '*' between dots, \"**.\" at its start for one label or more, or \"*\" alone for every name", s)
		return "", false
	}
	if deep {
		rest = "**." + rest
	}
	return rest, true
}

// isDNS tells whether s, which ends with a dot, is labels of these letters.
func isDNS(s, letters string) bool {
	if len(s) > 254 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, letters) != "" {
			return false
		}
	}
	return true
}
