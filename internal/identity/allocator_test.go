package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"porin/internal/labels"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReservedLabelsAreReservedNumbers(t *testing.T) {
	n := newNode(newFakeStore())
	for _, c := range []struct {
		labels []string
		want   ID
	}{
		{nil, Init},
		{[]string{"reserved:host"}, Host},
		{[]string{"reserved:health"}, Health},
		{[]string{"reserved:world-ipv6"}, WorldIPv6},
	} {
		id, err := n.Allocate(t.Context(), set(t, c.labels...))
		if err != nil || id.ID != c.want {
			t.Errorf("%v: got %v, %v want %v", c.labels, id.ID, err, c.want)
		}
		if err := n.Release(t.Context(), id.ID); err != nil {
			t.Errorf("release %v: %v", id.ID, err)
		}
	}
	if got := n.Len(); got != 10 {
		t.Errorf("%d rows in the identities table, want the 10 reserved ones", got)
	}
}

func (n *node) Len() int { return n.table.Len() }

// User text must never become a label that only porin gives.
func TestForbiddenLabels(t *testing.T) {
	store := newFakeStore()
	n := newNode(store)
	for _, bad := range [][]string{
		{"reserved:host", "k8s:app=x"},
		{"reserved:nobody"},
		{"reserved:host=1"},
		{"cidr:10.0.0.0/8"},
		{"k8s:a=b", "fqdn:example.com"},
		{"cidrgroup:x"},
		{"k8s:a=" + strings.Repeat("x", maxKey)},
	} {
		if id, err := n.Allocate(t.Context(), set(t, bad...)); err == nil {
			t.Errorf("%.60v got %v, want an error", bad, id)
		}
	}
	if store.count() != 0 {
		t.Errorf("the store was asked %d times", store.count())
	}
}

func TestKnownSetsCostNoTransaction(t *testing.T) {
	store := newFakeStore()
	n := newNode(store)
	var first ID
	for i := range 100 {
		id, err := n.Allocate(t.Context(), set(t, "k8s:app=web", "k8s:team=a"))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = id.ID
		} else if id.ID != first {
			t.Fatalf("the same labels got %d and %d", first, id.ID)
		}
	}
	if store.count() != 1 {
		t.Errorf("100 workloads of one label set cost %d transactions, want 1", store.count())
	}
	if row, ok := n.Get(first); !ok || row.Labels.String() != "k8s:app=web,k8s:team=a" {
		t.Errorf("row %v %v", row, ok)
	}
}

func TestReleaseLingersThenGivesBack(t *testing.T) {
	store := newFakeStore()
	n := newNode(store)
	ls := set(t, "k8s:app=web")
	id, _ := n.Allocate(t.Context(), ls)
	n.Allocate(t.Context(), ls)
	mustRelease(t, n, id.ID)
	mustRelease(t, n, id.ID)
	if err := n.Release(t.Context(), id.ID); err == nil {
		t.Error("a third release of two references went well")
	}

	n.now = n.now.Add(59 * time.Second)
	mustSweep(t, n)
	if again, err := n.Allocate(t.Context(), ls); err != nil || again.ID != id.ID || store.count() != 1 {
		t.Fatalf("within the linger time: %v %v, %d transactions; want %d and 1", again.ID, err, store.count(), id.ID)
	}
	mustRelease(t, n, id.ID)

	n.now = n.now.Add(time.Minute)
	mustSweep(t, n)
	if _, ok := n.Get(id.ID); ok {
		t.Error("row is still there after the number was given back")
	}
	if store.claims[ls.Key()] != 0 {
		t.Errorf("%d claims left in the store", store.claims[ls.Key()])
	}
	if err := n.Release(t.Context(), id.ID); err == nil {
		t.Error("release of a number that was given back went well")
	}
}

func TestSweepWithStoreDownKeepsTheNumber(t *testing.T) {
	store := newFakeStore()
	n := newNode(store)
	ls := set(t, "k8s:app=web")
	id, _ := n.Allocate(t.Context(), ls)
	mustRelease(t, n, id.ID)
	n.now = n.now.Add(time.Hour)
	store.down = errDown
	if err := n.Sweep(t.Context()); !errors.Is(err, errDown) {
		t.Fatalf("Sweep: %v", err)
	}
	if again, err := n.Allocate(t.Context(), ls); err != nil || again.ID != id.ID {
		t.Errorf("a known label set while the store is down: %v, %v", again, err)
	}
	if _, err := n.Allocate(t.Context(), set(t, "k8s:app=new")); !errors.Is(err, errDown) || !strings.Contains(err.Error(), "k8s:app=new") {
		t.Errorf("a new label set while the store is down: %v; want the cause and the labels", err)
	}
}

// Many workloads of one new label set at the same time ask the store once.
func TestOneFlightPerLabelSet(t *testing.T) {
	store := newFakeStore()
	store.gate = make(chan struct{})
	n := newNode(store)
	ls := set(t, "k8s:app=web")
	var wg sync.WaitGroup
	ids := make([]ID, 50)
	for i := range ids {
		wg.Go(func() {
			id, err := n.Allocate(context.Background(), ls)
			if err != nil {
				t.Error(err)
			}
			ids[i] = id.ID
		})
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Allocate(gone, ls); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for another's flight does not end with the context: %v", err)
	}
	close(store.gate)
	wg.Wait()
	if len(slices.Compact(ids)) != 1 {
		t.Errorf("numbers %v for one label set", ids)
	}
	for range ids {
		mustRelease(t, n, ids[0])
	}
	if err := n.Release(t.Context(), ids[0]); err == nil {
		t.Error("more references than Allocates")
	}
}

func TestRestoreNeedsNoStore(t *testing.T) {
	store := newFakeStore()
	store.down = errDown
	n := newNode(store)
	mustRestore(t, n, 4711, "k8s:app=web")
	mustRestore(t, n, 4711, "k8s:app=web")
	mustRestore(t, n, Init)
	for _, bad := range []struct {
		id     ID
		labels []string
	}{
		{4712, []string{"k8s:app=web"}},  // other number, same labels
		{4711, []string{"k8s:app=evil"}}, // same number, other labels
		{Host, []string{"k8s:app=evil"}},
		{ScopeLocal + 5, []string{"k8s:app=local"}},
		{4713, []string{"reserved:host", "k8s:app=x"}},
		{77, []string{"reserved:host"}},
	} {
		if err := n.Restore(bad.id, set(t, bad.labels...)); err == nil {
			t.Errorf("restored %d as %v, want an error", bad.id, bad.labels)
		}
	}
	if id, err := n.Allocate(t.Context(), set(t, "k8s:app=web")); err != nil || id.ID != 4711 {
		t.Errorf("restored labels: %v %v, want 4711", id.ID, err)
	}
	if got := n.Len(); got != 11 {
		t.Errorf("%d rows, want 10 reserved and 1 restored", got)
	}
	if want := []string{"4711=k8s:app=web;"}; !slices.Equal(store.adopted, want) {
		t.Errorf("adopted %v want %v", store.adopted, want)
	}
}

func TestWhatTheStoreSays(t *testing.T) {
	n := newNode(newFakeStore())
	n.heard(true, 300, "k8s:app=a;")
	n.heard(true, 3, "k8s:app=a;")                   // reserved
	n.heard(true, ScopeLocal+7, "cidr:10.0.0.0/8=;") // local
	n.heard(true, 301, "reserved:host=;")            // forged label
	n.heard(true, 302, "k8s:app=b")                  // not a key
	n.heard(true, 303, "k8s:z=1;k8s:a=1;")           // not canonical
	n.heard(true, 70000, "k8s:app=c;")               // cluster 1, number 4464: another cluster's
	if got := strings.Count(n.log.String(), "refused"); got != 6 {
		t.Errorf("%d refusals, want 6:\n%s", got, n.log.String())
	}
	if got := n.Refused(); got != 6 {
		t.Errorf("%d refusals counted, want 6", got)
	}
	if got := ids(n); !slices.Equal(got, []ID{300}) {
		t.Errorf("known: %v", got)
	}
	n.heard(false, 300, "")
	n.heard(false, 999, "")
	if got := ids(n); len(got) != 0 {
		t.Errorf("known after the deletion: %v", got)
	}
}

func TestNumberInUseSurvivesItsDeletionInTheStore(t *testing.T) {
	store := newFakeStore()
	n := newNode(store)
	id, _ := n.Allocate(t.Context(), set(t, "k8s:app=a"))
	n.heard(true, id.ID, "k8s:app=a;")
	n.heard(false, id.ID, "")
	if _, ok := n.Get(id.ID); !ok {
		t.Error("row of a number in use is gone")
	}
	if len(store.adopted) != 1 {
		t.Errorf("adopted %v, want the vanished number", store.adopted)
	}
}

// A restored number that the cluster has given to other labels meanwhile: the cluster is right, the user is told.
func TestConflictOfNumbers(t *testing.T) {
	store := newFakeStore()
	store.keys["k8s:app=theirs;"], store.next = 300, 301
	n := newNode(store)
	mustRestore(t, n, 300, "k8s:app=mine")
	mine, _ := n.Allocate(t.Context(), set(t, "k8s:app=mine"))
	n.heard(true, 300, "k8s:app=theirs;")
	if want := []string{"300 k8s:app=mine"}; !slices.Equal(n.conflicts, want) {
		t.Fatalf("conflicts %v want %v", n.conflicts, want)
	}
	if row, _ := n.Get(300); row.Labels.String() != "k8s:app=theirs" {
		t.Errorf("row %v: the store's word must win", row)
	}
	anew, err := n.Allocate(t.Context(), set(t, "k8s:app=mine"))
	if err != nil || anew.ID == 300 {
		t.Errorf("asked anew: %v %v", anew.ID, err)
	}
	mustRelease(t, n, mine.ID)
	if row, ok := n.Get(300); !ok || row.Labels.String() != "k8s:app=theirs" {
		t.Errorf("row of the other node's number: %v %v", row, ok)
	}
}

// A restored label set that has another number in the cluster: both stay valid until the old one is released.
func TestConflictOfLabels(t *testing.T) {
	store := newFakeStore()
	store.keys["k8s:app=mine;"] = 400
	n := newNode(store)
	mustRestore(t, n, 300, "k8s:app=mine")
	old, _ := n.Allocate(t.Context(), set(t, "k8s:app=mine"))
	n.heard(true, 400, "k8s:app=mine;")
	if want := []string{"300 k8s:app=mine"}; !slices.Equal(n.conflicts, want) {
		t.Fatalf("conflicts %v want %v", n.conflicts, want)
	}
	anew, err := n.Allocate(t.Context(), set(t, "k8s:app=mine"))
	if err != nil || anew.ID != 400 {
		t.Fatalf("asked anew: %v %v, want 400", anew.ID, err)
	}
	if _, ok := n.Get(old.ID); !ok {
		t.Error("the old number is gone while an endpoint still has it")
	}
	mustRelease(t, n, old.ID)
	if _, ok := n.Get(old.ID); ok {
		t.Error("the old number stays though nobody has it")
	}
}

// Random lives of workloads on three nodes over one store: numbers and label sets stay one to one, references are
// counted, nothing leaks.
func TestAllocatorsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := newFakeStore()
		nodes := []*node{newNode(store), newNode(store), newNode(store)}
		for _, n := range nodes {
			store.watchers = append(store.watchers, n.heard)
		}
		meaning := map[ID]string{}
		number := map[string]ID{}
		type use struct {
			node int
			id   ID
		}
		var uses []use
		t.Repeat(map[string]func(*rapid.T){
			"allocate": func(t *rapid.T) {
				i := rapid.IntRange(0, 2).Draw(t, "node")
				ls := labels.New(labels.Label{Source: "k8s", Key: "app", Value: fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "app"))})
				id, err := nodes[i].Allocate(context.Background(), ls)
				if err != nil {
					t.Fatal(err)
				}
				key := ls.Key()
				if m, ok := meaning[id.ID]; ok && m != key {
					t.Fatalf("number %d is %s and %s", id.ID, m, key)
				}
				if n, ok := number[key]; ok && n != id.ID {
					t.Fatalf("%s is %d and %d", key, n, id.ID)
				}
				meaning[id.ID], number[key] = key, id.ID
				uses = append(uses, use{i, id.ID})
			},
			"release": func(t *rapid.T) {
				if len(uses) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(uses)-1).Draw(t, "use")
				if err := nodes[uses[i].node].Release(context.Background(), uses[i].id); err != nil {
					t.Fatal(err)
				}
				uses = slices.Delete(uses, i, i+1)
			},
			"sweep": func(t *rapid.T) {
				n := nodes[rapid.IntRange(0, 2).Draw(t, "node")]
				n.now = n.now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "s")) * time.Second)
				if err := n.Sweep(context.Background()); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				for _, u := range uses {
					if row, ok := nodes[u.node].Get(u.id); !ok || row.Labels.Key() != meaning[u.id] {
						t.Fatalf("node %d uses %d but its row is %v %v", u.node, u.id, row, ok)
					}
				}
			},
		})
		for _, u := range uses {
			if err := nodes[u.node].Release(context.Background(), u.id); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range nodes {
			n.now = n.now.Add(time.Hour)
			if err := n.Sweep(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		for key, c := range store.claims {
			if c != 0 {
				t.Fatalf("%d claims on %s left over", c, key)
			}
		}
	})
}

// Allocate, Release and Sweep race; the race detector and the final count judge.
func TestAllocatorRaces(t *testing.T) {
	store := newFakeStore()
	a := New(quiet(), Config{Linger: time.Nanosecond}, store, newNode(store).table)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 300 {
				ls := labels.New(labels.Label{Source: "k8s", Key: "app", Value: fmt.Sprint((w + i) % 3)})
				id, err := a.Allocate(context.Background(), ls)
				if err != nil {
					t.Error(err)
					return
				}
				if err := a.Release(context.Background(), id.ID); err != nil {
					t.Error(err)
				}
				if err := a.Sweep(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for key, c := range store.claims {
		if c < 0 || c > 1 {
			t.Errorf("%d claims on %s", c, key)
		}
	}
}

func BenchmarkAllocateKnown(b *testing.B) {
	n := newNode(newFakeStore())
	ls := set(b, "k8s:app=web", "k8s:team=a", "k8s:io.kubernetes.pod.namespace=default")
	b.ReportAllocs()
	for b.Loop() {
		id, err := n.Allocate(b.Context(), ls)
		if err != nil {
			b.Fatal(err)
		}
		n.Release(b.Context(), id.ID)
	}
}

func mustRelease(t *testing.T, n *node, id ID) {
	t.Helper()
	if err := n.Release(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func mustRestore(t *testing.T, n *node, id ID, ls ...string) {
	t.Helper()
	if err := n.Restore(id, set(t, ls...)); err != nil {
		t.Fatal(err)
	}
}

func mustSweep(t *testing.T, n *node) {
	t.Helper()
	if err := n.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// ids lists the numbers that are not reserved.
func ids(n *node) (out []ID) {
	for _, i := range n.List() {
		if !i.ID.IsReserved() {
			out = append(out, i.ID)
		}
	}
	return out
}
