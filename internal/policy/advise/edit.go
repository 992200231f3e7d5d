package advise

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
)

// Kinds of edits.
const (
	SetLabel    = "set-label"
	RemoveLabel = "remove-label"
	AddPort     = "add-port"
	AddPeer     = "add-peer"
	RemoveRule  = "remove-rule"
)

// Edit is one thing to change: a workload's labels, or entries of policies.
type Edit struct {
	Kind   string   `json:"kind"`
	Text   string   `json:"text"`
	Why    string   `json:"why,omitempty"` // what the rule says, and what is missing
	End    string   `json:"end,omitempty"`
	Labels []string `json:"labels,omitempty"`
	Port   string   `json:"port,omitempty"`
	Peer   string   `json:"peer,omitempty"`
	Rules  []Rule   `json:"rules,omitempty"`

	cost, rank int
	apply      func(*state)
}

// clashes tells whether two edits do the same: then the cheaper one is enough.
func (e Edit) clashes(o Edit) bool {
	return e.Text == o.Text || e.Kind != RemoveRule && e.Kind == o.Kind && e.End == o.End && e.End != "" && slices.ContainsFunc(e.Labels, func(l string) bool { return slices.Contains(o.Labels, l) })
}

// own tells whether a workload's owner chooses the label: not where it lives, nor what porin gave it.
func own(l labels.Label) bool {
	return !labels.IsTrusted(l.Key) && l.Source != labels.SourceReserved && l.Source != labels.SourceCIDR
}

func (s *state) end(sender bool) *End {
	if sender {
		return &s.from
	}
	return &s.to
}

// setLabels gives e the labels that satisfy the requirements; not ok where labels cannot.
func setLabels(e End, sender bool, missing []labels.Requirement) (Edit, bool) {
	if len(missing) == 0 || e.Kind != Workload && e.Kind != Ad {
		return Edit{}, false
	}
	out := Edit{Kind: SetLabel, End: e.Name, cost: len(missing)}
	var drop, add []labels.Label
	for _, q := range missing {
		source := q.Source
		if source == "" {
			source = labels.SourceK8s
		}
		for _, l := range e.Identity.Labels {
			if l.Key == q.Key && (q.Source == "" || l.Source == q.Source) {
				drop, source = append(drop, l), l.Source
			}
		}
		if !own(labels.Label{Source: source, Key: q.Key}) {
			return Edit{}, false
		}
		switch q.Operator {
		case labels.In:
			add = append(add, labels.Label{Source: source, Key: q.Key, Value: q.Values[0]})
		case labels.Exists:
			add = append(add, labels.Label{Source: source, Key: q.Key, Value: "true"})
		}
	}
	for _, l := range add {
		out.Labels = append(out.Labels, l.String())
	}
	var parts []string
	if len(add) > 0 {
		parts = append(parts, fmt.Sprintf("give %s the %s %s", e.Name, plural(len(add), "label"), shown(add)))
	}
	if gone := slices.DeleteFunc(slices.Clone(drop), func(l labels.Label) bool {
		return slices.ContainsFunc(add, func(a labels.Label) bool { return a.Source == l.Source && a.Key == l.Key })
	}); len(gone) > 0 {
		if len(add) == 0 {
			out.Kind = RemoveLabel
		}
		parts = append(parts, fmt.Sprintf("take the %s %s off %s", plural(len(gone), "label"), shown(gone), e.Name))
	}
	out.Text = strings.Join(parts, " and ")
	out.apply = func(s *state) {
		to := s.end(sender)
		kept := slices.DeleteFunc(slices.Clone(to.Identity.Labels), func(l labels.Label) bool { return slices.Contains(drop, l) })
		to.Identity.Labels = labels.New(append(kept, add...)...)
	}
	return out, true
}

func plural(n int, what string) string {
	if n == 1 {
		return what
	}
	return what + "s"
}

// shown writes labels as people do, without the usual source.
func shown(ls []labels.Label) string {
	var out []string
	for _, l := range ls {
		out = append(out, strings.TrimPrefix(l.String(), labels.SourceK8s+":"))
	}
	return strings.Join(out, ", ")
}

func removeLabel(e End, sender bool, l labels.Label) Edit {
	return Edit{
		Kind: RemoveLabel, End: e.Name, Labels: []string{l.String()}, cost: 1, rank: 3,
		Text: fmt.Sprintf("take the label %s off %s", shown([]labels.Label{l}), e.Name),
		apply: func(s *state) {
			to := s.end(sender)
			to.Identity.Labels = slices.DeleteFunc(slices.Clone(to.Identity.Labels), func(o labels.Label) bool { return o == l })
		},
	}
}

// says puts an entry into a sentence.
func says(st policy.Step) string {
	var peers, ports []string
	for _, t := range st.Peers {
		peers = append(peers, t.Text)
	}
	for _, p := range st.Ports {
		ports = append(ports, p.String())
	}
	who, what := strings.Join(peers, " or "), strings.Join(ports, ", ")
	if st.Everyone {
		who = "everyone"
	}
	if who == "" {
		who = "nobody"
	}
	if what == "" {
		what = "every port"
	}
	verb, way := map[bool]string{true: "allows", false: "denies"}[st.Effect == policy.EffectAllow], "from"
	if st.Rule.Direction.String() == "egress" {
		way = "to"
	}
	return fmt.Sprintf("%s%s %s %s %s %s", st.Rule, at(st.Rule), verb, what, way, who)
}

func at(r policy.RuleRef) string {
	if p := (Rule{r}).Place(); p != "" {
		return " (" + p + ")"
	}
	return ""
}

func addPort(st policy.Step, p Port, peer End, rank int) Edit {
	return Edit{
		Kind: AddPort, Port: p.String(), Rules: []Rule{{st.Rule}}, cost: 1, rank: rank,
		Text: fmt.Sprintf("add %s to %s%s", p, st.Rule, at(st.Rule)),
		Why:  says(st) + fmt.Sprintf("; not %s", p),
		apply: func(s *state) {
			s.entry(st.Rule, func(e *policy.Entry) {
				e.Ports = append(slices.Clone(e.Ports), policy.Port{Proto: p.Proto, First: p.Number, Last: p.Number})
			})
		},
	}
}

// addPeer names the other end in the entry, if the entry names peers in a way that can.
func (q *question) addPeer(st policy.Step, peer End, peerSends bool) (Edit, bool) {
	copied := q.state()
	list := copied.list(st.Rule)
	if list == nil {
		return Edit{}, false
	}
	entry := (*list)[st.Rule.Index]
	out := Edit{Kind: AddPeer, Rules: []Rule{{st.Rule}}, cost: 2, Why: says(st)}
	for _, t := range st.Peers {
		out.Why += "; " + whyNot(peer, t.Missing)
	}
	switch {
	case entry.Peers.Kind == policy.PeersEndpoints && (peer.Kind == Workload || peer.Kind == Ad):
		var reqs []labels.Requirement
		for _, l := range peer.Identity.Labels {
			if own(l) || l.Key == labels.KeyNamespace && l.Value != st.Rule.Policy.Namespace {
				reqs = append(reqs, labels.Requirement{Source: l.Source, Key: l.Key, Operator: labels.In, Values: []string{l.Value}})
			}
		}
		sel, err := labels.NewSelector(reqs...)
		if err != nil || len(reqs) == 0 {
			return Edit{}, false
		}
		out.Peer = "{" + sel.String() + "}"
		out.apply = func(s *state) {
			s.entry(st.Rule, func(e *policy.Entry) { e.Peers.Endpoints = append(slices.Clone(e.Peers.Endpoints), sel) })
		}
	case (entry.Peers.Kind == policy.PeersCIDR || entry.Peers.Kind == policy.PeersCIDRSet) && len(peer.Addrs) == 1 && peer.Kind != Workload:
		block := netip.PrefixFrom(peer.Addrs[0], peer.Addrs[0].BitLen())
		out.Peer = block.String()
		out.apply = func(s *state) {
			s.entry(st.Rule, func(e *policy.Entry) { e.Peers.CIDRs = append(slices.Clone(e.Peers.CIDRs), policy.CIDR{Prefix: block}) })
			s.end(peerSends).Identity = identity.Identity{ID: identity.MaxLocal, Prefix: block, Labels: q.w.blockLabels(block)}
		}
	default:
		return Edit{}, false
	}
	out.Text = fmt.Sprintf("add %s to the peers of %s%s", out.Peer, st.Rule, at(st.Rule))
	return out, true
}

func removeRules(refs []policy.RuleRef) Edit {
	out := Edit{Kind: RemoveRule, cost: 2 * len(refs)}
	var names []string
	for _, r := range refs {
		out.Rules = append(out.Rules, Rule{r})
		names = append(names, r.String()+at(r))
	}
	out.Text = "remove " + strings.Join(names, " and ")
	// From the end, so that the indexes of those before stay.
	sorted := slices.SortedFunc(slices.Values(refs), func(a, b policy.RuleRef) int { return b.Index - a.Index })
	out.apply = func(s *state) {
		for _, ref := range sorted {
			s.remove(ref)
		}
	}
	return out
}
