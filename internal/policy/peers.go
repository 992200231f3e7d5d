package policy

import (
	"cmp"
	"iter"
	"slices"
)

// peerTables is the tables of the identities that a subject's rules treat differently from everyone else, by slot. Where
// they are many it is an array; where they are few a sorted list: 50,000 subjects of two peers each, among as many
// identities, would be 20 GB of arrays.
type peerTables struct {
	n    int
	many []*Table // nil where there are few
	few  []peerTable
}

type peerTable struct {
	slot  int32
	table *Table
}

// sparse: an array has this many places for each peer, at least, where a list takes less room.
const sparse = 4

// newPeerTables returns room for n peers of so many slots.
func newPeerTables(n, slots int) peerTables {
	if n*sparse >= slots {
		return peerTables{many: make([]*Table, slots)}
	}
	return peerTables{few: make([]peerTable, 0, n)}
}

// put adds a peer of a higher slot than all before; there is room for it.
func (p *peerTables) put(slot int32, t *Table) {
	p.n++
	if p.many != nil {
		p.many[slot] = t
		return
	}
	p.few = append(p.few, peerTable{slot, t})
}

func (p *peerTables) find(slot int32) (int, bool) {
	return slices.BinarySearchFunc(p.few, slot, func(e peerTable, slot int32) int { return cmp.Compare(e.slot, slot) })
}

// get returns a peer's table; nil for one who is as everyone else.
func (p *peerTables) get(slot int32) *Table {
	if p.many != nil {
		if int(slot) < len(p.many) {
			return p.many[slot]
		}
		return nil
	}
	if i, ok := p.find(slot); ok {
		return p.few[i].table
	}
	return nil
}

// set changes a peer's table; nil makes it as everyone else.
func (p *peerTables) set(slot int32, t *Table) {
	p.n += b2i(t != nil) - b2i(p.get(slot) != nil)
	if p.many != nil {
		if int(slot) >= len(p.many) {
			p.many = append(p.many, make([]*Table, int(slot)+1-len(p.many))...)
		}
		p.many[slot] = t
		return
	}
	i, ok := p.find(slot)
	switch {
	case ok && t == nil:
		p.few = slices.Delete(p.few, i, i+1)
	case ok:
		p.few[i].table = t
	case t != nil:
		p.few = slices.Insert(p.few, i, peerTable{slot, t})
	}
}

// all returns the peers and their tables, ascending.
func (p *peerTables) all() iter.Seq2[int32, *Table] {
	return func(yield func(int32, *Table) bool) {
		for i, t := range p.many {
			if t != nil && !yield(int32(i), t) {
				return
			}
		}
		for _, e := range p.few {
			if !yield(e.slot, e.table) {
				return
			}
		}
	}
}
