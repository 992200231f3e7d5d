package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/verdict"
)

// seed returns the seed of a random test: PORIN_SEED, or a new one. It is printed so that a failure can be repeated.
func seed(t *testing.T) gen {
	t.Helper()
	n := rand.Uint64()
	if s := os.Getenv("PORIN_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("PORIN_SEED=%q is no number: %v", s, err)
		}
	}
	t.Logf("PORIN_SEED=%d", n)
	return gen{rand.New(rand.NewPCG(n, 1))}
}

func (i oIdentity) real() identity.Identity {
	r := identity.Identity{ID: identity.ID(i.id)}
	var ls []labels.Label
	for _, l := range i.labels {
		ls = append(ls, labels.Label{Source: l[0], Key: l[1], Value: l[2]})
	}
	r.Labels = labels.New(ls...)
	if i.prefix != "" {
		r.Prefix = netip.MustParsePrefix(i.prefix)
	}
	return r
}

func (c oConfig) real() Config {
	return Config{Enforcement: c.enforcement, AllowLocalhost: c.localhost, Cluster: c.cluster, DualStack: c.dual, OnlyIPv6: c.six}
}

func (g gen) config() oConfig {
	return oConfig{
		enforcement: pick(g, "default", "default", "default", "always", "never"),
		localhost:   pick(g, "auto", "always", "policy"), cluster: pick(g, "", "one"), dual: g.chance(70), six: g.chance(50),
	}
}

// parsed hands p to Parse.
func parsed(t *testing.T, p oPolicy) *Policy {
	t.Helper()
	ps, err := Parse(p.name+".json", p.document())
	if err != nil {
		t.Fatalf("%v\n%s", err, p.document())
	}
	if len(ps) != 1 {
		t.Fatalf("%d policies in\n%s", len(ps), p.document())
	}
	return ps[0]
}

// called is what the oracle calls a rule.
func called(r RuleRef) string {
	if r.Policy.Kind == KindPorin {
		return r.Policy.Name
	}
	list := r.Direction.String()
	if r.Deny && r.Policy.Kind != KindClusterNetworkPolicy {
		list += "Deny"
	}
	return fmt.Sprintf("%s %s/%s %d %s[%d]", r.Policy.Kind, r.Policy.Namespace, r.Policy.Name, r.Spec, list, r.Index)
}

// explained returns the rules behind a cookie as the oracle names them.
func explained(e *Engine, c Cookie) string {
	var out []string
	for _, r := range e.Explain(c) {
		out = append(out, called(r))
	}
	return join(out)
}

// verdictOf says a verdict as the oracle does.
func verdictOf(t *testing.T, e *Engine, v PortVerdict) oVerdict {
	t.Helper()
	out := oVerdict{action: v.Action.String(), explicit: v.ExplicitDeny, auth: v.Auth, rules: explained(e, v.Cookie)}
	if v.Action != verdict.Redirect {
		if v.L7 != 0 {
			t.Fatalf("%+v names a layer 7 set", v)
		}
		return out
	}
	set, ok := e.L7(v.L7)
	if !ok || set.ID != v.L7 {
		t.Fatalf("%+v: the engine does not know the layer 7 set", v)
	}
	var said []string
	for _, r := range set.Rules {
		l := oL7{parser: r.L7.Parser, names: r.L7.ServerNames, listener: r.L7.Listener}
		for _, h := range r.L7.HTTP {
			l.rules = append(l.rules, strings.TrimSuffix(strings.TrimPrefix(h.Path.String(), "^(?:"), ")$"))
		}
		for _, k := range r.L7.Kafka {
			l.rules = append(l.rules, k.Topic)
		}
		for _, f := range r.L7.DNS {
			l.rules = append(l.rules, f.Name)
		}
		for _, m := range r.L7.Generic {
			l.rules = append(l.rules, m["word"])
		}
		said = append(said, called(r.Rule)+" "+l.String())
		if k := explained(e, r.Cookie); k != called(r.Rule) {
			t.Fatalf("cookie of %s explains %s", called(r.Rule), k)
		}
		if r.L7.Parser != "" && r.L7.Parser != set.Parser {
			t.Fatalf("parser %q in a set of %q", r.L7.Parser, set.Parser)
		}
	}
	out.l7 = join(said)
	return out
}

func realPorts(list []oNumber) (out []NamedPort) {
	for _, n := range list {
		out = append(out, NamedPort{n.name, n.proto, n.port})
	}
	return out
}

type packet struct {
	proto uint8
	port  uint16
}

// packets returns what is worth asking: around every number that the generator uses, and anything.
func (g gen) packets(n int) []packet {
	var out []packet
	for range n {
		p := packet{pick[uint8](g, ProtoTCP, ProtoTCP, ProtoUDP, ProtoSCTP, ProtoICMP, ProtoICMPv6, 47), uint16(g.UintN(65536))}
		switch {
		case p.proto == 47:
			p.port = 0
		case p.proto == ProtoICMP || p.proto == ProtoICMPv6:
			p.port = pick[uint16](g, 0, 3, 8, 9, 128, 129, 255)
		case g.chance(45):
			p.port = pick[uint16](g, 53, 80, 80, 81, 443, 8080)
		case g.chance(85):
			p.port = pick[uint16](g, 0, 1, 2, 53, 79, 80, 81, 82, 100, 101, 120, 121, 443, 7999, 8000, 8001, 8020, 8079, 8080, 8081, 8900, 8901, 8980, 65534, 65535)
		}
		out = append(out, p)
	}
	return out
}

// TestOracle compares the engine with the oracle on random rules: freshly resolved subjects, subjects patched through
// random changes, subjects of rules that are gone but still in use, and other orders of the same changes.
func TestOracle(t *testing.T) {
	g := seed(t)
	verdicts, seen := 0, map[string]int{}
	kinds := []string{"allow", "deny", "redirect", "audit", "auth", "explicit", "conflict"}
	missing := func() bool { return slices.ContainsFunc(kinds, func(k string) bool { return seen[k] == 0 }) }
	for verdicts < 300_000 || missing() && verdicts < 10_000_000 {
		w := newWorld(t, g)
		w.resolve()
		w.check(6)
		w.checkDecide(60)
		for range 8 {
			w.step()
			w.check(1)
		}
		w.resolve()
		w.check(3)
		w.fresh()
		verdicts += w.verdicts
		for k, n := range w.seen {
			seen[k] += n
		}
	}
	t.Logf("%d verdicts agree: %v", verdicts, seen)
	if missing() {
		t.Errorf("some kind of verdict was never made, of %v: the generator is broken", kinds)
	}
}
