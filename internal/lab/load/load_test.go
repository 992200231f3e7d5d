package load_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"porin/internal/lab/load"
	"porin/internal/lab/space"
)

// The test binary is also the program that is started on both sides.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "lab" && os.Args[2] == "load" {
		cmd := load.Command()
		cmd.SetArgs(os.Args[3:])
		if err := cmd.Execute(); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// Every kind of measurement does what it counts and costs CPU time on both sides, over loopback.
func TestMeasure(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		p := startPair(t, host)
		for mode, ops := range map[string]int{load.RR: 2000, load.CRR: 300, load.Stream: 200, load.UDP: 20000} {
			r, err := p.Measure(mode, ops)
			if err != nil {
				t.Fatal(err)
			}
			if r.Mode != mode || r.Ops != ops || r.CPU <= 0 || r.Server <= 0 || r.PerOp() <= 0 || r.Wall <= 0 {
				t.Errorf("%s over %s: %+v", mode, host, r)
			}
			if (mode == load.RR || mode == load.CRR) && (r.P50 <= 0 || r.P99 < r.P50) {
				t.Errorf("%s over %s: latencies %s and %s", mode, host, r.P50, r.P99)
			}
		}
		if _, err := p.Measure("nonsense", 1); err == nil || !strings.Contains(err.Error(), "no such measurement") {
			t.Errorf("an unknown measurement: %v", err)
		}
	}
}

// startPair starts a pair on a free port. Between the question which one is free and its use another program may take it.
func startPair(t *testing.T, host string) *load.Pair {
	t.Helper()
	for try := 0; ; try++ {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.MustParseAddrPort(l.Addr().String())
		l.Close()
		p, err := load.StartPair(t.Context(), space.Where{}, space.Where{}, addr)
		if err == nil {
			t.Cleanup(p.Stop)
			return p
		}
		if try == 9 || !strings.Contains(err.Error(), "address already in use") {
			t.Fatal(err)
		}
	}
}

func TestServerSaysWhyItCannotStart(t *testing.T) {
	addr := netip.MustParseAddrPort("192.0.2.1:1") // not an address of this machine
	p, err := load.StartPair(t.Context(), space.Where{}, space.Where{}, addr)
	if err == nil {
		p.Stop()
		t.Fatal("started")
	}
	if !strings.Contains(err.Error(), fmt.Sprintf("listen on %s", addr)) || strings.Count(err.Error(), "cannot assign") != 1 {
		t.Errorf("%v; want to be told once", err)
	}
}
