package state

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
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type row struct {
	K string `json:"k"`
	V int    `json:"v"`
}

func newTable() (*DB, *Table[row]) {
	db := New()
	return db, NewTable(db, "rows", func(r row) string { return r.K })
}

func TestReadsAreSorted(t *testing.T) {
	_, tab := newTable()
	for i, k := range []string{"b/2", "a", "b/10", "c", "b/1"} {
		tab.Put(row{k, i})
	}
	tab.Put(row{"a", 9})
	if got, want := keys(tab.List()), "a b/1 b/10 b/2 c"; got != want {
		t.Errorf("List: got %q want %q", got, want)
	}
	if got, want := keys(tab.Prefix("b/")), "b/1 b/10 b/2"; got != want {
		t.Errorf("Prefix: got %q want %q", got, want)
	}
	if r, ok := tab.Get("a"); !ok || r.V != 9 {
		t.Errorf("Get(a): got %v %v want the second row put", r, ok)
	}
	if _, ok := tab.Get("b/"); ok {
		t.Error("Get(b/) found a row: a prefix is not a key")
	}
	if tab.Len() != 5 || tab.Revision() != 6 {
		t.Errorf("Len %d Revision %d, want 5 and 6", tab.Len(), tab.Revision())
	}
}

func TestDeleteOfNothingIsNoChange(t *testing.T) {
	_, tab := newTable()
	tab.Put(row{"a", 1})
	_, rev, changed := tab.Watch()
	if _, ok := tab.Delete("b"); ok {
		t.Error("Delete(b) says that there was a row")
	}
	tab.Update(nil, "x", "y")
	select {
	case <-changed:
		t.Error("watchers woken though nothing changed")
	default:
	}
	if tab.Revision() != rev {
		t.Errorf("revision went from %d to %d though nothing changed", rev, tab.Revision())
	}
	old, ok := tab.Delete("a")
	if !ok || old.V != 1 || tab.Len() != 0 {
		t.Errorf("Delete(a): %v %v, %d rows left", old, ok, tab.Len())
	}
	<-changed
}

func TestUpdateIsOneChange(t *testing.T) {
	_, tab := newTable()
	tab.Put(row{"old", 1})
	tab.Put(row{"both", 1})
	rev := tab.Revision()
	tab.Update([]row{{"new", 2}, {"both", 2}}, "old", "both")
	if got, want := keys(tab.List()), "both new"; got != want {
		t.Errorf("got %q want %q", got, want)
	}
	if tab.Revision() != rev+1 {
		t.Errorf("revision %d, want %d: an Update is one change", tab.Revision(), rev+1)
	}
}

func TestSnapshotStaysAsItWas(t *testing.T) {
	_, tab := newTable()
	tab.Put(row{"a", 1})
	before, rev, _ := tab.Watch()
	tab.Put(row{"a", 2})
	tab.Put(row{"b", 2})
	if len(before) != 1 || before[0].V != 1 || rev != 1 {
		t.Errorf("snapshot changed under its reader: %v at %d", before, rev)
	}
}

// A reader must get on while a writer is in the middle of a change.
func TestReadersNeverWaitForTheWriter(t *testing.T) {
	_, tab := newTable()
	tab.Put(row{"a", 1})
	tab.writer.Lock()
	defer tab.writer.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		tab.Get("a")
		tab.List()
		tab.Prefix("a")
		tab.Watch()
		tab.Revision()
		tab.Len()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("a reader waits for the writer")
	}
}

// One writer, many watchers: each watcher's last word is the writer's, and revisions only grow.
func TestWatchMissesNothing(t *testing.T) {
	_, tab := newTable()
	const last = 2000
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			var seen uint64
			for {
				rows, rev, changed := tab.Watch()
				if rev < seen {
					t.Errorf("watcher %d: revision %d after %d", w, rev, seen)
					return
				}
				seen = rev
				if len(rows) == 1 && rows[0].V == last {
					return
				}
				<-changed
			}
		})
	}
	for i := range last + 1 {
		tab.Put(row{"k", i})
	}
	wg.Wait()
}

func TestConcurrentWritersLoseNothing(t *testing.T) {
	_, tab := newTable()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 200 {
				tab.Put(row{fmt.Sprintf("%d/%d", w, i), i})
			}
		})
	}
	wg.Wait()
	if tab.Len() != 1600 || tab.Revision() != 1600 {
		t.Errorf("%d rows at revision %d, want 1600 and 1600", tab.Len(), tab.Revision())
	}
}

func TestWait(t *testing.T) {
	_, tab := newTable()
	got := make(chan error, 1)
	go func() { got <- tab.Wait(t.Context(), func(rows []row) bool { return len(rows) == 3 }) }()
	for i := range 3 {
		tab.Put(row{fmt.Sprint(i), i})
	}
	if err := <-got; err != nil {
		t.Errorf("Wait: %v", err)
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough waiting")
	cancel(enough)
	err := tab.Wait(ctx, func([]row) bool { return false })
	if !errors.Is(err, enough) || !strings.Contains(err.Error(), "table rows (revision 3)") {
		t.Errorf("Wait ended with %v; want the cause, the table and the revision", err)
	}
	if err := tab.Wait(ctx, func([]row) bool { return true }); err != nil {
		t.Errorf("a condition that holds already needs no time: %v", err)
	}
}

func TestDump(t *testing.T) {
	db, tab := newTable()
	tab.Put(row{"b", 2})
	tab.Put(row{"a", 1})
	rows, rev, err := db.Dump("rows")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		got = append(got, string(r))
	}
	if want := []string{`{"k":"a","v":1}`, `{"k":"b","v":2}`}; !slices.Equal(got, want) || rev != 2 {
		t.Errorf("got %v at %d want %v at 2", got, rev, want)
	}
	if _, _, err := db.Dump("columns"); err == nil || !strings.Contains(err.Error(), "[rows]") {
		t.Errorf("Dump of a missing table: %v; want the names of those that exist", err)
	}
	NewTable(db, "chans", func(chan int) string { return "" }).Put(nil)
	if _, _, err := db.Dump("chans"); err == nil || !strings.Contains(err.Error(), "table chans") {
		t.Errorf("Dump of rows that are no JSON: %v", err)
	}
	if got := db.Names(); !slices.Equal(got, []string{"chans", "rows"}) {
		t.Errorf("Names: %v", got)
	}
}

func TestSecondTableOfTheSameNamePanics(t *testing.T) {
	db, _ := newTable()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	NewTable(db, "rows", func(r row) string { return r.K })
}

// The table against a map, over random changes.
func TestTableEqualsMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, tab := newTable()
		model := map[string]int{}
		key := rapid.SampledFrom([]string{"", "a", "ab", "abc", "b", "b/a", "é", "\x00"})
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				r := row{key.Draw(t, "k"), rapid.Int().Draw(t, "v")}
				tab.Put(r)
				model[r.K] = r.V
			},
			"delete": func(t *rapid.T) {
				k := key.Draw(t, "k")
				want, had := model[k]
				if r, ok := tab.Delete(k); ok != had || r.V != want {
					t.Fatalf("Delete(%q): %v %v, want %v %v", k, r.V, ok, want, had)
				}
				delete(model, k)
			},
			"": func(t *rapid.T) {
				rows := tab.List()
				if len(rows) != len(model) || tab.Len() != len(model) {
					t.Fatalf("%d rows, Len %d, want %d", len(rows), tab.Len(), len(model))
				}
				for i, r := range rows {
					if v, ok := model[r.K]; !ok || v != r.V {
						t.Fatalf("row %v, want value %v (%v)", r, v, ok)
					}
					if i > 0 && rows[i-1].K >= r.K {
						t.Fatalf("%q before %q", rows[i-1].K, r.K)
					}
				}
			},
		})
	})
}

func BenchmarkGet(b *testing.B) {
	_, tab := newTable()
	for i := range 10000 {
		tab.Put(row{fmt.Sprintf("10.1.%d.%d", i/256, i%256), i})
	}
	b.ReportAllocs()
	for b.Loop() {
		tab.Get("10.1.20.20")
	}
}

func BenchmarkPut(b *testing.B) {
	_, tab := newTable()
	for i := range 10000 {
		tab.Put(row{fmt.Sprintf("10.1.%d.%d", i/256, i%256), i})
	}
	b.ReportAllocs()
	for b.Loop() {
		tab.Put(row{"10.1.20.20", 1})
	}
}

func keys(rows []row) string {
	var ks []string
	for _, r := range rows {
		ks = append(ks, r.K)
	}
	return strings.Join(ks, " ")
}

func TestViewIsMadeWhenAsked(t *testing.T) {
	db := New()
	rows, asked := []string{"a", "b"}, 0
	NewView(db, "view", func() ([]string, uint64) { asked++; return rows, 7 })
	if asked != 0 {
		t.Error("made before anybody asked")
	}
	got, rev, err := db.Dump("view")
	if err != nil || rev != 7 || len(got) != 2 || string(got[1]) != `"b"` {
		t.Errorf("got %q, revision %d, %v", got, rev, err)
	}
	defer func() {
		if recover() == nil {
			t.Error("two tables of one name")
		}
	}()
	NewView(db, "view", func() ([]string, uint64) { return nil, 0 })
}
