package ipam

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// pool is one family's range. Free addresses stand in two places: those never handed out since the start are found
// by walking once around the range from cursor, so that a /64 costs nothing; those given back wait in a queue behind
// them.
//
//	base+0 ........ cursor ................ base+size-1
//	   <- after the wrap |-- fresh more ---------->      then queue, oldest first
type pool struct {
	prefix netip.Prefix
	router netip.Addr
	base   netip.Addr // first address for workloads
	size   uint64

	cursor uint64 // offset of the next address to look at
	fresh  uint64 // how many offsets are still to be looked at
	began  bool   // an address was handed out; before that, restored addresses push the cursor on

	owners map[netip.Addr]string
	queue  []freed               // given back, oldest first; an entry that queued does not confirm is void
	queued map[netip.Addr]uint64 // -> number of its valid entry
	number uint64
}

type freed struct {
	addr   netip.Addr
	number uint64
}

func newPool(prefix netip.Prefix, want4 bool) (*pool, error) {
	family := "IPv6"
	if want4 {
		family = "IPv4"
	}
	a := prefix.Addr()
	if a.Is4() != want4 || a.Is4In6() {
		return nil, fmt.Errorf("ipam: %s range %s is of the other family", family, prefix)
	}
	if prefix != prefix.Masked() {
		return nil, fmt.Errorf("ipam: %s range %s has host bits set; write %s", family, prefix, prefix.Masked())
	}
	host := a.BitLen() - prefix.Bits()
	if host < 2 {
		return nil, fmt.Errorf("ipam: %s range %s is too small; it needs 4 addresses or more", family, prefix)
	}
	if a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return nil, fmt.Errorf("ipam: %s range %s is multicast, loopback, link-local or unspecified; workloads need unicast addresses", family, prefix)
	}
	size := uint64(math.MaxUint64)
	if host < 64 {
		size = 1 << host
	}
	size -= 2 // the network's own address (IPv6: subnet-router anycast) and the router's
	if want4 {
		size-- // broadcast
	}
	router := a.Next()
	return &pool{
		prefix: prefix, router: router, base: router.Next(), size: size, fresh: size,
		owners: map[netip.Addr]string{}, queued: map[netip.Addr]uint64{},
	}, nil
}

// at returns the address at an offset from base, below size.
func (p *pool) at(off uint64) netip.Addr {
	if p.base.Is4() {
		b := p.base.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(off))
		return netip.AddrFrom4(b)
	}
	b := p.base.As16()
	lo := binary.BigEndian.Uint64(b[8:])
	if lo+off < lo {
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+1)
	}
	binary.BigEndian.PutUint64(b[8:], lo+off)
	return netip.AddrFrom16(b)
}

// offset is the reverse of at; ok is false for the addresses that workloads never get.
func (p *pool) offset(addr netip.Addr) (uint64, bool) {
	if !p.prefix.Contains(addr) || addr.Less(p.base) {
		return 0, false
	}
	if addr.Is4() {
		a, b := addr.As4(), p.base.As4()
		off := uint64(binary.BigEndian.Uint32(a[:]) - binary.BigEndian.Uint32(b[:]))
		return off, off < p.size
	}
	a, b := addr.As16(), p.base.As16()
	lo, base := binary.BigEndian.Uint64(a[8:]), binary.BigEndian.Uint64(b[8:])
	hi := binary.BigEndian.Uint64(a[:8]) - binary.BigEndian.Uint64(b[:8])
	if lo < base {
		hi--
	}
	off := lo - base
	return off, hi == 0 && off < p.size // a range wider than 2^64 is used from its beginning only
}

func (p *pool) take(owner string) (netip.Addr, error) {
	p.began = true
	for p.fresh > 0 {
		addr := p.at(p.cursor)
		p.step()
		if _, used := p.owners[addr]; !used && p.queued[addr] == 0 {
			p.owners[addr] = owner
			return addr, nil
		}
	}
	for len(p.queue) > 0 {
		f := p.queue[0]
		p.queue = p.queue[1:]
		if p.queued[f.addr] != f.number {
			continue // taken meanwhile by takeExact
		}
		delete(p.queued, f.addr)
		p.owners[f.addr] = owner
		return f.addr, nil
	}
	return netip.Addr{}, fmt.Errorf("allocate an address for %s: pool %s: %d of %d used: %w; give the node a larger range or remove workloads",
		owner, p.prefix, len(p.owners), p.size, ErrExhausted)
}

func (p *pool) step() {
	p.fresh--
	if p.cursor++; p.cursor == p.size {
		p.cursor = 0
	}
}

func (p *pool) takeExact(owner string, addr netip.Addr) error {
	off, ok := p.offset(addr)
	if !ok {
		return fmt.Errorf("allocate %s for %s: not an address for workloads in %s: %w", addr, owner, p.prefix, ErrOutside)
	}
	if has, used := p.owners[addr]; used {
		if has == owner {
			return nil
		}
		return fmt.Errorf("allocate %s for %s: %s has it: %w", addr, owner, has, ErrTaken)
	}
	delete(p.queued, addr) // voids its entry in the queue
	p.owners[addr] = owner
	if !p.began && off >= p.cursor {
		// After a restart go on behind what was in use: the addresses freed shortly before come last again.
		p.cursor = (off + 1) % p.size
	}
	return nil
}

func (p *pool) release(owner string, addr netip.Addr) bool {
	if has, used := p.owners[addr]; !used || has != owner {
		return false
	}
	delete(p.owners, addr)
	p.number++
	p.queued[addr] = p.number
	p.queue = append(p.queue, freed{addr, p.number})
	if len(p.queue) > 2*len(p.queued)+16 {
		p.queue = slices.DeleteFunc(p.queue, func(f freed) bool { return p.queued[f.addr] != f.number })
	}
	return true
}
