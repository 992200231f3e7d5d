package policy

import (
	"fmt"
	"maps"
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

// explained returns the rules behind a cookie as the oracle names them.
func explained(e *Engine, c Cookie) string {
	var out []string
	for _, r := range e.Explain(c) {
		if r.Policy.Kind == KindPorin {
			out = append(out, r.Policy.Name)
			continue
		}
		list := r.Direction.String()
		if r.Deny {
			list += "Deny"
		}
		out = append(out, fmt.Sprintf("%s %s/%s %d %s[%d]", r.Policy.Kind, r.Policy.Namespace, r.Policy.Name, r.Spec, list, r.Index))
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
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
		case g.chance(85):
			p.port = pick[uint16](g, 0, 1, 2, 53, 79, 80, 81, 82, 100, 101, 120, 121, 443, 7999, 8000, 8001, 8020, 8079, 8080, 8081, 8900, 8901, 8980, 65534, 65535)
		}
		out = append(out, p)
	}
	return out
}

// held is what a datapath holds of a subject: the snapshot it got, and the patches since.
type held struct {
	Subject
	policies []oPolicy // that it was resolved from
	identity oIdentity
	ingress  bool
}

func hold(s *Subject, policies []oPolicy, i oIdentity, ingress bool) *held {
	h := &held{*s, policies, i, ingress}
	h.Peers = maps.Clone(s.Peers)
	return h
}

func apply(t *testing.T, hs map[SubjectKey]*held, patches []Patch) {
	t.Helper()
	for _, p := range patches {
		h, ok := hs[p.Subject]
		if !ok {
			t.Fatalf("patch for subject %s, which is unknown or forgotten", p.Subject)
		}
		maps.Copy(h.Peers, p.Put)
		for _, id := range p.Delete {
			if _, ok := h.Peers[id]; !ok {
				t.Fatalf("patch deletes row %d of subject %s, which is not there", id, p.Subject)
			}
			delete(h.Peers, id)
		}
	}
}

// same tells where two subjects differ in content.
func same(a, b *Subject) error {
	if a.Key != b.Key || a.Isolated != b.Isolated || a.Default != b.Default || a.Else.Key != b.Else.Key {
		return fmt.Errorf("head %s %t %d %s, other %s %t %d %s", a.Key, a.Isolated, a.Default, a.Else.Key, b.Key, b.Isolated, b.Default, b.Else.Key)
	}
	for id, tab := range a.Peers {
		if o, ok := b.Peers[id]; !ok || o.Key != tab.Key {
			return fmt.Errorf("peer %d: %v, other %v", id, tab.Rows, o)
		}
	}
	if len(a.Peers) != len(b.Peers) {
		return fmt.Errorf("%d peers, other %d", len(a.Peers), len(b.Peers))
	}
	return nil
}

// world is one random run: an engine and the oracle's view of the same.
type world struct {
	gen
	t          *testing.T
	cfg        oConfig
	engine     *Engine
	policies   []oPolicy
	identities map[uint32]oIdentity
	held       map[SubjectKey]*held
	verdicts   int
}

func newWorld(t *testing.T, g gen) *world {
	w := &world{gen: g, t: t, cfg: g.config(), identities: map[uint32]oIdentity{}, held: map[SubjectKey]*held{}}
	w.engine = NewEngine(w.cfg.real())
	for _, i := range oReserved() {
		w.identities[i.id] = i
	}
	for n := range uint32(4 + g.IntN(8)) {
		w.identities[1000+n] = g.workload(1000 + n)
	}
	for n, b := range oBlocks() {
		if g.chance(70) {
			w.identities[1<<24+uint32(n)] = g.outside(1<<24+uint32(n), b)
		}
	}
	w.engine.UpdateIdentities(w.known(), nil)
	for n := range g.IntN(6) {
		w.policies = append(w.policies, g.policy(fmt.Sprintf("p%d", n)))
	}
	w.engine.UpdatePolicies(w.parsed(w.policies), nil)
	return w
}

func (w *world) known() []identity.Identity {
	var out []identity.Identity
	for _, id := range slices.Sorted(maps.Keys(w.identities)) {
		out = append(out, w.identities[id].real())
	}
	return out
}

func (w *world) parsed(ps []oPolicy) []*Policy {
	var out []*Policy
	for _, p := range ps {
		out = append(out, parsed(w.t, p))
	}
	return out
}

// resolve asks for the subjects of every identity and keeps them.
func (w *world) resolve() {
	for _, id := range slices.Sorted(maps.Keys(w.identities)) {
		i := w.identities[id]
		in, out, err := w.engine.Resolve(i.real(), nil)
		if err != nil {
			w.t.Fatal(err)
		}
		for n, s := range []*Subject{in, out} {
			if h, ok := w.held[s.Key]; ok {
				if err := same(&h.Subject, s); err != nil {
					w.t.Fatalf("subject %s: what the patches made differs from the snapshot: %v", s.Key, err)
				}
				// an equal key means equal decisions, for this identity and for these policies too
				h.policies, h.identity = slices.Clone(w.policies), i
				continue
			}
			w.held[s.Key] = hold(s, slices.Clone(w.policies), i, n == 0)
		}
	}
}

// check asks the oracle about n packets of every pair of a held subject and a known or unknown peer.
func (w *world) check(n int) {
	w.t.Helper()
	peers := slices.Collect(maps.Values(w.identities))
	peers = append(peers, oIdentity{}) // nobody has heard of it: only rules for everyone count
	for _, key := range slices.Sorted(maps.Keys(w.held)) {
		h := w.held[key]
		for id, tab := range h.Peers {
			if tab.Key == h.Else.Key {
				w.t.Fatalf("subject %s has a row for peer %d that says what Else says", key, id)
			}
		}
		if len(w.held) > 30 && w.chance(50) {
			continue
		}
		for _, peer := range peers {
			for _, p := range w.packets(n) {
				want := oracle(w.cfg, h.policies, h.identity, peer, h.ingress, p.proto, p.port)
				v := h.Lookup(identity.ID(peer.id), p.proto, p.port)
				got := oVerdict{v.Action == verdict.Allow, v.ExplicitDeny, explained(w.engine, v.Cookie)}
				if w.verdicts++; got != want {
					var docs strings.Builder
					for _, d := range h.policies {
						docs.WriteString(string(d.document()) + "\n")
					}
					w.t.Fatalf("ingress=%t subject %v peer %v proto %d port %d\ngot  %+v\nwant %+v\nconfig %+v\n%s", h.ingress, h.identity, peer, p.proto, p.port, got, want, w.cfg, docs.String())
				}
			}
		}
	}
}

// checkDecide asks Decide about pairs of identities, some of which the engine does not know.
func (w *world) checkDecide(n int) {
	all := slices.Collect(maps.Values(w.identities))
	all = append(all, w.workload(5000), w.outside(1<<24+900, "10.1.1.0/25"))
	for range n {
		from, to := pick(w.gen, all...), pick(w.gen, all...)
		p := w.packets(1)[0]
		d := w.engine.Decide(from.real(), to.real(), p.proto, p.port)
		for _, side := range []struct {
			ingress       bool
			subject, peer oIdentity
			v             PortVerdict
		}{{false, from, to, d.Egress}, {true, to, from, d.Ingress}} {
			want := oracle(w.cfg, w.policies, side.subject, side.peer, side.ingress, p.proto, p.port)
			if side.subject.prefix != "" || side.subject.reserved("host", "world", "world-ipv4", "world-ipv6", "remote-node", "kube-apiserver") {
				want = oVerdict{true, false, "not an endpoint: not judged"}
			}
			got := oVerdict{side.v.Action == verdict.Allow, side.v.ExplicitDeny, explained(w.engine, side.v.Cookie)}
			if w.verdicts++; got != want {
				w.t.Fatalf("decide ingress=%t %v with %v proto %d port %d: got %+v want %+v", side.ingress, side.subject, side.peer, p.proto, p.port, got, want)
			}
		}
		if both := d.Egress.Action == verdict.Allow && d.Ingress.Action == verdict.Allow; both != (d.Action == verdict.Allow) {
			w.t.Fatalf("decide: %s from egress %s and ingress %s", d.Action, d.Egress.Action, d.Ingress.Action)
		}
	}
}

// step changes policies or identities at random.
func (w *world) step() {
	switch w.IntN(6) {
	case 0: // new or changed policies
		var put []oPolicy
		for range 1 + w.IntN(2) {
			put = append(put, w.policy(fmt.Sprintf("p%d", w.IntN(6))))
		}
		for _, p := range put {
			w.policies = slices.DeleteFunc(slices.Clone(w.policies), func(o oPolicy) bool {
				return o.name == p.name && o.namespace == p.namespace && o.kind == p.kind
			})
			w.policies = append(w.policies, p)
		}
		w.engine.UpdatePolicies(w.parsed(put), nil)
	case 1: // a policy goes
		if len(w.policies) > 0 {
			n := w.IntN(len(w.policies))
			p := w.policies[n]
			w.policies = slices.Delete(slices.Clone(w.policies), n, n+1)
			w.engine.UpdatePolicies(nil, []Ref{{p.kind, p.namespace, p.name}})
		}
	case 2, 3: // identities come, or come with other labels
		var add []identity.Identity
		for range 1 + w.IntN(3) {
			id := 1000 + w.Uint32N(14)
			i := w.workload(id)
			if w.chance(40) {
				n := w.Uint32N(uint32(len(oBlocks())))
				id = 1<<24 + n
				i = w.outside(id, oBlocks()[n])
			}
			w.identities[id] = i
			add = append(add, i.real())
		}
		apply(w.t, w.held, w.engine.UpdateIdentities(add, nil))
	case 4: // identities go
		var del []identity.ID
		for id := range w.identities {
			if id >= 256 && w.chance(20) {
				del = append(del, identity.ID(id))
			}
		}
		for _, id := range del {
			delete(w.identities, uint32(id))
		}
		apply(w.t, w.held, w.engine.UpdateIdentities(nil, del))
	case 5: // subjects are forgotten
		for key := range w.held {
			if w.chance(30) {
				w.engine.Forget(key)
				delete(w.held, key)
			}
		}
		w.engine.sweepNow()
	}
}

// fresh resolves everything in a new engine that learned the same in another order, and compares.
func (w *world) fresh() {
	e := NewEngine(w.cfg.real())
	ps, ids := w.parsed(w.policies), w.known()
	w.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
	w.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	switch w.IntN(4) {
	case 0: // at once
		e.UpdatePolicies(ps, nil)
		e.UpdateIdentities(ids, nil)
	case 1: // one by one, reversed
		slices.Reverse(ps)
		for _, p := range ps {
			e.UpdatePolicies([]*Policy{p}, nil)
		}
		for _, i := range ids {
			e.UpdateIdentities([]identity.Identity{i}, nil)
		}
	case 2: // identities first, with some that come and go
		e.UpdateIdentities(append(slices.Clone(ids), w.workload(9000).real()), nil)
		e.UpdatePolicies(ps, nil)
		e.UpdateIdentities(nil, []identity.ID{9000})
	case 3: // printed and read back in between, and a policy that comes and goes
		extra := w.parsed([]oPolicy{w.policy("extra")})
		e.UpdatePolicies(extra, nil)
		for _, p := range ps {
			b, err := p.Marshal()
			if err != nil {
				w.t.Fatal(err)
			}
			again, err := Parse(p.File, b)
			if err != nil {
				w.t.Fatalf("%v\n%s", err, b)
			}
			e.UpdatePolicies(again, nil)
			for _, i := range ids[:len(ids)/2] {
				e.UpdateIdentities([]identity.Identity{i}, nil)
			}
		}
		e.UpdateIdentities(ids, nil)
		e.UpdatePolicies(nil, []Ref{extra[0].Ref})
	}
	for _, i := range ids {
		in, out, err := w.engine.Resolve(i, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		in2, out2, err := e.Resolve(i, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, pair := range [][2]*Subject{{in, in2}, {out, out2}} {
			if err := same(pair[0], pair[1]); err != nil {
				w.t.Fatalf("identity %v: an engine that learned the same in another order resolves differently: %v", i, err)
			}
		}
	}
}

// TestOracle compares the engine with the oracle on random rules: freshly resolved subjects, subjects patched through
// random changes, subjects of rules that are gone but still in use, and other orders of the same changes.
func TestOracle(t *testing.T) {
	g := seed(t)
	verdicts, explicit := 0, 0
	for verdicts < 300_000 {
		w := newWorld(t, g)
		w.resolve()
		w.check(6)
		w.checkDecide(60)
		for range 6 {
			w.step()
			w.check(1)
		}
		w.resolve()
		w.check(3)
		w.fresh()
		verdicts += w.verdicts
		for _, h := range w.held {
			for _, tab := range h.Peers {
				for _, r := range tab.Rows {
					explicit += b2i(r.Verdict.ExplicitDeny)
				}
			}
		}
	}
	t.Logf("%d verdicts agree", verdicts)
	if explicit == 0 {
		t.Error("no deny row was ever made: the generator is broken")
	}
}
