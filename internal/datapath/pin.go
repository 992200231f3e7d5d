package datapath

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pin gives the object behind fd the name path; whatever had the name loses it in the same instant. The library's own
// Pin remembers the path and fails once somebody has removed it, which is exactly when porin must pin again.
func pin(fd int, path string) error {
	tmp := path + "_new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	name, err := unix.BytePtrFromString(tmp)
	if err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	attr := struct {
		path  uint64
		fd    uint32
		flags uint32
	}{uint64(uintptr(unsafe.Pointer(name))), uint32(fd), 0}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_PIN, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	keepAlive(name)
	if errno != 0 {
		return fmt.Errorf("pin %s: %w", path, errno)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}

// keepAlive keeps p reachable although the kernel was given its address as a number.
//
//go:noinline
func keepAlive(*byte) {}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
