package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/internal/endpoint"
	"porin/internal/policy"
)

// attachment is an endpoint as it stands in the maps.
type attachment struct {
	row     bpf.Endpoint
	in, out policy.SubjectKey // "" for rows of a former agent and for locked endpoints
	up      bool              // the device was brought up after its rows were written
}

// restoreAttachments reads the rows of endpoints back. Rows of devices that are gone go too, with the peers rows that lead
// to them. A device counts as a workload's when it has the gateway's MAC: its name may have been changed, and its number may
// be another device's after the network namespace was made anew.
func (d *Datapath) restoreAttachments() error {
	rows, err := d.endpoints.all()
	if err != nil {
		return err
	}
	for ifindex, row := range rows {
		dev, err := netlink.LinkByIndex(int(ifindex))
		if err == nil && dev.Type() == "veth" && dev.Attrs().HardwareAddr.String() == d.host.mac.String() {
			d.attached[ifindex] = &attachment{row: row}
			for _, a := range []bpf.Addr{row.V4, row.V6} {
				if a != (bpf.Addr{}) {
					d.pods[a] = ifindex
				}
			}
			continue
		}
		if err := d.removeRows(ifindex, row); err != nil {
			return err
		}
	}
	return nil
}

// PutSubject writes a subject completely or not at all.
func (d *Datapath) PutSubject(s *policy.Subject) error {
	err := d.policy.put(s, time.Now())
	var full *MapFullError
	if errors.As(err, &full) {
		// what nobody uses any more may be all that is in the way
		if _, e := d.prune(time.Now(), true); e != nil {
			return errors.Join(err, e)
		}
		err = d.policy.put(s, time.Now())
	}
	if err != nil {
		poke(d.committed) // tables that were written for it have no user
	}
	return d.noteFull(err)
}

// PatchSubject changes rows of a subject in place, all or none.
func (d *Datapath) PatchSubject(p policy.Patch) error {
	return d.noteFull(d.policy.patch(p, time.Now()))
}

// noteFull raises the alarm of a full map; it is cleared when the map has room again.
func (d *Datapath) noteFull(err error) error {
	var full *MapFullError
	if errors.As(err, &full) {
		if d.alarms.set("map "+full.Map, full.Error()) {
			d.log.Error("map is full", "map", full.Map, "max", full.Max)
		}
	}
	return err
}

// WriteEndpoint makes the programs know ep. Rows first, then the program, and only then the device goes up: there is no
// instant in which the workload can send and is not judged. For a known endpoint a changed subject is one map write.
func (d *Datapath) WriteEndpoint(ep endpoint.Endpoint) error {
	if err := d.writeEndpoint(ep); err != nil {
		return fmt.Errorf("endpoint %d: %w", ep.ID, d.noteFull(err))
	}
	d.alarms.set(lockSubject(ep), "")
	return nil
}

func (d *Datapath) writeEndpoint(ep endpoint.Endpoint) (err error) {
	if ep.Ifindex <= 0 || ep.ID == 0 {
		return fmt.Errorf("device %s has ifindex %d, endpoint id %d: create it first", ep.Device, ep.Ifindex, ep.ID)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	in, ok := d.policy.use(ep.Ingress)
	if !ok {
		return fmt.Errorf("ingress subject %q is not in the maps: put it first", ep.Ingress)
	}
	out, ok := d.policy.use(ep.Egress)
	if !ok {
		d.policy.unuse(ep.Ingress, time.Now())
		return fmt.Errorf("egress subject %q is not in the maps: put it first", ep.Egress)
	}
	row := rowOf(ep)
	row.SubjectIn, row.SubjectOut = in, out
	if err := d.writeRow(ep, attachment{row: row, in: ep.Ingress, out: ep.Egress}); err != nil {
		d.policy.unuse(ep.Ingress, time.Now())
		d.policy.unuse(ep.Egress, time.Now())
		return err
	}
	at := d.attached[uint32(ep.Ifindex)]
	if at.up && d.hooks.has(progPod, ep.Ifindex) {
		return nil
	}
	if err := d.hooks.attach(progPod, ep.Ifindex); err != nil {
		return err
	}
	if err := bringUp(ep.Device, ep.Ifindex); err != nil {
		return err
	}
	at.up = true
	return nil
}

// writeRow writes the endpoints row and the peers rows of its addresses. When it is new and fails, nothing is left.
func (d *Datapath) writeRow(ep endpoint.Endpoint, at attachment) error {
	ifindex := uint32(ep.Ifindex)
	before := d.attached[ifindex]
	if before != nil && before.row.ID != ep.ID {
		return fmt.Errorf("device %d belongs to endpoint %d", ifindex, before.row.ID)
	}
	for _, a := range []bpf.Addr{at.row.V4, at.row.V6} {
		if _, ours := d.hosts[a]; ours {
			return fmt.Errorf("address %s is this node's own", a.Netip())
		}
	}
	if err := d.endpoints.put(ifindex, at.row); err != nil {
		return err
	}
	renamed := false
	for _, a := range []bpf.Addr{at.row.V4, at.row.V6} {
		if a == (bpf.Addr{}) {
			continue
		}
		want := bpf.Peer{Identity: at.row.Identity, Ifindex: ifindex, Flags: bpf.PeerLocal | bpf.PeerCluster}
		have, ok, err := d.peers.get(a)
		if err == nil && (!ok || have != want) {
			renamed = renamed || !ok || have.Identity != want.Identity
			err = d.peers.put(a, want)
		}
		if err == nil {
			d.pods[a] = ifindex
		}
		if err != nil {
			switch {
			case before == nil:
				err = errors.Join(err, d.removeRows(ifindex, at.row))
			case at.row.Flags&bpf.EndpointLockdown == 0: // a lock stays, whatever else fails
				err = errors.Join(err, d.endpoints.put(ifindex, before.row))
			}
			return err
		}
	}
	if before != nil {
		for _, a := range []bpf.Addr{before.row.V4, before.row.V6} {
			if a != at.row.V4 && a != at.row.V6 {
				if err := d.removePeer(a, ifindex); err != nil {
					return err
				}
			}
		}
		at.up = before.up
		d.unuse(before)
	}
	d.attached[ifindex] = &at
	if renamed {
		// verdicts that conntrack caches for the address were found for somebody else
		return d.bumpEpoch()
	}
	return nil
}

func (d *Datapath) unuse(at *attachment) {
	now := time.Now()
	if at.in != "" {
		d.policy.unuse(at.in, now)
	}
	if at.out != "" {
		d.policy.unuse(at.out, now)
	}
}

func rowOf(ep endpoint.Endpoint) bpf.Endpoint {
	row := bpf.Endpoint{Identity: uint32(ep.Identity), ID: ep.ID, V4: bpf.AddrFrom(ep.IPv4), V6: bpf.AddrFrom(ep.IPv6)}
	copy(row.MAC[:], ep.MAC)
	return row
}

func lockSubject(ep endpoint.Endpoint) string { return fmt.Sprintf("endpoint %05d", ep.ID) }

// LockEndpoint denies everything from and to ep. Live flows end with their next packet.
func (d *Datapath) LockEndpoint(ep endpoint.Endpoint) error {
	if ep.Ifindex <= 0 || ep.ID == 0 {
		return nil // no device: nothing can flow
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	row := rowOf(ep)
	row.Flags |= bpf.EndpointLockdown
	if err := d.writeRow(ep, attachment{row: row}); err != nil {
		return fmt.Errorf("endpoint %d: lock: %w", ep.ID, d.noteFull(err))
	}
	if err := d.bumpEpoch(); err != nil {
		return fmt.Errorf("endpoint %d: lock: %w", ep.ID, err)
	}
	if d.alarms.set(lockSubject(ep), fmt.Sprintf("endpoint %d (%s) is locked down: all its traffic is denied", ep.ID, ep.Name())) {
		d.log.Error("endpoint locked down", "ep", ep.ID)
	}
	return nil
}

// RemoveEndpoint takes the rows of ep away, unless they belong to another endpoint by now.
func (d *Datapath) RemoveEndpoint(ep endpoint.Endpoint) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alarms.set(lockSubject(ep), "")
	ifindex := uint32(ep.Ifindex)
	if ifindex == 0 {
		for i, at := range d.attached {
			if at.row.ID == ep.ID && at.row.V4 == bpf.AddrFrom(ep.IPv4) && at.row.V6 == bpf.AddrFrom(ep.IPv6) {
				ifindex = i
			}
		}
	}
	if ifindex == 0 {
		return nil
	}
	at := d.attached[ifindex]
	if at != nil && at.row.ID != ep.ID {
		return nil
	}
	row := rowOf(ep)
	if at != nil {
		row = at.row
	}
	if err := d.removeRows(ifindex, row); err != nil {
		return fmt.Errorf("endpoint %d: remove: %w", ep.ID, err)
	}
	if at == nil {
		return nil
	}
	d.unuse(at)
	delete(d.attached, ifindex)
	if i, ok := d.DeviceIndex(ep.Device); ok && i == int(ifindex) {
		// down before the program goes: no packet meets a bare device
		if err := netlink.LinkSetDown(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: i}}); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("endpoint %d: take down %s: %w", ep.ID, ep.Device, err)
		}
	}
	if err := d.hooks.detach(int(ifindex)); err != nil {
		return fmt.Errorf("endpoint %d: remove: %w", ep.ID, err)
	}
	return nil
}

// removeRows deletes the endpoints row and the peers rows that still lead to ifindex.
func (d *Datapath) removeRows(ifindex uint32, row bpf.Endpoint) error {
	err := errors.Join(d.removePeer(row.V4, ifindex), d.removePeer(row.V6, ifindex))
	have, ok, e := d.endpoints.get(ifindex)
	if e != nil {
		return errors.Join(err, e)
	}
	if ok && have.ID == row.ID {
		// conntrack knows the devices of live flows: the next packet of each looks for the endpoint anew
		err = errors.Join(err, d.endpoints.del(ifindex), d.bumpEpoch())
	}
	return err
}

func (d *Datapath) removePeer(a bpf.Addr, ifindex uint32) error {
	if a == (bpf.Addr{}) {
		return nil
	}
	have, ok, err := d.peers.get(a)
	if d.pods[a] == ifindex {
		delete(d.pods, a)
	}
	if err != nil || !ok || have.Flags&bpf.PeerLocal == 0 || have.Ifindex != ifindex {
		return err
	}
	return d.giveUp(a)
}

// giveUp removes a row of this node's own; what another node says of the address holds again.
func (d *Datapath) giveUp(a bpf.Addr) error {
	if row, ok := d.cluster.row(a); ok && !d.hides(a) {
		return d.peers.put(a, row)
	}
	return d.peers.del(a)
}

// Commit makes every cached verdict stale and lets Run free, a grace period later, what no endpoint uses.
func (d *Datapath) Commit() error {
	d.mu.Lock()
	err := d.bumpEpoch()
	d.mu.Unlock()
	poke(d.committed)
	return err
}

func (d *Datapath) bumpEpoch() error {
	d.epochNow++
	return d.epoch.put(0, d.epochNow)
}

// syncHostPeers writes the node's own addresses to peers and removes those it lost.
func (d *Datapath) syncHostPeers() error {
	addrs, err := hostAddresses()
	if err != nil {
		return err
	}
	want := map[bpf.Addr]struct{}{}
	for _, a := range addrs {
		want[bpf.AddrFrom(a)] = struct{}{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.hosts) == 0 { // rows of a former agent
		err := d.peers.each(func(keys []bpf.Addr, values []bpf.Peer) error {
			for i, k := range keys {
				if values[i].Flags&bpf.PeerHost != 0 {
					d.hosts[k] = struct{}{}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	changed := false
	for a := range want {
		have, ok, err := d.peers.get(a)
		if err != nil {
			return err
		}
		row := bpf.Peer{Identity: hostIdentity, Flags: bpf.PeerHost | bpf.PeerCluster}
		if ok && have == row {
			d.hosts[a] = struct{}{}
			continue
		}
		if ok && have.Flags&bpf.PeerLocal != 0 {
			d.alarms.set("address "+a.Netip().String(), fmt.Sprintf("address %s belongs to this node and to an endpoint; the endpoint keeps it", a.Netip()))
			continue
		}
		if err := d.peers.put(a, row); err != nil {
			return d.noteFull(err)
		}
		d.hosts[a] = struct{}{}
		changed = true
	}
	for a := range d.hosts {
		if _, ok := want[a]; ok {
			continue
		}
		have, ok, err := d.peers.get(a)
		if err != nil {
			return err
		}
		delete(d.hosts, a)
		if ok && have.Flags&bpf.PeerHost != 0 {
			if err := d.giveUp(a); err != nil {
				d.hosts[a] = struct{}{}
				return err
			}
		}
		changed = true
	}
	if changed {
		return d.bumpEpoch()
	}
	return nil
}

// hostAddresses lists what the node answers to, loopback aside: that never meets a program.
func hostAddresses() ([]netip.Addr, error) {
	list, err := listAll(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.IsLoopback() {
			out = append(out, ip.Unmap())
		}
	}
	return out, nil
}
