package space

import (
	"errors"
	"fmt"
	"net"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Plug makes a device of the namespace a port of a bridge there, or of none.
func Plug(netnsFile, dev, bridge string) error {
	return InNetns(netnsFile, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("find %s: %w", dev, err)
		}
		if bridge == "" {
			err = netlink.LinkSetNoMaster(l)
		} else {
			var br netlink.Link
			if br, err = netlink.LinkByName(bridge); err == nil {
				err = netlink.LinkSetMaster(l, br)
			}
		}
		if err != nil {
			return fmt.Errorf("plug %s into %q: %w", dev, bridge, err)
		}
		return nil
	})
}

// DeleteDevice removes a device of the namespace. No error if there is none.
func DeleteDevice(netnsFile, dev string) error {
	return InNetns(netnsFile, func() error {
		l, err := netlink.LinkByName(dev)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err == nil {
			err = netlink.LinkDel(l)
		}
		if err != nil {
			return fmt.Errorf("delete %s: %w", dev, err)
		}
		return nil
	})
}

// HardwareAddr of a device of the namespace.
func HardwareAddr(netnsFile, dev string) (addr net.HardwareAddr, err error) {
	err = InNetns(netnsFile, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("find %s: %w", dev, err)
		}
		addr = l.Attrs().HardwareAddr
		return nil
	})
	return addr, err
}

// ethtool commands that set one value.
const (
	ethtoolTXChecksum = 0x17
	ethtoolGather     = 0x19
	ethtoolTSO        = 0x1f
	ethtoolGSO        = 0x24
)

// Offload says whether a device of the namespace leaves checksums and cutting to its other end. A relay in user space can
// do neither: what it reads must be what goes over a wire.
func Offload(netnsFile, dev string, on bool) error {
	return InNetns(netnsFile, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		defer unix.Close(fd)
		commands := []uint32{ethtoolGSO, ethtoolTSO, ethtoolGather, ethtoolTXChecksum}
		if on { // each needs the one before
			commands = []uint32{ethtoolTXChecksum, ethtoolGather, ethtoolTSO, ethtoolGSO}
		}
		for _, c := range commands {
			if err := ethtool(fd, dev, c, on); err != nil {
				return fmt.Errorf("set offload %#x of %s: %w", c, dev, err)
			}
		}
		return nil
	})
}

func ethtool(fd int, dev string, command uint32, on bool) error {
	value := [2]uint32{command, 0}
	if on {
		value[1] = 1
	}
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		pad  [16]byte // struct ifreq is 40 bytes
	}{data: unsafe.Pointer(&value)}
	copy(req.name[:unix.IFNAMSIZ-1], dev)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}

// NoIPv6 keeps a device of the namespace from having IPv6 of its own.
func NoIPv6(netnsFile, dev string) error {
	return InNetns(netnsFile, func() error { return WriteSysctl("net/ipv6/conf/"+dev+"/disable_ipv6", "1") })
}
