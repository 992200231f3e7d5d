package endpoint

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/verdict"
)

const byName = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names, namespace: default}
spec:
  endpointSelector: {}
  ingress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]
  egress: [{toEndpoints: [{matchLabels: {app: web}}], toPorts: [{ports: [{port: http, protocol: TCP}]}]}]
`

func port(name string, port uint16) policy.NamedPort {
	return policy.NamedPort{Name: name, Proto: policy.ProtoTCP, Port: port}
}

func (a *agent) createWith(name string, ports []policy.NamedPort, ls ...string) Endpoint {
	a.t.Helper()
	req := request(name, ls...)
	req.NamedPorts = ports
	ep, err := a.Create(a.t.Context(), req)
	if err != nil {
		a.t.Fatalf("create %s: %v", name, err)
	}
	return ep
}

// TestNamedPorts: on ingress the pod's own numbers count, on egress those of all pods of the peer's identity, here and on
// other nodes; they come before the pod has traffic and go with it, and outlive a restart.
func TestNamedPorts(t *testing.T) {
	a := newAgent(t, byName)
	client := a.create("client", "k8s:app=client")
	one := a.createWith("one", []policy.NamedPort{port("http", 8080), port("admin", 9)}, "k8s:app=web")
	two := a.createWith("two", []policy.NamedPort{port("http", 80)}, "k8s:app=web")
	if one.Identity != two.Identity || one.Ingress == two.Ingress || one.Egress != two.Egress {
		t.Fatalf("identities %d and %d, ingress %s and %s, egress %s and %s", one.Identity, two.Identity, one.Ingress, two.Ingress, one.Egress, two.Egress)
	}
	ask := func(want string) {
		t.Helper()
		var got []string
		for _, q := range []struct {
			what   string
			ep     Endpoint
			dir    verdict.Direction
			remote Endpoint
			ports  []uint16
		}{
			{"one", one, verdict.Ingress, client, []uint16{9, 80, 8080}},
			{"two", two, verdict.Ingress, client, []uint16{9, 80, 8080}},
			{"client", client, verdict.Egress, one, []uint16{9, 80, 81, 8080}},
		} {
			if _, there := a.ByID(q.ep.ID); !there {
				continue
			}
			var open []string
			for _, p := range q.ports {
				if a.can(q.ep, q.dir, q.remote.IPv4, p) {
					open = append(open, fmt.Sprint(p))
				}
			}
			got = append(got, q.what+" "+strings.Join(open, ","))
		}
		if s := strings.Join(got, "; "); s != want {
			t.Fatalf("open: %s; want %s", s, want)
		}
	}
	ask("one 8080; two 80; client 80,8080")
	elsewhere := func(ports ...policy.NamedPort) {
		t.Helper()
		if err := a.LearnPorts(t.Context(), map[identity.ID][]policy.NamedPort{one.Identity: ports}); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere(port("http", 81), port("http", 80))
	ask("one 8080; two 80; client 80,81,8080")
	if got, err := a.NamedPorts(t.Context()); err != nil || !slices.Equal(got[one.Identity], []policy.NamedPort{port("admin", 9), port("http", 80), port("http", 81), port("http", 8080)}) {
		t.Errorf("known of ports: %v, %v", got, err)
	}
	if err := a.Delete(t.Context(), "two", "eth0"); err != nil {
		t.Fatal(err)
	}
	ask("one 8080; client 80,81,8080") // another node's pod has 80 too
	elsewhere()
	ask("one 8080; client 8080")

	a = a.restart()
	a.apply(byName)
	one, _ = a.ByID(one.ID)
	client, _ = a.ByID(client.ID)
	ask("one 8080; client 8080")
	moved, err := a.SetLabels(t.Context(), one.ID, labels.Labels{{Source: "k8s", Key: "app", Value: "other"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	one = moved
	ask("one 8080; client ")
	if _, err := a.SetLabels(t.Context(), one.ID, labels.Labels{{Source: "k8s", Key: "app", Value: "web"}}, labels.Labels{{Source: "k8s", Key: "app", Value: "other"}}); err != nil {
		t.Fatal(err)
	}
	ask("one 8080; client 8080")
	a.empties("one", "client")
}

func TestNamedPortsAreChecked(t *testing.T) {
	a := newAgent(t)
	for _, p := range []policy.NamedPort{port("", 80), port("HTTP", 80), port("a\nb", 80), port("http", 0), {Name: "http", Port: 80}} {
		req := request("web", "k8s:app=web")
		req.NamedPorts = []policy.NamedPort{p}
		if _, err := a.Create(t.Context(), req); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: got %v, want ErrInvalid", p, err)
		}
	}
	req := request("web", "k8s:app=web")
	req.NamedPorts = make([]policy.NamedPort, maxNamedPorts+1)
	if _, err := a.Create(t.Context(), req); !errors.Is(err, ErrInvalid) {
		t.Errorf("too many: got %v, want ErrInvalid", err)
	}
	ep := a.createWith("web", []policy.NamedPort{port("http", 81), port("http", 80), port("http", 81)}, "k8s:app=web")
	if fmt.Sprint(ep.NamedPorts) != "[{http 6 80} {http 6 81}]" {
		t.Errorf("kept as %v", ep.NamedPorts)
	}
	a.empties("web")
}

// empties deletes and checks that nothing is left.
func (a *agent) empties(names ...string) {
	a.t.Helper()
	for _, name := range names {
		if err := a.Delete(a.t.Context(), name, "eth0"); err != nil {
			a.t.Fatal(err)
		}
	}
	a.empty()
}
