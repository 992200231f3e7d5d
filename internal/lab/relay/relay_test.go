package relay_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"porin/internal/lab/relay"
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

// Two namespaces whose only way to each other is a relay: everything arrives, whole and late.
func TestRootRelay(t *testing.T) {
	needRoot(t)
	dir := filepath.Join("/run", fmt.Sprintf("pt-relay-%d", os.Getpid()))
	if err := space.MakeDir(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := space.RemoveDir(dir); err != nil {
			t.Error(err)
		}
	})
	a, middle, b := filepath.Join(dir, "a"), filepath.Join(dir, "m"), filepath.Join(dir, "b")
	for _, ns := range []string{a, middle, b} {
		if err := space.NewNetns(ns); err != nil {
			t.Fatal(err)
		}
	}
	for i, ns := range []string{a, b} {
		port := fmt.Sprint("p", i)
		err := errors.Join(
			space.Connect(space.End{Netns: middle, Name: port}, space.End{Netns: ns, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.6.6.%d/24", i+1))}}),
			space.Blackhole(middle, port), space.Offload(ns, "eth0", false),
		)
		if err != nil {
			t.Fatal(err)
		}
	}
	const delay = 20 * time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- space.InNetns(middle, func() error {
			return relay.Run(ctx, relay.Config{Node: "p0", Bridge: "p1", Rules: []relay.Rule{
				{Delay: delay}, {Peer: net.HardwareAddr{2, 0, 0, 0, 0, 9}, Delay: time.Hour},
			}}, func() error { close(ready); return nil })
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}

	var l net.Listener
	err := space.InNetns(b, func() (err error) { l, err = net.Listen("tcp4", "10.6.6.2:9"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	got := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- nil
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		got <- b
	}()
	var c net.Conn
	t0 := time.Now()
	err = space.InNetns(a, func() (err error) { c, err = net.DialTimeout("tcp4", "10.6.6.2:9", 20*time.Second); return err })
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(t0); took < 2*delay {
		t.Errorf("a handshake took %s over a cable that takes %s each way", took, delay)
	}
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if b := <-got; !bytes.Equal(b, data) {
		t.Errorf("%d bytes arrived of %d, or they are others", len(b), len(data))
	}
}
