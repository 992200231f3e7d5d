package space

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CgroupRoot returns where cgroup2 is mounted: /sys/fs/cgroup on most machines, below it where version 1 is in use too.
func CgroupRoot() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find the cgroup2 mount: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		// ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [TAGS...] - TYPE SOURCE SUPEROPTIONS
		left, right, ok := strings.Cut(line, " - ")
		f := strings.Fields(left)
		if ok && strings.HasPrefix(right, "cgroup2 ") && len(f) >= 5 {
			return f[4], nil
		}
	}
	return "", errors.New("no cgroup2 file system is mounted: run 'mount -t cgroup2 none /sys/fs/cgroup/unified' (after mkdir)")
}

// NewCgroup makes the cgroup at path.
func NewCgroup(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

// RemoveCgroup kills every process in the cgroup and below it, waits until they are gone, and removes the cgroups.
// No error if there is no such cgroup.
func RemoveCgroup(ctx context.Context, path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("kill the processes of cgroup %s: %w", path, err)
	}
	if err := waitEmpty(ctx, path); err != nil {
		return err
	}
	// deepest first; a workload's program may have made cgroups of its own
	var dirs []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list cgroups below %s: %w", path, err)
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		// a process that has exited still counts for a moment after populated turned 0
		for {
			err := unix.Rmdir(dirs[i])
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) || ctx.Err() != nil {
				return fmt.Errorf("remove cgroup %s: %w", dirs[i], err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// waitEmpty returns when no process is left in the cgroup: the kernel announces changes of cgroup.events to poll.
func waitEmpty(ctx context.Context, path string) error {
	f, err := os.Open(filepath.Join(path, "cgroup.events"))
	if err != nil {
		return fmt.Errorf("watch cgroup: %w", err)
	}
	defer f.Close()
	buf := make([]byte, 256)
	for {
		n, err := f.ReadAt(buf, 0)
		if n == 0 {
			return fmt.Errorf("read cgroup.events of %s: %w", path, err)
		}
		if strings.Contains(string(buf[:n]), "populated 0") {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("processes of cgroup %s (%s) do not end: %w", path, strings.Join(cgroupPIDs(path), " "), err)
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, 50); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll cgroup.events of %s: %w", path, err)
		}
	}
}

func cgroupPIDs(path string) []string {
	b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// CgroupCPU returns the CPU time, user and system, that the cgroup's processes have used so far, ended ones included.
func CgroupCPU(path string) (time.Duration, error) {
	b, err := os.ReadFile(filepath.Join(path, "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("read CPU time of cgroup: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "usage_usec "); ok {
			us, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read CPU time of cgroup %s: %w", path, err)
			}
			return time.Duration(us) * time.Microsecond, nil
		}
	}
	return 0, fmt.Errorf("cgroup %s: cpu.stat has no usage_usec", path)
}
