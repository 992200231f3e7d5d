package datapath

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"porin/bpf"
	"porin/internal/identity"
)

// prefixMap keeps the prefixes map. The trie answers with the longest match only, so every row says all that holds for its
// addresses: the identity of the longest CIDR of a policy around it, and the flags of every range around it.
type prefixMap struct {
	rows           table[bpf.PrefixKey, bpf.Peer]
	flags          map[netip.Prefix]uint32 // ranges of the configuration and of other nodes
	configured     map[netip.Prefix]uint32 // of flags, those of the configuration
	world4, world6 identity.ID

	mu      sync.Mutex
	nodes   map[netip.Prefix]bpf.Addr    // pod ranges of other nodes, and where they are
	former  map[netip.Prefix]struct{}    // those that a former agent left and nobody has put since
	cidrs   map[netip.Prefix]identity.ID // of policies
	written map[netip.Prefix]bpf.Peer
	found   map[netip.Prefix]identity.ID // what a former agent left
}

func newPrefixMap(cfg Config, ms map[string]*ebpf.Map) *prefixMap {
	p := &prefixMap{
		rows: tableOf[bpf.PrefixKey, bpf.Peer](ms, mapPrefixes), flags: map[netip.Prefix]uint32{},
		nodes: map[netip.Prefix]bpf.Addr{}, former: map[netip.Prefix]struct{}{}, cidrs: map[netip.Prefix]identity.ID{}, written: map[netip.Prefix]bpf.Peer{}, found: map[netip.Prefix]identity.ID{},
	}
	p.world4, p.world6 = cfg.world()
	// In the trie IPv4 lies inside ::/0. This row keeps a policy's ::/0 from answering for IPv4.
	p.flags[netip.PrefixFrom(netip.IPv4Unspecified(), 0)] = 0
	for _, pods := range []netip.Prefix{cfg.IPv4Range, cfg.IPv6Range} {
		if pods.IsValid() {
			p.flags[plain(pods)] |= bpf.PeerNoOwner | bpf.PeerCluster
		}
	}
	for _, ex := range cfg.MasqueradeExclude {
		p.flags[plain(ex)] |= bpf.PeerCluster
	}
	for _, c := range cfg.NativeCIDRs {
		p.flags[plain(c)] |= bpf.PeerCluster
	}
	p.configured = maps.Clone(p.flags)
	return p
}

// restore reads the rows of a former agent. A row that inherited the identity of a CIDR around it is told from the CIDR's
// own by length: of all rows with one identity, the shortest is the CIDR.
func (p *prefixMap) restore() error {
	rows, err := p.rows.all()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	byID := map[identity.ID]netip.Prefix{}
	for k, row := range rows {
		cidr, id := k.Prefix(), identity.ID(row.Identity)
		p.written[cidr] = row
		if row.Flags&bpf.PeerRemote != 0 {
			p.flags[cidr] |= remoteRange
			p.nodes[cidr] = row.Node
			p.former[cidr] = struct{}{}
		}
		if !id.IsLocal() {
			continue
		}
		if have, ok := byID[id]; !ok || cidr.Bits() < have.Bits() {
			byID[id] = cidr
		}
	}
	for id, cidr := range byID {
		p.cidrs[cidr], p.found[cidr] = id, id
	}
	return p.sync(slices.Collect(maps.Keys(p.written)))
}

// put adds CIDRs, or nothing.
func (p *prefixMap) put(add map[netip.Prefix]identity.ID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := map[netip.Prefix]identity.ID{}
	touched := make([]netip.Prefix, 0, len(add))
	for cidr, id := range add {
		cidr = plain(cidr)
		if have, ok := p.cidrs[cidr]; ok {
			before[cidr] = have
		}
		p.cidrs[cidr] = id
		touched = append(touched, cidr)
	}
	err := p.sync(touched)
	if err == nil {
		return nil
	}
	for _, cidr := range touched {
		if id, ok := before[cidr]; ok {
			p.cidrs[cidr] = id
		} else {
			delete(p.cidrs, cidr)
		}
	}
	return errors.Join(err, p.sync(touched))
}

// remoteRange is what holds for a pod range of another node: an address without a row of its own is nobody's.
const remoteRange = bpf.PeerNoOwner | bpf.PeerCluster | bpf.PeerRemote

// putRanges says behind which underlay address pod ranges of other nodes are.
func (p *prefixMap) putRanges(add map[netip.Prefix]bpf.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for cidr, at := range add {
		cidr = plain(cidr)
		p.flags[cidr] |= remoteRange
		p.nodes[cidr] = at
		delete(p.former, cidr)
	}
	return p.sync(slices.Collect(maps.Keys(p.cidrs))) // CIDRs inside a range inherit
}

func (p *prefixMap) removeRanges(gone []netip.Prefix) error {
	if len(gone) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dropRanges(gone)
}

func (p *prefixMap) dropRanges(gone []netip.Prefix) error {
	touched := slices.Collect(maps.Keys(p.cidrs))
	for _, cidr := range gone {
		cidr = plain(cidr)
		delete(p.former, cidr)
		if _, ours := p.nodes[cidr]; !ours {
			continue
		}
		delete(p.nodes, cidr)
		if own, ok := p.configured[cidr]; ok {
			p.flags[cidr] = own
		} else {
			delete(p.flags, cidr)
		}
		touched = append(touched, cidr)
	}
	return p.sync(touched)
}

// forgetFormer removes the ranges that a former agent left.
func (p *prefixMap) forgetFormer() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dropRanges(slices.Collect(maps.Keys(p.former)))
}

func (p *prefixMap) remove(gone []netip.Prefix) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	touched := make([]netip.Prefix, 0, len(gone))
	for _, cidr := range gone {
		delete(p.cidrs, plain(cidr))
		touched = append(touched, plain(cidr))
	}
	return p.sync(touched)
}

// plain is the one form of a CIDR that the trie knows: masked, and IPv4 however it was written.
func plain(cidr netip.Prefix) netip.Prefix {
	if cidr.Addr().Is4In6() && cidr.Bits() >= 96 {
		cidr = netip.PrefixFrom(cidr.Addr().Unmap(), cidr.Bits()-96)
	}
	return cidr.Masked()
}

// sync writes the rows of the touched CIDRs, and of the configured ranges, which inherit identities from CIDRs around them.
// A CIDR's own row depends on no other CIDR, so the rest stays.
func (p *prefixMap) sync(touched []netip.Prefix) error {
	for cidr := range p.flags {
		touched = append(touched, cidr)
	}
	for _, cidr := range touched {
		_, ours := p.cidrs[cidr]
		_, configured := p.flags[cidr]
		have, written := p.written[cidr]
		if !ours && !configured {
			if written {
				if err := p.rows.del(bpf.PrefixKeyFrom(cidr)); err != nil {
					return err
				}
				delete(p.written, cidr)
			}
			continue
		}
		want := p.row(cidr)
		if written && have == want {
			continue
		}
		if err := p.rows.put(bpf.PrefixKeyFrom(cidr), want); err != nil {
			return err
		}
		p.written[cidr] = want
	}
	return nil
}

// row composes what holds for the addresses of cidr that no longer row covers. Parents are looked up one length after the
// other: 33 or 129 map lookups, however many CIDRs there are.
func (p *prefixMap) row(cidr netip.Prefix) (row bpf.Peer) {
	for bits := cidr.Bits(); bits >= 0; bits-- {
		parent := netip.PrefixFrom(cidr.Addr(), bits).Masked()
		row.Flags |= p.flags[parent]
		if at, ok := p.nodes[parent]; ok && row.Node == (bpf.Addr{}) {
			row.Node = at
		}
		if id, ok := p.cidrs[parent]; ok && row.Identity == 0 {
			row.Identity = uint32(id)
		}
	}
	if row.Identity != 0 {
		return row
	}
	if cidr.Addr().Is4() {
		row.Identity = uint32(p.world4)
	} else {
		row.Identity = uint32(p.world6)
	}
	return row
}

// RestoredPrefixes returns the CIDR identities that a former agent left in the kernel.
func (d *Datapath) RestoredPrefixes() map[netip.Prefix]identity.ID {
	d.prefixes.mu.Lock()
	defer d.prefixes.mu.Unlock()
	return maps.Clone(d.prefixes.found)
}

// PutPrefixes says which identity is behind each CIDR.
func (d *Datapath) PutPrefixes(add map[netip.Prefix]identity.ID) error {
	return d.noteFull(d.prefixes.put(add))
}

// DeletePrefixes takes CIDRs away; the addresses fall back to the next shorter CIDR or to world.
func (d *Datapath) DeletePrefixes(gone []netip.Prefix) error {
	return d.noteFull(d.prefixes.remove(gone))
}
