package kvstore

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"porin/internal/identity"
)

// TestMain lets the test binary be the store's process, or the parent of one.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "serve-store" {
		err := Serve(context.Background(), slog.New(slog.NewTextHandler(io.Discard, nil)), ServerConfig{Dir: os.Args[2], Socket: os.Args[3]})
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if len(os.Args) == 4 && os.Args[1] == "parent-of-store" {
		p := Process{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Path: os.Args[0], Args: []string{"serve-store", os.Args[2], os.Args[3]}}
		p.Run(context.Background())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// logTo writes the log of a test where its output goes, while it lasts.
func logTo(t testing.TB) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.t = nil
	})
	return slog.New(slog.NewTextHandler(w, nil))
}

type testWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Log(strings.TrimSuffix(string(p), "\n"))
	}
	return len(p), nil
}

// server is an embedded server that tests start and stop.
type server struct {
	t      testing.TB
	cfg    ServerConfig
	cancel context.CancelFunc
	done   chan error
}

func newServer(t testing.TB, edit ...func(*ServerConfig)) *server {
	dir := shortDir(t)
	s := &server{t: t, cfg: ServerConfig{Dir: filepath.Join(dir, "etcd"), Socket: filepath.Join(dir, "run", "etcd.sock")}}
	for _, e := range edit {
		e(&s.cfg)
	}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *server) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan error, 1)
	go func() { s.done <- Serve(ctx, logTo(s.t), s.cfg) }()
}

func (s *server) stop() {
	if s.cancel != nil {
		s.cancel()
		<-s.done
		s.cancel = nil
	}
}

// member is one node's Identities, running, and what its watch told.
type member struct {
	*Identities
	t    testing.TB
	etcd *clientv3.Client
	mu   sync.Mutex
	seen map[identity.ID]string
	stop func()
}

func newNode(t testing.TB, name, endpoint string, edit ...func(*Config)) *member {
	t.Helper()
	cfg := Config{
		Endpoints: []string{endpoint}, Node: name,
		Heartbeat: 100 * time.Millisecond, Timeout: 2 * time.Minute, Collect: time.Hour,
	}
	for _, e := range edit {
		e(&cfg)
	}
	log := logTo(t).With("node", name)
	client, err := Dial(log, cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := &member{Identities: NewIdentities(log, client), t: t, etcd: client.etcd, seen: map[identity.ID]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { n.Run(ctx) })
	wg.Go(func() {
		n.Watch(ctx, func(upsert bool, id identity.ID, set string) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if upsert {
				n.seen[id] = set
			} else {
				delete(n.seen, id)
			}
		})
	})
	n.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		client.Close()
	})
	t.Cleanup(n.stop)
	return n
}

func (n *member) told(id identity.ID) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen[id]
}

func (n *member) allocate(set string) identity.ID {
	n.t.Helper()
	id, err := n.Allocate(context.Background(), set)
	if err != nil {
		n.t.Fatalf("allocate %s: %v", set, err)
	}
	return id
}

func (n *member) sent() uint64 {
	n.Identities.mu.Lock()
	defer n.Identities.mu.Unlock()
	return n.txns
}

// keys reads everything below prefix.
func (n *member) keys(prefix string) map[string]string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	resp, err := n.etcd.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		n.t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range resp.Kvs {
		out[strings.TrimPrefix(string(kv.Key), prefix)] = string(kv.Value)
	}
	return out
}

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * time.Minute)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 2 minutes: %s", what)
		}
	}
}

// shortDir is a temporary folder whose path leaves room for a socket's name.
func shortDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "ptkv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// cable is a connection to the store that tests cut and mend.
type cable struct {
	t      testing.TB
	to     string
	l      net.Listener
	mu     sync.Mutex
	broken bool
	conns  map[net.Conn]bool
}

func newCable(t testing.TB, to string) *cable {
	l, err := net.Listen("unix", filepath.Join(shortDir(t), "cable.sock"))
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{t: t, to: to, l: l, conns: map[net.Conn]bool{}}
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			c.join(a)
		}
	}()
	t.Cleanup(func() { l.Close(); c.cut() })
	return c
}

func (c *cable) endpoint() string { return "unix://" + c.l.Addr().String() }

func (c *cable) join(a net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := net.Dial("unix", c.to)
	if err != nil || c.broken {
		a.Close()
		if err == nil {
			b.Close()
		}
		return
	}
	c.conns[a], c.conns[b] = true, true
	pump := func(from, to net.Conn) {
		io.Copy(to, from)
		from.Close()
		to.Close()
	}
	go pump(a, b)
	go pump(b, a)
}

func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = true
	for conn := range c.conns {
		conn.Close()
	}
	clear(c.conns)
}

func (c *cable) mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = false
}
