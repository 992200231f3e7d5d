package policy

import (
	"bytes"
	"slices"
	"strings"

	"porin/internal/identity"
	"porin/internal/verdict"
)

// group is all rules with the same subject selector: it is matched once for all of them.
type group struct {
	key     string
	subject selector
	at      int // where byLabel has it
	rules   []*compiled
	parts   [3]*groupPart // sorted by content, so that what is made of them does not depend on the order of changes; nil: says nothing
	stale   bool          // parts are to be made anew
}

// groupPart is what the rules of a group say in one direction, together.
type groupPart struct {
	statements []*statement
	isolates   []*isolator
	requires   []requirement
	names      []string // of ports
	audit      bool     // some of it only reports
	views      uint8    // those in which it isolates, or may deny in the Baseline tier, as bits
	digest     sum
}

// requirement narrows what is allowed to the peers that a selection holds.
type requirement struct {
	*selection
	audit bool
}

// subjects finds the groups that select an identity.
type subjects struct {
	byKey   map[string]*group
	byLabel byLabel[*group]
}

func (x *subjects) add(c *compiled) {
	key := c.subject.key()
	g, ok := x.byKey[key]
	if !ok {
		g = &group{key: key, subject: c.subject}
		x.byKey[key] = g
		g.at = x.byLabel.add(g.subject.Selector, g)
	}
	g.rules, g.stale = append(g.rules, c), true
}

func (x *subjects) remove(c *compiled) {
	g := x.byKey[c.subject.key()]
	g.rules, g.stale = without(g.rules, c), true
	if len(g.rules) == 0 {
		delete(x.byKey, g.key)
		x.byLabel.remove(g.subject.Selector, g, g.at)
	}
}

// selecting returns the groups that select id, in an order that depends on their content only.
func (x *subjects) selecting(id *identity.Identity) []*group {
	var out []*group
	x.byLabel.find(id.Labels, func(g *group) {
		if g.subject.matches(id) {
			out = append(out, g)
		}
	})
	slices.SortFunc(out, func(a, b *group) int { return strings.Compare(a.key, b.key) })
	return slices.Compact(out) // one may come by several labels
}

// part returns what the group says in a direction; nil: nothing.
func (g *group) part(d verdict.Direction) *groupPart {
	if g.stale {
		g.parts, g.stale = [3]*groupPart{}, false
		slices.SortFunc(g.rules, func(a, b *compiled) int { return bytes.Compare(a.digest[:], b.digest[:]) })
		for _, d := range []verdict.Direction{verdict.Ingress, verdict.Egress} {
			var p *groupPart
			var digests []byte
			for _, c := range g.rules {
				part := c.parts[d]
				if part == nil {
					continue
				}
				if p == nil {
					p = &groupPart{}
				}
				p.audit = p.audit || part.audit
				p.statements = append(p.statements, part.statements...)
				counts := uint8(2) | uint8(b2i(!part.audit))
				if part.isolates != nil {
					p.isolates = append(p.isolates, part.isolates)
					p.views |= counts
				}
				for _, s := range part.requires {
					p.requires = append(p.requires, requirement{s, part.audit})
				}
				for _, st := range part.statements {
					if tierOf(st.order) > TierNormal && st.effect >= EffectAuth {
						p.views |= counts
					}
					if !st.names {
						continue
					}
					for _, q := range st.ports {
						if at, have := slices.BinarySearch(p.names, q.Name); q.Name != "" && !have {
							p.names = slices.Insert(p.names, at, q.Name)
						}
					}
				}
				digests = append(digests, part.digest[:]...)
			}
			if p != nil {
				p.digest = hash(digests)
				g.parts[d] = p
			}
		}
	}
	return g.parts[d]
}
