package endpoint

import (
	"context"
	"fmt"
	"slices"

	"porin/internal/identity"
	"porin/internal/labels"
)

// Disconnect takes an endpoint off the network for good, without asking its runtime, and returns what it was.
func (e *Endpoints) Disconnect(ctx context.Context, id uint16) (Endpoint, error) {
	ep, unlock, err := e.hold(ctx, id)
	if err != nil {
		return Endpoint{}, err
	}
	defer unlock()
	if err := e.undo(ctx, ep); err != nil {
		return Endpoint{}, err
	}
	ep.Phase = Disconnecting
	return ep, nil
}

// hold locks an endpoint's attachment and returns its row as it then is.
func (e *Endpoints) hold(ctx context.Context, id uint16) (ep Endpoint, unlock func(), err error) {
	ep, ok := e.ByID(id)
	if !ok {
		return ep, nil, fmt.Errorf("endpoint %d: %w", id, ErrNotFound)
	}
	device := ep.Device
	unlock, err = e.attachments.lock(ctx, device)
	if err != nil {
		return ep, nil, err
	}
	ep, ok = e.ByID(id)
	if !ok || ep.Device != device {
		unlock()
		return ep, nil, fmt.Errorf("endpoint %d: %w", id, ErrNotFound)
	}
	return ep, unlock, nil
}

// SetLabels adds and removes labels of a running endpoint and returns once the policy of its new identity is in force. A
// label to remove may be given without its value. Reserved labels can be neither added nor removed.
func (e *Endpoints) SetLabels(ctx context.Context, id uint16, add, remove labels.Labels) (Endpoint, error) {
	for _, ls := range []labels.Labels{add, remove} {
		if err := CheckLabels(ls); err != nil {
			return Endpoint{}, err
		}
	}
	if err := e.waitBegun(ctx); err != nil {
		return Endpoint{}, err
	}
	ep, unlock, err := e.hold(ctx, id)
	if err != nil {
		return Endpoint{}, err
	}
	defer unlock()
	if !ep.settled() {
		return Endpoint{}, fmt.Errorf("labels of endpoint %d: it is %s: %w", id, ep.Phase, ErrInvalid)
	}
	all := ep.Labels
	for _, r := range remove {
		if all, err = without(all, r); err != nil {
			return Endpoint{}, fmt.Errorf("labels of endpoint %d: %w", id, err)
		}
	}
	all = labels.New(append(all, add...)...)
	if len(all) > maxLabels {
		return Endpoint{}, fmt.Errorf("labels of endpoint %d: %d labels, at most %d: %w", id, len(all), maxLabels, ErrInvalid)
	}
	return e.relabel(ctx, ep, all)
}

// without takes a label away. One that is not there is no error, unless another source has its key: who forgot the source
// would believe it gone.
func without(all labels.Labels, gone labels.Label) (labels.Labels, error) {
	rest := slices.DeleteFunc(slices.Clone(all), func(l labels.Label) bool {
		return gone.Source == l.Source && gone.Key == l.Key && (gone.Value == "" || gone.Value == l.Value)
	})
	i := slices.IndexFunc(all, func(l labels.Label) bool { return l.Key == gone.Key && l.Source != gone.Source })
	if len(rest) == len(all) && i >= 0 {
		return nil, fmt.Errorf("there is no %s to take away, but %s: name its source: %w", gone, all[i], ErrInvalid)
	}
	return rest, nil
}

// relabel gives ep these labels and the identity that follows from them. The attachment is locked.
func (e *Endpoints) relabel(ctx context.Context, ep Endpoint, all labels.Labels) (Endpoint, error) {
	security := e.cfg.Security(all)
	ident, err := e.deps.Identities.Allocate(ctx, security)
	if err != nil {
		return Endpoint{}, fmt.Errorf("labels of endpoint %d: %w", ep.ID, err)
	}
	before, now, err := e.reidentify(ctx, ep.ID, all, security, ident.ID)
	release := ident.ID // the reference that is not used in the end
	if err == nil {
		release = identity.Unknown
		e.noteOf(ep.ID, func(n *note) {
			if !n.unclaimed {
				release = before.Identity
			}
			n.unclaimed, n.doubted = false, false
		})
	}
	if release != identity.Unknown {
		if err := e.deps.Identities.Release(context.WithoutCancel(ctx), release); err != nil {
			e.log.Warn("identity not released", "ep", ep.ID, "id", uint32(release), "err", err)
		}
	}
	if err != nil {
		return Endpoint{}, fmt.Errorf("labels of endpoint %d: %w", ep.ID, err)
	}
	if before.Identity != now.Identity || before.Labels.Key() != now.Labels.Key() {
		e.persist(now)
		e.log.Info("endpoint labels changed", "ep", ep.ID, "name", now.Name(), "id", uint32(now.Identity), "was", uint32(before.Identity))
	}
	if now.Phase != Ready {
		return now, fmt.Errorf("labels of endpoint %d: changed; it is denied until its rules can be written: %s", ep.ID, now.Message)
	}
	return now, nil
}

// reidentify is the part of relabel that has the turn. Without an error the row has the new labels.
func (e *Endpoints) reidentify(ctx context.Context, id uint16, all, security labels.Labels, ident identity.ID) (before, now Endpoint, err error) {
	if err := e.take(ctx); err != nil {
		return before, now, err
	}
	defer e.give()
	before, ok := e.ByID(id)
	if !ok || !before.settled() {
		return before, now, ErrNotFound
	}
	now = before
	now.Labels, now.Security, now.Identity = all, security, ident
	if before.Identity == ident && before.Phase == Ready {
		e.put(now)
		return before, now, nil
	}
	if known, err := e.identityOf(now); err == nil {
		e.learn(known)
	}
	if err := e.exposed(); err != nil && before.Identity != ident {
		return before, now, err
	}
	done, err := e.ready(now)
	if err == nil {
		return before, done, nil
	}
	// Neither the old identity nor a half-written new one: it is denied, and gets the new one by a retry.
	e.lockdown(now, fmt.Errorf("rules of its identity %d: %w", uint32(ident), err))
	if err := e.commit(); err != nil {
		e.log.Warn("cached verdicts are not stale yet", "ep", id, "err", err)
	}
	now, _ = e.ByID(id)
	return before, now, nil
}

// persist saves ep now, or else until it works: what is in force counts, the disk follows.
func (e *Endpoints) persist(ep Endpoint) {
	err := e.save(ep)
	e.noteOf(ep.ID, func(n *note) { n.unsaved = err != nil })
	if err != nil {
		e.log.Warn("state file not written", "ep", ep.ID, "err", err)
		e.later(ep.ID)
	}
}
