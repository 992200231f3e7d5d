package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"porin/internal/identity"
	"porin/internal/verdict"
)

// held is what a datapath holds of a subject: the snapshot it got, and the patches since.
type held struct {
	Subject
	docs    []oPolicy // that it was resolved from
	end     oEnd
	ingress bool
}

func hold(s *Subject, docs []oPolicy, end oEnd, ingress bool) *held {
	h := &held{*s, docs, end, ingress}
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
	docs       []oPolicy
	identities map[uint32]oIdentity
	ports      map[uint32][]oNumber
	held       map[SubjectKey]*held
	verdicts   int
	seen       map[string]int
}

func newWorld(t *testing.T, g gen) *world {
	w := &world{
		gen: g, t: t, cfg: g.config(), identities: map[uint32]oIdentity{}, ports: map[uint32][]oNumber{}, held: map[SubjectKey]*held{},
		seen: map[string]int{},
	}
	w.engine = NewEngine(w.cfg.real())
	for _, i := range oReserved() {
		w.identities[i.id] = i
	}
	if g.chance(70) {
		w.identities[1] = g.node(1)
	}
	for n := range uint32(4 + g.IntN(8)) {
		w.identities[1000+n] = g.workload(1000 + n)
		if g.chance(60) {
			w.ports[1000+n] = g.numbers()
		}
	}
	for n := range uint32(g.IntN(3)) {
		w.identities[2<<24+n] = g.node(2<<24 + n)
	}
	for n, b := range oBlocks() {
		if g.chance(70) {
			w.identities[1<<24+uint32(n)] = g.outside(1<<24+uint32(n), b)
		}
	}
	w.engine.UpdatePorts(w.numbers())
	w.engine.UpdateIdentities(w.known(), nil)
	for n := range g.IntN(6) {
		w.docs = append(w.docs, g.policy(fmt.Sprintf("p%d", n)))
	}
	for range g.IntN(5) {
		w.docs = replaced(w.docs, g.object())
	}
	w.engine.UpdatePolicies(w.parsed(w.docs), nil)
	return w
}

// replaced returns docs with p, instead of an older one of the same name.
func replaced(docs []oPolicy, p oPolicy) []oPolicy {
	docs = slices.DeleteFunc(slices.Clone(docs), func(o oPolicy) bool {
		return o.name == p.name && o.namespace == p.namespace && o.kind == p.kind
	})
	return append(docs, p)
}

func (w *world) known() []identity.Identity {
	var out []identity.Identity
	for _, id := range slices.Sorted(maps.Keys(w.identities)) {
		out = append(out, w.identities[id].real())
	}
	return out
}

func (w *world) numbers() map[identity.ID][]NamedPort {
	out := map[identity.ID][]NamedPort{}
	for id, list := range w.ports {
		out[identity.ID(id)] = realPorts(list)
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

// end is an identity with named ports of its own, which may differ from those of others of the identity.
func (w *world) end(i oIdentity) oEnd {
	e := oEnd{i, w.ports[i.id]}
	if w.chance(30) {
		e.ports = w.gen.numbers()
	}
	return e
}

// resolve asks for the subjects of every identity and keeps them.
func (w *world) resolve() {
	for _, id := range slices.Sorted(maps.Keys(w.identities)) {
		end := w.end(w.identities[id])
		in, out, err := w.engine.Resolve(end.real(), realPorts(end.ports))
		if err != nil {
			w.t.Fatal(err)
		}
		if k, l := w.engine.Keys(end.real(), realPorts(end.ports)); k != in.Key || l != out.Key {
			w.t.Fatalf("keys %s and %s of subjects %s and %s", k, l, in.Key, out.Key)
		}
		for n, s := range []*Subject{in, out} {
			if h, ok := w.held[s.Key]; ok {
				if err := same(&h.Subject, s); err != nil {
					w.t.Fatalf("subject %s: what the patches made differs from the snapshot: %v", s.Key, err)
				}
				// an equal key means equal decisions, for this identity and for these policies too
				h.docs, h.end = slices.Clone(w.docs), end
				continue
			}
			w.held[s.Key] = hold(s, slices.Clone(w.docs), end, n == 0)
		}
	}
}

// check asks the oracle about n packets of every pair of a held subject and a known or unknown peer.
func (w *world) check(n int) {
	w.t.Helper()
	var peers []oEnd
	for id, i := range w.identities {
		peers = append(peers, oEnd{i, w.ports[id]})
	}
	peers = append(peers, oEnd{}) // nobody has heard of it: only rules for everyone count
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
				w.compare(fmt.Sprintf("subject %s", key), h.docs, h.end, peer, h.ingress, p, h.Lookup(identity.ID(peer.id), p.proto, p.port))
			}
		}
	}
}

func (w *world) compare(what string, docs []oPolicy, subject, peer oEnd, ingress bool, p packet, v PortVerdict) {
	w.t.Helper()
	want := oracle(w.cfg, docs, subject, peer, ingress, p.proto, p.port)
	got := verdictOf(w.t, w.engine, v)
	w.seen[got.action]++
	w.seen["auth"] += b2i(got.auth)
	w.seen["explicit"] += b2i(got.explicit)
	w.seen["conflict"] += b2i(strings.Contains(got.rules, "of different kinds"))
	if w.verdicts++; got != want {
		var text strings.Builder
		for _, d := range docs {
			text.WriteString(string(d.document()) + "\n")
		}
		w.t.Fatalf("%s, ingress=%t subject %v peer %v proto %d port %d\ngot  %+v\nwant %+v\nconfig %+v\n%s", what, ingress, subject, peer, p.proto, p.port, got, want, w.cfg, text.String())
	}
}

// checkDecide asks Decide about pairs of identities, some of which the engine does not know.
func (w *world) checkDecide(n int) {
	var all []oEnd
	for _, i := range append(slices.Collect(maps.Values(w.identities)), w.workload(5000), w.outside(1<<24+900, "10.1.1.0/25"), w.node(2<<24+9)) {
		all = append(all, oEnd{i, w.ports[i.id]})
	}
	for range n {
		from, to := pick(w.gen, all...), pick(w.gen, all...)
		p := w.packets(1)[0]
		d := w.engine.Decide(from.real(), to.real(), p.proto, p.port)
		if w.chance(30) {
			to.ports = w.gen.numbers()
			egress := d.Egress
			if d = w.engine.DecideAt(from.real(), to.real(), realPorts(to.ports), p.proto, p.port); d.Egress != egress {
				w.t.Fatalf("the sender says %+v and, of a receiver with ports of its own, %+v", egress, d.Egress)
			}
		}
		for _, side := range []struct {
			ingress       bool
			subject, peer oEnd
			v             PortVerdict
		}{{false, from, oEnd{to.oIdentity, w.ports[to.id]}, d.Egress}, {true, to, from, d.Ingress}} {
			if !w.judged(side.subject.oIdentity) {
				if got := explained(w.engine, side.v.Cookie); side.v.Action != verdict.Allow || got != "not an endpoint: not judged" {
					w.t.Fatalf("decide ingress=%t %v with %v: %+v because of %s", side.ingress, side.subject, side.peer, side.v, got)
				}
				continue
			}
			w.compare("decide", w.docs, side.subject, side.peer, side.ingress, p, side.v)
		}
		strict := map[verdict.Action]int{verdict.Allow: 0, verdict.Audit: 1, verdict.Redirect: 2, verdict.Deny: 3}
		if max(strict[d.Egress.Action], strict[d.Ingress.Action]) != strict[d.Action] {
			w.t.Fatalf("decide: %s from egress %s and ingress %s", d.Action, d.Egress.Action, d.Ingress.Action)
		}
	}
}

// judged: hosts and the world are peers only, but rules for nodes may select this node.
func (w *world) judged(i oIdentity) bool {
	for _, p := range w.docs {
		for _, s := range p.specs {
			if s.nodes && w.cfg.enforcement != "never" && s.selects(p, i) {
				return true
			}
		}
	}
	return i.prefix == "" && !i.reserved("host", "world", "world-ipv4", "world-ipv6", "remote-node", "kube-apiserver")
}

// step changes documents, identities or ports at random.
func (w *world) step() {
	switch w.IntN(9) {
	case 0, 1: // new or changed documents
		var put []oPolicy
		for range 1 + w.IntN(2) {
			p := w.policy(fmt.Sprintf("p%d", w.IntN(6)))
			if w.chance(40) {
				p = w.object()
			}
			put = replaced(put, p)
		}
		for _, p := range put {
			w.docs = replaced(w.docs, p)
		}
		w.engine.UpdatePolicies(w.parsed(put), nil)
	case 2: // one goes
		if len(w.docs) > 0 {
			n := w.IntN(len(w.docs))
			p := w.docs[n]
			w.docs = slices.Delete(slices.Clone(w.docs), n, n+1)
			w.engine.UpdatePolicies(nil, []Ref{{p.kind, p.namespace, p.name}})
		}
	case 3, 4: // identities come, or come with other labels
		var add []identity.Identity
		for range 1 + w.IntN(3) {
			id := 1000 + w.Uint32N(14)
			i := w.workload(id)
			switch w.IntN(5) {
			case 0, 1:
				n := w.Uint32N(uint32(len(oBlocks())))
				id = 1<<24 + n
				i = w.outside(id, oBlocks()[n])
			case 2:
				id = pick[uint32](w.gen, 1, 2<<24, 2<<24+1)
				i = w.node(id)
			}
			w.identities[id] = i
			add = append(add, i.real())
		}
		apply(w.t, w.held, w.engine.UpdateIdentities(add, nil))
	case 5: // identities go
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
	case 6, 7: // workloads with named ports come and go, perhaps of identities that nobody knows
		set := map[identity.ID][]NamedPort{}
		for range 1 + w.IntN(4) {
			id := 1000 + w.Uint32N(14)
			if w.ports[id] = w.gen.numbers(); w.chance(30) {
				w.ports[id] = nil
			}
			set[identity.ID(id)] = realPorts(w.ports[id])
		}
		apply(w.t, w.held, w.engine.UpdatePorts(set))
	case 8: // subjects are forgotten
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
	ps, ids := w.parsed(w.docs), w.known()
	w.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
	w.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	ends := map[identity.ID]oEnd{}
	for _, i := range w.identities {
		ends[identity.ID(i.id)] = w.end(i)
	}
	switch w.IntN(5) {
	case 0: // at once
		e.UpdatePolicies(ps, nil)
		e.UpdateIdentities(ids, nil)
		e.UpdatePorts(w.numbers())
	case 1: // one by one, reversed
		slices.Reverse(ps)
		for _, p := range ps {
			e.UpdatePolicies([]*Policy{p}, nil)
		}
		for _, i := range ids {
			e.UpdateIdentities([]identity.Identity{i}, nil)
			e.UpdatePorts(map[identity.ID][]NamedPort{i.ID: realPorts(w.ports[uint32(i.ID)])})
		}
	case 2: // identities first, with some that come and go
		e.UpdatePorts(w.numbers())
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
		e.UpdatePorts(w.numbers())
	case 4: // everything at once, while subjects are in use that all of it patches
		for _, i := range ids {
			if _, _, err := e.Resolve(i, realPorts(ends[i.ID].ports)); err != nil {
				w.t.Fatal(err)
			}
		}
		for len(ps)+len(ids) > 0 {
			if len(ps) > 0 {
				e.UpdatePolicies(ps[:1], nil)
				ps = ps[1:]
			}
			if len(ids) > 0 {
				e.UpdateIdentities(ids[:1], nil)
				if _, _, err := e.Resolve(ids[0], realPorts(ends[ids[0].ID].ports)); err != nil {
					w.t.Fatal(err)
				}
				ids = ids[1:]
			}
		}
		e.UpdatePorts(w.numbers())
	}
	for _, i := range w.known() {
		own := realPorts(ends[i.ID].ports)
		in, out, err := w.engine.Resolve(i, own)
		if err != nil {
			w.t.Fatal(err)
		}
		in2, out2, err := e.Resolve(i, own)
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
