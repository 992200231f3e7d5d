// Package state defines the tables in which the rooms of the agent keep what they know: typed rows, snapshots,
// revisions, watch. It reads and writes memory only. It never decides what a row means and never stores anything
// on disk.
//
// Every table has one writer room and any number of readers:
//
//	writer ──Put/Delete/Update──▶ mutex ─▶ new snapshot ─▶ atomic pointer ──▶ readers (never wait)
//	                                                   └─▶ close the old snapshot's channel ──▶ watchers
//
// A snapshot is an immutable radix tree, so a reader keeps what it saw for as long as it likes and neither slows the
// writer down nor is slowed down by it. Rows are values: a row that came out of a table is never modified, a change
// is a new row under the same key.
package state

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// DB is a set of named tables.
type DB struct {
	mu     sync.Mutex
	tables map[string]dumper // mu
}

// dumper is what DB knows of a table whatever its row type.
type dumper interface {
	dump() (rows [][]byte, rev uint64, err error)
}

// New returns a DB without tables.
func New() *DB { return &DB{tables: make(map[string]dumper)} }

// Names lists the tables, sorted.
func (db *DB) Names() []string {
	db.mu.Lock()
	defer db.mu.Unlock()
	names := make([]string, 0, len(db.tables))
	for n := range db.tables {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Dump returns every row of the table as JSON, sorted by key, and the revision at which they were read.
func (db *DB) Dump(name string) (rows [][]byte, rev uint64, err error) {
	db.mu.Lock()
	t, ok := db.tables[name]
	db.mu.Unlock()
	if !ok {
		return nil, 0, fmt.Errorf("table %q: no such table; there are %v", name, db.Names())
	}
	return t.dump()
}

// Table holds rows of type R by key.
type Table[R any] struct {
	name string
	key  func(R) string

	writer    sync.Mutex // one change at a time; readers never take it
	now       atomic.Pointer[snapshot[R]]
	followers []*Follower[R] // writer
}

// snapshot is one immutable version of a table.
type snapshot[R any] struct {
	rows    *iradix.Tree[R]
	rev     uint64
	changed chan struct{} // closed once a newer snapshot is in place
}

// NewTable adds a table to db. Key must give the same text for the same row always. A second table of the same name
// is a mistake of the program and panics.
func NewTable[R any](db *DB, name string, key func(R) string) *Table[R] {
	t := &Table[R]{name: name, key: key}
	t.now.Store(&snapshot[R]{rows: iradix.New[R](), changed: make(chan struct{})})
	db.add(name, t)
	return t
}

// view is a table that is made when somebody asks.
type view[R any] struct {
	list func() (rows []R, rev uint64)
}

// NewView adds a table to db that exists as rows only while it is dumped: for what its writer keeps in a more compact
// form. List returns the rows, sorted.
func NewView[R any](db *DB, name string, list func() (rows []R, rev uint64)) {
	db.add(name, view[R]{list})
}

func (v view[R]) dump() ([][]byte, uint64, error) {
	rows, rev := v.list()
	out := make([][]byte, 0, len(rows))
	for i := range rows {
		b, err := json.Marshal(rows[i])
		if err != nil {
			return nil, 0, fmt.Errorf("row %d as JSON: %w", i, err)
		}
		out = append(out, b)
	}
	return out, rev, nil
}

// add registers a table.
func (db *DB) add(name string, t dumper) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if _, dup := db.tables[name]; dup {
		panic(fmt.Sprintf("state: two tables are called %q", name))
	}
	db.tables[name] = t
}

// Name returns the table's name.
func (t *Table[R]) Name() string { return t.name }

// Revision counts the changes since the table was made.
func (t *Table[R]) Revision() uint64 { return t.now.Load().rev }

// Len returns the number of rows.
func (t *Table[R]) Len() int { return t.now.Load().rows.Len() }

// Get returns the row under key.
func (t *Table[R]) Get(key string) (R, bool) { return t.now.Load().rows.Get([]byte(key)) }

// List returns all rows, sorted by key.
func (t *Table[R]) List() []R { return t.now.Load().list() }

// Prefix returns the rows whose key begins with p, sorted by key.
func (t *Table[R]) Prefix(p string) []R {
	var out []R
	t.now.Load().rows.Root().WalkPrefix([]byte(p), func(_ []byte, r R) bool {
		out = append(out, r)
		return false
	})
	return out
}

// Watch returns all rows, the revision they belong to, and a channel that closes when there is a newer one. All
// three are of one moment, so a reader that loops over Watch misses no change.
func (t *Table[R]) Watch() (rows []R, rev uint64, changed <-chan struct{}) {
	s := t.now.Load()
	return s.list(), s.rev, s.changed
}

// Wait returns nil once cond holds for the rows of the table, or why ctx ended.
func (t *Table[R]) Wait(ctx context.Context, cond func(rows []R) bool) error {
	for {
		rows, rev, changed := t.Watch()
		if cond(rows) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for table %s (revision %d): %w", t.name, rev, context.Cause(ctx))
		}
	}
}

// Put writes r in place of the row with the same key, if any.
func (t *Table[R]) Put(r R) { t.Update([]R{r}) }

// Delete removes the row under key and returns it. Without such a row nothing happens, not even a revision.
func (t *Table[R]) Delete(key string) (R, bool) {
	t.writer.Lock()
	defer t.writer.Unlock()
	rows, old, ok := t.now.Load().rows.Delete([]byte(key))
	if ok {
		t.note(key, old)
		t.commit(rows)
	}
	return old, ok
}

// Update writes and removes several rows as one change: readers see all of it or nothing. A key that is in both
// stays.
func (t *Table[R]) Update(put []R, remove ...string) {
	t.writer.Lock()
	defer t.writer.Unlock()
	tx := t.now.Load().rows.Txn()
	touched := len(put) > 0
	for _, k := range remove {
		old, had := tx.Delete([]byte(k))
		touched = touched || had
		if had {
			t.note(k, old)
		}
	}
	for _, r := range put {
		k := t.key(r)
		tx.Insert([]byte(k), r)
		t.note(k, r)
	}
	if touched {
		t.commit(tx.CommitOnly())
	}
}

// note tells the followers that a row changes. The writer lock is held.
func (t *Table[R]) note(key string, last R) {
	for _, f := range t.followers {
		f.keys[key] = last
	}
}

// commit makes rows the table's content and wakes who watches. The writer lock is held.
func (t *Table[R]) commit(rows *iradix.Tree[R]) {
	old := t.now.Load()
	t.now.Store(&snapshot[R]{rows: rows, rev: old.rev + 1, changed: make(chan struct{})})
	close(old.changed)
}

func (t *Table[R]) dump() ([][]byte, uint64, error) {
	s := t.now.Load()
	out := make([][]byte, 0, s.rows.Len())
	for _, r := range s.list() {
		b, err := json.Marshal(r)
		if err != nil {
			return nil, 0, fmt.Errorf("table %s: row %s as JSON: %w", t.name, t.key(r), err)
		}
		out = append(out, b)
	}
	return out, s.rev, nil
}

func (s *snapshot[R]) list() []R {
	out := make([]R, 0, s.rows.Len())
	s.rows.Root().Walk(func(_ []byte, r R) bool {
		out = append(out, r)
		return false
	})
	return out
}
