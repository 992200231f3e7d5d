package endpoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"porin/internal/identity"
)

// Run repeats what did not work, removes endpoints whose device vanished, claims restored identities and follows
// those of other nodes, until ctx ends.
func (e *Endpoints) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if e.identities != nil {
		g.Go(func() error { return e.follow(ctx) })
	}
	g.Go(func() error {
		if e.waitBegun(ctx) != nil {
			return nil
		}
		g.Go(func() error { return e.retries(ctx) })
		e.checks(ctx)
		return nil
	})
	return g.Wait()
}

// follow keeps the engine's identities equal to the table's. It costs by the change, not by the table.
func (e *Endpoints) follow(ctx context.Context) error {
	for {
		rows, gone, changed := e.identities.Next()
		if e.take(ctx) != nil {
			return nil
		}
		e.learnChanges(rows, gone)
		e.give()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// learnChanges learns the cluster's identities that came into the table and unlearns those that went, unless an endpoint
// here has them, whatever the store says. CIDR identities come and go with policies.
func (e *Endpoints) learnChanges(came, went []identity.Identity) {
	e.learn(slices.DeleteFunc(came, func(id identity.Identity) bool { return id.ID.IsLocal() })...)
	for _, id := range went {
		e.kernel.departed[id.ID] = struct{}{}
	}
	if len(e.kernel.departed) == 0 {
		return
	}
	own := map[identity.ID]bool{}
	for _, ep := range e.rows.List() {
		own[ep.Identity] = true
	}
	var gone []identity.ID
	for id := range e.kernel.departed {
		there := e.inTable(id)
		if !there && own[id] {
			continue
		}
		delete(e.kernel.departed, id)
		if _, known := e.kernel.known[id]; !there && known && !id.IsLocal() && !id.IsReserved() {
			gone = append(gone, id)
		}
	}
	e.unlearn(gone...)
}

func (e *Endpoints) inTable(id identity.ID) bool {
	if e.cfg.Identities == nil {
		return false
	}
	_, ok := e.cfg.Identities.Get(identity.TableKey(id))
	return ok
}

// Learn returns once every rule in force knows the identities. Whoever gives an address to an identity of another
// node calls it before.
func (e *Endpoints) Learn(ctx context.Context, ids ...identity.Identity) error {
	if err := e.take(ctx); err != nil {
		return fmt.Errorf("learn %d identities: %w", len(ids), err)
	}
	defer e.give()
	e.learn(ids...)
	return e.exposed()
}

// Reidentify makes Run ask for the identities of the endpoints with this number anew. It does not block.
func (e *Endpoints) Reidentify(id identity.ID) {
	for _, ep := range e.rows.List() {
		if ep.Identity == id {
			e.noteOf(ep.ID, func(n *note) { n.doubted = true })
		}
	}
	e.wake()
}

// retries does what is due, then sleeps until something else is.
func (e *Endpoints) retries(ctx context.Context) error {
	for {
		wait := e.retry(ctx)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-e.kick:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// retry does what is due and returns how long nothing else is.
func (e *Endpoints) retry(ctx context.Context) time.Duration {
	now := e.cfg.Now()
	var due []uint16
	e.mu.Lock()
	for id, n := range e.notes {
		if !n.next.IsZero() && !n.next.After(now) {
			due = append(due, id)
		}
	}
	e.mu.Unlock()
	for _, id := range due {
		if err := e.retryOne(ctx, id); err != nil && ctx.Err() == nil && !errors.Is(err, ErrNotFound) {
			e.log.Warn("endpoint not repaired yet", "ep", id, "err", err)
		}
	}
	wait := e.cfg.RetryMax
	if e.take(ctx) == nil {
		if e.sweepPrefixes() {
			wait = min(wait, e.cfg.Grace)
		}
		if e.owed() && e.commit() != nil {
			wait = min(wait, e.cfg.RetryFirst)
		}
		e.give()
	}
	now = e.cfg.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range e.notes {
		if !n.next.IsZero() {
			wait = min(wait, max(n.next.Sub(now), time.Millisecond))
		}
	}
	return wait
}

// retryOne tries once more what did not work for an endpoint, and plans the next try if it does not work again.
func (e *Endpoints) retryOne(ctx context.Context, id uint16) error {
	ep, unlock, err := e.hold(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	var unsaved, blocked bool
	e.noteOf(id, func(n *note) { n.next, unsaved, blocked = time.Time{}, n.unsaved, n.blocked })
	switch {
	case !ep.settled(): // whoever made it has given up, or its lock would be taken
		return e.undo(ctx, ep)
	case ep.Phase == NotReady && !blocked:
		if ep, err = e.repair(ctx, ep); err != nil {
			return err
		}
	}
	if unsaved && ep.Phase == Ready {
		e.persist(ep)
	}
	return nil
}

// repair gets an endpoint that is denied ready again. The attachment is locked.
func (e *Endpoints) repair(ctx context.Context, ep Endpoint) (Endpoint, error) {
	ifindex, there := e.deps.Datapath.DeviceIndex(ep.Device)
	if !there || ifindex != ep.Ifindex {
		return ep, e.vanish(ctx, ep)
	}
	if err := e.take(ctx); err != nil {
		return ep, err
	}
	defer e.give()
	now, ok := e.ByID(ep.ID)
	if !ok || now.Phase != NotReady {
		return now, nil
	}
	done, err := e.ready(now)
	if err != nil {
		e.lockdown(now, err)
		return now, err
	}
	e.log.Info("endpoint ready again", "ep", done.ID, "name", done.Name(), "id", uint32(done.Identity))
	return done, nil
}

// checks looks after what changes without telling: devices, and identities that the store has yet to confirm.
func (e *Endpoints) checks(ctx context.Context) {
	tick := time.NewTicker(e.cfg.Check)
	defer tick.Stop()
	for {
		e.claims(ctx)
		e.vanished(ctx)
		e.recount(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// vanished removes the endpoints whose device is gone.
func (e *Endpoints) vanished(ctx context.Context) {
	for _, ep := range e.rows.List() {
		ifindex, there := e.deps.Datapath.DeviceIndex(ep.Device)
		if ep.Phase != Ready || (there && ifindex == ep.Ifindex) {
			continue // those that are not ready are looked at by their retries
		}
		now, unlock, err := e.hold(ctx, ep.ID)
		if err != nil {
			continue
		}
		if now.Phase == Ready && now.Ifindex == ep.Ifindex {
			if err := e.vanish(ctx, now); err != nil {
				e.log.Warn("endpoint without a device not removed", "ep", ep.ID, "err", err)
			}
		}
		unlock()
	}
}

// vanish handles an endpoint that has no device of its name. If the device was only renamed the workload still sends
// through it, so its rows must stay, and deny.
func (e *Endpoints) vanish(ctx context.Context, ep Endpoint) error {
	if s, ok := e.deps.Datapath.(Survivors); ok {
		rows, err := s.Survivors()
		if err != nil {
			return fmt.Errorf("look for device %s of endpoint %d: %w", ep.Device, ep.ID, err)
		}
		for _, row := range rows {
			if row.ID == ep.ID && row.Ifindex == ep.Ifindex && row.Device != "" && row.Device != ep.Device {
				if err := e.take(ctx); err != nil {
					return err
				}
				defer e.give()
				e.lockdown(ep, fmt.Errorf("its device %s is now called %s: rename it back", ep.Device, row.Device))
				return e.commit()
			}
		}
	}
	e.log.Info("device vanished", "ep", ep.ID, "name", ep.Name(), "dev", ep.Device)
	return e.undo(ctx, ep)
}

// claims counts restored endpoints with the allocator, which asks the store if it must. If the store has another number
// for the labels by now, the endpoint gets it.
func (e *Endpoints) claims(ctx context.Context) {
	for _, ep := range e.rows.List() {
		var wanted bool
		e.noteOf(ep.ID, func(n *note) { wanted = (n.unclaimed || n.doubted) && !n.blocked })
		if !wanted || !ep.settled() {
			continue
		}
		if err := e.claim(ctx, ep.ID); err != nil {
			if ctx.Err() == nil && !errors.Is(err, ErrNotFound) {
				e.log.Warn("identity not confirmed yet", "ep", ep.ID, "id", uint32(ep.Identity), "err", err)
			}
			return // most likely the store is away: all others would wait for it too
		}
	}
}

func (e *Endpoints) claim(ctx context.Context, id uint16) error {
	ep, unlock, err := e.hold(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	all := ep.Labels
	if ep.ContainerID == "" && len(ep.Security) == 0 {
		ident, err := e.identityOf(ep)
		if err != nil {
			return nil // rebuilt, and its number is not known yet; it is denied until it is
		}
		all = ident.Labels
	}
	_, err = e.relabel(ctx, ep, all)
	return err
}
