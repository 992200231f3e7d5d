package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"porin/internal/lab/serve"
	"porin/internal/lab/space"
)

// The underlay is one router: a bridge for the nodes and a cable of its own for every outside host, so that hosts
// never share a link and nothing needs neighbour tricks.
//
//	node1 --+                          +-- out0: internet
//	node2 --+-- br0 (172.31.0.1) router+-- out1: ...
const (
	uplink     = "eth0"
	bridge     = "br0"
	underlayNS = "underlay"
)

func router(v6 bool) netip.Addr {
	if v6 {
		return underlay6().Addr().Next()
	}
	return underlay4().Addr().Next()
}

// linkGateway is the router as an outside host sees it: the link-local address on its own cable for IPv6.
func linkGateway(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("fe80::1")
	}
	return router(false)
}

func nodeAddr(i int, v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:31::%d", 11+i))
	}
	return netip.MustParseAddr(fmt.Sprintf("172.31.0.%d", 11+i))
}

func (l *Lab) buildUnderlay() error {
	ns := l.path("ns", underlayNS)
	if err := space.NewNetns(ns); err != nil {
		return err
	}
	err := space.InNetns(ns, func() error {
		return errors.Join(space.WriteSysctl("net/ipv4/ip_forward", "1"), space.WriteSysctl("net/ipv6/conf/all/forwarding", "1"))
	})
	if err != nil {
		return err
	}
	err = space.NewBridge(ns, bridge, l.wired(
		netip.PrefixFrom(router(false), underlay4().Bits()), netip.PrefixFrom(router(true), underlay6().Bits())))
	if err != nil || !l.spec.cluster() || !l.spec.tunnels() {
		return err
	}
	var pods []netip.Prefix
	for _, n := range l.spec.Nodes {
		pods = append(pods, n.PodCIDRs...)
	}
	return l.tunnelsOnly(pods)
}

// tunnelsOnly: the router knows the way to pods, for outside hosts. What nodes and their pods send there must come in a
// tunnel, or a lab would not show that there is none.
func (l *Lab) tunnelsOnly(pods []netip.Prefix) error {
	if len(pods) == 0 {
		return nil
	}
	return space.Forbid(l.path("ns", underlayNS), slices.Concat(pods, l.wired(underlay4(), underlay6())), pods)
}

// wired returns those of its arguments whose family the nodes' network has.
func (l *Lab) wired(list ...netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		if p.Addr().Is4() && l.spec.wired(ipv4) || p.Addr().Is6() && l.spec.wired(ipv6) {
			out = append(out, p)
		}
	}
	return out
}

func (l *Lab) buildNode(ctx context.Context, i int) error {
	t0 := time.Now()
	n := l.spec.Nodes[i]
	p := place{
		Kind: kindNode, Name: n.Name, Labels: n.Labels, PodCIDRs: n.PodCIDRs, Serves: serveList(n.Serves),
		Netns: l.path("ns", n.Name), Cgroup: filepath.Join(l.state.Cgroup, n.Name),
	}
	if err := space.NewCgroup(p.Cgroup); err != nil {
		return err
	}
	if err := space.NewNetns(p.Netns); err != nil {
		return err
	}
	inner := space.End{Netns: p.Netns, Name: uplink}
	for _, a := range l.wired(
		netip.PrefixFrom(nodeAddr(i, false), underlay4().Bits()), netip.PrefixFrom(nodeAddr(i, true), underlay6().Bits())) {
		p.Addrs = append(p.Addrs, a.Addr())
		inner.Addrs = append(inner.Addrs, a)
		inner.Routes = append(inner.Routes, space.Route{Dst: anywhere(a.Addr()), Via: router(a.Addr().Is6())})
	}
	p.Port = fmt.Sprintf("node%d", i)
	outer := space.End{Netns: l.path("ns", underlayNS), Name: p.Port, Master: bridge}
	if err := space.Connect(outer, inner); err != nil {
		return err
	}
	if err := space.Filter(outer.Netns, outer.Name, nil); err != nil { // the place for faults
		return err
	}
	if err := l.routeBack(p, n.PodCIDRs); err != nil {
		return err
	}
	cmd := self("pause", append([]string{"--hostname", n.Name, "--hosts", l.path("hosts")}, mountPoints()...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS}
	var err error
	if p.Pause, err = l.startReady(ctx, cmd, space.Where{Netns: p.Netns, Cgroup: p.Cgroup}, n.Name+"-pause"); err != nil {
		return err
	}
	if err := l.addPlace(p); err != nil {
		return err
	}
	if len(p.Serves) > 0 {
		cfg := serve.Config{Hostname: n.Name, Servers: p.Serves, Families: l.spec.Families}
		if err := l.startServers(ctx, p, cfg); err != nil {
			return err
		}
	}
	l.tell.done(t0, "%s: namespaces ready, %s", n.Name, joinAddrs(p.Addrs))
	return nil
}

func anywhere(a netip.Addr) netip.Prefix {
	if a.Is6() {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func joinAddrs(addrs []netip.Addr) string {
	var b strings.Builder
	for i, a := range addrs {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(a.String())
	}
	return b.String()
}

// buildOutside makes a host that knows the nodes' network and nothing of pods: what reaches it from a pod is answered
// only if it left with a node's address.
func (l *Lab) buildOutside(ctx context.Context, i int) error {
	t0 := time.Now()
	o := l.spec.Outside[i]
	p := place{
		Kind: kindOutside, Name: o.Name, Serves: serveList(o.Serves),
		Netns: l.path("ns", o.Name), Cgroup: filepath.Join(l.state.Cgroup, o.Name),
	}
	if err := space.NewCgroup(p.Cgroup); err != nil {
		return err
	}
	if err := space.NewNetns(p.Netns); err != nil {
		return err
	}
	p.Port = fmt.Sprintf("out%d", i)
	outer := space.End{Netns: l.path("ns", underlayNS), Name: p.Port}
	inner := space.End{Netns: p.Netns, Name: uplink}
	if l.spec.has(ipv6) {
		outer.Addrs = append(outer.Addrs, netip.PrefixFrom(linkGateway(true), 64))
	}
	for _, a := range o.Addresses {
		if a.Is4() && !l.spec.has(ipv4) || a.Is6() && !l.spec.has(ipv6) {
			continue
		}
		p.Addrs = append(p.Addrs, a)
		inner.Addrs = append(inner.Addrs, netip.PrefixFrom(a, a.BitLen()))
		outer.Routes = append(outer.Routes, space.Route{Dst: netip.PrefixFrom(a, a.BitLen())})
		nodes := underlay4()
		if a.Is6() {
			nodes = underlay6()
		}
		inner.Routes = append(inner.Routes, space.Route{Dst: nodes, Via: linkGateway(a.Is6()), Src: a})
	}
	if err := space.Connect(outer, inner); err != nil {
		return err
	}
	if err := space.Filter(outer.Netns, outer.Name, nil); err != nil { // the place for faults
		return err
	}
	if err := l.addPlace(p); err != nil {
		return err
	}
	if len(p.Serves) > 0 {
		cfg := serve.Config{Hostname: o.Name, Servers: p.Serves, Addrs: p.Addrs}
		if err := l.startServers(ctx, p, cfg); err != nil {
			return err
		}
	}
	l.tell.done(t0, "%s: outside host ready, %s", o.Name, joinAddrs(p.Addrs))
	return nil
}

// self returns a hidden subcommand of this program. /proc/self/exe stays right when the file has been replaced.
func self(sub string, args ...string) *exec.Cmd {
	return &exec.Cmd{Path: "/proc/self/exe", Args: append([]string{"porin", "lab", sub}, args...)}
}

// start starts a process of the lab: apart from the terminal, with its errors in the lab's log directory.
func (l *Lab) start(cmd *exec.Cmd, w space.Where, log string) (space.Process, error) {
	f, err := os.OpenFile(l.path("log", log+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return space.Process{}, fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	cmd.Stderr = f
	if cmd.Stdout == nil {
		cmd.Stdout = f
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if err := space.Start(cmd, w); err != nil {
		return space.Process{}, err
	}
	proc, err := space.ProcessOf(cmd.Process.Pid)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil // a short program; whoever waits for it learns how it ended
	}
	return proc, err
}

// startReady starts a process and waits until it has written "ready" to its standard output.
func (l *Lab) startReady(ctx context.Context, cmd *exec.Cmd, w space.Where, log string) (space.Process, error) {
	r, out, err := os.Pipe()
	if err != nil {
		return space.Process{}, fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	cmd.Stdout = out
	proc, err := l.start(cmd, w, log)
	out.Close()
	if err != nil {
		return proc, err
	}
	go func() { _ = cmd.Wait() }() // no zombie if it ends while we run; its fate is seen elsewhere
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = r.SetReadDeadline(time.Now().Add(time.Minute))
	if line, err := bufio.NewReader(r).ReadString('\n'); line != "ready\n" {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("it ended")
		}
		return proc, fmt.Errorf("start %s: %w\n%s", log, err, lastLines(l.path("log", log+".log"), 10))
	}
	return proc, nil
}

func (l *Lab) startServers(ctx context.Context, p place, cfg serve.Config) error {
	b, err := json.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("%s: describe servers: %w", p.Name, err)
	}
	proc, err := l.startReady(ctx, self("serve", string(b)), space.Where{Netns: p.Netns, Cgroup: p.Cgroup}, p.Name)
	if err != nil {
		return err
	}
	return l.update(p.Name, func(p *place) { p.Server = proc })
}

// settings of a node's agent.
func (l *Lab) settings(p place) map[string]any {
	out := map[string]any{
		"node-name":   p.Name,
		"enable-ipv4": l.spec.has(ipv4),
		"enable-ipv6": l.spec.has(ipv6),
		"kvstore":     string(l.spec.Store),
	}
	for _, c := range p.PodCIDRs {
		if c.Addr().Is4() && l.spec.has(ipv4) {
			out["ipv4-range"] = c.String()
		} else if c.Addr().Is6() && l.spec.has(ipv6) {
			out["ipv6-range"] = c.String()
		}
	}
	if l.spec.cluster() {
		out["routing"] = l.spec.Routing
		if !l.spec.tunnels() {
			out["auto-direct-node-routes"] = true
		}
		if l.spec.Underlay != "" {
			out["underlay"] = l.spec.Underlay
		}
		if l.spec.ownStore() {
			out["kvstore"] = l.storeEndpoint()
		}
		if l.spec.operated() {
			out["ipam"] = "cluster-pool"
		}
	}
	if len(p.Labels) > 0 && l.spec.cluster() {
		var words []string
		for _, k := range keys(p.Labels) {
			words = append(words, k+"="+p.Labels[k])
		}
		out["node-labels"] = strings.Join(words, ",")
	}
	maps.Copy(out, l.spec.Agent)
	return out
}

// startAgent starts a node's agent and, if asked to, waits until it answers and is ready.
func (l *Lab) startAgent(ctx context.Context, node string, wait bool) error {
	t0 := time.Now()
	p, err := l.place(node)
	if err != nil {
		return err
	}
	b, err := yaml.Marshal(l.settings(p))
	if err != nil {
		return fmt.Errorf("%s: write agent configuration: %w", node, err)
	}
	file := l.path("log", node+"-agent.yaml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return fmt.Errorf("%s: write agent configuration: %w", node, err)
	}
	cg := agentCgroup(p)
	if err := space.NewCgroup(cg); err != nil && !errors.Is(err, fs.ErrExist) { // started before
		return err
	}
	agent := filepath.Join(l.state.BinDir, "porin-agent")
	cmd := &exec.Cmd{Path: agent, Args: []string{agent, "--config", file}}
	proc, err := l.start(cmd, space.Where{Netns: p.Netns, Mounts: p.Pause.PID, Cgroup: cg}, node+"-agent")
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := l.update(node, func(p *place) { p.Agent = proc }); err != nil {
		return err
	}
	if !wait {
		return nil
	}
	if err := l.agentReady(ctx, p, ended); err != nil {
		return fmt.Errorf("%s: wait for the agent: %w", node, err)
	}
	l.tell.done(t0, "%s: agent ready", node)
	return nil
}

// agentCgroup is the agent's own, so that its CPU time can be told from the workloads'. No workload is called "agent.".
func agentCgroup(node place) string { return filepath.Join(node.Cgroup, "agent.") }

// lastLines returns the last n lines of a log; "" if there are none.
func lastLines(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil || len(b) == 0 {
		return ""
	}
	lines := strings.SplitAfter(strings.TrimRight(string(b), "\n")+"\n", "\n")
	lines = lines[:len(lines)-1]
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
