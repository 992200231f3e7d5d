package bpf

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
)

func TestRootLoadAll(t *testing.T) {
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){"pod": LoadPod, "host": LoadHost} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
		if err != nil {
			var ve *ebpf.VerifierError
			if errors.As(err, &ve) {
				l := ve.Log
				if len(l) > 60 {
					l = l[len(l)-60:]
				}
				for _, x := range l {
					t.Log(x)
				}
			}
			t.Fatalf("load %s: %v", name, err)
		}
		for n, p := range c.Programs {
			t.Log(n, p.VerifierLog)
		}
		c.Close()
	}
}
