package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	agentv1 "porin/api/agent/v1"
	"porin/internal/datapath"
	"porin/internal/endpoint"
	"porin/internal/kvstore"
)

// Limits of the API. Only root can call, but a script gone wild must not take the agent along.
const (
	maxRequest    = 32 << 20 // of policies in one call
	maxParallel   = 64       // calls that are worked on at the same time
	maxStreams    = 64       // streams, which last
	maxWaiting    = 2 * time.Second
	callTimeout   = 2 * time.Minute
	stopCallsTime = 2 * time.Second
)

// api answers the calls of agent.proto.
type api struct {
	agentv1.UnimplementedAgentServer
	*agent
}

// openAPI opens the socket for the CLI. Everything that it may be asked about must exist.
func (a *agent) openAPI(run *stack, log *slog.Logger) error {
	l, err := listen(filepath.Join(a.cfg.RunDir, apiSocket), log)
	if err != nil {
		return err
	}
	gate := &gate{log: log, calls: make(chan struct{}, maxParallel), streams: make(chan struct{}, maxStreams)}
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxHeaderListSize(16<<10),
		grpc.MaxConcurrentStreams(256),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.UnaryInterceptor(gate.unary),
		grpc.StreamInterceptor(gate.stream),
	)
	agentv1.RegisterAgentServer(server, &api{agent: a})
	run.start("api", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() {
			hard := time.AfterFunc(stopCallsTime, server.Stop) // a monitor never ends by itself
			defer hard.Stop()
			server.GracefulStop()
		})
		defer stop()
		if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve %s: %w", l.Addr(), err)
		}
		return nil
	})
	return nil
}

// gate lets calls in, bounded in number and time, keeps a panic in one call from ending the agent, and gives errors
// their codes.
type gate struct {
	log     *slog.Logger
	calls   chan struct{}
	streams chan struct{}
}

func (g *gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	wait := time.NewTimer(maxWaiting)
	defer wait.Stop()
	select {
	case g.calls <- struct{}{}:
		defer func() { <-g.calls }()
	case <-wait.C:
		return nil, status.Errorf(codes.ResourceExhausted, "%d calls are being worked on; try again later", maxParallel)
	case <-ctx.Done():
		return nil, coded(ctx.Err())
	}
	defer g.recovered(info.FullMethod, &err)
	resp, err = handle(ctx, req)
	return resp, coded(err)
}

func (g *gate) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	select {
	case g.streams <- struct{}{}:
		defer func() { <-g.streams }()
	default:
		return status.Errorf(codes.ResourceExhausted, "%d streams are open; end one first", maxStreams)
	}
	defer g.recovered(info.FullMethod, &err)
	return coded(handle(srv, s))
}

func (g *gate) recovered(method string, err *error) {
	if p := recover(); p != nil {
		g.log.Error("call panicked", "call", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal error; the agent's log has it")
	}
}

// coded gives an error the code by which clients tell what to do. Those with a code keep it.
func coded(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unknown
	for _, c := range []struct {
		err  error
		code codes.Code
	}{
		{endpoint.ErrNotFound, codes.NotFound},
		{endpoint.ErrInvalid, codes.InvalidArgument},
		{datapath.ErrKey, codes.InvalidArgument},
		{endpoint.ErrRefused, codes.PermissionDenied},
		{endpoint.ErrNotReady, codes.FailedPrecondition},
		{errOwner, codes.FailedPrecondition},
		{errHeld, codes.FailedPrecondition},
		{errMissing, codes.NotFound},
		{errNoTrial, codes.NotFound},
		{errTrial, codes.FailedPrecondition},
		{kvstore.ErrUnreachable, codes.FailedPrecondition},
		{kvstore.ErrExhausted, codes.ResourceExhausted},
		{kvstore.ErrKey, codes.InvalidArgument},
		{kvstore.ErrLeased, codes.FailedPrecondition},
		{kvstore.ErrNoKey, codes.NotFound},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
	} {
		if errors.Is(err, c.err) {
			code = c.code
			break
		}
	}
	return status.Error(code, err.Error())
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}
