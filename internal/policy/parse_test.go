package policy

import (
	"testing"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/verdict"
)

const deathStar = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: rule1
spec:
  description: "L3-L4 policy to restrict deathstar access to empire ships only"
  endpointSelector:
    matchLabels:
      org: empire
      class: deathstar
  ingress:
  - fromEndpoints:
    - matchLabels:
        org: empire
    toPorts:
    - ports:
      - port: "80"
        protocol: TCP
`

func pod(t *testing.T, id identity.ID, ls ...string) identity.Identity {
	t.Helper()
	set, err := labels.ParseAll(ls...)
	if err != nil {
		t.Fatal(err)
	}
	return identity.Identity{ID: id, Labels: set}
}

func TestStarWars(t *testing.T) {
	ps, err := Parse("sw.yaml", []byte(deathStar))
	if err != nil {
		t.Fatal(err)
	}
	e := NewEngine(Config{DualStack: true})
	const ns = "k8s:io.kubernetes.pod.namespace=default"
	death := pod(t, 1000, ns, "k8s:org=empire", "k8s:class=deathstar")
	tie := pod(t, 1001, ns, "k8s:org=empire", "k8s:class=tiefighter")
	xwing := pod(t, 1002, ns, "k8s:org=alliance", "k8s:class=xwing")
	e.UpdateIdentities(append(identity.Reserved(), death, tie, xwing), nil)
	e.UpdatePolicies(ps, nil)
	in, out, err := e.Resolve(death, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !in.Isolated || out.Isolated {
		t.Errorf("isolated: ingress %t, egress %t; want true, false", in.Isolated, out.Isolated)
	}
	for _, c := range []struct {
		from identity.Identity
		port uint16
		want verdict.Action
	}{{tie, 80, verdict.Allow}, {tie, 81, verdict.Deny}, {xwing, 80, verdict.Deny}} {
		if v := in.Lookup(c.from.ID, ProtoTCP, c.port); v.Action != c.want {
			t.Errorf("%s to port %d: %s, want %s", c.from.Labels, c.port, v.Action, c.want)
		}
		d := e.Decide(c.from, death, ProtoTCP, c.port)
		if d.Action != c.want {
			t.Errorf("decide %s to port %d: %s, want %s", c.from.Labels, c.port, d.Action, c.want)
		}
		t.Log(c.from.Labels, c.port, d.Action, e.Explain(d.Ingress.Cookie), e.Explain(d.Egress.Cookie))
	}
	for id, tab := range in.Peers {
		t.Log(id, tab.Key, tab.Rows)
	}
	t.Log(in.Else.Rows, e.Explain(in.Default))
	b, err := ps[0].Marshal()
	t.Logf("%s %v", b, err)
}
