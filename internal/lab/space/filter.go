package space

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Loss says which share of the frames between a device and a peer is lost.
type Loss struct {
	Peer  net.HardwareAddr // none: everybody
	Share float64          // 0 to 1
}

// Filter loses frames on a device of the namespace, in both directions: those to a peer that come in, those from it that
// go out (the device is the far end of the peer's partner). No losses lets everything pass. The programs hang on the
// device itself, so nothing needs to run, and they go with it. The first call for a device makes the place for them, which
// costs the packets of that moment (the kernel takes its queue away for a while): call it before there are any.
func Filter(netnsFile, dev string, losses []Loss) error {
	return InNetns(netnsFile, func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("find %s: %w", dev, err)
		}
		if err := addClsact(link); err != nil {
			return err
		}
		for _, way := range []struct {
			parent uint32
			at     int32 // of the peer's address in the frame
		}{{netlink.HANDLE_MIN_INGRESS, 0}, {netlink.HANDLE_MIN_EGRESS, 6}} {
			if len(losses) == 0 {
				err = detachLoss(link, way.parent)
			} else {
				err = attachLoss(link, way.parent, losses, way.at)
			}
			if err != nil {
				return fmt.Errorf("filter on %s: %w", dev, err)
			}
		}
		return nil
	})
}

// Blackhole drops what a device of the namespace receives, after packet sockets have seen it, so that the namespace's own
// network stack does not answer. It goes with the device, or with Filter without losses.
func Blackhole(netnsFile, dev string) error {
	return InNetns(netnsFile, func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("find %s: %w", dev, err)
		}
		if err := addClsact(link); err != nil {
			return err
		}
		if err := attachLoss(link, netlink.HANDLE_MIN_INGRESS, []Loss{{Share: 1}}, 0); err != nil {
			return fmt.Errorf("black hole on %s: %w", dev, err)
		}
		return nil
	})
}

func clsact(link netlink.Link) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func addClsact(link netlink.Link) error {
	if err := netlink.QdiscAdd(clsact(link)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("prepare %s for a filter: %w", link.Attrs().Name, err)
	}
	return nil
}

func detachLoss(link netlink.Link, parent uint32) error {
	list, err := netlink.FilterList(link, parent)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	for _, f := range list {
		if err := netlink.FilterDel(f); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
	}
	return nil
}

func attachLoss(link netlink.Link, parent uint32, losses []Loss, at int32) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lab_loss", Type: ebpf.SchedCLS, License: "GPL", Instructions: lossProgram(losses, at),
	})
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	defer prog.Close() // the filter holds it
	err = netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index, Parent: parent, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		Fd: prog.FD(), Name: "lab_loss", DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}

const (
	actPass = -1 // TC_ACT_UNSPEC
	actShot = 2
)

// lossProgram: for each loss in turn, if the frame is the peer's, draw a number and drop the frame if it is below the
// share. Loading bytes by themselves needs no bounds check of the packet: the old packet loads end the program with 0,
// which lets the frame pass, if it is too short.
func lossProgram(losses []Loss, at int32) asm.Instructions {
	ins := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	for i, l := range losses {
		next := fmt.Sprintf("rule%d", i+1)
		first := len(ins)
		if len(l.Peer) == 6 {
			ins = append(ins,
				asm.LoadAbs(at, asm.Word), // converts to host order
				asm.JNE.Imm32(asm.R0, int32(binary.BigEndian.Uint32(l.Peer[:4])), next),
				asm.LoadAbs(at+4, asm.Half),
				asm.JNE.Imm32(asm.R0, int32(binary.BigEndian.Uint16(l.Peer[4:])), next),
			)
		}
		if l.Share < 1 {
			ins = append(ins,
				asm.FnGetPrandomU32.Call(),
				// the number is unsigned: compare in 64 bits, with both below 2^32
				asm.LSh.Imm(asm.R0, 32), asm.RSh.Imm(asm.R0, 32),
				asm.LoadImm(asm.R1, int64(math.Round(l.Share*(1<<32))), asm.DWord),
				asm.JGE.Reg(asm.R0, asm.R1, next),
			)
		}
		ins = append(ins, asm.Mov.Imm(asm.R0, actShot), asm.Return())
		if i > 0 {
			ins[first] = ins[first].WithSymbol(fmt.Sprintf("rule%d", i))
		}
		if len(l.Peer) != 6 && l.Share >= 1 {
			return ins // nothing is left for what follows, and the verifier wants no dead code
		}
	}
	return append(ins, asm.Mov.Imm(asm.R0, actPass).WithSymbol(fmt.Sprintf("rule%d", len(losses))), asm.Return())
}
