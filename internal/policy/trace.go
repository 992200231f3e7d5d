package policy

import (
	"cmp"
	"slices"
	"strconv"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/verdict"
)

// Trace is a Decision with every step that leads to it.
type Trace struct {
	Decision
	Sides []Side // egress of the sender, then ingress of the receiver
}

// Side is what one end says.
type Side struct {
	Direction verdict.Direction
	Verdict   PortVerdict
	Decided   []RuleRef // the rules behind the verdict
	Isolated  []RuleRef // what denies where nothing allows; empty: nothing does
	Steps     []Step    // entries of the rules that select this end, the first to be asked first
	Others    []Other   // rules with a part for this direction that do not select this end
}

// Step is one entry: it counts when both its peers and its ports fit.
type Step struct {
	Rule     RuleRef
	Tier     Tier
	Priority uint32
	Entry    uint32 // priority among the entries of rules of the same tier and priority
	Effect   Effect
	Audit    bool   // of a rule that only reports
	Everyone bool   // it names no peers, or the entity all
	Peers    []Test // one per selector, entity or block; one that fits is enough
	PeerFits bool
	Requires []Test // what rules demand of everyone that they allow: all must fit
	Ports    []Port // nil: every protocol and port; names are replaced by the numbers that they have here
	PortFits bool
	L7       []*L7 // of the ports that fit; empty: everything may be said
}

// Fits tells whether the entry speaks about this connection.
func (s *Step) Fits() bool {
	return s.PeerFits && s.PortFits && !slices.ContainsFunc(s.Requires, func(t Test) bool { return !t.Fits })
}

// Test is one set of peers held against an identity.
type Test struct {
	Text    string // as an entry names it, with what its document implies
	Fits    bool
	Missing []labels.Requirement // of an endpoint selector: what the labels do not satisfy
}

// Other is a rule that does not select an end.
type Other struct {
	Rule    RuleRef
	Missing []labels.Requirement
}

// Trace decides as Decide does and tells every step. It is for people: it asks all rules, not only those that an index
// finds. Nobody else may change the engine meanwhile, or verdict and steps may be of different moments.
func (e *Engine) Trace(from, to identity.Identity, proto uint8, port uint16) Trace {
	e.mu.Lock()
	own := e.ports.of(to.ID)
	e.mu.Unlock()
	return e.TraceAt(from, to, own, proto, port)
}

// TraceAt is Trace for a receiver with named ports of its own, whatever others of its identity have.
func (e *Engine) TraceAt(from, to identity.Identity, own []NamedPort, proto uint8, port uint16) Trace {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := Trace{Decision: e.decide(&from, &to, own, proto, port)}
	t.Sides = []Side{
		e.side(&from, &to, e.ports.of(to.ID), verdict.Egress, t.Egress, proto, port),
		e.side(&to, &from, own, verdict.Ingress, t.Ingress, proto, port),
	}
	return t
}

// side explains one end; ports are those of the receiver that have a name.
func (e *Engine) side(subject, peer *identity.Identity, ports []NamedPort, d verdict.Direction, v PortVerdict, proto uint8, port uint16) Side {
	s := Side{Direction: d, Verdict: v, Decided: e.cookies.explain(v.Cookie)}
	groups := e.groups(subject)
	if !judged(subject, groups) {
		return s
	}
	p := e.plan(subject, groups, d, ports)
	if p.own != nil {
		s.Isolated = append(s.Isolated, *p.own.ref)
	}
	if p.localhost != nil {
		s.Steps = append(s.Steps, e.step(p.localhost, peer, proto, port))
	}
	var requires []Test
	for _, part := range p.parts {
		for _, q := range part.requires {
			if !q.audit {
				requires = append(requires, e.test(q.selection, peer))
			}
		}
	}
	have := relevant(ports, p.names)
	for _, part := range p.parts {
		for _, r := range part.isolates {
			s.Isolated = append(s.Isolated, *r.ref)
		}
		for _, st := range part.statements {
			step := e.step(st.numbered(have), peer, proto, port)
			if st.effect == EffectAllow || st.effect == EffectAuth {
				step.Requires = requires
			}
			s.Steps = append(s.Steps, step)
		}
	}
	slices.SortFunc(s.Isolated, compareRefs)
	slices.SortStableFunc(s.Steps, func(a, b Step) int {
		return cmp.Or(cmp.Compare(order(a.Tier, a.Priority, a.Entry), order(b.Tier, b.Priority, b.Entry)), cmp.Compare(b.Effect, a.Effect), compareRefs(a.Rule, b.Rule))
	})
	for ref, f := range e.policies {
		for i, c := range f.rules {
			if c.parts[d].empty() || c.subject.matches(subject) {
				continue
			}
			r := f.policy.Rules[i]
			s.Others = append(s.Others, Other{
				Rule:    RuleRef{Policy: ref, Spec: r.Spec, Index: -1, Direction: d, File: f.policy.File, Line: r.Line, Description: r.Description},
				Missing: c.subject.missing(subject),
			})
		}
	}
	slices.SortFunc(s.Others, func(a, b Other) int { return compareRefs(a.Rule, b.Rule) })
	return s
}

func (e *Engine) step(st *statement, peer *identity.Identity, proto uint8, port uint16) Step {
	s := Step{
		Rule: *st.ref, Tier: tierOf(st.order), Priority: uint32(st.order >> entryBits), Entry: uint32(st.order) & (1<<entryBits - 1),
		Effect: st.effect, Audit: st.audit, Everyone: st.all, PeerFits: st.all, Ports: st.ports, PortFits: st.ports == nil,
	}
	for _, sel := range st.peers {
		t := e.test(sel, peer)
		s.PeerFits = s.PeerFits || t.Fits
		s.Peers = append(s.Peers, t)
	}
	plain := s.PortFits
	for _, p := range st.ports {
		if !p.covers(proto) || !p.Any && (port < p.First || p.Last < port) {
			continue
		}
		s.PortFits = true
		if plain = plain || p.L7 == nil; p.L7 != nil {
			s.L7 = append(s.L7, p.L7)
		}
	}
	if plain {
		s.L7 = nil
	}
	return s
}

func (e *Engine) test(sel *selection, peer *identity.Identity) Test {
	t := Test{Text: sel.text(), Fits: sel.matches(peer, &e.cfg)}
	if sel.entity == "" && !sel.cidr.Prefix.IsValid() && sel.fqdn == "" && !t.Fits {
		t.Missing = sel.want.missing(peer)
	}
	return t
}

// missing returns the requirements that i does not satisfy; none if it is no workload, and that is what is missing.
func (s *selector) missing(i *identity.Identity) (out []labels.Requirement) {
	for _, q := range s.Requirements() {
		if !q.Matches(i.Labels) {
			out = append(out, q)
		}
	}
	if !s.ofCluster(i) {
		out = append(out, labels.Requirement{Source: labels.SourceK8s, Key: labels.KeyCluster, Operator: labels.In, Values: []string{s.cluster}})
	}
	return out
}

// text names the selection as a person would.
func (s *selection) text() string {
	switch {
	case s.entity != "":
		return "entity " + s.entity
	case s.cidr.Prefix.IsValid():
		return s.cidr.String()
	case s.fqdn != "":
		return "name " + s.fqdn
	case s.want.among == nodes && len(s.want.Requirements()) == 0:
		return "every node"
	case s.want.among == nodes:
		return "nodes {" + s.want.String() + "}"
	case len(s.want.Requirements()) == 0:
		return "every workload"
	}
	return "{" + s.want.String() + "}"
}

// String returns the port as people write it: 80/TCP, 8000-8080/UDP, http/TCP, ANY.
func (p Port) String() string {
	name := protocolName(p)
	switch {
	case p.Name != "":
		return p.Name + "/" + name
	case p.Any:
		return name
	case p.First == p.Last:
		return strconv.Itoa(int(p.First)) + "/" + name
	}
	return strconv.Itoa(int(p.First)) + "-" + strconv.Itoa(int(p.Last)) + "/" + name
}

// Judged tells whether the rules are asked about an identity's own traffic: hosts and the world outside are peers only.
func Judged(i identity.Identity) bool { return judged(&i, nil) }

// Judges tells whether the rules in force are asked about an identity's own traffic: Judged, or this node while rules for
// nodes select it.
func (e *Engine) Judges(i identity.Identity) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return judged(&i, e.groups(&i))
}
