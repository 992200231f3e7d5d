package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"porin/internal/identity"
	"porin/internal/ipam"
)

// Restore reads the state files and takes over what the kernel still has of an earlier run. It changes no rule: each
// endpoint keeps what it has until the first ApplyPolicies has written what follows. Call it once, before anything else.
//
//	file good, device there    -> restoring
//	file good, device gone     -> removed (workload ended while the agent was down, or the node restarted)
//	file bad or lost           -> denied; rebuilt from the kernel's rows once its identity's labels are known
//	file bad, kernel has none  -> file removed: there is no traffic to decide on
func (e *Endpoints) Restore(ctx context.Context) error {
	if err := openDir(e.cfg.StateDir, e.dir()); err != nil {
		return fmt.Errorf("restore endpoints from %s: %w", e.dir(), err)
	}
	files, err := e.readFiles()
	if err != nil {
		return fmt.Errorf("restore endpoints from %s: %w", e.dir(), err)
	}
	rows := map[uint16]Endpoint{} // what the kernel has
	if s, ok := e.deps.Datapath.(Survivors); ok {
		list, err := s.Survivors()
		if err != nil {
			return fmt.Errorf("read back the kernel's endpoints: %w", err)
		}
		for _, ep := range list {
			rows[ep.ID] = ep
		}
	}
	if err := e.take(ctx); err != nil {
		return err
	}
	defer e.give()
	e.learn(e.deps.Identities.List()...)
	e.restorePrefixes()

	var restored, rebuilt, removed int
	for _, f := range files {
		row, inKernel := rows[f.id]
		delete(rows, f.id)
		if f.bad == nil {
			if e.adopt(f.ep, row) {
				restored++
			} else {
				removed++
			}
			continue
		}
		switch {
		case !inKernel:
			e.log.Warn("state file is bad and the kernel has no such endpoint; removed", "ep", f.id, "file", e.path(f.id), "err", f.bad)
			if err := e.removeFile(f.id); err != nil {
				e.log.Warn("state file not removed", "ep", f.id, "err", err)
			}
			removed++
		case e.rebuild(row, fmt.Errorf("its state file is bad: %w", f.bad)):
			rebuilt++
		default:
			removed++
		}
	}
	for _, row := range rows {
		if e.rebuild(row, errors.New("it has no state file")) {
			rebuilt++
		} else {
			removed++
		}
	}
	e.removeStrays()
	e.log.Info("endpoints restored", "restored", restored, "denied", rebuilt, "removed", removed)
	return nil
}

// removeStrays deletes devices that belong to no endpoint: an agent was killed between making one and writing its rows.
// They carry no traffic; without this they would be there until their container's network namespace ends.
func (e *Endpoints) removeStrays() {
	s, ok := e.deps.Datapath.(Survivors)
	if !ok {
		return
	}
	names, err := s.Devices()
	if err != nil {
		e.log.Warn("devices without an endpoint not looked for", "err", err)
		return
	}
	for _, name := range names {
		if _, ours := e.byDevice(name); ours {
			continue
		}
		e.log.Info("device without an endpoint removed", "dev", name)
		if err := e.deps.Datapath.DeleteDevice(name); err != nil {
			e.log.Warn("device without an endpoint not removed", "dev", name, "err", err)
		}
	}
}

// adopt takes over an endpoint whose file is good, and tells whether it is still there. row is the kernel's, if any.
func (e *Endpoints) adopt(ep Endpoint, row Endpoint) bool {
	ifindex, there := e.deps.Datapath.DeviceIndex(ep.Device)
	there = there && ifindex == ep.Ifindex
	renamed := !there && row.Device != "" && row.Device != ep.Device && row.Ifindex == ep.Ifindex
	blocked := e.reserve(ep)
	if !there && !renamed {
		e.log.Info("endpoint ended while the agent was down; removed", "ep", ep.ID, "name", ep.Name(), "dev", ep.Device)
		if err := e.unplug(ep); err != nil { // tried again by Run; its addresses stay taken until then
			ep.Phase, ep.Message = Disconnecting, err.Error()
			e.put(ep)
			e.noteOf(ep.ID, func(n *note) { n.unclaimed = true })
			e.later(ep.ID)
			return false
		}
		e.release(ep)
		if err := e.removeFile(ep.ID); err != nil {
			e.log.Warn("state file not removed", "ep", ep.ID, "err", err)
		}
		return false
	}
	ep.Phase, ep.Message, ep.Ingress, ep.Egress, ep.Revision = Restoring, "", "", "", 0
	e.put(ep)
	e.noteOf(ep.ID, func(n *note) { n.unclaimed, n.blocked = true, blocked != nil })
	e.advance(ep.ID)
	switch {
	case blocked != nil:
		e.lockdown(ep, blocked)
		return true
	case renamed:
		e.lockdown(ep, fmt.Errorf("its device %s is now called %s: rename it back", ep.Device, row.Device))
	}
	if err := e.deps.Identities.Restore(ep.Identity, ep.Security); err != nil {
		ep, _ = e.ByID(ep.ID)
		// Its number means other labels by now: others would take it for someone else.
		ep.Identity = identity.Unknown
		e.lockdown(ep, fmt.Errorf("its identity is to be allocated anew: %w", err))
	}
	return true
}

// rebuild takes over what the kernel has of an endpoint whose file is of no use, and denies its traffic.
func (e *Endpoints) rebuild(row Endpoint, why error) bool {
	if row.Device == "" {
		e.log.Warn("endpoint removed: its device is gone", "ep", row.ID, "err", why)
		if err := e.deps.Datapath.RemoveEndpoint(row); err != nil {
			e.log.Warn("rows not removed", "ep", row.ID, "err", err)
		}
		if err := e.removeFile(row.ID); err != nil {
			e.log.Warn("state file not removed", "ep", row.ID, "err", err)
		}
		return false
	}
	ep := Endpoint{
		ID: row.ID, Identity: row.Identity, IPv4: row.IPv4, IPv6: row.IPv6, Device: row.Device,
		Ifindex: row.Ifindex, MAC: row.MAC, MTU: e.cfg.MTU(), Phase: Restoring, Created: e.cfg.Now(),
	}
	e.put(ep)
	e.noteOf(ep.ID, func(n *note) { n.unclaimed, n.unsaved = true, true })
	e.advance(ep.ID)
	if err := e.reserve(ep); err != nil {
		e.noteOf(ep.ID, func(n *note) { n.blocked = true })
		why = errors.Join(why, err)
	}
	e.lockdown(ep, why)
	return true
}

// reserve keeps an endpoint's addresses from being given to others. One outside the node's ranges, which were changed
// then, cannot be given to others and stays valid.
func (e *Endpoints) reserve(ep Endpoint) error {
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if !a.IsValid() {
			continue
		}
		err := e.deps.Addresses.AllocateExact(ep.owner(), a)
		if errors.Is(err, ipam.ErrOutside) {
			e.log.Warn("endpoint keeps an address outside the node's ranges", "ep", ep.ID, "addr", a)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// release gives an endpoint's addresses back.
func (e *Endpoints) release(ep Endpoint) {
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if a.IsValid() {
			e.deps.Addresses.Release(ep.owner(), a)
		}
	}
}

// advance makes new numbers come after those in use.
func (e *Endpoints) advance(id uint16) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.nextID = max(e.nextID, id+1) // 0 after the last; number skips it
}

// restorePrefixes takes over the prefixes that the kernel has. Those that no policy needs are taken away by the first
// ApplyPolicies.
func (e *Endpoints) restorePrefixes() {
	for _, p := range sortedPrefixes(e.cfg.Prefixes) {
		id, _, err := e.deps.Identities.AllocateCIDR(p)
		if err != nil || id.ID != e.cfg.Prefixes[p] {
			if err == nil {
				e.deps.Identities.ReleaseCIDR(p)
			}
			e.log.Warn("prefix has another number than in the kernel; to be written anew", "prefix", p, "id", uint32(e.cfg.Prefixes[p]), "err", err)
			e.kernel.prefixes[p] = identity.Unknown
			continue
		}
		e.kernel.prefixes[p] = id.ID
		e.learn(id)
	}
}
