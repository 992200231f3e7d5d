package node

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"porin/internal/identity"
	"porin/internal/state"
)

// Config of Nodes. The zero value of a duration means its default.
type Config struct {
	Self   Node   // without addresses and ranges as long as they are not known; see SetSelf
	Family Family // of the underlay (default Auto)
	// Grace is how long a node whose record lapsed stays known, with its addresses: it may live and only be cut off from
	// the store (default 10 min). It must be shorter than a freed identity number rests.
	Grace time.Duration

	RetryFirst time.Duration    // first retry of what the kernel refused (default 100 ms), doubled up to
	RetryMax   time.Duration    // (default 10 s)
	Now        func() time.Time // default time.Now
}

// Identities is what the room needs to know of identities.
type Identities interface {
	// Hold returns the identity with this number if its labels are known here, and keeps it known until it is let go.
	Hold(id identity.ID) (identity.Identity, bool)
	// LetGo ends Hold. Numbers may be held several times; they are let go once for each.
	LetGo(id identity.ID)
	// Learn returns once every rule in force knows the identities, and the named ports of their workloads elsewhere.
	Learn(ctx context.Context, ids []identity.Identity, ports map[identity.ID][]Port) error
}

// Deps are the rooms that Nodes works with.
type Deps struct {
	DB         *state.DB
	Datapath   Datapath
	Identities Identities
}

// Nodes keeps the kernel equal to what the stores say about other nodes. Safe for concurrent use.
//
//	Store.Watch ──▶ Heard ──▶ book (who is right?) ──▶ dirty addresses ──▶ flush:
//	identities ───▶ Told  ──▶ addresses that waited ──┘       rows that go, nodes that come,
//	                                                          identities learned, rows that come, nodes that go
//
// Two locks: mu guards the book and is held for moments; turn is held while the kernel is changed.
type Nodes struct {
	log  *slog.Logger
	cfg  Config
	deps Deps
	rows *state.Table[Row]
	kick chan struct{}

	turn   sync.Mutex
	former bool   // turn: what an earlier run left has been settled
	kernel kernel // turn

	memory atomic.Uint64 // rises when Memory changes

	mu      sync.Mutex
	book    *book             // mu
	trouble string            // mu: why the kernel is behind
	alarms  map[string]string // mu
	rev     uint64            // mu: of the addresses
}

// NewNodes returns Nodes that know this node only. The tables nodes and addresses are added to deps.DB.
func NewNodes(log *slog.Logger, cfg Config, deps Deps) *Nodes {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Family == "" {
		cfg.Family = Auto
	}
	for _, d := range []struct {
		to    *time.Duration
		value time.Duration
	}{{&cfg.Grace, 10 * time.Minute}, {&cfg.RetryFirst, 100 * time.Millisecond}, {&cfg.RetryMax, 10 * time.Second}} {
		if *d.to == 0 {
			*d.to = d.value
		}
	}
	n := &Nodes{
		log: log, cfg: cfg, deps: deps, kick: make(chan struct{}, 1),
		rows:   state.NewTable(deps.DB, "nodes", func(r Row) string { return r.Key() }),
		book:   newBook(cfg.Self, cfg.Family),
		kernel: newKernel(),
		alarms: map[string]string{},
	}
	state.NewView(deps.DB, "addresses", n.addresses)
	n.rows.Put(Row{Node: cfg.Self, State: Self})
	return n
}

// SetSelf says what this node is by now: its addresses and ranges decide whose claims stand.
func (n *Nodes) SetSelf(self Node) {
	n.mu.Lock()
	n.book.self = self
	n.memory.Add(1)
	n.book.arbitrate()
	for _, o := range n.book.owners {
		n.book.nodes[o.key] = struct{}{} // the underlay address to use may be another
	}
	n.mu.Unlock()
	n.rows.Put(Row{Node: self, State: Self})
	n.wake()
}

// Self is what this node is.
func (n *Nodes) Self() Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.book.self
}

// Heard takes in what the store of a cluster told.
func (n *Nodes) Heard(s Source, b Batch) {
	n.mu.Lock()
	n.claimed(s, b)
	n.book.take(s, b, n.cfg.Now())
	n.rev++
	n.mu.Unlock()
	n.wake()
}

// claimed looks for another node that calls itself as this one does. The lock is held.
func (n *Nodes) claimed(s Source, b Batch) {
	if s.Cluster != n.book.self.Cluster {
		return
	}
	for _, other := range b.Nodes {
		if other.Name != n.book.self.Name {
			continue
		}
		if other.Generation != n.book.self.Generation && len(n.book.self.Addresses) > 0 && !sameAddresses(other.Addresses, n.book.self.Addresses) {
			n.alarms["name"] = "another node, at " + text(other.Addresses) + ", calls itself " + other.Name + " too: give one of the two another --node-name"
		} else {
			delete(n.alarms, "name")
		}
	}
}

// Leave forgets everything that a cluster's store told.
func (n *Nodes) Leave(cluster string) {
	n.mu.Lock()
	n.book.leave(cluster)
	n.rev++
	n.mu.Unlock()
	n.wake()
}

// Told says that the labels of an identity are known now. It does not block.
func (n *Nodes) Told(id identity.ID) {
	n.mu.Lock()
	some := n.book.heard(id)
	n.mu.Unlock()
	if some {
		n.wake()
	}
}

// Withdraw returns once no address has this number in the kernel: it is about to mean something else. Addresses whose
// owners mean the new labels get it again after Told.
func (n *Nodes) Withdraw(id identity.ID) error { return n.withdraw(id) }

// Lookup returns who has an address of another node.
func (n *Nodes) Lookup(addr netip.Addr) (Address, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for e := n.book.slots[keyOf(addr)].first; e != nil; e = e.next {
		if e.why == accepted {
			return e.address(), true
		}
	}
	return Address{}, false
}

// NameOf returns the name of the node that has an underlay address.
func (n *Nodes) NameOf(addr netip.Addr) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, o := range n.book.owners {
		if o.known && slices.Contains(o.node.Addresses, addr) {
			return o.node.Name, true
		}
	}
	return "", false
}

// Table is the nodes table; others read it only.
func (n *Nodes) Table() *state.Table[Row] { return n.rows }

func (n *Nodes) wake() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

// Run keeps the kernel up to date until ctx ends.
func (n *Nodes) Run(ctx context.Context) error {
	tries := 0
	for {
		next := n.expire()
		wait := time.Hour
		if !next.IsZero() {
			wait = max(next.Sub(n.cfg.Now()), time.Millisecond)
		}
		if err := n.flush(ctx); err != nil {
			backoff := n.cfg.RetryMax
			if tries < 16 {
				backoff = min(backoff, n.cfg.RetryFirst<<tries)
			}
			tries++
			wait = min(wait, backoff)
			if ctx.Err() == nil {
				n.log.Warn("other nodes not all in the kernel yet", "err", err, "again-in", backoff)
			}
		} else {
			tries = 0
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-n.kick:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// expire forgets nodes that lapsed long ago, and returns when the next one is due.
func (n *Nodes) expire() (next time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	since := n.book.expire(n.cfg.Now().Add(-n.cfg.Grace))
	if since.IsZero() {
		return since
	}
	return since.Add(n.cfg.Grace)
}
