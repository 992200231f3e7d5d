package advise

import (
	"cmp"
	"fmt"
	"slices"

	"porin/internal/identity"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// grid is every end resolved once: the same tables that the kernel would hold, so that many questions are cheap.
type grid struct {
	w        *World
	subjects map[string][3]*policy.Subject    // by direction; nil: not judged
	open     map[string][3]policy.PortVerdict // of those that are not judged
	rules    map[policy.Cookie][]policy.RuleRef
}

// newGrid resolves the ends. Ends of different content must have different numbers.
func (w *World) newGrid(ends []End) (*grid, error) {
	g := &grid{w: w, subjects: map[string][3]*policy.Subject{}, open: map[string][3]policy.PortVerdict{}, rules: map[policy.Cookie][]policy.RuleRef{}}
	add := append(identity.Reserved(), w.blocks...)
	for _, e := range ends {
		add = append(add, e.Identity)
	}
	w.Engine.UpdateIdentities(add, nil)
	for _, e := range ends {
		id, key := e.Identity, e.subject()
		if _, ok := g.subjects[key]; ok || g.open[key] != [3]policy.PortVerdict{} {
			continue
		}
		if !w.Engine.Judges(id) {
			d := w.Engine.Decide(id, id, 0, 0)
			g.open[key] = [3]policy.PortVerdict{verdict.Ingress: d.Ingress, verdict.Egress: d.Egress}
			continue
		}
		in, out, err := w.Engine.Resolve(id, e.Ports)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
		g.subjects[key] = [3]*policy.Subject{verdict.Ingress: in, verdict.Egress: out}
	}
	return g, nil
}

// subject tells ends apart that rules may treat differently as subjects: of two workloads with the same labels, a name of a
// port may mean different numbers.
func (e End) subject() string {
	if len(e.Ports) == 0 {
		return e.Identity.ID.String()
	}
	return fmt.Sprint(e.Identity.ID, e.Ports)
}

// side is what one end says about a peer.
func (g *grid) side(e, peer End, d verdict.Direction, p Port) policy.PortVerdict {
	key := e.subject()
	if s := g.subjects[key][d]; s != nil {
		return s.Lookup(peer.Identity.ID, p.Proto, p.Number)
	}
	return g.open[key][d]
}

// ask is World.Ask out of the tables.
func (g *grid) ask(from, to End, p Port) answer {
	return answer{g.side(from, to, verdict.Egress, p), g.side(to, from, verdict.Ingress, p)}
}

// answer is what both ends say.
type answer struct{ egress, ingress policy.PortVerdict }

// action joins both ends as the engine does; audit is the engine's audit mode.
func (a answer) action(audit bool) verdict.Action {
	switch {
	case a.egress.Action == verdict.Deny || a.ingress.Action == verdict.Deny:
		if audit {
			return verdict.Audit
		}
		return verdict.Deny
	case a.egress.Action == verdict.Redirect || a.ingress.Action == verdict.Redirect:
		return verdict.Redirect
	case a.egress.Action == verdict.Audit || a.ingress.Action == verdict.Audit:
		return verdict.Audit
	}
	return verdict.Allow
}

func (g *grid) explain(c policy.Cookie) []policy.RuleRef {
	if r, ok := g.rules[c]; ok {
		return r
	}
	r := g.w.Engine.Explain(c)
	g.rules[c] = r
	return r
}

// verdict names the end that decided and its rules: those of an end that denies, or of both.
func (g *grid) verdict(a answer) Verdict {
	return join(a, a.action(g.w.Config.Audit), g.explain)
}

// stands tells whether one end alone brings the verdict about: it denies, or a rule of it that only reports would.
func stands(v policy.PortVerdict, action verdict.Action) bool {
	return v.Action == verdict.Deny || action == verdict.Audit && v.Action == verdict.Audit
}

func join(a answer, action verdict.Action, explain func(policy.Cookie) []policy.RuleRef) Verdict {
	v := Verdict{Action: action, Side: "both"}
	out, in := stands(a.egress, action), stands(a.ingress, action)
	switch {
	case out && !in:
		v.Side, v.Rules = "egress", rulesOf(explain(a.egress.Cookie))
	case in && !out:
		v.Side, v.Rules = "ingress", rulesOf(explain(a.ingress.Cookie))
	default:
		v.Rules = rulesOf(slices.Concat(explain(a.egress.Cookie), explain(a.ingress.Cookie)))
	}
	return v
}

// Cell is one entry of the truth table.
type Cell struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Port    string `json:"port"`
	Named   string `json:"named,omitempty"` // as it was asked about
	Verdict string `json:"verdict"`
	Side    string `json:"side"`
	Rules   []Rule `json:"rules"`
}

// Matrix asks about each of froms to each of tos, but not to itself, on each port.
func (w *World) Matrix(froms, tos []End, ports []Port) ([]Cell, error) {
	g, err := w.newGrid(append(slices.Clone(froms), tos...))
	if err != nil {
		return nil, err
	}
	out := []Cell{}
	for _, p := range ports {
		for _, from := range froms {
			for _, to := range tos {
				out = g.cell(out, from, to, p, "")
			}
		}
	}
	return out, nil
}

// MatrixNamed is Matrix on a port by its name, whatever its number is at each of tos. Those that have none are left out.
func (w *World) MatrixNamed(froms, tos []End, name string) ([]Cell, error) {
	g, err := w.newGrid(append(slices.Clone(froms), tos...))
	if err != nil {
		return nil, err
	}
	out := []Cell{}
	var missing error
	for _, to := range tos {
		ports, err := to.Port(name, w.Config.Families)
		missing = cmp.Or(err, missing)
		for _, p := range ports {
			for _, from := range froms {
				out = g.cell(out, from, to, p, name)
			}
		}
	}
	if len(out) == 0 && missing != nil {
		return nil, fmt.Errorf("nobody has a port called %q: %w", name, missing)
	}
	return out, nil
}

func (g *grid) cell(out []Cell, from, to End, p Port, name string) []Cell {
	if from.Name == to.Name || !common(from, to, p) {
		return out
	}
	v := g.verdict(g.ask(from, to, p))
	return append(out, Cell{From: from.Name, To: to.Name, Port: p.String(), Named: name, Verdict: v.Word(), Side: v.Side, Rules: v.Rules})
}

// common tells whether a packet of the protocol can go between them: IPv4's ICMP does not go to an IPv6 address.
func common(from, to End, p Port) bool {
	for _, family := range []string{"ipv4", "ipv6"} {
		if family == "ipv4" && p.Proto == policy.ProtoICMPv6 || family == "ipv6" && p.Proto == policy.ProtoICMP {
			continue
		}
		if speaks(from, family) && speaks(to, family) {
			return true
		}
	}
	return false
}

// Served returns every port that a workload serves, or has a name for where it does not say, each once, in order; 80/TCP
// if none says.
func (w *World) Served() (out []Port) {
	for _, e := range w.Workloads() {
		for _, s := range e.Serves {
			if !slices.Contains(out, s.Port) {
				out = append(out, s.Port)
			}
		}
		for _, n := range e.Ports {
			if p := (Port{n.Proto, n.Port}); len(e.Serves) == 0 && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	if len(out) == 0 {
		return []Port{{policy.ProtoTCP, 80}}
	}
	slices.SortFunc(out, comparePorts)
	return out
}

func comparePorts(a, b Port) int {
	return 65536*(slices.Index(protocols(), a.Proto)-slices.Index(protocols(), b.Proto)) + int(a.Number) - int(b.Number)
}
