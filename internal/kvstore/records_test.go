package kvstore

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"porin/internal/node"
)

// reporter is one node that publishes and watches, and what its watch told.
type reporter struct {
	*member
	records *Records
	claims  func() Claim

	mu     sync.Mutex
	nodes  map[string]node.Node
	addrs  map[string]node.Address // by node/address
	lapses []node.Batch            // batches in which nodes went
	done   int                     // listings that were told
	seen   map[string]bool         // of the listing that is being told
}

// newReporter starts a node of cluster c that publishes under its name.
func newReporter(t testing.TB, name, endpoint string, claim Claim, edit ...func(*Config)) *reporter {
	t.Helper()
	r := &reporter{member: newNode(t, name, endpoint, edit...), nodes: map[string]node.Node{}, addrs: map[string]node.Address{}, seen: map[string]bool{}}
	var mu sync.Mutex
	saved := claim
	r.claims = func() Claim {
		mu.Lock()
		defer mu.Unlock()
		return saved
	}
	r.records = NewRecords(logTo(t).With("node", name), r.client, RecordsConfig{Cluster: "c", Node: name, Claim: claim, Save: func(c Claim) error {
		mu.Lock()
		defer mu.Unlock()
		saved = c
		return nil
	}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.records.Run(ctx) })
	wg.Go(func() { r.records.Watch(ctx, r.heard) })
	stop := r.member.stop
	r.member.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		stop()
	})
	t.Cleanup(r.member.stop)
	return r
}

func (r *reporter) heard(b node.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range b.GoneNodes {
		delete(r.nodes, n)
	}
	if len(b.GoneNodes) > 0 {
		r.lapses = append(r.lapses, b)
	}
	for _, g := range b.Gone {
		delete(r.addrs, g.Node+"/"+g.Addr.String())
	}
	for _, a := range b.Addresses {
		k := a.Node + "/" + a.Addr.String()
		r.addrs[k], r.seen[k] = a, true
	}
	for _, n := range b.Nodes {
		r.nodes[n.Name], r.seen[n.Name] = n, true
	}
	if b.Done {
		for k := range r.addrs {
			if !r.seen[k] {
				delete(r.addrs, k)
			}
		}
		for k := range r.nodes {
			if !r.seen[k] {
				delete(r.nodes, k)
			}
		}
		r.done++
	}
	if b.Listing == 0 || b.Done {
		r.seen = map[string]bool{}
	}
}

func (r *reporter) knows(lines ...string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var got []string
	for k := range r.nodes {
		got = append(got, k)
	}
	for k, a := range r.addrs {
		got = append(got, fmt.Sprintf("%s=%d", k, uint32(a.Identity)))
	}
	slices.Sort(got)
	slices.Sort(lines)
	return slices.Equal(got, lines)
}

func (r *reporter) sees(what string, lines ...string) {
	r.t.Helper()
	eventually(r.t, r.cfg.Node+" "+what, func() bool { return r.knows(lines...) })
}

func (r *reporter) lapsed() []node.Batch {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lapses)
}

func (r *reporter) generation(of string) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nodes[of].Generation
}

func pod(n, host int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(n), 0, byte(host)}) }

func at(n int, hosts ...int) (list []node.Address) {
	for _, h := range hosts {
		list = append(list, node.Address{Addr: pod(n, h), Identity: 300, Namespace: "default", Pod: "p", Generation: 1})
	}
	return list
}

func self(name string, n int) node.Node {
	return node.Node{
		Cluster: "c", Name: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(pod(n, 0), 24)},
	}
}

func (r *reporter) publish(n int, hosts ...int) {
	r.records.PublishAddresses(at(n, hosts...), nil)
	r.records.PublishNode(self(r.cfg.Node, n))
}

func TestRecordsTravel(t *testing.T) {
	srv := newServer(t)
	a, b := newReporter(t, "a", srv.cfg.Endpoint(), Claim{}), newReporter(t, "b", srv.cfg.Endpoint(), Claim{})
	a.publish(1, 7, 8)
	b.publish(2, 7)
	for _, r := range []*reporter{a, b} {
		r.sees("knows both", "a", "b", "a/10.1.0.7=300", "a/10.1.0.8=300", "b/10.2.0.7=300")
	}
	b.mu.Lock()
	got := b.addrs["a/10.1.0.7"]
	b.mu.Unlock()
	if want := at(1, 7)[0]; got.Node != "a" || got.Cluster != "c" || got.Pod != want.Pod || got.Namespace != want.Namespace || got.Generation != 1 {
		t.Errorf("b heard of %+v", got)
	}
	a.records.PublishAddresses(nil, []netip.Addr{pod(1, 7)})
	b.sees("hears of an address that went", "a", "b", "a/10.1.0.8=300", "b/10.2.0.7=300")
	if there, wanted := a.records.Published(); there != 2 || wanted != 2 {
		t.Errorf("a published %d of %d", there, wanted)
	}
	if c := a.claims(); c.Generation != a.generation("a") || c.Store == "" {
		t.Errorf("claim %+v", c)
	}
}

// 2,000 addresses, more than one transaction and one page can hold.
func TestManyRecords(t *testing.T) {
	srv := newServer(t)
	a, b := newReporter(t, "a", srv.cfg.Endpoint(), Claim{}), newReporter(t, "b", srv.cfg.Endpoint(), Claim{})
	var list []node.Address
	for i := range pageSize + 500 {
		addr := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		list = append(list, node.Address{Addr: addr, Identity: 300, Generation: 1})
	}
	a.records.PublishAddresses(list, nil)
	a.records.PublishNode(self("a", 1))
	count := func(r *reporter) int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.addrs)
	}
	eventually(t, "b hears of all", func() bool { return count(b) == len(list) })
	c := newReporter(t, "c", srv.cfg.Endpoint(), Claim{})
	eventually(t, "who comes later reads all", func() bool { return count(c) == len(list) && c.generation("a") != 0 })
}

// The store loses everything: each owner writes its own again, with the generation that it had.
func TestWipedStoreIsWrittenAgain(t *testing.T) {
	srv := newServer(t)
	a, b := newReporter(t, "a", srv.cfg.Endpoint(), Claim{}), newReporter(t, "b", srv.cfg.Endpoint(), Claim{})
	a.publish(1, 7, 8)
	b.publish(2, 7)
	all := []string{"a", "b", "a/10.1.0.7=300", "a/10.1.0.8=300", "b/10.2.0.7=300"}
	b.sees("knows both", all...)
	generation := b.generation("a")
	id := a.allocate("k8s:app=x;")
	srv.stop()
	if err := os.RemoveAll(srv.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	srv.start()
	eventually(t, "everything is back", func() bool { return len(a.keys(StatePrefix("c"))) == 5 && a.keys(idPrefix)[text(id)] == "k8s:app=x;" })
	b.sees("knows both again", all...)
	if got := b.generation("a"); got != generation {
		t.Errorf("a claimed anew: generation %d, was %d", got, generation)
	}
}

// Somebody deletes everything though all leases live.
func TestDeletedRecordsAreWrittenAgain(t *testing.T) {
	srv := newServer(t)
	a, b := newReporter(t, "a", srv.cfg.Endpoint(), Claim{}), newReporter(t, "b", srv.cfg.Endpoint(), Claim{})
	a.publish(1, 7)
	b.publish(2, 7)
	all := []string{"a", "b", "a/10.1.0.7=300", "b/10.2.0.7=300"}
	b.sees("knows both", all...)
	generation := b.generation("a")
	if _, err := a.etcd.Delete(t.Context(), "porin/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "everything is back", func() bool { return len(a.keys(StatePrefix("c"))) == 4 })
	b.sees("knows both again", all...)
	if got := b.generation("a"); got != generation {
		t.Errorf("a claimed anew: generation %d, was %d", got, generation)
	}
	if _, err := a.etcd.Put(t.Context(), AddressKey("c", "a", pod(1, 7)), `{"identity":999,"meaning":"0000000000000000","generation":1}`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what somebody forged is written over", func() bool {
		return strings.Contains(a.keys(StatePrefix("c"))["addresses/a/10.1.0.7"], `"identity":300`)
	})
}

// A lease ends while its node is cut off. The others hear of it as one thing, and of the return in an order that tells
// which addresses are no more.
func TestCutOffNodeLapsesAndReturns(t *testing.T) {
	srv := newServer(t)
	cable := newCable(t, srv.cfg.Socket)
	short := func(c *Config) { c.LeaseTTL = time.Second }
	a, b := newReporter(t, "a", cable.endpoint(), Claim{}, short), newReporter(t, "b", srv.cfg.Endpoint(), Claim{}, short)
	a.publish(1, 7, 8, 9)
	b.publish(2, 7)
	b.sees("knows both", "a", "b", "a/10.1.0.7=300", "a/10.1.0.8=300", "a/10.1.0.9=300", "b/10.2.0.7=300")
	generation := b.generation("a")
	cable.cut()
	b.sees("hears of the lapse", "b", "b/10.2.0.7=300")
	if got := b.lapsed(); len(got) != 1 || len(got[0].GoneNodes) != 1 || len(got[0].Gone) != 3 {
		t.Errorf("the lapse was told as %+v", got)
	}
	a.records.PublishAddresses(at(1, 10), []netip.Addr{pod(1, 8)})
	cable.mend()
	now := []string{"a", "b", "a/10.1.0.7=300", "a/10.1.0.9=300", "a/10.1.0.10=300", "b/10.2.0.7=300"}
	b.sees("hears of the return", now...)
	a.sees("agrees", now...)
	if got := b.generation("a"); got <= generation || got != a.claims().Generation {
		t.Errorf("a came back with generation %d, saved %d; it had %d", got, a.claims().Generation, generation)
	}
}

// While a node is cut off the history it has missed is compacted: it reads everything anew, and misses no deletion.
func TestCompactedHistory(t *testing.T) {
	srv := newServer(t)
	cable := newCable(t, srv.cfg.Socket)
	a, b := newReporter(t, "a", srv.cfg.Endpoint(), Claim{}), newReporter(t, "b", cable.endpoint(), Claim{})
	a.publish(1, 7, 8)
	b.sees("knows a", "a", "a/10.1.0.7=300", "a/10.1.0.8=300")
	cable.cut()
	a.records.PublishAddresses(at(1, 9), nil)
	a.sees("has one more", "a", "a/10.1.0.7=300", "a/10.1.0.8=300", "a/10.1.0.9=300")
	a.records.PublishAddresses(nil, []netip.Addr{pod(1, 7)})
	a.sees("has one less", "a", "a/10.1.0.8=300", "a/10.1.0.9=300")
	resp, err := a.etcd.Get(t.Context(), "porin/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.etcd.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	cable.mend()
	b.sees("knows what a has now", "a", "a/10.1.0.8=300", "a/10.1.0.9=300")
	if b.client.Counts()["listings"] < 2 {
		t.Errorf("counts %v: the history was not compacted", b.client.Counts())
	}
}

// An agent is restarted: what is true no more goes, what is stays, and so does its claim.
func TestRestartedNode(t *testing.T) {
	srv := newServer(t)
	short := func(c *Config) { c.LeaseTTL = 2 * time.Second }
	b := newReporter(t, "b", srv.cfg.Endpoint(), Claim{})
	a := newReporter(t, "a", srv.cfg.Endpoint(), Claim{}, short)
	a.publish(1, 7, 8)
	b.sees("knows a", "a", "a/10.1.0.7=300", "a/10.1.0.8=300")
	first := b.generation("a")
	a.stop()
	a = newReporter(t, "a", srv.cfg.Endpoint(), a.claims(), short)
	a.publish(1, 8, 9)
	b.sees("knows what a has now", "a", "a/10.1.0.8=300", "a/10.1.0.9=300")
	if got := b.generation("a"); got != first {
		t.Errorf("generation %d after a restart, was %d", got, first)
	}
	a.stop()
	b.sees("hears of the lapse")
	a = newReporter(t, "a", srv.cfg.Endpoint(), a.claims(), short)
	a.publish(1, 8)
	b.sees("knows a again", "a", "a/10.1.0.8=300")
	if got := b.generation("a"); got <= first {
		t.Errorf("generation %d after the record lapsed, was %d", got, first)
	}
}

// What nobody can have written as a record is passed over, and takes nothing else with it.
func TestStrangeRecords(t *testing.T) {
	srv := newServer(t)
	a, b := newReporter(t, "a", srv.cfg.Endpoint(), Claim{}), newReporter(t, "b", srv.cfg.Endpoint(), Claim{})
	a.publish(1, 7, 8)
	b.sees("knows a", "a", "a/10.1.0.7=300", "a/10.1.0.8=300")
	p := StatePrefix("c")
	for key, value := range map[string]string{
		p + "nodes/x": "{", p + "nodes/y": `{"name":"z"}`, p + "nodes/": "{}", p + "nodes/x/y": "{}", p + "addresses/x/1.2.3": "{}",
		p + "addresses/x/::ffff:10.0.0.1%0": "{}", p + "addresses/x/fd00:0::1": "{}", p + "addresses/x": "{}", p + "other/x": "{}",
		p + "addresses/x/10.9.0.1": `{"identity":-1}`, p + "addresses/x/10.9.0.2": `{"identity":300,"meaning":"xyz"}`,
	} {
		if _, err := a.etcd.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	a.records.PublishAddresses(at(1, 9), nil)
	b.sees("knows what is right", "a", "a/10.1.0.7=300", "a/10.1.0.8=300", "a/10.1.0.9=300")
	if got := b.client.Counts()["refused"]; got < 10 {
		t.Errorf("%d records refused, want 11", got)
	}
	c := newReporter(t, "c", srv.cfg.Endpoint(), Claim{})
	c.sees("reads what is right", "a", "a/10.1.0.7=300", "a/10.1.0.8=300", "a/10.1.0.9=300")
}

// Two nodes are called the same: each sees the other's record, and they do not write over each other for ever.
func TestTwoNodesOfOneName(t *testing.T) {
	srv := newServer(t)
	one, two := newReporter(t, "a", srv.cfg.Endpoint(), Claim{}), newReporter(t, "a", srv.cfg.Endpoint(), Claim{})
	one.publish(1)
	one.sees("is there", "a")
	two.publish(2)
	eventually(t, "one sees the other", func() bool { return one.generation("a") == two.records.Generation() })
	first := one.keys(StatePrefix("c"))
	resp, err := one.etcd.Get(t.Context(), NodeKey("c", "a"))
	if err != nil {
		t.Fatal(err)
	}
	beats := one.client.answered()
	eventually(t, "time goes by", func() bool { return one.client.answered().After(beats.Add(5 * one.cfg.Heartbeat)) })
	again, err := one.etcd.Get(t.Context(), NodeKey("c", "a"))
	if err != nil {
		t.Fatal(err)
	}
	if again.Kvs[0].ModRevision != resp.Kvs[0].ModRevision {
		t.Errorf("the record is written over again and again: %v, then %v", first, one.keys(StatePrefix("c")))
	}
}

func (c *Client) answered() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answer
}
