// Package agent assembles the node agent: it makes every room, starts them in order, and serves the local API. It reads
// the settings and writes what no room owns: locks, saved policies, sockets. It never decides what a room could.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	agentv1 "porin/api/agent/v1"
	"porin/internal/datapath"
	"porin/internal/endpoint"
	"porin/internal/flow"
	"porin/internal/health"
	"porin/internal/identity"
	"porin/internal/ipam"
	"porin/internal/kvstore"
	"porin/internal/labels"
	"porin/internal/metrics"
	"porin/internal/policy"
	"porin/internal/state"
)

// Version is set by the linker.
var Version = "unknown"

// StoreCommand is the argument with which the agent's binary becomes the embedded store's process.
const StoreCommand = "store"

// Files of the run and state folders.
const (
	storeSocket = "etcd.sock"
	apiSocket   = "agent.sock"
	cniSocket   = "cni.sock"
	pidFile     = "agent.pid"
	lockFile    = "agent.lock"
	storeDir    = "etcd"
	policyDir   = "policies"
)

// agent is the rooms, for the API and the metrics that look into all of them.
type agent struct {
	log     *slog.Logger
	cfg     Config
	live    *live
	names   names
	started time.Time

	db         *state.DB
	ranges     *ranges // nil when they are settings
	addresses  *ipam.IPAM
	store      *kvstore.Client
	identities *identity.Allocator
	cluster    *cluster
	engine     *engine
	datapath   *datapath.Datapath
	endpoints  *endpoint.Endpoints
	policies   *policies
	health     *health.Mesh // nil without other nodes
	healthAt   atomic.Pointer[[]netip.Addr]
	observer   *flow.Observer
	metrics    *metrics.Metrics
}

// Run runs an agent until ctx ends or a room fails. It leaves the datapath in place: traffic and policy go on.
//
//	started ↓   stopped ↑                                            waits for
//	locks, folders                                                   nobody else on this node
//	store ............. embedded etcd in a process of its own        -
//	tables, ipam, policy engine, identities                          -
//	datapath .......... maps, programs, links: adopted or made       the kernel
//	cidr identities ← pinned prefixes; identities ← state files      -            (the store may be away)
//	endpoints ......... restored, under the rules they had           datapath
//	identities, datapath, endpoints: running                         -
//	cluster ........... own records, other nodes, other clusters     -            (the store may be away)
//	events → flow observer, metrics listener                         datapath
//	policies .......... saved ones and watched folder, in force      endpoints
//	health ............ own endpoint, questions to the other nodes   endpoints
//	sockets ........... API, CNI                                     all of the above
func Run(ctx context.Context, cfg Config) (err error) {
	a := &agent{cfg: cfg, live: newLive(cfg), started: time.Now()}
	a.metrics = metrics.New(a, Version)
	log := slog.New(a.metrics.Count(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: &a.live.level})))
	room := func(name string) *slog.Logger { return log.With(metrics.SubsystemKey, name) }
	a.log = room("agent")

	unlock, err := claimNode(cfg)
	if err != nil {
		return err
	}
	defer unlock()
	if err := calmTimers(); err != nil {
		a.log.Warn("threads wake up more often than needed", "err", err)
	}
	a.log.Info("agent starts", "version", Version, "node", cfg.NodeName, "run-dir", cfg.RunDir, "state-dir", cfg.StateDir)
	run := newStack(ctx, a.log)
	defer func() { err = errors.Join(err, run.stop()) }()

	// the store
	storeCfg := cfg.storeClient(a.metrics.StoreDid)
	if cfg.Endpoints == nil {
		server := cfg.storeServer()
		process := &kvstore.Process{Log: room("store"), Path: "/proc/self/exe", Args: append([]string{StoreCommand}, server.Args()...)}
		run.start("store", process.Run)
		storeCfg.Endpoints = []string{server.Endpoint()}
	}
	if a.store, err = kvstore.Dial(room("kvstore"), storeCfg); err != nil {
		return err
	}
	run.atEnd("store client", a.store.Close)
	if cfg.ClusterPool {
		if err := a.awaitRanges(ctx, room("ipam"), &cfg); err != nil {
			return err
		}
		run.start("ranges", a.ranges.Run)
	}

	// the deciders
	a.db = state.New()
	numbers := kvstore.NewIdentities(room("kvstore"), a.store)
	dual := cfg.IPv4Range.IsValid() && cfg.IPv6Range.IsValid()
	identities := identity.NewTable(a.db)
	a.identities = identity.New(room("identity"), identity.Config{
		DualStack: dual, ClusterID: cfg.Cluster.ID,
		Withdraw: func(id identity.ID) error { return a.cluster.nodes.Withdraw(id) },
		Told:     func(id identity.ID) { a.cluster.nodes.Told(id) },
		Conflict: func(id identity.ID, _ labels.Labels) { a.endpoints.Reidentify(id) }, // called by Run only, below
	}, a.metrics.Store(numbers), identities)
	if a.addresses, err = ipam.New(ipam.Config{IPv4: cfg.IPv4Range, IPv6: cfg.IPv6Range}); err != nil {
		return err
	}
	a.engine = newEngine(policy.Config{Enforcement: cfg.Enforcement, AllowLocalhost: cfg.AllowLocalhost, Audit: cfg.Audit, Cluster: cfg.ClusterName, DualStack: dual, OnlyIPv6: !cfg.IPv4Range.IsValid()})

	// the kernel
	began := time.Now()
	router4, router6 := a.addresses.Router()
	a.datapath, err = datapath.Open(room("datapath"), cfg.routes(datapath.Config{
		BPFRoot: cfg.BPFRoot, IPv4Range: cfg.IPv4Range, IPv6Range: cfg.IPv6Range, RouterIPv4: router4, RouterIPv6: router6,
		Devices: cfg.Devices, MTU: cfg.MTU, Masquerade: cfg.Masquerade, MasqueradeExclude: cfg.MasqueradeExclude,
		Audit: cfg.Audit, TraceAll: cfg.TraceAll, MonitorInterval: cfg.MonitorInterval,
		CTMax: cfg.CTMax, NATEntries: cfg.NATMax, PolicyMax: cfg.PolicyMax, EventsBytes: cfg.EventsBytes,
	}))
	a.metrics.Bootstrapped("datapath", time.Since(began), err)
	if err != nil {
		return err
	}
	run.atEnd("datapath handles", a.datapath.Close)
	a.cluster = a.newCluster(room("node"))

	// what was there before: it goes on as it was until the policies below are in force
	began = time.Now()
	prefixes := a.datapath.RestoredPrefixes()
	a.identities.RestoreCIDRs(prefixes)
	if err := a.recall(); err != nil {
		return err
	}
	a.endpoints = endpoint.New(room("endpoint"),
		endpoint.Config{StateDir: cfg.StateDir, MTU: a.datapath.MTU, Security: cfg.security, Prefixes: prefixes, Identities: identities},
		endpoint.Deps{DB: a.db, Datapath: a.metrics.Datapath(a.datapath), Policy: a.engine, Identities: a.identities, Addresses: a.addresses})
	err = a.endpoints.Restore(ctx)
	a.metrics.Bootstrapped("restore", time.Since(began), err)
	if err != nil {
		return err
	}

	// running
	run.start("kvstore", numbers.Run)
	run.start("identity", a.identities.Run)
	run.start("identity sweep", a.sweep)
	run.start("datapath", a.datapath.Run)
	run.start("endpoint", a.endpoints.Run)
	a.newHealth(room("health"))
	if err := a.startCluster(run, room); err != nil {
		return err
	}

	// observing
	a.observer = flow.New(room("flow"), a, 0)
	run.start("events", func(ctx context.Context) error { return a.datapath.Events(ctx, a.observer.Handle) })
	run.start("lost events", a.countLost)
	run.start("announcements", a.announce)
	run.start("metrics", func(ctx context.Context) error { return a.metrics.Serve(ctx, cfg.MetricsAddress) })

	// the rules
	began = time.Now()
	a.policies = newPolicies(room("policy"), filepath.Join(cfg.StateDir, policyDir), cfg.PolicyDir, a.endpoints)
	a.policies.told = a.policyChanged
	err = a.policies.Restore(ctx)
	a.metrics.Bootstrapped("policies", time.Since(began), err)
	if err != nil {
		return err
	}
	run.start("policies", a.policies.Run)
	a.startHealth(run, room("health"))

	// the doors
	if err := a.openCNI(run, room("cni")); err != nil {
		return err
	}
	if err := a.openAPI(run, room("api")); err != nil {
		return err
	}
	a.metrics.Bootstrapped("overall", time.Since(a.started), nil)
	a.log.Info("agent serves", "socket", filepath.Join(cfg.RunDir, apiSocket), "endpoints", len(a.endpoints.List()), "rev", a.endpoints.Revision(), "took", time.Since(a.started))
	a.observer.Announce(&agentv1.AgentEvent{Type: "agent-started", Text: "porin-agent " + Version + " serves"})
	return run.wait()
}

// sweep gives identities back that nobody uses any more.
func (a *agent) sweep(ctx context.Context) error {
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if ok, _ := a.store.Healthy(); !ok {
				continue
			}
			if err := a.identities.Sweep(ctx); err != nil && ctx.Err() == nil {
				a.log.Warn("unused identities are kept for now", "err", err)
			}
		}
	}
}

// countLost tells the observer of events for which the kernel had no room.
func (a *agent) countLost(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var told uint64
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if n := a.datapath.Lost(); n > told {
				a.observer.Lost(n - told)
				told = n
			}
		}
	}
}

func (a *agent) policyChanged(source string, took time.Duration, changed []policy.Ref, revision uint64, err error) {
	a.metrics.PolicyChanged(source, took, err)
	if err != nil {
		return // whoever asked for the change is told
	}
	a.observer.Announce(&agentv1.AgentEvent{Type: "policy-changed", Text: fmt.Sprintf("revision %d: %v", revision, changed)})
}
