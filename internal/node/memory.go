package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"porin/internal/identity"
)

// Memory is what must outlive the agent, so that a restart changes nothing while the store does not answer: the nodes, and
// the identities that the kernel's rows have. The rows themselves stay in the kernel.
type Memory struct {
	Nodes      []Node
	Identities []identity.ID
}

// Memory returns what is to be kept now.
func (n *Nodes) Memory() (m Memory) {
	n.turn.Lock()
	for id := range n.kernel.uses {
		m.Identities = append(m.Identities, id)
	}
	n.turn.Unlock()
	slices.Sort(m.Identities)
	n.mu.Lock()
	m.Nodes = append(m.Nodes, n.book.self)
	for _, o := range n.book.owners {
		if o.known {
			m.Nodes = append(m.Nodes, o.node)
		}
	}
	n.mu.Unlock()
	slices.SortFunc(m.Nodes[1:], func(a, b Node) int { return strings.Compare(a.Key(), b.Key()) })
	return m
}

// MemoryRevision rises when what Memory returns changes.
func (n *Nodes) MemoryRevision() uint64 { return n.memory.Load() }

// Recall takes over what an earlier run kept, and the rows that it left in the kernel. They stay until the stores have
// told everything; then what they do not know goes. Call it once, before Run. A row whose identity nobody knows any more
// goes at once: no rule could say what it may.
func (n *Nodes) Recall(m Memory, rows []Remote) {
	n.turn.Lock()
	defer n.turn.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, one := range m.Nodes {
		if one.Key() != n.book.self.Key() {
			n.book.putNode(Source{Cluster: one.Cluster, ID: one.ClusterID}, one, 0)
		}
	}
	n.book.arbitrate()
	n.book.recalled = len(rows) > 0
	for _, r := range rows {
		k := keyOf(r.Addr)
		sl := n.book.slots[k]
		sl.row = row{r.Identity, keyOf(r.Node)}
		if _, ok := n.deps.Identities.Hold(r.Identity); !ok && r.Identity != identity.Health {
			sl.row.identity = 0
			n.book.dirty[k] = struct{}{}
		}
		n.book.slots[k] = sl
		if sl.row.identity != identity.Health && sl.row.identity != 0 {
			n.kernel.uses[sl.row.identity]++
		}
	}
}

// flushFormer makes the kernel forget what an earlier run left, once nothing is owed to it: all that is true by now is
// written again before, since rows that stayed as they were have not been.
func (n *Nodes) flushFormer() error {
	n.mu.Lock()
	ready := n.book.complete && !n.book.recalled && !n.former && len(n.book.dirty) == 0
	var rows []Remote
	var list []Node
	if ready {
		for k, sl := range n.book.slots {
			if sl.row != (row{}) {
				rows = append(rows, sl.row.remote(k))
			}
		}
	}
	n.mu.Unlock()
	if !ready {
		return nil
	}
	for _, one := range n.kernel.nodes {
		list = append(list, one)
	}
	var errs []error
	if len(list) > 0 {
		errs = append(errs, n.deps.Datapath.PutNodes(list))
	}
	for part := range slices.Chunk(rows, chunk) {
		errs = append(errs, n.deps.Datapath.PutRemotes(part))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("write again what an earlier run left: %w", err)
	}
	if err := n.deps.Datapath.ForgetFormer(); err != nil {
		return fmt.Errorf("take away what an earlier run left: %w", err)
	}
	n.former = true
	return nil
}

// cluster is the id of the cluster that an address is of, by its identity.
func (b *book) cluster(id identity.ID) uint8 {
	if id == identity.Health {
		return b.self.ClusterID
	}
	return uint8(id >> 16)
}

// Settle makes rows that an earlier run left go if they are of none of these clusters.
func (n *Nodes) Settle(clusters map[uint8]bool) {
	n.mu.Lock()
	for k, sl := range n.book.slots {
		if sl.first == nil && sl.row != (row{}) && !clusters[n.book.cluster(sl.row.identity)] {
			n.book.dirty[k] = struct{}{}
		}
	}
	n.book.complete = n.book.complete || len(clusters) == 0
	n.mu.Unlock()
	n.wake()
}

// settleRows makes rows without a record be looked at, once their cluster's store has told everything. Those of nodes that
// lapsed stay as long as these do.
func (b *book) settleRows(cluster uint8) {
	if !b.recalled {
		return
	}
	lapsed := map[key]bool{}
	for _, o := range b.owners {
		if o.lapsed() {
			for _, a := range o.node.Addresses {
				lapsed[keyOf(a)] = true
			}
		}
	}
	left := false
	for k, sl := range b.slots {
		switch {
		case sl.first != nil || sl.row == (row{}):
		case b.cluster(sl.row.identity) == cluster && !lapsed[sl.row.node]:
			b.dirty[k] = struct{}{}
		default:
			left = true
		}
	}
	b.recalled = left
}
