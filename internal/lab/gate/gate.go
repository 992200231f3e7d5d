// Package gate assembles the door of a lab's store: a gRPC relay between the nodes' network and the store's socket that
// can make the store's disk look slow.
// It reads requests and hands them on byte by byte, and reads a file that says how long a write takes. It never looks
// into a message and never answers itself.
package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

// Config of a gate.
type Config struct {
	Listen []string `json:"listen"` // host:port
	Socket string   `json:"socket"` // of the store
	Slow   string   `json:"slow"`   // file with the time that every write takes; no file: none
}

// writes are the calls for which a store waits for its disk.
func isWrite(method string) bool {
	switch method {
	case "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Txn", "/etcdserverpb.KV/DeleteRange", "/etcdserverpb.KV/Compact",
		"/etcdserverpb.Lease/LeaseGrant", "/etcdserverpb.Lease/LeaseRevoke":
		return true
	}
	return false
}

const (
	maxMessage = 64 << 20
	lateLimit  = time.Minute // a write whose client has gone is still made, if it does not take longer
)

// Run listens, calls ready, and relays until ctx ends.
func Run(ctx context.Context, cfg Config, ready func() error) error {
	conn, err := grpc.NewClient("unix://"+cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return fmt.Errorf("gate to %s: %w", cfg.Socket, err)
	}
	defer conn.Close()
	g := &gate{cfg: cfg, conn: conn}
	srv := grpc.NewServer(grpc.ForceServerCodecV2(codec{}), grpc.UnknownServiceHandler(g.pass),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	var eg errgroup.Group
	defer context.AfterFunc(ctx, srv.Stop)()
	for _, addr := range cfg.Listen {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			srv.Stop()
			return errors.Join(fmt.Errorf("gate: listen on %s: %w", addr, err), eg.Wait())
		}
		eg.Go(func() error { return srv.Serve(l) })
	}
	if err := ready(); err != nil {
		srv.Stop()
		return errors.Join(err, eg.Wait())
	}
	if err := eg.Wait(); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("gate: %w", err)
	}
	return nil
}

type gate struct {
	cfg  Config
	conn *grpc.ClientConn
}

// pass relays one call, whatever it is.
func (g *gate) pass(_ any, in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	ctx := in.Context()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	if isWrite(method) {
		return g.write(ctx, method, in)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, err := g.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	go func() {
		for {
			var f frame
			if err := in.RecvMsg(&f); err != nil {
				if errors.Is(err, io.EOF) {
					_ = out.CloseSend() // the other direction tells what went wrong
				} else {
					cancel()
				}
				return
			}
			if err := out.SendMsg(&f); err != nil {
				return
			}
		}
	}()
	for {
		var f frame
		if err := out.RecvMsg(&f); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := in.SendMsg(&f); err != nil {
			return err
		}
	}
}

// write makes a write after the time that the store's disk takes, also if its client has lost patience meanwhile: that
// is what a slow store does.
func (g *gate) write(ctx context.Context, method string, in grpc.ServerStream) error {
	var req, resp frame
	if err := in.RecvMsg(&req); err != nil {
		return err
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), lateLimit)
	done := make(chan error, 1)
	go func() {
		defer cancel()
		if d := g.slow(); d > 0 {
			t := time.NewTimer(d)
			defer t.Stop()
			<-t.C
		}
		done <- g.conn.Invoke(late, method, &req, &resp)
	}()
	select {
	case err := <-done:
		if err != nil {
			return err
		}
		return in.SendMsg(&resp)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// slow reads how long a write takes now.
func (g *gate) slow() time.Duration {
	b, err := os.ReadFile(g.cfg.Slow)
	if err != nil {
		return 0
	}
	d, err := time.ParseDuration(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return d
}

// frame is a message that nobody looks into.
type frame struct{ data []byte }

// codec hands frames on as they are.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return nil, fmt.Errorf("gate: %T is no frame", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(f.data)}, nil
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return fmt.Errorf("gate: %T is no frame", v)
	}
	f.data = data.Materialize()
	return nil
}
