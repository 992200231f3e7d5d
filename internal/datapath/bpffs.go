package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountBPF makes sure that a bpffs is at root. Something else mounted there is never covered: whoever mounted it would
// lose sight of his files, and the pins of a former agent may lie below.
func mountBPF(root string) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("bpf root: %w", err)
	}
	ok, err := isBPF(root)
	if err != nil || ok {
		return err
	}
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return fmt.Errorf("bpf root: %w", err)
	}
	fstype, err := mountedAt(real)
	if err != nil {
		return fmt.Errorf("bpf root %s: %w", root, err)
	}
	if fstype != "" {
		return fmt.Errorf("bpf root %s: a file system of type %s is mounted there, not bpf; unmount it or choose another --bpf-root", root, fstype)
	}
	if err := unix.Mount("bpf", real, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", root, err)
	}
	return nil
}

func isBPF(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("statfs %s: %w", path, err)
	}
	return uint32(st.Type) == unix.BPF_FS_MAGIC, nil
}

// mountedAt returns the type of the file system whose mount point is exactly path, "" if path is no mount point.
func mountedAt(path string) (string, error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	fstype := ""
	for sc := bufio.NewScanner(f); sc.Scan(); {
		before, after, ok := strings.Cut(sc.Text(), " - ") // proc(5): optional fields end with a lone hyphen
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || unescapeMount(fields[4]) != path {
			continue
		}
		fstype, _, _ = strings.Cut(after, " ") // the last one covers the others
	}
	return fstype, nil
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// claimRoot locks the folder of all pins: two agents over one set of them, though each has state and sockets of its own,
// would undo each other's work. The kernel drops the lock when the process ends, however it ends.
func claimRoot(root string) (*os.File, error) {
	f, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("bpf root: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("bpf root %s: another porin-agent runs on it; stop that one first, or choose another --bpf-root", root)
	}
	return nil, fmt.Errorf("lock bpf root %s: %w", root, err)
}

// removeTree removes a folder of pins. bpffs has no files that need more than unlink and rmdir.
func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}
