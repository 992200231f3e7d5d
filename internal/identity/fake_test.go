package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"porin/internal/labels"
	"porin/internal/state"
)

// fakeStore is a cluster store in memory, shared by the allocators of several nodes.
type fakeStore struct {
	mu       sync.Mutex
	next     ID
	keys     map[string]ID
	claims   map[string]int
	txns     int
	adopted  []string
	down     error
	gate     chan struct{} // when set, Allocate waits for it
	watchers []func(bool, ID, string)
}

func newFakeStore() *fakeStore {
	return &fakeStore{next: MinCluster, keys: map[string]ID{}, claims: map[string]int{}}
}

func (s *fakeStore) Allocate(ctx context.Context, key string) (ID, error) {
	s.mu.Lock()
	gate := s.gate
	s.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != nil {
		return 0, s.down
	}
	s.txns++
	id, ok := s.keys[key]
	if !ok {
		id = s.next
		s.next++
		s.keys[key] = id
		for _, w := range s.watchers {
			defer w(true, id, key)
		}
	}
	s.claims[key]++
	return id, nil
}

func (s *fakeStore) Adopt(key string, id ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adopted = append(s.adopted, fmt.Sprintf("%d=%s", id, key))
	for k, other := range s.keys {
		if (k == key) != (other == id) {
			return // a conflict; Watch tells the node
		}
	}
	s.keys[key] = id
	s.claims[key]++
}

func (s *fakeStore) Release(_ context.Context, key string, id ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != nil {
		return s.down
	}
	s.txns++
	if s.keys[key] != id || s.claims[key] == 0 {
		return fmt.Errorf("release of %q=%d, which is %d with %d claims", key, id, s.keys[key], s.claims[key])
	}
	s.claims[key]--
	return nil
}

func (s *fakeStore) Watch(ctx context.Context, f func(bool, ID, string)) error {
	s.mu.Lock()
	s.watchers = append(s.watchers, f)
	known := make(map[string]ID)
	maps.Copy(known, s.keys)
	s.mu.Unlock()
	for k, id := range known {
		f(true, id, k)
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s *fakeStore) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.txns
}

// node is one allocator with a clock that only the test moves.
type node struct {
	*Allocator
	table     *state.Table[Identity]
	now       time.Time
	log       strings.Builder
	conflicts []string
}

func newNode(store Store, edit ...func(*Config)) *node {
	n := &node{table: NewTable(state.New()), now: time.Unix(1_000_000, 0)}
	cfg := Config{
		DualStack: true, Linger: time.Minute, Rest: time.Minute, Now: func() time.Time { return n.now },
		Conflict: func(id ID, ls labels.Labels) { n.conflicts = append(n.conflicts, fmt.Sprintf("%d %s", id, ls)) },
	}
	for _, e := range edit {
		e(&cfg)
	}
	n.Allocator = New(slog.New(slog.NewTextHandler(&n.log, nil)), cfg, store, n.table)
	return n
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func set(t testing.TB, ss ...string) labels.Labels {
	t.Helper()
	ls, err := labels.ParseAll(ss...)
	if err != nil {
		t.Fatal(err)
	}
	return ls
}

var errDown = errors.New("store unreachable")
