package policy

import (
	"slices"

	"github.com/gaissmai/bart"

	"porin/internal/identity"
	"porin/internal/labels"
)

// people are the known identities. Selections name them by slot, a small number that is used again once free; the
// indexes tell which of them a new selection may hold without asking each.
type people struct {
	slots   []slot
	slotOf  map[identity.ID]int32
	free    []int32
	byLabel map[anchor][]int32   // slots by label, ascending
	blocks  *bart.Table[[]int32] // slots by the addresses they stand for
}

type slot struct {
	identity.Identity
	live bool
}

func newPeople() people {
	return people{slotOf: map[identity.ID]int32{}, byLabel: map[anchor][]int32{}, blocks: &bart.Table[[]int32]{}}
}

// grow makes room for n more.
func (p *people) grow(n int) { p.slots = slices.Grow(p.slots, max(0, n-len(p.free))) }

func (p *people) add(i *identity.Identity, cfg *Config) int32 {
	var n int32
	if len(p.free) > 0 {
		n = p.free[len(p.free)-1]
		p.free = p.free[:len(p.free)-1]
	} else {
		n = int32(len(p.slots))
		p.slots = append(p.slots, slot{})
	}
	p.slots[n] = slot{*i, true}
	p.slotOf[i.ID] = n
	for _, l := range i.Labels {
		a := anchor{key: l.Key, value: l.Value}
		p.byLabel[a] = with(p.byLabel[a], n)
	}
	for _, b := range outside(i, cfg) {
		slots, _ := p.blocks.Get(b)
		p.blocks.Insert(b, with(slots, n))
	}
	return n
}

func (p *people) remove(n int32, cfg *Config) {
	i := &p.slots[n].Identity
	for _, l := range i.Labels {
		a := anchor{key: l.Key, value: l.Value}
		if rest := less(p.byLabel[a], n); len(rest) == 0 {
			delete(p.byLabel, a)
		} else {
			p.byLabel[a] = rest
		}
	}
	for _, b := range outside(i, cfg) {
		slots, _ := p.blocks.Get(b)
		if slots = less(slots, n); len(slots) == 0 {
			p.blocks.Delete(b)
		} else {
			p.blocks.Insert(b, slots)
		}
	}
	delete(p.slotOf, i.ID)
	p.slots[n] = slot{}
	p.free = append(p.free, n)
}

// with and less change an ascending list; one slot is there at most once.
func with(list []int32, n int32) []int32 {
	at, have := slices.BinarySearch(list, n)
	if have {
		return list
	}
	return slices.Insert(list, at, n)
}

func less(list []int32, n int32) []int32 {
	if at, have := slices.BinarySearch(list, n); have {
		return slices.Delete(list, at, at+1)
	}
	return list
}

// members returns the slots that s holds, ascending.
func (p *people) members(s *selection, cfg *Config) []int32 {
	var out []int32
	try := func(slots []int32) {
		for _, n := range slots {
			if p.slots[n].live && s.matches(&p.slots[n].Identity, cfg) {
				out = append(out, n)
			}
		}
	}
	switch {
	case s.cidr.Prefix.IsValid():
		for _, slots := range p.blocks.Subnets(s.cidr.Prefix) {
			try(slots)
		}
	case s.fqdn != "":
		try(p.byLabel[anchor{key: s.fqdn}])
	default:
		if s.entity == "" {
			at, reqs := rarest(s.want.Selector, func(a anchor) int { return len(p.byLabel[a]) }), s.want.Requirements()
			if at >= 0 && reqs[at].Operator == labels.In {
				eachAnchor(&reqs[at], func(a anchor) { try(p.byLabel[a]) })
				break
			}
		}
		for n := range p.slots {
			if p.slots[n].live && s.matches(&p.slots[n].Identity, cfg) {
				out = append(out, int32(n))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out) // one identity may come by several labels or blocks
}
