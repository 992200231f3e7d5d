package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/verdict"
)

// cast is who the stories are about: pods web and db in namespace red, other in blue, and what is outside.
type cast struct {
	t   *testing.T
	e   *Engine
	who map[string]identity.Identity
}

func stage(t *testing.T, cfg Config, docs ...string) *cast {
	t.Helper()
	cfg.DualStack = true
	c := &cast{t, NewEngine(cfg), map[string]identity.Identity{}}
	for _, i := range identity.Reserved() {
		c.who[strings.TrimPrefix(i.ID.String(), "reserved:")] = i
	}
	add := func(id identity.ID, name string, ls ...string) {
		c.who[name] = pod(t, id, ls...)
	}
	add(1001, "web", "k8s:app=web", "k8s:io.kubernetes.pod.namespace=red", "k8s:io.cilium.k8s.namespace.labels.team=x")
	add(1002, "db", "k8s:app=db", "k8s:io.kubernetes.pod.namespace=red", "k8s:io.cilium.k8s.namespace.labels.team=x")
	add(1003, "other", "k8s:app=other", "k8s:io.kubernetes.pod.namespace=blue", "k8s:io.cilium.k8s.namespace.labels.team=y")
	add(1004, "bluedb", "k8s:app=db", "k8s:io.kubernetes.pod.namespace=blue")
	add(1005, "docker", "container:app=db")
	var ps []*Policy
	for i, d := range docs {
		ps = append(ps, mustParse(t, strings.Replace(d, "name: p", fmt.Sprintf("name: p%d", i), 1))...)
	}
	for n, b := range append(c.e.CIDRs(ps), netip.MustParsePrefix("192.0.2.0/24")) {
		family := "world-ipv6"
		if b.Addr().Is4() {
			family = "world-ipv4"
		}
		c.who[b.String()] = identity.Identity{ID: identity.ScopeLocal + identity.ID(n), Prefix: b, Labels: labels.New(
			labels.Label{Source: labels.SourceCIDR, Key: b.String()}, labels.Label{Source: labels.SourceReserved, Key: family})}
	}
	for _, i := range c.who {
		c.e.UpdateIdentities([]identity.Identity{i}, nil)
	}
	c.e.UpdatePolicies(ps, nil)
	return c
}

// ask checks lines like "web > db tcp 80: allow" and "web > db icmp 8: deny by p0". Both the resolved subjects and
// Decide must say so. "in" or "out" before the colon asks one direction only.
func (c *cast) ask(lines string) {
	c.t.Helper()
	for line := range strings.Lines(strings.TrimSpace(lines)) {
		line = strings.TrimSpace(line)
		question, want, _ := strings.Cut(line, ": ")
		f := strings.Fields(question)
		if len(f) < 5 {
			c.t.Fatalf("%q is no question", line)
		}
		from, ok := c.who[f[0]]
		to, ok2 := c.who[f[2]]
		if !ok || !ok2 {
			c.t.Fatalf("%q: %q or %q is unknown", line, f[0], f[2])
		}
		proto := map[string]uint8{"tcp": ProtoTCP, "udp": ProtoUDP, "sctp": ProtoSCTP, "icmp": ProtoICMP, "icmpv6": ProtoICMPv6, "gre": 47}[f[3]]
		var port uint16
		if _, err := fmt.Sscan(f[4], &port); err != nil || proto == 0 {
			c.t.Fatalf("%q is no question", line)
		}
		d := c.e.Decide(from, to, proto, port)
		action, cookies := d.Action, []Cookie{d.Egress.Cookie, d.Ingress.Cookie}
		_, out, err := c.e.Resolve(from, nil)
		if err != nil {
			c.t.Fatal(err)
		}
		in, _, err := c.e.Resolve(to, nil)
		if err != nil {
			c.t.Fatal(err)
		}
		if c.e.Judges(from) {
			if v := out.Lookup(to.ID, proto, port); v != d.Egress {
				c.t.Errorf("%s: subject says %+v, Decide %+v", line, v, d.Egress)
			}
		}
		if c.e.Judges(to) {
			if v := in.Lookup(from.ID, proto, port); v != d.Ingress {
				c.t.Errorf("%s: subject says %+v, Decide %+v", line, v, d.Ingress)
			}
		}
		switch { // who is to blame: both sides for an allow, the side that denies for a denial
		case len(f) > 5 && f[5] == "in":
			action, cookies = d.Ingress.Action, cookies[1:]
		case len(f) > 5 && f[5] == "out":
			action, cookies = d.Egress.Action, cookies[:1]
		case d.Egress.Action != verdict.Allow:
			cookies = cookies[:1]
		case d.Ingress.Action != verdict.Allow:
			cookies = cookies[1:]
		}
		var why strings.Builder
		for _, k := range cookies {
			why.WriteString(fmt.Sprint(c.e.Explain(k)))
		}
		wantAction, by, _ := strings.Cut(want, " by ")
		if action.String() != wantAction {
			c.t.Errorf("%s, got %s because of %s", line, action, why.String())
		}
		if !strings.Contains(why.String(), by) {
			c.t.Errorf("%s, but it is %s", line, why.String())
		}
	}
}

func red(body string) string         { return spec(KindNetworkPolicy, body) }
func clusterwide(body string) string { return spec(KindClusterwideNetworkPolicy, body) }

const db = "endpointSelector: {matchLabels: {app: db}}\n"

func TestMeaning1Enforcement(t *testing.T) {
	rule := red(db + "ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]")
	stage(t, Config{}, rule).ask(`
		web > db tcp 80: allow
		other > db tcp 80: deny by red/p0 ingress
		db > other tcp 80 out: allow by no policy isolates it
		other > web tcp 80: allow by no policy isolates it`)
	stage(t, Config{Enforcement: EnforceAlways}, rule).ask(`
		web > db tcp 80 in: allow by red/p0 ingress[0]
		web > db tcp 80 out: deny by enforcement always: isolated
		other > db tcp 80 in: deny by enforcement always: isolated
		other > web tcp 80 in: deny by enforcement always: isolated`)
	stage(t, Config{Enforcement: EnforceNever}, rule).ask(`
		other > db tcp 80: allow by enforcement never: rules are ignored`)
	for _, mode := range []string{EnforceDefault, EnforceAlways, EnforceNever} {
		stage(t, Config{Enforcement: mode}).ask(`
			web > init tcp 80 in: deny by reserved:init: isolated
			init > web tcp 80 out: deny by reserved:init: isolated
			host > init tcp 80 in: allow by allow-localhost`)
	}
	stage(t, Config{}, clusterwide("endpointSelector: {matchLabels: {'reserved:init': ''}}\negress: [{toEntities: [all], toPorts: [{ports: [{port: 53, protocol: UDP}]}]}]")).ask(`
		init > web udp 53: allow by p0 egress[0]
		init > web udp 54: deny by p0 egress`)
	// one section isolates one direction; an empty list isolates too
	stage(t, Config{}, red(db+"ingress: []")).ask(`
		web > db tcp 80 in: deny by red/p0 ingress
		db > web tcp 80 out: allow by no policy isolates it`)
	stage(t, Config{}, red(db+"egress: [{}]")).ask(`
		web > db tcp 80 in: allow by no policy isolates it
		db > web tcp 80 out: deny by red/p0 egress`)
	stage(t, Config{}, red(db+"ingressDeny: []")).ask(`
		web > db tcp 80 in: deny by red/p0 ingress`)
}

func TestMeaning2BothSides(t *testing.T) {
	in := red(db + "ingress: [{fromEndpoints: [{matchLabels: {app: web}}], toPorts: [{ports: [{port: 80, endPort: 90, protocol: TCP}]}]}]")
	out := red("endpointSelector: {matchLabels: {app: web}}\negress: [{toEndpoints: [{matchLabels: {app: db}}], toPorts: [{ports: [{port: 85, endPort: 95, protocol: TCP}]}]}]")
	stage(t, Config{}, in, out).ask(`
		web > db tcp 84: deny by red/p1 egress
		web > db tcp 85: allow
		web > db tcp 90: allow
		web > db tcp 91: deny by red/p0 ingress
		db > web tcp 85: allow by no policy isolates it`)
}

func TestMeaning3Union(t *testing.T) {
	stage(t, Config{},
		red(db+"ingress: [{fromEndpoints: [{matchLabels: {app: web}}], toPorts: [{ports: [{port: 80, protocol: TCP}]}]}]"),
		red(db+"ingress: [{fromEndpoints: [{matchLabels: {app: web}}, {matchLabels: {app: other, io.kubernetes.pod.namespace: blue}}], toPorts: [{ports: [{port: 80, protocol: TCP}, {port: 81, protocol: TCP}]}]}]"),
	).ask(`
		web > db tcp 80: allow by red/p0 ingress[0] CiliumNetworkPolicy red/p1 ingress[0]
		web > db tcp 81: allow by red/p1 ingress[0]
		other > db tcp 80: allow by red/p1 ingress[0]
		web > db udp 80: deny by red/p0 ingress CiliumNetworkPolicy red/p1 ingress
		host > db tcp 9: allow by allow-localhost`)
}

func TestMeaning4DenyWins(t *testing.T) {
	stage(t, Config{},
		red(db+"ingress: [{fromEndpoints: [{matchLabels: {app: web}}], toPorts: [{ports: [{port: 80, protocol: TCP}]}]}, {fromEntities: [all]}]"),
		red(db+"ingressDeny: [{toPorts: [{ports: [{port: 80, endPort: 100, protocol: TCP}]}]}]"),
		red(db+"ingressDeny: [{fromEndpoints: [{matchLabels: {app: other, 'k8s:io.kubernetes.pod.namespace': blue}}]}]"),
	).ask(`
		web > db tcp 80: deny by red/p1 ingressDeny[0]
		web > db tcp 79: allow by red/p0 ingress[1]
		web > db tcp 100: deny by red/p1 ingressDeny[0]
		web > db tcp 101: allow
		web > db udp 80: allow
		other > db tcp 79: deny by red/p2 ingressDeny[0]
		other > db tcp 80: deny by red/p1 ingressDeny[0] CiliumNetworkPolicy red/p2 ingressDeny[0]
		world-ipv4 > db tcp 80: deny
		world-ipv4 > db tcp 81: deny
		world-ipv4 > db tcp 200: allow`)
	// a broad denial without default deny stands against narrow and broad allows, and against allow-localhost
	stage(t, Config{},
		red(db+"ingressDeny: [{fromEntities: [host]}]\nenableDefaultDeny: {ingress: false}"),
	).ask(`
		host > db tcp 80: deny by red/p0 ingressDeny[0]
		web > db tcp 80: allow by no policy isolates it`)
	stage(t, Config{}, red(db+"ingress: []\ningressDeny: [{fromEntities: [host]}]")).ask(`
		host > db tcp 80: deny by red/p0 ingressDeny[0]`)
}

func TestMeaning5Specificity(t *testing.T) {
	stage(t, Config{},
		red(db+"ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}, {toPorts: [{ports: [{port: 80, protocol: TCP}]}]}, {fromEntities: [world], toPorts: [{ports: [{port: 443, protocol: TCP}]}]}]"),
	).ask(`
		web > db tcp 22: allow by ingress[0]
		web > db tcp 80: allow by ingress[0] CiliumNetworkPolicy red/p0 ingress[1]
		other > db tcp 80: allow by ingress[1]
		other > db tcp 443: deny
		world-ipv6 > db tcp 443: allow by ingress[2]
		world-ipv6 > db tcp 80: allow by ingress[1]
		web > db icmp 8: allow by ingress[0]
		web > db gre 0: allow by ingress[0]
		other > db gre 0: deny`)
}

func TestMeaning9AllowLocalhost(t *testing.T) {
	rule := red(db + "ingress: []\negress: []")
	for _, mode := range []string{"", LocalhostAuto, LocalhostAlways} {
		stage(t, Config{AllowLocalhost: mode}, rule).ask(`
			host > db tcp 80: allow by allow-localhost
			remote-node > db tcp 80: deny
			db > host tcp 80: deny by red/p0 egress`)
	}
	stage(t, Config{AllowLocalhost: LocalhostPolicy}, rule).ask(`
		host > db tcp 80: deny by red/p0 ingress`)
}

func TestMeaning12PortsAndICMP(t *testing.T) {
	c := stage(t, Config{}, red(db+`ingress:
- toPorts: [{ports: [{port: 8000, endPort: 9000, protocol: TCP}, {port: 53}, {protocol: SCTP}, {port: 0, protocol: UDP}]}]
- icmps: [{fields: [{type: EchoRequest}, {family: IPv6, type: 128}]}]
- fromEndpoints: [{matchLabels: {app: web}}]
  icmps: [{fields: [{type: 0}]}]`))
	c.ask(`
		other > db tcp 7999: deny
		other > db tcp 8000: allow
		other > db tcp 9000: allow
		other > db tcp 9001: deny
		other > db tcp 53: allow
		other > db sctp 53: allow
		other > db sctp 0: allow
		other > db sctp 65535: allow
		other > db udp 1: allow
		other > db gre 0: deny
		other > db icmp 8: allow
		other > db icmp 0: deny
		other > db icmp 128: deny
		other > db icmpv6 128: allow
		other > db icmpv6 8: deny
		web > db icmp 0: allow
		web > db icmpv6 0: deny`)
	// ANY means the protocols that have ports; port 0 every port of them: no way to open ICMP by accident
	stage(t, Config{}, red(db+"ingress: [{toPorts: [{ports: [{port: 0, protocol: ANY}]}]}]\ningressDeny: []")).ask(`
		web > db tcp 1: allow
		web > db udp 65535: allow
		web > db sctp 1: allow
		web > db icmp 8: deny
		web > db gre 0: deny`)
	// and the same for a denial
	stage(t, Config{}, red(db+"ingress: [{fromEntities: [all]}]\ningressDeny: [{toPorts: [{ports: [{port: 0}]}]}]")).ask(`
		web > db tcp 1: deny
		web > db icmp 8: allow`)
	// ICMP types may be written as ports
	stage(t, Config{}, red(db+"ingress: [{toPorts: [{ports: [{port: 8, protocol: ICMP}, {protocol: ICMPv6}]}]}]")).ask(`
		web > db icmp 8: allow
		web > db icmp 0: deny
		web > db icmpv6 200: allow`)
}

func TestEntities(t *testing.T) {
	groups := map[string]string{
		"all":            "web other docker host world unmanaged health init remote-node kube-apiserver ingress world-ipv4 world-ipv6 192.0.2.0/24",
		"none":           "",
		"world":          "world world-ipv4 world-ipv6 192.0.2.0/24",
		"world-ipv4":     "world-ipv4 192.0.2.0/24",
		"world-ipv6":     "world-ipv6",
		"cluster":        "web other docker host unmanaged health init remote-node kube-apiserver ingress",
		"cluster-mesh":   "web other docker host unmanaged health init remote-node kube-apiserver ingress",
		"host":           "host",
		"remote-node":    "remote-node",
		"kube-apiserver": "kube-apiserver",
		"ingress":        "ingress",
		"health":         "health",
		"init":           "init",
		"unmanaged":      "unmanaged",
	}
	for _, name := range EntityNames() {
		members, ok := groups[name]
		if !ok {
			t.Errorf("entity %s is not tested", name)
		}
		c := stage(t, Config{AllowLocalhost: LocalhostPolicy}, red(db+"ingress: [{fromEntities: ["+name+"]}]"),
			red(db+"egress: []\negressDeny: [{toEntities: ["+name+"]}]\nenableDefaultDeny: {egress: false}"))
		for who := range strings.FieldsSeq(groups["all"]) {
			want, back := "deny", "allow"
			if strings.Contains(" "+members+" ", " "+who+" ") {
				want, back = "allow", "deny"
			}
			c.ask(fmt.Sprintf("%s > db tcp 1 in: %s\ndb > %s tcp 1 out: %s", who, want, who, back))
		}
	}
}

func TestNamespaceScope(t *testing.T) {
	from := func(selector string) string { return red(db + "ingress: [{fromEndpoints: [" + selector + "]}]") }
	wide := func(selector string) string {
		return clusterwide("endpointSelector: {matchLabels: {app: db}}\ningress: [{fromEndpoints: [" + selector + "]}]")
	}
	for _, c := range []struct{ doc, allowed string }{
		{from("{}"), "web db"}, // the policy's own namespace
		{from("{matchLabels: {app: db}}"), "db"},
		{from("{matchLabels: {'any:app': db}}"), "db"},
		{from("{matchLabels: {io.kubernetes.pod.namespace: blue}}"), "other bluedb"},
		{from("{matchLabels: {'k8s:io.kubernetes.pod.namespace': blue, app: db}}"), "bluedb"},
		{from("{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: Exists}]}"), "web db other bluedb"},
		{from("{matchLabels: {io.cilium.k8s.namespace.labels.team: y}}"), "other"},
		{from("{matchExpressions: [{key: io.cilium.k8s.namespace.labels.team, operator: NotIn, values: [y]}]}"), "web db bluedb docker"},
		{from("{matchExpressions: [{key: app, operator: NotIn, values: [db]}]}"), "web"},
		{from("{matchLabels: {'reserved:host': ''}}"), "host"}, // a reserved label names no pod, so no namespace
		{from("{matchExpressions: [{key: 'reserved:host', operator: DoesNotExist}]}"), "web db"},
		{from(""), ""}, // empty, but there: nobody
		{wide("{}"), "web db other bluedb docker"}, // workloads only, not host nor world
		{wide("{matchExpressions: [{key: app, operator: NotIn, values: [db]}]}"), "web other"},
		{wide("{matchLabels: {'container:app': db}}"), "docker"},
		{wide("{matchLabels: {'k8s:app': db}}"), "db bluedb"},
		{wide("{matchLabels: {'reserved:remote-node': ''}}"), "remote-node"},
		{wide("{matchExpressions: [{key: 'reserved:world', operator: Exists}]}"), "world"},
	} {
		s := stage(t, Config{AllowLocalhost: LocalhostPolicy}, c.doc)
		for who := range s.who {
			want := "deny"
			if strings.Contains(" "+c.allowed+" ", " "+who+" ") {
				want = "allow"
			}
			s.ask(fmt.Sprintf("%s > db tcp 1 in: %s", who, want))
		}
		if t.Failed() {
			t.Fatalf("policy:\n%s", c.doc)
		}
	}
	// subjects: a namespaced policy selects in its namespace only, a clusterwide one all workloads and nobody else
	stage(t, Config{}, red("endpointSelector: {}\ningress: []")).ask(`
		other > web tcp 1: deny
		web > other tcp 1: allow
		web > docker tcp 1: allow
		web > health tcp 1: allow`)
	stage(t, Config{}, red("endpointSelector: {matchLabels: {io.cilium.k8s.namespace.labels.team: y}}\ningress: []"),
		red("endpointSelector: {matchExpressions: [{key: io.kubernetes.pod.namespace, operator: In, values: [red, blue]}]}\negress: []")).ask(`
		web > other tcp 1 in: allow by no policy isolates it
		other > web tcp 1 out: allow by no policy isolates it
		web > other tcp 1 out: deny`)
	stage(t, Config{}, clusterwide("endpointSelector: {}\ningress: []")).ask(`
		other > web tcp 1: deny
		web > other tcp 1: deny
		web > docker tcp 1: deny
		web > health tcp 1: allow
		web > host tcp 1: allow`)
}

func TestCIDR(t *testing.T) {
	stage(t, Config{}, red(db+`egress:
- toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
- toCIDR: [10.1.2.0/24, 'fd00::/8']
  toPorts: [{ports: [{port: 443, protocol: TCP}]}]`)).ask(`
		db > 10.0.0.0/8 tcp 1: allow by egress[0]
		db > 10.1.0.0/16 tcp 443: deny
		db > 10.1.2.0/24 tcp 443: allow by egress[1]
		db > 10.1.2.0/24 tcp 80: deny
		db > fd00::/8 tcp 443: allow
		db > 192.0.2.0/24 tcp 443: deny
		db > world-ipv4 tcp 443: deny
		db > web tcp 443: deny
		db > host tcp 443: deny`)
	stage(t, Config{}, red(db+"egress: [{toCIDR: [0.0.0.0/0]}]")).ask(`
		db > 192.0.2.0/24 tcp 1: allow
		db > 0.0.0.0/0 tcp 1: allow
		db > world-ipv4 tcp 1: allow
		db > world-ipv6 tcp 1: deny
		db > web tcp 1: deny
		db > remote-node tcp 1: deny`)
}

// On a node with one family the world is addresses of that family: a CIDR or entity of the other one is nobody there,
// whether or not another rule names a CIDR around the address.
func TestMeaningWorldOfOneFamily(t *testing.T) {
	for _, c := range []struct {
		cfg      Config
		own, not []string
	}{
		{Config{}, []string{`toCIDR: ["0.0.0.0/0"]`, `toEntities: [world-ipv4]`, `toEntities: [world]`}, []string{`toCIDR: ["::/0"]`, `toEntities: [world-ipv6]`}},
		{Config{OnlyIPv6: true}, []string{`toCIDR: ["::/0"]`, `toEntities: [world-ipv6]`, `toEntities: [world]`}, []string{`toCIDR: ["0.0.0.0/0"]`, `toEntities: [world-ipv4]`}},
	} {
		for n, rule := range append(c.own, c.not...) {
			e := NewEngine(c.cfg)
			e.UpdateIdentities(identity.Reserved(), nil)
			e.UpdatePolicies(mustParse(t, clusterwide("endpointSelector: {}\negress: [{"+rule+"}]")), nil)
			want := verdict.Allow
			if n >= len(c.own) {
				want = verdict.Deny
			}
			web := pod(t, 1001, "k8s:app=web", "k8s:io.kubernetes.pod.namespace=red")
			world := identity.Reserved()[identity.World-1]
			_, out, err := e.Resolve(web, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := out.Lookup(identity.World, ProtoTCP, 80).Action; got != want {
				t.Errorf("IPv6 only %t, %s: subject says %s, want %s", c.cfg.OnlyIPv6, rule, got, want)
			}
			if got := e.Decide(web, world, ProtoTCP, 80).Action; got != want {
				t.Errorf("IPv6 only %t, %s: Decide says %s, want %s", c.cfg.OnlyIPv6, rule, got, want)
			}
		}
	}
}
