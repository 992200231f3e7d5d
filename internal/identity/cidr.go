package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"porin/internal/labels"
)

// ErrExhausted says that no node-local number is free.
var ErrExhausted = errors.New("no node-local identity is free")

// cidrs gives node-local numbers to prefixes. A number that was freed rests before it is given out again, because
// connections and flow records of its former prefix are still about.
//
//	free ──AllocateCIDR──▶ in use ──last ReleaseCIDR──▶ resting ──Rest later──▶ free
//	                 restored (0 references) ──AllocateCIDR──▶ in use
type cidrs struct {
	last     ID
	next     ID // where the search for a free number goes on
	byPrefix map[netip.Prefix]*cidr
	byID     map[ID]*cidr
	resting  map[ID]time.Time // freed at
	queue    []ID             // resting, oldest first
}

type cidr struct {
	Identity
	refs int
}

func newCIDRs(last ID) cidrs {
	return cidrs{
		last: last, next: firstLocal,
		byPrefix: make(map[netip.Prefix]*cidr), byID: make(map[ID]*cidr), resting: make(map[ID]time.Time),
	}
}

// firstLocal leaves out the number whose lower half is 0: cut to 16 bits it would read as unknown.
const firstLocal = ScopeLocal + 1

// AllocateCIDR returns the node-local identity of p and counts a reference to it. isNew tells that it is the first
// reference, so that nobody else has told policy and kernel of it yet.
func (a *Allocator) AllocateCIDR(p netip.Prefix) (id Identity, isNew bool, err error) {
	p, err = checkPrefix(p)
	if err != nil {
		return Identity{}, false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.cidrs.byPrefix[p]; c != nil {
		c.refs++
		return c.Identity, c.refs == 1, nil
	}
	n, err := a.cidrs.free(a.cfg.Now(), a.cfg.Rest)
	if err != nil {
		return Identity{}, false, fmt.Errorf("identity for %s: %w", p, err)
	}
	c := &cidr{Identity: a.cidrIdentity(n, p), refs: 1}
	a.cidrs.byPrefix[p], a.cidrs.byID[n] = c, c
	a.table.Put(c.Identity)
	return c.Identity, true, nil
}

// ReleaseCIDR gives one reference to p back. last tells that it was the last one: the number is free then and rests.
// A prefix without references gives number 0.
func (a *Allocator) ReleaseCIDR(p netip.Prefix) (id ID, last bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.cidrs.byPrefix[canonical(p)]
	if c == nil || c.refs == 0 {
		return Unknown, false
	}
	if c.refs--; c.refs > 0 {
		return c.ID, false
	}
	a.dropCIDR(c)
	return c.ID, true
}

// RestoreCIDRs makes numbers known that the kernel still holds from before a restart, without references. Numbers that
// cannot be node-local, and all but the first of those that contradict each other, are left out.
func (a *Allocator) RestoreCIDRs(held map[netip.Prefix]ID) {
	prefixes := make([]netip.Prefix, 0, len(held))
	for p := range held {
		prefixes = append(prefixes, p)
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, raw := range prefixes {
		id := held[raw]
		p, err := checkPrefix(raw)
		switch {
		case err != nil:
		case id < firstLocal || id > a.cidrs.last:
			err = fmt.Errorf("number %d is not a node-local one", uint32(id))
		case a.cidrs.byPrefix[p] != nil:
			err = fmt.Errorf("prefix %s already is %d", p, a.cidrs.byPrefix[p].ID)
		case a.cidrs.byID[id] != nil:
			err = fmt.Errorf("number %d already is that of %s", id, a.cidrs.byID[id].Prefix)
		}
		if err != nil {
			a.log.Warn("cidr identity not restored", "prefix", raw, "id", uint32(id), "err", err)
			continue
		}
		c := &cidr{Identity: a.cidrIdentity(id, p)}
		a.cidrs.byPrefix[p], a.cidrs.byID[id] = c, c
		a.cidrs.next = max(a.cidrs.next, id+1)
		a.table.Put(c.Identity)
	}
}

// dropCIDR frees c's number. The lock is held.
func (a *Allocator) dropCIDR(c *cidr) {
	delete(a.cidrs.byPrefix, c.Prefix)
	delete(a.cidrs.byID, c.ID)
	a.cidrs.resting[c.ID] = a.cfg.Now()
	a.cidrs.queue = append(a.cidrs.queue, c.ID)
	a.table.Delete(TableKey(c.ID))
}

// free finds a number that is neither in use nor resting.
func (c *cidrs) free(now time.Time, rest time.Duration) (ID, error) {
	for len(c.queue) > 0 && now.Sub(c.resting[c.queue[0]]) >= rest {
		delete(c.resting, c.queue[0])
		c.queue = c.queue[1:]
	}
	total := int(c.last-firstLocal) + 1
	if len(c.byID)+len(c.resting) >= total {
		if len(c.queue) == 0 {
			return 0, fmt.Errorf("%w: all %d are in use; use fewer CIDRs in policies", ErrExhausted, total)
		}
		wait := rest - now.Sub(c.resting[c.queue[0]])
		return 0, fmt.Errorf("%w: of %d, %d are in use and %d rest after use, the next is free in %s",
			ErrExhausted, total, len(c.byID), len(c.resting), wait.Round(time.Second))
	}
	for {
		if c.next > c.last || c.next < firstLocal {
			c.next = firstLocal
		}
		n := c.next
		c.next++
		if _, rests := c.resting[n]; c.byID[n] == nil && !rests {
			return n, nil
		}
	}
}

// cidrIdentity is what number n stands for: the prefix, and the world that it is a part of.
func (a *Allocator) cidrIdentity(n ID, p netip.Prefix) Identity {
	world := World
	if a.cfg.DualStack {
		world = WorldIPv6
		if p.Addr().Is4() {
			world = WorldIPv4
		}
	}
	return Identity{ID: n, Prefix: p, Labels: labels.New(
		labels.Label{Source: labels.SourceCIDR, Key: p.String()},
		labels.Label{Source: labels.SourceReserved, Key: reservedNames[world]},
	)}
}

func checkPrefix(p netip.Prefix) (netip.Prefix, error) {
	if !p.IsValid() {
		return p, fmt.Errorf("identity for a CIDR: %v is none", p)
	}
	return canonical(p), nil
}

// canonical gives the same prefix the same form always: host bits zero, IPv4 not mapped into IPv6.
func canonical(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}
