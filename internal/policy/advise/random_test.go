package advise

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"porin/internal/policy"
	"porin/internal/verdict"
)

// gen makes small worlds in which rules often fit, or nearly.
type gen struct{ *rand.Rand }

// seeded prints its seed; PORIN_SEED repeats a failure.
func seeded(t *testing.T) gen {
	t.Helper()
	n := rand.Uint64()
	if s := os.Getenv("PORIN_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("PORIN_SEED=%q is no number: %v", s, err)
		}
	}
	t.Logf("PORIN_SEED=%d", n)
	return gen{rand.New(rand.NewPCG(n, 7))}
}

func pick[T any](g gen, list ...T) T { return list[g.IntN(len(list))] }

func (g gen) selector() string {
	return pick(g, `{}`, `{matchLabels: {app: web}}`, `{matchLabels: {app: db}}`, `{matchLabels: {app: web, tier: front}}`,
		`{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}`, `{matchExpressions: [{key: tier, operator: Exists}]}`,
		`{matchExpressions: [{key: tier, operator: DoesNotExist}]}`, `{matchLabels: {"k8s:io.kubernetes.pod.namespace": shop}}`)
}

func (g gen) ports() string {
	one := func() string {
		return pick(g, `{port: "80", protocol: TCP}`, `{port: "53", protocol: UDP}`, `{port: "53", protocol: ANY}`, `{port: "8000", endPort: 8080, protocol: TCP}`,
			`{port: "8080", protocol: TCP}`, `{port: "0", protocol: UDP}`, `{port: "443"}`, `{port: http, protocol: TCP}`)
	}
	switch g.IntN(4) {
	case 0:
		return ""
	case 1:
		return "icmps: [{fields: [{type: 8, family: IPv4}]}], "
	}
	return "toPorts: [{ports: [" + one() + ", " + one() + "]}], "
}

func (g gen) entry(side string) string {
	var who string
	switch g.IntN(8) {
	case 6:
		who = fmt.Sprintf("%sCIDRSet: [{cidrGroupRef: offices}], ", side)
	case 7:
		if who = side + "Nodes: [{}], "; side == "to" {
			who = fmt.Sprintf("toServices: [{k8sService: {serviceName: %s, namespace: default}}], ", pick(g, "web", "far"))
		}
	case 0:
		who = fmt.Sprintf("%sEntities: [%s], ", side, pick(g, "all", "world", "cluster", "host", "world-ipv4"))
	case 1:
		who = fmt.Sprintf("%sCIDR: [%s], ", side, pick(g, "10.0.0.0/8", "10.1.0.0/16", `"fd00::/8"`, "0.0.0.0/0"))
	case 2:
		who = fmt.Sprintf("%sCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}], ", side)
	default:
		who = fmt.Sprintf("%sEndpoints: [%s, %s], ", side, g.selector(), g.selector())
	}
	return "{" + who + g.ports() + "}"
}

func (g gen) policy(n int) string {
	kind, space := "CiliumNetworkPolicy", ", namespace: "+pick(g, "default", "shop")
	if g.IntN(4) == 0 {
		kind, space = "CiliumClusterwideNetworkPolicy", ""
	}
	var b strings.Builder
	subject := g.selector()
	if strings.Contains(subject, "namespace") && space != "" {
		subject = "{}"
	}
	fmt.Fprintf(&b, "---\napiVersion: cilium.io/v2\nkind: %s\nmetadata: {name: p%d%s}\nspec:\n  endpointSelector: %s\n", kind, n, space, subject)
	written := 0
	for _, section := range []string{"ingress", "egress", "ingressDeny", "egressDeny"} {
		deny := strings.HasSuffix(section, "Deny")
		if g.IntN(3) > 0 == deny && !(written == 0 && section == "egressDeny") {
			continue
		}
		written++
		side := map[bool]string{true: "from", false: "to"}[strings.HasPrefix(section, "ingress")]
		fmt.Fprintf(&b, "  %s: [%s, %s]\n", section, g.entry(side), g.entry(side))
	}
	return b.String()
}

func (g gen) policies() string {
	var b strings.Builder
	for i := range 1 + g.IntN(4) {
		switch g.IntN(8) {
		case 0:
			b.WriteString(g.kubernetes(i))
		case 1:
			b.WriteString(g.cluster(i))
		default:
			b.WriteString(g.policy(i))
		}
	}
	return b.String() + g.objects()
}

// kubernetes is a NetworkPolicy.
func (g gen) kubernetes(n int) string {
	selector := func() string {
		return pick(g, "{}", "{matchLabels: {app: web}}", "{matchLabels: {app: db}}", "{matchExpressions: [{key: tier, operator: DoesNotExist}]}")
	}
	peer := func() string {
		return pick(g, "{podSelector: "+selector()+"}", "{namespaceSelector: {}}", "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}, podSelector: "+selector()+"}",
			"{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}", "{ipBlock: {cidr: \"fd00::/8\"}}")
	}
	rule := func(side string) string {
		return pick(g, "[]", "[{}]", fmt.Sprintf("[{%s: [%s, %s]}]", side, peer(), peer()),
			fmt.Sprintf("[{%s: [%s], ports: [{port: %s, protocol: TCP}]}, {ports: [{port: 53, protocol: UDP}]}]", side, peer(), pick(g, "80", "http", "8000, endPort: 8080")))
	}
	return fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: k%d, namespace: %s}\nspec:\n  podSelector: %s\n  policyTypes: [%s]\n  ingress: %s\n  egress: %s\n",
		n, pick(g, "default", "shop"), selector(), pick(g, "Ingress", "Egress", "Ingress, Egress"), rule("from"), rule("to"))
}

// cluster is a ClusterNetworkPolicy.
func (g gen) cluster(n int) string {
	who := func() string {
		return pick(g, "{namespaces: {}}", "{namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}", "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c%d}\nspec:\n  tier: %s\n  priority: %d\n  subject: %s\n",
		n, pick(g, "Admin", "Baseline"), g.IntN(3), who())
	for _, way := range [][2]string{{"ingress", "from"}, {"egress", "to"}} {
		section, side := way[0], way[1]
		fmt.Fprintf(&b, "  %s:\n", section)
		for range 1 + g.IntN(2) {
			fmt.Fprintf(&b, "    - {action: %s, %s: [%s]%s}\n", pick(g, "Accept", "Deny", "Pass"), side, who(),
				pick(g, "", ", protocols: [{tcp: {destinationPort: {number: 80}}}]", ", protocols: [{udp: {destinationPort: {range: {start: 50, end: 60}}}}]"))
		}
	}
	return b.String()
}

// objects is what rules refer to: a group, a service with a selector, one with addresses of its own. Now and then one is
// not there.
func (g gen) objects() string {
	var b strings.Builder
	for _, text := range []string{
		"apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: offices}\nspec: {externalCIDRs: [10.1.0.0/16, \"fd00::/16\"]}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: default}\nspec: {ports: [{port: 80}]}\n",
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: far-1, namespace: default, labels: {kubernetes.io/service-name: far}}\naddressType: IPv4\nendpoints: [{addresses: [10.1.2.3]}]\n",
	} {
		if g.IntN(4) > 0 {
			b.WriteString("---\n" + text)
		}
	}
	return b.String()
}

const people = `
workloads:
  - {name: web, labels: {app: web, tier: front}, serves: [{port: 80, name: http}]}
  - {name: web2, labels: {app: web}, serves: [{port: 8080, name: http}]}
  - {name: db, labels: {app: db}, serves: [{port: 53, protocol: UDP}]}
  - {name: shopper, namespace: shop, labels: {app: web}}
  - {name: bare, namespace: shop}
outside: [{name: far, addresses: [10.1.2.3, "fd00::1"]}, {name: near, addresses: [10.2.0.1]}]
`

func world(t *testing.T, text, policies string) *World {
	t.Helper()
	f, err := Read("people.yaml", []byte(text), os.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	w, err := f.World(parse(t, policies))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func parse(t *testing.T, text string) []*policy.Policy {
	t.Helper()
	ps, err := policy.Parse("p.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return ps
}

// everybody is all ends of w, outside hosts by address.
func everybody(t *testing.T, w *World) (out []End) {
	t.Helper()
	out = w.Workloads()
	for _, name := range []string{"far", "near", "host", "8.8.8.8", "node1"} {
		more, err := w.Find(name, "")
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, more...)
	}
	return out
}

func somePorts() []Port {
	return []Port{{6, 80}, {6, 53}, {6, 443}, {6, 8000}, {6, 8050}, {6, 8080}, {6, 8081}, {17, 53}, {17, 9}, {132, 443}, {1, 8}, {1, 0}, {58, 128}}
}

// TestMatrixIsDecide: the table, which comes out of resolved subjects, says what Engine.Decide says.
func TestMatrixIsDecide(t *testing.T) {
	g := seeded(t)
	seen := map[string]int{}
	for range 60 {
		text := g.policies()
		w := world(t, people, text)
		ends := everybody(t, w)
		cells, err := w.Matrix(ends, ends, somePorts())
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for _, p := range somePorts() {
			for _, from := range ends {
				for _, to := range ends {
					if from.Name == to.Name || !common(from, to, p) {
						continue
					}
					c := cells[at]
					at++
					d := w.Engine.Decide(from.Identity, to.Identity, p.Proto, p.Number)
					var rules []policy.RuleRef
					if d.Egress.Action == verdict.Deny || d.Action != verdict.Deny {
						rules = append(rules, w.Engine.Explain(d.Egress.Cookie)...)
					}
					if d.Ingress.Action == verdict.Deny || d.Action != verdict.Deny {
						rules = append(rules, w.Engine.Explain(d.Ingress.Cookie)...)
					}
					want := Cell{From: from.Name, To: to.Name, Port: p.String(), Verdict: word(d.Action), Side: c.Side, Rules: rulesOf(rules)}
					if fmt.Sprint(c) != fmt.Sprint(want) {
						t.Fatalf("got  %v\nwant %v\n%s", c, want, text)
					}
					seen[c.Verdict+" "+c.Side]++
				}
			}
		}
		if at != len(cells) {
			t.Fatalf("%d cells, want %d", len(cells), at)
		}
	}
	for _, what := range []string{"allow both", "deny egress", "deny ingress", "deny both"} {
		if seen[what] < 100 {
			t.Errorf("%q was seen only %d times: does the generator still make such rules?", what, seen[what])
		}
	}
}

// TestTraceLeadsToTheVerdict: the steps of a trace, read from the top, give the verdict and its rules.
func TestTraceLeadsToTheVerdict(t *testing.T) {
	g := seeded(t)
	fitting := 0
	for range 200 {
		text := g.policies()
		w := world(t, people, text)
		ends := everybody(t, w)
		for range 30 {
			from, to, p := pick(g, ends...), pick(g, ends...), pick(g, somePorts()...)
			tr := w.Engine.Trace(from.Identity, to.Identity, p.Proto, p.Number)
			if d := w.Engine.Decide(from.Identity, to.Identity, p.Proto, p.Number); d != tr.Decision {
				t.Fatalf("trace says %+v, decide %+v\n%s", tr.Decision, d, text)
			}
			for _, s := range tr.Sides {
				fitting += checkSteps(t, s, text)
			}
		}
	}
	if fitting < 500 {
		t.Errorf("only %d steps fitted: does the generator still make rules that do?", fitting)
	}
}

// checkSteps reads the steps as a person would: the first that fits decides, with all that say the same in the same
// place; one that passes takes the rest of its tier out; isolation decides before the last tier.
func checkSteps(t *testing.T, s policy.Side, text string) (fitting int) {
	t.Helper()
	var want []string
	var first policy.Step
	effect, passed := policy.EffectPass, policy.Tier(255)
	for _, st := range s.Steps {
		switch {
		case !st.Fits() || st.Tier == passed:
			continue
		case len(want) > 0:
			if st.Tier == first.Tier && st.Priority == first.Priority && st.Entry == first.Entry && st.Effect == effect {
				want = append(want, st.Rule.String())
			}
		case st.Tier > policy.TierNormal && len(s.Isolated) > 0:
			continue
		case st.Effect == policy.EffectPass:
			passed = st.Tier
		default:
			first, effect, want = st, st.Effect, []string{st.Rule.String()}
		}
		fitting++
	}
	var got []string
	for _, r := range s.Decided {
		got = append(got, r.String())
	}
	if len(want) == 0 {
		if denied := s.Verdict.Action == verdict.Deny; denied != (len(s.Isolated) > 0) || s.Verdict.ExplicitDeny {
			t.Fatalf("no step fits, isolated by %v, and the verdict is %+v\n%s", s.Isolated, s.Verdict, text)
		}
		return 0
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) || (effect == policy.EffectAllow) != (s.Verdict.Action == verdict.Allow) {
		t.Fatalf("the steps say %v by %v, the verdict %+v by %v\n%s", effect, want, s.Verdict, got, text)
	}
	return fitting
}

func TestFind(t *testing.T) {
	w := world(t, `
families: [ipv4]
workloads:
  - {name: web, replicas: 2, labels: {app: web}}
  - {name: db, labels: {app: db}}
  - {name: db, namespace: shop, labels: {app: db, pod-template-hash: x}}
outside: [{name: far, addresses: [10.1.2.3]}]
`, `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: a}
spec: {endpointSelector: {}, egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}]}
`)
	for text, want := range map[string]string{
		"web":             "default/web-1 default/web-2",
		"default/web":     "default/web-1 default/web-2",
		"web-2":           "default/web-2",
		"shop/db":         "shop/db",
		"far":             "far",
		"10.1.9.9":        "10.1.9.9",
		"::ffff:10.1.9.9": "10.1.9.9",
		"host":            "reserved:host",
		"reserved:world":  "reserved:world",
		"app=x,tier=y":    "default/app=x,tier=y",
		"shop/app=x":      "shop/app=x",
		"node1":           "node1",
	} {
		ends, err := w.Find(text, "")
		var names []string
		for _, e := range ends {
			names = append(names, e.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"db":                                "several: default/db, shop/db; write the namespace too",
		"webb":                              `did you mean "web-1"?`,
		"zzzzzzzzzz":                        "name a workload of the file",
		"10.0.0.0/8":                        "holds the smaller block",
		"io.kubernetes.pod.namespace=x,a=b": "only porin gives",
	} {
		if ends, err := w.Find(text, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, %v, want an error with %q", text, ends, err, want)
		}
	}
	for a, want := range map[string]string{"10.1.2.3": "cidr:10.1.0.0/16,reserved:world", "10.2.2.3": "cidr:10.0.0.0/8,reserved:world", "8.8.8.8": "reserved:world"} {
		if got := w.At(netip.MustParseAddr(a)).Labels.String(); got != want {
			t.Errorf("%s is %s, want %s", a, got, want)
		}
	}
	if e, _ := w.Find("shop/db", ""); strings.Contains(e[0].Identity.Labels.String(), "hash") {
		t.Errorf("labels %s hold one that is not for security", e[0].Identity.Labels)
	}
}

// TestPortsByName: a name means what the receiver calls so, and the same verdict as the number.
func TestPortsByName(t *testing.T) {
	f, err := Read("w.yaml", []byte(`
families: [ipv4]
workloads:
  - {name: client, labels: {app: client}}
  - {name: old, labels: {app: web}, serves: [{port: 80, name: http}, {port: 53, name: dns}, {port: 53, name: dns, protocol: UDP}]}
  - {name: new, labels: {app: web}, serves: [{port: 8080, name: http}]}
objects:
  - inline: |
      apiVersion: cilium.io/v2
      kind: CiliumNetworkPolicy
      metadata: {name: web}
      spec:
        endpointSelector: {matchLabels: {app: web}}
        ingress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]
checks:
  - {from: client, to: old, port: http, expect: allow}
  - {from: client, to: new, port: HTTP, protocol: TCP, expect: allow}
  - {from: client, to: new, port: 8080, expect: allow}
  - {from: client, to: new, port: 80, expect: deny}
  - {from: client, to: old, port: dns, expect: deny}
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := f.World(nil)
	if err != nil {
		t.Fatal(err)
	}
	results, err := w.Test("w.yaml", f.Checks)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range results {
		if got = append(got, r.To+" "+r.Port); !r.OK {
			t.Errorf("%+v", r)
		}
	}
	if s := strings.Join(got, "; "); s != "default/old 80/TCP; default/new 8080/TCP; default/new 8080/TCP; default/new 80/TCP; default/old 53/TCP" {
		t.Errorf("asked about %s", s)
	}
	cells, err := w.MatrixNamed(w.Workloads(), w.Workloads(), "http")
	if err != nil {
		t.Fatal(err)
	}
	got = nil
	for _, c := range cells {
		got = append(got, c.From+" "+c.To+" "+c.Port+" "+c.Named+" "+c.Verdict)
	}
	want := []string{
		"default/client default/old 80/TCP http allow", "default/new default/old 80/TCP http allow",
		"default/client default/new 8080/TCP http allow", "default/old default/new 8080/TCP http allow",
	}
	if !slices.Equal(got, want) {
		t.Errorf("matrix %q, want %q", got, want)
	}
	for _, c := range []struct{ to, port, want string }{
		{"new", "dns", "default/new has no port of that name; it has http (8080/TCP)"},
		{"client", "http", "default/client has no ports with names"},
		{"old", "http/UDP", "no port of that name"},
		{"old", "ht_tp", "write it as 80/TCP"},
	} {
		to, err := w.Find(c.to, "")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := to[0].Port(c.port, w.Config.Families); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s of %s: %v, %v, want %s", c.port, c.to, got, err, c.want)
		}
	}
	if _, err := w.MatrixNamed(w.Workloads(), w.Workloads(), "smtp"); err == nil {
		t.Error("a name that nobody has makes no error")
	}
}

func TestParsePort(t *testing.T) {
	both := []string{"ipv4", "ipv6"}
	for text, want := range map[string]string{
		"80": "[80/TCP]", "53/udp": "[53/UDP]", "9/SCTP": "[9/SCTP]", "0/ICMP": "[0/ICMP]", "128/ICMPv6": "[128/ICMPV6]", "icmp": "[8/ICMP 128/ICMPV6]", "ICMPv6": "[128/ICMPV6]",
	} {
		if got, err := ParsePort(text, both); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "65536", "80/GRE", "http", "256/ICMP", "-1", "80/", "/TCP"} {
		if got, err := ParsePort(text, both); err == nil {
			t.Errorf("%q: got %v, want an error", text, got)
		}
	}
}
