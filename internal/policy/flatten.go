package policy

import (
	"cmp"
	"slices"

	"porin/internal/verdict"
)

// flattener turns the statements that apply to a class of peers into the rows of a verdict table. It is scratch of the
// engine: used under its lock, one table at a time.
//
//	every protocol            ---- statements without ports ----------------------------------
//	every port of TCP         ---- those, and statements for all of TCP ----------------------
//	TCP 0..65535              ==|==========|=====|======|==============|===   cut where a range starts or ends;
//	                            8000       8080  8081   9000                  each piece has one verdict
//
// A piece of one port becomes an exact row, a longer one a range; a piece that says what the line above says already
// becomes no row.
type flattener struct {
	cookies *cookies
	silence PortVerdict // where no statement decides
	nothing PortVerdict // what the lack of a row means

	levels []level // one per order, ascending
	all    []*statement
	active []*statement // in force at the current piece
	events []event
	rows   []Row
}

// level sums up the statements in force of one tier and priority.
type level struct {
	order             uint64
	deny, allow, pass ruleList
}

type event struct {
	port  uint32
	start bool
	st    *statement
}

// table flattens sts. No statement may be there twice.
func (f *flattener) table(sts []*statement) []Row {
	f.all, f.rows = sts, f.rows[:0]
	f.levels, f.active = f.levels[:0], f.active[:0]
	ported := false
	for _, s := range sts {
		if s.ports == nil {
			f.enter(s)
		} else {
			ported = true
		}
	}
	base := f.judge()
	if base != f.nothing {
		f.rows = append(f.rows, Row{AnyPort: true, Verdict: base})
	}
	if ported {
		f.protocols(base)
	}
	slices.SortFunc(f.rows, compareRows)
	return f.rows
}

// compareRows: by protocol, then exact ports, ranges, the protocol as a whole. Lookup relies on it.
func compareRows(a, b Row) int {
	return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.kind(), b.kind()), cmp.Compare(a.First, b.First))
}

func (r *Row) kind() int {
	switch {
	case r.AnyPort:
		return 2
	case r.First != r.Last:
		return 1
	}
	return 0
}

func (f *flattener) level(order uint64) *level {
	for i := range f.levels {
		if f.levels[i].order == order {
			return &f.levels[i]
		}
	}
	at, _ := slices.BinarySearchFunc(f.levels, order, func(l level, o uint64) int { return cmp.Compare(l.order, o) })
	f.levels = slices.Insert(f.levels, at, level{order: order})
	return &f.levels[at]
}

func (f *flattener) enter(s *statement) {
	s.pos = int32(len(f.active))
	f.active = append(f.active, s)
	f.level(s.order).list(s.effect).add(s.id)
}

func (f *flattener) leave(s *statement) {
	last := len(f.active) - 1
	f.active[s.pos], f.active[last].pos = f.active[last], s.pos
	f.active = f.active[:last]
	f.level(s.order).list(s.effect).remove(s.id)
}

func (l *level) list(e Effect) *ruleList {
	switch e {
	case EffectDeny:
		return &l.deny
	case EffectAllow:
		return &l.allow
	}
	return &l.pass
}

// judge returns the verdict of the statements in force: the first level that has an opinion decides, deny before
// allow before pass; pass skips the rest of its tier.
func (f *flattener) judge() PortVerdict {
	skip := uint64(0) // tiers up to this one are passed
	for i := range f.levels {
		l := &f.levels[i]
		switch {
		case l.order>>32 <= skip:
		case l.deny.n > 0:
			return PortVerdict{Action: verdict.Deny, ExplicitDeny: true, Cookie: f.cookie(l, EffectDeny)}
		case l.allow.n > 0:
			return PortVerdict{Action: verdict.Allow, Cookie: f.cookie(l, EffectAllow)}
		case l.pass.n > 0:
			skip = l.order >> 32
		}
	}
	return f.silence
}

// cookie names the statements in force of l that have the effect.
func (f *flattener) cookie(l *level, e Effect) Cookie {
	k, room := f.cookies.keep(*l.list(e))
	if room == nil {
		return k
	}
	n := 0
	for _, s := range f.active {
		if s.order == l.order && s.effect == e {
			room[n] = s.id
			n++
		}
	}
	return k
}

// protocols adds the rows that hold for one protocol only.
func (f *flattener) protocols(base PortVerdict) {
	var seen [256]bool
	var protos []uint8
	for _, s := range f.all {
		for _, p := range s.ports {
			for _, n := range p.protocols() {
				if !seen[n] {
					seen[n] = true
					protos = append(protos, n)
				}
			}
		}
	}
	common := len(f.active)
	for _, proto := range protos {
		f.events = f.events[:0]
		for _, s := range f.all {
			if slices.ContainsFunc(s.ports, func(p Port) bool { return p.Any && p.covers(proto) }) {
				f.enter(s)
				continue
			}
			s.count = 0
			for _, p := range s.ports {
				if p.covers(proto) {
					f.events = append(f.events, event{uint32(p.First), true, s}, event{uint32(p.Last) + 1, false, s})
				}
			}
		}
		general := f.judge()
		if general != base {
			f.rows = append(f.rows, Row{Proto: proto, AnyPort: true, Verdict: general})
		}
		f.pieces(proto, general)
		for len(f.active) > common {
			f.leave(f.active[len(f.active)-1])
		}
	}
}

func (p Port) covers(proto uint8) bool {
	if p.AnyProto {
		return proto == ProtoTCP || proto == ProtoUDP || proto == ProtoSCTP
	}
	return p.Proto == proto
}

// pieces sweeps over the ports of a protocol and adds the rows that differ from the general verdict.
func (f *flattener) pieces(proto uint8, general PortVerdict) {
	slices.SortFunc(f.events, func(a, b event) int { return cmp.Compare(a.port, b.port) })
	from := len(f.rows)    // rows of this protocol's pieces
	open, gap := -1, false // the range that may go on, and whether a port was missing since
	for i := 0; i < len(f.events); {
		port := f.events[i].port
		for ; i < len(f.events) && f.events[i].port == port; i++ {
			if s := f.events[i].st; f.events[i].start {
				if s.count++; s.count == 1 {
					f.enter(s)
				}
			} else if s.count--; s.count == 0 {
				f.leave(s)
			}
		}
		if i == len(f.events) {
			break
		}
		last := f.events[i].port - 1
		v := f.judge()
		if v == general {
			gap = true // the general verdict: no row
			continue
		}
		row := Row{Proto: proto, First: uint16(port), Last: uint16(last), Verdict: v}
		if port == last {
			f.rows = append(f.rows, row) // an exact row is found before any range: ranges may go on across it
			continue
		}
		if open >= from && !gap && f.rows[open].Verdict == v {
			f.rows[open].Last = row.Last
			continue
		}
		open, gap = len(f.rows), false
		f.rows = append(f.rows, row)
	}
}
