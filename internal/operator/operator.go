// Package operator assembles porin-operator: one process of a cluster, elected among several, that gives nodes their
// ranges of addresses and collects identities that nobody uses.
// It reads and writes records in the store and serves its figures on loopback. It never touches a kernel, and a cluster
// whose nodes have their ranges runs without it.
package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"porin/internal/identity"
	"porin/internal/kvstore"
)

// Version is set by the linker.
var Version = "unknown"

// Operator is one candidate.
type Operator struct {
	log     *slog.Logger
	cfg     Config
	figures *figures

	mu      sync.Mutex
	leading bool // mu
}

// New returns an operator that Run starts.
func New(log *slog.Logger, cfg Config) *Operator {
	return &Operator{log: log, cfg: cfg, figures: newFigures()}
}

// Run works until ctx ends: it leads when elected, and waits for its turn otherwise.
//
//	store client ── election ──▶ leading: ranges ─┐ until the leadership ends
//	     │                           identities ──┘
//	     └── memory of who has what, figures, health: always
func (o *Operator) Run(ctx context.Context) error {
	client, err := kvstore.Dial(o.log.With("subsystem", "kvstore"), o.cfg.Store)
	if err != nil {
		return err
	}
	defer client.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return o.serve(ctx) })
	ranges := kvstore.NewRanges(o.log.With("subsystem", "ranges"), client, o.cfg.Cluster)
	m := newMemory(o.cfg.Grace)
	g.Go(func() error { return ranges.Changes(ctx, lookAnyway, m.watch(ranges, o.cfg.now)) })
	g.Go(func() error {
		return client.Lead(ctx, "operator/"+o.cfg.Cluster, o.cfg.Name, o.cfg.LeaderTTL, func(ctx context.Context, lead kvstore.Leadership) error {
			o.lead(true)
			defer o.lead(false)
			return o.work(ctx, client, newGiver(o.log.With("subsystem", "ranges"), o.cfg, o.figures, ranges, lead, m))
		})
	})
	err = g.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// work is what a leader does.
func (o *Operator) work(ctx context.Context, client *kvstore.Client, giver *giver) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return giver.run(ctx) })
	numbers := kvstore.NewIdentities(o.log.With("subsystem", "identities"), client)
	g.Go(func() error { return numbers.Run(ctx) })
	g.Go(func() error {
		known := map[identity.ID]bool{}
		return numbers.Watch(ctx, func(upsert bool, id identity.ID, _ string) {
			if upsert {
				known[id] = true
			} else {
				delete(known, id)
			}
			o.figures.identities.Set(float64(len(known)))
		})
	})
	return g.Wait()
}

func (o *Operator) lead(yes bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.leading = yes
	o.figures.leading(yes)
}

// serve answers GET /metrics and GET /healthz until ctx ends.
func (o *Operator) serve(ctx context.Context) error {
	if o.cfg.MetricsAddress == "" {
		<-ctx.Done()
		return ctx.Err()
	}
	l, err := net.Listen("tcp", o.cfg.MetricsAddress)
	if err != nil {
		return fmt.Errorf("listen on %s: %w; choose another with --metrics-address, or '' for none", o.cfg.MetricsAddress, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.figures.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.leading {
			fmt.Fprintln(w, "ok, leading")
			return
		}
		fmt.Fprintln(w, "ok, another one leads or the store does not answer") // ready to take over, which is its job
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return ctx.Err()
}
