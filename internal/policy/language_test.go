package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/verdict"
)

const http80 = "toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {http: [{method: GET}]}}]"

func from(app, rest string) string {
	return "{fromEndpoints: [{matchLabels: {app: " + app + "}}]" + rest + "}"
}

// said returns the entries and rules of the layer 7 set of a verdict.
func (c *cast) said(from, to string, proto uint8, port uint16) string {
	c.t.Helper()
	v := c.e.Decide(c.who[from], c.who[to], proto, port).Ingress
	set, ok := c.e.L7(v.L7)
	if v.Action != verdict.Redirect || !ok {
		return v.Action.String()
	}
	var out []string
	for _, r := range set.Rules {
		out = append(out, fmt.Sprintf("%s %s %d", r.Rule, r.L7.Parser, len(r.L7.HTTP)))
	}
	return strings.Join(out, "; ")
}

func TestMeaning6LayerSeven(t *testing.T) {
	// rules for one peer and port are ORed; each entry stands in the set
	c := stage(t, Config{}, red(db+"ingress: ["+from("web", ", "+http80)+", {fromEndpoints: [{}], "+http80+"}]"))
	if got, want := c.said("web", "db", ProtoTCP, 80), "CiliumNetworkPolicy red/p0 ingress[0] http 1; CiliumNetworkPolicy red/p0 ingress[1] http 1"; got != want {
		t.Errorf("the set is %q, want %q", got, want)
	}
	// L3-only allow against L7: everything may be said by that peer, the others stay filtered
	c = stage(t, Config{}, red(db+"ingress: ["+from("web", "")+", {fromEndpoints: [{}, {matchLabels: {io.kubernetes.pod.namespace: blue}}], "+http80+"}]"))
	c.ask(`
		web > db tcp 80: allow by ingress[0]
		other > db tcp 80: redirect by ingress[1]
		other > db tcp 81: deny`)
	// so in another policy, and for everyone on that port
	stage(t, Config{}, red(db+"ingress: ["+from("web", ", "+http80)+"]"), red(db+"ingress: [{toPorts: [{ports: [{port: 80, protocol: TCP}]}]}]")).ask(`
		web > db tcp 80: allow by red/p0 ingress[0] CiliumNetworkPolicy red/p1 ingress[0]`)
	// two elements of one entry: the plain one counts where it covers
	stage(t, Config{}, red(db+"ingress: ["+from("web", ", toPorts: [{ports: [{port: 80, endPort: 90, protocol: TCP}], rules: {http: []}}, {ports: [{port: 85, protocol: TCP}]}]")+"]")).ask(`
		web > db tcp 84: redirect
		web > db tcp 85: allow
		web > db tcp 86: redirect
		web > db tcp 91: deny`)
	// a denial stands above
	stage(t, Config{}, red(db+"ingress: ["+from("web", ", "+http80)+"]\ningressDeny: [{fromEntities: [all], toPorts: [{ports: [{port: 80}]}]}]")).ask(`
		web > db tcp 80: deny by ingressDeny[0]`)
}

// Wildcard-peer L7 plus specific-peer L4: the specific peer is not filtered, the others are.
func TestMeaning7WildcardLayerSeven(t *testing.T) {
	c := stage(t, Config{}, red(db+"ingress: [{"+http80+"}, "+from("web", ", toPorts: [{ports: [{port: 80, protocol: TCP}]}]")+"]"))
	c.ask(`
		web > db tcp 80: allow
		other > db tcp 80: redirect
		world-ipv4 > db tcp 80: redirect`)
	// X and Y may only read, X may do all: that must not leak to Y (CVE-2023-30851)
	c = stage(t, Config{}, red(db+"ingress: [{fromEndpoints: [{matchLabels: {app: web}}, {matchLabels: {io.kubernetes.pod.namespace: blue}}], "+http80+"}, "+from("web", "")+"]"))
	c.ask(`
		web > db tcp 80: allow
		other > db tcp 80: redirect`)
	if got := c.said("other", "db", ProtoTCP, 80); got != "CiliumNetworkPolicy red/p0 ingress[0] http 1" {
		t.Errorf("the other peer may say %q", got)
	}
}

// enableDefaultDeny with L7: nothing isolates, but who is named is filtered.
func TestDecidedDefaultDenyWithLayerSeven(t *testing.T) {
	stage(t, Config{}, red(db+"ingress: ["+from("web", ", "+http80)+"]\nenableDefaultDeny: {ingress: false}")).ask(`
		web > db tcp 80: redirect
		web > db tcp 81: allow by no policy isolates it
		other > db tcp 80: allow by no policy isolates it`)
}

// Pass across tiers with L7: the tier that decides says whether the proxy is asked.
func TestDecidedPassWithLayerSeven(t *testing.T) {
	cluster := func(tier, action string) string {
		return "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: {tier: " + tier +
			", priority: 1, subject: {namespaces: {}}, ingress: [{action: " + action + ", from: [{namespaces: {}}]}]}"
	}
	rule := red(db + "ingress: [" + from("web", ", "+http80) + "]")
	open := red(db + "ingress: [{fromEndpoints: [{}]}]")
	stage(t, Config{}, cluster("Admin", "Pass"), rule).ask(`
		web > db tcp 80: redirect by red/p1 ingress[0]
		web > db tcp 81: deny by red/p1 ingress`)
	stage(t, Config{}, cluster("Admin", "Accept"), rule).ask(`
		web > db tcp 80: allow by ClusterNetworkPolicy p0 ingress[0]`)
	stage(t, Config{}, cluster("Admin", "Deny"), rule).ask(`
		web > db tcp 80: deny by ClusterNetworkPolicy p0 ingress[0]`)
	stage(t, Config{}, cluster("Baseline", "Accept"), rule).ask(`
		web > db tcp 80: redirect by red/p1 ingress[0]
		other > db tcp 80: deny by red/p1 ingress`)
	// rules of CiliumNetworkPolicies in tiers: the first one decides, plain or not
	stage(t, Config{}, strings.Replace(rule, "spec:\n", "spec:\n  porin: {tier: Admin}\n", 1), open).ask(`
		web > db tcp 80: redirect by red/p0 ingress[0]
		web > db tcp 81: allow by red/p1 ingress[0]`)
	stage(t, Config{}, strings.Replace(open, "spec:\n", "spec:\n  porin: {priority: 1}\n", 1), strings.Replace(rule, "spec:\n", "spec:\n  porin: {priority: 2}\n", 1)).ask(`
		web > db tcp 80: allow by red/p0 ingress[0]`)
}

// Named ports: on ingress the pod's own, on egress every number that one of the peer's pods has (several numbers).
func TestMeaning8NamedPorts(t *testing.T) {
	c := stage(t, Config{}, red(db+"ingress: [{toPorts: [{ports: [{port: sql, protocol: TCP}]}]}]\negress: [{toEndpoints: [{matchLabels: {app: web}}], toPorts: [{ports: [{port: http}]}]}]\negressDeny: [{toPorts: [{ports: [{port: admin}]}]}]"))
	c.ask(`
		web > db tcp 5432: deny
		db > web tcp 80: deny`)
	db, web := c.who["db"], c.who["web"]
	own := []NamedPort{{"sql", ProtoTCP, 5432}, {"sql", ProtoUDP, 99}, {"other", ProtoTCP, 1}}
	ask := func(v PortVerdict, want verdict.Action, what string) {
		t.Helper()
		if v.Action != want {
			t.Errorf("%s: %s, want %s", what, v.Action, want)
		}
	}
	ask(c.e.DecideAt(web, db, own, ProtoTCP, 5432).Ingress, verdict.Allow, "the pod's own number")
	ask(c.e.DecideAt(web, db, own, ProtoUDP, 99).Ingress, verdict.Deny, "a number of another protocol")
	ask(c.e.DecideAt(web, db, own, ProtoTCP, 1).Ingress, verdict.Deny, "a number of another name")
	in, out, err := c.e.Resolve(db, own)
	if err != nil {
		t.Fatal(err)
	}
	ask(in.Lookup(web.ID, ProtoTCP, 5432), verdict.Allow, "the resolved subject")
	if again, _, _ := c.e.Resolve(db, append(own[:2:2], NamedPort{"unused", ProtoTCP, 7})); again.Key != in.Key {
		t.Error("ports that no rule names make another subject")
	}
	if other, same, _ := c.e.Resolve(db, own[1:]); other.Key == in.Key || same.Key != out.Key {
		t.Error("a pod without the port has the ingress subject of one with it, or another egress subject")
	}
	patches := c.e.UpdatePorts(map[identity.ID][]NamedPort{web.ID: {{"http", ProtoTCP, 80}, {"http", ProtoTCP, 8080}, {"admin", ProtoTCP, 8080}}})
	if len(patches) != 1 || patches[0].Subject != out.Key || patches[0].Put[web.ID] == nil {
		t.Fatalf("patches %v", patches)
	}
	c.ask(`
		db > web tcp 80: allow
		db > web tcp 8080: deny by egressDeny[0]
		db > web udp 80: deny`)
	if p := c.e.UpdatePorts(map[identity.ID][]NamedPort{web.ID: {{"http", ProtoTCP, 80}, {"admin", ProtoTCP, 8080}, {"http", ProtoTCP, 8080}, {"http", ProtoTCP, 80}}}); len(p) != 0 {
		t.Errorf("the same ports in another order: %v", p)
	}
	if p := c.e.UpdatePorts(map[identity.ID][]NamedPort{c.who["other"].ID: {{"nobody-asks", ProtoTCP, 80}}}); len(p) != 0 {
		t.Errorf("ports that no rule names: %v", p)
	}
	if p := c.e.UpdatePorts(map[identity.ID][]NamedPort{web.ID: nil}); len(p) != 1 {
		t.Errorf("ports that went: %v", p)
	}
	c.ask(`
		db > web tcp 80: deny by red/p0 egress`)
}

// Requirements narrow what every rule for the subject allows, open nothing, and leave the node its way in.
func TestMeaning3Requires(t *testing.T) {
	open := red(db + "ingress: [{fromEntities: [all]}, {fromCIDR: [192.0.2.0/24]}, {toPorts: [{ports: [{port: 443}]}]}]")
	need := red(db + "ingress: [{fromRequires: [{matchLabels: {app: web}}]}]")
	stage(t, Config{}, open, need).ask(`
		web > db tcp 80: allow by red/p0 ingress[0]
		other > db tcp 443: deny
		192.0.2.0/24 > db tcp 443: deny
		world-ipv4 > db tcp 443: deny
		host > db tcp 80: allow by allow-localhost`)
	stage(t, Config{}, need).ask(`
		web > db tcp 80: deny by red/p0 ingress
		web > other tcp 80: allow by no policy isolates it`)
	// of the policy's namespace, unless it speaks of namespaces
	stage(t, Config{}, open, red(db+"ingress: [{fromRequires: [{}]}]")).ask(`
		web > db tcp 80: allow
		other > db tcp 80: deny`)
	stage(t, Config{}, open, red(db+"ingress: [{fromRequires: [{matchLabels: {io.kubernetes.pod.namespace: blue}}]}]")).ask(`
		web > db tcp 80: deny
		other > db tcp 80: allow`)
	// in audit mode it narrows nothing, and says what it would
	stage(t, Config{}, open, strings.Replace(need, "spec:\n", "spec:\n  porin: {audit: true}\n", 1)).ask(`
		web > db tcp 80: allow
		other > db tcp 80: audit by red/p0 ingress`)
}

// A policy that only reports changes no verdict, whatever it is.
func TestMeaningAudit(t *testing.T) {
	audited := func(body string) string {
		return strings.Replace(red(body), "spec:\n", "spec:\n  porin: {audit: true}\n", 1)
	}
	rule := red(db + "ingress: [" + from("web", ", "+http80) + "]")
	stage(t, Config{}, audited(db+"ingress: ["+from("web", "")+"]")).ask(`
		web > db tcp 80: allow by no policy isolates it
		host > db tcp 80: allow by no policy isolates it
		other > db tcp 80: audit by red/p0 ingress`)
	stage(t, Config{}, rule, audited(db+"ingress: [{fromEntities: [all]}]")).ask(`
		web > db tcp 80: redirect by red/p0 ingress[0]
		other > db tcp 80: deny by red/p0 ingress`)
	stage(t, Config{}, rule, audited(db+"ingressDeny: [{fromEntities: [all]}]")).ask(`
		web > db tcp 80: redirect by red/p0 ingress[0]
		web > db tcp 81: deny by red/p0 ingress`)
	stage(t, Config{}, red(db+"ingress: ["+from("web", "")+"]"), audited(db+"ingress: [{fromEndpoints: [{}], authentication: {mode: required}}]")).ask(`
		web > db tcp 80: audit by red/p1 ingress[0]
		other > db tcp 80: deny by red/p0 ingress`)
}

// What rules refer to may come, change and go after them.
func TestReferencesFollow(t *testing.T) {
	group := func(labels, blocks string) string {
		return "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: offices, labels: {" + labels + "}}\nspec: {externalCIDRs: [" + blocks + "]}"
	}
	service := func(selector string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: blue, labels: {side: front}}\nspec: {selector: {" + selector + "}}"
	}
	slice := func(addresses string) string {
		return "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s-1, namespace: blue, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nendpoints: [{addresses: [" + addresses + "]}]"
	}
	c := stage(t, Config{}, red(db+"egress: [{toCIDRSet: [{cidrGroupRef: offices, except: [192.0.2.128/25]}]}, {toServices: [{k8sService: {serviceName: s, namespace: blue}}], toPorts: [{ports: [{port: 80}]}]}]"),
		red(db+"egress: [{toCIDRSet: [{cidrGroupSelector: {matchLabels: {kind: far}}}], toPorts: [{ports: [{port: 22}]}]}, {toServices: [{k8sServiceSelector: {selector: {matchLabels: {side: front}}}}], toPorts: [{ports: [{port: 81}]}]}]"))
	for n, b := range []string{"192.0.2.128/25", "203.0.113.7/32"} {
		c.who[b] = identity.Identity{ID: identity.ScopeLocal + 100 + identity.ID(n), Prefix: netip.MustParsePrefix(b), Labels: labels.New(
			labels.Label{Source: labels.SourceCIDR, Key: b}, labels.Label{Source: labels.SourceReserved, Key: "world-ipv4"})}
		c.e.UpdateIdentities([]identity.Identity{c.who[b]}, nil)
	}
	nobody := `
		db > 192.0.2.0/24 tcp 80: deny
		db > 192.0.2.0/24 tcp 22: deny
		db > other tcp 80: deny
		db > other tcp 81: deny
		db > 203.0.113.7/32 tcp 80: deny
		db > 192.0.2.128/25 tcp 80: deny`
	c.ask(nobody)
	step := func(doc, lines string) {
		t.Helper()
		c.e.UpdatePolicies(mustParse(t, doc), nil)
		c.ask(lines)
	}
	step(group("", "192.0.2.0/24"), `
		db > 192.0.2.0/24 tcp 80: allow by egress[0]
		db > 192.0.2.128/25 tcp 80: deny
		db > 192.0.2.0/24 tcp 23: allow`)
	step(group("kind: far", ""), `
		db > 192.0.2.0/24 tcp 22: deny`)
	step(group("kind: far", "192.0.2.0/24"), `
		db > 192.0.2.128/25 tcp 22: allow by p1 egress[0]
		db > 192.0.2.128/25 tcp 23: deny`)
	step(service("app: other"), `
		db > other tcp 80: allow by egress[1]
		db > other tcp 81: allow by p1 egress[1]
		db > other tcp 82: deny
		db > web tcp 80: deny
		db > bluedb tcp 80: deny`)
	step(slice("203.0.113.7"), `
		db > 203.0.113.7/32 tcp 80: deny`) // the service selects pods: its slices name those
	step(service(""), `
		db > 203.0.113.7/32 tcp 80: allow
		db > other tcp 80: deny`)
	step(strings.Replace(slice("203.0.113.7"), "namespace: blue", "namespace: red", 1), `
		db > 203.0.113.7/32 tcp 80: allow`) // another namespace's slice says nothing about this service
	c.e.UpdatePolicies(nil, []Ref{{KindEndpointSlice, "blue", "s-1"}})
	c.ask(`
		db > 203.0.113.7/32 tcp 80: deny`)
	c.e.UpdatePolicies(nil, []Ref{{KindCIDRGroup, "", "offices"}, {KindService, "blue", "s"}, {KindEndpointSlice, "red", "s-1"}})
	c.ask(nobody)
	if n := len(c.e.docs.waiting); n != 4 {
		t.Errorf("%d references are remembered, want 4", n)
	}
	c.e.UpdatePolicies(nil, []Ref{{KindNetworkPolicy, "red", "p0"}, {KindNetworkPolicy, "red", "p1"}})
	if len(c.e.docs.waiting)+len(c.e.docs.waitedOn)+len(c.e.docs.groups)+len(c.e.docs.byName)+len(c.e.docs.slices) > 0 {
		t.Errorf("documents that went are remembered: %+v", c.e.docs)
	}
}

// The blocks that need identities are those of groups and slices too, and none of what nobody refers to.
func TestCIDRsOfReferences(t *testing.T) {
	ps := mustParse(t, red(db+"egress: [{toCIDRSet: [{cidrGroupRef: g, except: [10.1.0.0/16, 172.16.0.0/12]}]}, {toServices: [{k8sService: {serviceName: s}}]}, {toFQDNs: [{matchName: a.b}, {matchPattern: '*.b'}]}]"),
		"apiVersion: cilium.io/v2alpha1\nkind: CiliumCIDRGroup\nmetadata: {name: g}\nspec: {externalCIDRs: [10.0.0.0/8]}",
		"apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: unused}\nspec: {externalCIDRs: [11.0.0.0/8]}",
		"apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: red}\nspec: {}",
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s-1, namespace: red, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nendpoints: [{addresses: [192.0.2.9]}]")
	e := NewEngine(Config{})
	if got, want := fmt.Sprint(e.CIDRs(ps)), "[10.0.0.0/8 10.1.0.0/16 192.0.2.9/32]"; got != want {
		t.Errorf("blocks %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(e.FQDNs(append(ps, ps...))), "[{ *.b.} {a.b. }]"; got != want {
		t.Errorf("names %s, want %s", got, want)
	}
}

// Nodes are found by their labels; a rule for nodes has this node for a subject.
func TestNodesAndNames(t *testing.T) {
	c := stage(t, Config{AllowLocalhost: LocalhostPolicy}, red(db+"egress: [{toNodes: [{matchLabels: {zone: x}}]}, {toFQDNs: [{matchName: a.example}]}]"),
		clusterwide("nodeSelector: {matchLabels: {zone: x}}\ningress: [{fromEndpoints: [{matchLabels: {app: web}}], toPorts: [{ports: [{port: 22}]}]}]"))
	add := func(name string, i identity.Identity) {
		c.who[name] = i
		c.e.UpdateIdentities([]identity.Identity{i}, nil)
	}
	c.ask(`
		db > host tcp 22: deny
		other > host tcp 22 in: allow by not an endpoint: not judged`)
	zone := labels.Label{Source: labels.SourceNode, Key: "zone", Value: "x"}
	add("host", identity.Identity{ID: identity.Host, Labels: labels.New(labels.Label{Source: labels.SourceReserved, Key: "host"}, zone)})
	add("far", identity.Identity{ID: 2<<24 + 1, Labels: labels.New(labels.Label{Source: labels.SourceReserved, Key: "remote-node"}, zone)})
	add("near", identity.Identity{ID: 2<<24 + 2, Labels: labels.New(labels.Label{Source: labels.SourceReserved, Key: "remote-node"})})
	add("liar", identity.Identity{ID: 3000, Labels: labels.New(zone, labels.Label{Source: labels.SourceK8s, Key: labels.KeyNamespace, Value: "red"})})
	add("named", identity.Identity{ID: identity.ScopeLocal + 200, Prefix: netip.MustParsePrefix("198.51.100.1/32"), Labels: labels.New(
		labels.Label{Source: labels.SourceReserved, Key: "world-ipv4"}, labels.Label{Source: labels.SourceFQDN, Key: "a.example."})})
	add("unnamed", identity.Identity{ID: identity.ScopeLocal + 201, Prefix: netip.MustParsePrefix("198.51.100.2/32"), Labels: labels.New(
		labels.Label{Source: labels.SourceReserved, Key: "world-ipv4"}, labels.Label{Source: labels.SourceFQDN, Key: "b.example."})})
	c.ask(`
		db > far tcp 1: allow by egress[0]
		db > near tcp 1: deny
		db > liar tcp 1: deny
		db > named tcp 1: allow by egress[1]
		db > unnamed tcp 1: deny
		web > host tcp 22 in: allow by p1 ingress[0]
		web > host tcp 23 in: deny by p1 ingress
		other > far tcp 22 in: allow by not an endpoint: not judged
		web > db tcp 22: allow`)
}

// 70,000 distinct priorities keep their order: each rule's port is decided by the first rule, and all others by the last.
func TestDistinctPriorities(t *testing.T) {
	const n = 70_000
	e := NewEngine(Config{})
	subject := workload(1000, "app=db")
	everyone := Peers{Kind: PeersAny}
	p := &Policy{Ref: Ref{KindClusterwideNetworkPolicy, "", "p"}}
	order := rand.Perm(n)
	for i, priority := range order {
		port := uint16(priority%60_000 + 1)
		entry := &Entry{Peers: everyone, Ports: []Port{{Proto: ProtoTCP, First: port, Last: port}}}
		r := &Rule{Spec: i, Tier: TierNormal, Priority: uint32(priority) * 30_000}
		if priority%2 == 0 {
			r.Ingress.Allow = []*Entry{entry}
		} else {
			r.Ingress.Deny = []*Entry{entry}
		}
		p.Rules = append(p.Rules, r)
	}
	last := &Rule{Spec: n, Tier: TierNormal, Priority: 1<<31 - 1}
	last.Ingress.Deny = []*Entry{{Peers: Peers{Kind: PeersEntities, Entities: []string{"all"}}}}
	p.Rules = append(p.Rules, last)
	e.UpdatePolicies([]*Policy{p}, nil)
	in, _, err := e.Resolve(subject, nil)
	if err != nil {
		t.Fatal(err)
	}
	specs := slices.Clone(order) // by priority: the rule
	for i, priority := range order {
		specs[priority] = i
	}
	for port := 1; port <= 60_010; port++ {
		v := in.Lookup(7777, ProtoTCP, uint16(port))
		want, spec := verdict.Deny, n
		if port <= 60_000 {
			priority := port - 1 // a port that two rules name is decided by the one of lower priority
			if spec = specs[priority]; priority%2 == 0 {
				want = verdict.Allow
			}
		}
		rules := e.Explain(v.Cookie) // among 60,000 cookies two may be the same: then both rules are shown
		if v.Action != want || len(rules) > 2 || !slices.ContainsFunc(rules, func(r RuleRef) bool { return r.Spec == spec }) {
			t.Fatalf("port %d: %s by %v, want %s by the spec %d", port, v.Action, rules, want, spec)
		}
	}
}
