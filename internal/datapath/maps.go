package datapath

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Names of the maps, as in bpf/include/maps.h.
const (
	mapEndpoints    = "endpoints"
	mapPeers        = "peers"
	mapPrefixes     = "prefixes"
	mapPolicyPeers  = "policy_peers"
	mapPolicyPorts  = "policy_ports"
	mapPolicyRanges = "policy_ranges"
	mapConntrack    = "conntrack"
	mapNat          = "nat"
	mapNodes        = "nodes"
	mapSettings     = "settings"
	mapEpoch        = "epoch"
	mapCounters     = "counters"
	mapLost         = "lost"
	mapEvents       = "events"
)

// MapFullError says that a row found no room. Nothing of the change that needed it is left in the maps.
type MapFullError struct {
	Map string
	Max uint32
}

func (e *MapFullError) Error() string {
	return fmt.Sprintf("map %s is full: all %d rows are in use; raise its size", e.Map, e.Max)
}

// batchSize is where a dump is fastest: 4096 rows a call (notes on the kernel, section 12).
const batchSize = 4096

// table is a map with the Go types of its rows.
type table[K comparable, V any] struct {
	m    *ebpf.Map
	name string
}

func tableOf[K comparable, V any](ms map[string]*ebpf.Map, name string) table[K, V] {
	return table[K, V]{ms[name], name}
}

// fault turns the kernel's ways of saying "full" into one: hash maps answer E2BIG, tries ENOSPC.
func (t table[K, V]) fault(op string, key any, err error) error {
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return &MapFullError{t.name, t.m.MaxEntries()}
	}
	return fmt.Errorf("map %s: %s %v: %w", t.name, op, key, err)
}

func (t table[K, V]) put(k K, v V) error {
	if err := t.m.Put(&k, &v); err != nil {
		return t.fault("put", k, err)
	}
	return nil
}

// get returns the row of k; false if there is none.
func (t table[K, V]) get(k K) (v V, ok bool, err error) {
	switch err = t.m.Lookup(&k, &v); {
	case err == nil:
		return v, true, nil
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return v, false, nil
	}
	return v, false, t.fault("get", k, err)
}

// del removes the row of k; no error if there is none.
func (t table[K, V]) del(k K) error {
	if err := t.m.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return t.fault("delete", k, err)
	}
	return nil
}

// putAll writes rows; on error it has taken back those it wrote, so it must not be used to overwrite.
func (t table[K, V]) putAll(keys []K, values []V) error {
	for at := 0; at < len(keys); at += batchSize {
		end := min(at+batchSize, len(keys))
		n, err := t.m.BatchUpdate(keys[at:end], values[at:end], nil)
		if err != nil {
			return errors.Join(t.fault("put", keys[min(at+n, len(keys)-1)], err), t.delAll(keys[:at+n]))
		}
	}
	return nil
}

// overwriteAll writes rows, whatever was there, and tells how many it got to.
func (t table[K, V]) overwriteAll(keys []K, values []V) (written int, err error) {
	for written < len(keys) {
		end := min(written+batchSize, len(keys))
		n, err := t.m.BatchUpdate(keys[written:end], values[written:end], nil)
		if err != nil {
			return written + n, t.fault("put", keys[min(written+n, len(keys)-1)], err)
		}
		written = end
	}
	return written, nil
}

// delAll removes the rows of keys; those that are gone already are no error.
func (t table[K, V]) delAll(keys []K) error {
	for len(keys) > 0 {
		chunk := keys[:min(batchSize, len(keys))]
		n, err := t.m.BatchDelete(chunk, nil)
		switch {
		case err == nil:
			keys = keys[len(chunk):]
		case errors.Is(err, ebpf.ErrKeyNotExist) && n < len(chunk):
			keys = keys[n+1:] // a batch stops at the first row that is gone
		default:
			return t.fault("delete", chunk[min(n, len(chunk)-1)], err)
		}
	}
	return nil
}

// each calls f with every batch of rows; f must not keep the slices.
func (t table[K, V]) each(f func(keys []K, values []V) error) error {
	size := min(batchSize, max(1, int(t.m.MaxEntries())))
	for {
		again, err := t.dump(size, f)
		if err != nil || !again {
			return err
		}
		size *= 2 // a hash bucket with more rows than fit: start over with room
	}
}

func (t table[K, V]) dump(size int, f func([]K, []V) error) (again bool, err error) {
	keys, values := make([]K, size), make([]V, size)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := t.m.BatchLookup(&cursor, keys, values, nil)
		done := errors.Is(err, ebpf.ErrKeyNotExist)
		if errors.Is(err, unix.ENOSPC) {
			return true, nil
		}
		if err != nil && !done {
			return false, fmt.Errorf("map %s: read: %w", t.name, err)
		}
		if n > 0 {
			if err := f(keys[:n], values[:n]); err != nil {
				return false, err
			}
		}
		if done {
			return false, nil
		}
	}
}

// all returns every row. For the maps that hold configuration, not for conntrack.
func (t table[K, V]) all() (map[K]V, error) {
	out := map[K]V{}
	err := t.each(func(keys []K, values []V) error {
		for i, k := range keys {
			out[k] = values[i]
		}
		return nil
	})
	return out, err
}

// len counts the rows.
func (t table[K, V]) len() (int, error) {
	n := 0
	err := t.each(func(keys []K, _ []V) error { n += len(keys); return nil })
	return n, err
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.SortedFunc(maps.Keys(m), strings.Compare)
}
