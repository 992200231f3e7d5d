package advise

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"porin/internal/identity"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// Span is ports First to Last of a protocol, or all protocols that have no span of their own.
type Span struct {
	Proto       uint8
	Other       bool
	First, Last uint16
}

func (s Span) String() string {
	name := protocolName(s.Proto)
	if isICMP(s.Proto) && s.Last == 65535 && s.First > 0 && s.First <= 255 {
		s.Last = 255 // there are no more types
	}
	switch {
	case s.Other:
		return "other protocols"
	case s.First == 0 && s.Last == 65535:
		return name
	case s.First == s.Last:
		return fmt.Sprintf("%d/%s", s.First, name)
	}
	return fmt.Sprintf("%d-%d/%s", s.First, s.Last, name)
}

func isICMP(proto uint8) bool { return proto == policy.ProtoICMP || proto == policy.ProtoICMPv6 }

// SpanNames is spans in words; "everything" when nothing is left out.
func SpanNames(spans []Span) string {
	out := make([]string, 0, len(spans))
	whole := 0
	for _, s := range spans {
		if s.Other || !isICMP(s.Proto) || s.First <= 255 {
			out = append(out, s.String())
		}
		if s.Other || s.First == 0 && s.Last == 65535 {
			whole++
		}
	}
	if whole == len(spans) && whole > len(protocols()) {
		return "everything"
	}
	return strings.Join(out, ", ")
}

// pieces returns spans that together are everything, within each of which the tables say one thing. The tables are the
// rows that the kernel would hold, so no port has to be tried out.
func pieces(tables []*policy.Table) (out []Span) {
	cuts := map[uint8]map[uint32]bool{}
	for _, p := range protocols() {
		cuts[p] = map[uint32]bool{0: true}
	}
	for _, t := range tables {
		if t == nil {
			continue
		}
		for _, r := range t.Rows {
			if r.Proto == 0 {
				continue
			}
			if cuts[r.Proto] == nil {
				cuts[r.Proto] = map[uint32]bool{0: true}
			}
			if !r.AnyPort {
				cuts[r.Proto][uint32(r.First)], cuts[r.Proto][uint32(r.Last)+1] = true, true
			}
		}
	}
	other := uint8(255) // reserved by IANA; a rule could still name it
	for cuts[other] != nil {
		other--
	}
	for proto, at := range cuts {
		var starts []uint32
		for n := range at {
			if n <= 65535 {
				starts = append(starts, n)
			}
		}
		slices.Sort(starts)
		for i, n := range starts {
			last := uint32(65535)
			if i+1 < len(starts) {
				last = starts[i+1] - 1
			}
			out = append(out, Span{Proto: proto, First: uint16(n), Last: uint16(last)})
		}
	}
	out = append(out, Span{Proto: other, Other: true, Last: 65535})
	place := func(s Span) int {
		if i := slices.Index(protocols(), s.Proto); i >= 0 {
			return i
		}
		return 256 + int(s.Proto)
	}
	slices.SortFunc(out, func(a, b Span) int { return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a.First, b.First)) })
	return out
}

// joinSpan appends s, or lets the last span go on into it.
func joinSpan(spans []Span, s Span) []Span {
	if n := len(spans); n > 0 && spans[n-1].Proto == s.Proto && uint32(spans[n-1].Last)+1 == uint32(s.First) {
		spans[n-1].Last = s.Last
		return spans
	}
	return append(spans, s)
}

// table returns the rows that decide in one direction; nil where nothing is judged.
func (g *grid) table(e, peer End, d verdict.Direction) *policy.Table {
	s := g.subjects[e.subject()][d]
	if s == nil {
		return nil
	}
	if t, ok := s.Peers[peer.Identity.ID]; ok {
		return t
	}
	return s.Else
}

func (g *grid) tables(from, to End) []*policy.Table {
	return []*policy.Table{g.table(from, to, verdict.Egress), g.table(to, from, verdict.Ingress)}
}

// Known returns everybody whom the rules can tell apart: the workloads, replicas once; outside hosts by address; the
// blocks that policies name; and the reserved identities.
func (w *World) Known() (out []End) {
	for _, e := range w.Ends {
		switch e.Kind {
		case Workload:
			if e.Replica != "" {
				e.Name = e.Replica
			}
			if !slices.ContainsFunc(out, func(o End) bool { return o.Name == e.Name }) {
				out = append(out, e)
			}
		case Outside:
			for _, a := range e.Addrs {
				out = append(out, End{Kind: Outside, Name: fmt.Sprintf("%s (%s)", e.Name, a), Identity: w.At(a), Addrs: []netip.Addr{a}, Names: e.Names})
			}
		case Node:
			if len(e.Identity.Labels) > 1 { // labels of its own, which rules may name
				out = append(out, e)
			}
		}
	}
	for _, b := range w.blocks {
		out = append(out, End{Kind: Address, Name: b.Prefix.String(), Identity: b})
	}
	ids := []identity.ID{identity.Host, identity.RemoteNode, identity.KubeAPIServer, identity.World}
	if w.Config.DualStack {
		ids = append(ids[:3], identity.WorldIPv4, identity.WorldIPv6)
	}
	for _, id := range ids {
		out = append(out, End{Kind: Reserved, Name: id.String(), Identity: w.reserved(id)})
	}
	return out
}

// Reached is what one end may do at another.
type Reached struct {
	From  string   `json:"from"`
	To    string   `json:"to"`
	Ports []string `json:"ports"`
	Rules []Rule   `json:"rules"`
	Spans []Span   `json:"-"`
}

// Reach tells who of known can reach the end, or with out whom the end can reach, and on which ports.
func (w *World) Reach(end End, out bool, known []End) ([]Reached, error) {
	g, err := w.newGrid(append(slices.Clone(known), end))
	if err != nil {
		return nil, err
	}
	list := []Reached{}
	for _, peer := range known {
		from, to := peer, end
		if out {
			from, to = end, peer
		}
		if from.Name == to.Name || end.Replica == peer.Name {
			continue
		}
		r := Reached{From: from.Name, To: to.Name, Ports: []string{}, Rules: []Rule{}}
		for _, s := range pieces(g.tables(from, to)) {
			v := g.verdict(g.ask(from, to, Port{s.Proto, s.First}))
			if v.Action == verdict.Deny {
				continue
			}
			r.Spans = joinSpan(r.Spans, s)
			for _, rule := range v.Rules {
				if !slices.Contains(r.Rules, rule) {
					r.Rules = append(r.Rules, rule)
				}
			}
		}
		for _, s := range r.Spans {
			r.Ports = append(r.Ports, s.String())
		}
		if len(r.Spans) > 0 {
			list = append(list, r)
		}
	}
	return list, nil
}

// Change is a verdict that differs between two sets of policies.
type Change struct {
	From     string   `json:"from"`
	To       string   `json:"to"`
	Ports    []string `json:"ports"`
	Old      string   `json:"old"`
	New      string   `json:"new"`
	OldRules []Rule   `json:"old_rules"`
	NewRules []Rule   `json:"new_rules"`
	Spans    []Span   `json:"-"`
}

// Diff returns every verdict that changes between the policies of w and those of next, for all ports, among the
// workloads of w and whoever the rules of either set can tell apart.
func (w *World) Diff(next *World) ([]Change, error) {
	for _, one := range []*World{w, next} {
		one.setBlocks(append(slices.Clone(w.Policies), next.Policies...))
	}
	known := w.Known()
	a, err := w.newGrid(known)
	if err != nil {
		return nil, err
	}
	b, err := next.newGrid(known)
	if err != nil {
		return nil, err
	}
	out := []Change{}
	for _, from := range known {
		for _, to := range known {
			if from.Name != to.Name && (from.Kind == Workload || to.Kind == Workload) {
				out = append(out, changes(a, b, from, to)...)
			}
		}
	}
	return out, nil
}

// changes compares one pair of ends. Ports that change alike by the same rules are one change.
func changes(a, b *grid, from, to End) (out []Change) {
	for _, s := range pieces(append(a.tables(from, to), b.tables(from, to)...)) {
		p := Port{s.Proto, s.First}
		x, y := a.ask(from, to, p), b.ask(from, to, p)
		before, after := word(x.action(a.w.Config.Audit)), word(y.action(b.w.Config.Audit))
		if before == after {
			continue
		}
		c := Change{From: from.Name, To: to.Name, Old: before, New: after, OldRules: a.verdict(x).Rules, NewRules: b.verdict(y).Rules}
		i := slices.IndexFunc(out, func(o Change) bool {
			return o.Old == c.Old && o.New == c.New && slices.Equal(o.OldRules, c.OldRules) && slices.Equal(o.NewRules, c.NewRules)
		})
		if i < 0 {
			i = len(out)
			out = append(out, c)
		}
		out[i].Spans = joinSpan(out[i].Spans, s)
	}
	for i := range out {
		for _, s := range out[i].Spans {
			out[i].Ports = append(out[i].Ports, s.String())
		}
	}
	return out
}
