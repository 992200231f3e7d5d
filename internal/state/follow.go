package state

// Follower reads the changes of one table: what a reader does with a large table then costs by the change, not by the
// table. One goroutine uses it.
type Follower[R any] struct {
	table *Table[R]
	keys  map[string]R // the table's writer lock: changed since Next, with the row as it is or as it was last
}

// Follow returns a follower whose first Next tells every row. It lasts as long as the table.
func (t *Table[R]) Follow() *Follower[R] {
	t.writer.Lock()
	defer t.writer.Unlock()
	f := &Follower[R]{table: t, keys: make(map[string]R, t.now.Load().rows.Len())}
	t.now.Load().rows.Root().Walk(func(k []byte, r R) bool {
		f.keys[string(k)] = r
		return false
	})
	t.followers = append(t.followers, f)
	return f
}

// Next returns the rows that came or changed since the last call, those that went, as they were last, both in no order, and
// a channel that closes when there is more. Of several changes of a row it tells the last.
func (f *Follower[R]) Next() (put, gone []R, changed <-chan struct{}) {
	f.table.writer.Lock() // a change is in the snapshot and in keys, or in neither
	s, keys := f.table.now.Load(), f.keys
	f.keys = map[string]R{}
	f.table.writer.Unlock()
	for k, last := range keys {
		if r, ok := s.rows.Get([]byte(k)); ok {
			put = append(put, r)
		} else {
			gone = append(gone, last)
		}
	}
	return put, gone, s.changed
}
