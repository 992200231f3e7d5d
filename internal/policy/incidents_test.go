package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/verdict"
)

// Mistakes that others made, and what must not happen here.

// TestImitatedNamespace is A05: a label of another source with our key does not move a workload into a namespace, and
// no spelling of the selector is fooled.
func TestImitatedNamespace(t *testing.T) {
	for _, key := range []string{"io.kubernetes.pod.namespace", "any:io.kubernetes.pod.namespace", "k8s:io.kubernetes.pod.namespace"} {
		c := stage(t, Config{}, red(db+"ingress: [{fromEndpoints: [{matchLabels: {'"+key+"': red}}]}]"))
		c.who["liar"] = pod(t, 2001, "container:io.kubernetes.pod.namespace=red", "k8s:io.kubernetes.pod.namespace=blue", "k8s:app=db")
		c.who["stranger"] = pod(t, 2002, "container:io.kubernetes.pod.namespace=red", "k8s:app=web")
		c.e.UpdateIdentities([]identity.Identity{c.who["liar"], c.who["stranger"]}, nil)
		c.ask(`
			web > db tcp 1: allow
			liar > db tcp 1: deny
			stranger > db tcp 1: deny
			other > liar tcp 1: allow by no policy isolates it`)
	}
}

// TestNoLeakBetweenPeers is A11 at layer 4: what one peer gets besides does not widen the rule that it shares.
func TestNoLeakBetweenPeers(t *testing.T) {
	c := stage(t, Config{},
		red(db+"ingress: [{fromEndpoints: [{matchLabels: {app: web}}, {matchLabels: {app: other, io.kubernetes.pod.namespace: blue}}], toPorts: [{ports: [{port: 80, protocol: TCP}]}]}]"),
		red(db+"ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]"))
	c.ask(`
		web > db tcp 22: allow by red/p1
		other > db tcp 80: allow by red/p0
		other > db tcp 22: deny
		bluedb > db tcp 80: deny`)
}

// TestBroadDenyStands is A23: a denied block stays denied, whatever narrower or broader allow there is.
func TestBroadDenyStands(t *testing.T) {
	for _, allow := range []string{"{toCIDR: [10.1.1.1/32]}", "{toEntities: [all]}", "{toEntities: [world]}", "{toCIDR: [0.0.0.0/0]}", "{toPorts: [{ports: [{port: 80}]}]}"} {
		for _, open := range []string{"", "\nenableDefaultDeny: {egress: false}"} {
			c := stage(t, Config{}, red(db+"egressDeny: [{toCIDR: [10.0.0.0/8]}]"+open), red(db+"egress: ["+allow+"]"+open),
				red(db+"egress: [{toCIDR: [10.1.1.1/32, 10.2.2.2/32]}]"+open))
			c.ask(`
				db > 10.1.1.1/32 tcp 80: deny by red/p0 egressDeny[0]
				db > 10.2.2.2/32 tcp 80: deny by red/p0 egressDeny[0]
				db > 10.0.0.0/8 tcp 80: deny by red/p0 egressDeny[0]`)
		}
	}
}

// TestEmptyListsSelectNobody is A30: an empty list of peers is not a missing one, neither read nor printed.
func TestEmptyListsSelectNobody(t *testing.T) {
	for _, field := range []string{"Endpoints", "Entities", "CIDR", "CIDRSet"} {
		for _, ports := range []string{"", ", toPorts: [{ports: [{port: 80}]}]"} {
			doc := red(db + "ingress: [{from" + field + ": []" + ports + "}]\negress: [{to" + field + ": []" + ports + "}]\ningressDeny: [{from" + field + ": []" + ports + "}]")
			ps := mustParse(t, doc)
			printed, err := ps[0].Marshal()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range []string{doc, string(printed)} {
				c := stage(t, Config{AllowLocalhost: LocalhostPolicy}, d)
				for who := range c.who {
					c.ask(fmt.Sprintf("%s > db tcp 80 in: deny by ingress\ndb > %s tcp 80 out: deny by egress", who, who))
				}
				for _, r := range c.e.Explain(c.e.Decide(c.who["web"], c.who["db"], ProtoTCP, 80).Ingress.Cookie) {
					if r.Deny || r.Index >= 0 {
						t.Errorf("an empty list decided: %s", r)
					}
				}
			}
		}
	}
}

// TestManyPorts is B08: 70,000 distinct ports over many rules, each with the verdict that its own rule gives.
func TestManyPorts(t *testing.T) {
	const n = 70_000
	want := make(map[packet]string, n)
	var specs []string
	entry := ""
	for i := range n {
		proto, name, port := uint8(ProtoTCP), "TCP", i
		if i >= 65535 {
			proto, name, port = ProtoUDP, "UDP", i-65535
		}
		if port++; i%40 == 0 {
			entry = ""
		}
		rule, list := i/40, "ingress"
		if rule%7 == 3 {
			list = "ingressDeny"
		}
		entry += fmt.Sprintf("{port: %d, protocol: %s},", port, name)
		want[packet{proto, uint16(port)}] = fmt.Sprintf("specs[%d].%s[0]", rule, list)
		if i%40 == 39 || i == n-1 {
			specs = append(specs, fmt.Sprintf("- {endpointSelector: {}, %s: [{toPorts: [{ports: [%s]}]}]}", list, strings.TrimSuffix(entry, ",")))
		}
	}
	e := NewEngine(Config{})
	e.UpdatePolicies(mustParse(t, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspecs:\n"+strings.Join(specs, "\n")), nil)
	in, _, err := e.Resolve(workload(1000, "app=a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Else.Rows) != n {
		t.Errorf("%d rows, want %d", len(in.Else.Rows), n)
	}
	for proto, last := range map[uint8]int{ProtoTCP: 65535, ProtoUDP: 65535, ProtoSCTP: 100} {
		for port := 0; port <= last; port++ {
			p := packet{proto, uint16(port)}
			v, ok := in.Else.Lookup(proto, uint16(port))
			rule, listed := want[p]
			if ok != listed {
				t.Fatalf("proto %d port %d: row %t, want %t", proto, port, ok, listed)
			}
			if !listed {
				continue
			}
			if deny := strings.Contains(rule, "Deny"); deny != (v.Action == verdict.Deny) || deny != v.ExplicitDeny {
				t.Fatalf("proto %d port %d: %+v, want %s", proto, port, v, rule)
			}
			if port%97 == 0 {
				if why := fmt.Sprint(e.Explain(v.Cookie)); !strings.HasSuffix(why, rule+"]") {
					t.Fatalf("proto %d port %d: %s, want %s", proto, port, why, rule)
				}
			}
		}
	}
}

// TestHugeSubject is F20: 10,000 rules with 50,000 blocks and 5,000 ports for one pod.
func TestHugeSubject(t *testing.T) {
	const rules, blocks = 10_000, 50_000
	block := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 12), byte(i >> 4), byte(i << 4)}), 28)
	}
	var specs []string
	for r := range rules {
		var cidrs []string
		for i := range blocks / rules {
			cidrs = append(cidrs, block(r*(blocks/rules)+i).String())
		}
		list := "egress"
		if r%10 == 9 {
			list = "egressDeny"
		}
		specs = append(specs, fmt.Sprintf("- {endpointSelector: {}, %s: [{toCIDR: [%s], toPorts: [{ports: [{port: %d, protocol: TCP}]}]}]}", list, strings.Join(cidrs, ","), 1+r%5000))
	}
	ps := mustParse(t, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspecs:\n"+strings.Join(specs, "\n"))
	e := NewEngine(Config{DualStack: true})
	cidrs := e.CIDRs(ps)
	if len(cidrs) != blocks {
		t.Fatalf("%d blocks, want %d", len(cidrs), blocks)
	}
	var ids []identity.Identity
	for i := range blocks {
		ids = append(ids, identity.Identity{ID: identity.ScopeLocal + identity.ID(i), Prefix: block(i)})
	}
	e.UpdateIdentities(ids, nil)
	e.UpdatePolicies(ps, nil)
	_, out, err := e.Resolve(workload(1000, "app=a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Peers) != blocks {
		t.Errorf("%d peers, want %d", len(out.Peers), blocks)
	}
	for i := range blocks {
		rule := i / (blocks / rules)
		for _, port := range []int{1 + rule%5000, 2 + rule%5000} {
			want := verdict.Deny
			if port == 1+rule%5000 && rule%10 != 9 {
				want = verdict.Allow
			}
			if v := out.Lookup(ids[i].ID, ProtoTCP, uint16(port)); v.Action != want {
				t.Fatalf("block %s port %d: %s, want %s", block(i), port, v.Action, want)
			}
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("heap %d MiB", m.HeapAlloc>>20)
}

// TestTooLarge: a subject beyond MaxRows is refused with ErrTooLarge; a peer that comes later is denied, not let in by
// what everyone else gets; and room that became free is used again.
func TestTooLarge(t *testing.T) {
	var entries []string
	for i := range 50 {
		entries = append(entries, fmt.Sprintf("{fromEndpoints: [{matchLabels: {group: g%d}}]}", i))
	}
	entries = append(entries, "{toPorts: [{ports: ["+ports(40)+"]}]}")
	ps := mustParse(t, document("p", "app: db", entries))
	e := NewEngine(Config{MaxRows: 4000})
	var ids []identity.Identity
	for i := range 50 {
		ids = append(ids, workload(1000+i, fmt.Sprintf("group=g%d", i)))
	}
	subject := workload(5000, "app=db")
	e.UpdatePolicies(ps, nil)
	e.UpdateIdentities(ids, nil)
	if _, _, err := e.Resolve(subject, nil); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("error %v, want ErrTooLarge", err)
	}
	var del []identity.ID
	for _, i := range ids[20:] {
		del = append(del, i.ID)
	}
	e.UpdateIdentities(nil, del)
	in, _, err := e.Resolve(subject, nil)
	if err != nil {
		t.Fatal(err)
	}
	if in.Lookup(ids[3].ID, ProtoTCP, 7777).Action != verdict.Allow || in.Else.Rows[0].Verdict.Action != verdict.Allow {
		t.Fatal("the rules do not work at all")
	}
	denied := 0
	for _, i := range ids[20:] {
		p := e.UpdateIdentities([]identity.Identity{i}, nil)
		tab := p[0].Put[i.ID]
		v, ok := tab.Lookup(ProtoTCP, 1)
		if !ok {
			t.Fatalf("no verdict in %v", tab.Rows)
		}
		if v.Action == verdict.Deny {
			denied++
			if why := fmt.Sprint(e.Explain(v.Cookie)); !strings.Contains(why, "too large") {
				t.Errorf("denied because of %s", why)
			}
		}
	}
	if denied == 0 || denied == 30 {
		t.Errorf("%d of 30 denied, want some", denied)
	}
	// churn below the limit never overflows
	e.UpdateIdentities(nil, del)
	for range 500 {
		p := e.UpdateIdentities(ids[20:22], nil)
		for _, i := range ids[20:22] {
			if v, _ := p[0].Put[i.ID].Lookup(ProtoTCP, 1); v.Action != verdict.Allow {
				t.Fatal("denied although there is room")
			}
		}
		e.UpdateIdentities(nil, []identity.ID{ids[20].ID, ids[21].ID})
		for _, r := range e.resolved {
			r.classes = nil // as when there are many
		}
	}
}

// TestUntouchedSubjectsStay: a change of policies leaves the subjects that it does not concern as they are, the same
// objects even; and what is put again unchanged, from another file, changes nothing.
func TestUntouchedSubjectsStay(t *testing.T) {
	e := NewEngine(Config{})
	web, dbase := workload(1001, "app=web"), workload(1002, "app=db")
	e.UpdateIdentities([]identity.Identity{web, dbase}, nil)
	for _, app := range []string{"web", "db"} {
		e.UpdatePolicies(mustParse(t, document(app, "app: "+app, []string{"{fromEndpoints: [{matchLabels: {app: web}}]}"})), nil)
	}
	before, _, _ := e.Resolve(web, nil)
	other, _, _ := e.Resolve(dbase, nil)
	changed, err := Parse("elsewhere.yaml", []byte("# moved\n"+document("db", "app: db", []string{"{fromEndpoints: [{matchLabels: {app: db}}]}"})))
	if err != nil {
		t.Fatal(err)
	}
	e.UpdatePolicies(changed, nil)
	if after, _, _ := e.Resolve(web, nil); after != before {
		t.Error("the subject of a pod that the change does not concern was made anew")
	}
	now, _, _ := e.Resolve(dbase, nil)
	if now.Key == other.Key {
		t.Error("a changed rule kept the subject's key")
	}
	again, err := Parse("third.yaml", []byte(document("db", "app: db", []string{"{fromEndpoints: [{matchLabels: {app: db}}]}"})))
	if err != nil {
		t.Fatal(err)
	}
	e.UpdatePolicies(again, nil)
	if same, _, _ := e.Resolve(dbase, nil); same != now {
		t.Error("the same rule from another file made a new subject")
	}
	if r := e.Explain(now.Default); len(r) != 1 || r[0].File != "third.yaml" {
		t.Errorf("explained by %+v, want the newest file", r)
	}
	runtime.KeepAlive(before)
	runtime.KeepAlive(now)
}

// TestKeysDiffer: whatever differs in a rule makes another subject, however little it is.
func TestKeysDiffer(t *testing.T) {
	keys := map[SubjectKey]string{}
	for _, entry := range []string{
		"", "{fromEntities: [host]}", "{fromEntities: [init]}", "{fromEntities: [host, init]}", "{fromEntities: [all]}", "{fromEntities: []}",
		"{fromCIDR: [10.0.0.0/8]}", "{fromCIDR: [11.0.0.0/8]}", "{fromCIDR: [10.0.0.0/9]}", "{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}",
		"{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.2.0.0/16]}]}", "{fromEndpoints: [{matchLabels: {a: b}}]}", "{fromEndpoints: [{matchLabels: {a: c}}]}",
		"{fromEndpoints: [{matchLabels: {b: b}}]}", "{fromEndpoints: [{matchExpressions: [{key: a, operator: NotIn, values: [b]}]}]}",
		"{fromEndpoints: [{matchLabels: {'reserved:host': ''}}]}", "{toPorts: [{ports: [{port: 1, protocol: TCP}]}]}", "{toPorts: [{ports: [{port: 1, protocol: UDP}]}]}",
		"{toPorts: [{ports: [{port: 1}]}]}", "{toPorts: [{ports: [{port: 2, protocol: TCP}]}]}", "{toPorts: [{ports: [{port: 1, endPort: 2, protocol: TCP}]}]}",
		"{toPorts: [{ports: [{protocol: TCP}]}]}", "{toPorts: [{ports: [{protocol: ICMP}]}]}", "{icmps: [{fields: [{type: 0}]}]}", "{icmps: [{fields: [{family: IPv6, type: 0}]}]}",
		"{fromEntities: [host], toPorts: [{ports: [{port: 1, protocol: TCP}]}]}", "{fromEntities: [host]}, {fromEntities: [init]}", "{fromEntities: [init]}, {fromEntities: [host]}",
	} {
		for _, list := range []string{"ingress", "ingressDeny"} {
			for _, more := range []string{"", "\nenableDefaultDeny: {ingress: false}"} {
				if entry == "" && list+more != "ingress" {
					continue // these mean the same, and it is no mistake to see that
				}
				doc := red(db + list + ": [" + entry + "]" + more)
				e := NewEngine(Config{})
				e.UpdatePolicies(mustParse(t, doc), nil)
				subject := pod(t, 1000, "k8s:app=db", "k8s:io.kubernetes.pod.namespace=red")
				in, out, err := e.Resolve(subject, nil)
				if err != nil {
					t.Fatal(err)
				}
				if k, l := e.Keys(subject, nil); k != in.Key || l != out.Key {
					t.Errorf("Keys says %s and %s, Resolve %s and %s", k, l, in.Key, out.Key)
				}
				if keys[out.Key] == "" {
					keys[out.Key] = "nothing said about egress"
				}
				if was := keys[in.Key]; was != "" {
					t.Errorf("equal keys:\n%s\n%s", was, doc)
				}
				keys[in.Key] = doc
			}
		}
	}
}

// TestNoUselessRows: an identity that is selected, but judged as everyone else is, gets no row.
func TestNoUselessRows(t *testing.T) {
	e := NewEngine(Config{AllowLocalhost: LocalhostPolicy})
	e.UpdatePolicies(mustParse(t, red(db+"ingressDeny: [{fromEntities: [all]}]\ningress: [{fromEndpoints: [{matchLabels: {app: web}}]}]")), nil)
	web := pod(t, 1001, "k8s:app=web", "k8s:io.kubernetes.pod.namespace=red")
	subject := pod(t, 1000, "k8s:app=db", "k8s:io.kubernetes.pod.namespace=red")
	in, _, err := e.Resolve(subject, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := e.UpdateIdentities([]identity.Identity{web}, nil); len(p) != 0 {
		t.Errorf("patches %v, want none", p)
	}
	e.Forget(in.Key)
	if in, _, _ = e.Resolve(subject, nil); len(in.Peers) != 0 {
		t.Errorf("rows %v, want none", in.Peers)
	}
}

// TestForgotten: no patch for a forgotten subject, and nothing of it stays behind.
func TestForgotten(t *testing.T) {
	e := NewEngine(Config{})
	ps := mustParse(t, document("p", "app: db", []string{"{fromEndpoints: [{matchLabels: {app: web}}]}", "{fromCIDR: [10.0.0.0/8]}"}))
	e.UpdatePolicies(ps, nil)
	in, out, err := e.Resolve(workload(999, "app=db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	e.UpdatePolicies(nil, []Ref{ps[0].Ref})
	if p := e.UpdateIdentities([]identity.Identity{workload(1000, "app=web")}, nil); len(p) != 1 || p[0].Subject != in.Key {
		t.Errorf("patches %v; a subject of deleted rules that is still in use must be patched", p)
	}
	e.Forget(in.Key)
	e.Forget(out.Key)
	e.Forget("never heard of")
	if p := e.UpdateIdentities([]identity.Identity{workload(1001, "app=web")}, nil); len(p) != 0 {
		t.Errorf("patches %v for a forgotten subject", p)
	}
	if n := len(e.selections.byKey); n != 1 { // allow-localhost's
		t.Errorf("%d selections stay, want 1", n)
	}
	if len(e.subjects.byKey)+len(e.subjects.byLabel.anchored)+len(e.subjects.byLabel.loose)+len(e.resolved)+len(e.policies) != 0 {
		t.Error("rules or subjects stay")
	}
	e.sweepNow()
	e.sweepNow()
	if n := len(e.tables.bySum) + len(e.cookies.lists); n != 0 {
		t.Errorf("%d tables and cookies stay", n)
	}
	if n := len(e.cookies.refs); n != len(e.own) {
		t.Errorf("%d rule names stay, want the %d of porin itself", n, len(e.own))
	}
}

// TestCookieCollision: two lists of rules with one cookie are both shown; none hides the other.
func TestCookieCollision(t *testing.T) {
	c := cookies{lists: map[Cookie]ruleSet{}, refs: map[uint64]*RuleRef{}}
	a, b := &rule{id: 1, ref: &RuleRef{Policy: Ref{Name: "a"}}}, &rule{id: 2, ref: &RuleRef{Policy: Ref{Name: "b"}}}
	c.know(a)
	c.know(b)
	k := c.name(a)
	s := c.lists[k]
	s.sum++ // as if another list had taken the place
	s.ids = []uint64{b.id}
	c.lists[k] = s
	for range 2 {
		if c.name(a) != k {
			t.Error("the cookie depends on what else there is")
		}
	}
	if got := c.explain(k); len(got) != 2 || got[0].Policy.Name != "a" || got[1].Policy.Name != "b" {
		t.Errorf("explained by %v, want both", got)
	}
	if len(c.lists[k].more) != 1 {
		t.Errorf("%d entries besides the first, want 1", len(c.lists[k].more))
	}
	for range 2 {
		c.sweep(map[Cookie]bool{k: true}, map[uint64]bool{})
	}
	if len(c.explain(k)) != 2 {
		t.Error("a sweep forgot a cookie in use")
	}
	c.sweep(nil, map[uint64]bool{})
	if len(c.explain(k)) != 2 {
		t.Error("the first sweep forgot a cookie that events may still name")
	}
	c.sweep(nil, map[uint64]bool{})
	if c.explain(k) != nil || len(c.refs) != 0 {
		t.Error("the second sweep kept it")
	}
}

// TestConcurrent uses everything at once; the race detector judges.
func TestConcurrent(t *testing.T) {
	e, subject := shape(t, "distinct")
	more := mustParse(t, document("q", "foo: yes", []string{"{fromEndpoints: [{matchLabels: {bar: yes}}], toPorts: [{ports: [{port: 80}]}]}"}))
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for i := range 20 {
				switch (n + i) % 5 {
				case 0:
					e.UpdatePolicies(more, nil)
				case 1:
					e.UpdatePolicies(nil, []Ref{more[0].Ref})
				case 2:
					e.UpdateIdentities([]identity.Identity{workload(9000+n, "bar=yes", "group=g1")}, []identity.ID{identity.ID(9000 + (n+1)%4)})
				case 3:
					in, out, err := e.Resolve(subject, nil)
					if err != nil {
						t.Error(err)
						return
					}
					for id := range in.Peers {
						e.Explain(in.Lookup(id, ProtoTCP, 80).Cookie)
						break
					}
					if i%3 == 0 {
						e.Forget(in.Key)
						e.Forget(out.Key)
					}
				case 4:
					e.Decide(workload(9100, "bar=yes"), subject, ProtoTCP, 80)
					e.CIDRs(e.Policies())
				}
			}
		})
	}
	wg.Wait()
}

// TestUnknownSubject: an identity that is nobody cannot be resolved.
func TestUnknownSubject(t *testing.T) {
	if _, _, err := NewEngine(Config{}).Resolve(identity.Identity{}, nil); err == nil {
		t.Error("nobody has a policy")
	}
}

// TestAudit: tables carry the real verdict; Decide says what audit mode makes of it.
func TestAudit(t *testing.T) {
	c := stage(t, Config{Audit: true}, red(db+"ingress: []"))
	d := c.e.Decide(c.who["web"], c.who["db"], ProtoTCP, 80)
	if d.Action != verdict.Audit || d.Ingress.Action != verdict.Deny {
		t.Errorf("decision %s, ingress %s; want audit, deny", d.Action, d.Ingress.Action)
	}
	in, _, err := c.e.Resolve(c.who["db"], nil)
	if err != nil || in.Lookup(c.who["web"].ID, ProtoTCP, 80).Action != verdict.Deny {
		t.Errorf("the subject's verdict is not deny; %v", err)
	}
}

func TestConfigCheck(t *testing.T) {
	for _, c := range []Config{{}, {Enforcement: "always", AllowLocalhost: "policy"}} {
		if err := c.Check(); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []Config{{Enforcement: "off"}, {AllowLocalhost: "yes"}} {
		if c.Check() == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}

// TestCIDRs: every block once, excepts included.
func TestCIDRs(t *testing.T) {
	ps := mustParse(t, red(db+"egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}]\ningressDeny: [{fromCIDR: [10.1.2.3/16, 'fd00::/8', 192.0.2.1]}]"))
	got := NewEngine(Config{}).CIDRs(ps)
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("fd00::/8")}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestOneStack: with one address family the rest of the world has one identity, and every whole block holds it.
func TestOneStack(t *testing.T) {
	e := NewEngine(Config{})
	e.UpdateIdentities(identity.Reserved(), nil)
	e.UpdatePolicies(mustParse(t, red(db+"egress: [{toCIDR: [0.0.0.0/0]}]")), nil)
	subject := identity.Identity{ID: 1000, Labels: labels.New(labels.Label{Source: "k8s", Key: "app", Value: "db"}, labels.Label{Source: "k8s", Key: labels.KeyNamespace, Value: "red"})}
	_, out, err := e.Resolve(subject, nil)
	if err != nil {
		t.Fatal(err)
	}
	if v := out.Lookup(identity.World, ProtoTCP, 80); v.Action != verdict.Allow {
		t.Errorf("the world is %s, want allow", v.Action)
	}
}
