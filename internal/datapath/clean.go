package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Clean removes all that porin made on this node: links and pins, porin_host with its routes, the pods' devices and the
// filters. It is no error if nothing is there.
func Clean(bpfRoot string) error {
	var errs error
	pods, err := podDevices()
	errs = errors.Join(errs, err)
	for _, name := range append(pods, hostDevice, tunnelDevice) {
		errs = errors.Join(errs, deleteLink(name))
	}
	errs = errors.Join(errs, cleanRoutes(), cleanFilters())
	root := filepath.Join(bpfRoot, "porin")
	if ok, err := isBPF(bpfRoot); err == nil && ok {
		errs = errors.Join(errs, detachPinned(bpfRoot), removeTree(root))
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = errors.Join(errs, err)
	}
	return errs
}

func gone(err error) bool { return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) }

// detachPinned detaches the links of every layout. Removing the pin alone would not do while a process holds the link.
func detachPinned(bpfRoot string) error {
	var errs error
	for _, dir := range layouts(bpfRoot) {
		pins, err := os.ReadDir(dir.links())
		if err != nil {
			continue
		}
		for _, e := range pins {
			l, err := link.LoadPinnedLink(filepath.Join(dir.links(), e.Name()), nil)
			if err != nil {
				errs = errors.Join(errs, fmt.Errorf("open pinned link %s: %w", e.Name(), err))
				continue
			}
			if alive(l) {
				errs = errors.Join(errs, l.Detach())
			}
			l.Close()
		}
	}
	return errs
}

// cleanFilters removes porin's clsact filters from every device, and the qdisc when nothing else uses it.
func cleanFilters() error {
	devices, err := listAll(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs error
	for _, l := range devices {
		i := l.Attrs().Index
		if !hasClsact(l) {
			continue
		}
		removed := false
		for _, prog := range []string{progPod, progHost, progUplinkIngress, progUplinkEgress} {
			if k := (hook{prog, i}); filterThere(k) {
				removed = true
				errs = errors.Join(errs, detachFilter(k))
			}
		}
		if !removed {
			continue
		}
		in, _ := filters(i, netlink.HANDLE_MIN_INGRESS)
		out, _ := filters(i, netlink.HANDLE_MIN_EGRESS)
		if len(in)+len(out) == 0 {
			if err := netlink.QdiscDel(clsactOf(i)); err != nil && !gone(err) {
				errs = errors.Join(errs, fmt.Errorf("remove qdisc of %s: %w", l.Attrs().Name, err))
			}
		}
	}
	return errs
}

func hasClsact(l netlink.Link) bool {
	qdiscs, err := listAll(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(l) })
	if err != nil {
		return false
	}
	for _, q := range qdiscs {
		if q.Type() == "clsact" {
			return true
		}
	}
	return false
}
