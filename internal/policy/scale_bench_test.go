package policy

import (
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/verdict"
)

// Sizes of the cluster of BenchmarkCluster: what a published test of another controller uses. Two pods of a namespace have
// labels alike, so the pods have half as many identities.
const (
	clusterNamespaces = 25_000
	clusterPods       = 4 // of a namespace
)

// clusterDocs is the three policies of a namespace: nobody may come in, and each of two kinds of pods may ask the other.
func clusterDocs(ns int) string {
	var b strings.Builder
	doc := func(name, spec string) {
		fmt.Fprintf(&b, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: ns-%d}\nspec: %s\n---\n", name, ns, spec)
	}
	doc("deny", "{podSelector: {}, policyTypes: [Ingress]}")
	for _, way := range [][2]string{{"front", "back"}, {"back", "front"}} {
		doc(way[0], fmt.Sprintf("{podSelector: {matchLabels: {app: %s}}, ingress: [{from: [{podSelector: {matchLabels: {app: %s}}}], ports: [{port: 80, protocol: TCP}]}]}", way[0], way[1]))
	}
	return b.String()
}

func clusterPolicies(tb testing.TB) (out []*Policy) {
	tb.Helper()
	const part = 500
	for ns := 0; ns < clusterNamespaces; ns += part {
		var b strings.Builder
		for i := range part {
			b.WriteString(clusterDocs(ns + i))
		}
		out = append(out, mustParse(tb, b.String())...)
	}
	return out
}

// clusterIdentities is who the pods are.
func clusterIdentities() (out []identity.Identity) {
	for ns := range clusterNamespaces {
		name := fmt.Sprintf("ns-%d", ns)
		for i, app := range []string{"front", "back"} {
			out = append(out, identity.Identity{ID: identity.ID(256 + 2*ns + i), Labels: labels.New(
				labels.Label{Source: labels.SourceK8s, Key: "app", Value: app},
				labels.Label{Source: labels.SourceK8s, Key: labels.KeyNamespace, Value: name},
				labels.Label{Source: labels.SourceK8s, Key: "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", Value: name},
			)})
		}
	}
	return out
}

// cpu is what the process has used, the garbage collector's part included.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// heap is what is live.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkCluster takes the policies and pods of a whole cluster and resolves every pod, as no node has to. Reading the
// documents is not in it: that is asked once per document, when it comes.
func BenchmarkCluster(b *testing.B) {
	policies, ids := clusterPolicies(b), clusterIdentities()
	var used time.Duration
	var live uint64
	for b.Loop() {
		before := heap()
		began := cpu()
		e := NewEngine(Config{DualStack: true})
		e.UpdateIdentities(identity.Reserved(), nil)
		e.UpdateIdentities(ids, nil)
		e.UpdatePolicies(policies, nil)
		for pod := range clusterNamespaces * clusterPods {
			in, out, err := e.Resolve(ids[pod/2], nil)
			if err != nil || !in.Isolated || out.Isolated || len(in.Peers) != 2 { // the other kind, and the host
				b.Fatal(in, out, err)
			}
		}
		used += cpu() - began
		live = max(live, heap()-before)
		runtime.KeepAlive(e)
	}
	b.ReportMetric(used.Seconds()/float64(b.N), "cpu-s/op")
	b.ReportMetric(float64(live)/(1<<20), "heap-MB")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkClusterParse is reading the cluster's 75,000 documents.
func BenchmarkClusterParse(b *testing.B) {
	for b.Loop() {
		if n := len(clusterPolicies(b)); n != 3*clusterNamespaces {
			b.Fatal(n)
		}
	}
}

// BenchmarkNamespace: 10,000 pods, each of its own labels, in one namespace, all talking to all that have a label.
func BenchmarkNamespace(b *testing.B) {
	var docs []string
	for i := range 100 {
		docs = append(docs, document(fmt.Sprintf("p%d", i), fmt.Sprintf("group: g%d", i), []string{
			fmt.Sprintf("{fromEndpoints: [{matchLabels: {group: g%d}}], toPorts: [{ports: [{port: %d, protocol: TCP}]}]}", (i+1)%100, 1000+i),
		}))
	}
	policies := mustParse(b, docs...)
	var ids []identity.Identity
	for i := range 10_000 {
		ids = append(ids, workload(256+i, fmt.Sprintf("pod=p%d", i), fmt.Sprintf("group=g%d", i%100)))
	}
	var used time.Duration
	var live uint64
	for b.Loop() {
		before := heap()
		began := cpu()
		e := NewEngine(Config{DualStack: true})
		e.UpdateIdentities(append(identity.Reserved(), ids...), nil)
		e.UpdatePolicies(policies, nil)
		for _, id := range ids {
			if in, _, err := e.Resolve(id, nil); err != nil || len(in.Peers) < 100 {
				b.Fatal(len(in.Peers), err)
			}
		}
		used += cpu() - began
		live = max(live, heap()-before)
		runtime.KeepAlive(e)
	}
	b.ReportMetric(used.Seconds()/float64(b.N), "cpu-s/op")
	b.ReportMetric(float64(live)/(1<<20), "heap-MB")
	b.ReportMetric(0, "ns/op")
}

// TestIdentitiesAndPortsDoNotMultiply: one subject that 5,000 identities may ask on 100 ports costs the kernel a row for
// each identity and a row for each port, not for each pair.
func TestIdentitiesAndPortsDoNotMultiply(t *testing.T) {
	var ports []string
	for i := range 100 {
		ports = append(ports, fmt.Sprintf("{port: \"%d\", protocol: TCP}", 1000+2*i)) // no two in a row
	}
	var entries []string
	for i := 0; i < 100; i += 40 { // a list of ports has 40 at most
		entries = append(entries, fmt.Sprintf("{fromEndpoints: [{matchLabels: {bar: yes}}], toPorts: [{ports: [%s]}]}", strings.Join(ports[i:min(i+40, 100)], ", ")))
	}
	e := NewEngine(Config{DualStack: true})
	ids := identity.Reserved()
	for i := range 5000 {
		ids = append(ids, workload(1000+i, "bar=yes", fmt.Sprintf("n=%d", i)))
	}
	e.UpdateIdentities(ids, nil)
	e.UpdatePolicies(mustParse(t, document("p", "foo: yes", entries)), nil)
	in, out, err := e.Resolve(workload(10000, "foo=yes"), nil)
	if err != nil {
		t.Fatal(err)
	}
	rows, tables := 0, map[string]bool{}
	for _, s := range []*Subject{in, out} {
		rows += len(s.Peers) + 1 // and everyone else
		all := []*Table{s.Else}
		for _, t := range s.Peers {
			all = append(all, t)
		}
		for _, t := range all {
			if !tables[t.Key] {
				tables[t.Key] = true
				rows += len(t.Rows)
			}
		}
	}
	if rows > 5200 || rows < 5100 {
		t.Errorf("%d rows for 5,000 identities and 100 ports", rows)
	}
	t.Logf("%d rows", rows)
	for port := uint16(1000); port < 1200; port++ {
		for _, id := range []identity.ID{1000, 3333, 5999} {
			if got := in.Lookup(id, ProtoTCP, port); (got.Action == verdict.Allow) != (port%2 == 0) {
				t.Fatalf("%d at port %d: %v", id, port, got)
			}
		}
	}
}
