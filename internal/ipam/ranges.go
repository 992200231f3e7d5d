package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// ErrBadRange says that a prefix cannot be a node's range.
var ErrBadRange = errors.New("not a range for a node")

// ClusterPool is a network out of which the nodes of a cluster get their ranges, each of the same size.
type ClusterPool struct {
	Prefix   netip.Prefix `json:"prefix"`
	NodeBits int          `json:"node-bits"` // prefix length of a node's range
}

// ranges is how many nodes the pool is for.
func (p ClusterPool) ranges() uint64 { return 1 << (p.NodeBits - p.Prefix.Bits()) }

// maxRangeBits bounds a pool, so that a search for a free range ends soon.
const maxRangeBits = 16

func (p ClusterPool) check() error {
	a := p.Prefix.Addr()
	switch {
	case !p.Prefix.IsValid() || p.Prefix != p.Prefix.Masked() || a.Is4In6():
		return fmt.Errorf("cluster pool %s: a network address without bits behind its prefix length is wanted", p.Prefix)
	case a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified():
		return fmt.Errorf("cluster pool %s: multicast, loopback and link-local addresses are not for workloads", p.Prefix)
	case p.NodeBits < p.Prefix.Bits() || p.NodeBits > a.BitLen()-2:
		return fmt.Errorf("cluster pool %s: a node's range of /%d is not in it: from /%d to /%d", p.Prefix, p.NodeBits, p.Prefix.Bits(), a.BitLen()-2)
	case p.NodeBits-p.Prefix.Bits() > maxRangeBits:
		return fmt.Errorf("cluster pool %s: it has more than 65536 ranges of /%d: make them larger or the pool smaller", p.Prefix, p.NodeBits)
	}
	return nil
}

// at returns the n-th range of the pool.
func (p ClusterPool) at(n uint64) netip.Prefix {
	b := p.Prefix.Addr().As16()
	first := 128 - p.Prefix.Addr().BitLen()
	for bit := 0; n>>bit != 0; bit++ { // the lowest bit of n is the last of the range's prefix
		if n>>bit&1 == 1 {
			at := first + p.NodeBits - 1 - bit
			b[at/8] |= 1 << (7 - at%8)
		}
	}
	a := netip.AddrFrom16(b)
	if p.Prefix.Addr().Is4() {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, p.NodeBits)
}

// Ranges decides which range of addresses each node of a cluster gets. It keeps in memory who has what; whoever uses it
// writes that down. Not safe for concurrent use.
type Ranges struct {
	pools []ClusterPool
	next  []uint64 // by pool: where the search for a free range begins
	taken bart.Table[string]
	owner map[netip.Prefix]string
}

// NewRanges checks the pools.
func NewRanges(pools []ClusterPool) (*Ranges, error) {
	for i, p := range pools {
		if err := p.check(); err != nil {
			return nil, err
		}
		for _, q := range pools[:i] {
			if p.Prefix.Overlaps(q.Prefix) {
				return nil, fmt.Errorf("cluster pools %s and %s overlap", q.Prefix, p.Prefix)
			}
		}
	}
	return &Ranges{pools: slices.Clone(pools), next: make([]uint64, len(pools)), owner: map[netip.Prefix]string{}}, nil
}

// Take notes that node has the range, in a pool or not. It is refused if it overlaps what another node has.
func (r *Ranges) Take(node string, p netip.Prefix) error {
	if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Bits() == 0 {
		return fmt.Errorf("range %s of %s: %w", p, node, ErrBadRange)
	}
	if has, ok := r.owner[p]; ok && has == node {
		return nil
	}
	if other, has := r.conflict(p); other != "" {
		return fmt.Errorf("range %s of %s overlaps %s of %s: %w", p, node, has, other, ErrTaken)
	}
	r.taken.Insert(p, node)
	r.owner[p] = node
	// what was given last is given again last
	for i, pool := range r.pools {
		if pool.NodeBits == p.Bits() && pool.Prefix.Overlaps(p) {
			if n := pool.index(p.Addr()); n >= r.next[i] {
				r.next[i] = (n + 1) % pool.ranges()
			}
		}
	}
	return nil
}

// index is the reverse of at.
func (p ClusterPool) index(a netip.Addr) (n uint64) {
	b := a.As16()
	first := 128 - a.BitLen()
	for at := first + p.Prefix.Bits(); at < first+p.NodeBits; at++ {
		n = n<<1 | uint64(b[at/8]>>(7-at%8)&1)
	}
	return n
}

// conflict returns who has what overlaps p.
func (r *Ranges) conflict(p netip.Prefix) (node string, has netip.Prefix) {
	if !r.taken.OverlapsPrefix(p) {
		return "", netip.Prefix{}
	}
	for has, node := range r.owner { // rare: only to say whose it is
		if has.Overlaps(p) {
			return node, has
		}
	}
	return "", netip.Prefix{}
}

// Give gives node a free range of the family. Ranges that were never given come before those that came back.
func (r *Ranges) Give(node string, v4 bool) (netip.Prefix, error) {
	pools, total := 0, uint64(0)
	for i, pool := range r.pools {
		if pool.Prefix.Addr().Is4() != v4 {
			continue
		}
		pools++
		total += pool.ranges()
		for n := range pool.ranges() {
			p := pool.at((r.next[i] + n) % pool.ranges())
			if !r.taken.OverlapsPrefix(p) {
				return p, r.Take(node, p)
			}
		}
	}
	family := map[bool]string{true: "IPv4", false: "IPv6"}[v4]
	if pools == 0 {
		return netip.Prefix{}, fmt.Errorf("range for %s: there is no %s pool: %w", node, family, ErrExhausted)
	}
	return netip.Prefix{}, fmt.Errorf("range for %s: all %d %s ranges are given: %w; add a pool or remove nodes", node, total, family, ErrExhausted)
}

// Return takes everything back that node has.
func (r *Ranges) Return(node string) []netip.Prefix {
	out := r.Of(node)
	for _, p := range out {
		r.taken.Delete(p)
		delete(r.owner, p)
	}
	return out
}

// Of returns what node has, IPv4 first.
func (r *Ranges) Of(node string) []netip.Prefix {
	var out []netip.Prefix
	for p, n := range r.owner {
		if n == node {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return out
}

// Pools tells how full the pools are: of how many ranges, how many are not free.
func (r *Ranges) Pools() []Pool {
	var out []Pool
	for _, pool := range r.pools {
		used := uint64(0)
		for n := range pool.ranges() {
			if r.taken.OverlapsPrefix(pool.at(n)) {
				used++
			}
		}
		out = append(out, Pool{Prefix: pool.Prefix, Size: pool.ranges(), Used: used})
	}
	return out
}
