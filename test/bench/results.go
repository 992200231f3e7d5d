package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// metric is one figure. Ratios are ours / theirs: below 1 is ahead.
type metric struct {
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`
	Runs    int     `json:"runs"`
	Min     float64 `json:"min"`
	Max     float64 `json:"max"`
	Against string  `json:"against,omitempty"` // floor or peer
}

type results map[string]metric

// median sets name to the median of values.
func (r results) median(name, unit, against string, values []float64) {
	s := slices.Sorted(slices.Values(values))
	m := s[len(s)/2]
	if len(s)%2 == 0 {
		m = (s[len(s)/2-1] + s[len(s)/2]) / 2
	}
	r[name] = metric{Value: m, Unit: unit, Runs: len(s), Min: s[0], Max: s[len(s)-1], Against: against}
}

// lowest sets name to the lowest of values: what the work costs when nothing disturbs it.
func (r results) lowest(name, unit, against string, values []float64) {
	r.median(name, unit, against, values)
	m := r[name]
	m.Value = m.Min
	r[name] = m
}

func (r results) names() []string {
	var out []string
	for n := range r {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func (r results) table(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "METRIC\tVALUE\tUNIT\tMIN\tMAX\tRUNS\tAGAINST")
	for _, n := range r.names() {
		m := r[n]
		fmt.Fprintf(tw, "%s\t%.4g\t%s\t%.4g\t%.4g\t%d\t%s\n", n, m.Value, m.Unit, m.Min, m.Max, m.Runs, m.Against)
	}
	return tw.Flush()
}

// write saves the results as bench/latest.json has them.
func (r results) write(ctx context.Context, file string) error {
	report := map[string]any{"machine": machine(), "commit": commit(ctx), "metrics": r}
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	tmp := file + ".tmp"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	progress("results written to %s", file)
	return nil
}

// machine says on what was measured: processor, cores, kernel and Go.
func machine() map[string]any {
	out := map[string]any{"cpus": runtime.NumCPU(), "go": runtime.Version(), "arch": runtime.GOARCH}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		out["kernel"] = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				out["cpu"] = strings.TrimSpace(v)
				break
			}
		}
	}
	return out
}

func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "-c", "safe.directory=*", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
