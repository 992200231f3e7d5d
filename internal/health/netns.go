package health

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Netns makes a network namespace for this node's health endpoint, held by file, or takes over the one that is there.
func Netns(file string) error {
	var st unix.Statfs_t
	err := unix.Statfs(file, &st)
	if err == nil && st.Type == unix.NSFS_MAGIC {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("namespace of the health endpoint: %s: %w", file, err)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600) // may be there, from before a reboot
	if err != nil {
		return fmt.Errorf("namespace of the health endpoint: %w", err)
	}
	f.Close()
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("namespace of the health endpoint: %w", err)
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("namespace of the health endpoint: bind it to %s: %w", file, err)
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			return fmt.Errorf("namespace of the health endpoint: set lo up: %w", err)
		}
		return nil
	})
}

// Listen opens a listener in the network namespace that file holds; it stays there.
func Listen(file, address string) (l net.Listener, err error) {
	err = onThread(func() error {
		fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open namespace %s: %w", file, err)
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", file, err)
		}
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// onThread runs fn on a thread of its own that dies afterwards: it may change its namespaces.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	var start func()
	start = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // the first thread cannot die: have another one do it
			next := make(chan struct{})
			go func() { defer close(next); start() }()
			<-next
			runtime.UnlockOSThread()
			return
		}
		done <- fn()
		// not unlocked: the thread ends with the goroutine
	}
	go start()
	return <-done
}
