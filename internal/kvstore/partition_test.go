package kvstore

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/state"
)

// cutOff cuts a node off for longer than its lease lasts and lets another one collect what it held.
func cutOff(t *testing.T, cable *cable, a, b *member, set string, id identity.ID) {
	t.Helper()
	cable.cut()
	eventually(t, "the lease of the node that is cut off ends", func() bool {
		_, there := b.keys(valPrefix)[set+"/a"]
		return !there
	})
	collectTwice(t, b)
	eventually(t, "its number is collected", func() bool { return b.told(id) == "" })
}

// A node is cut off for longer than its lease, and back while its number still rests: the number is its own again.
func TestCutOffNodeTakesItsNumberBack(t *testing.T) {
	srv := newServer(t)
	cable := newCable(t, srv.cfg.Socket)
	one := func(c *Config) { c.LeaseTTL, c.First, c.Last = time.Second, 300, 301 }
	a := newNode(t, "a", cable.endpoint(), one)
	b := newNode(t, "b", srv.cfg.Endpoint(), one)
	id := a.allocate("k8s:app=mine;")
	eventually(t, "b knows", func() bool { return b.told(id) != "" })
	cutOff(t, cable, a, b, "k8s:app=mine;", id)
	if got := b.allocate("k8s:app=other;"); got == id {
		t.Fatalf("number %d was given away while it should rest", id)
	}
	cable.mend()
	eventually(t, "a has its claim back", func() bool {
		return b.keys(valPrefix)["k8s:app=mine;/a"] == text(id) && b.told(id) == "k8s:app=mine;" && a.told(id) == "k8s:app=mine;"
	})
	if got := b.keys(frePrefix); len(got) != 0 {
		t.Errorf("still resting: %v", got)
	}
}

// A node is cut off for longer than its number rests, and the number means other labels when it is back. Its allocator
// is told, believes the store, and gets another number for its own labels.
func TestCutOffNodeLosesItsNumber(t *testing.T) {
	srv := newServer(t)
	cable := newCable(t, srv.cfg.Socket)
	short := func(c *Config) { c.LeaseTTL, c.Rest, c.First, c.Last = time.Second, time.Second, 300, 301 }
	b := newNode(t, "b", srv.cfg.Endpoint(), short)
	a := newNode(t, "a", cable.endpoint(), short)

	var mu sync.Mutex
	var conflicts []identity.ID
	alloc := identity.New(slog.New(slog.DiscardHandler), identity.Config{Conflict: func(id identity.ID, _ labels.Labels) {
		mu.Lock()
		defer mu.Unlock()
		conflicts = append(conflicts, id)
	}}, a, identity.NewTable(state.New()))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- alloc.Run(ctx) }()
	defer func() { cancel(); <-done }()

	mine := labels.New(labels.Label{Source: "k8s", Key: "app", Value: "mine"})
	before, err := alloc.Allocate(t.Context(), mine)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "b knows", func() bool { return b.told(before.ID) != "" })
	cutOff(t, cable, a, b, mine.Key(), before.ID)
	eventually(t, "the number has rested", func() bool { return len(b.keys(frePrefix)) == 0 })
	for _, set := range []string{"k8s:app=x;", "k8s:app=y;"} { // both numbers are taken now
		b.allocate(set)
	}
	cable.mend()
	eventually(t, "a's allocator is told", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(conflicts) == 1 && conflicts[0] == before.ID
	})
	if now, _ := alloc.Get(before.ID); now.Labels.Key() == mine.Key() {
		t.Errorf("a still takes %d for its own", before.ID)
	}
	for _, set := range []string{"k8s:app=x;", "k8s:app=y;"} {
		b.mu.Lock()
		id := identity.ID(0)
		for n, s := range b.seen {
			if s == set && n != before.ID {
				id = n
			}
		}
		b.mu.Unlock()
		if id != 0 {
			mustRelease(t, b, set, id)
		}
	}
	collectTwice(t, b)
	eventually(t, "a has another number", func() bool {
		anew, err := alloc.Allocate(t.Context(), mine)
		return err == nil && anew.ID != before.ID
	})
}
