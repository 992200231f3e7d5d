package advise

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// wholeLanguage has something of every kind that is more than labels, blocks and ports.
const wholeLanguage = `
agent: {allow-localhost: policy}
nodes:
  - {name: node1, labels: {zone: a}}
  - {name: node2, labels: {zone: b}}
workloads:
  - {name: web, labels: {app: web}, serves: [{port: 8080, name: http}]}
  - {name: odd, labels: {app: web}, serves: [{port: 8081, name: http}]}
  - {name: db, labels: {app: db}, ports: [{port: 5432, name: sql}]}
  - {name: client, labels: {app: client}}
  - {name: shy, labels: {app: shy}}
outside:
  - {name: api, addresses: [203.0.113.10], names: [api.example.com]}
  - {name: cdn, addresses: [203.0.113.20], names: [a.b.example.net]}
  - {name: office, addresses: [198.51.100.7]}
objects:
  - inline: |
      apiVersion: cilium.io/v2
      kind: CiliumNetworkPolicy
      metadata: {name: web}
      spec:
        endpointSelector: {matchLabels: {app: web}}
        ingress:
          - fromEndpoints: [{matchLabels: {app: client}}]
            toPorts: [{ports: [{port: http, protocol: TCP}]}]
          - fromNodes: [{matchLabels: {zone: b}}]
            toPorts: [{ports: [{port: "9100", protocol: TCP}]}]
      ---
      apiVersion: cilium.io/v2
      kind: CiliumNetworkPolicy
      metadata: {name: client}
      spec:
        endpointSelector: {matchLabels: {app: client}}
        egress:
          - toEndpoints: [{matchLabels: {app: web}}]
            toPorts: [{ports: [{port: http, protocol: TCP}]}]
          - toFQDNs: [{matchName: api.example.com}, {matchPattern: "**.example.net"}]
            toPorts: [{ports: [{port: "443", protocol: TCP}]}]
          - toServices: [{k8sService: {serviceName: db, namespace: default}}]
          - toCIDRSet: [{cidrGroupRef: office}]
            toPorts: [{ports: [{port: "22", protocol: TCP}]}]
      ---
      apiVersion: v1
      kind: Service
      metadata: {name: db, namespace: default}
      spec: {selector: {app: db}, ports: [{port: 5432}]}
      ---
      apiVersion: cilium.io/v2
      kind: CiliumCIDRGroup
      metadata: {name: office}
      spec: {externalCIDRs: [198.51.100.0/24]}
      ---
      apiVersion: cilium.io/v2
      kind: CiliumNetworkPolicy
      metadata: {name: db}
      spec:
        endpointSelector: {matchLabels: {app: db}}
        ingress:
          - fromEndpoints: [{matchLabels: {app: client}}]
            toPorts: [{ports: [{port: sql, protocol: TCP}], rules: {l7proto: sql, l7: [{query: select}]}}]
          - fromEndpoints: [{matchLabels: {app: web}}]
            authentication: {mode: required}
            toPorts: [{ports: [{port: sql, protocol: TCP}]}]
          - fromEntities: [remote-node]
            authentication: {mode: required}
            toPorts: [{ports: [{port: sql, protocol: TCP}]}]
          - fromEntities: [health]
            toPorts: [{ports: [{port: sql, protocol: TCP}]}]
      ---
      apiVersion: cilium.io/v2
      kind: CiliumNetworkPolicy
      metadata: {name: shy}
      spec:
        endpointSelector: {matchLabels: {app: shy}}
        porin: {audit: true}
        ingressDeny: [{fromEntities: [all]}]
      ---
      apiVersion: policy.networking.k8s.io/v1alpha2
      kind: ClusterNetworkPolicy
      metadata: {name: guard}
      spec:
        tier: Admin
        priority: 10
        subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}
        ingress:
          - {name: pass, action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}}]}
          - {name: no-shy, action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: shy}}}}]}
`

func wholeWorld(t *testing.T, checks string) (*File, *World) {
	t.Helper()
	f, err := Read("f.yaml", []byte(wholeLanguage+checks), os.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	w, err := f.World(nil)
	if err != nil {
		t.Fatal(err)
	}
	return f, w
}

// TestWholeLanguage: what every kind of rule makes of connections, the same for one question as for the tables of all.
func TestWholeLanguage(t *testing.T) {
	var checks strings.Builder
	checks.WriteString("checks:\n")
	for _, c := range []string{
		"from: client, to: web, port: 8080, expect: allow", "from: client, to: web, port: 8081, expect: deny",
		"from: client, to: odd, port: 8081, expect: allow", "from: client, to: odd, port: 8080, expect: deny",
		"from: node2, to: web, port: 9100, expect: allow", "from: node2, to: web, port: 80, expect: deny",
		"from: client, to: api, port: 443, expect: allow", "from: client, to: api, port: 80, expect: deny",
		"from: client, to: cdn, port: 443, expect: allow", "from: client, to: office, port: 443, expect: deny",
		"from: client, to: office, port: 22, expect: allow", "from: client, to: db, port: 5432, expect: redirect",
		"from: client, to: db, port: 5433, expect: deny", "from: web, to: db, port: 5432, expect: deny",
		"from: web, to: shy, port: 80, expect: audit", "from: shy, to: web, port: 8080, expect: deny",
	} {
		fmt.Fprintf(&checks, "  - {%s}\n", c)
	}
	f, w := wholeWorld(t, checks.String())
	results, err := w.Test("f.yaml", f.Checks)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if !r.OK {
			t.Errorf("%s: expected %s, got %s by %v", r.Check, r.Expected, r.Got, r.Rules)
		}
	}
	known := w.Known()
	g, err := w.newGrid(known)
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range known {
		for _, to := range known {
			for _, p := range []uint16{22, 80, 443, 5432, 8080, 8081, 9100} {
				p := Port{Proto: 6, Number: p}
				one, table := w.Ask(from, to, p), g.verdict(g.ask(from, to, p))
				if one.Action != table.Action || !slices.Equal(one.Rules, table.Rules) {
					t.Fatalf("%s -> %s %s: %+v, in the tables %+v", from.Name, to.Name, p, one, table)
				}
			}
		}
	}
}

// TestNearestOfTheWholeLanguage: the edits for peers, ports and demands of every kind, each tried out by the engine.
func TestNearestOfTheWholeLanguage(t *testing.T) {
	_, w := wholeWorld(t, "")
	for _, c := range []struct{ from, to, port, gives, edit string }{
		{"node2", "db", "5432", allow, "take the authentication out of CiliumNetworkPolicy default/db ingress[2]"},
		{"web", "db", "5432", proxy, "give default/web the label app=client"},
		{"client", "web", "8443", allow, "add 8443/TCP to CiliumNetworkPolicy default/client egress[0]"},
		{"client", "office", "443", allow, "add 443/TCP to CiliumNetworkPolicy default/client egress[3]"},
		{"world-ipv4", "shy", "80", allow, "take the label app=shy off default/shy"},
		{"node1", "db", "5432", allow, "add the entity host to the peers of CiliumNetworkPolicy default/db ingress[3]"},
		{"client", "cdn", "443", deny, "remove CiliumNetworkPolicy default/client egress[1]"},
	} {
		from, to := wholeEnd(t, w, c.from), wholeEnd(t, w, c.to)
		ps, err := ParsePort(c.port, w.Config.Families)
		if err != nil {
			t.Fatal(err)
		}
		before := w.Ask(from, to, ps[0])
		miss := w.Nearest(from, to, ps[0])
		if miss == nil {
			t.Errorf("%s -> %s %s: nothing near; %s", c.from, c.to, c.port, w.whyNone(from, to, ps[0]))
			continue
		}
		var texts strings.Builder
		for _, e := range miss.Edits {
			texts.WriteString(e.Text + "\n")
		}
		if miss.Gives != c.gives || !strings.Contains(texts.String(), c.edit) {
			t.Errorf("%s -> %s %s: %s by\n%swant %s", c.from, c.to, c.port, miss.Gives, texts.String(), c.edit)
		}
		if after := w.Ask(from, to, ps[0]); after.Action != before.Action {
			t.Errorf("%s -> %s %s: the search left %v behind", c.from, c.to, c.port, after)
		}
	}
}

func wholeEnd(t *testing.T, w *World, name string) End {
	t.Helper()
	ends, err := w.Find(name, "ipv4")
	if err != nil || len(ends) == 0 {
		t.Fatal(name, err)
	}
	return ends[0]
}

// TestLintOfReferences: groups, services and names that are not there, and layer 7 rules that mean nothing.
func TestLintOfReferences(t *testing.T) {
	f, err := Read("f.yaml", []byte(`
workloads:
  - {name: web, labels: {app: web}, serves: [{port: 80, name: http}]}
  - {name: client, labels: {app: client}, serves: [{port: 80, name: http}]}
objects:
  - inline: |
      apiVersion: cilium.io/v2
      kind: CiliumNetworkPolicy
      metadata: {name: p}
      spec:
        endpointSelector: {matchLabels: {app: web}}
        ingress:
          - fromCIDRSet: [{cidrGroupRef: offices}]
          - fromEndpoints: [{matchLabels: {app: client}}]
            toPorts: [{ports: [{port: htpp, protocol: TCP}]}]
          - fromEndpoints: [{matchLabels: {app: client}}]
            toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]
          - fromEndpoints: [{matchLabels: {app: client}}]
            toPorts: [{ports: [{port: "80", protocol: TCP}]}]
        egress:
          - toServices: [{k8sService: {serviceName: db, namespace: default}}]
          - toServices: [{k8sService: {serviceName: empty, namespace: default}}]
      ---
      apiVersion: v1
      kind: Service
      metadata: {name: empty, namespace: default}
      spec: {selector: {app: nobody}, ports: [{port: 1}]}
      ---
      apiVersion: cilium.io/v2
      kind: CiliumCIDRGroup
      metadata: {name: office}
      spec: {externalCIDRs: [198.51.100.0/24]}
`), os.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	w, err := f.World(nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := w.Lint()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range list {
		got = append(got, fmt.Sprintf("%s %s: %s", x.Kind, strings.TrimPrefix(x.Rule.String(), "CiliumNetworkPolicy default/p "), x.Text))
	}
	for _, want := range []string{
		"unresolved ingress[0]: there is no CiliumCIDRGroup offices, which is nobody; did you mean office?",
		"unresolved ingress[1]: no workload has a port that is called htpp, which is no port; did you mean http?",
		"cancelled ingress[2]: its layer 7 rules mean nothing: wherever it fits, others allow everything there",
		"unresolved egress[0]: there is no service default/db, which is nobody",
		"unresolved egress[1]: the service default/empty has nobody behind it",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("missing: %s", want)
		}
	}
	if t.Failed() {
		t.Logf("found:\n%s", strings.Join(got, "\n"))
	}
}

func TestNamesOfRules(t *testing.T) {
	_, w := wholeWorld(t, "")
	for _, c := range []struct {
		addr string
		want string
	}{{"203.0.113.10", "fqdn:api.example.com."}, {"203.0.113.20", "fqdn:**.example.net."}, {"198.51.100.7", ""}} {
		var got strings.Builder
		for _, l := range wholeEnd(t, w, c.addr).Identity.Labels.Strings() {
			if strings.HasPrefix(l, "fqdn:") {
				got.WriteString(l)
			}
		}
		if got.String() != c.want {
			t.Errorf("%s: %q, want %q", c.addr, got.String(), c.want)
		}
	}
}
