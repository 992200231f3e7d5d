package advise

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"porin/internal/policy"
)

// TestNearestMissFlips: the edits, carried out on the documents - printed and read again - and on the workloads, give
// the other verdict in a world of its own.
func TestNearestMissFlips(t *testing.T) {
	g := seeded(t)
	kinds := map[string]int{}
	none := 0
	for range 250 {
		text := g.policies()
		w := world(t, people, text)
		ends := everybody(t, w)
		for range 6 {
			from, to, p := pick(g, ends...), pick(g, ends...), pick(g, somePorts()...)
			if from.Name == to.Name {
				continue
			}
			before := w.Ask(from, to, p).Word()
			m := w.Nearest(from, to, p)
			if after := w.Ask(from, to, p).Word(); after != before {
				t.Fatalf("the search left the world changed: %s, before %s\n%s", after, before, text)
			}
			if m == nil {
				none++
				continue
			}
			s := state{from, to, w, map[policy.Ref]*policy.Policy{}}
			for _, e := range m.Edits {
				e.apply(&s)
				kinds[e.Kind]++
				if e.Text == "" || e.Why == "" && e.Kind != RemoveLabel && e.Kind != RemoveRule {
					t.Errorf("%+v says nothing", e)
				}
			}
			var doc bytes.Buffer
			for _, old := range w.Policies {
				if edited, ok := s.policies[old.Ref]; ok {
					old = edited
				}
				one, err := old.Marshal()
				if err != nil {
					t.Fatal(err)
				}
				doc.WriteString("---\n")
				doc.Write(one)
			}
			fresh := New(w.Config, w.Ends, parse(t, doc.String()))
			for _, e := range []*End{&s.from, &s.to} {
				if len(e.Addrs) == 1 {
					e.Identity = fresh.At(e.Addrs[0])
				}
			}
			if after := fresh.Ask(s.from, s.to, p).Word(); after == before || after != m.Gives {
				t.Fatalf("%s -> %s %s: %s before, %s after %+v, promised %s\n%s\nafter:\n%s", from.Name, to.Name, p, before, after, m.Edits, m.Gives, text, &doc)
			}
		}
	}
	for _, k := range []string{SetLabel, RemoveLabel, AddPort, AddPeer, RemoveRule} {
		if kinds[k] < 5 {
			t.Errorf("%s was the answer only %d times", k, kinds[k])
		}
	}
	if none == 0 {
		t.Error("something was always near: does the search say so when nothing is?")
	}
	t.Log(kinds, "none:", none)
}

func TestExplain(t *testing.T) {
	const text = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: deathstar}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress:
    - fromEndpoints: [{matchLabels: {org: empire}}]
      toPorts: [{ports: [{port: "80", protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: fort}
spec:
  endpointSelector: {matchLabels: {class: fort}}
  ingress: []
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: hoth}
spec:
  endpointSelector: {matchLabels: {class: hoth}}
  ingress: [{fromCIDR: [10.0.0.0/8]}]
  ingressDeny: [{fromEndpoints: [{matchLabels: {org: empire}}]}]
`
	w := world(t, `
workloads:
  - {name: deathstar, labels: {class: deathstar, org: empire}}
  - {name: fort, labels: {class: fort}}
  - {name: hoth, labels: {class: hoth}}
  - {name: tie, labels: {org: empire}}
  - {name: xwing, labels: {org: alliance}}
`, text)
	for _, c := range []struct{ from, to, port, verdict, edits, why string }{
		{
			"xwing", "deathstar", "80", "deny", "give default/xwing the label org=empire",
			"CiliumNetworkPolicy default/deathstar ingress[0] (p.yaml:8) allows 80/TCP from {k8s:io.kubernetes.pod.namespace=default,org=empire}; default/xwing has org=alliance, wanted empire",
		},
		{"tie", "deathstar", "443", "deny", "add 443/TCP to CiliumNetworkPolicy default/deathstar ingress[0] (p.yaml:8)", "; not 443/TCP"},
		{"xwing", "deathstar", "443", "deny", "add 443/TCP to CiliumNetworkPolicy default/deathstar ingress[0] (p.yaml:8) + give default/xwing the label org=empire", ""},
		{"tie", "deathstar", "80", "allow", "take the label org=empire off default/tie", ""},
		{"xwing", "fort", "80", "deny", "take the label class=fort off default/fort", ""},
		{"8.8.8.8", "hoth", "80", "deny", "add 8.8.8.8/32 to the peers of CiliumNetworkPolicy default/hoth ingress[0] (p.yaml:23)", "allows every port from 10.0.0.0/8; 8.8.8.8 is not in it"},
		{"8.8.8.8", "fort", "80", "deny", "take the label class=fort off default/fort", ""},
		{"fort", "tie", "80", "allow", "give default/tie the label class=deathstar", "does not select it: default/tie has no class, wanted class=deathstar"},
		{"8.8.8.8", "8.8.4.4", "80", "allow", "", "it would take a new policy"},
	} {
		from, err := w.Find(c.from, "")
		if err != nil {
			t.Fatal(err)
		}
		to, err := w.Find(c.to, "")
		if err != nil {
			t.Fatal(err)
		}
		p, err := ParsePort(c.port, nil)
		if err != nil {
			t.Fatal(err)
		}
		e := w.Explain(from[0], to[0], p[0])
		var edits, whys []string
		if e.Nearest != nil {
			for _, x := range e.Nearest.Edits {
				edits, whys = append(edits, x.Text), append(whys, x.Why)
			}
		}
		slices.Sort(edits)
		if got := strings.Join(edits, " + "); e.Verdict != c.verdict || got != c.edits || !strings.Contains(strings.Join(whys, " ")+e.None, c.why) {
			t.Errorf("%s -> %s %s: %s, nearest %q, %q %s\nwant %s, nearest %q, %q", c.from, c.to, c.port, e.Verdict, got, whys, e.None, c.verdict, c.edits, c.why)
		}
	}
}
