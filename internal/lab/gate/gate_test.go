package gate_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"porin/internal/kvstore"
	"porin/internal/lab/gate"
	"porin/internal/lab/space"
)

func needRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Getenv("PORIN_UNIT") != "":
		t.Skip("unit run without root")
	case os.Geteuid() != 0:
		t.Fatal("needs root: run with sudo")
	}
}

// behind starts a store and a gate in a network namespace of their own and returns a client of the gate and its Slow file.
func behind(t *testing.T) (*clientv3.Client, string) {
	t.Helper()
	needRoot(t)
	dir := filepath.Join("/run", fmt.Sprintf("pt-gate-%d", os.Getpid()))
	if err := space.MakeDir(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := space.RemoveDir(dir); err != nil {
			t.Error(err)
		}
	})
	ns := filepath.Join(dir, "ns")
	if err := space.NewNetns(ns); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 2)
	cfg := gate.Config{Listen: []string{"127.0.0.1:2379"}, Socket: filepath.Join(dir, "s"), Slow: filepath.Join(dir, "slow")}
	go func() {
		done <- kvstore.Serve(ctx, slog.New(slog.DiscardHandler), kvstore.ServerConfig{Dir: filepath.Join(dir, "data"), Socket: cfg.Socket})
	}()
	ready := make(chan struct{})
	go func() {
		done <- space.InNetns(ns, func() error { return gate.Run(ctx, cfg, func() error { close(ready); return nil }) })
	}()
	t.Cleanup(func() {
		stop()
		for range 2 {
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	})
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"http://127.0.0.1:2379"},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (conn net.Conn, err error) {
			return conn, errors.Join(err, space.InNetns(ns, func() (err error) {
				conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:2379")
				return err
			}))
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, cfg.Slow
}

// Calls, streams and errors pass as they are; a slow write is made although its client has gone, and reads stay fast.
func TestRootGate(t *testing.T) {
	c, slow := behind(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	watch := c.Watch(ctx, "a", clientv3.WithPrefix())
	// the store may still be starting
	for {
		if _, err := c.Put(ctx, "a1", "one"); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	if r := <-watch; r.Err() != nil || len(r.Events) != 1 || string(r.Events[0].Kv.Value) != "one" {
		t.Fatalf("watch: %+v", r)
	}
	if _, err := c.Get(ctx, "a", clientv3.WithRev(1<<40)); err == nil {
		t.Error("a revision of the future was read: errors do not pass")
	}

	if err := os.WriteFile(slow, []byte("4s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	short, end := context.WithTimeout(ctx, time.Second)
	defer end()
	if _, err := c.Put(short, "a2", "late"); err == nil {
		t.Fatal("a slow write was answered at once")
	}
	if r, err := c.Get(ctx, "a1"); err != nil || len(r.Kvs) != 1 {
		t.Errorf("a read beside a slow write: %v %v", r, err)
	}
	if r := <-watch; r.Err() != nil || string(r.Events[0].Kv.Key) != "a2" {
		t.Errorf("the write whose client had gone: %+v", r)
	}
	if err := os.Remove(slow); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(ctx, "a3", "fast"); err != nil {
		t.Error(err)
	}
}
