package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"porin/internal/identity"
	"porin/internal/labels"
)

// document returns a policy with one spec per body, all selecting the same pods.
func document(name, subject string, entries []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: %s, namespace: default}\nspecs:\n", name)
	for _, e := range entries {
		fmt.Fprintf(&b, "- endpointSelector: {matchLabels: {%s}}\n  ingress: [%s]\n", subject, e)
	}
	return b.String()
}

func mustParse(tb testing.TB, docs ...string) []*Policy {
	tb.Helper()
	ps, err := Parse("test.yaml", []byte(strings.Join(docs, "\n---\n")))
	if err != nil {
		tb.Fatal(err)
	}
	return ps
}

func workload(id int, ls ...string) identity.Identity {
	all := []labels.Label{{Source: "k8s", Key: labels.KeyNamespace, Value: "default"}}
	for _, l := range ls {
		k, v, _ := strings.Cut(l, "=")
		all = append(all, labels.Label{Source: "k8s", Key: k, Value: v})
	}
	return identity.Identity{ID: identity.ID(id), Labels: labels.New(all...)}
}

// shape is 1,000 rules for one subject and 3,000 identities.
func shape(tb testing.TB, kind string) (*Engine, identity.Identity) {
	tb.Helper()
	var entries []string
	for i := range 1000 {
		switch kind {
		case "same": // every rule names the same peers, as in the published benchmark
			entries = append(entries, "{fromEndpoints: [{matchLabels: {bar: yes}}]}")
		case "distinct": // each rule names three identities of its own
			entries = append(entries, fmt.Sprintf("{fromEndpoints: [{matchLabels: {group: g%d}}]}", i))
		case "ports": // each rule names three identities and a port of its own
			entries = append(entries, fmt.Sprintf("{fromEndpoints: [{matchLabels: {group: g%d}}], toPorts: [{ports: [{port: %d, protocol: TCP}]}]}", i, i+1))
		case "overlapping": // each rule names 30 identities, each identity is named by ten
			entries = append(entries, fmt.Sprintf("{fromEndpoints: [{matchLabels: {d%d: v%d}}]}", i%10, i/10))
		}
	}
	e := NewEngine(Config{DualStack: true})
	ids := identity.Reserved()
	for i := range 3000 {
		ls := []string{"bar=yes", fmt.Sprintf("group=g%d", i%1000)}
		for d := range 10 {
			ls = append(ls, fmt.Sprintf("d%d=v%d", d, (i*(d*7+1)+i/100)%100))
		}
		ids = append(ids, workload(1000+i, ls...))
	}
	e.UpdateIdentities(ids, nil)
	e.UpdatePolicies(mustParse(tb, document("p", "foo: yes", entries)), nil)
	subject := workload(10000, "foo=yes")
	e.UpdateIdentities([]identity.Identity{subject}, nil)
	return e, subject
}

// forgetAll makes the engine as if it had never resolved anything.
func (e *Engine) forgetAll(s ...*Subject) {
	for _, s := range s {
		e.Forget(s.Key)
	}
	clear(e.tables.bySum)
	clear(e.cookies.lists)
}

func BenchmarkResolve1kRules3kIdentities(b *testing.B) {
	for _, kind := range []string{"same", "distinct", "ports", "overlapping"} {
		b.Run(kind, func(b *testing.B) {
			e, subject := shape(b, kind)
			b.ReportAllocs()
			for b.Loop() {
				in, out, err := e.Resolve(subject, nil)
				if err != nil {
					b.Fatal(err)
				}
				if len(in.Peers) < 3000 {
					b.Fatalf("%d peers", len(in.Peers))
				}
				b.StopTimer()
				e.forgetAll(in, out)
				b.StartTimer()
			}
		})
	}
}

func BenchmarkIdentityAdded(b *testing.B) {
	for _, kind := range []string{"same", "overlapping"} {
		b.Run(kind, func(b *testing.B) {
			e, subject := shape(b, kind)
			if _, _, err := e.Resolve(subject, nil); err != nil {
				b.Fatal(err)
			}
			ls := []string{"bar=yes", "group=g7"}
			for d := range 10 {
				ls = append(ls, fmt.Sprintf("d%d=v%d", d, d))
			}
			add := []identity.Identity{workload(20000, ls...)}
			del := []identity.ID{20000}
			b.ReportAllocs()
			for b.Loop() {
				if p := e.UpdateIdentities(add, nil); len(p) != 1 {
					b.Fatalf("%d patches", len(p))
				}
				b.StopTimer()
				e.UpdateIdentities(nil, del)
				b.StartTimer()
			}
		})
	}
}

func Benchmark20kRulesNoMatch(b *testing.B) {
	e := NewEngine(Config{DualStack: true})
	var entries []string
	for range 20000 {
		entries = append(entries, "{fromEndpoints: [{matchLabels: {bar: yes}}]}")
	}
	e.UpdatePolicies(mustParse(b, document("p", "foo: yes", entries)), nil)
	subject := workload(10000, "foo=no")
	e.UpdateIdentities(append(identity.Reserved(), subject), nil)
	b.ReportAllocs()
	for b.Loop() {
		in, out, err := e.Resolve(subject, nil)
		if err != nil || in.Isolated {
			b.Fatal(in, err)
		}
		b.StopTimer()
		e.forgetAll(in, out)
		b.StartTimer()
	}
}

func BenchmarkResolve1kCIDRRules(b *testing.B) {
	e := NewEngine(Config{DualStack: true})
	var entries []string
	for i := range 1000 {
		entries = append(entries, fmt.Sprintf("{fromCIDR: [10.%d.%d.0/24]}", i/250, i%250))
	}
	ps := mustParse(b, document("p", "foo: yes", entries))
	subject := workload(10000, "foo=yes")
	ids := append(identity.Reserved(), subject)
	for i := range 44596 { // blocks of addresses inside of those
		a := netip.AddrFrom4([4]byte{10, byte(i % 1000 / 250), byte(i % 1000 % 250), byte(i / 1000)})
		ids = append(ids, identity.Identity{ID: identity.ScopeLocal + identity.ID(i), Prefix: netip.PrefixFrom(a, 32)})
	}
	e.UpdateIdentities(ids, nil)
	e.UpdatePolicies(ps, nil)
	b.ReportAllocs()
	for b.Loop() {
		in, out, err := e.Resolve(subject, nil)
		if err != nil || len(in.Peers) < 44596 {
			b.Fatal(len(in.Peers), err)
		}
		b.StopTimer()
		e.forgetAll(in, out)
		b.StartTimer()
	}
}

// BenchmarkUnchanged: what a change of policies costs per endpoint that it does not concern.
func BenchmarkUnchanged(b *testing.B) {
	e, subject := shape(b, "overlapping")
	in, out, err := e.Resolve(subject, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("keys", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if k, l := e.Keys(subject, nil); k != in.Key || l != out.Key {
				b.Fatal(k, l)
			}
		}
	})
	b.Run("resolve", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if again, _, _ := e.Resolve(subject, nil); again != in {
				b.Fatal("made anew")
			}
		}
	})
}

// BenchmarkPolicyReplaced: one of 30,000 policies is replaced; its pod's subject is resolved anew.
func BenchmarkPolicyReplaced(b *testing.B) {
	e := NewEngine(Config{DualStack: true})
	var ids []identity.Identity
	for i := range 6000 {
		ids = append(ids, workload(1000+i, fmt.Sprintf("app=a%d", i%1000), fmt.Sprintf("tier=t%d", i/1000)))
	}
	e.UpdateIdentities(ids, nil)
	var docs []string
	for i := range 30000 {
		docs = append(docs, document(fmt.Sprintf("p%d", i), fmt.Sprintf("app: a%d", i%1000),
			[]string{fmt.Sprintf("{fromEndpoints: [{matchLabels: {app: a%d}}], toPorts: [{ports: [{port: %d}]}]}", (i*7)%1000, 1+i%9999)}))
	}
	for part := 0; part < len(docs); part += 10000 {
		e.UpdatePolicies(mustParse(b, docs[part:part+10000]...), nil)
	}
	variants := [][]*Policy{mustParse(b, strings.Replace(docs[17], "toPorts", "toPorts ", 1)), mustParse(b, strings.Replace(docs[17], "port: ", "port: 1", 1))}
	subject := ids[17]
	in, _, err := e.Resolve(subject, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		e.UpdatePolicies(variants[n%2], nil)
		now, _, err := e.Resolve(subject, nil)
		if err != nil {
			b.Fatal(err)
		}
		e.Forget(in.Key)
		in = now
	}
}

// BenchmarkPortsChanged: the named ports of one of 3,000 identities change, while a subject's rules ask for them.
func BenchmarkPortsChanged(b *testing.B) {
	e := NewEngine(Config{DualStack: true})
	var ids []identity.Identity
	set := map[identity.ID][]NamedPort{}
	for i := range 3000 {
		ids = append(ids, workload(1000+i, fmt.Sprintf("app=a%d", i%100)))
		set[ids[i].ID] = []NamedPort{{"http", ProtoTCP, uint16(8000 + i%50)}}
	}
	e.UpdateIdentities(ids, nil)
	e.UpdatePorts(set)
	rules := strings.Replace(document("p", "app: a7", []string{"{toEndpoints: [{matchLabels: {app: a8}}], toPorts: [{ports: [{port: http}]}]}"}), "ingress:", "egress:", 1)
	e.UpdatePolicies(mustParse(b, rules), nil)
	_, out, err := e.Resolve(ids[7], nil)
	if err != nil || len(out.Peers) != 30 {
		b.Fatal(len(out.Peers), err)
	}
	n := uint16(0)
	b.ReportAllocs()
	for b.Loop() {
		n++
		if p := e.UpdatePorts(map[identity.ID][]NamedPort{ids[8].ID: {{"http", ProtoTCP, n%1000 + 1}}}); len(p) != 1 {
			b.Fatalf("%d patches", len(p))
		}
	}
}
