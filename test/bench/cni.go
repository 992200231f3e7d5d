package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"porin/internal/lab"
	"porin/internal/lab/space"
)

// adds is how many workloads are attached to measure one.
const adds = 100

const cniLab = `
workloads:
  - {name: like, labels: {app: like}}
objects:
  - inline: |
      apiVersion: cilium.io/v2
      kind: CiliumNetworkPolicy
      metadata: {name: like, namespace: default}
      spec:
        endpointSelector: {matchLabels: {app: like}}
        ingress: [{fromEndpoints: [{matchLabels: {app: like}}]}]
        egress: [{toEndpoints: [{matchLabels: {app: like}}]}]
`

// cni measures the CPU time of an ADD: the plugin's process and what the agent spends meanwhile. Policy selects every
// workload and is in force when ADD returns.
func (b *bench) cni(ctx context.Context) (err error) {
	l, down, err := b.lab(ctx, cniLab, "cni", b.binDir)
	defer func() { err = errors.Join(err, down()) }()
	if err != nil {
		return err
	}
	node, err := l.Place("node1")
	if err != nil {
		return err
	}
	like, err := l.Place("like")
	if err != nil {
		return err
	}
	var spaces []string
	for i := range adds {
		ns, err := b.netns(fmt.Sprintf("add-%d", i))
		if err != nil {
			return err
		}
		spaces = append(spaces, ns)
	}
	programs, err := programsOf(node.Agent.PID)
	if err != nil {
		return err
	}
	var total, plugin []float64
	for i, ns := range spaces {
		before, err := space.CgroupCPU(node.Cgroup)
		if err != nil {
			return err
		}
		own, err := add(ctx, node, like.CNIConf, fmt.Sprintf("bench-%d", i), ns)
		if err != nil {
			return err
		}
		after, err := space.CgroupCPU(node.Cgroup)
		if err != nil {
			return err
		}
		total = append(total, float64((own+after-before).Microseconds())/1000)
		plugin = append(plugin, float64(own.Microseconds())/1000)
	}
	b.metrics.median("cni_add_cpu_ms", "ms", "", total)
	b.metrics.median("cni_add_plugin_cpu_ms", "ms", "", plugin)
	progress("CNI ADD: %.2f ms CPU, of that %.2f ms the plugin", b.metrics["cni_add_cpu_ms"].Value, b.metrics["cni_add_plugin_cpu_ms"].Value)
	now, err := programsOf(node.Agent.PID)
	if err != nil {
		return err
	}
	loaded := 0
	for id := range now {
		if !programs[id] {
			loaded++
		}
	}
	per := float64(loaded) / adds
	b.metrics["programs_loaded_per_endpoint"] = metric{Value: per, Unit: "programs", Runs: adds, Min: per, Max: per}
	progress("%d programs before, %d new after %d endpoints", len(programs), loaded, adds)
	return nil
}

// add runs the plugin as a container runtime does and returns its CPU time.
func add(ctx context.Context, node lab.Place, conf []byte, id, netns string) (time.Duration, error) {
	plugin := filepath.Join(node.BinDir, "porin-cni")
	cmd := exec.CommandContext(ctx, plugin)
	cmd.Env = []string{
		"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + id, "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=" + node.BinDir,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + id,
	}
	cmd.Stdin = bytes.NewReader(conf)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := space.Run(cmd, node.Where); err != nil {
		return 0, fmt.Errorf("ADD %s: %w: %s", id, err, out.String())
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// programsOf lists the BPF programs that a process holds, directly or through links.
func programsOf(pid int) (map[string]bool, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("list what process %d holds: %w", pid, errors.Join(err, os.ErrNotExist))
	}
	out := map[string]bool{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // closed meanwhile
		}
		for line := range strings.Lines(string(data)) {
			if id, ok := strings.CutPrefix(line, "prog_id:"); ok {
				out[strings.TrimSpace(id)] = true
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("process %d holds no BPF program", pid)
	}
	return out, nil
}
