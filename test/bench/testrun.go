package main

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
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
	errno := unix.EINTR
	for errno == unix.EINTR { // Go's scheduler interrupts long calls
		_, _, errno = unix.Syscall(unix.SYS_BPF, bpfProgTestRun, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	}
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
