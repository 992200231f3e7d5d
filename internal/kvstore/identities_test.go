package kvstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"porin/internal/identity"
)

func TestNewLabelSetIsOneTransaction(t *testing.T) {
	srv := newServer(t)
	a, b := newNode(t, "a", srv.cfg.Endpoint()), newNode(t, "b", srv.cfg.Endpoint())
	const set = "k8s:app.kubernetes.io/name=web;"
	id := a.allocate(set)
	if got := a.sent(); got != 1 {
		t.Errorf("a new label set took %d transactions, want 1", got)
	}
	if id < 256 || id > 65535 {
		t.Errorf("number %d is outside the range", id)
	}
	eventually(t, "b hears of the number", func() bool { return b.told(id) == set })
	if got := b.allocate(set); got != id {
		t.Errorf("b got %d for the label set that a has as %d", got, id)
	}
	if got := b.sent(); got != 1 {
		t.Errorf("the second node took %d transactions, want 1", got)
	}
	want := map[string]string{
		"id/" + text(id): set, "value/" + set + "/": text(id), "value/" + set + "/a": text(id), "value/" + set + "/b": text(id),
	}
	if got := a.keys(root); !maps.Equal(got, want) {
		t.Errorf("store holds\n%v\nwant\n%v", got, want)
	}
}

// Three nodes race for the same label sets in a range hardly larger than needed, so that they collide all the time on
// sets and on numbers. Their watches are of no use to them: they start at the same moment.
func TestNodesAgree(t *testing.T) {
	srv := newServer(t)
	const sets, each = 60, 8
	var nodes []*member
	for _, name := range []string{"a", "b", "c"} {
		nodes = append(nodes, newNode(t, name, srv.cfg.Endpoint(), func(c *Config) { c.First, c.Last = 256, 256+sets+10 }))
	}
	var mu sync.Mutex
	got := map[string]map[identity.ID]bool{}
	var wg sync.WaitGroup
	for i, n := range nodes {
		for w := range each {
			wg.Go(func() {
				for j := range sets {
					set := fmt.Sprintf("k8s:app=%d;", (j*7+w*11+i)%sets)
					id, err := n.Allocate(context.Background(), set)
					if err != nil {
						t.Errorf("%s: %v", set, err)
						return
					}
					mu.Lock()
					if got[set] == nil {
						got[set] = map[identity.ID]bool{}
					}
					got[set][id] = true
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	meaning := map[identity.ID]string{}
	for set, ids := range got {
		if len(ids) != 1 {
			t.Errorf("%s got several numbers: %v", set, slices.Collect(maps.Keys(ids)))
		}
		for id := range ids {
			if other, dup := meaning[id]; dup {
				t.Errorf("number %d means %s and %s", id, other, set)
			}
			meaning[id] = set
		}
	}
	if len(got) != sets {
		t.Fatalf("%d label sets have numbers, want %d", len(got), sets)
	}
	eventually(t, "every node's watch tells the same", func() bool {
		for _, n := range nodes {
			n.mu.Lock()
			same := maps.Equal(n.seen, meaning)
			n.mu.Unlock()
			if !same {
				return false
			}
		}
		return true
	})
}

func TestStoreDown(t *testing.T) {
	srv := newServer(t)
	a := newNode(t, "a", srv.cfg.Endpoint(), func(c *Config) { c.Timeout = 700 * time.Millisecond })
	b := newNode(t, "b", srv.cfg.Endpoint())
	eventually(t, "first answer", func() bool { ok, _ := a.client.Healthy(); return ok })
	old := b.allocate("k8s:app=old;")
	srv.stop()
	ctx := withTimeout(t, 2*time.Minute)
	_, err := a.Allocate(ctx, "k8s:app=new;")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), srv.cfg.Socket) {
		t.Errorf("store down: %v; want ErrUnreachable and where the store should be", err)
	}
	if ctx.Err() != nil {
		t.Error("waited until the caller gave up, though told to wait 0.7 s")
	}
	eventually(t, "the client says that the store is down", func() bool {
		ok, msg := a.client.Healthy()
		return !ok && strings.Contains(msg, srv.cfg.Socket)
	})
	if err := b.Release(withTimeout(t, time.Second), "k8s:app=old;", old); !errors.Is(err, ErrUnreachable) {
		t.Errorf("release while the store is down: %v", err)
	}

	srv.start()
	eventually(t, "the store answers again", func() bool { ok, _ := a.client.Healthy(); return ok })
	id := b.allocate("k8s:app=new;")
	eventually(t, "a's watch goes on", func() bool { return a.told(id) == "k8s:app=new;" })
	if _, there := b.keys(valPrefix)["k8s:app=old;/b"]; !there {
		t.Error("the claim that could not be released is gone")
	}
}

func withTimeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestStoreAbsentAtStart(t *testing.T) {
	srv := newServer(t)
	srv.stop()
	a := newNode(t, "a", srv.cfg.Endpoint(), func(c *Config) { c.Timeout = 300 * time.Millisecond })
	a.Adopt("k8s:app=restored;", 4711)
	if _, err := a.Allocate(context.Background(), "k8s:app=new;"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("no store yet: %v", err)
	}
	srv.start()
	eventually(t, "the restored number is claimed", func() bool {
		return a.told(4711) == "k8s:app=restored;" && a.keys(valPrefix)["k8s:app=restored;/a"] == "4711"
	})
}

// The store comes back empty: the nodes put back what they use, under the same numbers.
func TestStoreWiped(t *testing.T) {
	srv := newServer(t)
	a, b := newNode(t, "a", srv.cfg.Endpoint()), newNode(t, "b", srv.cfg.Endpoint())
	want := map[string]identity.ID{}
	for i := range 20 {
		set := fmt.Sprintf("k8s:app=%d;", i)
		want[set] = a.allocate(set)
	}
	gone := b.allocate("k8s:app=gone;")
	b.stop()
	eventually(t, "a heartbeat after the writes", func() bool {
		a.client.mu.Lock()
		defer a.client.mu.Unlock()
		return a.client.rev > 20
	})
	srv.stop()
	if err := os.RemoveAll(srv.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	srv.start()
	eventually(t, "all numbers are back in the store", func() bool {
		held := a.keys(valPrefix)
		for set, id := range want {
			if held[set+"/"] != text(id) || held[set+"/a"] != text(id) {
				return false
			}
		}
		return true
	})
	eventually(t, "the number that nobody holds any more is told as gone", func() bool { return a.told(gone) == "" })
	for set, id := range want {
		eventually(t, set+" is told again", func() bool { return a.told(id) == set })
	}
}

// A node is cut off; meanwhile numbers come and go and the store forgets the history that the node would need.
func TestCompactionBehindOurBack(t *testing.T) {
	srv := newServer(t)
	cable := newCable(t, srv.cfg.Socket)
	a := newNode(t, "a", cable.endpoint())
	b := newNode(t, "b", srv.cfg.Endpoint(), func(c *Config) { c.Rest = time.Minute })
	kept, doomed := b.allocate("k8s:app=kept;"), b.allocate("k8s:app=doomed;")
	eventually(t, "a knows both", func() bool { return a.told(kept) != "" && a.told(doomed) != "" })
	cable.cut()
	if err := b.Release(t.Context(), "k8s:app=doomed;", doomed); err != nil {
		t.Fatal(err)
	}
	collectTwice(t, b)
	fresh := b.allocate("k8s:app=fresh;")
	resp, err := b.etcd.Put(t.Context(), "porin/noise", "1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.etcd.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	cable.mend()
	eventually(t, "a hears of what came and of what went", func() bool {
		return a.told(fresh) == "k8s:app=fresh;" && a.told(doomed) == "" && a.told(kept) == "k8s:app=kept;"
	})
}

// A lost lease takes all claims of the node with it; they come back at once.
func TestLeaseLost(t *testing.T) {
	srv := newServer(t)
	a := newNode(t, "a", srv.cfg.Endpoint())
	want := map[string]string{}
	for i := range 50 {
		set := fmt.Sprintf("k8s:app=%02d;", i)
		want[set+"/a"] = text(a.allocate(set))
		want[set+"/"] = want[set+"/a"]
	}
	lease, err := a.client.currentLease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.etcd.Revoke(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all claims are back", func() bool { return maps.Equal(a.keys(valPrefix), want) })
	if now, _ := a.client.currentLease(t.Context()); now == lease {
		t.Error("still the lease that was revoked")
	}
}

// A claim that somebody removed comes back; one that this node knows nothing of goes.
func TestCollectorMendsClaims(t *testing.T) {
	srv := newServer(t)
	a := newNode(t, "a", srv.cfg.Endpoint())
	id := a.allocate("k8s:app=x;")
	stray := a.allocate("k8s:app=stray;")
	a.Identities.mu.Lock()
	delete(a.held, "k8s:app=stray;") // as if the answer to the transaction had been lost
	a.Identities.mu.Unlock()
	if _, err := a.etcd.Delete(t.Context(), setKey("k8s:app=x;")+"a"); err != nil {
		t.Fatal(err)
	}
	collectTwice(t, a)
	eventually(t, "the removed claim is back", func() bool { return a.keys(valPrefix)["k8s:app=x;/a"] == text(id) })
	if _, there := a.keys(valPrefix)["k8s:app=stray;/a"]; there {
		t.Error("the stray claim is still there")
	}
	collectTwice(t, a)
	eventually(t, "the stray number is collected", func() bool { return a.told(stray) == "" })
}

func TestCollectedNumbersRest(t *testing.T) {
	srv := newServer(t)
	a := newNode(t, "a", srv.cfg.Endpoint(), func(c *Config) { c.First, c.Last, c.Rest = 300, 300, time.Hour })
	b := newNode(t, "b", srv.cfg.Endpoint(), func(c *Config) { c.First, c.Last = 300, 300 })
	id := a.allocate("k8s:app=one;")
	b.allocate("k8s:app=one;")
	eventually(t, "both watches tell of it", func() bool { return a.told(id) != "" && b.told(id) != "" })
	if _, err := a.Allocate(t.Context(), "k8s:app=two;"); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "1 are in use") {
		t.Errorf("a second set for one number: %v", err)
	}

	mustRelease(t, a, "k8s:app=one;", id)
	collectTwice(t, a)
	collectTwice(t, b)
	if b.told(id) == "" || b.keys(idPrefix)["300"] == "" {
		t.Fatal("collected though b claims it")
	}

	mustRelease(t, b, "k8s:app=one;", id)
	collectTwice(t, a)
	eventually(t, "both hear that the number is gone", func() bool { return a.told(id) == "" && b.told(id) == "" })
	if got := a.keys(root); !maps.Equal(got, map[string]string{"freed/300": "k8s:app=one;"}) {
		t.Errorf("store holds %v, want the resting number only", got)
	}
	if _, err := b.Allocate(t.Context(), "k8s:app=two;"); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "1 rest") {
		t.Errorf("the number should rest: %v", err)
	}
	// a node that knows nothing of the rest is told by the transaction
	late := newNode(t, "late", srv.cfg.Endpoint(), func(c *Config) { c.First, c.Last = 300, 300 })
	eventually(t, "late has read the store", func() bool {
		late.Identities.mu.Lock()
		defer late.Identities.mu.Unlock()
		if len(late.resting) == 0 {
			return false
		}
		clear(late.resting)
		return true
	})
	if _, err := late.Allocate(t.Context(), "k8s:app=two;"); !errors.Is(err, ErrExhausted) {
		t.Errorf("a node with an old view: %v", err)
	}
	if got := b.allocate("k8s:app=one;"); got != id {
		t.Errorf("the same labels got %d, want their old number %d", got, id)
	}
	if got := a.keys(frePrefix); len(got) != 0 {
		t.Errorf("still resting: %v", got)
	}
}

// A set that is claimed between the two looks of the collector stays.
func TestCollectorAgainstAllocate(t *testing.T) {
	srv := newServer(t)
	a, b := newNode(t, "a", srv.cfg.Endpoint()), newNode(t, "b", srv.cfg.Endpoint())
	for i := range 20 {
		set := fmt.Sprintf("k8s:app=%d;", i)
		id := a.allocate(set)
		mustRelease(t, a, set, id)
		if err := a.collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := a.collect(t.Context()); err != nil {
				t.Error(err)
			}
		})
		var again identity.ID
		wg.Go(func() { again = b.allocate(set) })
		wg.Wait()
		if got := a.keys(idPrefix)[text(again)]; got != set {
			t.Fatalf("%s was given %d, which the store holds as %q", set, again, got)
		}
	}
}

// The store has given a restored number to others: the store's word stands.
func TestAdoptConflicts(t *testing.T) {
	srv := newServer(t)
	a, b := newNode(t, "a", srv.cfg.Endpoint()), newNode(t, "b", srv.cfg.Endpoint())
	theirs := a.allocate("k8s:app=theirs;")
	same := a.allocate("k8s:app=same;")
	eventually(t, "b knows", func() bool { return b.told(theirs) != "" && b.told(same) != "" })
	b.Adopt("k8s:app=mine;", theirs)
	b.Adopt("k8s:app=same;", same+1)
	b.Adopt("k8s:app=good;", 9999)
	eventually(t, "the good one is claimed, the others are dropped", func() bool {
		b.Identities.mu.Lock()
		defer b.Identities.mu.Unlock()
		return len(b.held) == 1 && b.held["k8s:app=good;"] != nil && b.held["k8s:app=good;"].lease != 0
	})
	keys := a.keys(valPrefix)
	if keys["k8s:app=theirs;/"] != text(theirs) || keys["k8s:app=same;/"] != text(same) || keys["k8s:app=good;/b"] != "9999" {
		t.Errorf("store holds %v", keys)
	}
	if got := b.allocate("k8s:app=mine;"); got == theirs {
		t.Errorf("asked anew, got the other's number %d", got)
	}
}

func TestForeignKeysAreIgnored(t *testing.T) {
	srv := newServer(t)
	a := newNode(t, "a", srv.cfg.Endpoint())
	for _, k := range []string{idPrefix + "x", idPrefix + "0300", idPrefix + "-1", idPrefix + "99999999999", idPrefix, frePrefix + "y", valPrefix + "junk"} {
		if _, err := a.etcd.Put(t.Context(), k, "k8s:app=evil;"); err != nil {
			t.Fatal(err)
		}
	}
	id := a.allocate("k8s:app=x;")
	collectTwice(t, a)
	eventually(t, "the good key is told", func() bool { return a.told(id) == "k8s:app=x;" })
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.seen) != 1 {
		t.Errorf("told of %v", a.seen)
	}
}

func BenchmarkAllocateNew(b *testing.B) {
	srv := newServer(b)
	n := newNode(b, "a", srv.cfg.Endpoint())
	i := 0
	for b.Loop() {
		n.allocate(fmt.Sprintf("k8s:app=%d;", i))
		i++
	}
}

func mustRelease(t *testing.T, n *member, set string, id identity.ID) {
	t.Helper()
	if err := n.Release(t.Context(), set, id); err != nil {
		t.Fatal(err)
	}
}

func collectTwice(t *testing.T, n *member) {
	t.Helper()
	for range 2 {
		if err := n.collect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
