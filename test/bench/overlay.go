package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"porin/internal/datapath"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/lab/load"
	"porin/internal/lab/space"
	cluster "porin/internal/node"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// Names of the overlay's scenes, as they are in metrics.
const (
	tunnel       = "overlay"
	kernelTunnel = "kernel_vxlan"
)

// overlay measures pods of two nodes on a bridge in a third namespace: over porin's tunnel, over the kernel's VXLAN device
// with plain routing, and over a bare cable, in turns.
func (b *bench) overlay(ctx context.Context) (err error) {
	var undo []func() error
	defer func() {
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	ours, one, down, err := b.tunnelScene()
	undo = append(undo, down)
	if err != nil {
		return err
	}
	theirs, err := b.kernelVXLANScene()
	if err != nil {
		return err
	}
	cable, err := b.cableScene()
	if err != nil {
		return err
	}
	scenes := []scene{cable, ours, theirs}
	for i := range scenes {
		s := &scenes[i]
		leave, err := b.cgroups(ctx, s)
		undo = append(undo, leave)
		if err != nil {
			return err
		}
		if s.pair, err = load.StartPair(ctx, s.server, s.client, s.addr); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		defer s.pair.Stop()
	}
	if err := b.compareTunnels(ctx, scenes); err != nil {
		return err
	}
	return b.bulk(one)
}

func (b *bench) compareTunnels(ctx context.Context, scenes []scene) error {
	for _, mode := range []string{load.RR, load.Stream} {
		ops := operations()[mode]
		cpu, wall, p50 := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
		for turn := range (b.pairs+1)/2*2 + 1 {
			for i := range scenes {
				s := scenes[i]
				if turn%2 == 1 {
					s = scenes[len(scenes)-1-i]
				}
				r, err := s.pair.Measure(mode, ops)
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				if turn == 0 { // caches, conntrack, neighbour entries
					continue
				}
				cpu[s.name] = append(cpu[s.name], float64(r.PerOp().Nanoseconds())/1000)
				wall[s.name] = append(wall[s.name], r.Wall.Seconds())
				p50[s.name] = append(p50[s.name], float64(r.P50.Nanoseconds())/1000)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if mode == load.Stream {
			b.metrics.median("overlay_stream_vs_kernel_vxlan", "ratio", "throughput of the kernel's VXLAN", ratios(wall[kernelTunnel], wall[tunnel]))
			b.metrics.median("overlay_stream_cpu_vs_kernel_vxlan", "ratio", "the kernel's VXLAN", ratios(cpu[tunnel], cpu[kernelTunnel]))
			continue
		}
		b.metrics.median("overlay_rr_cpu_vs_veth", "ratio", "a direct veth pair", ratios(cpu[tunnel], cpu[floor]))
		b.metrics.median("overlay_rr_p50_vs_veth", "ratio", "a direct veth pair", ratios(p50[tunnel], p50[floor]))
		b.metrics.median("kernel_vxlan_rr_p50_vs_veth", "ratio", "a direct veth pair", ratios(p50[kernelTunnel], p50[floor]))
		b.metrics.median("overlay_rr_p50_vs_kernel_vxlan", "ratio", "the kernel's VXLAN", ratios(p50[tunnel], p50[kernelTunnel]))
	}
	return nil
}

// underlay joins two new namespaces by a bridge in a third. The nodes are 192.0.2.1 and .2.
func (b *bench) underlay(name string) (nodes [2]string, err error) {
	bridge, err := b.netns(name + "-wire")
	if err != nil {
		return nodes, err
	}
	if err := space.NewBridge(bridge, "br0", nil); err != nil {
		return nodes, err
	}
	for i := range nodes {
		if nodes[i], err = b.netns(fmt.Sprintf("%s-node%d", name, i+1)); err != nil {
			return nodes, err
		}
		if err := space.Connect(
			space.End{Netns: bridge, Name: fmt.Sprintf("port%d", i+1), Master: "br0"},
			space.End{
				Netns: nodes[i], Name: "up0", Addrs: []netip.Prefix{netip.PrefixFrom(nodeAddr(i), 24)},
				Routes: []space.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: nodeAddr(1 - i)}},
			}); err != nil {
			return nodes, err
		}
	}
	return nodes, nil
}

func nodeAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)}) }

func podRange(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 79, byte(1 + i), 0}), 24)
}

func podAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 79, byte(1 + i), 2}) }

// tunnelScene is porin's datapath on two nodes, Geneve over IPv4, both policies on. one is that of the first node.
func (b *bench) tunnelScene() (s scene, one *datapath.Datapath, down func() error, err error) {
	var undo []func() error
	down = func() error {
		var errs []error
		for _, f := range undo {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	nodes, err := b.underlay(tunnel)
	if err != nil {
		return s, nil, down, err
	}
	var places [2]string
	for i, ns := range nodes {
		if places[i], err = b.netns(fmt.Sprintf("%s-pod%d", tunnel, i+1)); err != nil {
			return s, nil, down, err
		}
		root := filepath.Join(b.dir, fmt.Sprintf("bpf%d", i+1))
		undo = append(undo, func() error {
			err := space.InNetns(ns, func() error { return datapath.Clean(root) })
			for unix.Unmount(root, 0) == nil {
			}
			return err
		})
		err := space.InNetns(ns, func() error {
			d, err := tunnelNode(i, root, places[i])
			if d != nil {
				undo = append([]func() error{d.Close}, undo...)
			}
			if i == 0 {
				one = d
			}
			return err
		})
		if err != nil {
			return s, nil, down, fmt.Errorf("node %d of the overlay: %w", i+1, err)
		}
	}
	return scene{
		name: tunnel, client: onCores(space.Where{Netns: places[0]}), server: onCores(space.Where{Netns: places[1]}),
		addr: netip.AddrPortFrom(podAddr(1), loadPort),
	}, one, down, nil
}

// tunnelNode is node i with one pod, and all that it knows of the other.
func tunnelNode(i int, root, pod string) (*datapath.Datapath, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	d, err := datapath.Open(slog.New(slog.NewTextHandler(io.Discard, nil)), datapath.Config{
		BPFRoot: root, IPv4Range: podRange(i), RouterIPv4: podRange(i).Addr().Next(), Devices: []string{"up0"},
		Routing: datapath.RoutingGeneve, Underlay: cluster.IPv4, MonitorInterval: 5 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	peer := identity.ID(1000 + 1 - i)
	open := &policy.Table{Key: "port", Rows: []policy.Row{
		{Proto: unix.IPPROTO_TCP, First: loadPort, Last: loadPort, Verdict: policy.PortVerdict{Action: verdict.Allow, Cookie: 7}},
		{Proto: unix.IPPROTO_UDP, First: loadPort, Last: loadPort, Verdict: policy.PortVerdict{Action: verdict.Allow, Cookie: 7}},
	}}
	shut := &policy.Table{Key: "shut"}
	for _, s := range []*policy.Subject{
		{Key: "in", Direction: verdict.Ingress, Peers: map[identity.ID]*policy.Table{peer: open}, Else: shut},
		{Key: "out", Direction: verdict.Egress, Peers: map[identity.ID]*policy.Table{peer: open}, Else: shut},
	} {
		if err := d.PutSubject(s); err != nil {
			return d, err
		}
	}
	ep := endpoint.Endpoint{
		ID: uint16(1 + i), ContainerID: fmt.Sprintf("bench%d", i), IfName: "eth0", Netns: pod, Namespace: "default", Pod: "bench",
		Identity: identity.ID(1000 + i), IPv4: podAddr(i), Device: fmt.Sprintf("pn000000000%d", i), Ingress: "in", Egress: "out",
	}
	if ep.Ifindex, ep.MAC, err = d.CreateDevice(ep); err != nil {
		return d, err
	}
	if err := d.WriteEndpoint(ep); err != nil {
		return d, err
	}
	other := cluster.Node{Cluster: "bench", Name: fmt.Sprint(2 - i), Addresses: []netip.Addr{nodeAddr(1 - i)}, PodCIDRs: []netip.Prefix{podRange(1 - i)}}
	if err := d.PutNodes([]cluster.Node{other}); err != nil {
		return d, err
	}
	return d, d.PutRemotes([]cluster.Remote{{Addr: podAddr(1 - i), Identity: peer, Node: nodeAddr(1 - i)}})
}

// kernelVXLANScene is what a plain overlay does: pods routed by the node to a VXLAN device, whose other end is written down.
func (b *bench) kernelVXLANScene() (scene, error) {
	nodes, err := b.underlay(kernelTunnel)
	if err != nil {
		return scene{}, err
	}
	var pods [2]string
	mac := func(i int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 9, byte(1 + i)} }
	for i, ns := range nodes {
		if pods[i], err = b.netns(fmt.Sprintf("%s-pod%d", kernelTunnel, i+1)); err != nil {
			return scene{}, err
		}
		gw := podRange(i).Addr().Next()
		if err := space.Connect(
			space.End{Netns: ns, Name: "pod", Addrs: []netip.Prefix{netip.PrefixFrom(gw, 24)}, MTU: 1450},
			space.End{
				Netns: pods[i], Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(podAddr(i), 24)}, MTU: 1450,
				Routes: []space.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: gw}},
			}); err != nil {
			return scene{}, err
		}
		err := space.InNetns(ns, func() error {
			if err := space.WriteSysctl("net/ipv4/ip_forward", "1"); err != nil {
				return err
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.MTU, attrs.HardwareAddr = "vx0", 1450, mac(i)
			vx := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472, SrcAddr: nodeAddr(i).AsSlice()}
			if err := netlink.LinkAdd(vx); err != nil {
				return fmt.Errorf("add the kernel's VXLAN device: %w", err)
			}
			if err := netlink.LinkSetUp(vx); err != nil {
				return fmt.Errorf("set the kernel's VXLAN device up: %w", err)
			}
			far := podRange(1 - i).Addr().AsSlice()
			return errors.Join(
				netlink.NeighSet(&netlink.Neigh{LinkIndex: vx.Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: nodeAddr(1 - i).AsSlice(), HardwareAddr: mac(1 - i)}),
				netlink.NeighSet(&netlink.Neigh{LinkIndex: vx.Index, State: netlink.NUD_PERMANENT, IP: far, HardwareAddr: mac(1 - i)}),
				netlink.RouteReplace(&netlink.Route{LinkIndex: vx.Index, Dst: &net.IPNet{IP: far, Mask: net.CIDRMask(24, 32)}, Gw: far, Flags: int(netlink.FLAG_ONLINK)}),
			)
		})
		if err != nil {
			return scene{}, err
		}
	}
	return scene{
		name: kernelTunnel, client: onCores(space.Where{Netns: pods[0]}), server: onCores(space.Where{Netns: pods[1]}),
		addr: netip.AddrPortFrom(podAddr(1), loadPort),
	}, nil
}

// cableScene is the floor of this part.
func (b *bench) cableScene() (scene, error) {
	var ns [2]string
	for i := range ns {
		var err error
		if ns[i], err = b.netns(fmt.Sprintf("%s-cable%d", tunnel, i+1)); err != nil {
			return scene{}, err
		}
	}
	err := space.Connect(
		space.End{Netns: ns[0], Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24")}},
		space.End{Netns: ns[1], Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.2/24")}})
	return scene{
		name: floor, client: onCores(space.Where{Netns: ns[0]}), server: onCores(space.Where{Netns: ns[1]}),
		addr: netip.AddrPortFrom(netip.MustParseAddr("10.77.0.2"), loadPort),
	}, err
}

// bulk programs 100,000 addresses behind 100 nodes at once: CPU time of this process, the kernel's part included.
func (b *bench) bulk(d *datapath.Datapath) error {
	const n = 100_000
	list := make([]cluster.Remote, n)
	for i := range list {
		list[i] = cluster.Remote{
			Addr: netip.AddrFrom4([4]byte{10, byte(100 + i>>16), byte(i >> 8), byte(i)}), Identity: identity.ID(2000 + i%1000),
			Node: netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i/1000)}),
		}
	}
	var took []float64
	for range 5 {
		before, err := processCPU()
		if err != nil {
			return err
		}
		if err := d.PutRemotes(list); err != nil {
			return err
		}
		after, err := processCPU()
		if err != nil {
			return err
		}
		took = append(took, float64((after-before).Nanoseconds())/1000/n)
		if err := d.DeleteRemotes(list); err != nil {
			return err
		}
	}
	b.metrics.median("peers_bulk_us", "us CPU", "", took)
	return nil
}

func processCPU() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("read the CPU time: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}
