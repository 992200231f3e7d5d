package main

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"porin/bpf"
)

// redirect is TC_ACT_REDIRECT: the packet goes to its pod.
const redirect = 7

// testRunAttr is the part of union bpf_attr for BPF_PROG_TEST_RUN. The library's own call with a context does not tell
// the duration, and its call that tells the duration takes no context.
type testRunAttr struct {
	prog, retval, dataIn, dataOut uint32
	data, out                     uint64
	repeat, duration, ctxIn, ctxO uint32
	ctx, ctxOut                   uint64
	flags, cpu, batch, _          uint32
}

// bpfProgTestRun is BPF_PROG_TEST_RUN of enum bpf_cmd.
const bpfProgTestRun = 10

// testRun runs prog over packet as if it had come in at ifindex and returns the ns per run. The last run must return
// want.
func testRun(prog *ebpf.Program, packet []byte, ifindex, repeat, want uint32) (float64, error) {
	var ctx [192]byte // struct __sk_buff
	binary.NativeEndian.PutUint32(ctx[40:], ifindex)
	attr := testRunAttr{
		prog: uint32(prog.FD()), dataIn: uint32(len(packet)), data: uint64(uintptr(unsafe.Pointer(&packet[0]))),
		repeat: repeat, ctxIn: uint32(len(ctx)), ctx: uint64(uintptr(unsafe.Pointer(&ctx[0]))),
	}
	_, _, errno := unix.Syscall(unix.SYS_BPF, bpfProgTestRun, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(packet)
	runtime.KeepAlive(&ctx)
	if errno != 0 {
		return 0, fmt.Errorf("run %s: %w", prog, errno)
	}
	if attr.retval != want {
		return 0, fmt.Errorf("run %s: it returned %d, not %d", prog, int32(attr.retval), want)
	}
	return float64(attr.duration), nil
}

func emptyProgram() (*ebpf.Program, error) {
	return newProgram("empty", asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()})
}

func newProgram(name string, code asm.Instructions) (*ebpf.Program, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, Instructions: code, License: "Dual BSD/GPL"})
	if err != nil {
		return nil, fmt.Errorf("load program %s: %w", name, err)
	}
	return p, nil
}

// Sizes of the lookups, as in the notes on performance.
const (
	manyPeers      = 1 << 17
	manyIdentities = 1 << 14
)

// lookups measures what finding a peer and a verdict costs in maps of porin's own kind and shape, with random keys, above
// the same program without the lookups.
func (b *bench) lookups() error {
	spec, err := bpf.LoadPod()
	if err != nil {
		return fmt.Errorf("read the programs' maps: %w", err)
	}
	maps := map[string]*ebpf.Map{}
	for _, name := range []string{"peers", "policy_peers", "policy_ports"} {
		m, err := ebpf.NewMap(spec.Maps[name])
		if err != nil {
			return fmt.Errorf("make map %s: %w", name, err)
		}
		defer m.Close()
		maps[name] = m
	}
	if err := fill(maps); err != nil {
		return err
	}
	peerKey := asm.Instructions{ // ::ffff:X with X random among manyPeers
		asm.FnGetPrandomU32.Call(),
		asm.And.Imm(asm.R0, manyPeers-1),
		asm.StoreMem(asm.RFP, -4, asm.R0, asm.Word),
		asm.StoreImm(asm.RFP, -8, -65536, asm.Word),
		asm.StoreImm(asm.RFP, -12, 0, asm.Word),
		asm.StoreImm(asm.RFP, -16, 0, asm.Word),
	}
	policyKey := asm.Instructions{ // (1, random identity)
		asm.FnGetPrandomU32.Call(),
		asm.And.Imm(asm.R0, manyIdentities-1),
		asm.Add.Imm(asm.R0, firstIdentity),
		asm.StoreMem(asm.RFP, -4, asm.R0, asm.Word),
		asm.StoreImm(asm.RFP, -8, 1, asm.Word),
	}
	portKey := asm.Instructions{ // (table of the row, 80, TCP)
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
		asm.StoreMem(asm.RFP, -16, asm.R1, asm.Word),
		asm.StoreImm(asm.RFP, -12, port80TCP, asm.Word),
	}
	for _, c := range []struct {
		name         string
		with, before asm.Instructions
	}{
		{"peer_lookup_ns", concat(peerKey, lookup(maps["peers"], -16), found()), concat(peerKey, done())},
		{
			"policy_lookup_ns",
			concat(policyKey, lookup(maps["policy_peers"], -8), portKey, lookup(maps["policy_ports"], -16), found()),
			concat(policyKey, done()),
		},
	} {
		with, err := newProgram("with", c.with)
		if err != nil {
			return err
		}
		defer with.Close()
		before, err := newProgram("before", c.before)
		if err != nil {
			return err
		}
		defer before.Close()
		got, err := b.minNS(with, before, make([]byte, 64), 0, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		b.metrics.lowest(c.name, "ns", "the same program without it", got)
		progress("%s: %.0f", c.name, b.metrics[c.name].Value)
	}
	return nil
}

const (
	firstIdentity = 256
	port80TCP     = 0x00065000 // port 80 in network order, protocol 6, not wild: as a little-endian word
)

func fill(maps map[string]*ebpf.Map) error {
	keys, values := make([]bpf.Addr, manyPeers), make([]bpf.Peer, manyPeers)
	for i := range keys {
		binary.LittleEndian.PutUint32(keys[i][8:], 0xffff0000)
		binary.LittleEndian.PutUint32(keys[i][12:], uint32(i))
		values[i] = bpf.Peer{Identity: uint32(i) + firstIdentity}
	}
	if _, err := maps["peers"].BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("fill peers: %w", err)
	}
	const tables = 16
	subjects, rows := make([]bpf.PolicyPeerKey, manyIdentities), make([]bpf.PolicyPeer, manyIdentities)
	for i := range subjects {
		subjects[i] = bpf.PolicyPeerKey{Subject: 1, Identity: uint32(i) + firstIdentity}
		rows[i] = bpf.PolicyPeer{Table: uint32(i%tables) + 1}
	}
	if _, err := maps["policy_peers"].BatchUpdate(subjects, rows, nil); err != nil {
		return fmt.Errorf("fill policy_peers: %w", err)
	}
	for t := range tables {
		for port := range 64 {
			k := bpf.PolicyPortKey{Table: uint32(t) + 1, Port: bpf.PortFrom(uint16(60 + port)), Proto: 6}
			if err := maps["policy_ports"].Put(k, bpf.PolicyVerdict{Action: 1}); err != nil {
				return fmt.Errorf("fill policy_ports: %w", err)
			}
		}
	}
	return nil
}

// lookup finds the key on the stack; a miss ends the program with 1.
func lookup(m *ebpf.Map, key int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "miss"),
	}
}

func found() asm.Instructions {
	return asm.Instructions{
		asm.Mov.Imm(asm.R0, 0), asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("miss"), asm.Return(),
	}
}

func done() asm.Instructions { return asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()} }

func concat(parts ...asm.Instructions) asm.Instructions {
	var out asm.Instructions
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}
