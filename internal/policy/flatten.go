package policy

import (
	"cmp"
	"math/bits"
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
	cookies  *cookies
	l7       *l7sets
	conflict *rule // names what denies where L7 rules contradict each other
	views    [2]view
	two      bool        // the views differ
	met      [2]bool     // the class satisfies what narrows allowing, by view
	nothing  PortVerdict // what the lack of a row means

	levels []level  // one per order, ascending
	live   []uint64 // bits of the levels with a statement in force
	orders []uint64
	all    []*statement
	active []*statement // in force at the current piece
	events []event
	rows   []Row
	parts  []l7part

	proto uint8 // of the current piece
	port  int   // its first; -1: every port of proto; -2: every protocol

	work, limit int  // statements and ports looked at for this table, and how many may be
	over        bool // it was more: the rows are worth nothing
}

// level sums up the statements in force of one tier and priorities.
type level struct {
	order    uint64
	lists    [2][EffectDeny + 1]ruleList // by view
	filtered [2]int                      // those that allow and have L7, by view
	active   int
}

// event is where a range of ports starts or ends: of a statement, or of nothing but the piece.
type event struct {
	port  uint32
	start bool
	st    *statement
}

// table flattens sts. No statement may be there twice.
func (f *flattener) table(sts []*statement) []Row {
	f.all, f.rows, f.active, f.work, f.over = f.all[:0], f.rows[:0], f.active[:0], 0, false
	for _, s := range sts {
		if s.views = f.counts(s); s.views != 0 {
			f.all = append(f.all, s)
		}
	}
	f.rank()
	ported := false
	for _, s := range f.all {
		if s.ports == nil {
			f.enter(s)
		} else {
			ported = true
		}
	}
	f.port = -2
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

// counts returns the views in which s has a say, as bits.
func (f *flattener) counts(s *statement) (views uint8) {
	for v := range f.views {
		switch {
		case v == 0 && s.audit, v == 1 && !f.two, s.free && !f.views[v].local:
		case !f.met[v] && !s.free && (s.effect == EffectAllow || s.effect == EffectAuth):
		default:
			views |= 1 << v
		}
	}
	return views
}

// rank makes a level for every order.
func (f *flattener) rank() {
	f.orders = f.orders[:0]
	for i, s := range f.all {
		if i == 0 || s.order != f.all[i-1].order {
			f.orders = append(f.orders, s.order)
		}
	}
	slices.Sort(f.orders)
	f.orders = slices.Compact(f.orders)
	f.levels, f.live = f.levels[:0], f.live[:0]
	for i, o := range f.orders {
		f.levels = append(f.levels, level{order: o})
		if i%64 == 0 {
			f.live = append(f.live, 0)
		}
	}
	for i, s := range f.all {
		if i > 0 && s.order == f.all[i-1].order {
			s.level = f.all[i-1].level
			continue
		}
		at, _ := slices.BinarySearch(f.orders, s.order)
		s.level = int32(at)
	}
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

func (f *flattener) enter(s *statement) {
	s.pos = int32(len(f.active))
	f.active = append(f.active, s)
	l := &f.levels[s.level]
	if l.active++; l.active == 1 {
		f.live[s.level/64] |= 1 << (s.level % 64)
	}
	for v := range l.lists {
		if s.views>>v&1 != 0 {
			l.lists[v][s.effect].add(s.id)
			l.filtered[v] += b2i(s.sums != nil)
		}
	}
}

func (f *flattener) leave(s *statement) {
	last := len(f.active) - 1
	f.active[s.pos], f.active[last].pos = f.active[last], s.pos
	f.active = f.active[:last]
	l := &f.levels[s.level]
	if l.active--; l.active == 0 {
		f.live[s.level/64] &^= 1 << (s.level % 64)
	}
	for v := range l.lists {
		if s.views>>v&1 != 0 {
			l.lists[v][s.effect].remove(s.id)
			l.filtered[v] -= b2i(s.sums != nil)
		}
	}
}

// judge returns the verdict of the statements in force. What rules that only report would deny passes as it would
// without them, and is reported.
func (f *flattener) judge() PortVerdict {
	v := f.decide(0)
	if f.two && v.Action == verdict.Allow {
		if would := f.decide(1); would.Action == verdict.Deny {
			return PortVerdict{Action: verdict.Audit, Cookie: would.Cookie}
		}
	}
	return v
}

// decide is judge in one view: the first level that has an opinion decides, deny before unmet demands before allow
// before pass; pass skips the rest of its tier. What isolates in the Normal tier comes before the Baseline tier.
func (f *flattener) decide(view int) PortVerdict {
	passed := Tier(0) // tiers up to this one are
	for w, word := range f.live {
		for ; word != 0; word &= word - 1 {
			l := &f.levels[w*64+bits.TrailingZeros64(word)]
			tier, lists := tierOf(l.order), &l.lists[view]
			switch {
			case tier <= passed:
			case tier > TierNormal && f.views[view].normal:
				return f.views[view].silence
			case lists[EffectDeny].n > 0:
				return PortVerdict{Action: verdict.Deny, ExplicitDeny: true, Cookie: f.cookie(l, view, EffectDeny)}
			case lists[EffectAuth].n > 0:
				return PortVerdict{Action: verdict.Deny, Auth: true, Cookie: f.cookie(l, view, EffectAuth)}
			case lists[EffectAllow].n > 0:
				return f.allow(l, view)
			case lists[EffectPass].n > 0:
				passed = tier
			}
		}
	}
	return f.views[view].silence
}

// cookie names the statements in force of l that have the effect.
func (f *flattener) cookie(l *level, view int, e Effect) Cookie {
	k, room := f.cookies.keep(l.lists[view][e])
	if room == nil {
		return k
	}
	f.work += len(f.active)
	to := lowest{ids: room}
	for _, s := range f.active {
		if f.levels[s.level].order == l.order && s.effect == e && s.views>>view&1 != 0 {
			to.add(s.id)
		}
	}
	return k
}

// allow is the verdict of a level that allows: through a proxy if every statement says what may be said there.
func (f *flattener) allow(l *level, view int) PortVerdict {
	out := PortVerdict{Action: verdict.Allow}
	if l.filtered[view] == l.lists[view][EffectAllow].n && f.elements(l, view) {
		if conflict(f.parts) {
			who := []*rule{f.conflict}
			for _, p := range f.parts {
				if !slices.ContainsFunc(who, func(r *rule) bool { return r.id == p.rule.id }) {
					who = append(who, p.rule)
				}
			}
			return PortVerdict{Action: verdict.Deny, ExplicitDeny: true, Cookie: f.cookies.name(who...)}
		}
		out.Action = verdict.Redirect
		if view == 0 {
			out.L7 = f.l7.keep(f.parts)
		}
	}
	out.Cookie = f.cookie(l, view, EffectAllow)
	return out
}

// partWork is what it costs to put one element into a set, in statements looked at.
const partWork = 128

// elements collects the elements of the statements that allow the current piece; false: one of them allows everything.
func (f *flattener) elements(l *level, view int) bool {
	f.parts = f.parts[:0]
	for _, s := range f.active {
		if f.levels[s.level].order != l.order || s.effect != EffectAllow || s.views>>view&1 == 0 {
			continue
		}
		for i, p := range s.ports {
			if f.port < -1 || !p.covers(f.proto) || !p.Any && (f.port < int(p.First) || f.port > int(p.Last)) {
				continue
			}
			if p.L7 == nil {
				return false
			}
			f.parts = append(f.parts, l7part{&s.rule, s.sums[i], p.L7})
		}
		f.work += len(s.ports)
	}
	f.work += partWork * len(f.parts)
	return true
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
				for _, p := range s.ports {
					if s.sums != nil && !p.Any && p.covers(proto) { // in force anyway, but it may say more here
						f.events = append(f.events, event{uint32(p.First), true, nil}, event{uint32(p.Last) + 1, false, nil})
					}
				}
				continue
			}
			s.count = 0
			for _, p := range s.ports {
				if p.covers(proto) {
					f.events = append(f.events, event{uint32(p.First), true, s}, event{uint32(p.Last) + 1, false, s})
				}
			}
		}
		f.proto, f.port = proto, -1
		general := f.judge()
		if general != base {
			f.rows = append(f.rows, Row{Proto: proto, AnyPort: true, Verdict: general})
		}
		if f.pieces(proto, general); f.over {
			return
		}
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
			if s := f.events[i].st; s == nil {
				continue
			} else if f.events[i].start {
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
		f.port = int(port)
		v := f.judge()
		if f.over = f.work > f.limit; f.over {
			return
		}
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
