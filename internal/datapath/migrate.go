package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"porin/bpf"
)

// migration copies the rows of a former layout into this one, in two passes: everything before the programs change hands,
// and afterwards the flows that the old programs still began in between.
type migration struct {
	log   *slog.Logger
	root  string
	to    layoutDir
	from  layoutDir // "" when there is nothing to copy
	specs map[string]*ebpf.MapSpec
	dst   map[string]*ebpf.Map
	src   map[string]*ebpf.Map // open maps of from whose shape is the same
	began uint64               // CLOCK_MONOTONIC of the first pass
}

func newMigration(log *slog.Logger, root string, to layoutDir, specs map[string]*ebpf.MapSpec, dst map[string]*ebpf.Map) *migration {
	m := &migration{log: log, root: root, to: to, specs: specs, dst: dst, src: map[string]*ebpf.Map{}}
	if to.complete() {
		return m
	}
	for _, l := range layouts(root) {
		if l != to && l.complete() {
			m.from = l
			break
		}
	}
	return m
}

// copyAll copies every map whose shape is the same and names the others: what they held is lost.
func (m *migration) copyAll() error {
	if m.from == "" {
		return nil
	}
	m.began = monotonic()
	var copied, lost []string
	for _, name := range sortedKeys(m.specs) {
		switch m.specs[name].Type {
		case ebpf.RingBuf, ebpf.PerCPUArray, ebpf.PerCPUHash:
			continue // events in flight, counters and scratch begin anew
		}
		want := shape(m.specs[name])
		have, err := os.Readlink(m.from.shapePin(name))
		if err != nil || have != want {
			lost = append(lost, name)
			continue
		}
		src, err := ebpf.LoadPinnedMap(m.from.mapPin(name), nil)
		if err != nil {
			lost = append(lost, name)
			continue
		}
		m.src[name] = src
		if err := copyMap(src, m.dst[name]); err != nil {
			if !errors.Is(err, unix.E2BIG) && !errors.Is(err, unix.ENOSPC) {
				return fmt.Errorf("migrate map %s: %w", name, err)
			}
			lost = append(lost, name+" (rows that the smaller map has no room for)")
		}
		copied = append(copied, name)
	}
	m.log.Info("map layout changed", "from", filepath.Base(string(m.from)), "to", filepath.Base(string(m.to)), "copied", copied, "lost", lost)
	return nil
}

// copyMap copies all rows, batch by batch.
func copyMap(src, dst *ebpf.Map) error {
	slots := func(n int, size uint32) reflect.Value {
		return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), n, n)
	}
	for size := min(batchSize, int(src.MaxEntries())); ; size *= 2 {
		keys, values := slots(size, src.KeySize()), slots(size, src.ValueSize())
		again, err := copyBatches(src, dst, keys, values)
		if err != nil || !again {
			return err
		}
	}
}

// copyBatches tells with again that a hash bucket has more rows than the slots hold.
func copyBatches(src, dst *ebpf.Map, keys, values reflect.Value) (again bool, err error) {
	var cursor ebpf.MapBatchCursor
	for {
		n, err := src.BatchLookup(&cursor, keys.Interface(), values.Interface(), nil)
		done := errors.Is(err, ebpf.ErrKeyNotExist)
		if errors.Is(err, unix.ENOSPC) {
			return true, nil
		}
		if err != nil && !done {
			return false, err
		}
		if n > 0 {
			if _, err := dst.BatchUpdate(keys.Slice(0, n).Interface(), values.Slice(0, n).Interface(), nil); err != nil {
				return false, err
			}
		}
		if done {
			return false, nil
		}
	}
}

// copyLate adds the flows that began after the first pass looked. Rows that the new programs made meanwhile win.
func (m *migration) copyLate() error {
	if src := m.src[mapConntrack]; src != nil {
		from, to := table[bpf.CTKey, bpf.CTEntry]{src, mapConntrack}, tableOf[bpf.CTKey, bpf.CTEntry](m.dst, mapConntrack)
		if err := copyNewer(from, to, func(e bpf.CTEntry) bool { return e.Created >= m.began }); err != nil {
			return err
		}
	}
	if src := m.src[mapNat]; src != nil {
		from, to := table[bpf.NatKey, bpf.NatEntry]{src, mapNat}, tableOf[bpf.NatKey, bpf.NatEntry](m.dst, mapNat)
		return copyNewer(from, to, func(e bpf.NatEntry) bool { return e.Used >= m.began })
	}
	return nil
}

func copyNewer[K comparable, V any](from, to table[K, V], newer func(V) bool) error {
	return from.each(func(keys []K, values []V) error {
		for i := range keys {
			if !newer(values[i]) {
				continue
			}
			if err := to.m.Update(&keys[i], &values[i], ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
				return to.fault("put", keys[i], err)
			}
		}
		return nil
	})
}

// removeOld removes every other layout. Its links have moved to this one, so nothing is detached by it.
func (m *migration) removeOld() error {
	for _, l := range layouts(m.root) {
		if l == m.to {
			continue
		}
		if err := removeTree(string(l)); err != nil {
			return err
		}
	}
	return nil
}

func (m *migration) close() {
	for _, src := range m.src {
		src.Close()
	}
}

// holdsLinks tells whether programs depend on the pins of a layout.
func holdsLinks(l layoutDir) bool {
	pins, err := os.ReadDir(l.links())
	return err == nil && len(pins) > 0
}
