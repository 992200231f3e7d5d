package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// policyBench says where a metric of the policy engine comes from: a benchmark of internal/policy and the unit of its line.
type policyBench struct {
	metric, unit string
	bench        string // as in the output, without the number of processors
	of           string // the unit in the output
	scale        float64
	times        string // -benchtime
}

func policyBenches() []policyBench {
	return []policyBench{
		{"policy_resolve_1k_3k_us", "us", "BenchmarkResolve1kRules3kIdentities/same", "ns/op", 1e-3, "500x"},
		{"policy_identity_added_us", "us", "BenchmarkIdentityAdded/same", "ns/op", 1e-3, "2000x"},
		{"policy_20k_nomatch_us", "us", "Benchmark20kRulesNoMatch", "ns/op", 1e-3, "2000x"},
		{"policy_cluster_cpu_s", "s", "BenchmarkCluster", "cpu-s/op", 1, "1x"},
		{"policy_cluster_heap_mb", "MB", "BenchmarkCluster", "heap-MB", 1, "1x"},
		{"policy_10k_rules_50k_cidrs_s", "s", "BenchmarkRootHugePolicyInForce", "s", 1, "1x"},
		{"policy_10k_rules_50k_cidrs_cpu_s", "s", "BenchmarkRootHugePolicyInForce", "cpu-s", 1, "1x"},
	}
}

func policyMetrics() (out []string) {
	for _, p := range policyBenches() {
		out = append(out, p.metric)
	}
	return out
}

// policy runs the benchmarks of the policy engine. They need no lab, only the go command that built this program.
func (b *bench) policy(ctx context.Context) error {
	runs := map[string][][]string{} // output lines in fields, by benchmark
	for _, p := range policyBenches() {
		if runs[p.bench] != nil {
			continue
		}
		cmd := exec.CommandContext(ctx, b.goTool, "test", "-run", "^$", "-bench", benchPattern(p.bench), "-benchtime", p.times, "-count", "5", "./internal/policy")
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[0], p.bench+"-") {
				runs[p.bench] = append(runs[p.bench], f)
			}
		}
		if len(runs[p.bench]) == 0 {
			return fmt.Errorf("%s printed no %s:\n%s", strings.Join(cmd.Args, " "), p.bench, out)
		}
	}
	for _, p := range policyBenches() {
		var values []float64
		for _, f := range runs[p.bench] {
			for i := 3; i < len(f); i += 2 {
				if f[i] != p.of {
					continue
				}
				v, err := strconv.ParseFloat(f[i-1], 64)
				if err != nil {
					return fmt.Errorf("%s: %w", p.bench, err)
				}
				values = append(values, v*p.scale)
			}
		}
		if len(values) == 0 {
			return fmt.Errorf("%s printed no %s", p.bench, p.of)
		}
		b.metrics.lowest(p.metric, p.unit, "", values)
	}
	return nil
}

// benchPattern names one benchmark for -bench, which takes a regular expression for each part of the name.
func benchPattern(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}
