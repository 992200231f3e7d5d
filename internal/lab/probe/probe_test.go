package probe_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"porin/internal/lab/probe"
	"porin/internal/lab/serve"
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

// pair is two namespaces with a cable between them; servers run in the second.
func pair(t *testing.T) (client, server string) {
	t.Helper()
	needRoot(t)
	dir := filepath.Join("/run", fmt.Sprintf("pt-probe-%d", os.Getpid()))
	if err := space.MakeDir(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := space.RemoveDir(dir); err != nil {
			t.Error(err)
		}
	})
	client, server = filepath.Join(dir, "c"), filepath.Join(dir, "s")
	for _, f := range []string{client, server} {
		if err := space.NewNetns(f); err != nil {
			t.Fatal(err)
		}
	}
	addrs := func(last int) []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.9.9.%d/24", last)), netip.MustParsePrefix(fmt.Sprintf("fd99::%d/64", last))}
	}
	if err := space.Connect(space.End{Netns: client, Name: "eth0", Addrs: addrs(1)}, space.End{Netns: server, Name: "eth0", Addrs: addrs(2)}); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// Servers and clients of both families and every protocol meet over a plain cable; what nobody serves is refused, what
// nobody answers is silent.
func TestRootProbeOutcomes(t *testing.T) {
	client, server := pair(t)
	ctx, stop := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- space.InNetns(server, func() error {
			return serve.Run(ctx, serve.Config{Hostname: "s", Families: []string{"ipv4", "ipv6"}, Servers: []serve.Server{
				{Port: 80, Protocol: "TCP", Kind: serve.HTTP}, {Port: 7, Protocol: "TCP", Kind: serve.Echo}, {Port: 7, Protocol: "UDP", Kind: serve.Echo},
			}}, func() error { close(ready); return nil })
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	for _, c := range []struct {
		protocol, say string
		port          uint16
		last          int
		want          probe.Outcome
	}{
		{"TCP", probe.HTTP, 80, 2, probe.Answered},
		{"TCP", probe.Connect, 80, 2, probe.Answered},
		{"TCP", probe.Echo, 7, 2, probe.Answered},
		{"UDP", probe.Echo, 7, 2, probe.Answered},
		{"ICMP", "", 0, 2, probe.Answered},
		{"TCP", probe.Connect, 81, 2, probe.Rejected}, // RST
		{"UDP", probe.Echo, 81, 2, probe.Rejected},    // port unreachable
		{"TCP", probe.HTTP, 7, 2, probe.Broken},       // the echo is no HTTP
	} {
		for _, format := range []string{"10.9.9.%d", "fd99::%d"} {
			to := netip.MustParseAddr(fmt.Sprintf(format, c.last))
			var port uint16
			var r probe.Result
			err := space.InNetns(client, func() error {
				r = probe.Run(t.Context(), probe.Request{
					Protocol: c.protocol, Say: c.say, To: to, Port: c.port, Timeout: 30 * time.Second, Started: func(p uint16) { port = p },
				})
				return nil
			})
			if err != nil || r.Outcome != c.want || (port == 0) != (c.protocol == "ICMP") {
				t.Errorf("%s %s %s/%d: %+v, local port %d, %v; want %s", c.protocol, c.say, to, c.port, r, port, err, c.want)
			}
		}
	}
	silent(t, client)
}

// silent makes the destination's neighbour entry point to nobody: packets leave and nothing comes back.
func silent(t *testing.T, client string) {
	t.Helper()
	for _, s := range []string{"10.9.9.66", "fd99::66"} {
		to := netip.MustParseAddr(s)
		err := space.InNetns(client, func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.NeighSet(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, IP: to.AsSlice(), State: netlink.NUD_PERMANENT, HardwareAddr: []byte{2, 0, 0, 0, 0, 9},
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, protocol := range []string{"TCP", "UDP", "ICMP"} {
			// either limit ends it, far from the other
			for name, limits := range map[string][2]time.Duration{"limit": {time.Hour, 200 * time.Millisecond}, "cancel": {20 * time.Millisecond, time.Hour}} {
				ctx, stop := context.WithTimeout(t.Context(), limits[0])
				t0 := time.Now()
				var r probe.Result
				err := space.InNetns(client, func() error {
					r = probe.Run(ctx, probe.Request{Protocol: protocol, Say: probe.Echo, To: to, Port: 9, Timeout: limits[1]})
					return nil
				})
				stop()
				if took := time.Since(t0); err != nil || r.Outcome != probe.Silent || took > time.Minute {
					t.Errorf("%s to nobody (%s): %+v after %s, %v", protocol, name, r, took, err)
				}
			}
		}
	}
}
