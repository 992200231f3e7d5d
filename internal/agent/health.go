package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"porin/internal/endpoint"
	"porin/internal/health"
	"porin/internal/node"
)

// The health endpoint is this node's own workload: what reaches it reaches any other. It lives in a network namespace of
// its own, held by a file, so that it outlives the agent as workloads do; its server is the agent's.
const (
	healthNetns     = "health.netns" // in the run folder
	healthContainer = "porin-health"
	healthAgain     = 5 * time.Second // between two tries to make it
)

// healthEndpoint makes the endpoint or takes it over, as often as it takes.
func (a *agent) healthEndpoint(ctx context.Context, log *slog.Logger) (endpoint.Endpoint, error) {
	file := filepath.Join(a.cfg.RunDir, healthNetns)
	told := false
	for {
		err := health.Netns(file)
		if err == nil {
			var ep endpoint.Endpoint
			ep, err = a.endpoints.Create(ctx, endpoint.Request{ContainerID: healthContainer, IfName: "eth0", Netns: file, Health: true})
			if err == nil {
				return ep, nil
			}
		}
		if !told && ctx.Err() == nil {
			told = true
			log.Warn("health endpoint is not there yet", "err", err, "again-in", healthAgain)
		}
		select {
		case <-time.After(healthAgain):
		case <-ctx.Done():
			return endpoint.Endpoint{}, ctx.Err()
		}
	}
}

// mesh of health: nil without other nodes, or when it is switched off.
func (a *agent) newHealth(log *slog.Logger) {
	if !a.cfg.Cluster.Shared || a.cfg.HealthInterval == 0 {
		return
	}
	a.health = health.New(log, health.Config{Node: a.cfg.NodeName, Interval: a.cfg.HealthInterval, Nodes: a.healthTargets}, health.NewTable(a.db))
	a.metrics.Add(a.health.Collector())
	if ep, ok := a.endpoints.ByAttachment(endpoint.Attachment{ContainerID: healthContainer, IfName: "eth0"}); ok {
		a.answersAt(ep) // restored: the others need not forget it
	}
}

// answersAt notes the health endpoint's addresses.
func (a *agent) answersAt(ep endpoint.Endpoint) []netip.Addr {
	var addrs []netip.Addr
	for _, addr := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if addr.IsValid() {
			addrs = append(addrs, addr)
		}
	}
	a.healthAt.Store(&addrs)
	return addrs
}

// healthTargets are the nodes that are known, this one too. Those of other clusters are named with their cluster.
func (a *agent) healthTargets() (list []health.Node) {
	for _, r := range a.cluster.nodes.Table().List() {
		if r.State == node.Refused {
			continue
		}
		n := health.Node{Name: r.Name, Addrs: r.Addresses, Health: r.Health}
		if r.Cluster != a.cfg.ClusterName {
			n.Name = r.Key()
		}
		list = append(list, n)
	}
	return list
}

// healthAddresses are where the health endpoint answers; none before it does.
func (a *agent) healthAddresses() []netip.Addr {
	if p := a.healthAt.Load(); p != nil {
		return *p
	}
	return nil
}

// startHealth starts it, or removes what it left when it is switched off.
func (a *agent) startHealth(run *stack, log *slog.Logger) {
	if a.health == nil {
		run.start("health", func(ctx context.Context) error {
			if err := a.removeHealth(ctx); err != nil && ctx.Err() == nil {
				log.Warn("health endpoint is left from before", "err", err)
			}
			return nil
		})
		return
	}
	run.start("health", func(ctx context.Context) error { return a.runHealth(ctx, log, a.nodeAddresses()) })
}

// runHealth makes this node answer, tells the others where, and asks the others, until ctx ends.
func (a *agent) runHealth(ctx context.Context, log *slog.Logger, own []netip.Addr) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, addr := range own {
		g.Go(func() error { return answerOn(ctx, log, addr, listenHere) })
	}
	g.Go(func() error {
		ep, err := a.healthEndpoint(ctx, log)
		if err != nil {
			return err
		}
		for _, addr := range a.answersAt(ep) {
			g.Go(func() error {
				return answerOn(ctx, log, addr, func(at string) (net.Listener, error) { return health.Listen(ep.Netns, at) })
			})
		}
		a.publishSelf(own)
		return nil
	})
	g.Go(func() error { return a.health.Run(ctx) })
	return g.Wait()
}

func listenHere(at string) (net.Listener, error) { return net.Listen("tcp", at) }

// answerOn serves on one address. That somebody else has the port, or that the address comes and goes, costs this node
// its answer there and nothing else.
func answerOn(ctx context.Context, log *slog.Logger, addr netip.Addr, listen func(string) (net.Listener, error)) error {
	at := net.JoinHostPort(addr.String(), strconv.Itoa(health.Port))
	told := false
	for {
		l, err := listen(at)
		if err == nil {
			told = false
			err = health.Serve(ctx, l)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !told {
			told = true
			log.Warn("this node does not answer the others' questions there", "addr", at, "err", err, "again-in", healthAgain)
		}
		select {
		case <-time.After(healthAgain):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// removeHealth takes away the endpoint of a time when the setting was on.
func (a *agent) removeHealth(ctx context.Context) error {
	if err := a.endpoints.Delete(ctx, healthContainer, "eth0"); err != nil && !errors.Is(err, endpoint.ErrNotReady) {
		return fmt.Errorf("remove the health endpoint: %w", err)
	}
	return nil
}
