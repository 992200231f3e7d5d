package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"porin/internal/identity"
)

// chunk is how many addresses are looked at with the lock held: who asks in between does not wait long.
const chunk = 4096

// kernel is what this room believes about the kernel, beside the rows in the book's slots. Guarded by the turn.
type kernel struct {
	nodes map[string]Node
	uses  map[identity.ID]int // rows that have it; each has a hold of its own
	doubt map[key][]row       // rows that may be there, because writing them ended half way; held too
	ports ports
}

func newKernel() kernel {
	return kernel{nodes: map[string]Node{}, uses: map[identity.ID]int{}, doubt: map[key][]row{}, ports: newPorts()}
}

// change is one address whose row is to be another.
type change struct {
	key      key
	old, now row
	ports    []Port
}

// flush makes the kernel equal to the book.
func (n *Nodes) flush(ctx context.Context) error {
	n.turn.Lock()
	defer n.turn.Unlock()
	err := n.flushNodes()
	for {
		changes, more := n.next()
		if len(changes) > 0 {
			if e := n.apply(ctx, changes); e != nil {
				err = errors.Join(err, e)
				break // the rest is still dirty
			}
		}
		if !more {
			break
		}
	}
	err = errors.Join(err, n.flushGone(), n.flushPorts(ctx))
	if err == nil {
		err = n.flushFormer()
	}
	n.show()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.trouble = ""
	if err != nil {
		n.trouble = err.Error()
	}
	return err
}

// next looks at dirty addresses and returns those whose row must change, with their new identities held. The addresses
// are clean then; apply makes dirty again what it could not write.
func (n *Nodes) next() (changes []change, more bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	looked := 0
	for k := range n.book.dirty {
		if looked++; looked > chunk {
			return changes, true
		}
		delete(n.book.dirty, k)
		c := change{key: k, old: n.book.slots[k].row}
		var held identity.Identity
		winner := n.book.judge(k, func(id identity.ID, m Meaning) bool {
			have, ok := n.deps.Identities.Hold(id)
			switch {
			case !ok:
				return false
			case MeaningOf(have.Labels) != m:
				n.deps.Identities.LetGo(id)
				return false
			}
			held = have
			return true
		})
		if winner != nil {
			_, to := Underlay(n.book.self.Addresses, winner.owner.node.Addresses, n.cfg.Family)
			c.now, c.ports = row{winner.identity, keyOf(to)}, winner.ports
		}
		if _, unsure := n.kernel.doubt[k]; c.now == c.old && !unsure && n.kernel.ports.same(k, c.ports) {
			if held.ID != 0 {
				n.deps.Identities.LetGo(held.ID) // its row holds it already
			}
			n.retire(k)
			continue
		}
		changes = append(changes, c)
	}
	return changes, false
}

// retire forgets an address without records and without a row. The lock is held.
func (n *Nodes) retire(k key) {
	if sl, ok := n.book.slots[k]; ok && sl.first == nil && sl.row == (row{}) {
		delete(n.book.slots, k)
	}
}

// apply writes changed rows: those that go first, so that a full map gets room, then those that come, after the rules know
// their identities.
func (n *Nodes) apply(ctx context.Context, changes []change) error {
	var put, gone []Remote
	var coming, going []change
	for _, c := range changes {
		if c.now == (row{}) {
			for _, r := range append([]row{c.old}, n.kernel.doubt[c.key]...) {
				if r != (row{}) {
					gone = append(gone, r.remote(c.key))
				}
			}
			going = append(going, c)
			continue
		}
		put = append(put, c.now.remote(c.key))
		coming = append(coming, c)
	}
	var errs []error
	if len(gone) > 0 {
		err := n.deps.Datapath.DeleteRemotes(gone)
		if err != nil {
			err = fmt.Errorf("take %d addresses of other nodes away: %w", len(gone), err)
			errs = append(errs, err)
		}
		n.applied(going, err == nil)
	}
	if len(put) > 0 {
		err := n.learn(ctx, coming)
		if err == nil {
			if err = n.deps.Datapath.PutRemotes(put); err != nil {
				err = fmt.Errorf("write %d addresses of other nodes: %w", len(put), err)
			}
		}
		if err != nil {
			errs = append(errs, err)
		}
		n.applied(coming, err == nil)
	}
	return errors.Join(errs...)
}

func (r row) remote(k key) Remote {
	return Remote{Addr: k.addr(), Identity: r.identity, Node: r.node.addr()}
}

// learn makes the rules know the identities that come.
func (n *Nodes) learn(ctx context.Context, coming []change) error {
	seen := map[identity.ID]bool{}
	var ids []identity.Identity
	for _, c := range coming {
		id := c.now.identity
		if seen[id] {
			continue
		}
		seen[id] = true
		if have, ok := n.deps.Identities.Hold(id); ok {
			n.deps.Identities.LetGo(id) // it is held already
			ids = append(ids, have)
		}
	}
	slices.SortFunc(ids, func(a, b identity.Identity) int { return int(a.ID) - int(b.ID) })
	if err := n.deps.Identities.Learn(ctx, ids, n.kernel.ports.with(coming)); err != nil {
		return fmt.Errorf("make the rules know %d identities: %w", len(ids), err)
	}
	return nil
}

// applied notes what the kernel has by now. A row that was not written, or not taken away, may be there or not: its identity
// stays held, and it is written or taken away again.
func (n *Nodes) applied(list []change, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range list {
		if !ok {
			n.book.dirty[c.key] = struct{}{}
			switch {
			case c.now != (row{}):
				n.kernel.doubt[c.key] = append(n.kernel.doubt[c.key], c.now)
				n.use(c.now.identity, +1)
			case c.old != (row{}): // it may be gone already: whoever wants just this row again must write it
				n.kernel.doubt[c.key] = append(n.kernel.doubt[c.key], c.old)
				sl := n.book.slots[c.key]
				sl.row = row{}
				n.book.slots[c.key] = sl
			}
			continue
		}
		sl := n.book.slots[c.key]
		sl.row = c.now
		n.book.slots[c.key] = sl
		n.use(c.now.identity, +1)
		n.use(c.old.identity, -1)
		for _, r := range n.kernel.doubt[c.key] {
			n.use(r.identity, -1)
		}
		delete(n.kernel.doubt, c.key)
		n.kernel.ports.note(c.key, c.now, c.ports)
		n.retire(c.key)
	}
}

// use counts the rows of an identity. Each row came with a hold of its own.
func (n *Nodes) use(id identity.ID, by int) {
	if id == 0 || id == identity.Health {
		return
	}
	if n.kernel.uses[id] == 0 {
		n.memory.Add(1)
	}
	n.kernel.uses[id] += by
	if by < 0 {
		n.deps.Identities.LetGo(id)
	}
	if n.kernel.uses[id] == 0 {
		delete(n.kernel.uses, id)
		n.memory.Add(1)
	}
}

// flushNodes writes nodes that came or changed.
func (n *Nodes) flushNodes() error {
	n.mu.Lock()
	var put []Node
	for k := range n.book.nodes {
		delete(n.book.nodes, k)
		n.book.changed = true
		o := n.book.owners[k]
		if o == nil || !o.admitted() {
			continue
		}
		now := o.node
		now.PodCIDRs = o.ranges
		if old, there := n.kernel.nodes[k]; there && sameNode(old, now) {
			continue
		}
		put = append(put, now)
		for e := o.entries; e != nil; e = e.after {
			n.book.dirty[e.addr] = struct{}{} // its underlay address may be another
		}
	}
	n.mu.Unlock()
	if len(put) == 0 {
		return nil
	}
	slices.SortFunc(put, func(a, b Node) int { return strings.Compare(a.Key(), b.Key()) })
	if err := n.deps.Datapath.PutNodes(put); err != nil {
		n.mu.Lock()
		for i := range put {
			n.book.nodes[put[i].Key()] = struct{}{}
			n.kernel.nodes[put[i].Key()] = Node{} // may be there
		}
		n.mu.Unlock()
		return fmt.Errorf("write %d nodes: %w", len(put), err)
	}
	for i := range put {
		n.kernel.nodes[put[i].Key()] = put[i]
	}
	return nil
}

// admitted tells whether the kernel may know the node.
func (o *owner) admitted() bool { return o.known && o.state() != Refused }

// flushPorts tells the rules of named ports that went.
func (n *Nodes) flushPorts(ctx context.Context) error {
	if len(n.kernel.ports.fewer) == 0 {
		return nil
	}
	if err := n.deps.Identities.Learn(ctx, nil, n.kernel.ports.with(nil)); err != nil {
		return fmt.Errorf("tell the rules of named ports that went: %w", err)
	}
	clear(n.kernel.ports.fewer)
	return nil
}

// flushGone takes away nodes that went, after their addresses. All others that were touched are settled.
func (n *Nodes) flushGone() error {
	n.mu.Lock()
	var gone []string
	for k := range n.kernel.nodes {
		if o := n.book.owners[k]; o == nil || !o.admitted() {
			gone = append(gone, k)
		}
	}
	n.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	slices.Sort(gone)
	if err := n.deps.Datapath.DeleteNodes(gone); err != nil {
		return fmt.Errorf("take %d nodes away: %w", len(gone), err)
	}
	for _, k := range gone {
		delete(n.kernel.nodes, k)
	}
	return nil
}

// withdraw takes the rows of an identity away and leaves their addresses to be looked at again.
func (n *Nodes) withdraw(id identity.ID) error {
	n.turn.Lock()
	defer n.turn.Unlock()
	if n.kernel.uses[id] == 0 {
		return nil
	}
	n.mu.Lock()
	var list []change
	for k, sl := range n.book.slots {
		unsure := slices.ContainsFunc(n.kernel.doubt[k], func(r row) bool { return r.identity == id })
		if sl.row.identity == id || unsure {
			list = append(list, change{key: k, old: sl.row})
		}
	}
	n.mu.Unlock()
	slices.SortFunc(list, func(a, b change) int { return slices.Compare(a.key[:], b.key[:]) })
	var rows []Remote
	for _, c := range list {
		for _, r := range append([]row{c.old}, n.kernel.doubt[c.key]...) {
			if r != (row{}) {
				rows = append(rows, r.remote(c.key))
			}
		}
	}
	err := n.deps.Datapath.DeleteRemotes(rows)
	n.applied(list, err == nil)
	n.mu.Lock()
	for _, c := range list {
		n.book.dirty[c.key] = struct{}{}
	}
	n.mu.Unlock()
	n.wake()
	if err != nil {
		return fmt.Errorf("take the %d addresses of identity %d away: %w", len(rows), uint32(id), err)
	}
	return nil
}

func sameAddresses(a, b []netip.Addr) bool {
	return slices.Equal(slices.SortedFunc(slices.Values(a), netip.Addr.Compare), slices.SortedFunc(slices.Values(b), netip.Addr.Compare))
}
