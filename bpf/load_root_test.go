package bpf

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
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

// verifierShare is how many of the verifier's million instructions a program may need. Kernels before 6.6 prune less: 6.1
// goes through four times as many as 6.12 and 6.18, so newer ones leave room for that.
func verifierShare(t testing.TB) uint32 {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatalf("release of the kernel: %v", err)
	}
	if major < 6 || major == 6 && minor < 6 {
		return 500_000
	}
	return 150_000
}

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
			if share := verifierShare(t); !ok || processed > share {
				t.Errorf("%s: the verifier went through %d instructions, want at most %d", name, processed, share)
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
