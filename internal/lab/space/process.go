package space

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Where a process is started.
type Where struct {
	Netns  string // namespace file; "" stays in the caller's
	Mounts int    // pid whose mount and host name space to join; 0 stays in the caller's
	Cgroup string // cgroup directory; "" stays in the caller's
	CPUs   []int  // cores to stay on; none: all

	// For a process with a view of its own on a few names, when Mounts is 0.
	Hostname string // a host name space of its own with this name
	Hosts    string // a mount namespace of its own with this file as /etc/hosts
}

// Start starts cmd as cmd.Start does, but inside w. cmd.Path is looked up inside w's mounts.
func Start(cmd *exec.Cmd, w Where) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if w.Cgroup != "" {
		fd, err := unix.Open(w.Cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open cgroup %s: %w", w.Cgroup, err)
		}
		defer unix.Close(fd)
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
	}
	return onThread(func() error {
		if len(w.CPUs) > 0 {
			var set unix.CPUSet
			for _, c := range w.CPUs {
				set.Set(c)
			}
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				return fmt.Errorf("stay on cores %v: %w", w.CPUs, err)
			}
		}
		if w.Mounts != 0 {
			// a thread that shares its file system attributes with others may not change its mounts
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare file system attributes: %w", err)
			}
			// opened before the mounts change: the namespace file is a path of the caller's
			if err := setns(fmt.Sprintf("/proc/%d/ns/uts", w.Mounts), unix.CLONE_NEWUTS); err != nil {
				return err
			}
		}
		if w.Netns != "" {
			if err := setns(w.Netns, unix.CLONE_NEWNET); err != nil {
				return err
			}
		}
		if w.Mounts != 0 {
			if err := setns(fmt.Sprintf("/proc/%d/ns/mnt", w.Mounts), unix.CLONE_NEWNS); err != nil {
				return err
			}
		}
		if err := w.ownNames(); err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start %s: %w", cmd.Path, err)
		}
		return nil
	})
}

// ownNames gives the calling thread names of its own; the thread dies afterwards.
func (w Where) ownNames() error {
	if w.Hostname != "" {
		if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("make host name space: %w", err)
		}
		if err := unix.Sethostname([]byte(w.Hostname)); err != nil {
			return fmt.Errorf("set host name %s: %w", w.Hostname, err)
		}
	}
	if w.Hosts == "" {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return bindHosts(w.Hosts)
}

func bindHosts(file string) error {
	err := unix.Mount(file, "/etc/hosts", "", unix.MS_BIND, "")
	if err != nil && !errors.Is(err, unix.ENOENT) { // a machine without /etc/hosts has no names, that is all
		return fmt.Errorf("mount %s as /etc/hosts: %w", file, err)
	}
	return nil
}

// Run is Start and Wait.
func Run(cmd *exec.Cmd, w Where) error {
	if err := Start(cmd, w); err != nil {
		return err
	}
	return cmd.Wait()
}

// Process is a process that can be told from a later one with the same pid.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

// ProcessOf reads when pid was started. Of one that has ended and whose parent has not asked yet it returns that too,
// with os.ErrProcessDone.
func ProcessOf(pid int) (Process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	// the second field is the command in parentheses and may hold anything; the start time is field 22
	i := strings.LastIndexByte(string(b), ')')
	f := strings.Fields(string(b)[i+1:])
	if i < 0 || len(f) < 20 {
		return Process{}, fmt.Errorf("read process %d: unexpected form of its stat file", pid)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return Process{}, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	if f[0] == "Z" {
		return Process{PID: pid, Start: start}, fmt.Errorf("process %d has ended: %w", pid, os.ErrProcessDone)
	}
	return Process{PID: pid, Start: start}, nil
}

// Alive tells whether the very same process still runs.
func (p Process) Alive() bool {
	now, err := ProcessOf(p.PID)
	return err == nil && now == p
}

// RequireRoot says what to do when the caller is not root.
func RequireRoot(what string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s needs root: run with sudo", what)
	}
	return nil
}

// Pause is the body of the process that holds a node: started with a mount and a UTS namespace of its own, it mounts
// private, empty directories where an agent keeps its sockets, state and pins, takes hosts as its /etc/hosts, tells the
// host name, announces itself on standard output and sleeps until it is killed.
func Pause(hostname, hosts string, tmpfs []string) error {
	runtime.LockOSThread()
	// slave: namespace files that the lab makes later still appear here, nothing goes back
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set host name %s: %w", hostname, err)
	}
	for _, dir := range tmpfs {
		if err := unix.Mount("porin-lab", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
			return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
		}
	}
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpf on /sys/fs/bpf: %w", err)
	}
	if hosts != "" {
		if err := bindHosts(hosts); err != nil {
			return err
		}
	}
	return Sleep()
}

// Sleep announces "ready" on standard output, closes it, and waits to be killed.
func Sleep() error {
	if _, err := os.Stdout.WriteString("ready\n"); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	os.Stdout.Close()
	for {
		if err := unix.Pause(); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("pause: %w", err)
		}
	}
}

// Signal sends a signal to the very same process and waits until it has ended. No error if it has already.
func (p Process) Signal(ctx context.Context, sig syscall.Signal) error {
	if p.PID == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.Alive() { // another one has its number
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} // readable: it has ended
		n, err := unix.Poll(fds, 50)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for process %d: %w", p.PID, err)
		case n > 0:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("process %d does not end: %w", p.PID, ctx.Err())
		}
	}
}
