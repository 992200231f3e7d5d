package node

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ranges says which node owns which pod range and which underlay address. Ranges of different owners never overlap.
type ranges struct {
	owned []ownedRange // by address
	hosts map[netip.Addr]*owner
}

type ownedRange struct {
	prefix netip.Prefix
	owner  *owner
}

// arbitrate gives every range to one node: this node has its own whatever others say (its workloads are there), then
// nodes that have a record before nodes whose record lapsed, then who claimed first. It returns the nodes whose
// accepted ranges or standing changed.
func arbitrate(self Node, owners map[string]*owner, family Family) (changed []*owner) {
	list := make([]*owner, 0, len(owners))
	for _, o := range owners {
		if o.known {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b *owner) int {
		return cmp.Or(order(a.lapsed(), b.lapsed()), cmp.Compare(a.node.Generation, b.node.Generation), strings.Compare(a.key, b.key))
	})
	r := ranges{hosts: map[netip.Addr]*owner{}}
	own := &owner{key: self.Key(), node: self}
	for _, p := range self.PodCIDRs {
		r.claim(p, own)
	}
	for _, a := range self.Addresses {
		r.hosts[a] = own
	}
	for _, o := range list {
		ok, lost := r.admit(o)
		if _, to := Underlay(self.Addresses, o.node.Addresses, family); lost == "" && !to.IsValid() {
			ok, lost = nil, fmt.Sprintf("it has underlay addresses %v, this node has %v: none of a family that both may use", o.node.Addresses, self.Addresses)
		}
		if !slices.Equal(ok, o.ranges) || lost != o.refused {
			o.ranges, o.refused = ok, lost
			changed = append(changed, o)
		}
	}
	return changed
}

// order puts false before true.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// admit takes o in with the ranges that nobody has yet, and says why the rest was refused.
func (r *ranges) admit(o *owner) (ok []netip.Prefix, refused string) {
	if o.bad != "" {
		return nil, o.bad
	}
	for _, a := range o.node.Addresses {
		if other := r.hosts[a]; other != nil {
			return nil, fmt.Sprintf("underlay address %s is that of %s: give one of the two another address, or remove the record of the one that is no more", a, other.key)
		}
	}
	var lost []string
	for _, p := range o.node.PodCIDRs {
		if other := r.claim(p, o); other != nil && other != o {
			lost = append(lost, fmt.Sprintf("pod range %s overlaps with that of %s: give one of the two another range", p, other.key))
			continue
		}
		ok = append(ok, p)
	}
	for _, a := range o.node.Addresses {
		if in := r.find(netip.PrefixFrom(a, a.BitLen())); in != nil {
			lost = append(lost, fmt.Sprintf("underlay address %s is in a pod range of %s", a, in.key))
			return nil, strings.Join(lost, "; ")
		}
	}
	for _, a := range o.node.Addresses {
		r.hosts[a] = o
	}
	return ok, strings.Join(lost, "; ")
}

// claim gives p to o unless a range that overlaps has an owner, which is returned then.
func (r *ranges) claim(p netip.Prefix, o *owner) *owner {
	if other := r.find(p); other != nil {
		return other
	}
	i, _ := slices.BinarySearchFunc(r.owned, p, byAddress)
	r.owned = slices.Insert(r.owned, i, ownedRange{p, o})
	return nil
}

// find returns the owner of a range that overlaps with p. Owned ranges do not overlap, so only the two neighbours can.
func (r *ranges) find(p netip.Prefix) *owner {
	i, _ := slices.BinarySearchFunc(r.owned, p, byAddress)
	for _, j := range []int{i - 1, i} {
		if j >= 0 && j < len(r.owned) && r.owned[j].prefix.Overlaps(p) {
			return r.owned[j].owner
		}
	}
	return nil
}

func byAddress(o ownedRange, p netip.Prefix) int { return o.prefix.Addr().Compare(p.Addr()) }
