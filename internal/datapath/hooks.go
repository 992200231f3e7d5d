package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hook is one program on one device.
type hook struct {
	prog    string
	ifindex int
}

func (h hook) pinName() string { return h.prog + "_" + strconv.Itoa(h.ifindex) }

func (h hook) ingress() bool { return h.prog == progPod || h.prog == progUplinkIngress }

func parseHook(pin string) (hook, bool) {
	at := strings.LastIndexByte(pin, '_')
	if at < 0 {
		return hook{}, false
	}
	n, err := strconv.Atoi(pin[at+1:])
	if err != nil || n <= 0 {
		return hook{}, false
	}
	return hook{pin[:at], n}, true
}

// hooks keeps the programs attached: by TCX links, which are pinned and outlive the agent, or by clsact filters where
// the kernel has no TCX.
type hooks struct {
	log    *slog.Logger
	dir    layoutDir
	progs  map[string]*ebpf.Program
	clsact bool

	mu    sync.Mutex
	links map[hook]link.Link // nil values with clsact
}

func newHooks(log *slog.Logger, dir layoutDir, clsact bool) *hooks {
	return &hooks{log: log, dir: dir, clsact: clsact, links: map[hook]link.Link{}}
}

// adopt takes over the pinned links of every layout and makes them run this agent's programs. Each update is atomic: the
// hook is never empty.
func (h *hooks) adopt(bpfRoot string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, dir := range layouts(bpfRoot) {
		pins, err := os.ReadDir(dir.links())
		if err != nil {
			continue
		}
		for _, e := range pins {
			path := filepath.Join(dir.links(), e.Name())
			k, ok := parseHook(e.Name())
			prog := h.progs[k.prog]
			if !ok || prog == nil {
				h.log.Warn("pinned link of an unknown program removed", "pin", path)
				_ = os.Remove(path)
				continue
			}
			l, err := link.LoadPinnedLink(path, nil)
			if err != nil {
				return fmt.Errorf("open pinned link %s: %w", path, err)
			}
			if _, twice := h.links[k]; !aliveOn(l, k.ifindex) || twice {
				l.Close()
				_ = os.Remove(path)
				continue
			}
			if h.clsact {
				// the filter first, then the link away: the hook is never empty
				l.Close()
				if err := h.attachLocked(k); err != nil {
					return err
				}
				if err := os.Remove(path); err != nil {
					return fmt.Errorf("remove pinned link: %w", err)
				}
				continue
			}
			err = l.Update(prog)
			if errors.Is(err, unix.ENOLINK) { // the device went this instant
				l.Close()
				_ = os.Remove(path)
				continue
			}
			if err != nil {
				l.Close()
				return fmt.Errorf("replace %s on device %d: %w", k.prog, k.ifindex, err)
			}
			if want := filepath.Join(h.dir.links(), k.pinName()); want != path {
				if err := os.Rename(path, want); err != nil {
					return fmt.Errorf("move pinned link: %w", err)
				}
			}
			h.links[k] = l
		}
	}
	return nil
}

// alive tells whether l still sits on a device: the kernel zeroes the ifindex when the device goes or somebody detaches it.
func alive(l link.Link) bool { return ifindexOfLink(l) != 0 }

// aliveOn tells whether l sits on the device of that number: one that moved to another namespace may have a new one there.
func aliveOn(l link.Link, ifindex int) bool { return ifindexOfLink(l) == ifindex }

func ifindexOfLink(l link.Link) int {
	info, err := l.Info()
	if err != nil {
		return 0
	}
	if tcx := info.TCX(); tcx != nil {
		return int(tcx.Ifindex)
	}
	return 0
}

// attach puts prog on a device unless it is there already.
func (h *hooks) attach(prog string, ifindex int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.attachLocked(hook{prog, ifindex})
}

func (h *hooks) attachLocked(k hook) error {
	p := h.progs[k.prog]
	if p == nil {
		return fmt.Errorf("attach %s to device %d: no such program", k.prog, k.ifindex)
	}
	if h.clsact {
		if _, ok := h.links[k]; ok {
			return nil
		}
		if err := attachFilter(k, p); err != nil {
			return fmt.Errorf("attach %s to device %d: clsact: %w", k.prog, k.ifindex, err)
		}
		h.links[k] = nil
		return nil
	}
	if l := h.links[k]; l != nil {
		if aliveOn(l, k.ifindex) {
			return nil
		}
		l.Close()
		delete(h.links, k)
	}
	at := ebpf.AttachTCXEgress
	if k.ingress() {
		at = ebpf.AttachTCXIngress
	}
	// in front of all others: a program before ours that accepts would bypass policy
	l, err := link.AttachTCX(link.TCXOptions{Interface: k.ifindex, Program: p, Attach: at, Anchor: link.Head()})
	if err != nil {
		return fmt.Errorf("attach %s to device %d: tcx: %w", k.prog, k.ifindex, err)
	}
	if err := pin(linkFD(l), filepath.Join(h.dir.links(), k.pinName())); err != nil {
		l.Close()
		return fmt.Errorf("attach %s to device %d: %w", k.prog, k.ifindex, err)
	}
	h.links[k] = l
	return nil
}

// has tells whether the programs are meant to be on the device.
func (h *hooks) has(prog string, ifindex int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.links[hook{prog, ifindex}]
	return ok
}

// detach takes every program of a device away, which may be gone.
func (h *hooks) detach(ifindex int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs error
	for k, l := range h.links {
		if k.ifindex == ifindex {
			errs = errors.Join(errs, h.dropLocked(k, l))
		}
	}
	return errs
}

func (h *hooks) dropLocked(k hook, l link.Link) error {
	delete(h.links, k)
	if l == nil {
		if err := detachFilter(k); err != nil {
			return fmt.Errorf("detach %s from device %d: %w", k.prog, k.ifindex, err)
		}
		return nil
	}
	err := os.Remove(filepath.Join(h.dir.links(), k.pinName()))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if alive(l) {
		err = errors.Join(err, l.Detach())
	}
	if err = errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("detach %s from device %d: %w", k.prog, k.ifindex, err)
	}
	return nil
}

// removeOtherKind takes away clsact filters that a former agent left where TCX links are now in force.
func (h *hooks) removeOtherKind() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.clsact {
		return nil
	}
	var errs error
	for k := range h.links {
		if filterThere(k) {
			errs = errors.Join(errs, detachFilter(k))
		}
	}
	return errs
}

// keepOnly takes the uplink programs away from devices that are no uplinks any more.
func (h *hooks) keepOnly(uplinks []int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs error
	for k, l := range h.links {
		if (k.prog == progUplinkIngress || k.prog == progUplinkEgress) && !slices.Contains(uplinks, k.ifindex) {
			errs = errors.Join(errs, h.dropLocked(k, l))
		}
	}
	return errs
}

// check attaches again what somebody took away, forgets hooks of devices that are gone and pins again what lost its pin.
// It returns the hooks that it repaired.
func (h *hooks) check() (repaired []hook, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, l := range h.links {
		if (l == nil || !aliveOn(l, k.ifindex)) && !present(k.ifindex) {
			if l != nil {
				l.Close()
				_ = os.Remove(filepath.Join(h.dir.links(), k.pinName()))
			}
			delete(h.links, k)
			continue
		}
		if h.clsact {
			if !filterThere(k) {
				delete(h.links, k)
				if e := h.attachLocked(k); e != nil {
					h.links[k] = nil // tried again at the next check
					err = errors.Join(err, e)
					continue
				}
				repaired = append(repaired, k)
			}
			continue
		}
		if !aliveOn(l, k.ifindex) {
			if e := h.attachLocked(k); e != nil {
				h.links[k] = l // tried again at the next check
				err = errors.Join(err, e)
				continue
			}
			repaired = append(repaired, k)
			continue
		}
		if path := filepath.Join(h.dir.links(), k.pinName()); !exists(path) {
			if e := pin(linkFD(l), path); e != nil {
				err = errors.Join(err, e)
				continue
			}
			repaired = append(repaired, k)
		}
	}
	return repaired, err
}

// close lets go of the links; pinned ones stay.
func (h *hooks) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.links {
		if l != nil {
			l.Close()
		}
	}
	clear(h.links)
}

func linkFD(l link.Link) int {
	if f, ok := l.(interface{ FD() int }); ok {
		return f.FD()
	}
	return -1
}

// haveTCX attaches p to a device for an instant. The kernel decides, not its version.
func haveTCX(p *ebpf.Program, ifindex int) error {
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: p, Attach: ebpf.AttachTCXEgress})
	if errors.Is(err, unix.EEXIST) {
		return nil // p is there already, by a former agent's link
	}
	if err != nil {
		return err
	}
	return l.Close()
}

// filterPrio is in front of everything that tc gives out by itself (49152 and below, downwards).
const filterPrio = 1

func filterOf(k hook) *netlink.BpfFilter {
	parent := uint32(netlink.HANDLE_MIN_EGRESS)
	if k.ingress() {
		parent = netlink.HANDLE_MIN_INGRESS
	}
	return &netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: k.ifindex, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: filterPrio},
		Name:         "porin_" + k.prog,
		DirectAction: true,
	}
}

func clsactOf(ifindex int) netlink.Qdisc {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

// attachFilter adds the filter or, in one step, replaces the program of the one that is there.
func attachFilter(k hook, p *ebpf.Program) error {
	if err := netlink.QdiscAdd(clsactOf(k.ifindex)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("qdisc: %w", err)
	}
	f := filterOf(k)
	f.Fd = p.FD()
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	return nil
}

func detachFilter(k hook) error {
	err := netlink.FilterDel(filterOf(k))
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil // the device, its qdisc or the filter is gone
	}
	return err
}

func filters(ifindex int, parent uint32) ([]netlink.Filter, error) {
	dev := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	return listAll(func() ([]netlink.Filter, error) { return netlink.FilterList(dev, parent) })
}

func filterThere(k hook) bool {
	want := filterOf(k)
	list, err := filters(k.ifindex, want.Parent)
	if err != nil {
		return false
	}
	for _, f := range list {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == want.Name && b.Priority == filterPrio {
			return true
		}
	}
	return false
}
