package datapath

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"porin/bpf"
	"porin/internal/identity"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// dump is all that the maps say, as text per map, but for times.
type dump map[string][][]string

func dumpOf(t testing.TB, d *Datapath) dump {
	t.Helper()
	out := dump{}
	for _, name := range []string{"endpoints", "policy", "ipcache", "ct", "nat"} {
		if err := d.ListMap(name, "", func(columns, row []string) error {
			for i, c := range columns {
				if c == "EXPIRES" || c == "IDLE" {
					row[i] = ""
				}
			}
			out[name] = append(out[name], row)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// linkIDs are the kernel's numbers of the pinned links.
func linkIDs(t testing.TB, dir layoutDir) map[string]link.ID {
	t.Helper()
	pins, err := os.ReadDir(dir.links())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]link.ID{}
	for _, e := range pins {
		l, err := link.LoadPinnedLink(filepath.Join(dir.links(), e.Name()), nil)
		if errors.Is(err, os.ErrNotExist) { // the agent removed it since it was listed
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = info.ID
		l.Close()
	}
	return out
}

// programOf is the program that a hook runs.
func programOf(t testing.TB, d *Datapath, prog string, ifindex int) ebpf.ProgramID {
	t.Helper()
	info, err := d.hooks.links[hook{prog, ifindex}].Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.Program
}

func idOf(t testing.TB, p *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

// busy fills a datapath with everything that must survive.
func busy(t testing.TB, d *Datapath) (ifindex int) {
	t.Helper()
	putAllow(t, d)
	if err := d.PutSubject(&policy.Subject{
		Key: "rules", Direction: verdict.Ingress, Isolated: true, Default: 9, Else: denyAll(),
		Peers: map[identity.ID]*policy.Table{1001: ports("web", 80, 80), 1002: ports("high", 1000, 2000)},
	}); err != nil {
		t.Fatal(err)
	}
	a, b := pod(t, 11), pod(t, 12)
	b.Ingress = "rules"
	a, b = wire(t, d, a), wire(t, d, b)
	if err := d.PutPrefixes(map[netip.Prefix]identity.ID{
		netip.MustParsePrefix("192.0.2.0/24"): identity.ScopeLocal + 1, netip.MustParsePrefix("2001:db8::/32"): identity.ScopeLocal + 2,
	}); err != nil {
		t.Fatal(err)
	}
	future := monotonic() + 1e12
	k := ctKeyOf(bpf.NatKey{Src: bpf.AddrFrom(a.IPv4), Dst: bpf.AddrFrom(b.IPv4), Sport: bpf.PortFrom(4000), Dport: bpf.PortFrom(80), Proto: 6})
	if err := d.conntrack.put(k, bpf.CTEntry{Expires: future, Epoch: d.epochNow, Action: uint8(verdict.Allow)}); err != nil {
		t.Fatal(err)
	}
	return a.Ifindex
}

func TestRootRestartChangesNothing(t *testing.T) {
	n := newNode(t)
	d := n.open()
	ifindex := busy(t, d)
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	rows, links, epoch, prog := dumpOf(t, d), linkIDs(t, d.dir), d.epochNow, programOf(t, d, progPod, ifindex)
	if len(links) < 3 || len(rows["endpoints"]) != 2 || len(rows["ct"]) != 1 {
		t.Fatalf("before: links %v, rows %v", links, rows)
	}
	d.Close()

	d = n.open()
	if got := dumpOf(t, d); !reflect.DeepEqual(got, rows) {
		t.Errorf("maps changed:\n got %v\nwant %v", got, rows)
	}
	if got := linkIDs(t, d.dir); !reflect.DeepEqual(got, links) {
		t.Errorf("links changed: got %v, want %v", got, links)
	}
	if d.epochNow != epoch {
		t.Errorf("epoch %d, want %d: cached verdicts must stay good", d.epochNow, epoch)
	}
	if got := programOf(t, d, progPod, ifindex); got != prog {
		t.Errorf("device runs program %d, want %d: the objects are the same", got, prog)
	}
	want := map[netip.Prefix]identity.ID{
		netip.MustParsePrefix("192.0.2.0/24"): identity.ScopeLocal + 1, netip.MustParsePrefix("2001:db8::/32"): identity.ScopeLocal + 2,
	}
	if got := d.RestoredPrefixes(); !reflect.DeepEqual(got, want) {
		t.Errorf("restored prefixes %v, want %v", got, want)
	}
	// ids of a former agent are never given out again
	before := d.policy.nextSubject
	putAllow(t, d)
	for _, r := range rows["policy"] {
		for _, s := range d.policy.subjects {
			if r[0] == num(s.id) {
				t.Errorf("subject id %d is used twice", s.id)
			}
		}
	}
	if before < 4 {
		t.Errorf("next subject id is %d after 3 subjects", before)
	}
}

func TestRootLayoutChangeMigrates(t *testing.T) {
	n := newNode(t)
	d := n.open()
	ifindex := busy(t, d)
	rows, links, old := dumpOf(t, d), linkIDs(t, d.dir), d.dir
	d.Close()

	n.cfg.MapSizes[mapConntrack] = 8192 // same shape, other size
	d = n.open()
	if d.dir == old {
		t.Fatal("the layout did not change")
	}
	if got := dumpOf(t, d); !reflect.DeepEqual(got, rows) {
		t.Errorf("rows after migration:\n got %v\nwant %v", got, rows)
	}
	if got := linkIDs(t, d.dir); !reflect.DeepEqual(got, links) {
		t.Errorf("links changed: got %v, want %v", got, links)
	}
	if exists(string(old)) {
		t.Errorf("old layout %s is still there", old)
	}
	if got, want := programOf(t, d, progPod, ifindex), idOf(t, d.progs[progPod]); got != want {
		t.Errorf("device runs program %d, want %d", got, want)
	}
	d.Close()

	// other shape: the flows are lost and named, the rest stays
	n.sets = func() []*ebpf.CollectionSpec {
		sets := plainSets(t)
		ct := sets[0].Maps[mapConntrack]
		s := btf.Copy(btf.UnderlyingType(ct.Value)).(*btf.Struct)
		s.Members[0].Name = "renamed"
		ct.Value = s
		return sets
	}
	d = n.open()
	got := dumpOf(t, d)
	if len(got["ct"]) != 0 {
		t.Errorf("conntrack of another shape was copied: %v", got["ct"])
	}
	if !reflect.DeepEqual(got["policy"], rows["policy"]) || !reflect.DeepEqual(got["endpoints"], rows["endpoints"]) {
		t.Errorf("policy or endpoints lost: %v", got)
	}
	if !strings.Contains(n.logs.String(), "lost=[conntrack]") {
		t.Errorf("the log does not name what is lost:\n%s", n.logs)
	}
}

// A new binary replaces the programs in place: the links stay, what they run changes.
func TestRootNewObjectsReplacePrograms(t *testing.T) {
	n := newNode(t)
	d := n.open()
	ifindex := busy(t, d)
	rows, links, prog := dumpOf(t, d), linkIDs(t, d.dir), programOf(t, d, progPod, ifindex)
	d.Close()
	old := n.sets
	n.sets = func() []*ebpf.CollectionSpec {
		sets := old()
		p := sets[0].Programs[progPod]
		p.Instructions = append(asm.Instructions{asm.Mov.Imm(asm.R0, 0)}, p.Instructions...)
		return sets
	}
	for range 2 {
		d = n.open()
		now := programOf(t, d, progPod, ifindex)
		if now == prog || now != idOf(t, d.progs[progPod]) {
			t.Errorf("device runs program %d, before %d, want the new agent's %d", now, prog, idOf(t, d.progs[progPod]))
		}
		if got := linkIDs(t, d.dir); !reflect.DeepEqual(got, links) {
			t.Errorf("links changed: got %v, want %v", got, links)
		}
		if got := dumpOf(t, d); !reflect.DeepEqual(got, rows) {
			t.Errorf("maps changed:\n got %v\nwant %v", got, rows)
		}
		d.Close()
	}
	// pins that are not what the note says are not believed
	n.sets = old
	if err := os.Remove(filepath.Join(d.dir.progs(), progHost)); err != nil {
		t.Fatal(err)
	}
	d = n.open()
	if got, want := programOf(t, d, progHost, d.host.index()), idOf(t, d.progs[progHost]); got != want {
		t.Errorf("porin_host runs program %d, want %d", got, want)
	}
}

// A program that the verifier refuses, and an object without a program, leave the former agent's programs in force.
func TestRootBadObjectLeavesOldProgramsInForce(t *testing.T) {
	n := newNode(t)
	d := n.open()
	ifindex := busy(t, d)
	rows, prog := dumpOf(t, d), programOf(t, d, progPod, ifindex)
	d.Close()
	good := n.sets
	for name, spoil := range map[string]func(*ebpf.CollectionSpec){
		"verifier": func(s *ebpf.CollectionSpec) {
			s.Programs[progUplinkEgress].Instructions = asm.Instructions{asm.LoadMem(asm.R0, asm.R5, 0, asm.DWord), asm.Return()}
		},
		"no program": func(s *ebpf.CollectionSpec) { delete(s.Programs, progHost) },
		"no map":     func(s *ebpf.CollectionSpec) { delete(s.Maps, mapNat) },
		"verifier, other layout": func(s *ebpf.CollectionSpec) {
			s.Maps[mapEndpoints].MaxEntries++
			s.Programs[progPod].Instructions = asm.Instructions{asm.LoadMem(asm.R0, asm.R5, 0, asm.DWord), asm.Return()}
		},
	} {
		n.sets = func() []*ebpf.CollectionSpec { s := good(); spoil(s[0]); return s }
		if _, err := n.tryOpen(); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	l, err := link.LoadPinnedLink(filepath.Join(d.dir.links(), hook{progPod, ifindex}.pinName()), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil || info.Program != prog || !alive(l) {
		t.Errorf("after failed starts the device runs %v (%v), want program %d", info, err, prog)
	}
	if dirs := layouts(n.cfg.BPFRoot); len(dirs) != 1 {
		t.Errorf("layouts after failed starts: %v", dirs)
	}
	n.sets = good
	if got := dumpOf(t, n.open()); !reflect.DeepEqual(got, rows) {
		t.Errorf("maps changed:\n got %v\nwant %v", got, rows)
	}
}

// Somebody removed map pins while no agent ran: the programs still hold the maps, and the next agent finds them there.
func TestRootLostMapPinsAreRecovered(t *testing.T) {
	n := newNode(t)
	d := n.open()
	busy(t, d)
	rows := dumpOf(t, d)
	d.Close()
	for _, name := range []string{mapConntrack, mapPolicyPorts, mapEndpoints} {
		if err := os.Remove(d.dir.mapPin(name)); err != nil {
			t.Fatal(err)
		}
	}
	if got := dumpOf(t, n.open()); !reflect.DeepEqual(got, rows) {
		t.Errorf("maps changed:\n got %v\nwant %v", got, rows)
	}
}

// Where anybody may make folders in bpffs, nobody else's is taken for ours.
func TestRootForeignPinFolderIsRefused(t *testing.T) {
	n := newNode(t)
	if err := mountBPF(n.cfg.BPFRoot); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(n.cfg.BPFRoot, "porin")
	for name, spoil := range map[string]func() error{
		"writable by all": func() error { return os.Chmod(dir, 0o777) },
		"of another user": func() error { return os.Chown(dir, 65534, 65534) },
	} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := n.tryOpen(); err == nil || !strings.Contains(err.Error(), "pin folder") {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRootWrongFileSystemIsRefused(t *testing.T) {
	n := newNode(t)
	if err := os.MkdirAll(n.cfg.BPFRoot, 0o700); err != nil {
		t.Fatal(err)
	}
	mountTmpfs(t, n.cfg.BPFRoot)
	_, err := n.tryOpen()
	if err == nil || !strings.Contains(err.Error(), "tmpfs") {
		t.Fatalf("open on tmpfs: %v", err)
	}
}

// Two agents with folders of their own, but the same pins: the second one must not even look at them.
func TestRootTwoAtOnce(t *testing.T) {
	n := newNode(t)
	d := n.open()
	if _, err := n.tryOpen(); err == nil || !strings.Contains(err.Error(), "another porin-agent runs") {
		t.Fatalf("a second one opened: %v", err)
	}
	d.Close()
	n.open()
}
