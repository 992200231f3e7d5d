package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"porin/internal/lab/load"
)

// programs tells how long the programs of an agent run for one short connection, by the kernel's own clock around each run.
// It is less than what they cost, for caches that they fill are others' to fill again, but it repeats far better.
func (b *bench) programs(ctx context.Context, scenes []scene) (err error) {
	stop, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return fmt.Errorf("let the kernel time programs: %w", err)
	}
	defer func() { err = errors.Join(err, stop.Close()) }()
	nodes := map[string]*node{}
	for _, s := range scenes {
		if s.agent == 0 {
			continue
		}
		n, err := openNode(s.agent)
		if err != nil {
			return err
		}
		defer n.close()
		nodes[s.name] = n
	}
	took, runs := map[string][]float64{}, map[string][]float64{}
	for range b.pairs {
		for _, s := range scenes {
			n := nodes[s.name]
			if n == nil {
				continue
			}
			ns, count, err := n.during(func() error {
				_, err := s.pair.Measure(load.CRR, operations()[load.CRR])
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			took[s.name] = append(took[s.name], ns/float64(operations()[load.CRR]))
			runs[s.name] = append(runs[s.name], count/float64(operations()[load.CRR]))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	for name := range nodes {
		b.metrics.median(name+"_crr_programs_ns", "ns", "", took[name])
		b.metrics.median(name+"_crr_packets", "packets", "", runs[name])
		progress("%s: programs run %.0f ns for a short connection of %.1f packets", name,
			b.metrics[name+"_crr_programs_ns"].Value, b.metrics[name+"_crr_packets"].Value)
	}
	return nil
}

// during returns how long and how often pod_egress ran while do did.
func (n *node) during(do func() error) (ns, runs float64, err error) {
	before, err := n.prog.Stats()
	if err != nil {
		return 0, 0, fmt.Errorf("read the statistics of pod_egress: %w", err)
	}
	if err := do(); err != nil {
		return 0, 0, err
	}
	after, err := n.prog.Stats()
	if err != nil {
		return 0, 0, fmt.Errorf("read the statistics of pod_egress: %w", err)
	}
	return float64((after.Runtime - before.Runtime).Nanoseconds()), float64(after.RunCount - before.RunCount), nil
}

// programIDs are the numbers of programsOf.
func programIDs(pid int) ([]ebpf.ProgramID, error) {
	texts, err := programsOf(pid)
	if err != nil {
		return nil, err
	}
	var ids []ebpf.ProgramID
	for text := range texts {
		var id ebpf.ProgramID
		if _, err := fmt.Sscan(text, &id); err != nil {
			return nil, fmt.Errorf("read program id %q: %w", text, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}
