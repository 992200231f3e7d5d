package datapath

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
)

// programs returns the verified programs: the pinned ones if they were made from these very objects and use these very
// maps, else freshly loaded ones. Verifying takes a second or two of CPU, and most restarts change nothing.
func (o *objects) programs(log *slog.Logger, dir layoutDir, ms map[string]*ebpf.Map) (map[string]*ebpf.Program, error) {
	print := o.fingerprint()
	if have, err := os.Readlink(dir.programsPin()); err == nil && have == print && dir.complete() {
		if progs := o.pinned(dir, ms); progs != nil {
			return progs, nil
		}
		log.Warn("pinned programs are not as they were left and are loaded again", "folder", dir.progs())
	}
	return o.load(ms)
}

// load verifies every program against ms, once per node. An error leaves what runs untouched.
func (o *objects) load(ms map[string]*ebpf.Map) (map[string]*ebpf.Program, error) {
	var mu sync.Mutex
	progs := map[string]*ebpf.Program{}
	var g errgroup.Group
	for _, set := range o.sets {
		for name := range set.Programs {
			g.Go(func() error {
				p, err := loadOne(set, name, ms)
				if err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				progs[name] = p
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		closeAll(progs)
		return nil, err
	}
	return progs, nil
}

func loadOne(set *ebpf.CollectionSpec, name string, ms map[string]*ebpf.Map) (*ebpf.Program, error) {
	one := set.Copy()
	one.Programs = map[string]*ebpf.ProgramSpec{name: one.Programs[name]}
	replace := map[string]*ebpf.Map{}
	for m := range one.Maps {
		if ms[m] != nil {
			replace[m] = ms[m]
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return nil, fmt.Errorf("load program %s: %w", name, err)
	}
	defer coll.Close()
	return coll.DetachProgram(name), nil
}

// fingerprint identifies what the programs do: every instruction with the map or function it names, and constant data.
func (o *objects) fingerprint() string {
	h := sha256.New()
	for _, set := range o.sets {
		for _, name := range sortedKeys(set.Programs) {
			fmt.Fprintf(h, "program %s\n", name)
			for _, ins := range set.Programs[name].Instructions {
				fmt.Fprintf(h, "%d %d %d %d %d %s %s\n", ins.OpCode, ins.Dst, ins.Src, ins.Offset, ins.Constant, ins.Reference(), ins.Symbol())
			}
		}
		for _, name := range sortedKeys(set.Maps) {
			if strings.HasPrefix(name, ".") {
				fmt.Fprintf(h, "data %s %v\n", name, set.Maps[name].Contents)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// pinned returns the programs that a former agent pinned, or nil when one is missing or uses another map than ms.
func (o *objects) pinned(dir layoutDir, ms map[string]*ebpf.Map) map[string]*ebpf.Program {
	ours := map[ebpf.MapID]bool{}
	for m := range maps.Values(ms) {
		if info, err := m.Info(); err == nil {
			if id, ok := info.ID(); ok {
				ours[id] = true
			}
		}
	}
	progs := map[string]*ebpf.Program{}
	for _, set := range o.sets {
		for name, spec := range set.Programs {
			p, err := ebpf.LoadPinnedProgram(filepath.Join(dir.progs(), name), nil)
			if err != nil {
				closeAll(progs)
				return nil
			}
			progs[name] = p
			if p.Type() != spec.Type || !usesOnly(p, ours) {
				closeAll(progs)
				return nil
			}
		}
	}
	return progs
}

// usesOnly tells whether p uses none but the given maps; constant data of its own is frozen and does not count.
func usesOnly(p *ebpf.Program, ours map[ebpf.MapID]bool) bool {
	info, err := p.Info()
	if err != nil {
		return false
	}
	ids, ok := info.MapIDs()
	if !ok {
		return false
	}
	for _, id := range ids {
		if ours[id] {
			continue
		}
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return false
		}
		mi, err := m.Info()
		m.Close()
		if err != nil || !mi.Frozen() {
			return false
		}
	}
	return true
}

// pinPrograms pins the programs in force and notes what they were made from. The old note goes before the first new pin: a
// note that tells of other programs than the pinned ones would be believed.
func (d *Datapath) pinPrograms(print string) error {
	note := d.dir.programsPin()
	have, err := os.Readlink(note)
	same := err == nil && have == print
	if !same {
		if err := os.Remove(note); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("note what the programs are: %w", err)
		}
	}
	for name, p := range d.progs {
		if err := pin(p.FD(), filepath.Join(d.dir.progs(), name)); err != nil {
			return err
		}
	}
	if same {
		return nil
	}
	if err := os.Symlink(print, note); err != nil {
		return fmt.Errorf("note what the programs are: %w", err)
	}
	return nil
}

func closeAll(progs map[string]*ebpf.Program) {
	for p := range maps.Values(progs) {
		p.Close()
	}
}
