// Command bench measures porin against floors and peers in one run, prints a table and writes bench/latest.json.
// It needs root and the binaries of `make build`. The unit is CPU time of every process involved wherever there is one:
// wall-clock time on a shared machine says little. Figures that are compared are measured in turns, A-B-B-A.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"porin/internal/lab"
	"porin/internal/lab/space"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "lab" { // started by ourselves, to hold a node or make load
		cmd := lab.Command()
		cmd.SetArgs(os.Args[2:])
		if cmd.Execute() != nil {
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	pairs   int // A-B-B-A turns are two pairs
	binDir  string
	against string // binaries of another build, whose path is measured too
	modes   []string
	goTool  string
	dir     string // of namespace files; shared with nodes made later
	metrics results
	notes   []string

	// of the newest lab
	nodeNetns  string
	agentPID   int
	clientAddr netip.Addr
}

// part measures a few metrics in scenes of its own.
type part struct {
	name    string
	metrics []string
	run     func(*bench, context.Context) error
}

func parts() []part {
	return []part{
		{"paths", []string{"pod_rr_cpu_vs_veth", "pod_crr_cpu_vs_veth", "pod_stream_cpu_vs_veth", "pod_crr_programs_ns"}, (*bench).paths},
		{"packets", []string{"established_packet_ns", "first_packet_ns", "policy_lookup_ns", "peer_lookup_ns"}, (*bench).packets},
		{"policy", policyMetrics(), (*bench).policy},
		{"overlay", []string{
			"overlay_rr_cpu_vs_veth", "overlay_rr_p50_vs_veth", "overlay_rr_p50_vs_kernel_vxlan", "overlay_stream_vs_kernel_vxlan", "peers_bulk_us",
		}, (*bench).overlay},
		{"cluster", []string{"remote_pod_reachable_ms", "agent_rss_mib"}, (*bench).cluster},
		{"cni", []string{"cni_add_cpu_ms", "programs_loaded_per_endpoint"}, (*bench).cni},
	}
}

func run(ctx context.Context) (err error) {
	var names, out, binDir, modes string
	b := &bench{metrics: results{}}
	flag.StringVar(&names, "metrics", "", "measure only these, by comma (default: all)")
	flag.StringVar(&out, "out", "bench/latest.json", "file for the results")
	flag.StringVar(&binDir, "bin-dir", "bin", "folder of porin-agent and porin-cni")
	flag.StringVar(&b.against, "against", "", "folder of another build's binaries, whose path is measured in the same turns")
	flag.StringVar(&modes, "modes", strings.Join(modesOf(), ","), "kinds of traffic on the paths, by comma; empty: the programs only")
	flag.StringVar(&b.goTool, "go", "go", "the go command, for the benchmarks of packages")
	flag.IntVar(&b.pairs, "pairs", 20, "pairs of measurements for each ratio, at least 5")
	flag.Parse()
	if err := space.RequireRoot("the benchmark"); err != nil {
		return err
	}
	if b.pairs < 5 {
		return fmt.Errorf("--pairs %d: at least 5, or the median means nothing", b.pairs)
	}
	for _, dir := range []struct {
		given string
		set   *string
	}{{binDir, &b.binDir}, {b.against, &b.against}} {
		if dir.given == "" {
			continue
		}
		if *dir.set, err = filepath.Abs(dir.given); err != nil {
			return fmt.Errorf("find the binaries: %w", err)
		}
	}
	if modes != "" {
		b.modes = strings.Split(modes, ",")
	}
	for _, m := range b.modes {
		if !slices.Contains(modesOf(), m) {
			return fmt.Errorf("--modes: no traffic is called %q; there are %s", m, strings.Join(modesOf(), ", "))
		}
	}
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	b.dir = fmt.Sprintf("/run/porin-bench-%d", os.Getpid())
	if err := space.MakeDir(b.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, space.RemoveDir(b.dir)) }()
	for _, p := range chosen {
		t0 := time.Now()
		fmt.Fprintf(os.Stderr, "== %s\n", p.name)
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Fprintf(os.Stderr, "== %s took %s\n", p.name, time.Since(t0).Round(100*time.Millisecond))
	}
	if err := b.metrics.table(os.Stdout); err != nil {
		return err
	}
	for _, n := range b.notes {
		fmt.Println("note:", n)
	}
	return b.metrics.write(ctx, out)
}

// choose returns the parts that have the metrics named.
func choose(names string) ([]part, error) {
	all := parts()
	if names == "" {
		return all, nil
	}
	var known []string
	for _, p := range all {
		known = append(known, p.metrics...)
	}
	var out []part
	for name := range strings.SplitSeq(names, ",") {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("no metric is called %q; there are %s", name, strings.Join(known, ", "))
		}
		for _, p := range all {
			if slices.Contains(p.metrics, name) && !slices.ContainsFunc(out, func(x part) bool { return x.name == p.name }) {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "   "+format+"\n", args...)
}
