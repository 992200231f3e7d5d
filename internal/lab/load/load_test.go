package load_test

import (
	"fmt"
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
	for i, host := range []string{"127.0.0.1", "::1"} {
		addr := netip.AddrPortFrom(netip.MustParseAddr(host), uint16(20000+os.Getpid()%20000+i))
		p, err := load.StartPair(t.Context(), space.Where{}, space.Where{}, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Stop)
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

func TestServerSaysWhyItCannotStart(t *testing.T) {
	addr := netip.MustParseAddrPort("192.0.2.1:1") // not an address of this machine
	p, err := load.StartPair(t.Context(), space.Where{}, space.Where{}, addr)
	if err == nil {
		p.Stop()
		t.Fatal("started")
	}
	if !strings.Contains(err.Error(), fmt.Sprintf("listen on %s", addr)) {
		t.Errorf("%v", err)
	}
}
