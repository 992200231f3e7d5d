package node

import (
	"net/netip"
	"slices"
	"time"
	"unique"

	"porin/internal/identity"
)

// book is all records, as they were told, and who is right where they contradict each other. What it holds depends on
// the records, not on the order in which those of different owners came.
//
//	record of an address ──▶ entry ──▶ slot (one per address: all entries for it, and the kernel's row)
//	                           └─────▶ owner (one per node: its record, the ranges that are its own)
type book struct {
	self     Node
	family   Family
	owners   map[string]*owner
	slots    map[key]slot
	waiting  map[identity.ID]map[key]struct{} // addresses that wait for an identity; may name ones that do so no more
	dirty    map[key]struct{}                 // addresses to be looked at again
	nodes    map[string]struct{}              // owners to be looked at again, by key
	changed  bool                             // the table nodes is behind
	recalled bool                             // there are rows of an earlier run that no store has told of
	complete bool                             // the own cluster's store has told everything once, or there is none
	told     [reasons]uint64                  // records by why they were refused
	count    [reasons]int                     // records by where they stand now
	refused  uint64                           // records of nodes that were refused
}

// key is an address without its family and zone; IPv4 is mapped.
type key [16]byte

func keyOf(a netip.Addr) key   { return a.As16() }
func (k key) addr() netip.Addr { return netip.AddrFrom16(k).Unmap() }

// slot is what is known of one address.
type slot struct {
	first *entry // of the records for it
	row   row    // as the kernel has it
}

// row is a row of the kernel; the zero row is none.
type row struct {
	identity identity.ID
	node     key
}

// entry is one node's record of an address. There are very many: it is kept small.
type entry struct {
	owner      *owner
	next       *entry // record of another node for the same address
	before     *entry // in the owner's list
	after      *entry
	generation uint64
	meaning    Meaning
	addr       key
	identity   identity.ID
	listing    uint32 // that told it last
	why        reason
	bad        reason // what is wrong with the record itself
	stale      bool   // told before its node lapsed, and not since
	namespace  string
	pod        string
	ports      []Port
}

// owner is a node of which there is a record, of itself or of an address.
type owner struct {
	key     string // cluster/name
	source  Source
	node    Node
	known   bool      // there is or was a record of the node
	listing uint64    // that told it last
	since   time.Time // when its record went; zero: it is there
	bad     string    // what is wrong with the record by itself
	ranges  []netip.Prefix
	refused string // why not all of its ranges are its own
	entries *entry
	n       [reasons]int
}

func (o *owner) lapsed() bool { return !o.since.IsZero() }

// usable tells whether addresses of the owner may be in the kernel.
func (o *owner) usable() bool { return o.known && o.bad == "" }

func newBook(self Node, family Family) *book {
	return &book{
		self: self, family: family, owners: map[string]*owner{}, slots: map[key]slot{},
		waiting: map[identity.ID]map[key]struct{}{}, dirty: map[key]struct{}{}, nodes: map[string]struct{}{},
	}
}

func (b *book) owner(s Source, name string) *owner {
	k := s.Cluster + "/" + name
	o := b.owners[k]
	if o == nil {
		o = &owner{key: k, source: s}
		b.owners[k] = o
	}
	return o
}

// take takes a batch in. Nodes that went come first: addresses that went with their node have lapsed, they were not
// given up.
func (b *book) take(s Source, batch Batch, now time.Time) {
	change := false
	for _, name := range batch.GoneNodes {
		if o := b.owners[s.Cluster+"/"+name]; o != nil && o.known && !o.lapsed() {
			b.lapse(o, now)
			change = true
		}
	}
	for _, g := range batch.Gone {
		if o := b.owners[s.Cluster+"/"+g.Node]; o != nil {
			if e := b.entry(o, keyOf(g.Addr)); e != nil && !e.stale {
				b.drop(e)
			}
		}
	}
	for _, a := range batch.Addresses {
		b.putAddress(s, a, batch.Listing)
	}
	for _, n := range batch.Nodes {
		if n.Key() == b.self.Key() {
			continue
		}
		change = b.putNode(s, n, batch.Listing) || change
	}
	if batch.Listing != 0 && batch.Done {
		change = b.sweep(s, batch.Listing, now) || change
	}
	if change {
		b.arbitrate()
	}
}

// putNode takes a node's record in and tells whether it changed anything.
func (b *book) putNode(s Source, n Node, listing uint64) bool {
	o := b.owner(s, n.Name)
	o.listing = max(o.listing, listing)
	returned := !o.known || o.lapsed()
	if !returned && sameNode(o.node, n) {
		return false
	}
	if returned { // its addresses were written before: what was not, is no more
		for e := o.entries; e != nil; {
			after := e.after
			if e.stale {
				b.drop(e)
			}
			e = after
		}
	}
	o.node, o.known, o.since, o.bad = n, true, time.Time{}, ""
	if returned && listing == 0 {
		b.settleRows(s.ID)
	}
	if err := s.check(n); err != nil {
		o.bad = err.Error()
		b.refused++
	}
	b.touch(o)
	return true
}

func sameNode(a, b Node) bool {
	return a.Cluster == b.Cluster && a.ClusterID == b.ClusterID && a.Name == b.Name && a.Generation == b.Generation &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.PodCIDRs, b.PodCIDRs) && slices.Equal(a.Health, b.Health) &&
		slices.Equal(a.Labels, b.Labels)
}

// lapse: the node's record went without its addresses having been given up one by one.
func (b *book) lapse(o *owner, now time.Time) {
	o.since = now
	for e := o.entries; e != nil; e = e.after {
		e.stale = true
	}
	b.nodes[o.key] = struct{}{}
}

// touch makes the owner and all its addresses be looked at again.
func (b *book) touch(o *owner) {
	b.nodes[o.key] = struct{}{}
	for e := o.entries; e != nil; e = e.after {
		b.dirty[e.addr] = struct{}{}
	}
}

func (b *book) putAddress(s Source, a Address, listing uint64) {
	if a.Node == b.self.Name && s.Cluster == b.self.Cluster {
		return
	}
	o := b.owner(s, a.Node)
	k := keyOf(a.Addr)
	e := b.entry(o, k)
	if e == nil {
		e = &entry{owner: o, addr: k, why: orphan, after: o.entries}
		if o.entries != nil {
			o.entries.before = e
		}
		o.entries = e
		sl := b.slots[k]
		e.next, sl.first = sl.first, e
		b.slots[k] = sl
		b.count[e.why]++
		o.n[e.why]++
	}
	e.stale, e.listing = false, max(e.listing, uint32(listing))
	bad := s.checkAddress(a)
	if e.bad == bad && e.identity == a.Identity && e.meaning == a.Meaning && e.generation == a.Generation && e.pod == a.Pod &&
		e.namespace == a.Namespace && slices.Equal(e.ports, a.Ports) {
		return
	}
	e.bad, e.identity, e.meaning, e.generation = bad, a.Identity, a.Meaning, a.Generation
	e.namespace, e.pod, e.ports = unique.Make(a.Namespace).Value(), a.Pod, a.Ports
	b.dirty[k] = struct{}{}
}

func (b *book) entry(o *owner, k key) *entry {
	e := b.slots[k].first
	for e != nil && e.owner != o {
		e = e.next
	}
	return e
}

// drop forgets a record.
func (b *book) drop(e *entry) {
	o := e.owner
	if e.before != nil {
		e.before.after = e.after
	} else {
		o.entries = e.after
	}
	if e.after != nil {
		e.after.before = e.before
	}
	b.count[e.why]--
	o.n[e.why]--
	sl := b.slots[e.addr]
	for at := &sl.first; *at != nil; at = &(*at).next {
		if *at == e {
			*at = e.next
			break
		}
	}
	b.slots[e.addr] = sl // goes when the kernel's row has gone
	b.dirty[e.addr] = struct{}{}
	if o.entries == nil && !o.known {
		delete(b.owners, o.key)
	}
}

// sweep ends a listing: what it did not tell is gone.
func (b *book) sweep(s Source, listing uint64, now time.Time) (change bool) {
	for _, o := range b.owners {
		if o.source.Cluster != s.Cluster {
			continue
		}
		if o.known && !o.lapsed() && o.listing < listing {
			b.lapse(o, now)
			change = true
		}
		for e := o.entries; e != nil; {
			after := e.after
			switch {
			case e.listing >= uint32(listing):
				e.stale = false
			case !e.stale:
				b.drop(e)
			}
			e = after
		}
	}
	b.settleRows(s.ID)
	b.complete = b.complete || s.Cluster == b.self.Cluster
	return change
}

// expire forgets the nodes whose records went before deadline, and returns when the next one will have.
func (b *book) expire(deadline time.Time) (next time.Time) {
	change := false
	for _, o := range b.owners {
		switch {
		case !o.lapsed():
		case o.since.After(deadline):
			if next.IsZero() || o.since.Before(next) {
				next = o.since
			}
		default:
			b.forget(o, func(e *entry) bool { return e.stale })
			b.settleRows(o.source.ID)
			change = true
		}
	}
	if change {
		b.arbitrate()
	}
	return next
}

// forget removes a node's record and those of its addresses that which names.
func (b *book) forget(o *owner, which func(*entry) bool) {
	b.touch(o)
	o.node, o.known, o.since, o.bad, o.refused, o.ranges = Node{}, false, time.Time{}, "", "", nil
	b.owners[o.key] = o
	for e := o.entries; e != nil; {
		after := e.after
		if which(e) {
			b.drop(e)
		}
		e = after
	}
	if o.entries == nil {
		delete(b.owners, o.key)
	}
}

// leave forgets everything that a cluster said.
func (b *book) leave(cluster string) {
	ids := map[uint8]bool{}
	for _, o := range b.owners {
		if o.source.Cluster == cluster {
			ids[o.source.ID] = true
			b.forget(o, func(*entry) bool { return true })
		}
	}
	for id := range ids {
		b.settleRows(id)
	}
	b.arbitrate()
}

func (b *book) arbitrate() {
	for _, o := range arbitrate(b.self, b.owners, b.family) {
		b.touch(o)
	}
}

// standing tells by right whether e's owner may have the address, before its identity is asked about.
func (b *book) standing(e *entry) reason {
	o := e.owner
	switch {
	case e.bad != accepted:
		return e.bad
	case !o.usable():
		return orphan
	case !within(o.ranges, e.addr.addr()):
		return outside
	case e.identity == identity.Health && !slices.Contains(o.node.Health, e.addr.addr()):
		return badNumber
	}
	return accepted
}

// judge finds out who has an address. know tells whether the number means to this node what the owner takes it for.
// The owner by right has the address even while its identity is not known: nobody else gets it meanwhile.
func (b *book) judge(k key, know func(identity.ID, Meaning) bool) (winner *entry) {
	sl := b.slots[k]
	var best *entry
	for e := sl.first; e != nil; e = e.next {
		if r := b.standing(e); r != accepted {
			b.move(e, r)
			continue
		}
		b.move(e, outvoted)
		if best == nil || e.beats(best) {
			best = e
		}
	}
	switch {
	case best == nil:
		return nil
	case best.identity != identity.Health && !know(best.identity, best.meaning):
		b.move(best, waiting)
		if b.waiting[best.identity] == nil {
			b.waiting[best.identity] = map[key]struct{}{}
		}
		b.waiting[best.identity][k] = struct{}{}
		return nil
	}
	b.move(best, accepted)
	return best
}

func (e *entry) beats(other *entry) bool {
	if e.owner.lapsed() != other.owner.lapsed() {
		return other.owner.lapsed()
	}
	if e.generation != other.generation {
		return e.generation > other.generation
	}
	return e.owner.key < other.owner.key
}

// move notes where a record stands.
func (b *book) move(e *entry, r reason) {
	if e.why == r {
		return
	}
	if r.refused() {
		b.told[r]++
	}
	b.count[e.why]--
	b.count[r]++
	e.owner.n[e.why]--
	e.owner.n[r]++
	e.why = r
}

// heard makes the addresses that wait for an identity be looked at again.
func (b *book) heard(id identity.ID) bool {
	list := b.waiting[id]
	for k := range list {
		b.dirty[k] = struct{}{}
	}
	delete(b.waiting, id)
	return len(list) > 0
}

// address returns the record of e as it was told.
func (e *entry) address() Address {
	return Address{
		Addr: e.addr.addr(), Identity: e.identity, Meaning: e.meaning, Cluster: e.owner.source.Cluster,
		Node: e.owner.key[len(e.owner.source.Cluster)+1:], Namespace: e.namespace, Pod: e.pod, Ports: e.ports, Generation: e.generation,
	}
}
