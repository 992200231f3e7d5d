package identity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"porin/internal/labels"
)

// holds keeps numbers known that addresses of other nodes have, as long as they have them: a rule that denies what it
// knows by its labels must not forget them while packets still come. And it lets a number change its meaning only while
// no address has it.
//
//	Hold ──▶ row stays, whatever the store forgets ──LetGo──▶ row goes if the store has no such number any more
//	store: other labels ──▶ changing (Hold says unknown) ──Withdraw──▶ row changes ──Told──▶ Hold says the new labels
type holds struct {
	count     map[ID]int
	changing  map[ID]int
	postponed map[ID]postponed // meanings that could not be taken in yet
	refused   uint64
}

type postponed struct {
	from origin
	key  string
}

func newHolds() holds {
	return holds{count: map[ID]int{}, changing: map[ID]int{}, postponed: map[ID]postponed{}}
}

// Recall makes a number of another node known that this node knew before a restart, until the store says more or, held by
// nobody, it is let go.
func (a *Allocator) Recall(id ID, ls labels.Labels) error {
	if err := errors.Join(checkLabels(ls), checkCluster(id, uint8(id>>16))); err != nil || id>>24 != 0 {
		return fmt.Errorf("recall identity %d: %w", uint32(id), cmp.Or(err, errors.New("it is node-local")))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.Get(id); !known {
		a.put(Identity{ID: id, Labels: ls})
	}
	return nil
}

// Hold returns the identity with this number if its labels are known, and keeps it known until LetGo.
func (a *Allocator) Hold(id ID) (Identity, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	row, ok := a.Get(id)
	if !ok || a.holds.changing[id] > 0 {
		return Identity{}, false
	}
	a.holds.count[id]++
	return row, true
}

// LetGo ends one Hold.
func (a *Allocator) LetGo(id ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holds.count[id]--; a.holds.count[id] > 0 {
		return
	}
	delete(a.holds.count, id)
	if a.byID[id] == nil && !id.IsReserved() && !id.IsLocal() {
		a.forget(id)
	}
}

// prepare makes sure that nobody has the number for other labels than these. Done ends it, after the row is written.
func (a *Allocator) prepare(id ID, ls labels.Labels) (done func(), err error) {
	a.mu.Lock()
	row, known := a.Get(id)
	other := known && !slices.Equal(row.Labels, ls)
	if other {
		a.holds.changing[id]++
	}
	a.mu.Unlock()
	done = func() {
		if other {
			a.mu.Lock()
			if a.holds.changing[id]--; a.holds.changing[id] == 0 {
				delete(a.holds.changing, id)
			}
			a.mu.Unlock()
		}
		if a.cfg.Told != nil {
			a.cfg.Told(id)
		}
	}
	if other && a.cfg.Withdraw != nil {
		if err := a.cfg.Withdraw(id); err != nil {
			done()
			return nil, fmt.Errorf("number %d meant %s until now: %w", uint32(id), row.Labels, err)
		}
	}
	return done, nil
}

// postpone remembers a meaning for Sweep.
func (a *Allocator) postpone(from origin, id ID, key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.holds.postponed[id] = postponed{from, key}
}

// again takes in what was postponed.
func (a *Allocator) again() {
	a.mu.Lock()
	list := a.holds.postponed
	a.holds.postponed = map[ID]postponed{}
	a.mu.Unlock()
	for id, p := range list {
		a.hear(p.from, true, id, p.key)
	}
}

func (a *Allocator) refuse() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.holds.refused++
}

// Refused counts what the stores said and was not believed.
func (a *Allocator) Refused() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.holds.refused
}

// origin is the cluster whose store says something.
type origin struct {
	id   uint8
	name string // of another cluster; empty: this node's own
}

// check keeps another cluster from describing its workloads as if they were not its own.
func (o origin) check(ls labels.Labels) error {
	if o.name == "" {
		return nil
	}
	if got, ok := ls.Get(labels.SourceK8s, labels.KeyCluster); !ok || got != o.name {
		return fmt.Errorf("label %s is %q; workloads of that cluster have %q", labels.KeyCluster, got, o.name)
	}
	return nil
}

// Watcher is a store of which only the numbers are wanted.
type Watcher interface {
	Watch(ctx context.Context, f func(upsert bool, id ID, key string)) error
}

// Follow takes in the numbers of another cluster until ctx ends. They stay known; see Leave.
func (a *Allocator) Follow(ctx context.Context, cluster string, id uint8, store Watcher) error {
	from := origin{id, cluster}
	return store.Watch(ctx, func(upsert bool, n ID, key string) { a.hear(from, upsert, n, key) })
}

// Leave forgets the numbers of another cluster, those that are held when they are let go.
func (a *Allocator) Leave(cluster uint8) {
	a.mu.Lock()
	var list []ID
	for id := range a.cluster {
		if checkCluster(id, cluster) == nil {
			list = append(list, id)
		}
	}
	a.mu.Unlock()
	for _, id := range list {
		a.vanished(id)
	}
}
