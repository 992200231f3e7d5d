package datapath

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"porin/bpf"
	"porin/internal/identity"
	"porin/internal/node"
)

var _ node.Datapath = (*Datapath)(nil)

// others is what the kernel knows of other nodes.
type others struct {
	nodes   map[string]node.Node   // by key
	own     map[bpf.Addr]bpf.Peer  // rows of peers that are other nodes' own addresses
	remotes map[bpf.Addr]remoteRow // rows of peers that are workloads of other nodes, also those that a row of this node hides
	places  []bpf.Addr             // underlay addresses that remotes name by their number
	numbers map[bpf.Addr]uint32    // of places

	// What a former agent left and nobody has put since; gone with ForgetFormer.
	formerAddrs map[bpf.Addr]struct{} // of remotes and own
	formerNodes map[bpf.Addr]struct{} // rows of nodes
	settled     bool
}

// remoteRow is a row of peers in few bytes: there are a hundred thousand.
type remoteRow struct {
	identity uint32
	place    uint32
}

func newOthers() *others {
	return &others{
		nodes: map[string]node.Node{}, own: map[bpf.Addr]bpf.Peer{}, remotes: map[bpf.Addr]remoteRow{}, numbers: map[bpf.Addr]uint32{},
		formerAddrs: map[bpf.Addr]struct{}{}, formerNodes: map[bpf.Addr]struct{}{},
	}
}

// place returns the number of an underlay address.
func (c *others) place(a bpf.Addr) uint32 {
	n, ok := c.numbers[a]
	if !ok {
		n = uint32(len(c.places))
		c.places = append(c.places, a)
		c.numbers[a] = n
	}
	return n
}

// row returns what peers has to say about an address of another node.
func (c *others) row(a bpf.Addr) (bpf.Peer, bool) {
	if row, ok := c.own[a]; ok {
		return row, true
	}
	r, ok := c.remotes[a]
	if !ok {
		return bpf.Peer{}, false
	}
	return remotePeer(identity.ID(r.identity), c.places[r.place]), true
}

func remotePeer(id identity.ID, place bpf.Addr) bpf.Peer {
	return bpf.Peer{Identity: uint32(id), Flags: bpf.PeerRemote | bpf.PeerCluster, Node: place}
}

// restoreCluster reads back what a former agent knew of other nodes. It stays in force until it is put again or
// ForgetFormer says that it is over: without the store nothing is lost by a restart.
func (d *Datapath) restoreCluster() error {
	rows, err := d.nodeRows.all()
	if err != nil {
		return err
	}
	for a := range rows {
		d.cluster.formerNodes[a] = struct{}{}
	}
	return d.peers.each(func(keys []bpf.Addr, values []bpf.Peer) error {
		for i, a := range keys {
			row := values[i]
			if row.Flags&bpf.PeerRemote == 0 {
				continue
			}
			d.cluster.formerAddrs[a] = struct{}{}
			if row.Identity == uint32(identity.RemoteNode) {
				d.cluster.own[a] = row
			} else {
				d.cluster.remotes[a] = remoteRow{row.Identity, d.cluster.place(row.Node)}
			}
		}
		return nil
	})
}

// ForgetFormer removes what a former agent wrote of other nodes and nobody has put since: call it when all that there is
// has been put.
func (d *Datapath) ForgetFormer() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.cluster
	if c.settled {
		return nil
	}
	var gone []bpf.Addr
	for a := range c.formerAddrs {
		delete(c.own, a)
		delete(c.remotes, a)
		if !d.hides(a) {
			gone = append(gone, a)
		}
	}
	addrs := len(c.formerAddrs)
	clear(c.formerAddrs)
	nodes := slices.Collect(maps.Keys(c.formerNodes))
	clear(c.formerNodes)
	c.settled = true
	err := errors.Join(d.peers.delAll(gone), d.nodeRows.delAll(nodes), d.prefixes.forgetFormer(), d.ensureNodeRoutes())
	if addrs+len(nodes) > 0 {
		d.log.Info("rows of a former agent about other nodes removed", "addresses", addrs, "node-addresses", len(nodes))
		err = errors.Join(err, d.bumpEpoch())
	}
	return err
}

// hides tells whether a row of this node stands where one of another node's would. The lock is held.
func (d *Datapath) hides(a bpf.Addr) bool {
	if _, ours := d.hosts[a]; ours {
		return true
	}
	_, pod := d.pods[a]
	return pod
}

// nodeID is a number of the node that is the same for all its addresses and at every start.
func nodeID(key string) uint64 {
	sum := sha256.Sum256([]byte("porin node\x00" + key))
	return binary.LittleEndian.Uint64(sum[:])
}

// place returns the underlay address by which this node reaches another, and expects its packets; the zero Addr if they
// have no family in common.
func (d *Datapath) place(n node.Node) bpf.Addr { return d.placeFrom(d.ownPlaces(), n) }

func (d *Datapath) placeFrom(own []netip.Addr, n node.Node) bpf.Addr {
	_, to := node.Underlay(own, n.Addresses, d.cfg.Underlay)
	return bpf.AddrFrom(to)
}

func (d *Datapath) ownPlaces() (own []netip.Addr) {
	v4, v6, err := d.Underlay()
	if err != nil {
		d.log.Warn("addresses of this node on the underlay", "err", err)
	}
	for _, a := range []netip.Addr{v4, v6} {
		if a.IsValid() {
			own = append(own, a)
		}
	}
	return own
}

// ownAddresses returns the addresses that are a node itself: on the underlay, and that of porin_host in each pod range, the
// first one (package ipam).
func ownAddresses(n node.Node) []netip.Addr {
	list := slices.Clone(n.Addresses)
	for _, cidr := range n.PodCIDRs {
		list = append(list, cidr.Masked().Addr().Next())
	}
	return list
}

// PutNodes makes nodes known, or known anew: their underlay addresses may send by tunnel, they are remote-node, and
// their pod ranges are behind them.
func (d *Datapath) PutNodes(list []node.Node) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs error
	own, ranges := d.ownPlaces(), map[netip.Prefix]bpf.Addr{}
	for _, n := range list {
		place := d.placeFrom(own, n)
		if err := d.putNode(n, place); err != nil {
			errs = errors.Join(errs, fmt.Errorf("node %s: %w", n.Key(), d.noteFull(err)))
		}
		for _, cidr := range n.PodCIDRs {
			ranges[cidr] = place
		}
	}
	return errors.Join(errs, d.noteFull(d.prefixes.putRanges(ranges)), d.ensureNodeRoutes(), d.bumpEpoch())
}

func (d *Datapath) putNode(n node.Node, place bpf.Addr) error {
	c := d.cluster
	old, known := c.nodes[n.Key()]
	c.nodes[n.Key()] = n
	if known {
		if err := d.dropNode(old, n); err != nil {
			return err
		}
	}
	if place == (bpf.Addr{}) {
		d.alarms.set("node "+n.Key(), fmt.Sprintf("node %s: no underlay address of a family that this node has: it cannot be reached", n.Key()))
	} else {
		d.alarms.set("node "+n.Key(), "")
	}
	id := nodeID(n.Key())
	for _, a := range n.Addresses {
		key := bpf.AddrFrom(a)
		delete(c.formerNodes, key)
		have, ok, err := d.nodeRows.get(key)
		if err != nil {
			return err
		}
		if ok && have.ID == id { // it may know what the way there takes
			continue
		}
		if err := d.nodeRows.put(key, bpf.Node{ID: id}); err != nil {
			return err
		}
	}
	for _, a := range ownAddresses(n) {
		key := bpf.AddrFrom(a)
		row := remotePeer(identity.RemoteNode, place)
		delete(c.formerAddrs, key)
		c.own[key] = row
		if d.hides(key) {
			continue
		}
		if have, ok, err := d.peers.get(key); err != nil || ok && have == row {
			if err != nil {
				return err
			}
			continue
		}
		if err := d.peers.put(key, row); err != nil {
			return err
		}
	}
	return nil
}

// dropNode removes what a node had and has no more; the zero now: all of it. Rows that are another node's by now stay.
func (d *Datapath) dropNode(old, now node.Node) error {
	c := d.cluster
	id := nodeID(old.Key())
	var errs error
	for _, a := range old.Addresses {
		if slices.Contains(now.Addresses, a) {
			continue
		}
		key := bpf.AddrFrom(a)
		if have, ok, err := d.nodeRows.get(key); err != nil || ok && have.ID == id {
			errs = errors.Join(errs, err, d.nodeRows.del(key))
		}
	}
	kept := ownAddresses(now)
	for other, n := range c.nodes {
		if other != old.Key() {
			kept = append(kept, ownAddresses(n)...)
		}
	}
	for _, a := range ownAddresses(old) {
		if slices.Contains(kept, a) {
			continue
		}
		errs = errors.Join(errs, d.dropRow(bpf.AddrFrom(a), c.own))
	}
	var gone []netip.Prefix
	for _, cidr := range old.PodCIDRs {
		held := slices.Contains(now.PodCIDRs, cidr)
		for other, n := range c.nodes {
			held = held || other != old.Key() && slices.Contains(n.PodCIDRs, cidr)
		}
		if !held {
			gone = append(gone, cidr)
		}
	}
	return errors.Join(errs, d.prefixes.removeRanges(gone))
}

// dropRow takes an address of other nodes away, in the map unless a row of this node stands there. The lock is held.
func (d *Datapath) dropRow(a bpf.Addr, from map[bpf.Addr]bpf.Peer) error {
	delete(from, a)
	delete(d.cluster.formerAddrs, a)
	if d.hides(a) {
		return nil
	}
	if row, ok := d.cluster.row(a); ok {
		return d.peers.put(a, row)
	}
	return d.peers.del(a)
}

// DeleteNodes forgets nodes by key. It is no error if they are not known.
func (d *Datapath) DeleteNodes(keys []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs error
	for _, key := range keys {
		old, ok := d.cluster.nodes[key]
		if !ok {
			continue
		}
		delete(d.cluster.nodes, key)
		d.alarms.set("node "+key, "")
		if err := d.dropNode(old, node.Node{}); err != nil {
			d.cluster.nodes[key] = old
			errs = errors.Join(errs, fmt.Errorf("node %s: %w", key, err))
		}
	}
	return errors.Join(errs, d.ensureNodeRoutes(), d.bumpEpoch())
}

// PutRemotes says who has an address behind which node. Rows of this node's own stay, and the others are back when it gives
// the address up.
func (d *Datapath) PutRemotes(list []node.Remote) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.cluster
	keys, values, rows := make([]bpf.Addr, 0, len(list)), make([]bpf.Peer, 0, len(list)), make([]remoteRow, 0, len(list))
	var at netip.Addr // addresses behind one node come together
	var place uint32
	var errs error
	for _, r := range list {
		if !r.Addr.IsValid() || !r.Node.IsValid() || r.Identity == 0 || r.Identity.IsLocal() {
			errs = errors.Join(errs, fmt.Errorf("address %s behind node %s with identity %d: not what another node can have", r.Addr, r.Node, r.Identity))
			continue
		}
		a := bpf.AddrFrom(r.Addr)
		if r.Node != at {
			at, place = r.Node, c.place(bpf.AddrFrom(r.Node))
		}
		row := remoteRow{uint32(r.Identity), place}
		have, ok := c.remotes[a]
		if len(c.formerAddrs) > 0 {
			delete(c.formerAddrs, a)
		}
		if _, itself := c.own[a]; itself || d.hides(a) {
			c.remotes[a] = row
			continue
		}
		if ok && have == row {
			continue
		}
		keys, values, rows = append(keys, a), append(values, remotePeer(r.Identity, c.places[place])), append(rows, row)
	}
	n, err := d.peers.overwriteAll(keys, values)
	for i, a := range keys[:n] {
		c.remotes[a] = rows[i]
	}
	if n > 0 {
		errs = errors.Join(errs, d.bumpEpoch())
	}
	return errors.Join(errs, d.noteFull(err))
}

// DeleteRemotes removes the rows that still lead to the given node.
func (d *Datapath) DeleteRemotes(list []node.Remote) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.cluster
	var gone []bpf.Addr
	for _, r := range list {
		a := bpf.AddrFrom(r.Addr)
		if have, ok := c.remotes[a]; !ok || c.places[have.place] != bpf.AddrFrom(r.Node) {
			continue
		}
		gone = append(gone, a)
	}
	if len(gone) == 0 {
		return nil
	}
	shown := slices.DeleteFunc(slices.Clone(gone), func(a bpf.Addr) bool {
		_, itself := c.own[a]
		return itself || d.hides(a)
	})
	if err := d.peers.delAll(shown); err != nil {
		return err // they are tried again: a row that is gone already is no error
	}
	for _, a := range gone {
		delete(c.remotes, a)
		delete(c.formerAddrs, a)
	}
	return d.bumpEpoch()
}

// nodeKeys returns the known nodes in order.
func (c *others) nodeKeys() []string { return slices.SortedFunc(maps.Keys(c.nodes), strings.Compare) }
