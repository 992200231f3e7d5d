package advise

import (
	"cmp"
	"slices"

	"porin/internal/policy"
	"porin/internal/verdict"
)

// Explanation is why a connection has its verdict, and what is the least that would change it.
type Explanation struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Port    string `json:"port"`
	Verdict string `json:"verdict"`
	Side    string `json:"side"` // the end that decided
	Rules   []Rule `json:"rules"`
	Nearest *Miss  `json:"nearest"` // nil: nothing near
	None    string `json:"none,omitempty"`
}

// Miss is the smallest set of edits that flips a verdict.
type Miss struct {
	Gives string `json:"gives"` // the verdict after the edits
	Edits []Edit `json:"edits"`
	cost  int
}

// Limits of the search: edits that are tried together, edits that are tried at all, and combinations.
const (
	maxTogether = 3
	maxAtoms    = 48
	maxTries    = 20000
)

// Explain names the rules that decided and searches for the nearest miss.
func (w *World) Explain(from, to End, p Port) Explanation {
	v := w.Ask(from, to, p)
	out := Explanation{From: from.Name, To: to.Name, Port: p.String(), Verdict: v.Word(), Side: v.Side, Rules: v.Rules}
	if out.Nearest = w.Nearest(from, to, p); out.Nearest == nil {
		out.None = w.whyNone(from, to, p)
	}
	return out
}

// Nearest returns the smallest edits that flip the verdict, each tried out with the engine; nil if up to three edits of
// the labels of both ends and of the rules that come near do not.
func (w *World) Nearest(from, to End, p Port) *Miss {
	t := w.Engine.TraceAt(from.Identity, to.Identity, to.Ports, p.Proto, p.Number)
	denied := t.Action == verdict.Deny || t.Action == verdict.Audit
	q := question{w: w, from: from, to: to, port: p}
	for i, s := range t.Sides {
		if denied && s.Verdict.Action != verdict.Deny && s.Verdict.Action != verdict.Audit {
			continue
		}
		q.collect(s, i == 0, denied)
	}
	q.removeLabels(denied)
	slices.SortStableFunc(q.atoms, func(a, b Edit) int { return cmp.Or(cmp.Compare(a.cost, b.cost), cmp.Compare(a.rank, b.rank)) })
	q.atoms = q.atoms[:min(len(q.atoms), maxAtoms)]
	for _, set := range combinations(q.atoms) {
		s := q.state()
		for _, e := range set {
			e.apply(&s)
		}
		if a := s.decide(p); (a == verdict.Deny || a == verdict.Audit) != denied {
			return &Miss{Gives: word(a), Edits: set, cost: total(set)}
		}
	}
	return nil
}

func total(set []Edit) (n int) {
	for _, e := range set {
		n += e.cost
	}
	return n
}

// combinations returns the sets of up to maxTogether edits, the cheapest first, and of equal cost the smallest.
func combinations(atoms []Edit) (out [][]Edit) {
	var grow func(from int, set []Edit)
	grow = func(from int, set []Edit) {
		for i := from; i < len(atoms); i++ {
			if slices.ContainsFunc(set, atoms[i].clashes) {
				continue
			}
			next := append(slices.Clone(set), atoms[i])
			out = append(out, next)
			if len(next) < maxTogether {
				grow(i+1, next)
			}
		}
	}
	grow(0, nil)
	slices.SortStableFunc(out, func(a, b []Edit) int { return cmp.Or(cmp.Compare(total(a), total(b)), cmp.Compare(len(a), len(b))) })
	return out[:min(len(out), maxTries)]
}

// question is a search for the nearest miss.
type question struct {
	w        *World
	from, to End
	port     Port
	atoms    []Edit
}

// collect gathers the edits that could flip one side. want is what the side should say afterwards: if it denies now,
// allow entries must fit and deny entries must not; if it allows, the other way round.
func (q *question) collect(s policy.Side, sender, denied bool) {
	self, peer := q.to, q.from
	if sender {
		self, peer = q.from, q.to
	}
	var remove []policy.RuleRef
	for _, st := range s.Steps {
		if st.Rule.Policy.Kind == policy.KindPorin {
			continue
		}
		helps := (st.Effect == policy.EffectAllow) == denied
		switch {
		case st.Effect == policy.EffectPass:
		case st.Effect == policy.EffectAuth && denied && st.Fits():
			q.atoms = append(q.atoms, dropAuth(st))
		case helps && st.Effect == policy.EffectAuth && !st.Fits():
		case helps && !st.Fits():
			q.stretch(st, peer, !sender)
		case !helps && st.Fits():
			remove = append(remove, st.Rule)
		}
	}
	if len(remove) > 0 {
		q.atoms = append(q.atoms, removeRules(remove))
	}
	for _, o := range s.Others {
		if e, ok := setLabels(self, sender, o.Missing); ok {
			e.Why = Rule{o.Rule}.String() + at(o.Rule) + " does not select it: " + whyNot(self, o.Missing)
			e.Rules = []Rule{{o.Rule}}
			e.rank, e.cost = 2, e.cost+1 // another rule would select it: not what was meant here, as a rule
			q.atoms = append(q.atoms, e)
		}
	}
}

// stretch gathers the edits that make an entry fit.
func (q *question) stretch(st policy.Step, peer End, peerSends bool) {
	rank := 0
	if !st.PeerFits && !st.PortFits {
		rank = 1 // not near
	}
	if !st.PortFits && canSay(st.Rule.Policy.Kind, q.port) {
		q.atoms = append(q.atoms, addPort(st, q.port, peer, rank))
	}
	for _, t := range st.Requires {
		if e, ok := setLabels(peer, peerSends, t.Missing); ok && !t.Fits {
			e.Why = says(st) + "; what rules require: " + whyNot(peer, t.Missing)
			e.Rules, e.rank = []Rule{{st.Rule}}, rank
			q.atoms = append(q.atoms, e)
		}
	}
	if st.PeerFits {
		return
	}
	for _, t := range st.Peers {
		e, ok := setLabels(peer, peerSends, t.Missing)
		if !ok {
			continue
		}
		e.Why = says(st) + "; " + whyNot(peer, t.Missing)
		e.Rules, e.rank = []Rule{{st.Rule}}, rank
		q.atoms = append(q.atoms, e)
	}
	if e, ok := q.addPeer(st, peer, peerSends); ok {
		e.rank = rank
		q.atoms = append(q.atoms, e)
	}
}

// removeLabels gathers the edits that take one label off one end. To get out of the rules that isolate an end is the
// last resort.
func (q *question) removeLabels(denied bool) {
	for i, e := range []End{q.from, q.to} {
		if e.Kind != Workload && e.Kind != Ad {
			continue
		}
		for _, l := range e.Identity.Labels {
			if own(l) {
				edit := removeLabel(e, i == 0, l)
				if denied {
					edit.cost = 4
				}
				q.atoms = append(q.atoms, edit)
			}
		}
	}
}

// state is what edits change: both ends, and copies of policies.
type state struct {
	from, to End
	w        *World
	policies map[policy.Ref]*policy.Policy
}

func (q *question) state() state {
	return state{q.from, q.to, q.w, map[policy.Ref]*policy.Policy{}}
}

// decide asks the engine with the edits in force, and takes them back.
func (s *state) decide(p Port) verdict.Action {
	var edited, before []*policy.Policy
	for _, p := range s.w.Policies {
		if e, ok := s.policies[p.Ref]; ok {
			edited, before = append(edited, e), append(before, p)
		}
	}
	if len(edited) > 0 {
		s.w.Engine.UpdatePolicies(edited, nil)
		defer s.w.Engine.UpdatePolicies(before, nil)
	}
	return s.w.Engine.DecideAt(s.from.Identity, s.to.Identity, s.to.Ports, p.Proto, p.Number).Action
}

// lists returns the lists of entries that a reference points into, of a copy of its policy; nil for porin's own rules. One
// element of a document may be several entries, with one index.
func (s *state) lists(ref policy.RuleRef) []*[]*policy.Entry {
	p, ok := s.policies[ref.Policy]
	if !ok {
		i := slices.IndexFunc(s.w.Policies, func(p *policy.Policy) bool { return p.Ref == ref.Policy })
		if i < 0 || ref.Index < 0 {
			return nil
		}
		copied := *s.w.Policies[i]
		copied.Rules = slices.Clone(copied.Rules)
		for i, r := range copied.Rules {
			rule := *r
			for _, sec := range []*policy.Section{&rule.Ingress, &rule.Egress} {
				sec.Allow, sec.Deny, sec.Pass = slices.Clone(sec.Allow), slices.Clone(sec.Deny), slices.Clone(sec.Pass)
			}
			copied.Rules[i] = &rule
		}
		p = &copied
		s.policies[ref.Policy] = p
	}
	for _, r := range p.Rules {
		if r.Spec != ref.Spec {
			continue
		}
		sec := r.Section(ref.Direction)
		if ref.Deny {
			return []*[]*policy.Entry{&sec.Deny}
		}
		return []*[]*policy.Entry{&sec.Allow, &sec.Pass}
	}
	return nil
}

// entries returns the entries that a reference names.
func (s *state) entries(ref policy.RuleRef) (out []*policy.Entry) {
	for _, list := range s.lists(ref) {
		for _, e := range *list {
			if e.Index == ref.Index {
				out = append(out, e)
			}
		}
	}
	return out
}

// entry changes the entries that a reference names, as far as change says that it did something.
func (s *state) entry(ref policy.RuleRef, change func(*policy.Entry) bool) {
	for _, list := range s.lists(ref) {
		for i, e := range *list {
			if e.Index != ref.Index {
				continue
			}
			if copied := *e; change(&copied) {
				(*list)[i] = &copied
			}
		}
	}
}

// remove takes the entry out; a list without entries stays, and isolates.
func (s *state) remove(ref policy.RuleRef) {
	for _, list := range s.lists(ref) {
		*list = slices.DeleteFunc(*list, func(e *policy.Entry) bool { return e.Index == ref.Index })
	}
}

// whyNone says why nothing is near.
func (w *World) whyNone(from, to End, p Port) string {
	t := w.Engine.TraceAt(from.Identity, to.Identity, to.Ports, p.Proto, p.Number)
	if t.Action == verdict.Allow || t.Action == verdict.Redirect {
		for _, s := range t.Sides {
			if len(s.Isolated) > 0 {
				return "no edit of up to three labels, ports or rules denies it"
			}
		}
		return "no rule isolates either end, and none is near to selecting one: it would take a new policy"
	}
	for _, s := range t.Sides {
		if s.Verdict.Action == verdict.Deny && len(s.Decided) > 0 && len(s.Steps) == 0 {
			return "the rules that isolate " + map[verdict.Direction]string{verdict.Egress: from.Name, verdict.Ingress: to.Name}[s.Direction] + " allow nothing at all: it would take a new rule"
		}
	}
	return "no rule comes near: no edit of up to three labels, ports or peers allows it; it would take a new rule"
}
