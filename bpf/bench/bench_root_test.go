package bench

import (
	"os"
	"testing"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("PORIN_UNIT") == "1" {
		t.Skip("unit run without root")
	}
	t.Fatal("needs root: run with sudo")
}

// The hard limit of an established packet; the target is 120 ns. The least of many runs, so a busy machine does not
// break it.
const establishedLimit = 200

func TestRootMeasure(t *testing.T) {
	needRoot(t)
	ms, code, err := Measure(15, 100_000)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	for _, m := range ms {
		t.Logf("%-30s %6.1f ns  (max %6.1f of %d runs)  %s", m.Name, m.Min, m.Max, m.Runs, m.About)
		if m.Name == "established_packet_ns" && m.Min > establishedLimit {
			t.Errorf("an established packet costs %.1f ns, want at most %d", m.Min, establishedLimit)
		}
	}
	for _, c := range code {
		t.Logf("%-15s %d instructions, %d bytes of machine code", c.Program, c.Instructions, c.Bytes)
	}
}
