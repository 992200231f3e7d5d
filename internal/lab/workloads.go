package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"porin/internal/lab/serve"
	"porin/internal/lab/space"
)

// parallelADDs is how many workloads are attached at once: like a kubelet that starts a node's pods.
const parallelADDs = 4

// listenWait is how long a workload's own program is given to listen.
const listenWait = time.Second

// buildWorkload makes a workload's network namespace and starts its built-in servers, before it has an address: a
// server that is there first misses no packet.
func (l *Lab) buildWorkload(ctx context.Context, w pod) error {
	p := place{
		Kind: kindWorkload, Name: w.name, Workload: w.Name, Namespace: w.Namespace, Node: w.node, Labels: w.Labels,
		Netns: l.path("ns", w.name), Cgroup: filepath.Join(l.state.Cgroup, w.node, w.name), Serves: serveList(w.Serves),
	}
	if err := space.NewCgroup(p.Cgroup); err != nil {
		return err
	}
	if err := space.NewNetns(p.Netns); err != nil {
		return err
	}
	if err := l.addPlace(p); err != nil {
		return err
	}
	if len(p.Serves) == 0 {
		return nil
	}
	return l.startServers(ctx, p, serve.Config{Hostname: p.Name, Servers: p.Serves, Families: l.spec.Families})
}

func (l *Lab) attachAll(ctx context.Context, pods []pod) error {
	if len(pods) == 0 {
		return nil
	}
	t0 := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelADDs)
	for _, w := range pods {
		g.Go(func() error { return l.attach(ctx, w.name) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	l.tell.done(t0, "%d workloads attached by porin-cni", len(pods))
	return nil
}

// attach runs the CNI plugin's ADD for a workload, as a container runtime on its node would.
func (l *Lab) attach(ctx context.Context, name string) error {
	out, err := l.cni(ctx, "ADD", name)
	if err != nil {
		return err
	}
	var result struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return fmt.Errorf("attach %s: read the result of porin-cni: %w", name, err)
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		addrs = append(addrs, ip.Address.Addr())
	}
	for _, f := range l.spec.Families {
		if !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Is4() == (f == ipv4) }) {
			return fmt.Errorf("attach %s: porin-cni gave no %s address: %s", name, f, bytes.TrimSpace(out))
		}
	}
	return l.update(name, func(p *place) { p.Addrs = addrs })
}

// cni runs the plugin with command for the workload called name and returns what it printed.
func (l *Lab) cni(ctx context.Context, command, name string) ([]byte, error) {
	p, err := l.place(name)
	if err != nil {
		return nil, err
	}
	n, err := l.place(p.Node)
	if err != nil {
		return nil, err
	}
	conf, err := cniConfig(p)
	if err != nil {
		return nil, err
	}
	plugin := filepath.Join(l.state.BinDir, "porin-cni")
	cmd := exec.CommandContext(ctx, plugin)
	cmd.Env = []string{
		"CNI_COMMAND=" + command,
		"CNI_CONTAINERID=" + l.state.Name + "-" + name,
		"CNI_NETNS=" + p.Netns,
		"CNI_IFNAME=" + uplink,
		"CNI_PATH=" + l.state.BinDir,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + p.Namespace + ";K8S_POD_NAME=" + name,
		"PATH=" + os.Getenv("PATH"),
	}
	cmd.Stdin = bytes.NewReader(conf)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := space.Run(cmd, space.Where{Netns: n.Netns, Mounts: n.Pause.PID, Cgroup: n.Cgroup}); err != nil {
		return nil, fmt.Errorf("%s: porin-cni %s: %w: %s%s", name, command, err, cniError(stdout.Bytes()), strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// cniError makes one line of the plugin's error object.
func cniError(out []byte) string {
	var e struct {
		Code    int    `json:"code"`
		Msg     string `json:"msg"`
		Details string `json:"details"`
	}
	if json.Unmarshal(out, &e) != nil || e.Msg == "" {
		return string(bytes.TrimSpace(out))
	}
	return fmt.Sprintf("%s: %s (code %d) ", e.Msg, e.Details, e.Code)
}

// cniConfig is the network configuration for the plugin; labels travel as the CNI conventions have it.
func cniConfig(p place) ([]byte, error) {
	type label struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	type namedPort struct {
		Name     string `json:"name"`
		Protocol string `json:"protocol"`
		Port     uint16 `json:"port"`
	}
	labels, ports := []label{}, []namedPort{}
	for _, k := range keys(p.Labels) {
		labels = append(labels, label{k, p.Labels[k]})
	}
	for _, s := range p.Serves {
		if s.Name != "" {
			ports = append(ports, namedPort{s.Name, s.Protocol, s.Port})
		}
	}
	b, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0",
		"name":       "porin",
		"type":       "porin-cni",
		"args":       map[string]any{"cni": map[string]any{"labels": labels, "namedPorts": ports}},
	})
	if err != nil {
		return nil, fmt.Errorf("attach %s: write the CNI configuration: %w", p.Name, err)
	}
	return b, nil
}

// startPrograms starts the workloads' own programs, once they have their addresses.
func (l *Lab) startPrograms(ctx context.Context, pods []pod) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range pods {
		if len(w.Run) > 0 {
			g.Go(func() error { return l.startProgram(ctx, w) })
		}
	}
	return g.Wait()
}

func (l *Lab) startProgram(ctx context.Context, w pod) error {
	t0 := time.Now()
	p, err := l.place(w.name)
	if err != nil {
		return err
	}
	cmd, err := l.command(w.Run)
	if err != nil {
		return fmt.Errorf("%s: %w", w.name, err)
	}
	proc, err := l.start(cmd, l.where(p), w.name)
	if err != nil {
		return fmt.Errorf("%s: %w", w.name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := l.update(w.name, func(p *place) { p.Server = proc }); err != nil {
		return err
	}
	// Most programs are servers: give it a moment to listen. One that never does is as good; one that ends with an
	// error at once was a mistake.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for time.Since(t0) < listenWait && !listens(proc.PID) {
		select {
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("%s: run %s: %w\n%s", w.name, strings.Join(w.Run, " "), err, lastLines(l.path("log", w.name+".log"), 10))
			}
			l.tell.done(t0, "%s: program has run", w.name)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	l.tell.done(t0, "%s: program started", w.name)
	return nil
}

// listens tells whether some socket in the network namespace of pid waits for clients.
func listens(pid int) bool {
	for _, f := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/net/" + f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			// the fourth column is the state: 0A listens (TCP), 07 is an unconnected UDP socket
			if c := strings.Fields(line); len(c) > 3 && (c[3] == "0A" || c[3] == "07" && strings.HasPrefix(f, "udp")) {
				return true
			}
		}
	}
	return false
}

// where is how to run something in a place as its user would see it.
func (l *Lab) where(p place) space.Where {
	w := space.Where{Netns: p.Netns, Cgroup: p.Cgroup}
	if p.Kind == kindNode {
		w.Mounts = p.Pause.PID
		return w
	}
	w.Hostname, w.Hosts = p.Name, l.path("hosts")
	return w
}

// command finds the program in the PATH, with the lab's own binaries first, so that `porin` is the one that made it.
func (l *Lab) command(args []string) (*exec.Cmd, error) {
	env := os.Environ()
	path := l.state.BinDir + ":" + os.Getenv("PATH")
	env = append(env, "PATH="+path)
	file := args[0]
	if !strings.Contains(file, "/") {
		found := false
		for _, dir := range filepath.SplitList(path) {
			if f, err := exec.LookPath(filepath.Join(dir, file)); err == nil && filepath.IsAbs(f) {
				file, found = f, true
				break
			}
		}
		if !found {
			return nil, fmt.Errorf("run %s: %w", file, exec.ErrNotFound)
		}
	}
	cmd := &exec.Cmd{Path: file, Args: args, Env: env}
	if dir, err := os.Getwd(); err == nil {
		cmd.Dir = dir // entering a mount namespace moves to its root
	}
	return cmd, nil
}

// writeHosts fills the file that is every place's /etc/hosts. Written in place: it is bind-mounted.
func (l *Lab) writeHosts() error {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	l.mu.Lock()
	for _, p := range l.state.Places {
		for _, a := range p.Addrs {
			fmt.Fprintf(&b, "%s %s\n", a, p.Name)
		}
	}
	for _, p := range l.state.Places { // a workload's plain name is all of its replicas
		if p.Kind == kindWorkload && p.Workload != p.Name {
			for _, a := range p.Addrs {
				fmt.Fprintf(&b, "%s %s\n", a, p.Workload)
			}
		}
	}
	l.mu.Unlock()
	if err := os.WriteFile(l.path("hosts"), []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write hosts file: %w", err)
	}
	return nil
}

// endTime is how long a command has to end when it is asked to.
const endTime = 5 * time.Second

// Exec runs a command in a place with the caller's standard streams and returns its exit code.
func (l *Lab) Exec(ctx context.Context, where string, args []string) (int, error) {
	p, err := l.place(where)
	if err != nil {
		return 0, err
	}
	cmd, err := l.command(args)
	if err != nil {
		return 0, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return l.wait(ctx, cmd, p)
}

// wait runs cmd in p; a command that was killed counts as a shell would: 128 and the signal. When ctx ends, the command
// is asked to end, and killed if it has not after a while.
func (l *Lab) wait(ctx context.Context, cmd *exec.Cmd, p place) (int, error) {
	if err := space.Start(cmd, l.where(p)); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // fails only if it has ended
		select {
		case <-ended:
		case <-time.After(endTime):
			_ = cmd.Process.Kill()
		}
	})
	defer stop()
	err := cmd.Wait()
	close(ended)
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		if code := ee.ExitCode(); code >= 0 {
			return code, nil
		}
		return 128 + int(signalOf(ee)), nil
	}
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", cmd.Path, err)
	}
	return 0, nil
}
