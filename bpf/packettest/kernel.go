// Package packettest defines a kernel to send packets through: the real programs with maps that a test fills, in a
// network namespace of their own with the devices of a small node.
// It reads rows and packets from tests and writes the maps of the programs that it loaded, never pinned.
// It never sends anything on a wire: packets go through BPF_PROG_TEST_RUN.
package packettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/internal/verdict"
)

// Verdicts of enum verdict in bpf/include/verdict.h.
const (
	Drop     uint8 = 1
	Stack    uint8 = 2
	Redirect uint8 = 3
	Peer     uint8 = 4
	Neigh    uint8 = 5
	Reply    uint8 = 6
	Host     uint8 = 7
	Tunnel   uint8 = 8
	TooBig   uint8 = 9
)

// Kernel is the loaded programs with their maps and the namespace in which packets run.
type Kernel struct {
	progs   map[string]*ebpf.Program
	maps    map[string]*ebpf.Map
	events  *ringbuf.Reader
	calls   chan func()
	cpu     int
	verdict uint32 // offsets in struct packet
	reason  uint32
	out     uint32
	node    *node
}

// Option changes the specs before they are loaded.
type Option func(maps map[string]*ebpf.MapSpec)

// SmallConntrack makes conntrack a plain hash of n flows, which can be full.
func SmallConntrack(n uint32) Option {
	return func(maps map[string]*ebpf.MapSpec) {
		maps["conntrack"].Type = ebpf.Hash
		maps["conntrack"].MaxEntries = n
	}
}

// New loads the programs and builds the node's devices. All of it is gone when the test ends.
func New(t testing.TB, opts ...Option) *Kernel {
	t.Helper()
	k, err := open(t, opts)
	if err != nil {
		t.Fatalf("packettest: %+v", err)
	}
	k.Reset(t)
	return k
}

func open(t testing.TB, opts []Option) (*Kernel, error) {
	k := &Kernel{progs: map[string]*ebpf.Program{}, maps: map[string]*ebpf.Map{}, calls: make(chan func())}
	started := make(chan error)
	done := make(chan struct{})
	go k.work(started, done)
	t.Cleanup(func() {
		close(k.calls)
		<-done
	})
	if err := <-started; err != nil {
		return nil, err
	}
	if err := k.load(t, opts); err != nil {
		return nil, err
	}
	rd, err := ringbuf.NewReader(k.maps["events"])
	if err != nil {
		return nil, fmt.Errorf("open the ring of events: %w", err)
	}
	k.events = rd
	t.Cleanup(func() { _ = rd.Close() })
	var build error
	k.do(func() { k.node, build = newNode() })
	return k, build
}

// work runs calls on one thread in a namespace of its own and pinned to one CPU, because test runs happen in the
// caller's namespace and leave their state on the caller's CPU. The thread ends with the goroutine, the namespace
// with the thread.
func (k *Kernel) work(started chan<- error, done chan<- struct{}) {
	defer close(done)
	runtime.LockOSThread()
	var set unix.CPUSet
	err := unix.SchedGetaffinity(0, &set)
	if err == nil {
		for !set.IsSet(k.cpu) {
			k.cpu++
		}
		set.Zero()
		set.Set(k.cpu)
		err = unix.SchedSetaffinity(0, &set)
	}
	if err != nil {
		started <- fmt.Errorf("pin the test thread to a CPU: %w", err)
		return
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		started <- fmt.Errorf("make a network namespace (needs root: run with sudo): %w", err)
		return
	}
	started <- nil
	for f := range k.calls {
		f()
	}
}

func (k *Kernel) do(f func()) {
	done := make(chan struct{})
	k.calls <- func() {
		defer close(done)
		f()
	}
	<-done
}

// sized are the maps that need not have their full size here.
func sized() map[string]uint32 {
	return map[string]uint32{"conntrack": 8192, "nat": 8192, "events": 1 << 20}
}

func (k *Kernel) load(t testing.TB, opts []Option) error {
	for _, load := range []func() (*ebpf.CollectionSpec, error){bpf.LoadPod, bpf.LoadHost} {
		spec, err := load()
		if err != nil {
			return err
		}
		for name, n := range sized() {
			spec.Maps[name].MaxEntries = n
		}
		for _, o := range opts {
			o(spec.Maps)
		}
		if err := k.offsets(spec.Maps["scratch"]); err != nil {
			return err
		}
		// Both sets share all maps but scratch, as on a node; here scratch too, so that one place tells the verdict.
		c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: k.maps})
		if err != nil {
			return fmt.Errorf("load the programs: %w", err)
		}
		t.Cleanup(c.Close)
		maps.Copy(k.progs, c.Programs)
		for name, m := range c.Maps {
			if k.maps[name] == nil {
				k.maps[name] = m
			}
		}
	}
	return nil
}

// offsets finds the fields of struct packet that say what became of the last one.
func (k *Kernel) offsets(scratch *ebpf.MapSpec) error {
	s, ok := btf.UnderlyingType(scratch.Value).(*btf.Struct)
	if !ok {
		return fmt.Errorf("scratch has no struct as value: %v", scratch.Value)
	}
	for name, at := range map[string]*uint32{"verdict": &k.verdict, "reason": &k.reason, "out_ifindex": &k.out} {
		found := false
		for _, m := range s.Members {
			if m.Name == name {
				*at, found = m.Offset.Bytes(), true
			}
		}
		if !found {
			return fmt.Errorf("struct packet has no field %s", name)
		}
	}
	return nil
}

// skb is struct __sk_buff.
type skb struct {
	_              uint32 // len
	_              uint32 // pkt_type
	Mark           uint32
	_              [5]uint32 // queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto
	Priority       uint32
	IngressIfindex uint32
	Ifindex        uint32
	_              uint32 // tc_index
	_              [5]uint32
	_              [7]uint32 // hash, tc_classid, data, data_end, napi_id, family, remote_ip4
	_              uint32
	_              [8]uint32 // remote_ip6, local_ip6
	_              [3]uint32 // remote_port, local_port, data_meta
	_              uint64    // flow_keys
	_              uint64    // tstamp
	_              uint32    // wire_len
	_              uint32    // gso_segs
	_              uint64    // sk
	GSOSize        uint32
	_              uint32 // tstamp_type
	_              uint64 // hwtstamp
}

// Input is a packet and how it comes.
type Input struct {
	Program  string
	Ifindex  uint32
	Frame    []byte
	Mark     uint32
	Priority uint32
	GSOSize  uint32
	From     uint32 // device by which the stack got it, 0 for its own packets
	Complete bool   // the device has summed the packet up (CHECKSUM_COMPLETE), and the kernel checks the sum afterwards
}

// Result is what became of a packet.
type Result struct {
	Verdict  uint8 // Drop, Stack, ...
	Reason   verdict.Reason
	Ifindex  uint32 // where it leaves, 0 when dropped or passed on
	Code     uint32 // what the program returned to the kernel
	Frame    []byte
	Mark     uint32
	Priority uint32
	Events   []bpf.Event
}

// checksumComplete is BPF_F_TEST_SKB_CHECKSUM_COMPLETE of linux/bpf.h, from kernel 6.16.
const checksumComplete = 1 << 2

// Send runs one packet.
func (k *Kernel) Send(t testing.TB, in Input) Result {
	t.Helper()
	r, err := k.send(in)
	if err != nil {
		t.Fatalf("send %d bytes through %s: %v", len(in.Frame), in.Program, err)
	}
	return r
}

func (k *Kernel) send(in Input) (Result, error) {
	prog := k.progs[in.Program]
	if prog == nil {
		return Result{}, fmt.Errorf("there is no program %q", in.Program)
	}
	before := skb{Mark: in.Mark, Priority: in.Priority, Ifindex: in.Ifindex, GSOSize: in.GSOSize, IngressIfindex: in.From}
	var after skb
	opts := &ebpf.RunOptions{Data: in.Frame, DataOut: make([]byte, len(in.Frame)+256), Context: before, ContextOut: &after}
	if in.Complete {
		opts.Flags |= checksumComplete
	}
	var code uint32
	var err error
	var scratch [][]byte
	k.do(func() {
		if code, err = prog.Run(opts); err == nil {
			err = k.maps["scratch"].Lookup(uint32(0), &scratch)
		}
	})
	if err != nil {
		return Result{}, err
	}
	p := scratch[k.cpu]
	r := Result{
		Verdict: p[k.verdict], Reason: verdict.Reason(p[k.reason]), Ifindex: binary.NativeEndian.Uint32(p[k.out:]),
		Code: code, Frame: opts.DataOut, Mark: after.Mark, Priority: after.Priority,
	}
	if code == 1<<32-1 { // a program may pass a packet on before it looks at it
		r.Verdict = Stack
	}
	if r.Verdict == Drop || r.Verdict == Stack {
		r.Ifindex = 0
	}
	if r.Verdict != Drop && r.Verdict != TooBig {
		r.Reason = verdict.None
	}
	r.Events, err = k.drain()
	return r, err
}

// plainTunnelPort puts a fixed number in the place of a tunnel's source port, which the kernel's secret decides, and
// returns what was there. The outer datagram has no checksum.
func plainTunnelPort(frame []byte) (port uint16) {
	at := 14 + 20
	if frame[12] == 0x86 {
		at = 14 + 40
	}
	port = binary.BigEndian.Uint16(frame[at:])
	binary.BigEndian.PutUint16(frame[at:], 49152)
	return port
}

// drain reads the events that are in the ring.
func (k *Kernel) drain() ([]bpf.Event, error) {
	var es []bpf.Event
	for {
		k.events.SetDeadline(time.Unix(1, 0))
		rec, err := k.events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return es, nil
		}
		if err != nil {
			return es, fmt.Errorf("read the ring of events: %w", err)
		}
		var e bpf.Event
		if !e.Decode(rec.RawSample) {
			return es, fmt.Errorf("an event of %d bytes is not what types.h says", len(rec.RawSample))
		}
		es = append(es, e)
	}
}

// Map returns a map of the programs, to fill as the datapath would.
func (k *Kernel) Map(name string) *ebpf.Map { return k.maps[name] }

// Put writes a row.
func (k *Kernel) Put(t testing.TB, mapName string, key, value any) {
	t.Helper()
	m := k.maps[mapName]
	if m == nil {
		t.Fatalf("there is no map %q", mapName)
	}
	if err := m.Put(key, value); err != nil {
		t.Fatalf("write %s row %v: %v", mapName, key, err)
	}
}

// Program returns a loaded program, for benchmarks.
func (k *Kernel) Program(name string) *ebpf.Program { return k.progs[name] }

// Do runs f on the kernel's thread: in its namespace, on its CPU.
func (k *Kernel) Do(f func()) { k.do(f) }

// Time returns how long a program takes for a frame, in nanoseconds: the mean of repeat runs on one packet, which
// comes in by the loopback device (ifindex 1) and keeps what the program has changed of it.
func (k *Kernel) Time(t testing.TB, program string, frame []byte, repeat int) float64 {
	t.Helper()
	var took time.Duration
	var err error
	k.do(func() { _, took, err = k.progs[program].Benchmark(frame, repeat, nil) })
	if err != nil {
		t.Fatalf("time %s: %v", program, err)
	}
	return float64(took.Nanoseconds())
}
