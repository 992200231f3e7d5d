// Package bench defines how the programs are timed: BPF_PROG_TEST_RUN on filled maps, the least of several runs, less
// the empty program.
// It reads the clock of the kernel's test runs and writes maps that it loaded itself and never pins.
// It never sends a packet.
package bench

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"porin/bpf"
	"porin/bpf/packet"
)

// Sizes that bench.bpf.c knows too.
const (
	peers         = 131072
	firstPeer     = 0x0a800000
	firstIdentity = 65536
	tables        = 16
	tablePorts    = 1000
)

// newFlows is how many flows all runs together begin.
const newFlows = 400_000

// Metric is one figure.
type Metric struct {
	Name     string
	Min, Max float64 // nanoseconds per packet, less the floor
	Runs     int
	About    string
}

// Code is the size of a program.
type Code struct {
	Program      string
	Instructions int    // after translation by the kernel
	Bytes        uint32 // of machine code
}

type rig struct {
	progs map[string]*ebpf.Program
	maps  map[string]*ebpf.Map
	close []func()
}

// Measure loads the programs, fills the maps and times them runs times, in turn, repeat packets each. Needs root.
func Measure(runs, repeat int) ([]Metric, []Code, error) {
	r, err := newRig()
	if r != nil {
		defer r.Close()
	}
	if err != nil {
		return nil, nil, err
	}
	if err := r.fill(); err != nil {
		return nil, nil, err
	}
	stop, err := r.drain()
	if err != nil {
		return nil, nil, err
	}
	defer stop()
	ms, err := r.time(runs, repeat)
	if err != nil {
		return nil, nil, err
	}
	code, err := r.code("pod_egress", "pod_egress4")
	return ms, code, err
}

func newRig() (*rig, error) {
	r := &rig{progs: map[string]*ebpf.Program{}, maps: map[string]*ebpf.Map{}}
	for _, load := range []func() (*ebpf.CollectionSpec, error){bpf.LoadPod, LoadBench} {
		spec, err := load()
		if err != nil {
			return r, err
		}
		spec.Maps["policy_ports"].MaxEntries = tables * 1024
		c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared(r.maps, spec)})
		if err != nil {
			return r, fmt.Errorf("load the programs to time: %w", err)
		}
		r.close = append(r.close, c.Close)
		maps.Copy(r.progs, c.Programs)
		for name, m := range c.Maps {
			if r.maps[name] == nil {
				r.maps[name] = m
			}
		}
	}
	return r, nil
}

func shared(have map[string]*ebpf.Map, spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	use := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if m := have[name]; m != nil {
			use[name] = m
		}
	}
	return use
}

// Close frees programs and maps.
func (r *rig) Close() {
	for _, f := range r.close {
		f()
	}
}

// One MAC for all: a test run repeats with the frame as the program left it.
func mac() packet.MAC { return packet.MAC{2, 0, 0, 0, 0, 1} }

func podA() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, 10}) }
func podB() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, 11}) }

// fill makes two pods, a at ifindex 1 (where test runs come in) and b at 2, that talk under both policies, 131,072 peers
// with an identity each, and 16 tables of 1,000 ports.
func (r *rig) fill() error {
	put := func(name string, key, value any) error {
		if err := r.maps[name].Put(key, value); err != nil {
			return fmt.Errorf("fill %s: %w", name, err)
		}
		return nil
	}
	if err := errors.Join(
		put("settings", uint32(0), bpf.Settings{HostIfindex: 3, World4: 2, World6: 2, GatewayMAC: mac()}),
		put("epoch", uint32(0), uint32(1)),
		put("endpoints", uint32(1), bpf.Endpoint{
			Identity: 1001, SubjectIn: 1, SubjectOut: 2, ID: 1, V4: bpf.AddrFrom(podA()), MAC: mac(),
		}),
		put("endpoints", uint32(2), bpf.Endpoint{
			Identity: 1002, SubjectIn: 1, SubjectOut: 2, ID: 2, V4: bpf.AddrFrom(podB()), MAC: mac(),
		}),
		put("peers", bpf.AddrFrom(podA()), bpf.Peer{Identity: 1001, Ifindex: 1, Flags: bpf.PeerLocal}),
		put("peers", bpf.AddrFrom(podB()), bpf.Peer{Identity: 1002, Ifindex: 2, Flags: bpf.PeerLocal}),
		put("policy_peers", bpf.PolicyPeerKey{Subject: 1}, bpf.PolicyPeer{Table: 100}),
		put("policy_peers", bpf.PolicyPeerKey{Subject: 2}, bpf.PolicyPeer{Table: 100}),
	); err != nil {
		return err
	}
	if err := r.fillPeers(); err != nil {
		return err
	}
	for n := range tables {
		for port := range tablePorts {
			key := bpf.PolicyPortKey{Table: uint32(100 + n), Proto: 6, Port: bpf.PortFrom(uint16(port + 1))}
			if err := put("policy_ports", key, bpf.PolicyVerdict{Action: 1, Cookie: 1}); err != nil {
				return err
			}
		}
	}
	return r.fillFlows()
}

func (r *rig) fillPeers() error {
	addrs, rows := make([]bpf.Addr, peers), make([]bpf.Peer, peers)
	keys, subjects := make([]bpf.PolicyPeerKey, peers), make([]bpf.PolicyPeer, peers)
	for n := range peers {
		a := uint32(firstPeer + n)
		addrs[n] = bpf.AddrFrom(netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)}))
		rows[n] = bpf.Peer{Identity: uint32(firstIdentity + n), Flags: bpf.PeerCluster}
		keys[n] = bpf.PolicyPeerKey{Subject: 2, Identity: uint32(firstIdentity + n)}
		subjects[n] = bpf.PolicyPeer{Table: uint32(100 + n%tables)}
	}
	if _, err := r.maps["peers"].BatchUpdate(addrs, rows, nil); err != nil {
		return fmt.Errorf("fill peers: %w", err)
	}
	if _, err := r.maps["policy_peers"].BatchUpdate(keys, subjects, nil); err != nil {
		return fmt.Errorf("fill policy_peers: %w", err)
	}
	return nil
}

type ctKey4 struct {
	Lo, Hi         [4]byte
	LoPort, HiPort bpf.Port
	Proto, Role    uint8
	_              uint16
}

// fillFlows makes the same live flow in both tables, as conntrack would have made it.
func (r *rig) fillFlows() error {
	e := bpf.CTEntry{
		Expires: 1 << 62, Epoch: 1, LoIfindex: 1, HiIfindex: 2, LoIdentity: 1001, HiIdentity: 1002, CookieOut: 1, CookieIn: 1,
		Action: 1, Flags: bpf.CTSeenReply, TCPFlags: 0x1f, LoMAC: mac(), HiMAC: mac(),
	}
	key := bpf.CTKey{
		Lo: bpf.AddrFrom(podA()), Hi: bpf.AddrFrom(podB()), LoPort: bpf.PortFrom(40000), HiPort: bpf.PortFrom(80), Proto: 6,
	}
	key4 := ctKey4{Lo: podA().As4(), Hi: podB().As4(), LoPort: key.LoPort, HiPort: key.HiPort, Proto: 6}
	if err := r.maps["conntrack"].Put(key, e); err != nil {
		return fmt.Errorf("fill conntrack: %w", err)
	}
	if err := r.maps["conntrack4"].Put(key4, e); err != nil {
		return fmt.Errorf("fill conntrack4: %w", err)
	}
	return nil
}

// drain reads events as the agent would, so that new flows pay for theirs.
func (r *rig) drain() (stop func(), err error) {
	rd, err := ringbuf.NewReader(r.maps["events"])
	if err != nil {
		return nil, fmt.Errorf("open the ring of events: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var rec ringbuf.Record
		for {
			// The programs wake nobody.
			rd.SetDeadline(time.Now().Add(time.Millisecond))
			if err := rd.ReadInto(&rec); errors.Is(err, os.ErrClosed) {
				return
			}
		}
	}()
	return func() {
		_ = rd.Close()
		<-done
	}, nil
}

// shape is one thing to time: a program, the floor below it, and what its last return value must be.
type shape struct {
	name, program, floor, about string
	code                        uint32
}

func shapes() []shape {
	return []shape{
		{"established_packet_ns", "pod_egress", "empty", "TCP packet of a live flow, pod to pod, both policies judged, 524,288-flow table", 7},
		{"established_packet_v4only_ns", "pod_egress4", "empty", "the same with 32-bit addresses in every key", 7},
		{"first_packet_ns", "first_packet", "random2", "new TCP flow to one of 131,072 identities: judged, inserted, reported", 7},
		{"policy_lookup_ns", "policy_row", "random1", "one of 16,000 rows (table, protocol, port) in a map of 16,384, exact", 0},
		{"policy_subject_ns", "policy_random", "random1", "(subject, identity) of 131,072, then its table's row", 0},
		{"peer_lookup_ns", "peer_lookup", "random1", "one of 131,072 addresses", 0},
	}
}

func (r *rig) time(runs, repeat int) ([]Metric, error) {
	frame, err := packet.Parse("ip 10.0.0.10 > 10.0.0.11 tcp 40000 > 80 A", packet.Link{Src: mac(), Dst: mac()})
	if err != nil {
		return nil, err
	}
	syn, err := packet.Parse("ip 10.0.0.10 > 10.0.0.11 tcp 40000 > 80 S", packet.Link{Src: mac(), Dst: mac()})
	if err != nil {
		return nil, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	least, most := map[string]float64{}, map[string]float64{}
	once := func(program string, want uint32) error {
		data, n := frame, repeat
		if program == "first_packet" {
			data, n = syn, min(repeat, newFlows/runs) // fewer than the table holds: nothing is evicted
		}
		code, took, err := r.progs[program].Benchmark(data, n, nil)
		if err != nil {
			return fmt.Errorf("time %s: %w", program, err)
		}
		if code != want {
			return fmt.Errorf("time %s: it returned %d, want %d: the packet did not take the path to be timed", program, code, want)
		}
		ns := float64(took) / float64(time.Nanosecond)
		if n, ok := least[program]; !ok || ns < n {
			least[program] = ns
		}
		most[program] = max(most[program], ns)
		return nil
	}
	for range runs {
		for _, floor := range []string{"empty", "random1", "random2"} {
			if err := once(floor, 0); err != nil {
				return nil, err
			}
		}
		for _, s := range shapes() {
			if err := once(s.program, s.code); err != nil {
				return nil, err
			}
		}
	}
	ms := []Metric{{Name: "empty_program_ns", Min: least["empty"], Max: most["empty"], Runs: runs, About: "floor: a program that does nothing"}}
	for _, s := range shapes() {
		ms = append(ms, Metric{
			Name: s.name, Min: least[s.program] - least[s.floor], Max: most[s.program] - least[s.floor], Runs: runs, About: s.about,
		})
	}
	return ms, nil
}

func (r *rig) code(programs ...string) ([]Code, error) {
	var cs []Code
	for _, name := range programs {
		info, err := r.progs[name].Info()
		if err != nil {
			return nil, fmt.Errorf("ask about %s: %w", name, err)
		}
		ins, err := info.Instructions()
		if err != nil {
			return nil, fmt.Errorf("ask about %s: %w", name, err)
		}
		size, err := info.JitedSize()
		if err != nil {
			return nil, fmt.Errorf("ask about %s: %w", name, err)
		}
		cs = append(cs, Code{Program: name, Instructions: len(ins), Bytes: size})
	}
	return cs, nil
}
