package advise

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// Kinds of findings.
const (
	SelectsNothing = "selects-nothing" // a rule or a peer selector that fits nobody known
	SaysNothing    = "says-nothing"    // an entry that opens or closes nothing, whoever there is
	Shadowed       = "shadowed"        // other rules decide wherever it fits
	Redundant      = "redundant"       // others say the same wherever it fits
	Wide           = "wide"            // allows everyone, or the whole world
	Unserved       = "unserved"        // a port that no workload serves
	Unresolved     = "unresolved"      // a group, a service or the name of a port that is not there: nobody
	Cancelled      = "cancelled"       // layer 7 rules that a plain allow makes mean nothing
)

// Finding is something in a policy that is probably not meant.
type Finding struct {
	Kind string `json:"kind"`
	Rule Rule   `json:"rule"`
	Text string `json:"text"`
	By   []Rule `json:"by"`
}

// linter is the world as lint looks at it.
type linter struct {
	w     *World
	known []End
	held  []policy.Held
	lost  map[policy.RuleRef]bool // entries that refer to what is not there
	out   []Finding
}

// Lint looks for rules that do nothing or more than is probably meant, given the workloads that there are.
func (w *World) Lint() ([]Finding, error) {
	l := &linter{w: w, known: w.Known(), lost: map[policy.RuleRef]bool{}, out: []Finding{}}
	ids := make([]identity.Identity, len(l.known))
	for i, e := range l.known {
		ids[i] = e.Identity
	}
	l.held = w.Engine.Survey(ids)
	l.empty()
	l.references()
	for i := range l.held {
		h := &l.held[i]
		switch {
		case len(h.Subjects) == 0:
			if h.Rule.Index < 0 {
				l.add(SelectsNothing, h.Rule, "the rule selects no workload%s", l.hint(h.Rule))
			}
		case h.Rule.Index >= 0:
			l.peers(h)
			l.unserved(h)
		}
	}
	if err := l.useless(); err != nil {
		return nil, err
	}
	slices.SortStableFunc(l.out, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.Rule.File, b.Rule.File), cmp.Compare(a.Rule.Line, b.Rule.Line), strings.Compare(a.Kind, b.Kind))
	})
	// A rule with both directions that selects nothing is one finding.
	return slices.CompactFunc(l.out, func(a, b Finding) bool {
		return a.Kind == b.Kind && a.Text == b.Text && a.Rule.File == b.Rule.File && a.Rule.Line == b.Rule.Line
	}), nil
}

func (l *linter) add(kind string, r policy.RuleRef, format string, args ...any) {
	l.out = append(l.out, Finding{Kind: kind, Rule: Rule{r}, Text: fmt.Sprintf(format, args...), By: []Rule{}})
}

// hint proposes a value that some workload has for one that nobody has.
func (l *linter) hint(ref policy.RuleRef) string {
	for _, p := range l.w.Policies {
		for _, r := range p.Rules {
			if p.Ref == ref.Policy && r.Spec == ref.Spec {
				return l.unknownLabel(r.Subject)
			}
		}
	}
	return ""
}

// unknownLabel says which label of a selector nobody has.
func (l *linter) unknownLabel(s labels.Selector) string {
	for _, q := range s.Requirements() {
		if q.Operator != labels.In || len(q.Values) != 1 || !own(labels.Label{Key: q.Key}) {
			continue
		}
		var values []string
		for _, e := range l.known {
			if v, ok := e.Identity.Labels.Get(q.Source, q.Key); ok && e.Kind == Workload {
				values = append(values, v)
			}
		}
		switch near := nearest(q.Values[0], values); {
		case slices.Contains(values, q.Values[0]):
		case len(values) == 0:
			return fmt.Sprintf(": none has the label %s", q.Key)
		case near != "":
			return fmt.Sprintf(": none has %s=%s; did you mean %s=%s?", q.Key, q.Values[0], q.Key, near)
		default:
			return fmt.Sprintf(": none has %s=%s", q.Key, q.Values[0])
		}
	}
	return ""
}

// empty finds entries that say neither who nor what.
func (l *linter) empty() {
	for _, p := range l.w.Policies {
		for _, r := range p.Rules {
			for _, d := range []verdict.Direction{verdict.Ingress, verdict.Egress} {
				for i, e := range r.Section(d).Allow {
					ref := policy.RuleRef{Policy: p.Ref, Spec: r.Spec, Index: i, Direction: d, File: p.File, Line: e.Line, Description: r.Description}
					if e.Peers.Kind == policy.PeersAny && e.Ports == nil {
						l.add(SaysNothing, ref, "the entry names neither peers nor ports, and so allows nothing; for everyone write %sEntities: [all]", way(d))
					}
				}
			}
		}
	}
}

// way is the word with which fields of a direction begin.
func way(d verdict.Direction) string {
	if d == verdict.Egress {
		return "to"
	}
	return "from"
}

// peers looks at whom an entry names.
func (l *linter) peers(h *policy.Held) {
	if h.Everyone {
		if h.Effect == policy.EffectAllow {
			l.add(Wide, h.Rule, "allows %s %s everyone, the world outside included", portNames(h.Ports), way(h.Rule.Direction))
		}
		return
	}
	if len(h.Peers) == 0 && !l.lost[h.Rule] {
		l.add(SaysNothing, h.Rule, "the list of peers is empty, which is nobody; without the field it would be everyone")
	}
	for _, m := range h.Peers {
		switch {
		case m.Block && h.Effect == policy.EffectAllow && (m.Text == "0.0.0.0/0" || m.Text == "::/0"):
			l.add(Wide, h.Rule, "allows %s %s %s, every address outside", portNames(h.Ports), way(h.Rule.Direction), m.Text)
		case m.Text == "every workload" && h.Effect == policy.EffectAllow:
			l.add(Wide, h.Rule, "allows %s %s every workload of every namespace", portNames(h.Ports), way(h.Rule.Direction))
		case len(m.Who) == 0 && !m.Block && !strings.HasPrefix(m.Text, "entity "):
			l.add(SelectsNothing, h.Rule, "no workload is in %s%s", m.Text, l.peerHint(h.Rule, m.Text))
		}
	}
}

// peerHint is hint for the selector of an entry that reads as text.
func (l *linter) peerHint(ref policy.RuleRef, text string) string {
	copied := state{w: l.w, policies: map[policy.Ref]*policy.Policy{}}
	var selectors []labels.Selector
	for _, e := range copied.entries(ref) {
		selectors = append(selectors, e.Peers.Endpoints...)
	}
	for _, s := range selectors {
		within := true
		for _, q := range s.Requirements() {
			within = within && strings.Contains(text, q.String())
		}
		if hint := l.unknownLabel(s); within && hint != "" {
			return hint
		}
	}
	return ""
}

func portNames(ports []policy.Port) string {
	var out []string
	for _, p := range ports {
		out = append(out, p.String())
	}
	if len(out) == 0 {
		return "every port"
	}
	return strings.Join(out, ", ")
}

// unserved finds ports that an entry opens although nobody there answers. It needs workloads that say what they serve.
func (l *linter) unserved(h *policy.Held) {
	if h.Effect != policy.EffectAllow {
		return
	}
	who := h.Subjects
	if h.Rule.Direction == verdict.Egress {
		if who = nil; h.Everyone {
			return
		}
		for _, m := range h.Peers {
			who = append(who, m.Who...)
		}
	}
	var served []Port
	for _, i := range who {
		if l.known[i].Kind != Workload || len(l.known[i].Serves) == 0 {
			return // anything might be served there
		}
		for _, s := range l.known[i].Serves {
			served = append(served, s.Port)
		}
	}
	for _, p := range h.Ports {
		icmp := !p.AnyProto && (p.Proto == policy.ProtoICMP || p.Proto == policy.ProtoICMPv6)
		if icmp || p.Any || p.Name != "" || len(who) == 0 || // a name is some port that somebody has, or it is unresolved
			slices.ContainsFunc(served, func(s Port) bool {
				return (p.AnyProto || p.Proto == s.Proto) && p.First <= s.Number && s.Number <= p.Last
			}) {
			continue
		}
		l.add(Unserved, h.Rule, "allows %s, which no workload there serves", p)
	}
}

// useless finds entries that never decide, or never alone. It reads the verdict tables of every workload towards
// everybody known and everybody else: each row names the rules behind it.
func (l *linter) useless() error {
	g, err := l.w.newGrid(l.known)
	if err != nil {
		return err
	}
	decides, proxied := map[policy.RuleRef]bool{}, map[policy.RuleRef]bool{}
	needs := map[policy.Cookie]bool{} // lists of rules of which one must stay
	for i, e := range l.known {
		for d, s := range g.subjects[e.subject()] {
			if s == nil {
				continue
			}
			counts := s.Isolated || l.denied(i, verdict.Direction(d)) // elsewhere an allow changes nothing
			tables := []*policy.Table{s.Else}
			for _, t := range s.Peers {
				tables = append(tables, t)
			}
			for _, t := range tables {
				for _, r := range t.Rows {
					for _, ref := range g.explain(r.Verdict.Cookie) {
						decides[ref] = true
						proxied[ref] = proxied[ref] || r.Verdict.Action == verdict.Redirect
					}
					if counts || r.Verdict.Action == verdict.Deny {
						needs[r.Verdict.Cookie] = true
					}
				}
			}
		}
	}
	gone := map[policy.RuleRef]bool{}
	for i := len(l.held) - 1; i >= 0; i-- {
		h := &l.held[i]
		if h.Rule.Index < 0 || len(h.Subjects) == 0 || h.Effect == policy.EffectPass || !h.Everyone && !slices.ContainsFunc(h.Peers, func(m policy.Members) bool { return len(m.Who) > 0 }) {
			continue
		}
		if !decides[h.Rule] {
			l.add(Shadowed, h.Rule, "never decides: wherever it fits, other rules decide first")
			l.out[len(l.out)-1].By = l.deciders(h)
			continue
		}
		if slices.ContainsFunc(h.Ports, func(p policy.Port) bool { return p.L7 != nil }) && !proxied[h.Rule] {
			l.add(Cancelled, h.Rule, "its layer 7 rules mean nothing: wherever it fits, others allow everything there")
			l.out[len(l.out)-1].By = l.deciders(h)
			continue
		}
		var others []policy.RuleRef
		needed, counts := false, false
		for c := range needs {
			list := g.explain(c)
			if !slices.Contains(list, h.Rule) {
				continue
			}
			counts = true
			rest := slices.DeleteFunc(slices.Clone(list), func(r policy.RuleRef) bool { return r == h.Rule || gone[r] })
			needed = needed || len(rest) == 0
			for _, r := range rest {
				if !slices.Contains(others, r) {
					others = append(others, r)
				}
			}
		}
		switch {
		case needed:
		case !counts:
			l.add(SaysNothing, h.Rule, "allows what nothing denies: no rule isolates those that it selects in this direction")
		default:
			gone[h.Rule] = true
			slices.SortFunc(others, func(a, b policy.RuleRef) int { return strings.Compare(a.String(), b.String()) })
			l.add(Redundant, h.Rule, "taking it out changes no verdict: others say the same wherever it fits")
			l.out[len(l.out)-1].By = rulesOf(others)
		}
	}
	return nil
}

// denied tells whether a rule may deny in a direction of the known one at i: an allow that comes before it is not idle, also
// where nothing isolates.
func (l *linter) denied(i int, d verdict.Direction) bool {
	return slices.ContainsFunc(l.held, func(h policy.Held) bool {
		return (h.Effect == policy.EffectDeny || h.Effect == policy.EffectAuth) && h.Rule.Direction == d && slices.Contains(h.Subjects, i)
	})
}

// deciders returns the rules that decide where the entry fits, for one of the ends that it is about.
func (l *linter) deciders(h *policy.Held) []Rule {
	peer := l.known[h.Subjects[0]]
	for _, m := range h.Peers {
		if len(m.Who) > 0 {
			peer = l.known[m.Who[0]]
			break
		}
	}
	p := Port{policy.ProtoTCP, 80}
	if len(h.Ports) > 0 {
		p = Port{h.Ports[0].Proto, h.Ports[0].First}
		if h.Ports[0].AnyProto {
			p.Proto = policy.ProtoTCP
		}
	}
	self := l.known[h.Subjects[0]]
	d := l.w.Engine.Decide(peer.Identity, self.Identity, p.Proto, p.Number)
	if h.Rule.Direction == verdict.Ingress {
		return rulesOf(l.w.Engine.Explain(d.Ingress.Cookie))
	}
	d = l.w.Engine.Decide(self.Identity, peer.Identity, p.Proto, p.Number)
	return rulesOf(l.w.Engine.Explain(d.Egress.Cookie))
}
