package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"porin/internal/durable"
	"porin/internal/kvstore"
)

// Values of --ipam.
const (
	ipamStatic      = "static"       // the ranges are settings
	ipamClusterPool = "cluster-pool" // porin-operator gives them
)

// rangesFile keeps what this node was given: its workloads live in it, whatever the store says later.
const rangesFile = "ranges.json"

// ranges are those that porin-operator gave this node.
type ranges struct {
	log   *slog.Logger
	cfg   Config
	store *kvstore.Ranges

	mu    sync.Mutex
	has   []netip.Prefix // mu
	alarm string         // mu
}

// newRanges reads what this node was given before.
func newRanges(log *slog.Logger, cfg Config, client *kvstore.Client) (*ranges, error) {
	r := &ranges{log: log, cfg: cfg, store: kvstore.NewRanges(log, client, cfg.ClusterName)}
	b, err := os.ReadFile(r.file())
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &r.has)
	}
	if err != nil {
		return nil, fmt.Errorf("read this node's ranges: %w; %s has what the workloads' addresses are from: mend it, or remove it if there are none", err, r.file())
	}
	return r, nil
}

func (r *ranges) file() string { return filepath.Join(r.cfg.StateDir, rangesFile) }

// await returns the node's ranges: those it has, or else those that it is given, for which it waits as long as it takes.
func (r *ranges) await(ctx context.Context) (v4, v6 netip.Prefix, err error) {
	if r.complete() {
		v4, v6 = r.get()
		r.log.Info("ranges of this node are known", "ipv4", v4, "ipv6", v6)
		return v4, v6, nil
	}
	began := time.Now()
	wait, done := context.WithCancel(ctx)
	defer done()
	remind := time.NewTicker(30 * time.Second)
	defer remind.Stop()
	r.log.Info("waiting for porin-operator to give this node its ranges", "cluster", r.cfg.ClusterName)
	asked := make(chan error, 1)
	var saveErr error
	go func() {
		asked <- r.store.Ask(wait, r.request, func(g kvstore.RangeGrant, there bool) {
			r.told(g, there)
			if r.complete() {
				saveErr = r.save()
				done()
			}
		})
	}()
	for {
		select {
		case err := <-asked:
			if ctx.Err() != nil {
				return v4, v6, ctx.Err()
			}
			if !r.complete() {
				return v4, v6, fmt.Errorf("wait for this node's ranges: %w", err)
			}
			v4, v6 = r.get()
			r.log.Info("ranges given", "ipv4", v4, "ipv6", v6, "took", time.Since(began))
			return v4, v6, saveErr
		case <-remind.C:
			r.log.Warn("still waiting for porin-operator to give this node its ranges: does one run, with this store and cluster?",
				"for", time.Since(began).Round(time.Second), "why", r.Alarm())
		}
	}
}

// Run keeps asking for what the node has, so that a store that lost it learns it again.
func (r *ranges) Run(ctx context.Context) error {
	return r.store.Ask(ctx, r.request, r.told)
}

func (r *ranges) request() kvstore.RangeRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return kvstore.RangeRequest{Node: r.cfg.NodeName, IPv4: r.cfg.IPv4, IPv6: r.cfg.IPv6, Has: slices.Clone(r.has)}
}

// told takes in what the store says that this node has. A family that has a range keeps it: its workloads live there.
func (r *ranges) told(g kvstore.RangeGrant, there bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.alarm
	r.alarm = ""
	if there {
		r.alarm = g.Problem
		for _, p := range g.Ranges {
			i := slices.IndexFunc(r.has, func(h netip.Prefix) bool { return h.Addr().Is4() == p.Addr().Is4() })
			switch {
			case i < 0:
				r.has = append(r.has, p)
			case r.has[i] != p && !slices.Contains(g.Ranges, r.has[i]):
				r.alarm = fmt.Sprintf("the store says that %s is this node's, but its workloads are in %s: move them away and remove %s", p, r.has[i], r.file())
			}
		}
	}
	if r.alarm != "" && r.alarm != before {
		r.log.Error("ranges of this node are in dispute", "why", r.alarm)
	}
}

// Alarm is what a person must see, or empty.
func (r *ranges) Alarm() string {
	if r == nil {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.alarm == "" {
		return ""
	}
	return "ranges of this node: " + r.alarm
}

func (r *ranges) get() (v4, v6 netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.has {
		if p.Addr().Is4() && r.cfg.IPv4 {
			v4 = p
		} else if p.Addr().Is6() && r.cfg.IPv6 {
			v6 = p
		}
	}
	return v4, v6
}

func (r *ranges) complete() bool {
	v4, v6 := r.get()
	return v4.IsValid() == r.cfg.IPv4 && v6.IsValid() == r.cfg.IPv6
}

// save writes what this node has, whole or not at all.
func (r *ranges) save() error {
	r.mu.Lock()
	b, err := json.Marshal(r.has)
	r.mu.Unlock()
	if err == nil {
		err = durable.Replace(r.file(), b)
	}
	if err != nil {
		return fmt.Errorf("keep this node's ranges: %w", err)
	}
	return nil
}

// awaitRanges sets the ranges that porin-operator gives this node, in cfg and in what the API shows.
func (a *agent) awaitRanges(ctx context.Context, log *slog.Logger, cfg *Config) (err error) {
	if a.ranges, err = newRanges(log, *cfg, a.store); err != nil {
		return err
	}
	if cfg.IPv4Range, cfg.IPv6Range, err = a.ranges.await(ctx); err != nil {
		return err
	}
	a.cfg.IPv4Range, a.cfg.IPv6Range = cfg.IPv4Range, cfg.IPv6Range
	for key, p := range map[string]netip.Prefix{"ipv4-range": cfg.IPv4Range, "ipv6-range": cfg.IPv6Range} {
		if p.IsValid() {
			a.live.set(key, p.String())
		}
	}
	return nil
}
