package state

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestFollowerTellsChangesOnly(t *testing.T) {
	_, tab := newTable()
	for i := range 1000 {
		tab.Put(row{fmt.Sprint(i), i})
	}
	f := tab.Follow()
	put, gone, changed := f.Next()
	if len(put) != 1000 || len(gone) != 0 {
		t.Fatalf("first %d rows and %d that went", len(put), len(gone))
	}
	tab.Put(row{"7", -7})
	<-changed
	if put, gone, changed = f.Next(); !slices.Equal(put, []row{{"7", -7}}) || len(gone) != 0 {
		t.Errorf("after one change: %v, gone %v", put, gone)
	}
	tab.Update([]row{{"new", 1}, {"8", -8}}, "8", "9", "none")
	tab.Delete("new")
	<-changed
	put, gone, changed = f.Next()
	slices.SortFunc(gone, func(a, b row) int { return a.V - b.V })
	if !slices.Equal(put, []row{{"8", -8}}) || !slices.Equal(gone, []row{{"new", 1}, {"9", 9}}) {
		t.Errorf("after several: %v, gone %v", put, gone)
	}
	if put, gone, _ := f.Next(); len(put)+len(gone) != 0 {
		t.Errorf("nothing changed, told %v and %v", put, gone)
	}
	select {
	case <-changed:
		t.Error("the channel is closed, though nothing changed")
	default:
	}
}

// Whoever follows while others write ends up with the table, whatever it saw in between.
func TestFollowerMissesNothing(t *testing.T) {
	_, tab := newTable()
	f := tab.Follow()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 20000 {
			k := fmt.Sprint(rand.IntN(50))
			if i%3 == 0 {
				tab.Delete(k)
			} else {
				tab.Put(row{k, i})
			}
		}
		tab.Put(row{"end", 0})
	}()
	seen := map[string]int{}
	for {
		put, gone, changed := f.Next()
		for _, r := range gone {
			delete(seen, r.K)
		}
		for _, r := range put {
			seen[r.K] = r.V
		}
		if _, end := seen["end"]; end {
			break
		}
		<-changed
	}
	<-done
	want := map[string]int{}
	for _, r := range tab.List() {
		want[r.K] = r.V
	}
	if !maps.Equal(seen, want) {
		t.Errorf("followed to %v, the table has %v", seen, want)
	}
}
