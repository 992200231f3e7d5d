package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"
)

// Limits of Serve. A runtime starts pods in bursts, so requests wait for a place rather than being turned away.
const (
	maxConcurrent = 64
	maxOpen       = 1024
	readTimeout   = 10 * time.Second
	writeTimeout  = 10 * time.Second
)

// Handle answers one request. Its context ends with Serve's.
type Handle func(ctx context.Context, req Request) Response

// Serve answers requests on l until ctx ends, one per connection, then closes l and waits for those under way. What
// arrives broken, or in a newer version, is answered with an error and never reaches handle.
func Serve(ctx context.Context, log *slog.Logger, l net.Listener, handle Handle) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	open := make(chan struct{}, maxOpen)
	busy := make(chan struct{}, maxConcurrent)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept on %s: %w", l.Addr(), err)
			}
			// Out of file descriptors, or the peer is gone already: both pass.
			log.Warn("cni connection not accepted", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		select {
		case open <- struct{}{}:
		default:
			log.Warn("cni connection refused: too many are open", "limit", maxOpen)
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-open }()
			defer conn.Close()
			answer(ctx, log, conn, busy, handle)
		})
	}
}

func answer(ctx context.Context, log *slog.Logger, conn net.Conn, busy chan struct{}, handle Handle) {
	conn.SetReadDeadline(time.Now().Add(readTimeout))
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	var req Request
	err := ReadMessage(conn, &req)
	stop()
	var resp Response
	switch {
	case err != nil:
		resp.Error = Errorf(CodeDecoding, "read the request", "%v", err)
	case req.Version > WireVersion || req.Version < 1:
		resp.Error = Errorf(CodeIncompatibleVersion, "read the request",
			"porin-cni speaks version %d, this agent up to %d: install porin-cni and porin-agent of one release", req.Version, WireVersion)
	default:
		select {
		case busy <- struct{}{}:
			resp = call(ctx, log, req, handle)
			<-busy
		case <-ctx.Done():
			resp.Error = Errorf(CodeTryAgainLater, "handle "+string(req.Command), "the agent is stopping")
		}
	}
	resp.Version = WireVersion
	conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := WriteMessage(conn, resp); err != nil {
		log.Warn("cni answer not delivered", "command", req.Command, "container", req.ContainerID, "err", err)
	}
}

// call keeps a panic from ending the agent: one bad request must not take the other workloads' control plane along.
func call(ctx context.Context, log *slog.Logger, req Request, handle Handle) (resp Response) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("cni request panicked", "command", req.Command, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			resp = Response{Error: Errorf(CodeTryAgainLater, "handle "+string(req.Command), "internal error; the agent's log has it")}
		}
	}()
	return handle(ctx, req)
}
