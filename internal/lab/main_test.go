package lab

import (
	"errors"
	"fmt"
	"os"
	"testing"
)

// The test binary is also the program whose hidden commands hold nodes and run servers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "lab" {
		cmd := Command()
		cmd.SetArgs(os.Args[2:])
		if err := cmd.Execute(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			if ee, ok := errors.AsType[*ExitError](err); ok {
				os.Exit(ee.ExitCode())
			}
			os.Exit(3)
		}
		return
	}
	os.Exit(m.Run())
}

// needRoot fails the test without root, unless this is a run of `make test-unit`.
func needRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Getenv("PORIN_UNIT") != "":
		t.Skip("unit run without root")
	case os.Geteuid() != 0:
		t.Fatal("needs root: run with sudo")
	}
}
