package bpf

import (
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
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

// share of the verifier's million instructions that a program may need, so that older kernels, which prune less, take
// it too.
const verifierShare = 250_000

// TestRootLoadAll loads every program into this kernel. Nothing of a program is decided at load time: what can be
// set is read from the settings map, so this is every corner that the verifier can see.
func TestRootLoadAll(t *testing.T) {
	needRoot(t)
	for set, spec := range specs(t) {
		for _, m := range spec.Maps {
			m.MaxEntries = min(m.MaxEntries, 1<<20)
		}
		c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
			Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
		})
		if err != nil {
			t.Fatalf("load %s: %+v", set, err)
		}
		t.Cleanup(c.Close)
		for name, p := range c.Programs {
			info, err := p.Info()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			processed, ok := info.VerifiedInstructions()
			if !ok || processed > verifierShare {
				t.Errorf("%s: the verifier went through %d instructions, want at most %d", name, processed, verifierShare)
			}
			code, err := info.JitedSize()
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			t.Logf("%-15s %7d instructions verified, %6d bytes of machine code; %s", name, processed, code,
				strings.TrimSpace(strings.Split(p.VerifierLog, "\n")[1]))
		}
	}
}
