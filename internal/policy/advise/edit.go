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
	DropAuth    = "drop-authentication"
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
	verb, way := "allows", "from"
	switch st.Effect {
	case policy.EffectDeny:
		verb = "denies"
	case policy.EffectPass:
		verb = "passes on"
	}
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

// canSay tells whether documents of a kind have words for a port: those of Kubernetes have none for ICMP.
func canSay(kind string, p Port) bool {
	icmp := p.Proto == policy.ProtoICMP || p.Proto == policy.ProtoICMPv6
	return !icmp || kind != policy.KindKubernetesNetworkPolicy && kind != policy.KindClusterNetworkPolicy
}

func addPort(st policy.Step, p Port, peer End, rank int) Edit {
	return Edit{
		Kind: AddPort, Port: p.String(), Rules: []Rule{{st.Rule}}, cost: 1, rank: rank,
		Text: fmt.Sprintf("add %s to %s%s", p, st.Rule, at(st.Rule)),
		Why:  says(st) + fmt.Sprintf("; not %s", p),
		apply: func(s *state) {
			s.entry(st.Rule, func(e *policy.Entry) bool {
				e.Ports = append(slices.Clone(e.Ports), policy.Port{Proto: p.Proto, First: p.Number, Last: p.Number})
				return true
			})
		},
	}
}

// dropAuth lets an entry allow without an authentication.
func dropAuth(st policy.Step) Edit {
	return Edit{
		Kind: DropAuth, Rules: []Rule{{st.Rule}}, cost: 2,
		Text: fmt.Sprintf("take the authentication out of %s%s", st.Rule, at(st.Rule)),
		Why:  says(st) + ", if they authenticate; nothing authenticates workloads yet",
		apply: func(s *state) {
			s.entry(st.Rule, func(e *policy.Entry) bool {
				e.Auth = policy.AuthNone
				return true
			})
		},
	}
}

// addPeer names the other end in the entry, if the entry names peers in a way that can.
func (q *question) addPeer(st policy.Step, peer End, peerSends bool) (Edit, bool) {
	copied := q.state()
	out := Edit{Kind: AddPeer, Rules: []Rule{{st.Rule}}, cost: 2, Why: says(st)}
	for _, t := range st.Peers {
		out.Why += "; " + whyNot(peer, t.Missing)
	}
	for _, entry := range copied.entries(st.Rule) {
		name, change := q.peerFor(entry.Peers.Kind, st, peer, peerSends)
		if change == nil {
			continue
		}
		kind := entry.Peers.Kind
		out.Peer, out.Text = name, fmt.Sprintf("add %s to the peers of %s%s", name, st.Rule, at(st.Rule))
		out.apply = func(s *state) {
			done := false // one of the entries is enough
			s.entry(st.Rule, func(e *policy.Entry) bool {
				if done || e.Peers.Kind != kind {
					return false
				}
				done = true
				change(s, &e.Peers)
				return true
			})
		}
		return out, true
	}
	return Edit{}, false
}

// peerFor says how a list of peers of one kind can name an end: the words, and what to do; nil where it cannot.
func (q *question) peerFor(kind policy.PeerKind, st policy.Step, peer End, peerSends bool) (string, func(*state, *policy.Peers)) {
	single := len(peer.Addrs) == 1 && peer.Kind != Workload
	switch {
	case kind == policy.PeersEndpoints && (peer.Kind == Workload || peer.Kind == Ad):
		var reqs []labels.Requirement
		for _, l := range peer.Identity.Labels {
			if own(l) || l.Key == labels.KeyNamespace && l.Value != st.Rule.Policy.Namespace {
				reqs = append(reqs, labels.Requirement{Source: l.Source, Key: l.Key, Operator: labels.In, Values: []string{l.Value}})
			}
		}
		sel, err := labels.NewSelector(reqs...)
		if err != nil || len(reqs) == 0 {
			return "", nil
		}
		return "{" + sel.String() + "}", func(_ *state, p *policy.Peers) { p.Endpoints = append(slices.Clone(p.Endpoints), sel) }
	case (kind == policy.PeersCIDR || kind == policy.PeersCIDRSet) && single:
		block := netip.PrefixFrom(peer.Addrs[0], peer.Addrs[0].BitLen())
		return block.String(), func(s *state, p *policy.Peers) {
			p.CIDRs = append(slices.Clone(p.CIDRs), policy.CIDR{Prefix: block})
			if e := s.end(peerSends); !e.Identity.Prefix.IsSingleIP() {
				e.Identity = identity.Identity{ID: identity.MaxLocal, Prefix: block, Labels: q.w.blockLabels(block)}
			}
		}
	case kind == policy.PeersEntities && peer.Kind == Reserved:
		name := strings.TrimPrefix(peer.Name, "reserved:")
		if !slices.Contains(policy.EntityNames(), name) {
			return "", nil
		}
		return "the entity " + name, func(_ *state, p *policy.Peers) { p.Entities = append(slices.Clone(p.Entities), name) }
	case kind == policy.PeersEntities && (peer.Kind == Outside || peer.Kind == Address) && single:
		return "the entity world", func(_ *state, p *policy.Peers) { p.Entities = append(slices.Clone(p.Entities), "world") }
	case kind == policy.PeersEntities && peer.Kind == Node && peer.Identity.ID == identity.Host:
		return "the entity host", func(_ *state, p *policy.Peers) { p.Entities = append(slices.Clone(p.Entities), "host") }
	case kind == policy.PeersFQDNs && len(peer.Names) > 0 && single:
		f := policy.FQDN{Name: peer.Names[0]}
		block := netip.PrefixFrom(peer.Addrs[0], peer.Addrs[0].BitLen())
		return "the name " + strings.TrimSuffix(f.Name, "."), func(s *state, p *policy.Peers) {
			p.FQDNs = append(slices.Clone(p.FQDNs), f)
			ls := labels.New(append([]labels.Label(q.w.blockLabels(block)), labels.Label{Source: labels.SourceFQDN, Key: f.Name})...)
			s.end(peerSends).Identity = identity.Identity{ID: identity.MaxLocal, Prefix: block, Labels: ls}
		}
	}
	return "", nil
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
