package policy

import (
	"fmt"
	"testing"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/verdict"
)

// TestOwnClusterUnlessSaid: a selector of peers means the workloads of its own cluster, as in the reference since 1.19, so
// that a cluster that joins the mesh with the same labels is let in by nobody who did not say so. One that speaks of
// clusters means those.
func TestOwnClusterUnlessSaid(t *testing.T) {
	far := workload(2000, "app=web")
	far.Labels = labels.New(append(far.Labels, labels.Label{Source: labels.SourceK8s, Key: labels.KeyCluster, Value: "two"})...)
	near := workload(1000, "app=web")
	near.Labels = labels.New(append(near.Labels, labels.Label{Source: labels.SourceK8s, Key: labels.KeyCluster, Value: "one"})...)
	unnamed, db := workload(1001, "app=web"), workload(5000, "app=db")
	const key = "io.cilium.k8s.policy.cluster"
	cnp := func(section, entry string) string {
		return "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec: {endpointSelector: {matchLabels: {app: db}}, " + section + ": [" + entry + "]}\n"
	}
	service := "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}}\n"
	for _, c := range []struct {
		doc         string
		near, far   bool
		egress, all bool // all: the selector means those that say no cluster too
	}{
		{doc: cnp("ingress", "{fromEndpoints: [{matchLabels: {app: web}}]}"), near: true, all: true},
		{doc: cnp("ingress", "{fromEndpoints: [{}]}"), near: true, all: true},
		{doc: cnp("ingress", "{fromEndpoints: [{matchLabels: {app: web, "+key+": two}}]}"), far: true},
		{doc: cnp("ingress", "{fromEndpoints: [{matchExpressions: [{key: 'k8s:"+key+"', operator: Exists}]}]}"), near: true, far: true},
		{doc: cnp("ingress", "{fromEntities: [all], fromRequires: [{matchLabels: {app: web}}]}"), near: true, all: true},
		{doc: cnp("ingress", "{fromEntities: [cluster-mesh]}"), near: true, far: true, all: true},
		{doc: cnp("egress", "{toServices: [{k8sService: {serviceName: web}}]}") + service, near: true, all: true, egress: true},
		{doc: knp("podSelector: {matchLabels: {app: db}}\ningress: [{from: [{podSelector: {}}]}]"), near: true, all: true},
	} {
		e := NewEngine(Config{Cluster: "one"})
		e.UpdatePolicies(mustParse(t, c.doc), nil)
		e.UpdateIdentities([]identity.Identity{near, far, unnamed, db}, nil)
		in, out, err := e.Resolve(db, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.egress {
			in = out
		}
		for who, want := range map[*identity.Identity]bool{&near: c.near, &far: c.far, &unnamed: c.all} {
			if got := in.Lookup(who.ID, ProtoTCP, 80).Action == verdict.Allow; got != want {
				t.Errorf("%s\n%s allowed: %t, want %t", c.doc, who.Labels, got, want)
			}
			d := e.Decide(*who, db, ProtoTCP, 80).Ingress
			if c.egress {
				d = e.Decide(db, *who, ProtoTCP, 80).Egress
			}
			if got := d.Action == verdict.Allow; got != want {
				t.Errorf("%s\n%s decided %s, want allowed: %t", c.doc, who.Labels, fmt.Sprint(d), want)
			}
		}
	}
}
