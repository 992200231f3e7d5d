package datapath

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
)

// Run keeps the kernel as it should be until ctx ends: the node's addresses, porin_host and its routes, links and pins that
// somebody took away, expired flows, and the rows that a Commit made superfluous.
func (d *Datapath) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.watchHost(ctx) })
	g.Go(func() error { return d.keepHost(ctx) })
	g.Go(func() error { return d.keepFlows(ctx) })
	return g.Wait()
}

// watchHost turns the kernel's news about addresses, devices and routes into a look at the host. News can be lost when the
// socket overflows: the subscription is made anew, and keepHost looks by itself every few seconds.
func (d *Datapath) watchHost(ctx context.Context) error {
	for ctx.Err() == nil {
		done := make(chan struct{})
		addrs, links, routes := make(chan netlink.AddrUpdate, 64), make(chan netlink.LinkUpdate, 64), make(chan netlink.RouteUpdate, 64)
		ignore := func(error) {} // the channel is closed after it
		err := errors.Join(
			netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: ignore}),
			netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: ignore}),
			netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: ignore}),
		)
		if err != nil {
			close(done)
			return fmt.Errorf("watch addresses, devices and routes: %w", err)
		}
		for open := true; open; {
			select {
			case <-ctx.Done():
				open = false
			case _, open = <-addrs:
			case u, ok := <-links:
				open = ok
				if ok && isPodDevice(u.Attrs().Name) {
					continue // a pod's own device comes and goes by this agent's hand
				}
			case _, open = <-routes:
			}
			poke(d.news)
		}
		close(done)
		go drain(addrs)
		go drain(links)
		go drain(routes)
	}
	return nil
}

// drain lets a subscription's goroutine end: it may be waiting to hand over one more message.
func drain[T any](ch <-chan T) {
	for range ch { //nolint:revive // nothing to do with them
	}
}

// settleTime is how long the host must be quiet before it is looked at; a host that never is has the regular look.
const settleTime = 50 * time.Millisecond

// keepHost looks at the host after news and every CheckInterval, and prunes when something is due.
func (d *Datapath) keepHost(ctx context.Context) error {
	tick := time.NewTicker(d.cfg.CheckInterval)
	defer tick.Stop()
	settle := time.NewTimer(settleTime)
	defer settle.Stop()
	prune := time.NewTimer(d.cfg.Grace)
	defer prune.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			d.check()
		case <-d.news:
			settle.Reset(settleTime) // news come in swarms
		case <-settle.C:
			d.check()
		case <-d.committed:
			prune.Reset(d.cfg.Grace)
		case <-prune.C:
			switch next, err := d.prune(time.Now(), false); {
			case err != nil:
				d.log.Warn("freeing unused policy rows", "err", err)
				prune.Reset(d.cfg.CheckInterval)
			case !next.IsZero():
				prune.Reset(max(time.Until(next), time.Millisecond))
			}
		}
	}
}

// check repairs what is not as it should be. Each fault is an alarm until a check finds it gone.
func (d *Datapath) check() {
	report := func(subject string, err error) {
		text := ""
		if err != nil {
			text = subject + ": " + err.Error()
		}
		if d.alarms.set(subject, text) && err != nil {
			d.log.Error("kernel state is not as it should be", "what", subject, "err", err)
		}
	}
	report("pins", d.checkPins())
	before := d.host.index()
	report("host", d.host.ensure())
	if now := d.host.index(); before != now {
		d.log.Warn("device was missing and is made again", "device", hostDevice, "ifindex", now)
	}
	report("routes to other nodes", d.syncNodeRoutes())
	report("settings", d.writeSettings())
	report("addresses", d.syncHostPeers())
	report("programs", d.checkPrograms())
	for name, full := range d.MapPressure() {
		if full < 0.9 {
			d.alarms.set("map "+name, "")
		}
	}
}

func (d *Datapath) checkPrograms() error {
	repaired, err := d.hooks.check()
	for _, k := range repaired {
		d.log.Warn("program or its pin was taken away and is back", "program", k.prog, "ifindex", k.ifindex)
	}
	return errors.Join(err, d.attachHost())
}

// checkPins mounts bpffs again when somebody unmounted it, and pins again what lost its name. The maps and programs
// themselves live on as long as this process holds them, so nothing that runs notices.
func (d *Datapath) checkPins() error {
	if err := mountBPF(d.cfg.BPFRoot); err != nil {
		return err
	}
	if err := ownFolder(d.cfg.BPFRoot); err != nil {
		return err
	}
	if err := d.dir.make(); err != nil {
		return err
	}
	lost := 0
	for name, m := range d.maps {
		if exists(d.dir.mapPin(name)) {
			continue
		}
		lost++
		if err := errors.Join(d.dir.writeShape(name, d.shapes[name]), pin(m.FD(), d.dir.mapPin(name))); err != nil {
			return err
		}
	}
	for name, p := range d.progs {
		if path := filepath.Join(d.dir.progs(), name); !exists(path) {
			lost++
			if err := pin(p.FD(), path); err != nil {
				return err
			}
		}
	}
	if lost > 0 {
		d.log.Warn("pins were removed and are back", "pins", lost, "folder", d.dir)
	}
	return d.dir.setComplete()
}

// prune frees the policy rows that nothing names any more. In need it does not wait for subjects that were put once more
// without being used since.
func (d *Datapath) prune(now time.Time, need bool) (next time.Time, err error) {
	return d.policy.prune(now, need, func() (map[uint32]bool, error) {
		rows, err := d.endpoints.all()
		if err != nil {
			return nil, err
		}
		named := map[uint32]bool{}
		for _, row := range rows {
			named[row.SubjectIn], named[row.SubjectOut] = true, true
		}
		return named, nil
	})
}

// keepFlows sweeps conntrack and nat, more often when they fill up.
func (d *Datapath) keepFlows(ctx context.Context) error {
	t := time.NewTimer(d.cfg.SweepInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := d.sweep(monotonic()); err != nil {
			d.log.Warn("sweep of expired flows", "err", err)
		}
		next := d.cfg.SweepInterval
		if p := d.MapPressure(); max(p[mapConntrack], p[mapNat]) > 0.5 {
			next /= 5
		}
		for _, name := range []string{mapConntrack, mapNat} {
			d.noteFlows(name)
		}
		t.Reset(next)
	}
}

// noteFlows warns while a flow map is so full that the kernel forgets the oldest flows by itself.
func (d *Datapath) noteFlows(name string) {
	if p := d.MapPressure()[name]; p > 0.9 {
		if d.alarms.set("map "+name, fmt.Sprintf("map %s is %.0f%% full: the oldest flows are forgotten; raise its size", name, p*100)) {
			d.log.Warn("map is nearly full", "map", name, "full", p)
		}
	}
}
