package datapath

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// Pins of one map layout:
//
//	<bpf root>/porin/<layout>/maps/<map>        the map
//	                          shapes/<map>      symbolic link to the map's shape: what a later layout compares
//	                          progs/<program>   the programs in force
//	                          programs          symbolic link to the fingerprint of the objects that they were made from
//	                          links/<program>_<ifindex>
//	                          complete          symbolic link, made last: everything above is there and filled
//
// A layout without complete is what an agent left that died while it migrated; its maps hold nothing of worth, its links do.
type layoutDir string

func (l layoutDir) links() string            { return filepath.Join(string(l), "links") }
func (l layoutDir) progs() string            { return filepath.Join(string(l), "progs") }
func (l layoutDir) mapPin(n string) string   { return filepath.Join(string(l), "maps", n) }
func (l layoutDir) shapePin(n string) string { return filepath.Join(string(l), "shapes", n) }
func (l layoutDir) programsPin() string      { return filepath.Join(string(l), "programs") }
func (l layoutDir) completePin() string      { return filepath.Join(string(l), "complete") }

func (l layoutDir) complete() bool { return exists(l.completePin()) }

func (l layoutDir) make() error {
	for _, sub := range []string{"maps", "shapes", "links", "progs"} {
		if err := os.MkdirAll(filepath.Join(string(l), sub), 0o700); err != nil {
			return fmt.Errorf("pin folder: %w", err)
		}
	}
	return nil
}

func (l layoutDir) setComplete() error {
	if l.complete() {
		return nil
	}
	if err := os.Symlink(time.Now().UTC().Format("20060102T150405Z"), l.completePin()); err != nil {
		return fmt.Errorf("mark layout complete: %w", err)
	}
	return nil
}

// ownFolder makes the folder that holds all layouts and refuses one that anybody else could have filled: a pinned program or
// map that is not ours would be taken over like our own.
func ownFolder(bpfRoot string) error {
	dir := filepath.Join(bpfRoot, "porin")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("pin folder: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("pin folder: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("pin folder %s: it must be a folder of uid %d that nobody else may write to, but is %v; remove it", dir, os.Geteuid(), info.Mode())
	}
	return nil
}

// writeShape notes the shape of a map beside its pin: bpffs keeps no files, but a symbolic link holds any text.
func (l layoutDir) writeShape(name, shape string) error {
	path := l.shapePin(name)
	if have, err := os.Readlink(path); err == nil && have == shape {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("note map shape: %w", err)
	}
	if err := os.Symlink(shape, path); err != nil {
		return fmt.Errorf("note map shape: %w", err)
	}
	return nil
}

// layouts returns the layout folders below root, newest first.
func layouts(bpfRoot string) []layoutDir {
	entries, err := os.ReadDir(filepath.Join(bpfRoot, "porin"))
	if err != nil {
		return nil
	}
	type dated struct {
		dir  layoutDir
		time time.Time
	}
	var all []dated
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.IsDir() {
			all = append(all, dated{layoutDir(filepath.Join(bpfRoot, "porin", e.Name())), info.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b dated) int {
		if c := b.time.Compare(a.time); c != 0 {
			return c
		}
		return strings.Compare(string(a.dir), string(b.dir))
	})
	dirs := make([]layoutDir, len(all))
	for i, d := range all {
		dirs[i] = d.dir
	}
	return dirs
}

// shape identifies what the bytes of a map mean: type, sizes, flags and the types of key and value. Two maps of one shape
// differ at most in capacity, so rows can be copied between them.
func shape(m *ebpf.MapSpec) string {
	h := sha256.New()
	fmt.Fprintf(h, "%d %d %d %d\n", m.Type, m.KeySize, m.ValueSize, m.Flags)
	describe(h, m.Key)
	describe(h, m.Value)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// layoutName identifies a set of maps: programs of one layout can take over the maps of another agent as they are.
func layoutName(specs map[string]*ebpf.MapSpec) string {
	h := sha256.New()
	for _, name := range sortedKeys(specs) {
		fmt.Fprintf(h, "%s %s %d\n", name, shape(specs[name]), specs[name].MaxEntries)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// describe writes t as text: names, offsets and sizes, all that decides what a byte of it means.
func describe(w io.Writer, t btf.Type) {
	if t == nil {
		fmt.Fprintln(w, "none")
		return
	}
	members := func(kind string, size uint32, ms []btf.Member) {
		fmt.Fprintf(w, "%s %d {\n", kind, size)
		for _, m := range ms {
			fmt.Fprintf(w, "%s @%d:%d ", m.Name, m.Offset, m.BitfieldSize)
			describe(w, m.Type)
		}
		fmt.Fprintln(w, "}")
	}
	switch v := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		members("struct", v.Size, v.Members)
	case *btf.Union:
		members("union", v.Size, v.Members)
	case *btf.Array:
		fmt.Fprintf(w, "[%d] ", v.Nelems)
		describe(w, v.Type)
	case *btf.Int:
		fmt.Fprintf(w, "int%d %d\n", v.Size, v.Encoding)
	case *btf.Enum:
		fmt.Fprintf(w, "enum%d\n", v.Size)
	default:
		fmt.Fprintf(w, "%T\n", v)
	}
}
