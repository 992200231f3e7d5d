package cli

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// needRoot ends the test without root: what only root can see is then not tested, and that must not look like success.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("PORIN_UNIT") == "1" {
		t.Skip("unit run without root")
	}
	t.Fatal("needs root: run with sudo")
}

// A user without root knocks at a socket as the agent makes it: 0600 in a folder that is 0700.
func TestRootOnlySocket(t *testing.T) {
	needRoot(t)
	path := serve(t, &fakeAgent{})
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	type result struct {
		err  error
		code int
	}
	done := make(chan result)
	go func() {
		// The thread, and only it, becomes nobody; it is never given back to the other goroutines.
		runtime.LockOSThread()
		const keep, nobody = ^uintptr(0), 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, nobody, keep); errno != 0 {
			done <- result{err: errno}
			return
		}
		_, _, err := (&shell{socket: path}).connect(t.Context())
		var c coded
		if !errors.As(err, &c) {
			c.code = -1
		}
		done <- result{err, c.code}
	}()
	r := <-done
	if r.err == nil || r.code != exitUnreachable || !errors.Is(r.err, os.ErrPermission) || !strings.HasSuffix(r.err.Error(), "permission denied: needs root: run with sudo") {
		t.Errorf("connect as nobody = %v (code %d); want that it needs root", r.err, r.code)
	}
}

// In a container or a lab the agent's folders are often mount points.
func TestRootCleanupOfAMountPoint(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "porin")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("porin-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeFolder(dir); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
