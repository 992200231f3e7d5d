package operator

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"porin/internal/kvstore"
)

// memory is what an operator has seen nodes have, leading or not: it survives a store that is wiped.
type memory struct {
	grace time.Duration // a node that was not seen for longer is forgotten

	mu   sync.Mutex
	seen map[string]map[netip.Prefix]time.Time // mu: by node, when last
}

func newMemory(grace time.Duration) *memory {
	return &memory{grace: grace, seen: map[string]map[netip.Prefix]time.Time{}}
}

// watch notes everything that the store says, whenever that changes.
func (m *memory) watch(store *kvstore.Ranges, now func() time.Time) func(context.Context) error {
	return func(ctx context.Context) error {
		s, err := store.Read(ctx)
		if err != nil {
			return err
		}
		for _, x := range s.Grants {
			m.note(x.Node, x.Ranges, now())
		}
		for _, x := range s.Nodes {
			m.note(x.Name, x.PodCIDRs, now())
		}
		return nil
	}
}

func (m *memory) note(node string, list []netip.Prefix, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range list {
		if m.seen[node] == nil {
			m.seen[node] = map[netip.Prefix]time.Time{}
		}
		m.seen[node][p] = now
	}
}

func (m *memory) drop(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.seen, node)
}

// all returns what is remembered, by node.
func (m *memory) all(now time.Time) map[string][]netip.Prefix {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string][]netip.Prefix{}
	for node, list := range m.seen {
		for p, seen := range list {
			if now.Sub(seen) > m.grace {
				delete(list, p)
				continue
			}
			out[node] = append(out[node], p)
		}
		if len(list) == 0 {
			delete(m.seen, node)
		}
	}
	return out
}
