package cni

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// CheckNetns refuses a path that is no network namespace, and the one that this process is in: a plugin that took that for
// a container's would rearrange the host's own network. The agent asks it again, from where it stands.
func CheckNetns(path string) error {
	refuse := func(format string, args ...any) error {
		return Errorf(CodeInvalidNetns, "use the network namespace", format, args...)
	}
	if !cleanPath(path) {
		return refuse("%q: must be an absolute path without . and ..", path)
	}
	// O_PATH: a path that is a FIFO or a device is looked at, not opened.
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return refuse("%s: %v", path, err)
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return refuse("%s: %v", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return refuse("%s is no namespace", path)
	}
	ns, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return refuse("%s: %v", path, err)
	}
	defer unix.Close(ns)
	if kind, err := unix.IoctlRetInt(ns, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return refuse("%s is a namespace of another kind", path)
	}
	var it, own unix.Stat_t
	if err := unix.Fstat(fd, &it); err != nil {
		return refuse("%s: %v", path, err)
	}
	if err := unix.Stat("/proc/self/ns/net", &own); err != nil {
		return refuse("look at this process's own: %v", err)
	}
	if it.Dev == own.Dev && it.Ino == own.Ino {
		return refuse("%s is the host's own", path)
	}
	return nil
}
