package policy

import "slices"

// ruleList is a set of rules under construction: the sum of their ids names it whatever the order.
type ruleList struct {
	sum uint64
	n   int
}

func (l *ruleList) add(id uint64)    { l.sum += mix(id); l.n++ }
func (l *ruleList) remove(id uint64) { l.sum -= mix(id); l.n-- }

// mix spreads an id over all bits, so that sums of ids that differ little differ much.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// cookie folds the list into 32 bits, never 0.
func (l ruleList) cookie() Cookie {
	x := mix(l.sum ^ uint64(l.n)<<48)
	c := Cookie(x ^ x>>32)
	if c == 0 {
		c = 1
	}
	return c
}

// cookies remembers which rules a cookie stands for. Two lists may share a cookie, one pair in 2^32: then both are
// shown. So a cookie depends on its rules alone, and neither order nor restarts change it.
type cookies struct {
	lists map[Cookie][]ruleSet
	refs  map[uint64]RuleRef // newest by id; deleted rules stay while a list names them
}

type ruleSet struct {
	sum uint64
	ids []uint64
	old bool // nobody used it at the last sweep
}

// known tells whether the list is remembered.
func (c *cookies) known(l ruleList) bool {
	for _, s := range c.lists[l.cookie()] {
		if s.sum == l.sum {
			return true
		}
	}
	return false
}

// remember keeps a list under its cookie.
func (c *cookies) remember(l ruleList, ids []uint64) {
	k := l.cookie()
	c.lists[k] = append(c.lists[k], ruleSet{sum: l.sum, ids: ids})
}

// explain returns the rules that the cookie stands for, in order.
func (c *cookies) explain(k Cookie) []RuleRef {
	var out []RuleRef
	for _, s := range c.lists[k] {
		for _, id := range s.ids {
			out = append(out, c.refs[id])
		}
	}
	slices.SortFunc(out, compareRefs)
	return slices.CompactFunc(out, func(a, b RuleRef) bool { return compareRefs(a, b) == 0 })
}

// sweep forgets lists that nobody used at this and the previous sweep: events on their way may still name the others.
// It then forgets the rules that are in no list and not in live.
func (c *cookies) sweep(used map[Cookie]bool, live map[uint64]bool) {
	for k, sets := range c.lists {
		if used[k] {
			for i := range sets {
				sets[i].old = false
			}
			continue
		}
		kept := sets[:0]
		for _, s := range sets {
			if !s.old {
				s.old = true
				kept = append(kept, s)
			}
		}
		if len(kept) == 0 {
			delete(c.lists, k)
		} else {
			c.lists[k] = kept
		}
	}
	for _, sets := range c.lists {
		for _, set := range sets {
			for _, id := range set.ids {
				live[id] = true
			}
		}
	}
	for id := range c.refs {
		if !live[id] {
			delete(c.refs, id)
		}
	}
}
