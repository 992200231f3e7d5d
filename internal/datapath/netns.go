package datapath

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netns is an open network namespace of a workload.
type netns struct{ f *os.File }

// openNetns opens the namespace at path and refuses what must never be taken for a workload's: a path that is no network
// namespace, this process's own, and the machine's.
func openNetns(path string) (netns, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return netns{}, fmt.Errorf("network namespace: %w", err)
	}
	ns := netns{f}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return netns{}, fmt.Errorf("network namespace %s: the path leads to no network namespace", path)
	}
	for _, host := range []string{"/proc/thread-self/ns/net", "/proc/1/ns/net"} {
		same, err := sameFile(ns.f, host)
		// a hidden /proc/1 cannot be compared; then nobody here could open that namespace by it either
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			f.Close()
			return netns{}, fmt.Errorf("network namespace %s: compare with the host's: %w", path, err)
		}
		if same {
			f.Close()
			return netns{}, fmt.Errorf("network namespace %s: it is the host's own; a workload needs one of its own", path)
		}
	}
	return ns, nil
}

func (n netns) fd() int      { return int(n.f.Fd()) }
func (n netns) close() error { return n.f.Close() }

func sameFile(f *os.File, path string) (bool, error) {
	a, err := f.Stat()
	if err != nil {
		return false, err
	}
	b, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	return os.SameFile(a, b), nil
}

// do runs fn on a thread inside the namespace. The thread goes back before another goroutine can get it; when it cannot,
// it dies with its goroutine, because a thread in a foreign namespace would program the wrong machine.
func (n netns) do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer home.Close()
		if err := unix.Setns(n.fd(), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace %s: %w", n.f.Name(), err)
			return
		}
		err = fn()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// listAll repeats a netlink listing that changes of the kernel cut through: what it returned may lack rows.
func listAll[T any](list func() ([]T, error)) (rows []T, err error) {
	for range 10 {
		if rows, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return rows, err
		}
	}
	return rows, err
}

// sysctl writes /proc/sys/net/<path>, which means the namespace of the calling thread. Plain system calls: os.File would
// ask the poller about each of these files.
func sysctl(path, value string) error {
	fd, err := unix.Open("/proc/sys/net/"+path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", path, value, err)
	}
	_, err = unix.Write(fd, []byte(value))
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", path, value, err)
	}
	return nil
}
