package node

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"porin/internal/identity"
)

func TestAddressFollowsItsRecord(t *testing.T) {
	s := newScene(t)
	s.know(300, "web")
	s.tell(Batch{Nodes: []Node{nodeOf("n1", 1, 5)}, Addresses: []Address{addressOf("n1", podOf(1, 7), 300, "web")}})
	s.want("10.1.0.7 300 192.168.0.1")
	if n := s.kernel.nodes["c/n1"]; len(n.PodCIDRs) != 2 {
		t.Errorf("kernel's node is %+v", n)
	}
	if a, ok := s.Lookup(podOf(1, 7)); !ok || a.Node != "n1" || a.Pod != "web" {
		t.Errorf("lookup gave %+v %v", a, ok)
	}
	s.tell(Batch{Gone: []Ownership{{"n1", podOf(1, 7)}}})
	s.want()
	if _, ok := s.Lookup(podOf(1, 7)); ok {
		t.Error("an address that is gone was found")
	}
	if len(s.book.slots) != 0 {
		t.Errorf("%d addresses are kept", len(s.book.slots))
	}
}

// Labels come before the address is used, whatever comes first from the store.
func TestAddressWaitsForItsIdentity(t *testing.T) {
	s := newScene(t)
	s.tell(Batch{Nodes: []Node{nodeOf("n1", 1, 5)}, Addresses: []Address{addressOf("n1", podOf(1, 7), 300, "web")}})
	s.want()
	if c := s.Counts(); c.Waiting != 1 {
		t.Errorf("counts %+v", c)
	}
	s.know(300, "something else") // the number means something else here
	s.settle()
	s.want()
	s.know(300, "web")
	s.settle()
	s.want("10.1.0.7 300 192.168.0.1")
}

// A number comes to mean something else: no address keeps it, and no address gets the new permission.
func TestNumberChangesItsMeaning(t *testing.T) {
	s := newScene(t)
	s.know(300, "web")
	s.tell(Batch{Nodes: []Node{nodeOf("n1", 1, 5)}, Addresses: []Address{addressOf("n1", podOf(1, 7), 300, "web")}})
	s.rules.set(300, nil) // the allocator holds it back while it changes
	if err := s.Withdraw(300); err != nil {
		t.Fatal(err)
	}
	s.want()
	s.know(300, "db")
	s.settle()
	s.want()
	s.tell(Batch{Addresses: []Address{addressOf("n1", podOf(1, 7), 301, "web")}})
	s.know(301, "web")
	s.settle()
	s.want("10.1.0.7 301 192.168.0.1")
}

func TestRangesHaveOneOwner(t *testing.T) {
	s := newScene(t)
	s.know(300, "web")
	old, young := nodeOf("old", 1, 5), nodeOf("young", 2, 9)
	young.PodCIDRs = append([]netip.Prefix{netip.MustParsePrefix("10.1.0.128/25")}, young.PodCIDRs...)
	mine := nodeOf("mine", 3, 1)
	mine.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")} // this node's own is 10.0.0.0/24
	s.tell(Batch{
		Nodes: []Node{young, old, mine},
		Addresses: []Address{
			addressOf("old", podOf(1, 7), 300, "web"), addressOf("young", podOf(1, 200), 300, "web"),
			addressOf("young", podOf(2, 7), 300, "web"), addressOf("mine", podOf(0, 7), 300, "web"),
		},
	})
	s.want("10.1.0.7 300 192.168.0.1", "10.2.0.7 300 192.168.0.2")
	if _, there := s.kernel.nodes["c/mine"]; there {
		t.Error("a node with nothing of its own is in the kernel")
	}
	alarms := strings.Join(s.Alarms(), "\n")
	for _, want := range []string{"10.1.0.128/25 overlaps with that of c/old", "10.0.0.0/16 overlaps with that of c/self"} {
		if !strings.Contains(alarms, want) {
			t.Errorf("alarms say nothing of %q:\n%s", want, alarms)
		}
	}
	// the first owner's record goes: who is there has the range
	s.tell(Batch{GoneNodes: []string{"old"}})
	s.want("10.1.0.200 300 192.168.0.2", "10.2.0.7 300 192.168.0.2")
	s.tell(Batch{Nodes: []Node{old}, Addresses: []Address{addressOf("old", podOf(1, 7), 300, "web")}})
	s.want("10.1.0.7 300 192.168.0.1", "10.2.0.7 300 192.168.0.2")
}

func TestWhatIsRefused(t *testing.T) {
	edit := func(f func(*Node, *Address)) (Node, Address) {
		n, a := nodeOf("n1", 1, 5), addressOf("n1", podOf(1, 7), 300, "web")
		f(&n, &a)
		return n, a
	}
	for name, f := range map[string]func(*Node, *Address){
		"address outside the node's ranges":   func(_ *Node, a *Address) { a.Addr = podOf(2, 7) },
		"reserved identity":                   func(_ *Node, a *Address) { a.Identity = identity.Host },
		"health where the node says no":       func(_ *Node, a *Address) { a.Identity = identity.Health },
		"node-local identity":                 func(_ *Node, a *Address) { a.Identity = identity.ScopeLocal | 300 },
		"identity of another cluster":         func(_ *Node, a *Address) { a.Identity = 5<<16 | 300 },
		"remote node's scope":                 func(_ *Node, a *Address) { a.Identity = 2<<24 | 300 },
		"another cluster's name":              func(_ *Node, a *Address) { a.Cluster = "other" },
		"pod name with a newline":             func(_ *Node, a *Address) { a.Pod = "x\ny" },
		"pod name with an escape":             func(_ *Node, a *Address) { a.Pod = "\x1b[31m" },
		"node of another cluster":             func(n *Node, _ *Address) { n.Cluster, n.ClusterID = "c", 3 },
		"range of everything":                 func(n *Node, _ *Address) { n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} },
		"loopback range":                      func(n *Node, _ *Address) { n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} },
		"multicast range":                     func(n *Node, _ *Address) { n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/24")} },
		"mapped range":                        func(n *Node, _ *Address) { n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("::ffff:10.1.0.0/120")} },
		"loopback underlay":                   func(n *Node, _ *Address) { n.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1")} },
		"two underlay addresses of a family":  func(n *Node, _ *Address) { n.Addresses = append(n.Addresses, netip.MustParseAddr("192.168.9.9")) },
		"own underlay address within a range": func(n *Node, _ *Address) { n.Addresses = []netip.Addr{podOf(1, 1)} },
		"this node's underlay address":        func(n *Node, _ *Address) { n.Addresses = nodeOf("", 0, 1).Addresses },
		"no underlay address in common":       func(n *Node, _ *Address) { n.Addresses = []netip.Addr{netip.MustParseAddr("2001:db8::1")} },
		"no generation":                       func(n *Node, _ *Address) { n.Generation = 0 },
		"labels of a workload": func(n *Node, _ *Address) {
			n.Labels = set("x")
		},
		"health outside its ranges": func(n *Node, _ *Address) { n.Health = []netip.Addr{podOf(9, 9)} },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			for _, id := range []identity.ID{300, 1, 4, identity.ScopeLocal | 300, 5<<16 | 300, 2<<24 | 300} {
				s.know(id, "web")
			}
			n, a := edit(f)
			if n.Cluster == "" {
				n.Cluster = "c"
			}
			s.tell(Batch{Nodes: []Node{n}, Addresses: []Address{a}})
			s.want()
			if len(s.Alarms()) == 0 {
				t.Error("no alarm")
			}
			good, right := edit(func(*Node, *Address) {})
			gone := []Ownership{{a.Node, a.Addr}}
			if a.Addr == right.Addr {
				gone = nil
			}
			s.tell(Batch{Nodes: []Node{good}, Addresses: []Address{right}, Gone: gone})
			s.want("10.1.0.7 300 192.168.0.1")
			if got := s.Alarms(); len(got) != 0 {
				t.Errorf("alarms stay: %q", got)
			}
			if c := s.Counts(); c.Refused != 0 || (c.Refusals == 0 && n.Addresses[0] != nodeOf("", 0, 1).Addresses[0] && !n.Addresses[0].Is6()) {
				t.Errorf("counts %+v", c)
			}
		})
	}
}

func TestHealthEndpoint(t *testing.T) {
	s := newScene(t)
	n := nodeOf("n1", 1, 5)
	n.Health = []netip.Addr{podOf(1, 9)}
	a := addressOf("n1", podOf(1, 9), identity.Health, "")
	s.tell(Batch{Nodes: []Node{n}, Addresses: []Address{a}})
	s.want("10.1.0.9 4 192.168.0.1")
	n.Health = nil
	s.tell(Batch{Nodes: []Node{n}})
	s.want()
}

// A node is cut off from the store longer than its lease lasts: it stays known for the grace period, and is as before when
// it returns, less what it gave up meanwhile.
func TestLapse(t *testing.T) {
	s := newScene(t)
	s.know(300, "web")
	all := []Address{addressOf("n1", podOf(1, 7), 300, "web"), addressOf("n1", podOf(1, 8), 300, "web")}
	s.tell(Batch{Nodes: []Node{nodeOf("n1", 1, 5)}, Addresses: all})
	both := []string{"10.1.0.7 300 192.168.0.1", "10.1.0.8 300 192.168.0.1"}
	gone := []Ownership{{"n1", podOf(1, 7)}, {"n1", podOf(1, 8)}}
	s.tell(Batch{GoneNodes: []string{"n1"}, Gone: gone}) // one revision: the lease ended
	s.want(both...)
	if row, _ := s.Table().Get("c/n1"); row.State != Lapsed {
		t.Errorf("the table says %+v", row)
	}
	s.now = s.now.Add(9 * time.Minute)
	s.settle()
	s.want(both...)
	s.tell(Batch{Addresses: all[:1]})
	s.want(both...)
	s.tell(Batch{Nodes: []Node{nodeOf("n1", 1, 5)}}) // the node's own record comes last
	s.want(both[:1]...)
	s.tell(Batch{GoneNodes: []string{"n1"}, Gone: gone[:1]})
	s.now = s.now.Add(9 * time.Minute)
	s.settle()
	s.want(both[:1]...)
	s.now = s.now.Add(2 * time.Minute)
	s.settle()
	s.want()
	if len(s.kernel.nodes) != 0 || len(s.book.owners) != 0 || s.Table().Len() != 1 {
		t.Errorf("left behind: %v, %d owners, %d rows", s.kernel.nodes, len(s.book.owners), s.Table().Len())
	}
}

// The store is wiped, or its history is compacted away: what a new listing does not tell is gone, but a node that is not
// there at all has only lapsed.
func TestListing(t *testing.T) {
	s := newScene(t)
	s.know(300, "web")
	n1, n2 := nodeOf("n1", 1, 5), nodeOf("n2", 2, 5)
	s.tell(Batch{Listing: 1, Nodes: []Node{n1, n2}, Addresses: []Address{
		addressOf("n1", podOf(1, 7), 300, "web"), addressOf("n1", podOf(1, 8), 300, "web"), addressOf("n2", podOf(2, 7), 300, "web"),
	}})
	s.tell(Batch{Listing: 1, Done: true})
	s.want("10.1.0.7 300 192.168.0.1", "10.1.0.8 300 192.168.0.1", "10.2.0.7 300 192.168.0.2")
	s.tell(Batch{Listing: 2, Addresses: []Address{addressOf("n1", podOf(1, 7), 300, "web")}})
	s.want("10.1.0.7 300 192.168.0.1", "10.1.0.8 300 192.168.0.1", "10.2.0.7 300 192.168.0.2")
	s.tell(Batch{Listing: 2, Nodes: []Node{n1}, Done: true})
	s.want("10.1.0.7 300 192.168.0.1", "10.2.0.7 300 192.168.0.2")
	s.tell(Batch{Listing: 3, Done: true})
	s.want("10.1.0.7 300 192.168.0.1", "10.2.0.7 300 192.168.0.2")
	s.now = s.now.Add(11 * time.Minute)
	s.settle()
	s.want()
}

// The range of a node that is cut off is given to another one: the new owner's addresses count, whatever the old one
// says when it is back with a claim that is younger by then.
func TestAddressReusedElsewhere(t *testing.T) {
	s := newScene(t)
	s.know(300, "web")
	s.know(400, "db")
	s.tell(Batch{Nodes: []Node{nodeOf("n1", 1, 5)}, Addresses: []Address{addressOf("n1", podOf(1, 7), 300, "web")}})
	s.tell(Batch{GoneNodes: []string{"n1"}, Gone: []Ownership{{"n1", podOf(1, 7)}}})
	next := nodeOf("n2", 1, 50)
	next.Addresses = nodeOf("", 2, 0).Addresses
	s.tell(Batch{Nodes: []Node{next}, Addresses: []Address{addressOf("n2", podOf(1, 7), 400, "db")}})
	s.want("10.1.0.7 400 192.168.0.2")
	s.tell(Batch{Nodes: []Node{nodeOf("n1", 1, 60)}, Addresses: []Address{addressOf("n1", podOf(1, 7), 300, "web")}})
	s.want("10.1.0.7 400 192.168.0.2")
	s.tell(Batch{Gone: []Ownership{{"n1", podOf(1, 7)}}}) // late: it must not take the newer owner's row
	s.want("10.1.0.7 400 192.168.0.2")
}

func TestKernelRefuses(t *testing.T) {
	s := newScene(t)
	s.know(300, "web")
	left := 1
	s.kernel.fail = func() bool { left--; return left < 0 }
	s.Heard(s.src, Batch{Nodes: []Node{nodeOf("n1", 1, 5)}, Addresses: []Address{addressOf("n1", podOf(1, 7), 300, "web"), addressOf("n1", podOf(1, 8), 300, "web")}})
	if err := s.flush(t.Context()); err == nil {
		t.Fatal("no error")
	}
	if len(s.Alarms()) == 0 {
		t.Error("no alarm")
	}
	s.consistent()
	s.kernel.fail = nil
	s.settle()
	s.want("10.1.0.7 300 192.168.0.1", "10.1.0.8 300 192.168.0.1")
	if got := s.Alarms(); len(got) != 0 {
		t.Errorf("alarms stay: %q", got)
	}
}

func TestNamedPorts(t *testing.T) {
	s := newScene(t)
	s.know(300, "web")
	http, admin := Port{"http", 6, 80}, Port{"admin", 6, 81}
	a, b := addressOf("n1", podOf(1, 7), 300, "web"), addressOf("n1", podOf(1, 8), 300, "web")
	a.Ports, b.Ports = []Port{http}, []Port{http, admin}
	s.tell(Batch{Nodes: []Node{nodeOf("n1", 1, 5)}, Addresses: []Address{a, b}})
	if got := s.rules.ports[300]; !slices.Equal(got, []Port{admin, http}) {
		t.Errorf("ports %v", got)
	}
	b.Ports = nil
	s.tell(Batch{Addresses: []Address{b}})
	if got := s.rules.ports[300]; !slices.Equal(got, []Port{http}) {
		t.Errorf("ports %v", got)
	}
	s.tell(Batch{Gone: []Ownership{{"n1", podOf(1, 7)}}})
	if got := s.rules.ports[300]; len(got) != 0 {
		t.Errorf("ports %v", got)
	}
}

func TestRemoteCluster(t *testing.T) {
	s := newScene(t)
	far := Source{Cluster: "far", ID: 7, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16")}}
	n := nodeOf("n1", 7, 5)
	n.Cluster, n.ClusterID, n.PodCIDRs = "far", 7, n.PodCIDRs[:1]
	s.know(7<<16|300, "web")
	a := addressOf("n1", podOf(7, 7), 7<<16|300, "web")
	a.Cluster = "far"
	s.Heard(far, Batch{Nodes: []Node{n}, Addresses: []Address{a}})
	s.settle()
	s.want("10.7.0.7 459052 192.168.0.7")
	foreign := nodeOf("n2", 8, 5)
	foreign.Cluster, foreign.ClusterID = "far", 7
	s.Heard(far, Batch{Nodes: []Node{foreign}})
	s.settle()
	if got := strings.Join(s.Alarms(), ""); !strings.Contains(got, "outside what cluster far may use") {
		t.Errorf("alarms: %s", got)
	}
	s.Leave("far")
	s.settle()
	s.want()
	if len(s.kernel.nodes) != 0 || len(s.Alarms()) != 0 {
		t.Errorf("left behind: %v %q", s.kernel.nodes, s.Alarms())
	}
}

func TestAnotherNodeOfThisName(t *testing.T) {
	s := newScene(t)
	other := nodeOf("self", 9, 7)
	s.tell(Batch{Nodes: []Node{other}})
	if got := strings.Join(s.Alarms(), ""); !strings.Contains(got, "192.168.0.9, calls itself self too") {
		t.Errorf("alarms: %s", got)
	}
	s.tell(Batch{Nodes: []Node{nodeOf("self", 0, 100)}})
	if got := s.Alarms(); len(got) != 0 {
		t.Errorf("alarms stay: %q", got)
	}
}

func TestTables(t *testing.T) {
	s := newScene(t)
	s.know(300, "web")
	s.tell(Batch{Nodes: []Node{nodeOf("n1", 1, 5)}, Addresses: []Address{addressOf("n1", podOf(1, 7), 300, "web"), addressOf("n1", podOf(9, 7), 300, "web")}})
	rows, rev, err := s.db.Dump("addresses")
	if err != nil || len(rows) != 2 || rev == 0 {
		t.Fatalf("%d rows, revision %d, %v", len(rows), rev, err)
	}
	var row AddressRow
	if err := json.Unmarshal(rows[1], &row); err != nil || row.Addr != podOf(9, 7) || row.Message != "outside its node's ranges" || row.Meaning != MeaningOf(set("web")) {
		t.Errorf("row %+v %v", row, err)
	}
	nodes, _, err := s.db.Dump("nodes")
	if err != nil || len(nodes) != 2 {
		t.Errorf("%d rows, %v", len(nodes), err)
	}
}

func TestUnderlay(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	w4, w6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	for _, c := range []struct {
		from, to []netip.Addr
		want     Family
		src, dst netip.Addr
	}{
		{[]netip.Addr{v4, v6}, []netip.Addr{w6, w4}, Auto, v4, w4},
		{[]netip.Addr{v4, v6}, []netip.Addr{w6}, Auto, v6, w6},
		{[]netip.Addr{v4, v6}, []netip.Addr{w4, w6}, IPv6, v6, w6},
		{[]netip.Addr{v4}, []netip.Addr{w4, w6}, IPv6, netip.Addr{}, netip.Addr{}},
		{[]netip.Addr{v4}, []netip.Addr{w6}, Auto, netip.Addr{}, netip.Addr{}},
	} {
		src, dst := Underlay(c.from, c.to, c.want)
		if src != c.src || dst != c.dst {
			t.Errorf("%v to %v by %s: %v %v", c.from, c.to, c.want, src, dst)
		}
		if back, forth := Underlay(c.to, c.from, c.want); back != dst || forth != src {
			t.Errorf("%v to %v by %s is not the same both ways", c.from, c.to, c.want)
		}
	}
}

// The agent is restarted while the store is away: rows and nodes stay as they are, with identities that rules know. When
// the store is back, what went meanwhile goes.
func TestRestart(t *testing.T) {
	s := newScene(t)
	s.know(300, "web")
	s.know(301, "db")
	n1 := nodeOf("n1", 1, 5)
	s.tell(Batch{Nodes: []Node{n1, nodeOf("n2", 2, 5)}, Addresses: []Address{
		addressOf("n1", podOf(1, 7), 300, "web"), addressOf("n1", podOf(1, 8), 301, "db"), addressOf("n2", podOf(2, 7), 300, "web"),
	}})
	memory := s.Memory()
	if !slices.Equal(memory.Identities, []identity.ID{300, 301}) || len(memory.Nodes) != 3 {
		t.Fatalf("memory %+v", memory)
	}
	next := newScene(t)
	next.kernel = s.kernel
	next.kernel.t, next.kernel.rules = t, next.rules
	next.Nodes.deps.Datapath = s.kernel
	next.know(300, "web") // what 301 meant is lost
	next.rules.learned[300] = set("web")
	var rows []Remote
	for _, r := range s.kernel.rows {
		rows = append(rows, r)
	}
	next.Recall(memory, rows)
	next.settle()
	next.want("10.1.0.7 300 192.168.0.1", "10.2.0.7 300 192.168.0.2")
	if len(next.kernel.nodes) != 2 {
		t.Errorf("nodes %v", next.kernel.nodes)
	}
	if s.kernel.forgot != 0 {
		t.Error("what an earlier run left is forgotten before the store told anything")
	}
	next.tell(Batch{Listing: 1, Done: true, Nodes: []Node{n1}, Addresses: []Address{addressOf("n1", podOf(1, 8), 300, "web")}})
	next.want("10.1.0.8 300 192.168.0.1", "10.2.0.7 300 192.168.0.2") // n2 has lapsed only
	next.now = next.now.Add(11 * time.Minute)
	next.settle()
	next.want("10.1.0.8 300 192.168.0.1")
	next.settle()
	if s.kernel.forgot != 1 {
		t.Errorf("what an earlier run left was forgotten %d times", s.kernel.forgot)
	}
	if len(next.kernel.nodes) != 1 {
		t.Errorf("nodes %v", next.kernel.nodes)
	}
}

// Taking rows away ends half way, and before it is tried again their owner has the addresses back: what is gone already is
// written again.
func TestAddressesBackAfterHalfARemoval(t *testing.T) {
	s := newScene(t)
	s.know(300, "a")
	a, b := podOf(1, 1), podOf(1, 2)
	both := []Address{addressOf("n1", a, 300, "a"), addressOf("n1", b, 300, "a")}
	s.tell(Batch{Nodes: []Node{nodeOf("n1", 1, 1)}, Addresses: both})
	s.want("10.1.0.1 300 192.168.0.1", "10.1.0.2 300 192.168.0.1")
	calls := 0
	s.kernel.fail = func() bool { calls++; return calls == 2 }
	s.Heard(s.src, Batch{Gone: []Ownership{{"n1", a}, {"n1", b}}})
	if err := s.flush(t.Context()); err == nil || len(s.kernel.rows) != 1 {
		t.Fatalf("%v, the kernel has %v: want an error and one row", err, s.kernel.rows)
	}
	s.kernel.fail = nil
	s.tell(Batch{Addresses: both})
	s.want("10.1.0.1 300 192.168.0.1", "10.1.0.2 300 192.168.0.1")
	s.tell(Batch{Gone: []Ownership{{"n1", a}, {"n1", b}}})
	s.want()
}
