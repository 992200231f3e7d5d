package main

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"porin/internal/lab/space"
)

// redirectScene is the least that a path of two cables costs: a program of five instructions that hands every packet to
// the other pod, whoever sends it. What porin's path costs above it is porin's own. The links must be closed.
func (b *bench) redirectScene() (scene, []link.Link, error) {
	var ns [3]string
	for i, name := range []string{"redirect-c", "redirect-r", "redirect-s"} {
		var err error
		if ns[i], err = b.netns(name); err != nil {
			return scene{}, nil, err
		}
	}
	for i, end := range []string{ns[0], ns[2]} {
		gw := netip.MustParseAddr(fmt.Sprintf("10.78.%d.1", i+1))
		own := netip.MustParseAddr(fmt.Sprintf("10.78.%d.2", i+1))
		err := space.Connect(
			space.End{Netns: ns[1], Name: fmt.Sprintf("eth%d", i), Addrs: []netip.Prefix{netip.PrefixFrom(gw, 24)}},
			space.End{
				Netns: end, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(own, 24)},
				Routes: []space.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: gw}},
			})
		if err != nil {
			return scene{}, nil, err
		}
	}
	var links []link.Link
	err := space.InNetns(ns[1], func() error {
		var ends [2]*net.Interface
		for i := range ends {
			var err error
			if ends[i], err = net.InterfaceByName(fmt.Sprintf("eth%d", i)); err != nil {
				return fmt.Errorf("find a cable of the redirect scene: %w", err)
			}
		}
		for i, dev := range ends {
			l, err := attachRedirect(dev.Index, ends[1-i].Index)
			if err != nil {
				return err
			}
			links = append(links, l)
		}
		return nil
	})
	return scene{
		name: least, client: onCores(space.Where{Netns: ns[0]}), server: onCores(space.Where{Netns: ns[2]}),
		addr: netip.AddrPortFrom(netip.MustParseAddr("10.78.2.2"), loadPort),
	}, links, err
}

// attachRedirect sends everything but ARP that comes in at one device to the pod behind the other.
func attachRedirect(from, to int) (link.Link, error) {
	const protocol, arp = 16, 0x0608 // offset in struct __sk_buff; ETH_P_ARP as it stands in the frame
	p, err := newProgram("redirect", asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, protocol, asm.Word),
		asm.JEq.Imm(asm.R2, arp, "stack"),
		asm.Mov.Imm(asm.R1, int32(to)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirectPeer.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("stack"), // TCX_NEXT
		asm.Return(),
	})
	if err != nil {
		return nil, err
	}
	defer p.Close() // the link holds it
	l, err := link.AttachTCX(link.TCXOptions{Interface: from, Program: p, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return nil, fmt.Errorf("attach the redirect to device %d: %w", from, err)
	}
	return l, nil
}
