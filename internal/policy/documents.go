package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"porin/internal/labels"
)

// documents is what rules refer to: groups of blocks, services and the slices behind them.
type documents struct {
	groups   map[string]*Policy // CIDR groups by name
	byName   map[named]*Policy  // services
	slices   map[named][]*Policy
	waiting  map[reference]map[Ref]bool // policies that refer to something, whether or not it is there
	waitedOn map[Ref][]reference
}

type named struct{ namespace, name string }

// reference is what a rule refers to: one object by name, or with an empty name all of a kind by their labels.
type reference struct {
	kind string
	named
}

func newDocuments() documents {
	return documents{
		groups: map[string]*Policy{}, byName: map[named]*Policy{}, slices: map[named][]*Policy{},
		waiting: map[reference]map[Ref]bool{}, waitedOn: map[Ref][]reference{},
	}
}

// put takes p in, if rules can refer to it; an older one goes. It returns what changes for rules.
func (d *documents) put(p, old *Policy) []reference {
	out := d.remove(old)
	switch {
	case p.Group != nil:
		d.groups[p.Name] = p
	case p.Service != nil:
		d.byName[named{p.Namespace, p.Name}] = p
	case p.Slice != nil:
		at := named{p.Namespace, p.Slice.Service}
		list := append(d.slices[at], p)
		slices.SortFunc(list, func(a, b *Policy) int { return strings.Compare(a.Name, b.Name) })
		d.slices[at] = list
	}
	return append(out, p.references()...)
}

func (d *documents) remove(old *Policy) []reference {
	switch {
	case old == nil:
		return nil
	case old.Group != nil:
		delete(d.groups, old.Name)
	case old.Service != nil:
		delete(d.byName, named{old.Namespace, old.Name})
	case old.Slice != nil:
		at := named{old.Namespace, old.Slice.Service}
		if d.slices[at] = slices.DeleteFunc(d.slices[at], func(p *Policy) bool { return p.Ref == old.Ref }); len(d.slices[at]) == 0 {
			delete(d.slices, at)
		}
	}
	return old.references()
}

// references returns the ways in which rules can refer to p.
func (p *Policy) references() []reference {
	switch {
	case p.Group != nil:
		return []reference{{KindCIDRGroup, named{"", p.Name}}, {kind: KindCIDRGroup}}
	case p.Service != nil:
		return []reference{{KindService, named{p.Namespace, p.Name}}, {KindService, named{p.Namespace, ""}}, {kind: KindService}}
	case p.Slice != nil:
		return []reference{{KindService, named{p.Namespace, p.Slice.Service}}, {KindService, named{p.Namespace, ""}}, {kind: KindService}}
	}
	return nil
}

// await remembers what p's rules refer to; nil forgets it.
func (d *documents) await(ref Ref, p *Policy) {
	for _, r := range d.waitedOn[ref] {
		if delete(d.waiting[r], ref); len(d.waiting[r]) == 0 {
			delete(d.waiting, r)
		}
	}
	delete(d.waitedOn, ref)
	if p == nil {
		return
	}
	var refs []reference
	p.eachEntry(func(e *Entry) {
		for _, c := range e.Peers.CIDRs {
			if c.Group != "" || c.GroupSelector != nil {
				refs = append(refs, reference{KindCIDRGroup, named{"", c.Group}})
			}
		}
		for _, s := range e.Peers.Services {
			refs = append(refs, reference{KindService, named{s.Namespace, s.Name}})
		}
	})
	for _, r := range refs {
		if d.waiting[r] == nil {
			d.waiting[r] = map[Ref]bool{}
		}
		d.waiting[r][ref] = true
	}
	if len(refs) > 0 {
		d.waitedOn[ref] = refs
	}
}

// eachEntry calls f for every entry of p.
func (p *Policy) eachEntry(f func(*Entry)) {
	for _, r := range p.Rules {
		for _, sec := range []*Section{&r.Ingress, &r.Egress} {
			for _, list := range [][]*Entry{sec.Allow, sec.Deny, sec.Pass} {
				for _, entry := range list {
					f(entry)
				}
			}
		}
	}
}

// blocks returns the blocks that list stands for, those of groups spelled out. A group that is missing or empty stands
// for none.
func (d *documents) blocks(list []CIDR) []CIDR {
	var out []CIDR
	group := func(p *Policy, c CIDR) {
		for _, b := range p.Group.CIDRs {
			one := CIDR{Prefix: b.Masked()}
			for _, x := range c.Except { // others do not matter
				if x.Overlaps(b) {
					one.Except = append(one.Except, x)
				}
			}
			out = append(out, one)
		}
	}
	for _, c := range list {
		switch {
		case c.GroupSelector != nil:
			for _, p := range d.groups {
				if c.GroupSelector.Matches(p.Labels) {
					group(p, c)
				}
			}
		case c.Group != "":
			if p := d.groups[c.Group]; p != nil {
				group(p, c)
			}
		default:
			out = append(out, c)
		}
	}
	return out
}

// services returns whom the services mean: the workloads that their selectors select, in their own namespace, or the
// addresses in the slices of those without a selector. A service that is missing means nobody.
func (e *Engine) services(list []ServicePeer) []*selection {
	var out []*selection
	e.docs.eachService(list, func(p *Policy) {
		if p.Service.selects() {
			want := e.ours(workloadSelector(p.Service.Selector, p.Namespace))
			out = append(out, &selection{key: want.key(), want: want})
			return
		}
		for _, b := range e.docs.backends(p) {
			c := CIDR{Prefix: b}
			out = append(out, &selection{key: "cidr " + c.String(), cidr: c})
		}
	})
	return out
}

func (s *Service) selects() bool { return s.Selects && len(s.Selector.Requirements()) > 0 }

func (d *documents) eachService(list []ServicePeer, f func(*Policy)) {
	for _, s := range list {
		if s.Selector == nil {
			if p := d.byName[named{s.Namespace, s.Name}]; p != nil {
				f(p)
			}
			continue
		}
		for at, p := range d.byName {
			if (s.Namespace == "" || s.Namespace == at.namespace) && s.Selector.Matches(p.Labels) {
				f(p)
			}
		}
	}
}

// backends returns the addresses in a service's slices.
func (d *documents) backends(service *Policy) (out []netip.Prefix) {
	for _, p := range d.slices[named{service.Namespace, service.Name}] {
		for _, a := range p.Slice.Addresses {
			a = a.Unmap().WithZone("")
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// workloadSelector is a service's selector: labels of workloads of one namespace, whatever source it names.
func workloadSelector(s labels.Selector, namespace string) selector {
	var reqs []labels.Requirement
	for _, q := range s.Requirements() {
		q.Source = labels.SourceK8s
		reqs = append(reqs, q)
	}
	only, err := labels.NewSelector(reqs...)
	if err != nil {
		return selector{Selector: nobody(), among: workloads}
	}
	return scope(only, namespace, true)
}

// CIDRs returns every block that the rules of ps name, excepts included, each once; ps must hold the groups, services
// and slices that they refer to. Each block needs an identity before ps come into force: one without is judged as the
// bigger block around it.
func (e *Engine) CIDRs(ps []*Policy) []netip.Prefix {
	d := newDocuments()
	for _, p := range ps {
		d.put(p, nil)
	}
	var out []netip.Prefix
	for _, p := range ps {
		p.eachEntry(func(entry *Entry) {
			for _, c := range d.blocks(entry.Peers.CIDRs) {
				out = append(append(out, c.Prefix), c.Except...)
			}
			d.eachService(entry.Peers.Services, func(p *Policy) {
				if !p.Service.selects() {
					out = append(out, d.backends(p)...)
				}
			})
		})
	}
	slices.SortFunc(out, comparePrefix)
	return slices.Compact(out)
}

// key is how the identities of addresses that the name has are labelled.
func (f FQDN) key() string { return cmp.Or(f.Name, f.Pattern) }

// FQDNs returns every name and pattern that ps name as peers, each once.
func (e *Engine) FQDNs(ps []*Policy) []FQDN {
	var out []FQDN
	for _, p := range ps {
		p.eachEntry(func(entry *Entry) { out = append(out, entry.Peers.FQDNs...) })
	}
	slices.SortFunc(out, func(a, b FQDN) int { return strings.Compare(a.Name+" "+a.Pattern, b.Name+" "+b.Pattern) })
	return slices.Compact(out)
}
