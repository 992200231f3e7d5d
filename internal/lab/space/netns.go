package space

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NewNetns makes a network namespace with its loopback up, IPv6 addresses usable at once (no duplicate address
// detection, no router advertisements), and binds it to file, which keeps it alive until RemoveNetns.
func NewNetns(file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create namespace file: %w", err)
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace for %s: %w", file, err)
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind network namespace to %s: %w", file, err)
		}
		for _, kv := range [][2]string{
			{"net/ipv6/conf/all/accept_dad", "0"},
			{"net/ipv6/conf/default/accept_dad", "0"},
			{"net/ipv6/conf/default/accept_ra", "0"},
		} {
			if err := WriteSysctl(kv[0], kv[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, RemoveNetns(file))
	}
	return nil
}

// RemoveNetns lets go of the namespace and removes file. No error if either is gone already.
func RemoveNetns(file string) error {
	if err := unix.Unmount(file, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount namespace file %s: %w", file, err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove namespace file: %w", err)
	}
	return nil
}

// WriteSysctl sets /proc/sys/KEY in the network namespace of the calling thread.
func WriteSysctl(key, value string) error {
	if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s = %s: %w", key, value, err)
	}
	return nil
}

// MakeDir makes dir a file system of its own whose later mounts (namespace files) also appear in the mount namespaces
// of nodes made from it.
func MakeDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make lab directory: %w", err)
	}
	if err := unix.Mount("porin-lab", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return errors.Join(fmt.Errorf("mount tmpfs on %s: %w", dir, err), os.Remove(dir))
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return errors.Join(fmt.Errorf("share mounts of %s: %w", dir, err), RemoveDir(dir))
	}
	return nil
}

// RemoveDir takes away what MakeDir made, with all that is mounted below it.
func RemoveDir(dir string) error {
	for {
		err := unix.Unmount(dir, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // nothing is mounted on it any more
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	// os.Remove, not RemoveAll: what is still there after the unmount is not ours
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove lab directory: %w", err)
	}
	return nil
}
