package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"porin/internal/ipam"
	"porin/internal/kvstore"
)

// store is an etcd server that tests start, stop and wipe.
type store struct {
	t    *testing.T
	cfg  kvstore.ServerConfig
	stop func()
}

func newStore(t *testing.T) *store {
	dir, err := os.MkdirTemp("", "ptop") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	s := &store{t: t, cfg: kvstore.ServerConfig{Dir: filepath.Join(dir, "etcd"), Socket: filepath.Join(dir, "run", "s")}}
	s.start()
	t.Cleanup(func() {
		s.stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *store) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- kvstore.Serve(ctx, slog.New(slog.DiscardHandler), s.cfg) }()
	s.stop = sync.OnceFunc(func() { cancel(); <-done })
}

func (s *store) wipe() {
	s.stop()
	if err := os.RemoveAll(s.cfg.Dir); err != nil {
		s.t.Fatal(err)
	}
	s.start()
}

func (s *store) config(node string) kvstore.Config {
	return kvstore.Config{Endpoints: []string{s.cfg.Endpoint()}, Node: node, Heartbeat: 100 * time.Millisecond, Collect: time.Hour}
}

// operator starts one; the returned function kills it: its leadership lapses only with its lease, as after kill -9.
func (s *store) operator(name string, edit ...func(*Config)) (kill func()) {
	cfg := Config{
		Name: name, Cluster: "c", Store: s.config("operator." + name), LeaderTTL: 2 * time.Second, Settle: time.Second, Grace: time.Hour,
		Pools: []ipam.ClusterPool{{Prefix: netip.MustParsePrefix("10.0.0.0/22"), NodeBits: 24}, {Prefix: netip.MustParsePrefix("fd00::/60"), NodeBits: 64}},
	}
	for _, e := range edit {
		e(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(slog.New(slog.DiscardHandler), cfg).Run(ctx) }()
	kill = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(kill)
	return kill
}

// asker is a node that asks for ranges.
type asker struct {
	t    *testing.T
	name string
	stop func()

	mu      sync.Mutex
	req     kvstore.RangeRequest
	grant   kvstore.RangeGrant
	there   bool
	changed chan struct{}
}

func (s *store) node(name string, has ...string) *asker {
	n := &asker{t: s.t, name: name, req: kvstore.RangeRequest{Node: name, IPv4: true, IPv6: true}, changed: make(chan struct{})}
	for _, p := range has {
		n.req.Has = append(n.req.Has, netip.MustParsePrefix(p))
	}
	client, err := kvstore.Dial(slog.New(slog.DiscardHandler), s.config(name))
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- kvstore.NewRanges(slog.New(slog.DiscardHandler), client, "c").Ask(ctx, func() kvstore.RangeRequest {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.req
		}, n.told)
	}()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			s.t.Error(err)
		}
		client.Close()
	})
	s.t.Cleanup(n.stop)
	return n
}

func (n *asker) told(g kvstore.RangeGrant, there bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.grant, n.there = g, there
	if there && len(g.Ranges) > 0 {
		n.req.Has = g.Ranges // as an agent saves it
	}
	close(n.changed)
	n.changed = make(chan struct{})
}

// wait returns the node's grant when ok holds for it.
func (n *asker) wait(what string, ok func(kvstore.RangeGrant, bool) bool) kvstore.RangeGrant {
	n.t.Helper()
	limit := time.After(time.Minute)
	for {
		n.mu.Lock()
		g, there, changed := n.grant, n.there, n.changed
		n.mu.Unlock()
		if ok(g, there) {
			return g
		}
		select {
		case <-changed:
		case <-limit:
			n.t.Fatalf("%s: %s: not within a minute; it has %+v (%v)", n.name, what, g, there)
		}
	}
}

func (n *asker) ranges() []netip.Prefix {
	n.t.Helper()
	return n.wait("both ranges", func(g kvstore.RangeGrant, there bool) bool { return there && len(g.Ranges) == 2 }).Ranges
}

// Nodes get ranges of their own; an operator that dies is followed by the other, which knows what was given.
func TestTwoOperators(t *testing.T) {
	s := newStore(t)
	first := s.operator("one")
	s.operator("two")
	seen := map[netip.Prefix]string{}
	claim := func(n *asker) {
		t.Helper()
		for _, p := range n.ranges() {
			for q, other := range seen {
				if q.Overlaps(p) {
					t.Errorf("%s has %s, %s has %s", n.name, p, other, q)
				}
			}
			seen[p] = n.name
		}
	}
	claim(s.node("a"))
	first()
	for _, name := range []string{"b", "c", "d"} {
		claim(s.node(name))
	}
	e := s.node("e")
	g := e.wait("a problem", func(g kvstore.RangeGrant, there bool) bool { return there && g.Problem != "" })
	if !strings.Contains(g.Problem, "all 4 IPv4 ranges are given") || len(g.Ranges) != 1 || !g.Ranges[0].Addr().Is6() {
		t.Errorf("a fifth node in a pool of four: %+v", g)
	}
}

// A wiped store is written again by those who know: everybody keeps what they had, and a new node gets something else.
func TestWipedStore(t *testing.T) {
	for _, survivor := range []bool{true, false} {
		t.Run(fmt.Sprintf("operator survives %v", survivor), func(t *testing.T) {
			s := newStore(t)
			kill := s.operator("one")
			a, b := s.node("a"), s.node("b")
			hadA, hadB := a.ranges(), b.ranges()
			b.stop() // away while the store is wiped, and still there when it comes back
			if !survivor {
				kill()
			}
			s.wipe()
			if !survivor {
				// nobody remembers b: its claim comes with itself, before the store counts as settled
				b = s.node("b", hadB[0].String(), hadB[1].String())
				s.operator("two")
			}
			c := s.node("c")
			got := c.ranges()
			if now := a.ranges(); !slices.Equal(now, hadA) {
				t.Errorf("a had %v and has %v", hadA, now)
			}
			for _, p := range got {
				if slices.Contains(hadA, p) || slices.Contains(hadB, p) {
					t.Errorf("the new node got %v; a has %v, b %v", got, hadA, hadB)
				}
			}
			if survivor {
				b = s.node("b", hadB[0].String(), hadB[1].String())
			}
			if now := b.ranges(); !slices.Equal(now, hadB) {
				t.Errorf("b had %v and has %v", hadB, now)
			}
		})
	}
}

// A range that another node has is refused, with its owner's name; a node that is gone for long gives its ranges back.
func TestConflictAndReturn(t *testing.T) {
	s := newStore(t)
	s.operator("one", func(c *Config) { c.Grace = time.Second; c.Pools = c.Pools[:1] })
	a := s.node("a", "10.0.0.0/24")
	a.wait("10.0.0.0/24", func(g kvstore.RangeGrant, _ bool) bool {
		return len(g.Ranges) == 1 && g.Ranges[0].String() == "10.0.0.0/24"
	})
	liar := s.node("liar", "10.0.0.128/25")
	g := liar.wait("a problem", func(g kvstore.RangeGrant, _ bool) bool { return g.Problem != "" })
	if !strings.Contains(g.Problem, "overlaps 10.0.0.0/24 of a") || len(g.Ranges) != 0 {
		t.Errorf("an overlapping claim: %+v", g)
	}
	for _, n := range []*asker{liar, a} {
		n.stop()
		s.lapse(n.name)
	}
	b := s.node("b", "10.0.0.0/24")
	b.wait("the range of a", func(g kvstore.RangeGrant, _ bool) bool {
		return slices.Contains(g.Ranges, netip.MustParsePrefix("10.0.0.0/24"))
	})
}

// lapse takes a node's request away, as the end of its lease would.
func (s *store) lapse(node string) {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.cfg.Endpoint()}})
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Delete(s.t.Context(), "porin/ranges/v1/c/request/"+node); err != nil {
		s.t.Fatal(err)
	}
}
