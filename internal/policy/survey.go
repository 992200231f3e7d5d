package policy

import (
	"slices"

	"porin/internal/identity"
	"porin/internal/verdict"
)

// Held is one entry of a rule, or with Rule.Index -1 a rule's part for a direction as such, and whom it holds.
type Held struct {
	Rule     RuleRef
	Effect   Effect
	Subjects []int // whom the rule selects, as indexes of what Survey was asked about
	Everyone bool  // it names no peers, or the entity all
	Peers    []Members
	Ports    []Port // nil: every protocol and port
}

// Members is one set of peers and who is in it.
type Members struct {
	Text  string
	Block bool  // addresses outside
	Who   []int // indexes of what Survey was asked about
}

// Survey tells of every entry in force whom of ids it selects and names.
func (e *Engine) Survey(ids []identity.Identity) (out []Held) {
	e.mu.Lock()
	defer e.mu.Unlock()
	among := func(matches func(*identity.Identity) bool) (who []int) {
		for i := range ids {
			if matches(&ids[i]) {
				who = append(who, i)
			}
		}
		return who
	}
	for ref, f := range e.policies {
		p := f.policy
		for i, c := range f.rules {
			subjects := among(func(id *identity.Identity) bool {
				return c.subject.matches(id) && (c.subject.among == thisNode || judged(id, nil))
			})
			for _, d := range []verdict.Direction{verdict.Ingress, verdict.Egress} {
				if c.parts[d].empty() {
					continue
				}
				r := p.Rules[i]
				out = append(out, Held{Subjects: subjects, Rule: RuleRef{Policy: ref, Spec: r.Spec, Index: -1, Direction: d, File: p.File, Line: r.Line, Description: r.Description}})
				for _, st := range c.parts[d].statements {
					h := Held{Rule: *st.ref, Effect: st.effect, Subjects: subjects, Everyone: st.all, Ports: st.ports}
					for _, s := range st.peers {
						h.Peers = append(h.Peers, Members{Text: s.text(), Block: s.cidr.Prefix.IsValid(), Who: among(func(id *identity.Identity) bool { return s.matches(id, &e.cfg) })})
					}
					out = append(out, h)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b Held) int { return compareRefs(a.Rule, b.Rule) })
	return out
}
