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

// Report is a trace in words.
type Report struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Port    string `json:"port"`
	Verdict string `json:"verdict"`
	Sides   []Side `json:"sides"` // egress of from, then ingress of to
}

// Side is what one end says.
type Side struct {
	Direction string   `json:"direction"`
	Of        string   `json:"of"`
	Labels    []string `json:"labels"`
	Verdict   string   `json:"verdict"`
	Because   string   `json:"because"`
	Decided   []Rule   `json:"decided_by"`
	Isolated  []Rule   `json:"isolated_by"`
	Steps     []Step   `json:"steps"`
	Others    []Other  `json:"not_selecting"`
}

// Step is one entry of a rule that selects the end.
type Step struct {
	Rule     Rule     `json:"rule"`
	Tier     int      `json:"tier"`
	Priority int      `json:"priority"`
	Effect   string   `json:"effect"`
	Fits     bool     `json:"fits"`
	Decides  bool     `json:"decides"`
	PeerFits bool     `json:"peer_fits"`
	Peers    []Test   `json:"peers"`
	PortFits bool     `json:"port_fits"`
	Ports    []string `json:"ports"`    // empty: every protocol and port
	Requires []Test   `json:"requires"` // what rules demand of everyone whom they allow
	Audit    bool     `json:"audit"`    // of a rule that only reports
	L7       []string `json:"l7"`       // parsers that look at what is said
}

// Test is one set of peers held against the other end.
type Test struct {
	Peers string `json:"peers"`
	Fits  bool   `json:"fits"`
	Why   string `json:"why,omitempty"` // not
}

// Other is a rule that does not select the end.
type Other struct {
	Rule Rule   `json:"rule"`
	Why  string `json:"why"`
}

// Trace tells step by step what becomes of a connection.
func (w *World) Trace(from, to End, p Port) Report {
	t := w.Engine.TraceAt(from.Identity, to.Identity, to.Ports, p.Proto, p.Number)
	r := Report{From: from.Name, To: to.Name, Port: p.String(), Verdict: word(t.Action)}
	for i, s := range t.Sides {
		self, peer := from, to
		if i == 1 {
			self, peer = to, from
		}
		r.Sides = append(r.Sides, side(s, self, peer))
	}
	return r
}

func side(s policy.Side, self, peer End) Side {
	out := Side{
		Direction: s.Direction.String(), Of: self.Name, Labels: self.Identity.Labels.Strings(), Verdict: word(s.Verdict.Action),
		Decided: rulesOf(s.Decided), Isolated: rulesOf(s.Isolated), Steps: []Step{}, Others: []Other{}, Because: because(s),
	}
	for _, st := range s.Steps {
		step := Step{
			Rule: Rule{st.Rule}, Tier: int(st.Tier), Priority: int(st.Priority), Effect: effect(st.Effect), Fits: st.Fits(), PeerFits: st.PeerFits,
			PortFits: st.PortFits, Peers: []Test{}, Ports: []string{}, Decides: st.Fits() && slices.Contains(s.Decided, st.Rule),
			Requires: []Test{}, Audit: st.Audit, L7: parsers(st.L7),
		}
		if st.Everyone {
			step.Peers = append(step.Peers, Test{Peers: "everyone", Fits: true})
		}
		for _, t := range st.Peers {
			test := Test{Peers: t.Text, Fits: t.Fits}
			if !t.Fits {
				test.Why = whyNot(peer, t.Missing)
			}
			step.Peers = append(step.Peers, test)
		}
		for _, p := range st.Ports {
			step.Ports = append(step.Ports, p.String())
		}
		for _, t := range st.Requires {
			test := Test{Peers: t.Text, Fits: t.Fits}
			if !t.Fits {
				test.Why = whyNot(peer, t.Missing)
			}
			step.Requires = append(step.Requires, test)
		}
		out.Steps = append(out.Steps, step)
	}
	for _, o := range s.Others {
		out.Others = append(out.Others, Other{Rule{o.Rule}, whyNot(self, o.Missing)})
	}
	return out
}

func effect(e policy.Effect) string {
	switch e {
	case policy.EffectAllow:
		return allow
	case policy.EffectDeny:
		return deny
	case policy.EffectAuth:
		return "authenticate"
	}
	return "pass"
}

// parsers names those who look at what is said.
func parsers(list []*policy.L7) []string {
	out := []string{}
	for _, l := range list {
		if name := cmp.Or(l.Parser, "tls"); !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// TierName is the tier as documents call it.
func TierName(t int) string {
	switch policy.Tier(t) {
	case policy.TierAdmin:
		return "Admin"
	case policy.TierNormal:
		return "Normal"
	case policy.TierBaseline:
		return "Baseline"
	}
	return fmt.Sprintf("tier %d", t)
}

// because says in one sentence what kind of verdict it is.
func because(s policy.Side) string {
	switch {
	case s.Verdict.Auth:
		return "a rule allows it only with an authentication, and nothing authenticates workloads yet"
	case s.Verdict.ExplicitDeny && len(s.Decided) > 0 && s.Decided[0].Policy.Kind == policy.KindPorin:
		return s.Decided[0].String()
	case s.Verdict.ExplicitDeny:
		return "a deny rule fits"
	case s.Verdict.Action == verdict.Audit:
		return "a rule that only reports would deny it"
	case s.Verdict.Action == verdict.Deny:
		return "isolated, and no rule allows it"
	case len(s.Decided) == 1 && s.Decided[0].Policy.Kind == policy.KindPorin:
		return s.Decided[0].String()
	case s.Verdict.Action == verdict.Redirect:
		return "a rule allows it, and the proxy looks at it"
	}
	return "a rule allows it"
}

// whyNot says what about e's labels does not fit.
func whyNot(e End, missing []labels.Requirement) string {
	if len(missing) == 0 {
		return e.Name + " is not in it"
	}
	var out []string
	for _, q := range missing {
		out = append(out, e.Name+" "+requirement(q, e.Identity))
	}
	return strings.Join(out, "; ")
}

// requirement says what id has instead of what q wants.
func requirement(q labels.Requirement, id identity.Identity) string {
	have, ok := id.Labels.Get(q.Source, q.Key)
	key, values := plainKey(q.Key), strings.Join(q.Values, " or ")
	switch {
	case q.Operator == labels.Exists:
		return "has no " + key
	case q.Operator == labels.DoesNotExist:
		return fmt.Sprintf("has %s=%s, wanted none", key, have)
	case q.Operator == labels.NotIn:
		return fmt.Sprintf("has %s=%s, wanted another", key, have)
	case !ok:
		return fmt.Sprintf("has no %s, wanted %s=%s", key, key, values)
	}
	return fmt.Sprintf("has %s=%s, wanted %s", key, have, values)
}

// plainKey says namespace for the key that long.
func plainKey(key string) string {
	if key == labels.KeyNamespace {
		return "namespace"
	}
	return key
}
