package e2e

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// away is how long what is broken stays broken: long enough for heartbeats, retries and watches to notice.
func away() time.Duration {
	if os.Getenv("PORIN_SOAK") != "" {
		return 5 * time.Minute
	}
	return 7 * time.Second
}

// outlast waits for as long as a fault is to last; the time is the test.
func outlast(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

// fault is what may happen to agents and to the store. What breaks an agent meets each way between nodes; the store does not
// know by which way packets go, so that its faults come once. The long form tries all of them by all ways.
type fault struct {
	name string
	run  func(*lab, *testing.T)
	ways []string
}

func faults() []fault {
	return []fault{
		{"one agent killed", oneAgentKilled, []string{"geneve", "native"}},
		{"all agents killed", allAgentsKilled, []string{"geneve", "vxlan"}},
		{"store away", storeAway, []string{"geneve"}},
		{"store absent at boot", storeAbsent, []string{"geneve", "native"}},
		{"store compacted", storeCompacted, []string{"vxlan"}},
		{"store slow", storeSlow, []string{"native"}},
		{"store wiped", storeWiped, []string{"vxlan"}},
		{"cut off from the store", cutOffStore, []string{"geneve"}},
	}
}

// What may happen to agents and to the store, while traffic of every kind goes on between the nodes: what is allowed goes
// on, what is denied stays denied, and all of it comes back by itself.
func TestRootClusterFaults(t *testing.T) {
	for _, r := range routings() {
		t.Run(routingName(r), func(t *testing.T) {
			l := scene2(t, r)
			l.sees("node1", "node2", "live")
			l.sees("node2", "node1", "live")
			for _, c := range faults() {
				if os.Getenv("PORIN_SOAK") == "" && !slices.Contains(c.ways, routingName(r)) {
					continue
				}
				ok := t.Run(c.name, func(t *testing.T) {
					// a lab belongs to the test that made it; what fails here is this one's
					here := *l
					here.t = t
					x := here.load()
					c.run(&here, t)
					here.healthy(c.name, "node1", "node2")
					x.stop(c.name)
				})
				if !ok {
					t.FailNow() // what follows would only repeat it
				}
			}
		})
	}
}

func oneAgentKilled(l *lab, t *testing.T) {
	for _, n := range []string{"node2", "node1"} {
		l.lab("node", "kill", n)
		outlast(t, time.Second)
		l.lab("node", "start", n)
	}
}

func allAgentsKilled(l *lab, t *testing.T) {
	for range 2 {
		l.lab("node", "kill", "node1", "node2")
		outlast(t, time.Second)
		l.lab("node", "start", "node1", "node2")
	}
}

// Policy changes and known identities need no store.
func storeAway(l *lab, t *testing.T) {
	l.lab("store", "kill")
	outlast(t, away())
	for _, n := range []string{"node1", "node2"} {
		apply(l, n, allowApps("friend", "other", "nobody"))
	}
	l.lab("store", "start")
}

func storeAbsent(l *lab, t *testing.T) {
	l.lab("store", "kill")
	l.lab("node", "kill", "node1", "node2")
	l.lab("node", "start", "--no-wait", "node1", "node2")
	for _, n := range []string{"node1", "node2"} {
		eventually(t, 2*time.Minute, n+" serves without a store", func() bool {
			out, err := l.exec(n, bin(t, "porin"), "endpoint", "list").CombinedOutput()
			return err == nil && strings.Contains(string(out), "ready") && !strings.Contains(string(out), "restoring")
		})
		apply(l, n, allowApps("friend", "other"))
	}
	l.lab("store", "start")
}

// storeClient speaks to the lab's store past its gate.
func storeClient(l *lab, t *testing.T) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix:///run/porin-lab/" + l.name + "/store/etcd.sock"}, DialTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A node misses changes and their history: it must read everything anew, deletions too.
func storeCompacted(l *lab, t *testing.T) {
	c := storeClient(l, t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l.lab("fault", "cut", "--between", "node2", "store")
	var rev int64
	for range 20 {
		resp, err := c.Put(ctx, "pt/compacted", "x")
		if err != nil {
			t.Fatal(err)
		}
		rev = resp.Header.Revision
	}
	if _, err := c.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	l.lab("fault", "heal")
}

func storeSlow(l *lab, t *testing.T) {
	l.lab("store", "slow", "5s")
	outlast(t, away())
	for _, n := range []string{"node1", "node2"} {
		apply(l, n, allowApps("friend", "other", "somebody"))
	}
	l.lab("store", "slow", "0")
}

// Those who own the records write them again.
func storeWiped(l *lab, t *testing.T) {
	l.lab("store", "wipe")
	c := storeClient(l, t)
	eventually(t, 2*time.Minute, "records of both nodes, of five workloads and two health endpoints are in the store again", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		nodes, err1 := c.Get(ctx, "porin/state/v1/default/nodes/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		addrs, err2 := c.Get(ctx, "porin/state/v1/default/addresses/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		return err1 == nil && err2 == nil && nodes.Count == 2 && addrs.Count == 14
	})
	l.sees("node1", "node2", "live")
	l.sees("node2", "node1", "live")
}

func cutOffStore(l *lab, t *testing.T) {
	l.lab("fault", "cut", "--between", "node2", "store")
	outlast(t, away())
	apply(l, "node2", allowApps("friend", "other"))
	l.lab("fault", "heal")
	l.sees("node1", "node2", "live")
	l.sees("node2", "node1", "live")
}

// apply puts a manifest in force on one node.
func apply(l *lab, node, manifest string) {
	l.t.Helper()
	cmd := l.exec(node, bin(l.t, "porin"), "policy", "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("%s: policy apply: %v\n%s", node, err, out)
	}
}

// A partition between the nodes' cables ends what passes between them, and nothing else; healed, all of it goes on.
func TestRootNodesCutApart(t *testing.T) {
	l := scene2(t, routings()[0])
	near := l.probe("friend", options{Addr: hostPort(l.at("near", 4)), Streams: 5, NewPerSec: 20})
	far := hostPort(l.at("server", 4))
	if s := l.probe("friend", options{Addr: far, Streams: 2, NewPerSec: 20}).stop(); s.Streams != 2 {
		t.Fatalf("before the cut: %+v", s)
	}
	long := l.probe("friend", options{Addr: far, Streams: 5, Silence: time.Minute})
	l.lab("fault", "cut", "--between", "node1", "node2")
	if l.tcp("friend", l.at("server", 4), 80, false) {
		t.Error("a connection stood across a cut")
	}
	eventually(t, time.Minute, "porin health tells of it", func() bool {
		out, err := l.exec("node1", bin(t, "porin"), "health").CombinedOutput()
		return err != nil && strings.Contains(string(out), "FAILED")
	})
	l.lab("fault", "heal")
	eventually(t, time.Minute, "porin health is well again", func() bool {
		return l.exec("node1", bin(t, "porin"), "health").Run() == nil
	})
	if s := l.probe("friend", options{Addr: far, Streams: 2, NewPerSec: 20}).stop(); s.Streams != 2 {
		t.Errorf("after the cut: %+v", s)
	}
	if s := long.stop(); s.StreamDead != 0 || s.Streams != 5 {
		t.Errorf("streams that waited for the cable: %+v", s)
	}
	if s := near.stop(); s.StreamDead != 0 || s.NewFailed != 0 || s.NewOK == 0 {
		t.Errorf("traffic on one node suffered from a cut between two: %+v", s)
	}
}
