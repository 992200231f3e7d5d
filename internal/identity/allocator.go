package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"porin/internal/labels"
	"porin/internal/state"
)

// Store is what the allocator needs of the cluster: one number per label set, one label set per number.
type Store interface {
	// Allocate returns the number of the label set with this key, a new one if it has none yet, and claims it for
	// this node. It gives up, with an error that says so, after a bounded time.
	Allocate(ctx context.Context, key string) (ID, error)
	// Adopt claims a number that this node already uses. It returns at once; the claim is made when the store answers.
	Adopt(key string, id ID)
	// Release gives this node's claim back.
	Release(ctx context.Context, key string, id ID) error
	// Watch calls f for every number of the cluster: first for those that exist, then for each change, until ctx ends.
	Watch(ctx context.Context, f func(upsert bool, id ID, key string)) error
}

// maxKey bounds the text of a label set, so that no workload fills the store with one.
const maxKey = 16 << 10

// Config of an Allocator. The zero value of a field means its default.
type Config struct {
	DualStack bool             // world-ipv4 and world-ipv6 instead of world
	Linger    time.Duration    // how long an unused number stays claimed, for the next pod of its kind (default 1 min)
	Rest      time.Duration    // how long a freed local number is not given out again (default 10 min)
	LastLocal ID               // highest node-local number (default MaxLocal)
	Now       func() time.Time // default time.Now
	ClusterID uint8            // of this node's cluster, in its numbers
	// Withdraw is called before a number comes to mean other labels. When it returns without an error no address of another
	// node has the number in the kernel. No lock is held.
	Withdraw func(id ID) error
	// Told is called when the labels of a number of another node are known, or known anew. It must not block.
	Told func(id ID)
	// Conflict is called when the store says that a number this node uses means another label set, or that a label
	// set it uses has another number. Whoever uses the number must ask for one anew. It must not block.
	Conflict func(id ID, ls labels.Labels)
}

// Allocator gives out the numbers that this node uses and is the one writer of the identities table.
//
//	Allocate ──known here──▶ one more reference, no transaction
//	    └──────new here────▶ Store.Allocate ─▶ table row      (one flight per label set)
//	Release ──last one──▶ idle ──Sweep after Linger──▶ Store.Release
//	Store.Watch ──numbers of other nodes──▶ table rows
type Allocator struct {
	log   *slog.Logger
	cfg   Config
	store Store
	table *state.Table[Identity]

	mu      sync.Mutex
	byKey   map[string]*claim        // mu: label sets that this node uses or used a moment ago
	byID    map[ID]*claim            // mu: the same by number
	cluster map[ID]string            // mu: what the store says, for numbers of every node
	flights map[string]chan struct{} // mu: label sets that are being asked for or given back
	cidrs   cidrs                    // mu
	holds   holds                    // mu
}

// claim is a cluster-wide number in use on this node.
type claim struct {
	Identity
	key  string
	refs int
	idle time.Time // since when refs is 0
}

// NewTable returns the identities table, sorted by number.
func NewTable(db *state.DB) *state.Table[Identity] {
	return state.NewTable(db, "identities", func(i Identity) string { return TableKey(i.ID) })
}

// TableKey is the key of a row of the identities table.
func TableKey(id ID) string { return fmt.Sprintf("%010d", uint32(id)) }

// New returns an allocator that knows the reserved identities and nothing else.
func New(log *slog.Logger, cfg Config, store Store, table *state.Table[Identity]) *Allocator {
	if cfg.Linger == 0 {
		cfg.Linger = time.Minute
	}
	if cfg.Rest == 0 {
		cfg.Rest = 10 * time.Minute
	}
	if cfg.LastLocal == 0 {
		cfg.LastLocal = MaxLocal
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	a := &Allocator{
		log: log, cfg: cfg, store: store, table: table,
		byKey: make(map[string]*claim), byID: make(map[ID]*claim), cluster: make(map[ID]string),
		flights: make(map[string]chan struct{}),
		cidrs:   newCIDRs(cfg.LastLocal),
		holds:   newHolds(),
	}
	table.Update(Reserved())
	return a
}

// Run follows the store until ctx ends.
func (a *Allocator) Run(ctx context.Context) error {
	return a.store.Watch(ctx, a.heard)
}

// Get returns the identity with this number, of any scope.
func (a *Allocator) Get(id ID) (Identity, bool) { return a.table.Get(TableKey(id)) }

// List returns all known identities by number.
func (a *Allocator) List() []Identity { return a.table.List() }

// Allocate returns the identity of a workload with these security labels and counts a reference to it. An empty set is
// reserved:init; a reserved label alone is that reserved identity; no other label may be reserved or a CIDR's.
func (a *Allocator) Allocate(ctx context.Context, ls labels.Labels) (Identity, error) {
	if r, ok := reserved(ls); ok {
		return r, nil
	}
	if err := checkLabels(ls); err != nil {
		return Identity{}, err
	}
	key := ls.Key()
	var known Identity
	release, err := a.fly(ctx, key, func(c *claim) bool {
		if c == nil {
			return true
		}
		c.refs++
		known = c.Identity
		return false
	})
	if err != nil {
		return Identity{}, fmt.Errorf("identity for %s: %w", ls, err)
	}
	if release == nil {
		return known, nil
	}
	defer release()

	id, err := a.store.Allocate(ctx, key)
	if err != nil {
		return Identity{}, fmt.Errorf("identity for %s: %w", ls, err)
	}
	if err := checkCluster(id, a.cfg.ClusterID); err != nil {
		return Identity{}, fmt.Errorf("identity for %s: the store gave %d: %w", ls, id, err)
	}
	done, err := a.prepare(id, ls)
	if err != nil {
		return Identity{}, fmt.Errorf("identity for %s: %w", ls, err)
	}
	defer done()
	a.mu.Lock()
	defer a.mu.Unlock()
	if other := a.byID[id]; other != nil {
		if other.key == key { // came to mean these labels by a conflict
			other.refs++
			a.byKey[key] = other
			return other.Identity, nil
		}
		return Identity{}, fmt.Errorf("identity for %s: the store gave %d, which is %s on this node", ls, id, other.Labels)
	}
	a.insert(&claim{Identity: Identity{ID: id, Labels: ls}, key: key, refs: 1})
	return Identity{ID: id, Labels: ls}, nil
}

// fly waits until nobody else asks the store about key, then calls want with the claim on key, nil if there is none.
// If want says true, key is in flight until release is called; else release is nil.
func (a *Allocator) fly(ctx context.Context, key string, want func(*claim) bool) (release func(), err error) {
	for {
		a.mu.Lock()
		other, busy := a.flights[key]
		if !busy {
			if !want(a.byKey[key]) {
				a.mu.Unlock()
				return nil, nil
			}
			done := make(chan struct{})
			a.flights[key] = done
			a.mu.Unlock()
			return func() {
				a.mu.Lock()
				delete(a.flights, key)
				a.mu.Unlock()
				close(done)
			}, nil
		}
		a.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// insert makes c known. The lock is held.
func (a *Allocator) insert(c *claim) {
	a.byKey[c.key], a.byID[c.ID] = c, c
	a.put(c.Identity)
}

// put writes the row if it says anything new. The lock is held.
func (a *Allocator) put(id Identity) {
	if old, ok := a.Get(id.ID); !ok || !slices.Equal(old.Labels, id.Labels) {
		a.table.Put(id)
	}
}

// Release gives one reference back. Reserved numbers are not counted; those of CIDRs are released by prefix.
func (a *Allocator) Release(_ context.Context, id ID) error {
	if id.IsReserved() {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.byID[id]
	if c == nil || c.refs == 0 {
		return fmt.Errorf("release identity %d: nobody on this node uses it", id)
	}
	if c.refs--; c.refs > 0 {
		return nil
	}
	c.idle = a.cfg.Now()
	if a.byKey[c.key] != c { // lost a conflict; there is no claim to give back
		delete(a.byID, id)
		a.forget(id)
	}
	return nil
}

// forget takes the row away unless another node uses the number. The lock is held.
func (a *Allocator) forget(id ID) {
	if _, elsewhere := a.cluster[id]; !elsewhere && a.holds.count[id] == 0 {
		a.table.Delete(TableKey(id))
	}
}

// Restore makes a number known that an endpoint's state file holds, before the store answers: Allocate of its labels
// then needs no transaction. It refuses a number and labels that cannot belong together; Allocate asks the store for
// them then.
func (a *Allocator) Restore(id ID, ls labels.Labels) error {
	if r, ok := reserved(ls); ok && r.ID == id {
		return nil
	}
	if err := errors.Join(checkLabels(ls), checkCluster(id, a.cfg.ClusterID)); err != nil {
		return fmt.Errorf("restore identity %d of %s: %w", uint32(id), ls, err)
	}
	key := ls.Key()
	a.mu.Lock()
	byKey, byID := a.byKey[key], a.byID[id]
	inStore, known := a.cluster[id]
	var err error
	switch {
	case byKey != nil && byKey.ID == id:
		a.mu.Unlock()
		return nil
	case byKey != nil:
		err = fmt.Errorf("the labels already have number %d", uint32(byKey.ID))
	case byID != nil:
		err = fmt.Errorf("the number already is that of %s", byID.Labels)
	case known && inStore != key:
		err = fmt.Errorf("the number is that of %q in the store", inStore)
	default:
		a.insert(&claim{Identity: Identity{ID: id, Labels: ls}, key: key, idle: a.cfg.Now()})
	}
	a.mu.Unlock()
	if err != nil {
		return fmt.Errorf("restore identity %d of %s: %w", uint32(id), ls, err)
	}
	a.store.Adopt(key, id)
	return nil
}

// Sweep gives numbers back to the store that nobody on this node has used for a while. Call it now and then. It stops at
// the first fault: while the store does not answer, each number would wait for it, and whoever asks for it too.
func (a *Allocator) Sweep(ctx context.Context) error {
	a.mu.Lock()
	var idle []string
	for key, c := range a.byKey {
		if a.expired(c) {
			idle = append(idle, key)
		}
	}
	a.mu.Unlock()
	slices.Sort(idle)
	a.again()
	for _, key := range idle {
		if err := a.sweep(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

func (a *Allocator) expired(c *claim) bool {
	return c.refs == 0 && a.cfg.Now().Sub(c.idle) >= a.cfg.Linger
}

func (a *Allocator) sweep(ctx context.Context, key string) error {
	var c *claim
	release, err := a.fly(ctx, key, func(now *claim) bool {
		if now == nil || !a.expired(now) {
			return false
		}
		c = now
		delete(a.byKey, c.key) // an Allocate that comes now waits for the flight to end and then asks the store
		delete(a.byID, c.ID)
		return true
	})
	if err != nil || release == nil {
		return err
	}
	defer release()
	err = a.store.Release(ctx, key, c.ID)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		c.idle = a.cfg.Now() // stays known, and is tried again
		if a.byID[c.ID] == nil {
			a.insert(c)
		}
		return fmt.Errorf("give identity %d of %s back: %w", c.ID, c.Labels, err)
	}
	a.forget(c.ID)
	return nil
}

// heard takes in what the store says. What cannot be true is refused: other nodes are believed about their own
// workloads' labels, not about reserved or node-local numbers, nor about those of another cluster.
func (a *Allocator) heard(upsert bool, id ID, key string) {
	a.hear(origin{id: a.cfg.ClusterID}, upsert, id, key)
}

func (a *Allocator) hear(from origin, upsert bool, id ID, key string) {
	if err := checkCluster(id, from.id); err != nil {
		a.log.Warn("identity from the store refused", "id", uint32(id), "err", err)
		a.refuse()
		return
	}
	if !upsert {
		a.vanished(id)
		return
	}
	ls, err := labels.ParseKey(key)
	if err == nil {
		err = errors.Join(checkLabels(ls), from.check(ls))
	}
	if err != nil {
		a.log.Warn("identity from the store refused", "id", uint32(id), "err", err)
		a.refuse()
		return
	}
	done, err := a.prepare(id, ls)
	if err != nil {
		a.log.Warn("identity means other labels by now and is still in use for the former ones; tried again later", "id", uint32(id), "err", err)
		a.postpone(from, id, key)
		return
	}
	defer done()
	a.mu.Lock()
	a.cluster[id] = key
	var wrong []Identity
	if c := a.byID[id]; c != nil && c.key != key { // our number means something else
		wrong = append(wrong, c.Identity)
		delete(a.byKey, c.key)
		c.Identity, c.key = Identity{ID: id, Labels: ls}, key
		if a.byKey[key] == nil {
			a.byKey[key] = c
		}
	}
	if c := a.byKey[key]; c != nil && c.ID != id { // our label set has another number
		wrong = append(wrong, c.Identity)
		delete(a.byKey, key) // byID keeps it for those who still use the old number; the next Allocate asks the store
	}
	a.put(Identity{ID: id, Labels: ls})
	a.mu.Unlock()
	for _, w := range wrong {
		a.log.Error("identity conflict: the store disagrees with this node", "id", uint32(w.ID), "labels", w.Labels.String(), "store", key)
		if a.cfg.Conflict != nil {
			a.cfg.Conflict(w.ID, w.Labels)
		}
	}
}

// vanished: the store has no such number any more. One that this node uses stays and is claimed again.
func (a *Allocator) vanished(id ID) {
	a.mu.Lock()
	delete(a.cluster, id)
	c := a.byID[id]
	if c == nil {
		delete(a.holds.postponed, id)
		if a.holds.count[id] == 0 { // else LetGo does it
			a.table.Delete(TableKey(id))
		}
		a.mu.Unlock()
		return
	}
	key := c.key
	a.mu.Unlock()
	a.log.Warn("identity in use vanished from the store; claiming it again", "id", uint32(id), "labels", key)
	a.store.Adopt(key, id)
}

// reserved returns the identity that needs no number of the cluster's range.
func reserved(ls labels.Labels) (Identity, bool) {
	if len(ls) == 0 {
		ls = labels.New(labels.Label{Source: labels.SourceReserved, Key: reservedNames[Init]})
	}
	if len(ls) != 1 || ls[0].Source != labels.SourceReserved || ls[0].Value != "" {
		return Identity{}, false
	}
	for _, r := range Reserved() {
		if r.Labels[0] == ls[0] {
			return r, true
		}
	}
	return Identity{}, false
}

// checkLabels keeps workloads from having labels that only porin may give.
func checkLabels(ls labels.Labels) error {
	if len(ls) == 0 {
		return errors.New("a label set must not be empty")
	}
	for _, l := range ls {
		switch l.Source {
		case labels.SourceReserved, labels.SourceCIDR, labels.SourceFQDN, labels.SourceCIDRGroup:
			return fmt.Errorf("label %s: a workload cannot have labels of source %q", l, l.Source)
		}
	}
	if n := len(ls.Key()); n > maxKey {
		return fmt.Errorf("%d labels of together %d bytes: at most %d bytes make an identity; leave some out with the label filter", len(ls), n, maxKey)
	}
	return nil
}

// checkCluster tells whether id can be a number of a workload of the cluster.
func checkCluster(id ID, cluster uint8) error {
	first := ID(cluster) << 16
	if n := id - first; id < first || n < MinCluster || n > MaxCluster {
		return fmt.Errorf("number %d is outside the cluster's range %d-%d", uint32(id), uint32(first+MinCluster), uint32(first+MaxCluster))
	}
	return nil
}
