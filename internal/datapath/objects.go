package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"

	"porin/bpf"
)

// Names of the programs, as in bpf/*.bpf.c.
const (
	progPod           = "pod_egress"
	progHost          = "host_egress"
	progUplinkIngress = "uplink_ingress"
	progUplinkEgress  = "uplink_egress"
)

// objects are the compiled program sets and the maps that they share.
type objects struct {
	sets []*ebpf.CollectionSpec
	maps map[string]*ebpf.MapSpec // shared maps by name, at the configured sizes
}

// compiled returns the sets that are built into this binary.
func compiled() ([]*ebpf.CollectionSpec, error) {
	var sets []*ebpf.CollectionSpec
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){"pod": bpf.LoadPod, "host": bpf.LoadHost} {
		set, err := load()
		if err != nil {
			return nil, fmt.Errorf("embedded object %s: %w", name, err)
		}
		sets = append(sets, set)
	}
	return sets, nil
}

// newObjects sizes the maps and checks that the sets agree about them.
func newObjects(sets []*ebpf.CollectionSpec, sizes map[string]uint32) (*objects, error) {
	o := &objects{sets: sets, maps: map[string]*ebpf.MapSpec{}}
	progs := map[string]bool{}
	for _, set := range sets {
		for name, spec := range set.Maps {
			if strings.HasPrefix(name, ".") {
				continue // .rodata and the like belong to one set and one load
			}
			if n, ok := sizes[name]; ok {
				spec.MaxEntries = n
			}
			spec.Pinning = ebpf.PinNone
			if have, ok := o.maps[name]; ok && (shape(have) != shape(spec) || have.MaxEntries != spec.MaxEntries) {
				return nil, fmt.Errorf("embedded objects: two of them define map %s differently", name)
			}
			o.maps[name] = spec
		}
		for name := range set.Programs {
			progs[name] = true
		}
	}
	// an object without one of the maps that this package reads or writes is not porin's
	for _, name := range []string{
		mapEndpoints, mapPeers, mapPrefixes, mapPolicyPeers, mapPolicyPorts, mapPolicyRanges, mapConntrack, mapNat,
		mapNodes, mapSettings, mapEpoch, mapCounters, mapLost, mapEvents,
	} {
		if o.maps[name] == nil {
			return nil, fmt.Errorf("embedded objects: none has the map %s", name)
		}
	}
	for _, name := range []string{progPod, progHost, progUplinkIngress, progUplinkEgress} {
		if !progs[name] {
			return nil, fmt.Errorf("embedded objects: none has the program %s", name)
		}
	}
	for name := range sizes {
		if o.maps[name] == nil {
			return nil, fmt.Errorf("map sizes: there is no map %q; known: %s", name, strings.Join(sortedKeys(o.maps), " "))
		}
	}
	return o, nil
}

// probe names every kernel feature that is missing and cannot be done without.
func probe() error {
	var missing []string
	need := func(what string, err error) error {
		switch {
		case err == nil:
		case errors.Is(err, ebpf.ErrNotSupported):
			missing = append(missing, what)
		case errors.Is(err, os.ErrPermission):
			return fmt.Errorf("probe %s: %w; needs root: run with sudo", what, err)
		default:
			return fmt.Errorf("probe %s: %w", what, err)
		}
		return nil
	}
	err := errors.Join(
		need("ring buffer maps (Linux 5.8)", features.HaveMapType(ebpf.RingBuf)),
		need("LRU hash maps (Linux 4.10)", features.HaveMapType(ebpf.LRUHash)),
		need("tc programs (Linux 4.1)", features.HaveProgramType(ebpf.SchedCLS)),
		need("bpf_redirect_peer (Linux 5.10)", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectPeer)),
		need("bpf_redirect_neigh (Linux 5.10)", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectNeigh)),
		need("bpf_fib_lookup (Linux 4.18)", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnFibLookup)),
	)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("this kernel lacks %s; porin needs Linux 6.1 or newer", strings.Join(missing, ", "))
	}
	return nil
}

// openMaps returns the maps of the layout below dir: pinned ones as they are, missing ones from running programs that
// still use them, else new. fresh tells that none was there.
func (o *objects) openMaps(log *slog.Logger, dir layoutDir) (ms map[string]*ebpf.Map, fresh bool, err error) {
	ms = map[string]*ebpf.Map{}
	defer func() {
		if err != nil {
			for m := range maps.Values(ms) {
				m.Close()
			}
		}
	}()
	var lost []string
	fresh = true
	for _, name := range sortedKeys(o.maps) {
		spec := o.maps[name]
		m, err := ebpf.LoadPinnedMap(dir.mapPin(name), nil)
		if errors.Is(err, os.ErrNotExist) {
			lost = append(lost, name)
			continue
		}
		if err != nil {
			return ms, false, fmt.Errorf("open pinned map %s: %w", dir.mapPin(name), err)
		}
		ms[name] = m
		fresh = false
		if err := spec.Compatible(m); err != nil {
			return ms, false, fmt.Errorf("pinned map %s is not what this layout means: %w; remove the folder %s", dir.mapPin(name), err, dir)
		}
	}
	if !fresh && len(lost) > 0 {
		found := mapsInUse(dir, lost, o.maps)
		maps.Copy(ms, found)
		log.Warn("pinned maps are missing", "maps", lost, "recovered", sortedKeys(found))
		lost = slices.DeleteFunc(lost, func(name string) bool { return found[name] != nil })
	}
	for _, name := range lost {
		if ms[name], err = ebpf.NewMap(o.maps[name].Copy()); err != nil {
			delete(ms, name)
			return ms, false, fmt.Errorf("create map %s: %w", name, err)
		}
	}
	for _, name := range sortedKeys(ms) {
		if err := dir.writeShape(name, shape(o.maps[name])); err != nil {
			return ms, false, err
		}
		if exists(dir.mapPin(name)) {
			continue
		}
		if err := pin(ms[name].FD(), dir.mapPin(name)); err != nil {
			return ms, false, err
		}
	}
	return ms, fresh, nil
}

// mapsInUse finds maps by what the pinned programs of dir use: somebody removed the pins, but not the maps.
func mapsInUse(dir layoutDir, names []string, specs map[string]*ebpf.MapSpec) map[string]*ebpf.Map {
	found := map[string]*ebpf.Map{}
	pins, err := os.ReadDir(dir.progs())
	if err != nil {
		return found
	}
	for _, e := range pins {
		prog, err := ebpf.LoadPinnedProgram(dir.progs()+"/"+e.Name(), nil)
		if err != nil {
			continue
		}
		info, err := prog.Info()
		prog.Close()
		if err != nil {
			continue
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				continue
			}
			mi, err := m.Info()
			// the kernel keeps 15 characters of a name, which tells porin's maps apart
			if err == nil && found[mi.Name] == nil && slices.Contains(names, mi.Name) && specs[mi.Name].Compatible(m) == nil {
				found[mi.Name] = m
				continue
			}
			m.Close()
		}
	}
	return found
}
