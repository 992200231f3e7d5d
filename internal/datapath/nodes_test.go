package datapath

import (
	"net/netip"
	"testing"
	"time"

	"porin/bpf"
	"porin/internal/identity"
	"porin/internal/node"
)

// manyRemotes are n addresses of pods behind 250 nodes.
func manyRemotes(n int) []node.Remote {
	out := make([]node.Remote, n)
	for i := range out {
		out[i] = node.Remote{
			Addr: netip.AddrFrom4([4]byte{10, byte(100 + i>>16), byte(i >> 8), byte(i)}), Identity: identity.ID(1000 + i%500),
			Node: netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i%250)}),
		}
	}
	return out
}

func epochOf(t testing.TB, d *Datapath) uint32 {
	t.Helper()
	e, _, err := d.epoch.get(0)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestRootRemotes: rows of other nodes' workloads come and go, whoever says so and however late.
func TestRootRemotes(t *testing.T) {
	n := newNode(t)
	n.cfg.Routing = RoutingGeneve
	d := n.open()
	putAllow(t, d)
	list := manyRemotes(1000)
	put := func(rs ...node.Remote) {
		t.Helper()
		if err := d.PutRemotes(rs); err != nil {
			t.Fatal(err)
		}
	}
	del := func(rs ...node.Remote) {
		t.Helper()
		if err := d.DeleteRemotes(rs); err != nil {
			t.Fatal(err)
		}
	}
	row := func(a netip.Addr) bpf.Peer {
		t.Helper()
		p, _, err := d.peers.get(bpf.AddrFrom(a))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	want := func(r node.Remote) {
		t.Helper()
		if got := row(r.Addr); got != remotePeer(r.Identity, bpf.AddrFrom(r.Node)) {
			t.Errorf("%s: row %+v, want %+v", r.Addr, got, r)
		}
	}
	put(list...)
	before := epochOf(t, d)
	put(list...)
	if now := epochOf(t, d); now != before {
		t.Errorf("the same rows again made cached verdicts stale: epoch %d, was %d", now, before)
	}
	want(list[7])

	// the next owner's row stays, whoever takes the former one away
	moved := list[7]
	moved.Node, moved.Identity = netip.MustParseAddr("192.0.2.251"), 4711
	put(moved)
	if now := epochOf(t, d); now == before {
		t.Error("another owner left cached verdicts in force")
	}
	del(list[7])
	want(moved)
	del(moved)
	if got := row(moved.Addr); got != (bpf.Peer{}) {
		t.Errorf("row after its owner went: %+v", got)
	}
	del(moved)

	// an address of this node's own: the other node's word holds when this one gives it up, and not before
	ep := wire(t, d, pod(t, 9))
	claim := node.Remote{Addr: ep.IPv4, Identity: 999, Node: netip.MustParseAddr("192.0.2.9")}
	put(claim)
	if got := row(ep.IPv4); got.Flags&bpf.PeerLocal == 0 {
		t.Errorf("another node took a workload's address: %+v", got)
	}
	if err := d.RemoveEndpoint(ep); err != nil {
		t.Fatal(err)
	}
	want(claim)
	put(node.Remote{Addr: n.cfg.RouterIPv4, Identity: 999, Node: claim.Node})
	if got := row(n.cfg.RouterIPv4); got.Flags&bpf.PeerHost == 0 {
		t.Errorf("another node took this node's address: %+v", got)
	}

	for _, bad := range []node.Remote{
		{Addr: list[0].Addr, Identity: 1<<24 + 5, Node: claim.Node},
		{Addr: list[0].Addr, Node: claim.Node},
		{Addr: list[0].Addr, Identity: 1000},
	} {
		if err := d.PutRemotes([]node.Remote{bad}); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	want(list[0])
}

// TestRootRemotesFull: what finds no room is told, and what fits stays.
func TestRootRemotesFull(t *testing.T) {
	n := newNode(t)
	n.cfg.MapSizes[mapPeers] = 512
	d := n.open()
	if err := d.PutRemotes(manyRemotes(1000)); err == nil {
		t.Fatal("1000 rows found room in 512")
	}
	if len(d.Alarms()) == 0 {
		t.Error("no alarm about the full map")
	}
	if err := d.DeleteRemotes(manyRemotes(1000)); err != nil {
		t.Fatal(err)
	}
	if err := d.PutRemotes(manyRemotes(100)); err != nil {
		t.Errorf("after room was made: %v", err)
	}
}

// TestRootNodes: a node is its addresses, its router and its ranges, and leaves nothing.
func TestRootNodes(t *testing.T) {
	n, _ := uplinkNode(t)
	n.cfg.Routing = RoutingGeneve
	d := n.open()
	before := dumpOf(t, d)
	one := node.Node{
		Cluster: "c", Name: "one", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8:1::11")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/24"), netip.MustParsePrefix("fd11::/112")},
	}
	put := func(list ...node.Node) {
		t.Helper()
		if err := d.PutNodes(list); err != nil {
			t.Fatal(err)
		}
	}
	at := bpf.AddrFrom(one.Addresses[0])
	put(one)
	for _, a := range []string{"192.0.2.11", "2001:db8:1::11", "10.11.0.1", "fd11::1"} {
		row, _, err := d.peers.get(bpf.AddrFrom(netip.MustParseAddr(a)))
		if err != nil || row != remotePeer(identity.RemoteNode, at) {
			t.Errorf("%s: %+v %v", a, row, err)
		}
	}
	ids := map[uint64]int{}
	rows, err := d.nodeRows.all()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		ids[r.ID]++
	}
	if len(rows) != 2 || len(ids) != 1 {
		t.Errorf("rows of nodes: %v", rows)
	}
	routes := func() (n int) {
		want, err := d.wantedRoutes()
		if err != nil {
			t.Fatal(err)
		}
		return len(want)
	}
	if routes() != 2 {
		t.Errorf("%d routes, want 2", routes())
	}

	// what the way there takes outlives a node that is put again
	learnt := rows[at]
	learnt.MTU = 1400
	if err := d.nodeRows.put(at, learnt); err != nil {
		t.Fatal(err)
	}
	put(one)
	if have, _, _ := d.nodeRows.get(at); have.MTU != 1400 {
		t.Errorf("the path MTU was forgotten: %+v", have)
	}

	// another range, another address; and a second node that takes the first one's old range
	two := one
	two.Name, two.Addresses, two.PodCIDRs = "two", []netip.Addr{netip.MustParseAddr("192.0.2.12")}, one.PodCIDRs[:1]
	next := one
	next.Addresses, next.PodCIDRs = one.Addresses[:1], one.PodCIDRs[1:]
	put(next, two)
	ranges, err := d.prefixes.rows.all()
	if err != nil {
		t.Fatal(err)
	}
	if row := ranges[bpf.PrefixKeyFrom(one.PodCIDRs[0])]; row.Node != bpf.AddrFrom(two.Addresses[0]) || row.Flags != remoteRange {
		t.Errorf("range of the second node: %+v", row)
	}
	if err := d.DeleteNodes([]string{one.Key(), two.Key(), "c/nobody"}); err != nil {
		t.Fatal(err)
	}
	if err := d.ForgetFormer(); err != nil {
		t.Fatal(err)
	}
	after := dumpOf(t, d)
	if have, want := len(after["ipcache"]), len(before["ipcache"]); have != want {
		t.Errorf("%d rows of addresses and ranges, before %d", have, want)
	}
	if left, err := d.nodeRows.len(); left != 0 || err != nil {
		t.Errorf("%d rows of nodes are left: %v", left, err)
	}
}

// BenchmarkRootPutRemotes programs 100,000 addresses in bulk.
func BenchmarkRootPutRemotes(b *testing.B) {
	n := newNode(b)
	n.cfg.MapSizes[mapPeers] = 512000
	d := n.open()
	list := manyRemotes(100_000)
	var took time.Duration
	for b.Loop() {
		began := time.Now()
		if err := d.PutRemotes(list); err != nil {
			b.Fatal(err)
		}
		took += time.Since(began)
		b.StopTimer()
		if err := d.DeleteRemotes(list); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(took.Microseconds())/float64(b.N*len(list)), "us/row")
}
