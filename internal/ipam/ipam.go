// Package ipam decides which address each workload of this node gets.
// It reads the node's two ranges and the owners' names, and keeps who has what in memory; the endpoints' state files
// bring it back after a restart. It never touches a device, a file or a clock.
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
)

// Config of the node's address ranges. An invalid prefix switches its family off; at least one must be on.
type Config struct {
	IPv4 netip.Prefix
	IPv6 netip.Prefix
}

// Sentinels.
var (
	ErrExhausted = errors.New("address pool exhausted")
	ErrTaken     = errors.New("address belongs to another owner")
	ErrOutside   = errors.New("address is outside the node's range")
)

// Pool tells how full a range is.
type Pool struct {
	Prefix netip.Prefix `json:"prefix"`
	Size   uint64       `json:"size"` // addresses that workloads can get
	Used   uint64       `json:"used"`
}

// IPAM hands out the addresses of one node. Safe for concurrent use.
type IPAM struct {
	mu     sync.Mutex
	v4, v6 *pool // nil: family off
}

// New checks the ranges. An IPv4 range needs at least two bits of host part: network, router, broadcast and one
// workload; IPv6 likewise.
func New(cfg Config) (*IPAM, error) {
	m := &IPAM{}
	var err error
	if cfg.IPv4.IsValid() {
		if m.v4, err = newPool(cfg.IPv4, true); err != nil {
			return nil, err
		}
	}
	if cfg.IPv6.IsValid() {
		if m.v6, err = newPool(cfg.IPv6, false); err != nil {
			return nil, err
		}
	}
	if m.v4 == nil && m.v6 == nil {
		return nil, errors.New("ipam: neither an IPv4 nor an IPv6 range is given; set --ipv4-range or --ipv6-range")
	}
	return m, nil
}

// Router returns the address of porin_host in each family that is on. It is never handed out.
func (m *IPAM) Router() (v4, v6 netip.Addr) {
	if m.v4 != nil {
		v4 = m.v4.router
	}
	if m.v6 != nil {
		v6 = m.v6.router
	}
	return v4, v6
}

// Allocate gives owner one address of each family that is on; all or nothing. Of the free addresses it takes the one
// that has been free longest, so that late packets and stale caches rarely meet a new owner.
func (m *IPAM) Allocate(owner string) (v4, v6 netip.Addr, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.v4 != nil {
		if v4, err = m.v4.take(owner); err != nil {
			return netip.Addr{}, netip.Addr{}, err
		}
	}
	if m.v6 != nil {
		if v6, err = m.v6.take(owner); err != nil {
			if m.v4 != nil {
				m.v4.release(owner, v4)
			}
			return netip.Addr{}, netip.Addr{}, err
		}
	}
	return v4, v6, nil
}

// AllocateExact gives owner this address. It is no error if owner has it already.
func (m *IPAM) AllocateExact(owner string, addr netip.Addr) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.poolOf(addr)
	if p == nil {
		return fmt.Errorf("allocate %s for %s: %w", addr, owner, ErrOutside)
	}
	return p.takeExact(owner, addr)
}

// Release frees addr if owner has it; a late release cannot take the address from its next owner. It tells whether
// the address was freed.
func (m *IPAM) Release(owner string, addr netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.poolOf(addr)
	return p != nil && p.release(owner, addr)
}

// Pools returns how full each range is.
func (m *IPAM) Pools() []Pool {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Pool
	for _, p := range []*pool{m.v4, m.v6} {
		if p != nil {
			out = append(out, Pool{p.prefix, p.size, uint64(len(p.owners))})
		}
	}
	return out
}

func (m *IPAM) poolOf(addr netip.Addr) *pool {
	for _, p := range []*pool{m.v4, m.v6} {
		if p != nil && p.prefix.Contains(addr) {
			return p
		}
	}
	return nil
}
