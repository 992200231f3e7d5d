package agent

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

// names remembers for a moment how devices are called and which addresses the node has: a reader of flows asks for each
// flow.
type names struct {
	mu      sync.Mutex
	until   time.Time         // mu
	devices map[uint32]string // mu
	hosts   []netip.Addr      // mu
}

const namesFor = 2 * time.Second

func (n *names) device(ifindex uint32) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refresh()
	if name, ok := n.devices[ifindex]; ok {
		return name
	}
	if ifindex == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(ifindex), 10)
}

func (n *names) isHost(addr netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refresh()
	return slices.Contains(n.hosts, addr)
}

// refresh reads both when they are old. The lock is held.
func (n *names) refresh() {
	now := time.Now()
	if now.Before(n.until) {
		return
	}
	n.until = now.Add(namesFor)
	n.devices = make(map[uint32]string)
	if list, err := net.Interfaces(); err == nil { // else numbers have to do
		for _, i := range list {
			n.devices[uint32(i.Index)] = i.Name
		}
	}
	n.hosts = hostAddresses()
}
