package datapath

import (
	"fmt"
	"testing"

	"porin/internal/identity"
	"porin/internal/policy"
)

// A subject that treats 10,000 identities apart, written and removed.
func BenchmarkRootPutSubject10k(b *testing.B) {
	n := newNode(b)
	d := n.open()
	web := ports("web", 80, 80)
	peers := map[identity.ID]*policy.Table{}
	for i := range 10_000 {
		peers[identity.ID(1000+i)] = web
	}
	for i := 0; b.Loop(); i++ {
		key := policy.SubjectKey(fmt.Sprint("subject ", i))
		if err := d.PutSubject(&policy.Subject{Key: key, Else: denyAll(), Peers: peers}); err != nil {
			b.Fatal(err)
		}
		d.policy.subjects[key].put = d.policy.subjects[key].put.Add(-2 * freshSubject)
		if _, err := d.prune(d.policy.subjects[key].put.Add(2*freshSubject), false); err != nil {
			b.Fatal(err)
		}
	}
}

// A changed rule takes effect: one row of endpoints and the epoch.
func BenchmarkRootFlip(b *testing.B) {
	n := newNode(b)
	d := n.open()
	putAllow(b, d)
	other := &policy.Subject{Key: "other", Else: denyAll()}
	if err := d.PutSubject(other); err != nil {
		b.Fatal(err)
	}
	ep := wire(b, d, pod(b, 11))
	for i := 0; b.Loop(); i++ {
		ep.Ingress = "allow-in"
		if i%2 == 0 {
			ep.Ingress = "other"
		}
		if err := d.WriteEndpoint(ep); err != nil {
			b.Fatal(err)
		}
		if err := d.Commit(); err != nil {
			b.Fatal(err)
		}
	}
}
