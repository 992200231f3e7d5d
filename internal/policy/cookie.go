package policy

import (
	"fmt"
	"slices"
)

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
	return max(Cookie(x^x>>32), 1)
}

// maxNamed is how many rules of a list are remembered. Ten thousand rules that overlap differently at each port would be lists
// of 400 MB.
const maxNamed = 256

// cookies remembers which rules a cookie stands for. Two lists may share a cookie, one pair in 2^32: then both are
// shown. So a cookie depends on its rules alone, and neither order nor restarts change it.
type cookies struct {
	lists map[Cookie]ruleSet
	refs  map[uint64]*RuleRef // newest by id; deleted rules stay while a list names them
	slab  []uint64            // ids are cut from here
}

type ruleSet struct {
	sum  uint64
	ids  []uint64  // the lowest ones, so that they do not depend on the order either
	n    int       // rules in all
	old  bool      // nobody used it at the last sweep
	more []ruleSet // other lists with the same cookie
}

// keep returns the cookie of a list, and room for its ids if it is new: the caller fills it, with the lowest ones if it is
// too small for all.
func (c *cookies) keep(l ruleList) (k Cookie, room []uint64) {
	k = l.cookie()
	s, known := c.lists[k]
	if known && s.sum == l.sum {
		return k, nil
	}
	for _, o := range s.more {
		if o.sum == l.sum {
			return k, nil
		}
	}
	size := min(l.n, maxNamed)
	if cap(c.slab)-len(c.slab) < size {
		c.slab = make([]uint64, 0, 1024)
	}
	room = c.slab[len(c.slab) : len(c.slab)+size : len(c.slab)+size]
	c.slab = c.slab[:len(c.slab)+size]
	n := ruleSet{sum: l.sum, ids: room, n: l.n}
	if known {
		s.more = append(s.more, n)
	} else {
		s = n
	}
	c.lists[k] = s
	return k, room
}

// lowest fills ids with the lowest numbers that it is given.
type lowest struct {
	ids []uint64
	n   int
}

func (l *lowest) add(id uint64) {
	if l.n == len(l.ids) && id >= l.ids[l.n-1] {
		return
	}
	at, _ := slices.BinarySearch(l.ids[:l.n], id)
	if l.n < len(l.ids) {
		l.n++
	}
	if at < l.n {
		copy(l.ids[at+1:l.n], l.ids[at:])
		l.ids[at] = id
	}
}

// name returns the cookie of rules that are no statements.
func (c *cookies) name(rules ...*rule) Cookie {
	var l ruleList
	for _, r := range rules {
		l.add(r.id)
	}
	k, room := c.keep(l)
	if room != nil {
		to := lowest{ids: room}
		for _, r := range rules {
			to.add(r.id)
		}
	}
	return k
}

// know makes a rule one that explain can name.
func (c *cookies) know(r *rule) { c.refs[r.id] = r.ref }

func (c *cookies) ref(id uint64) RuleRef {
	if r := c.refs[id]; r != nil {
		return *r
	}
	return RuleRef{}
}

// explain returns the rules that the cookie stands for, in order.
func (c *cookies) explain(k Cookie) []RuleRef {
	var out []RuleRef
	first, ok := c.lists[k]
	if !ok {
		return nil
	}
	for _, s := range append([]ruleSet{first}, first.more...) {
		for _, id := range s.ids {
			out = append(out, c.ref(id))
		}
		if more := s.n - len(s.ids); more > 0 {
			name := fmt.Sprintf("and %d more", more)
			out = append(out, RuleRef{Policy: Ref{Kind: KindPorin, Name: name}, Spec: -1, Index: -1, Direction: out[len(out)-1].Direction})
		}
	}
	slices.SortFunc(out, compareRefs)
	return slices.CompactFunc(out, func(a, b RuleRef) bool { return compareRefs(a, b) == 0 })
}

// sweep forgets lists that nobody used at this and the previous sweep: events on their way may still name the others.
// It then forgets the rules that are in no list and not in live.
func (c *cookies) sweep(used map[Cookie]bool, live map[uint64]bool) {
	for k, s := range c.lists {
		switch {
		case used[k]:
			s.old = false
		case s.old:
			delete(c.lists, k)
			continue
		default:
			s.old = true
		}
		c.lists[k] = s
		for _, l := range append([]ruleSet{s}, s.more...) {
			for _, id := range l.ids {
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
