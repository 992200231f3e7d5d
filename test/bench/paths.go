package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"porin/internal/lab"
	"porin/internal/lab/load"
	"porin/internal/lab/space"
)

// scene is a way from a client to a server.
type scene struct {
	name           string
	client, server space.Where
	addr           netip.AddrPort
	pair           *load.Pair
	agent          int // process of porin-agent, where there is one
}

// Operations per measurement: about a tenth of a second each. Many short turns stand a busy machine better than a few
// long ones.
func operations() map[string]int {
	return map[string]int{load.RR: 5000, load.CRR: 1000, load.Stream: 512}
}

const loadPort = 5201

// paths measures the CPU time of traffic over a bare cable, through a program that only redirects, through porin, and
// through a router with nft conntrack.
func (b *bench) paths(ctx context.Context) (err error) {
	scenes, clean, err := b.scenes(ctx)
	defer func() { err = errors.Join(err, clean()) }()
	if err != nil {
		return err
	}
	for i := range scenes {
		s := &scenes[i]
		if s.pair, err = load.StartPair(ctx, s.server, s.client, s.addr); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		defer s.pair.Stop()
	}
	for _, mode := range b.modes {
		if err := b.compare(ctx, scenes, mode); err != nil {
			return err
		}
	}
	return b.programs(ctx, scenes)
}

func modesOf() []string { return []string{load.RR, load.CRR, load.Stream} }

// compare measures mode in all scenes in turns and forward and back again, so that a drift of the machine hits all.
func (b *bench) compare(ctx context.Context, scenes []scene, mode string) error {
	ops := operations()[mode]
	cpu, p50 := map[string][]float64{}, map[string][]float64{}
	for _, s := range scenes { // warm up: caches, conntrack, neighbour entries
		if _, err := s.pair.Measure(mode, ops); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	for turn := range (b.pairs + 1) / 2 * 2 {
		for i := range scenes {
			s := scenes[i]
			if turn%2 == 1 {
				s = scenes[len(scenes)-1-i]
			}
			r, err := s.pair.Measure(mode, ops)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			cpu[s.name] = append(cpu[s.name], float64(r.PerOp().Nanoseconds())/1000)
			p50[s.name] = append(p50[s.name], float64(r.P50.Nanoseconds())/1000)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	for _, s := range scenes {
		unit := "us"
		if mode == load.Stream {
			unit = "us/MiB"
		}
		b.metrics.median(s.name+"_"+mode+"_cpu", unit, "", cpu[s.name])
		progress("%-6s %-8s %8.2f %s CPU", mode, s.name, b.metrics[s.name+"_"+mode+"_cpu"].Value, unit)
		if s.name == floor {
			continue
		}
		b.metrics.median(s.name+"_"+mode+"_cpu_vs_"+floor, "ratio", "a direct veth pair", ratios(cpu[s.name], cpu[floor]))
		if mode != load.Stream {
			b.metrics.median(s.name+"_"+mode+"_p50_vs_"+floor, "ratio", "a direct veth pair", ratios(p50[s.name], p50[floor]))
		}
		switch s.name {
		case former:
			b.metrics.median("pod_"+mode+"_cpu_vs_"+former, "ratio", "another build", ratios(cpu[ours], cpu[former]))
		case least:
			b.metrics.median("pod_"+mode+"_cpu_vs_"+least, "ratio", "a program that only redirects", ratios(cpu[ours], cpu[least]))
		case peer:
			b.metrics.median("pod_"+mode+"_cpu_vs_"+peer, "ratio", "host routing with nft conntrack", ratios(cpu[ours], cpu[peer]))
		}
	}
	return nil
}

func ratios(ours, theirs []float64) []float64 {
	out := make([]float64, len(ours))
	for i := range ours {
		out[i] = ours[i] / theirs[i]
	}
	return out
}

// Names of scenes, as they are in metrics.
const (
	floor = "veth"
	ours  = "pod"
	least = "redirect"
	peer  = "nft"

	former = "former" // the build of --against
)

// scenes builds all of them. clean must be called, also after an error.
func (b *bench) scenes(ctx context.Context) (list []scene, clean func() error, err error) {
	var undo []func() error
	clean = func() error {
		var errs []error
		for i := len(undo) - 1; i >= 0; i-- {
			errs = append(errs, undo[i]())
		}
		return errors.Join(errs...)
	}
	pod, down, err := b.podScene(ctx, ours, b.binDir)
	undo = append(undo, down)
	if err != nil {
		return nil, clean, err
	}
	veth, err := b.vethScene()
	if err != nil {
		return nil, clean, err
	}
	leave, err := b.cgroups(ctx, &veth)
	undo = append(undo, leave)
	if err != nil {
		return nil, clean, err
	}
	redirect, links, err := b.redirectScene()
	for _, l := range links {
		undo = append(undo, l.Close)
	}
	if err != nil {
		return nil, clean, err
	}
	leave, err = b.cgroups(ctx, &redirect)
	undo = append(undo, leave)
	if err != nil {
		return nil, clean, err
	}
	list = []scene{veth, redirect, pod}
	if b.against != "" {
		other, down, err := b.podScene(ctx, former, b.against)
		undo = append(undo, down)
		if err != nil {
			return nil, clean, err
		}
		list = append(list, other)
	}
	if _, err := exec.LookPath("nft"); err != nil {
		b.notes = append(b.notes, "host routing with nft conntrack was not measured: nft is not installed (apt-get install nftables)")
		return list, clean, nil
	}
	routed, err := b.nftScene(ctx)
	if err != nil {
		return nil, clean, err
	}
	leave, err = b.cgroups(ctx, &routed)
	undo = append(undo, leave)
	if err != nil {
		return nil, clean, err
	}
	return append(list, routed), clean, nil
}

// cgroups gives each end of a scene a cgroup of its own, as deep as a lab's pods are: to switch between processes of
// different cgroups costs CPU time too, about a microsecond of a request and its answer.
func (b *bench) cgroups(ctx context.Context, s *scene) (undo func() error, err error) {
	none := func() error { return nil }
	root, err := space.CgroupRoot()
	if err != nil {
		return none, err
	}
	top := filepath.Join(root, fmt.Sprintf("porin-bench-%d-%s", os.Getpid(), s.name))
	undo = func() error { return space.RemoveCgroup(context.WithoutCancel(ctx), top) }
	s.client.Cgroup, s.server.Cgroup = filepath.Join(top, "node", "client"), filepath.Join(top, "node", "server")
	for _, dir := range []string{top, filepath.Join(top, "node"), s.client.Cgroup, s.server.Cgroup} {
		if err := space.NewCgroup(dir); err != nil {
			return undo, err
		}
	}
	return undo, nil
}

// onCores puts both sides of a scene on the same core: a wake-up on another one costs more than the path, and how
// often there is one depends on the machine's other work.
func onCores(w space.Where) space.Where {
	w.CPUs = []int{1}
	if b, err := os.ReadFile("/sys/devices/system/cpu/online"); err == nil && strings.TrimSpace(string(b)) == "0" {
		w.CPUs = []int{0}
	}
	w.Hostname, w.Hosts = "", "" // addresses only: spares namespaces
	return w
}

func (b *bench) netns(name string) (string, error) {
	file := filepath.Join(b.dir, name)
	return file, space.NewNetns(file)
}

// vethScene is the floor: one cable.
func (b *bench) vethScene() (scene, error) {
	c, err := b.netns("veth-c")
	if err != nil {
		return scene{}, err
	}
	s, err := b.netns("veth-s")
	if err != nil {
		return scene{}, err
	}
	err = space.Connect(
		space.End{Netns: c, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24")}},
		space.End{Netns: s, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.2/24")}})
	return scene{
		name: floor, client: onCores(space.Where{Netns: c}), server: onCores(space.Where{Netns: s}),
		addr: netip.AddrPortFrom(netip.MustParseAddr("10.77.0.2"), loadPort),
	}, err
}

// nftScene is what the Linux host itself does: two cables to a router that tracks connections and lets in new ones to
// one port.
func (b *bench) nftScene(ctx context.Context) (scene, error) {
	var ns [3]string
	for i, name := range []string{"nft-c", "nft-r", "nft-s"} {
		var err error
		if ns[i], err = b.netns(name); err != nil {
			return scene{}, err
		}
	}
	err := space.InNetns(ns[1], func() error { return space.WriteSysctl("net/ipv4/ip_forward", "1") })
	if err != nil {
		return scene{}, err
	}
	for i, end := range []string{ns[0], ns[2]} {
		gw := netip.MustParseAddr(fmt.Sprintf("10.77.%d.1", i+1))
		own := netip.MustParseAddr(fmt.Sprintf("10.77.%d.2", i+1))
		err := space.Connect(
			space.End{Netns: ns[1], Name: fmt.Sprintf("eth%d", i), Addrs: []netip.Prefix{netip.PrefixFrom(gw, 24)}},
			space.End{
				Netns: end, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(own, 24)},
				Routes: []space.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: gw}},
			})
		if err != nil {
			return scene{}, err
		}
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		return scene{}, fmt.Errorf("find nft: %w", err)
	}
	cmd := exec.CommandContext(ctx, nft, "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`table inet bench {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		ip saddr 10.77.1.2 tcp dport %d ct state new accept
		ip saddr 10.77.1.2 udp dport %d ct state new accept
	}
}`, loadPort, loadPort))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := space.Run(cmd, space.Where{Netns: ns[1]}); err != nil {
		return scene{}, fmt.Errorf("load the nft rules: %w: %s", err, out.String())
	}
	return scene{
		name: peer, client: onCores(space.Where{Netns: ns[0]}), server: onCores(space.Where{Netns: ns[2]}),
		addr: netip.AddrPortFrom(netip.MustParseAddr("10.77.2.2"), loadPort),
	}, nil
}

const podLab = `
workloads:
  - {name: client, labels: {app: client}}
  - {name: server, labels: {app: server}}
  - {name: other, labels: {app: other}}
objects:
  - inline: |
      apiVersion: cilium.io/v2
      kind: CiliumNetworkPolicy
      metadata: {name: client, namespace: default}
      spec:
        endpointSelector: {matchLabels: {app: client}}
        egress:
          - toEndpoints: [{matchLabels: {app: server}}]
            toPorts: [{ports: [{port: "5201", protocol: ANY}]}]
      ---
      apiVersion: cilium.io/v2
      kind: CiliumNetworkPolicy
      metadata: {name: server, namespace: default}
      spec:
        endpointSelector: {matchLabels: {app: server}}
        ingress:
          - fromEndpoints: [{matchLabels: {app: client}}]
            toPorts: [{ports: [{port: "5201", protocol: ANY}]}]
checks:
  - {from: other, to: server, port: 5201, expect: deny}
`

// podScene is porin: the real agent and programs, egress and ingress policy on.
func (b *bench) podScene(ctx context.Context, name, binDir string) (scene, func() error, error) {
	l, down, err := b.lab(ctx, podLab, name, binDir)
	if err != nil {
		return scene{}, down, err
	}
	client, err := l.Place("client")
	if err != nil {
		return scene{}, down, err
	}
	server, err := l.Place("server")
	if err != nil {
		return scene{}, down, err
	}
	node, err := l.Place("node1")
	if err != nil {
		return scene{}, down, err
	}
	b.nodeOf(node.Where.Netns, node.Agent.PID, client.Addrs)
	// figures of a path that lets everything pass would be worthless
	if err := l.MustHold(ctx); err != nil {
		return scene{}, down, err
	}
	for _, a := range server.Addrs {
		if a.Is4() {
			return scene{
				name: name, client: onCores(client.Where), server: onCores(server.Where), addr: netip.AddrPortFrom(a, loadPort),
				agent: node.Agent.PID,
			}, down, nil
		}
	}
	return scene{}, down, errors.New("the server has no IPv4 address")
}

// lab brings up a lab of one node.
func (b *bench) lab(ctx context.Context, text, name, binDir string) (*lab.Lab, func() error, error) {
	none := func() error { return nil }
	name = fmt.Sprintf("bench-%d-%s", os.Getpid(), name)
	file := filepath.Join(b.dir, "lab.yaml")
	if err := os.WriteFile(file, []byte("name: "+name+text), 0o600); err != nil {
		return nil, none, fmt.Errorf("write lab file: %w", err)
	}
	spec, err := lab.Load(file)
	if err != nil {
		return nil, none, err
	}
	l, err := lab.Up(ctx, spec, lab.Options{BinDir: binDir, Stderr: io.Discard}, false)
	if err != nil {
		return nil, none, err
	}
	progress("lab with one node is up")
	return l, func() error { return lab.Down(context.WithoutCancel(ctx), name) }, nil
}
