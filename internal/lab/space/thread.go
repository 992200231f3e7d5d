package space

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs fn on a thread of its own that dies afterwards, so that fn may change the thread's namespaces without
// ever giving them to another goroutine. The first thread of a process cannot die (it would park for ever in foreign
// namespaces, and /proc/self would show them), so it is never used.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	var start func()
	start = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			next := make(chan struct{})
			go func() { defer close(next); start() }()
			<-next // holding the first thread, so that the other goroutine gets another one
			runtime.UnlockOSThread()
			return
		}
		returned := false
		defer func() {
			if !returned { // a panic or t.FailNow inside fn must not hang the caller
				done <- fmt.Errorf("the function on the namespace thread did not return")
			}
		}()
		err := fn()
		returned = true
		done <- err
		// not unlocked: the thread ends with the goroutine
	}
	go start()
	return <-done
}

func setns(path string, kind int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, kind); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}

// InNetns runs fn on a thread inside the network namespace that file holds. Sockets that fn opens stay in that
// namespace; goroutines that it starts do not inherit it.
func InNetns(file string, fn func() error) error {
	return onThread(func() error {
		if err := setns(file, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return fn()
	})
}
