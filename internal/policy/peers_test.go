package policy

import (
	"fmt"
	"maps"
	"testing"

	"porin/internal/labels"
)

// TestPeerTables: whatever the form, few in a list or many in an array, peers are what a map would hold.
func TestPeerTables(t *testing.T) {
	r := seed(t)
	tables := []*Table{{Key: "a"}, {Key: "b"}, {Key: "c"}}
	forms := map[bool]int{}
	for range 300 {
		slots, density := 1+r.IntN(40), r.IntN(10)
		want := map[int32]*Table{}
		for slot := range slots {
			if r.IntN(10) < density {
				want[int32(slot)] = tables[r.IntN(3)]
			}
		}
		p := newPeerTables(len(want), slots)
		forms[p.many != nil]++
		for slot := range int32(slots) {
			if table := want[slot]; table != nil {
				p.put(slot, table)
			}
		}
		for range 50 {
			slot, table := int32(r.IntN(slots+10)), tables[r.IntN(3)] // an identity may come later
			if r.IntN(3) == 0 {
				table = nil
				delete(want, slot)
			} else {
				want[slot] = table
			}
			p.set(slot, table)
			got, last := map[int32]*Table{}, int32(-1)
			for slot, table := range p.all() {
				if slot <= last {
					t.Fatalf("slot %d after %d", slot, last)
				}
				got[slot], last = table, slot
			}
			if !maps.Equal(got, want) || p.n != len(want) || p.get(slot) != table {
				t.Fatalf("got %d %v, want %v", p.n, got, want)
			}
		}
	}
	if forms[true] < 30 || forms[false] < 30 {
		t.Errorf("arrays and lists: %v", forms)
	}
}

// TestRarestAnchors: whether labels or namespaces are many, a selector is found through what few have, also once others
// went, and the order in which rules came makes no difference to whom they select.
func TestRarestAnchors(t *testing.T) {
	var x byLabel[int]
	selectors, at := map[int]selector{}, map[int]int{}
	labelsOf := func(i int) (namespace, app string) {
		if i%2 == 0 {
			return fmt.Sprintf("ns%d", i), "a" // each namespace has one of these
		}
		return "one", fmt.Sprintf("a%d", i)
	}
	for i := range 2000 {
		namespace, app := labelsOf(i)
		s, err := labels.NewSelector(labels.Requirement{Key: "app", Operator: labels.In, Values: []string{app}})
		if err != nil {
			t.Fatal(err)
		}
		selectors[i] = scope(s, namespace, true)
		at[i] = x.add(selectors[i].Selector, i)
	}
	asked := func(i int) (n int, found bool) {
		namespace, app := labelsOf(i)
		id := labels.New(labels.Label{Source: labels.SourceK8s, Key: labels.KeyNamespace, Value: namespace}, labels.Label{Source: labels.SourceK8s, Key: "app", Value: app})
		x.find(id, func(j int) { n++; found = found || j == i })
		return n, found
	}
	for _, i := range []int{0, 1, 998, 999, 1998, 1999} {
		if n, found := asked(i); !found || n > 30 {
			t.Errorf("selector %d: found %t, %d were asked", i, found, n)
		}
	}
	for i := range 2000 {
		if i%3 != 0 {
			x.remove(selectors[i].Selector, i, at[i])
		}
	}
	for i := range 2000 {
		if _, found := asked(i); found != (i%3 == 0) {
			t.Fatalf("selector %d: found %t after others went", i, found)
		}
	}
	for i := 0; i < 2000; i += 3 {
		x.remove(selectors[i].Selector, i, at[i])
	}
	if len(x.anchored)+len(x.loose) != 0 {
		t.Errorf("left: %d, %d", len(x.anchored), len(x.loose))
	}
}
