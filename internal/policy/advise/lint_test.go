package advise

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	"porin/internal/policy"
)

func TestLint(t *testing.T) {
	const text = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
    - fromEndpoints: [{matchLabels: {app: db}}]
      toPorts: [{ports: [{port: "80", protocol: TCP}, {port: "81", protocol: TCP}]}]
    - fromEndpoints: [{matchLabels: {app: bd}}]
    - {}
    - fromEndpoints: []
    - fromEntities: [all]
      toPorts: [{ports: [{port: "80", protocol: TCP}]}]
    - fromCIDR: [0.0.0.0/0]
      toPorts: [{ports: [{port: "80", protocol: TCP}]}]
  ingressDeny:
    - fromEndpoints: [{matchLabels: {app: old}}]
      toPorts: [{ports: [{port: "443", protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: typo}
spec: {endpointSelector: {matchLabels: {app: wbe}}, ingress: [], egress: []}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: idle}
spec:
  endpointSelector: {matchLabels: {app: db}}
  enableDefaultDeny: {egress: false}
  egress:
    - toEndpoints: [{matchLabels: {app: web}}]
      toPorts: [{ports: [{port: "80", protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: closed}
spec:
  endpointSelector: {matchLabels: {app: old}}
  ingress:
    - fromEndpoints: [{}]
      toPorts: [{ports: [{port: "22", protocol: TCP}]}]
  ingressDeny: [{fromEntities: [all]}]
`
	w := world(t, `
workloads:
  - {name: web, labels: {app: web}, serves: [{port: 80}]}
  - {name: db, labels: {app: db}}
  - {name: old, labels: {app: old}}
`, text)
	list, err := w.Lint()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range list {
		var line strings.Builder
		line.WriteString(strings.Join([]string{f.Rule.Place(), f.Kind, f.Text}, " "))
		for _, r := range f.By {
			line.WriteString(" | " + r.String())
		}
		got = append(got, line.String())
	}
	want := []string{
		"p.yaml:8 unserved allows 81/TCP, which no workload there serves",
		"p.yaml:10 selects-nothing no workload is in {app=bd,k8s:io.kubernetes.pod.namespace=default}: none has app=bd; did you mean app=db?",
		"p.yaml:11 says-nothing the entry names neither peers nor ports, and so allows nothing; for everyone write fromEntities: [all]",
		"p.yaml:12 says-nothing the list of peers is empty, which is nobody; without the field it would be everyone",
		"p.yaml:13 wide allows 80/TCP from everyone, the world outside included",
		"p.yaml:15 redundant taking it out changes no verdict: others say the same wherever it fits | CiliumNetworkPolicy default/web ingress[4]",
		"p.yaml:15 wide allows 80/TCP from 0.0.0.0/0, every address outside",
		"p.yaml:24 selects-nothing the rule selects no workload: none has app=wbe; did you mean app=web?",
		"p.yaml:33 says-nothing allows what nothing denies: no rule isolates those that it selects in this direction",
		"p.yaml:42 shadowed never decides: wherever it fits, other rules decide first | CiliumClusterwideNetworkPolicy closed ingressDeny[0]",
		"p.yaml:42 wide allows 22/TCP from every workload of every namespace",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestUselessRulesChangeNothing: all entries that lint calls redundant or shadowed, taken out at once, change no
// verdict.
func TestUselessRulesChangeNothing(t *testing.T) {
	g := seeded(t)
	seen := map[string]int{}
	for range 120 {
		text := g.policies()
		w := world(t, people, text)
		list, err := w.Lint()
		if err != nil {
			t.Fatal(err)
		}
		s := state{w: w, policies: map[policy.Ref]*policy.Policy{}}
		useless := slices.DeleteFunc(list, func(f Finding) bool { return f.Kind != Redundant && f.Kind != Shadowed })
		slices.SortFunc(useless, func(a, b Finding) int { return cmp.Compare(b.Rule.Index, a.Rule.Index) })
		for _, f := range useless {
			s.remove(f.Rule.RuleRef)
			seen[f.Kind]++
		}
		var left []*policy.Policy
		for _, p := range w.Policies {
			if e, ok := s.policies[p.Ref]; ok {
				p = e
			}
			left = append(left, p)
		}
		f, err := Read("people.yaml", []byte(people), nil)
		if err != nil {
			t.Fatal(err)
		}
		next, err := f.World(left)
		if err != nil {
			t.Fatal(err)
		}
		changes, err := w.Diff(next)
		if err != nil {
			t.Fatal(err)
		}
		if len(changes) > 0 {
			t.Fatalf("without %+v:\n%+v\n%s", useless, changes[0], text)
		}
	}
	if seen[Redundant] < 20 || seen[Shadowed] < 5 {
		t.Errorf("found %v: does the generator still make such rules?", seen)
	}
	t.Log(seen)
}

// TestAllowBeforeDenyIsNotIdle: an allow matters where nothing isolates, when it comes before a rule that denies.
func TestAllowBeforeDenyIsNotIdle(t *testing.T) {
	w := world(t, `
workloads:
  - {name: web, labels: {app: web}}
  - {name: db, labels: {app: db}}
`, `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: apart}
spec:
  tier: Baseline
  priority: 100
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}}
  ingress:
    - action: Accept
      from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}]
    - action: Deny
      from: [{namespaces: {}}]
`)
	list, err := w.Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if f.Kind != Wide {
			t.Errorf("%s %s %s", f.Rule.Place(), f.Kind, f.Text)
		}
	}
}
