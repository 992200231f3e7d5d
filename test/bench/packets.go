package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"

	"porin/bpf"
	bpfbench "porin/bpf/bench"
	"porin/internal/lab/space"
)

// packets times the programs with BPF_PROG_TEST_RUN: alone on full maps, as package bpf/bench does it, and then those of
// a running agent, where a first packet also meets the agent's reader of events.
func (b *bench) packets(ctx context.Context) (err error) {
	alone, _, err := bpfbench.Measure(runs, 100_000)
	if err != nil {
		return err
	}
	for _, m := range alone {
		b.metrics[m.Name] = metric{Value: m.Min, Unit: "ns", Runs: m.Runs, Min: m.Min, Max: m.Max, Against: "an empty program"}
		progress("%s: %.0f (%s)", m.Name, m.Min, m.About)
	}
	pod, down, err := b.podScene(ctx, ours, b.binDir)
	defer func() { err = errors.Join(err, down()) }()
	if err != nil {
		return err
	}
	n, err := openNode(b.agentPID)
	if err != nil {
		return err
	}
	defer n.close()
	// devices of the context are looked up in the network namespace of the thread that asks
	return space.InNetns(b.nodeNetns, func() error { return b.flows(n, pod) })
}

// node is the programs and maps of a running agent.
type node struct {
	prog *ebpf.Program
	maps map[string]*ebpf.Map
}

// openNode takes pod_egress and its maps from what the agent holds: the very objects that packets meet.
func openNode(agent int) (*node, error) {
	ids, err := programIDs(agent)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		prog, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return nil, fmt.Errorf("open program %d: %w", id, err)
		}
		info, err := prog.Info()
		if err != nil {
			return nil, fmt.Errorf("read program %d: %w", id, err)
		}
		if info.Name != "pod_egress" {
			prog.Close()
			continue
		}
		n := &node{prog: prog, maps: map[string]*ebpf.Map{}}
		list, _ := info.MapIDs()
		for _, mid := range list {
			m, err := ebpf.NewMapFromID(mid)
			if err != nil {
				return nil, fmt.Errorf("open map %d: %w", mid, err)
			}
			mi, err := m.Info()
			if err != nil {
				return nil, fmt.Errorf("read map %d: %w", mid, err)
			}
			n.maps[mi.Name] = m
		}
		for _, name := range []string{"endpoints", "settings"} {
			if n.maps[name] == nil {
				return nil, fmt.Errorf("pod_egress uses no map called %s", name)
			}
		}
		return n, nil
	}
	return nil, fmt.Errorf("process %d holds no program called pod_egress", agent)
}

func (n *node) close() {
	n.prog.Close()
	for _, m := range n.maps {
		m.Close()
	}
}

// end is a pod as the programs know it.
type end struct {
	ifindex uint32
	row     bpf.Endpoint
}

// end returns the pod with the address. Its MAC is set to the gateway's in the programs' map: then what a run rewrites
// in the packet leaves it as it was, and the next run of the same packet meets the same packet.
func (n *node) end(addr netip.Addr, gateway [6]byte) (end, error) {
	it := n.maps["endpoints"].Iterate()
	var e end
	for it.Next(&e.ifindex, &e.row) {
		if e.row.V4.Netip() == addr {
			e.row.MAC = gateway
			if err := n.maps["endpoints"].Put(e.ifindex, e.row); err != nil {
				return e, fmt.Errorf("set the MAC of %s: %w", addr, err)
			}
			return e, nil
		}
	}
	return e, fmt.Errorf("the programs know no pod with address %s: %w", addr, errors.Join(it.Err(), os.ErrNotExist))
}

// TCP flags.
const (
	syn = 2
	psh = 8
	ack = 16
)

func (b *bench) flows(n *node, pod scene) error {
	var s bpf.Settings
	if err := n.maps["settings"].Lookup(uint32(0), &s); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	client, err := n.end(b.clientAddr, s.GatewayMAC)
	if err != nil {
		return err
	}
	server, err := n.end(pod.addr.Addr(), s.GatewayMAC)
	if err != nil {
		return err
	}
	nothing, err := emptyProgram()
	if err != nil {
		return err
	}
	defer nothing.Close()
	packet := func(from, to end, sport, dport uint16, flags byte) []byte {
		return tcpPacket(s.GatewayMAC, from.row.V4.Netip(), to.row.V4.Netip(), sport, dport, flags)
	}
	// a flow with an answer
	const sport = 40000
	for _, p := range []struct {
		at   end
		data []byte
	}{
		{client, packet(client, server, sport, loadPort, syn)},
		{server, packet(server, client, loadPort, sport, syn|ack)},
		{client, packet(client, server, sport, loadPort, ack)},
		{client, packet(client, server, sport, loadPort, psh|ack)},
		{server, packet(server, client, loadPort, sport, psh|ack)},
	} {
		if _, err := testRun(n.prog, p.data, p.at.ifindex, 1, redirect); err != nil {
			return fmt.Errorf("set up the flow: %w", err)
		}
	}
	for name, p := range map[string]struct {
		at   end
		data []byte
	}{
		"live_established_packet_ns": {client, packet(client, server, sport, loadPort, ack)},
		"live_reply_packet_ns":       {server, packet(server, client, loadPort, sport, ack)},
	} {
		got, err := b.minNS(n.prog, nothing, p.data, p.at.ifindex, redirect)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		b.metrics.lowest(name, "ns", "an empty program", got)
		progress("%s: %.0f", name, b.metrics[name].Value)
	}
	return b.firstPackets(n, nothing, packet, client, server)
}

// firstPackets sends each packet of a flow of its own once: conntrack entry, both policies, the event and its wake-up.
func (b *bench) firstPackets(n *node, nothing *ebpf.Program, packet func(end, end, uint16, uint16, byte) []byte, client, server end) error {
	const perRun = 500
	var floors, all []float64
	for range runs {
		var times, empty []float64
		for range perRun {
			p := packet(client, server, uint16(1024+rand.IntN(64000)), loadPort, syn)
			ns, err := testRun(nothing, p, client.ifindex, 1, 0)
			if err != nil {
				return err
			}
			empty = append(empty, ns)
			if ns, err = testRun(n.prog, p, client.ifindex, 1, redirect); err != nil {
				return fmt.Errorf("live_first_packet_ns: %w", err)
			}
			times = append(times, ns)
		}
		slices.Sort(times)
		slices.Sort(empty)
		all = append(all, times[perRun/2])
		floors = append(floors, empty[perRun/2])
	}
	floor := slices.Min(floors)
	for i := range all {
		all[i] -= floor
	}
	b.metrics.lowest("live_first_packet_ns", "ns", "an empty program", all)
	progress("live_first_packet_ns: %.0f", b.metrics["live_first_packet_ns"].Value)
	return nil
}

// runs of each measurement; the lowest counts, because other work on the machine only ever adds.
const runs = 21

// minNS returns, for every run, the ns per packet above the empty program's lowest.
func (b *bench) minNS(prog, nothing *ebpf.Program, data []byte, ifindex uint32, want uint32) ([]float64, error) {
	const repeat = 100_000
	var floors, out []float64
	for range runs {
		f, err := testRun(nothing, data, ifindex, repeat, 0)
		if err != nil {
			return nil, err
		}
		floors = append(floors, f)
		ns, err := testRun(prog, data, ifindex, repeat, want)
		if err != nil {
			return nil, err
		}
		out = append(out, ns)
	}
	floor := slices.Min(floors)
	for i := range out {
		out[i] -= floor
	}
	return out, nil
}

// tcpPacket is a TCP segment without payload, from and to the gateway's MAC. Checksums are left out: the programs do
// not look at them on this path.
func tcpPacket(mac [6]byte, src, dst netip.Addr, sport, dport uint16, flags byte) []byte {
	p := make([]byte, 14+20+20)
	copy(p[0:], mac[:])
	copy(p[6:], mac[:])
	p[12] = 0x08
	ip := p[14:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], 40)
	ip[8], ip[9] = 64, 6
	s, d := src.As4(), dst.As4()
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	tcp := ip[20:]
	binary.BigEndian.PutUint16(tcp[0:], sport)
	binary.BigEndian.PutUint16(tcp[2:], dport)
	tcp[12], tcp[13] = 5<<4, flags
	return p
}

// nodeOf remembers where a lab's node is.
func (b *bench) nodeOf(netns string, agent int, client []netip.Addr) {
	b.nodeNetns, b.agentPID = netns, agent
	for _, a := range client {
		if a.Is4() {
			b.clientAddr = a
		}
	}
}
