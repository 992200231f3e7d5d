package endpoint

import (
	"context"
	"errors"
	"fmt"
	"time"

	"porin/internal/labels"
)

// undoTime bounds how long taking back may wait for the store or the turn; the caller may be gone by then.
const undoTime = 30 * time.Second

// Create makes the endpoint of an attachment and returns it with its policy in force. If it is there already it is
// returned as it is, made ready first if need be; one whose device is gone, or which is in another network namespace,
// is replaced. On error nothing is left behind, or it is taken away later and shows in the endpoints table until then.
func (e *Endpoints) Create(ctx context.Context, req Request) (Endpoint, error) {
	if err := req.Validate(); err != nil {
		return Endpoint{}, err
	}
	if _, v6 := e.deps.Addresses.Router(); v6.IsValid() && req.MTU > 0 && req.MTU < minMTUv6 {
		return Endpoint{}, fmt.Errorf("mtu %d: IPv6 needs %d or more: %w", req.MTU, minMTUv6, ErrInvalid)
	}
	if err := e.waitBegun(ctx); err != nil {
		return Endpoint{}, err
	}
	at := req.Attachment()
	unlock, err := e.attachments.lock(ctx, at.DeviceName())
	if err != nil {
		return Endpoint{}, err
	}
	defer unlock()

	if old, ok := e.ByAttachment(at); ok {
		ep, keep, err := e.again(ctx, old, req)
		if keep || err != nil {
			return ep, err
		}
	} else if other, taken := e.byDevice(at.DeviceName()); taken {
		return Endpoint{}, fmt.Errorf("create endpoint for %s: its device would be called %s, as that of %s is: %w",
			at, other.Device, other.Attachment(), ErrRefused)
	}
	start := e.cfg.Now()
	ep, err := e.build(ctx, req)
	if err != nil {
		err = fmt.Errorf("create endpoint for %s: %w", at, err)
		if ep.ID == 0 {
			return Endpoint{}, err
		}
		if back := e.undo(ctx, ep); back != nil {
			err = errors.Join(err, back)
		}
		return Endpoint{}, err
	}
	e.log.Info("endpoint ready", "ep", ep.ID, "name", ep.Name(), "id", uint32(ep.Identity), "ipv4", ep.IPv4, "ipv6", ep.IPv6,
		"dev", ep.Device, "took", e.cfg.Now().Sub(start))
	return ep, nil
}

// again handles a request for an attachment that exists. keep tells that it stays.
func (e *Endpoints) again(ctx context.Context, old Endpoint, req Request) (ep Endpoint, keep bool, err error) {
	ifindex, there := e.deps.Datapath.DeviceIndex(old.Device)
	if old.ContainerID == "" && there && ifindex == old.Ifindex {
		// Rebuilt from the kernel after its state file was lost: now we know again whose it is.
		old.ContainerID, old.IfName, old.Netns, old.Network, old.Namespace, old.Pod =
			req.ContainerID, req.IfName, req.Netns, req.Network, req.Namespace, req.Pod
	}
	if !there || ifindex != old.Ifindex || old.Netns != req.Netns || !old.settled() {
		e.log.Info("endpoint is replaced", "ep", old.ID, "name", old.Name(), "phase", string(old.Phase), "netns", req.Netns)
		if err := e.undo(ctx, old); err != nil {
			return Endpoint{}, false, fmt.Errorf("replace endpoint %d: %w", old.ID, err)
		}
		return Endpoint{}, false, nil
	}
	now, ok, err := e.revive(ctx, old)
	if err != nil {
		return Endpoint{}, true, fmt.Errorf("endpoint %d exists and is not ready: %w", old.ID, err)
	}
	if ok && e.stale(now.ID) {
		e.persist(now)
	}
	return now, ok, nil
}

// revive makes an endpoint ready that exists, with old's names. ok is false if it went meanwhile.
func (e *Endpoints) revive(ctx context.Context, old Endpoint) (now Endpoint, ok bool, err error) {
	if err := e.take(ctx); err != nil {
		return old, false, err
	}
	defer e.give()
	if now, ok = e.ByID(old.ID); !ok {
		return old, false, nil
	}
	if now.ContainerID != old.ContainerID {
		now.ContainerID, now.IfName, now.Netns, now.Network, now.Namespace, now.Pod =
			old.ContainerID, old.IfName, old.Netns, old.Network, old.Namespace, old.Pod
		e.noteOf(now.ID, func(n *note) { n.unsaved = true })
		e.put(now)
	}
	if now.Phase == Ready {
		return now, true, nil
	}
	if e.blocked(now.ID) {
		return now, true, errors.New(now.Message)
	}
	done, err := e.ready(now)
	if err != nil {
		e.lockdown(now, err)
	}
	return done, true, err
}

func (e *Endpoints) stale(id uint16) (yes bool) {
	e.noteOf(id, func(n *note) { yes = n.unsaved })
	return yes
}

// build does the steps of Create. On error the returned row, if it has a number, is to be undone.
func (e *Endpoints) build(ctx context.Context, req Request) (Endpoint, error) {
	at := req.Attachment()
	all := allLabels(req.Labels, req.Namespace)
	security := e.cfg.Security(all)
	if req.Health { // this label porin alone gives
		all = labels.New(labels.Label{Source: labels.SourceReserved, Key: "health"})
		security = all
	}
	ep := Endpoint{
		ContainerID: req.ContainerID, IfName: req.IfName, Netns: req.Netns, Network: req.Network,
		Namespace: req.Namespace, Pod: req.Pod, Labels: all, Security: security,
		Device: at.DeviceName(), MTU: req.MTU, Phase: Creating, Created: e.cfg.Now(),
	}
	if ep.MTU == 0 {
		ep.MTU = e.cfg.MTU()
	}
	ports, err := checkPorts(req.NamedPorts)
	if err != nil {
		return Endpoint{}, err
	}
	ep.NamedPorts = ports
	id, err := e.number(ep.Device)
	if err != nil {
		return Endpoint{}, err
	}
	ep.ID = id
	if ep.IPv4, ep.IPv6, err = e.deps.Addresses.Allocate(ep.owner()); err != nil {
		return ep, err
	}
	e.put(ep)

	ep.Phase = WaitingForIdentity
	e.noteOf(ep.ID, func(n *note) { n.unclaimed = true })
	e.put(ep)
	ident, err := e.deps.Identities.Allocate(ctx, ep.Security)
	if err != nil {
		return ep, err
	}
	e.noteOf(ep.ID, func(n *note) { n.unclaimed = false })
	ep.Identity, ep.Phase = ident.ID, Creating
	e.put(ep)

	if ifindex, ok := e.deps.Datapath.DeviceIndex(ep.Device); ok {
		// Left over from an attempt that was killed half way.
		if err := e.unplug(Endpoint{Device: ep.Device, Ifindex: ifindex}); err != nil {
			return ep, fmt.Errorf("remove what an earlier attempt left: %w", err)
		}
	}
	if ep.Ifindex, ep.MAC, err = e.deps.Datapath.CreateDevice(ep); err != nil {
		return ep, err
	}

	if err := e.take(ctx); err != nil {
		return ep, err
	}
	e.learn(ident)
	ready := ep
	if err = e.exposed(); err == nil {
		ready, err = e.ready(ep)
	}
	e.give()
	if err != nil {
		return ep, err
	}
	// The file comes before the answer: what the runtime was told of must survive a restart.
	if err := e.save(ready); err != nil {
		return ready, err
	}
	return ready, nil
}

// ready resolves, writes and commits ep's rules and puts its row. The turn is held.
func (e *Endpoints) ready(ep Endpoint) (Endpoint, error) {
	id, err := e.identityOf(ep)
	if err != nil {
		return ep, err
	}
	e.namePorts(ep)
	ingress, egress, err := e.subjectsOf(id, ep.NamedPorts)
	if err != nil {
		return ep, err
	}
	ep, err = e.flip(named(ep, id), ingress, egress)
	if err != nil {
		return ep, err
	}
	if err := e.commit(); err != nil {
		return ep, err
	}
	e.put(ep)
	return ep, nil
}

// unplug takes the device away before its rows: a device without rows has no program that denies.
func (e *Endpoints) unplug(ep Endpoint) error {
	if err := e.deps.Datapath.DeleteDevice(ep.Device); err != nil {
		err = fmt.Errorf("delete device %s: %w", ep.Device, err)
		if ep.ID != 0 && ep.Ifindex != 0 {
			if lock := e.deps.Datapath.LockEndpoint(ep); lock != nil {
				err = errors.Join(err, fmt.Errorf("deny its traffic: %w", lock))
			}
		}
		return err
	}
	if ep.Ifindex == 0 {
		return nil
	}
	if err := e.deps.Datapath.RemoveEndpoint(ep); err != nil {
		return fmt.Errorf("remove the rows of device %s: %w", ep.Device, err)
	}
	return nil
}

// undo takes everything of ep away, whatever of it there is. If the kernel refuses, the row stays as disconnecting and
// is retried; its addresses are not given to anyone else before.
func (e *Endpoints) undo(ctx context.Context, ep Endpoint) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if err := e.take(ctx); err != nil {
		if now, ok := e.ByID(ep.ID); !ok || !now.settled() {
			ep.Phase, ep.Message = Disconnecting, err.Error()
			e.put(ep)
		}
		e.later(ep.ID)
		return fmt.Errorf("remove endpoint %d: %w", ep.ID, err)
	}
	ep.Phase, ep.Message = Disconnecting, ""
	e.put(ep)
	e.point(ep.ID, "", "")
	e.unnamePorts(ep.ID)
	err := e.unplug(ep)
	if err != nil {
		ep.Message = err.Error()
		e.put(ep)
		e.later(ep.ID)
	} else if ep.Ifindex != 0 {
		if err := e.commit(); err != nil {
			e.log.Warn("cached verdicts are not stale yet", "ep", ep.ID, "err", err)
		}
	}
	e.give()
	if err != nil {
		return fmt.Errorf("remove endpoint %d: %w", ep.ID, err)
	}

	// A file that stays is harmless: the next start finds no device and removes it.
	if err := e.removeFile(ep.ID); err != nil {
		e.log.Warn("state file not removed", "ep", ep.ID, "err", err)
	}
	claimed := false
	e.noteOf(ep.ID, func(n *note) { claimed = !n.unclaimed })
	if claimed && ep.Identity != 0 {
		if err := e.deps.Identities.Release(ctx, ep.Identity); err != nil {
			e.log.Warn("identity not released", "ep", ep.ID, "id", uint32(ep.Identity), "err", err)
		}
	}
	e.release(ep)
	e.alarm(lockAlarm(ep.ID), "")
	e.drop(ep)
	e.log.Info("endpoint removed", "ep", ep.ID, "name", ep.Name(), "dev", ep.Device)
	return nil
}

// Delete takes the endpoint of an attachment away. It is no error if there is none; a device that an attempt left
// without a row is removed too.
func (e *Endpoints) Delete(ctx context.Context, containerID, ifname string) error {
	at := Attachment{containerID, ifname}
	if err := at.Validate(); err != nil {
		return err
	}
	unlock, err := e.attachments.lock(ctx, at.DeviceName())
	if err != nil {
		return err
	}
	defer unlock()
	if ep, ok := e.ByAttachment(at); ok {
		return e.undo(ctx, ep)
	}
	device := at.DeviceName()
	if _, anothers := e.byDevice(device); anothers {
		return nil
	}
	ifindex, ok := e.deps.Datapath.DeviceIndex(device)
	if !ok {
		return nil
	}
	e.log.Warn("device without an endpoint removed", "dev", device, "attachment", at.String())
	if err := e.take(ctx); err != nil {
		return err
	}
	defer e.give()
	if err := e.unplug(Endpoint{Device: device, Ifindex: ifindex}); err != nil {
		return fmt.Errorf("remove the device of %s: %w", at, err)
	}
	return e.commit()
}
