package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"porin/internal/state"
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

// counter is a log that counts lines.
type counter struct {
	mu    sync.Mutex
	lines bytes.Buffer
}

func (c *counter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lines.Write(p)
}

func (c *counter) count(part string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Count(c.lines.String(), part)
}

// somewhere is a loopback address that nobody else uses.
func somewhere() netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(1 + rand.N(254)), byte(rand.N(256)), byte(1 + rand.N(254))})
}

// Nodes are loopback addresses: one answers everything, the other one has no HTTP server. What changes is told once.
func TestRootMesh(t *testing.T) {
	needRoot(t)
	full, half := somewhere(), somewhere()
	ctx, stop := context.WithCancel(t.Context())
	l, err := net.Listen("tcp", netip.AddrPortFrom(full, Port).String())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- Serve(ctx, l) }()
	log := &counter{}
	table := NewTable(state.New())
	m := New(slog.New(slog.NewTextHandler(log, nil)), Config{Node: "me", Interval: 20 * time.Millisecond, Timeout: 20 * time.Second, Nodes: func() []Node {
		return []Node{{Name: "full", Addrs: []netip.Addr{full}}, {Name: "half", Addrs: []netip.Addr{half}, Health: []netip.Addr{full}}}
	}}, table)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		for range 2 {
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	})
	wait, end := context.WithTimeout(ctx, time.Minute)
	defer end()
	rounds := map[time.Time]bool{}
	err = table.Wait(wait, func(rows []Row) bool {
		good := len(rows) == 3
		for _, r := range rows {
			good = good && r.ICMP.OK && r.HTTP.OK == (r.Addr == full) && r.ICMP.RTT > 0
			rounds[r.ICMP.Last] = true
		}
		return good && len(rounds) > 9 // several rounds
	})
	if err != nil {
		t.Fatalf("%v: %+v", err, table.List())
	}
	if n := log.count("node not reached"); n != 1 {
		t.Errorf("that one server is missing was told %d times", n)
	}
	if n := log.count("node reached"); n != 0 {
		t.Errorf("that nodes answer was told %d times", n)
	}
}

// A listener in the endpoint's namespace stays there, and a namespace that is there is taken over.
func TestRootNetns(t *testing.T) {
	needRoot(t)
	file := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(file, nil, 0o600); err != nil { // as after a reboot
		t.Fatal(err)
	}
	if err := Netns(file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(file, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := Netns(file); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) {
		t.Errorf("the namespace was made anew: %v", err)
	}
	for range 2 { // the same address is free in another namespace
		l, err := Listen(file, netip.AddrPortFrom(somewhere(), 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if c, err := net.DialTimeout("tcp", l.Addr().String(), time.Second); err == nil {
			c.Close()
			t.Error("the machine reaches a listener of the namespace")
		}
	}
}

// Answers and failures, as a round notes them, without a network.
func TestRoundNotesChanges(t *testing.T) {
	log := &counter{}
	table := NewTable(state.New())
	nodes := []Node{{Name: "a", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, {Name: "me", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}}
	m := New(slog.New(slog.NewTextHandler(log, nil)), Config{Node: "me", Nodes: func() []Node { return nodes }}, table)
	answer := error(nil)
	how := func(context.Context, netip.Addr) error { return answer }
	try := func() Row {
		r := m.targets()[0]
		r.ICMP, r.HTTP = m.try(t.Context(), r, r.ICMP, "icmp", how), m.try(t.Context(), r, r.HTTP, "http", how)
		table.Put(r)
		return r
	}
	first := try()
	if !first.ICMP.OK || first.ICMP.Last.IsZero() || first.ICMP.Since.IsZero() {
		t.Errorf("an answer: %+v", first)
	}
	answer = errors.New("no answer")
	lost := try()
	if lost.HTTP.OK || lost.HTTP.Error != "no answer" || lost.HTTP.Last != first.HTTP.Last || lost.HTTP.RTT != first.HTTP.RTT || !lost.HTTP.Since.After(first.HTTP.Since) {
		t.Errorf("after an answer, none: %+v", lost)
	}
	if again := try(); again.HTTP.Since != lost.HTTP.Since {
		t.Errorf("since when it fails moved: %+v", again)
	}
	reg := prometheus.NewRegistry()
	if err := reg.Register(m.Collector()); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprint(families)
	for _, want := range []string{"porin_node_health_connectivity_status", "porin_node_health_connectivity_latency_seconds"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}

	// a node that has gone goes from the table too
	nodes = nodes[1:]
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nobody is asked
	m.round(ctx)
	if rows := table.List(); len(rows) != 0 {
		t.Errorf("rows of a node that has gone: %+v", rows)
	}
}
