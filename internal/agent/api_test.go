package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	agentv1 "porin/api/agent/v1"
	"porin/internal/endpoint"
	"porin/internal/kvstore"
	"porin/internal/labels"
)

// moody answers Status as its test likes.
type moody struct {
	agentv1.UnimplementedAgentServer
	status func(context.Context) error
}

func (m *moody) Status(ctx context.Context, _ *agentv1.StatusRequest) (*agentv1.StatusResponse, error) {
	return &agentv1.StatusResponse{}, m.status(ctx)
}

func (m *moody) Monitor(_ *agentv1.MonitorRequest, out grpc.ServerStreamingServer[agentv1.MonitorResponse]) error {
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	return m.status(out.Context())
}

// gated serves m behind a gate with room for n calls and n streams.
func gated(t *testing.T, n int, m *moody) (agentv1.AgentClient, *strings.Builder) {
	t.Helper()
	var log strings.Builder
	g := &gate{log: slog.New(slog.NewTextHandler(&log, nil)), calls: make(chan struct{}, n), streams: make(chan struct{}, n)}
	server := grpc.NewServer(grpc.UnaryInterceptor(g.unary), grpc.StreamInterceptor(g.stream))
	agentv1.RegisterAgentServer(server, m)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		<-done
	})
	return agentv1.NewAgentClient(conn), &log
}

func TestPanicEndsOneCallOnly(t *testing.T) {
	c, log := gated(t, 1, &moody{status: func(context.Context) error { panic("secret detail") }})
	for range 3 { // the place of a call that panicked is free again
		_, err := c.Status(t.Context(), &agentv1.StatusRequest{})
		if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
			t.Fatalf("unary: %v", err)
		}
		s, err := c.Monitor(t.Context(), &agentv1.MonitorRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); status.Code(err) != codes.Internal {
			t.Fatalf("stream: %v", err)
		}
	}
	if !strings.Contains(log.String(), "secret detail") || !strings.Contains(log.String(), "api_test.go") {
		t.Errorf("the log lacks the panic or its place: %s", log)
	}
}

func TestTooManyCallsAreTurnedAway(t *testing.T) {
	block := make(chan struct{})
	var inside sync.WaitGroup
	inside.Add(2)
	c, _ := gated(t, 2, &moody{status: func(ctx context.Context) error {
		inside.Done()
		<-block
		return nil
	}})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := c.Status(context.Background(), &agentv1.StatusRequest{}); err != nil {
				t.Errorf("a call that had a place: %v", err)
			}
		})
	}
	inside.Wait()
	began := time.Now()
	_, err := c.Status(t.Context(), &agentv1.StatusRequest{})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("third of two calls: %v", err)
	}
	if took := time.Since(began); took < maxWaiting/2 {
		t.Errorf("turned away after %s already", took)
	}
	close(block)
	wg.Wait()
}

func TestTooManyStreamsAreTurnedAway(t *testing.T) {
	c, _ := gated(t, 1, &moody{status: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, err := c.Monitor(ctx, &agentv1.MonitorRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Header(); err != nil {
		t.Fatal(err)
	}
	second, err := c.Monitor(t.Context(), &agentv1.MonitorRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("second of one stream: %v", err)
	}
}

func TestCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{endpoint.ErrNotFound, codes.NotFound},
		{endpoint.ErrInvalid, codes.InvalidArgument},
		{endpoint.ErrRefused, codes.PermissionDenied},
		{endpoint.ErrNotReady, codes.FailedPrecondition},
		{kvstore.ErrUnreachable, codes.FailedPrecondition},
		{errHeld, codes.FailedPrecondition},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{status.Error(codes.NotFound, "x"), codes.NotFound},
		{io.EOF, codes.Unknown},
	} {
		if got := status.Code(coded(c.err)); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
	// a wrapped cause keeps the whole text
	err := coded(errors.Join(errors.New("apply x"), errHeld))
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "apply x") {
		t.Errorf("got %v", err)
	}
	if coded(nil) != nil {
		t.Error("no error became one")
	}
}

// What was started last stops first, and what fails stops the rest.
func TestStack(t *testing.T) {
	var mu sync.Mutex
	var stopped []string
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		stopped = append(stopped, s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := newStack(ctx, slog.New(slog.NewTextHandler(io.Discard, nil)))
	part := func(name string) {
		s.start(name, func(ctx context.Context) error {
			<-ctx.Done()
			note(name)
			return ctx.Err()
		})
	}
	part("a")
	s.atEnd("b", func() error { note("b"); return nil })
	part("c")
	broken := errors.New("broken")
	s.start("d", func(context.Context) error { return broken })
	if err := s.wait(); !errors.Is(err, broken) || !strings.Contains(err.Error(), "d:") {
		t.Errorf("wait: %v", err)
	}
	if err := s.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if got := strings.Join(stopped, " "); got != "c b a" {
		t.Errorf("stopped in the order %q", got)
	}

	s = newStack(ctx, slog.New(slog.NewTextHandler(io.Discard, nil)))
	part("e")
	cancel()
	if err := s.wait(); err != nil {
		t.Errorf("told to stop: %v", err)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}

// What lists are asked for: labels, conditions, and labels of CIDRs, whose keys no condition could hold.
func TestWanted(t *testing.T) {
	web, err := labels.ParseAll("k8s:app=web", "unspec:tier=1", "k8s:canary")
	if err != nil {
		t.Fatal(err)
	}
	cidr := labels.Labels{{Source: labels.SourceCIDR, Key: "2001:db8::/32"}}
	for _, c := range []struct {
		asked string
		ls    labels.Labels
		want  bool
	}{
		{"k8s:app=web", web, true},
		{"app=web", web, true},
		{"container:app=web", web, false},
		{"tier=1", web, true},
		{"app in (db,web)", web, true},
		{"app in (db,x)", web, false},
		{"!canary", web, false},
		{"canary", web, true},
		{"app=web,tier!=2", web, true},
		{"cidr:2001:db8::/32", cidr, true},
		{"cidr:2001:db8::/33", cidr, false},
	} {
		holds, err := wanted([]string{c.asked})
		if err != nil || holds(c.ls) != c.want {
			t.Errorf("%s of %s: %v, want %v", c.asked, c.ls, err, c.want)
		}
	}
	if holds, err := wanted([]string{"app=web", "app=db"}); err != nil || holds(web) {
		t.Errorf("two conditions: one is enough, %v", err)
	}
	if _, err := wanted([]string{"app in (a"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a broken condition: %v", err)
	}
}
