package bpf_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/bpf/packet"
	"porin/internal/verdict"
)

// TestRootVLANOnTheWire sends a tagged frame over a real device. The kernel takes the tag out of a frame before programs see
// it, which a test run does not: only here does the program find it beside the packet.
func TestRootVLANOnTheWire(t *testing.T) {
	needRoot(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // ends with the goroutine, and the namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("make a network namespace: %v", err)
			return
		}
		tagged(t)
	}()
	<-done
}

func tagged(t *testing.T) {
	spec, err := bpf.LoadPod()
	if err != nil {
		t.Error(err)
		return
	}
	spec.Maps["conntrack"].MaxEntries, spec.Maps["nat"].MaxEntries = 1024, 1024
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Errorf("load the programs: %+v", err)
		return
	}
	defer c.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "host"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "pod"}); err != nil {
		t.Errorf("add a veth pair: %v", err)
		return
	}
	index := map[string]int{}
	var mac net.HardwareAddr
	for _, name := range []string{"host", "pod"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Errorf("set %s up: %v", name, err)
			return
		}
		index[name], mac = l.Attrs().Index, l.Attrs().HardwareAddr
	}
	ep := bpf.Endpoint{Identity: 1001, ID: 1, MAC: [6]byte(mac)}
	if err := c.Maps["endpoints"].Put(uint32(index["host"]), ep); err != nil {
		t.Errorf("write the endpoint: %v", err)
		return
	}
	if err := attachIngress(index["host"], c.Programs["pod_egress"]); err != nil {
		t.Errorf("attach pod_egress: %v", err)
		return
	}

	frame, err := packet.Parse("vlan 5 ip 10.0.0.10 > 10.0.0.11 udp 1 > 2 data 30", packet.Link{Src: packet.MAC(mac)})
	if err != nil {
		t.Error(err)
		return
	}
	if err := sendRaw(index["pod"], frame); err != nil {
		t.Errorf("send a tagged frame: %v", err)
		return
	}
	key := uint32(verdict.VLAN)*4 + uint32(verdict.Egress)
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
		var per []bpf.Counter
		if err := c.Maps["counters"].Lookup(key, &per); err != nil {
			t.Errorf("read the counter: %v", err)
			return
		}
		for _, n := range per {
			if n.Packets > 0 {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Error("the tagged frame was not counted as DROP_VLAN within a minute")
			return
		}
	}
}

// attachIngress attaches by a clsact filter, which every kernel has. It goes with the device.
func attachIngress(ifindex int, prog *ebpf.Program) error {
	if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}); err != nil {
		return fmt.Errorf("add clsact: %w", err)
	}
	return netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1,
		},
		Fd: prog.FD(), Name: "pod_egress", DirectAction: true,
	})
}

func sendRaw(ifindex int, frame []byte) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	proto := binary.NativeEndian.Uint16([]byte{0x81, 0x00})
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifindex, Protocol: proto})
}
