package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/internal/endpoint"
)

// Datapath is a node's kernel side. It is safe for concurrent use.
type Datapath struct {
	log *slog.Logger
	cfg Config
	dir layoutDir
	own *os.File // lock of the pins

	maps      map[string]*ebpf.Map
	shapes    map[string]string // of maps, by name
	progs     map[string]*ebpf.Program
	endpoints table[uint32, bpf.Endpoint]
	peers     table[bpf.Addr, bpf.Peer]
	conntrack table[bpf.CTKey, bpf.CTEntry]
	nat       table[bpf.NatKey, bpf.NatEntry]
	nodeRows  table[bpf.Addr, bpf.Node]
	settings  table[uint32, bpf.Settings]
	epoch     table[uint32, uint32]

	hooks    *hooks
	host     *host
	policy   *policyMaps
	prefixes *prefixMap
	flows    flowStats
	reader   *ringbuf.Reader
	alarms   alarms
	audit    atomic.Bool   // as Config.Audit until SetAudit
	traceAll atomic.Bool   // as Config.TraceAll until SetTraceAll
	snaps    atomic.Int32  // calls of WithSnap that are under way
	lost     atomic.Uint64 // events that could not be read; the programs' own losses are in the map

	fallbacks []string
	news      chan struct{} // something on the host changed
	committed chan struct{} // a commit wants its pruning

	settingsTurn sync.Mutex // one writer of the settings row at a time

	mu       sync.Mutex
	attached map[uint32]*attachment // by ifindex: rows of endpoints, as written
	hosts    map[bpf.Addr]struct{}  // rows of peers that are this node's own addresses
	pods     map[bpf.Addr]uint32    // rows of peers that are its workloads', with their ifindex
	cluster  *others
	epochNow uint32
}

var _ endpoint.Datapath = (*Datapath)(nil)

// Open makes the kernel ready: bpffs, maps, programs, porin_host, links. What a former agent left of the same layout is
// taken over as it is; of another layout, its rows are copied first. Until the programs are loaded and the rows are copied
// nothing that runs is touched, so an error leaves the node as it was.
func Open(log *slog.Logger, cfg Config) (*Datapath, error) {
	sets, err := compiled()
	if err != nil {
		return nil, err
	}
	return open(log, cfg, sets)
}

func open(log *slog.Logger, cfg Config, sets []*ebpf.CollectionSpec) (_ *Datapath, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	if err := probe(); err != nil {
		return nil, err
	}
	if err := errors.Join(mountBPF(cfg.BPFRoot), ownFolder(cfg.BPFRoot)); err != nil {
		return nil, err
	}
	own, err := claimRoot(cfg.BPFRoot)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			own.Close()
		}
	}()
	objs, err := newObjects(sets, cfg.MapSizes)
	if err != nil {
		return nil, err
	}
	dir := layoutDir(filepath.Join(cfg.BPFRoot, "porin", layoutName(objs.maps)))
	if err := dir.make(); err != nil {
		return nil, err
	}
	ms, _, err := objs.openMaps(log, dir)
	if err != nil {
		return nil, err
	}
	d := newDatapath(log, cfg, dir, ms)
	d.own = own
	for name, spec := range objs.maps {
		d.shapes[name] = shape(spec)
	}
	defer func() {
		if err == nil {
			return
		}
		d.Close()
		if !dir.complete() && !holdsLinks(dir) {
			err = errors.Join(err, removeTree(string(dir)))
		}
	}()

	if d.progs, err = objs.programs(log, dir, ms); err != nil {
		return nil, err
	}
	d.hooks.progs = d.progs
	mig := newMigration(log, cfg.BPFRoot, dir, objs.maps, ms)
	defer mig.close()
	if err := mig.copyAll(); err != nil {
		return nil, err
	}
	if err := d.restore(); err != nil {
		return nil, err
	}
	if err := d.attachAll(); err != nil {
		return nil, err
	}
	if err := mig.copyLate(); err != nil {
		return nil, err
	}
	if err := d.pinPrograms(objs.fingerprint()); err != nil {
		return nil, err
	}
	if err := dir.setComplete(); err != nil {
		return nil, err
	}
	if err := mig.removeOld(); err != nil {
		return nil, err
	}
	if d.reader, err = ringbuf.NewReader(ms[mapEvents]); err != nil {
		return nil, fmt.Errorf("open ring of events: %w", err)
	}
	for _, f := range d.fallbacks {
		log.Warn("kernel feature is missing", "fallback", f)
	}
	log.Info("datapath open", "layout", filepath.Base(string(dir)), "endpoints", len(d.attached), "uplinks", d.host.uplinkNames())
	return d, nil
}

func newDatapath(log *slog.Logger, cfg Config, dir layoutDir, ms map[string]*ebpf.Map) *Datapath {
	d := &Datapath{
		log: log, cfg: cfg, dir: dir, maps: ms, shapes: map[string]string{},
		endpoints: tableOf[uint32, bpf.Endpoint](ms, mapEndpoints),
		peers:     tableOf[bpf.Addr, bpf.Peer](ms, mapPeers),
		conntrack: tableOf[bpf.CTKey, bpf.CTEntry](ms, mapConntrack),
		nat:       tableOf[bpf.NatKey, bpf.NatEntry](ms, mapNat),
		nodeRows:  tableOf[bpf.Addr, bpf.Node](ms, mapNodes),
		settings:  tableOf[uint32, bpf.Settings](ms, mapSettings),
		epoch:     tableOf[uint32, uint32](ms, mapEpoch),
		news:      make(chan struct{}, 1),
		committed: make(chan struct{}, 1),
		attached:  map[uint32]*attachment{},
		hosts:     map[bpf.Addr]struct{}{},
		pods:      map[bpf.Addr]uint32{},
		cluster:   newOthers(),
	}
	d.audit.Store(cfg.Audit)
	d.traceAll.Store(cfg.TraceAll)
	d.hooks = newHooks(log, dir, cfg.ForceClsact)
	d.host = newHost(log, cfg)
	d.policy = newPolicyMaps(cfg, ms)
	d.prefixes = newPrefixMap(cfg, ms)
	return d
}

// restore reads back what a former agent wrote, so that ids go on where they stopped and rows without a device go.
func (d *Datapath) restore() error {
	if err := d.policy.restore(); err != nil {
		return err
	}
	if err := d.prefixes.restore(); err != nil {
		return err
	}
	e, _, err := d.epoch.get(0)
	if err != nil {
		return err
	}
	d.epochNow = e
	if err := d.restoreCluster(); err != nil {
		return err
	}
	return d.restoreAttachments()
}

// attachAll brings up porin_host and puts this agent's programs on every device. It replaces programs in place; the
// settings go first because the new programs read them with their first packet.
func (d *Datapath) attachAll() error {
	if err := d.host.ensure(); err != nil {
		return err
	}
	if !d.cfg.ForceClsact {
		switch err := haveTCX(d.progs[progHost], d.host.index()); {
		case errors.Is(err, ebpf.ErrNotSupported):
			d.hooks.clsact = true
		case err != nil:
			return fmt.Errorf("probe tcx links: %w", err)
		}
	}
	if d.hooks.clsact {
		d.fallbacks = append(d.fallbacks, "TCX links (Linux 6.6): clsact filters instead")
	}
	if err := d.writeSettings(); err != nil {
		return err
	}
	if err := d.syncHostPeers(); err != nil {
		return err
	}
	if err := d.hooks.adopt(d.cfg.BPFRoot); err != nil {
		return err
	}
	if err := d.attachHost(); err != nil {
		return err
	}
	for _, ifindex := range slices.Sorted(maps.Keys(d.attached)) {
		if err := d.hooks.attach(progPod, int(ifindex)); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return d.hooks.removeOtherKind()
}

// attachHost puts the node's programs on porin_host and on the uplinks, and takes them from former uplinks.
func (d *Datapath) attachHost() error {
	if err := d.hooks.attach(progHost, d.host.index()); err != nil {
		return err
	}
	ups := d.host.uplinkIndexes()
	if i := d.host.tunnelIndex(); i != 0 {
		if err := d.hooks.attach(progUplinkIngress, i); err != nil {
			return err
		}
	}
	for _, i := range ups {
		if err := errors.Join(d.hooks.attach(progUplinkIngress, i), d.hooks.attach(progUplinkEgress, i)); err != nil {
			return err
		}
	}
	return d.hooks.keepOnly(append(ups, d.host.tunnelIndex()))
}

// Close lets go of everything. Pins stay: traffic and policy go on.
func (d *Datapath) Close() error {
	if d.reader != nil {
		d.reader.Close()
	}
	d.hooks.close()
	closeAll(d.progs)
	for m := range maps.Values(d.maps) {
		m.Close()
	}
	return d.own.Close()
}

// Fallbacks names each kernel feature that is missing and what porin does instead.
func (d *Datapath) Fallbacks() []string { return slices.Clone(d.fallbacks) }

// Alarms returns what a person must see: full maps, locked endpoints, broken links.
func (d *Datapath) Alarms() []string { return d.alarms.list() }

// poke tells whoever waits on ch, now or later, that there is something to do.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// alarms are the present faults by subject.
type alarms struct {
	mu   sync.Mutex
	text map[string]string
}

// set raises the alarm of a subject, or clears it with "". It tells whether that changed anything.
func (a *alarms) set(subject, text string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.text[subject] == text {
		return false
	}
	if text == "" {
		delete(a.text, subject)
		return true
	}
	if a.text == nil {
		a.text = map[string]string{}
	}
	a.text[subject] = text
	return true
}

func (a *alarms) list() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]string, 0, len(a.text))
	for _, k := range sortedKeys(a.text) {
		out = append(out, a.text[k])
	}
	return out
}
