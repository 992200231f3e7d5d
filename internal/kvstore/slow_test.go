package kvstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"porin/internal/identity"
)

// slowStore stands before a store and passes everything on as it is, but holds each write back for a while, as a disk
// does that cannot keep up.
type slowStore struct {
	socket string
	hold   atomic.Int64  // nanoseconds
	held   atomic.Uint64 // writes that were held back
}

// raw is a message that nobody looks into.
type raw struct{ b []byte }

type rawCodec struct{}

func (rawCodec) Name() string                    { return "proto" }
func (rawCodec) Marshal(v any) ([]byte, error)   { return v.(*raw).b, nil }
func (rawCodec) Unmarshal(b []byte, v any) error { v.(*raw).b = append([]byte(nil), b...); return nil }

func newSlowStore(t testing.TB, to string) *slowStore {
	t.Helper()
	s := &slowStore{socket: filepath.Join(shortDir(t), "slow.sock")}
	conn, err := grpc.NewClient("unix://"+to, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}), grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(func(_ any, down grpc.ServerStream) error {
		return s.pass(conn, down)
	}))
	go srv.Serve(l)
	t.Cleanup(func() { srv.Stop(); conn.Close() })
	return s
}

func (s *slowStore) endpoint() string { return "unix://" + s.socket }

// pass passes one call on. A write that was held back is carried out though its caller has gone, as etcd does.
func (s *slowStore) pass(conn *grpc.ClientConn, down grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(down)
	ctx := down.Context()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	if wait := time.Duration(s.hold.Load()); wait > 0 && writes(method) {
		s.held.Add(1)
		timer := time.NewTimer(wait)
		defer timer.Stop()
		<-timer.C
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	up, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	go func() {
		for {
			var m raw
			if err := down.RecvMsg(&m); err != nil {
				if errors.Is(err, io.EOF) {
					up.CloseSend()
				}
				return
			}
			if up.SendMsg(&m) != nil {
				return
			}
		}
	}()
	for {
		var m raw
		if err := up.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := down.SendMsg(&m); err != nil {
			return err
		}
	}
}

func writes(method string) bool {
	switch method {
	case "/etcdserverpb.KV/Txn", "/etcdserverpb.KV/Put", "/etcdserverpb.KV/DeleteRange", "/etcdserverpb.Lease/LeaseGrant":
		return true
	}
	return false
}

// Every write takes 5 s, longer than a question may. New label sets get one number each, the node's records
// arrive, and no lease ends.
func TestSlowStore(t *testing.T) {
	srv := newServer(t)
	slow := newSlowStore(t, srv.cfg.Socket)
	a := newReporter(t, "a", slow.endpoint(), Claim{}, func(c *Config) { c.Timeout = 0; c.defaults() })
	b := newReporter(t, "b", srv.cfg.Endpoint(), Claim{})
	a.publish(1, 7)
	b.sees("knows a", "a", "a/10.1.0.7=300")
	old := a.allocate("k8s:app=old;")
	slow.hold.Store(int64(5 * time.Second))
	type answer struct {
		id  identity.ID
		err error
	}
	const sets = 4
	answers := make(chan answer, sets)
	for i := range sets {
		go func() {
			id, err := a.Allocate(context.Background(), fmt.Sprintf("k8s:app=new%d;", i))
			answers <- answer{id, err}
		}()
	}
	a.records.PublishAddresses(at(1, 8, 9), nil)
	given := map[identity.ID]bool{old: true}
	for range sets {
		got := <-answers
		if got.err != nil || given[got.id] {
			t.Errorf("a new label set on a slow store: %d, %v", got.id, got.err)
		}
		given[got.id] = true
	}
	b.sees("knows the new addresses", "a", "a/10.1.0.7=300", "a/10.1.0.8=300", "a/10.1.0.9=300")
	eventually(t, "everything is published", func() bool { there, wanted := a.records.Published(); return there == wanted })
	if n := slow.held.Load(); n < sets+1 {
		t.Fatalf("%d writes were held back, want %d at least: the store was not slow", n, sets+1)
	}
	if got := len(b.keys(idPrefix)); got != len(given) {
		t.Errorf("the store has %d numbers for %d label sets", got, len(given))
	}
	if ok, why := a.client.Healthy(); !ok || a.client.Counts()["lost"] != 0 {
		t.Errorf("healthy %v (%s), counts %v", ok, why, a.client.Counts())
	}
	slow.hold.Store(0)
	a.records.PublishAddresses(nil, []netip.Addr{pod(1, 7)})
	b.sees("hears of the removal", "a", "a/10.1.0.8=300", "a/10.1.0.9=300")
}
