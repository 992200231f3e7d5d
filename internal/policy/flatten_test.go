package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"porin/internal/verdict"
)

// naive judges one packet by reading every statement: tiers in order, priorities in order, deny before unmet demands
// before allow before pass; pass goes on with the next tier, and what isolates comes before the last one.
func naive(sts []*statement, isolated bool, proto uint8, port uint16) (action verdict.Action, explicit bool, by []uint64) {
	fits := func(s *statement) bool {
		if s.ports == nil {
			return true
		}
		for _, p := range s.ports {
			same := p.Proto == proto || p.AnyProto && strings.Contains("6 17 132", fmt.Sprint(proto)) && proto != 1 && proto != 3
			if same && (p.Any || p.First <= port && port <= p.Last) {
				return true
			}
		}
		return false
	}
	orders := map[uint64]bool{}
	for _, s := range sts {
		orders[s.order] = true
	}
	var sorted []uint64
	for o := range orders {
		sorted = append(sorted, o)
	}
	slices.Sort(sorted)
	passed := -1
	for _, o := range sorted {
		if int(o>>56) == passed {
			continue
		}
		if o>>56 == uint64(TierBaseline) && isolated {
			break
		}
		for _, e := range []Effect{EffectDeny, EffectAuth, EffectAllow, EffectPass} {
			var who []uint64
			for _, s := range sts {
				if s.order == o && s.effect == e && fits(s) {
					who = append(who, s.id)
				}
			}
			if len(who) == 0 {
				continue
			}
			if e == EffectPass {
				passed = int(o >> 56)
				break
			}
			slices.Sort(who)
			return map[Effect]verdict.Action{EffectDeny: verdict.Deny, EffectAuth: verdict.Deny, EffectAllow: verdict.Allow}[e], e == EffectDeny, who
		}
	}
	if !isolated {
		return verdict.Allow, false, []uint64{9999}
	}
	return verdict.Deny, false, []uint64{8888}
}

// TestFlatten compares tables with the naive reading, over all tiers, priorities and effects, at every port where
// something can change, and checks the promises that Row makes.
func TestFlatten(t *testing.T) {
	g := seed(t)
	for range 4000 {
		c := cookies{lists: map[Cookie]ruleSet{}, refs: map[uint64]*RuleRef{}}
		isolated := g.chance(60)
		f := flattener{cookies: &c, nothing: PortVerdict{Cookie: c.name(&rule{id: 8888})}, met: [2]bool{true, true}, limit: 1 << 30}
		if f.views[0] = (view{silence: f.nothing, normal: true}); !isolated {
			f.nothing.Cookie = 0
			f.views[0] = view{silence: PortVerdict{Action: verdict.Allow, Cookie: c.name(&rule{id: 9999})}}
		}
		var sts []*statement
		edges := []uint16{0, 1, 65534, 65535}
		for n := range g.IntN(9) {
			s := &statement{
				rule: rule{id: uint64(n) + 1}, effect: pick(g, EffectAllow, EffectAllow, EffectDeny, EffectPass, EffectAuth),
				order: order(pick(g, TierAdmin, TierNormal, TierNormal, TierBaseline), uint32(g.IntN(2)), uint32(g.IntN(2))),
			}
			g.some(4, func() {
				p := Port{Proto: pick[uint8](g, 6, 6, 17, 1)}
				switch g.IntN(5) {
				case 0:
					p.Any = true
				case 1:
					p.Proto, p.AnyProto, p.Any = 0, true, g.chance(30)
				}
				if !p.Any {
					p.First = uint16(g.IntN(12)) * 5461
					p.Last = min(65535-p.First, uint16(pick(g, 0, 0, 1, 2, 5460, 5461, 20000))) + p.First
					if g.chance(20) {
						p.First, p.Last = 65530+uint16(g.IntN(6)), 65535
					}
					edges = append(edges, p.First-1, p.First, p.First+1, p.Last-1, p.Last, p.Last+1)
				}
				s.ports = append(s.ports, p)
			})
			sts = append(sts, s)
		}
		tab := &Table{Rows: slices.Clone(f.table(sts))}
		for _, proto := range []uint8{6, 17, 132, 1, 47} {
			for _, port := range edges {
				action, explicit, by := naive(sts, isolated, proto, port)
				v, ok := tab.Lookup(proto, port)
				if !ok {
					v = f.nothing
				}
				if v.Action != action || v.ExplicitDeny != explicit {
					t.Fatalf("proto %d port %d: %+v %t, want %s\nrows %v\nstatements %s", proto, port, v, ok, action, tab.Rows, show(sts))
				}
				var ids []uint64
				for _, s := range append([]ruleSet{c.lists[v.Cookie]}, c.lists[v.Cookie].more...) {
					ids = append(ids, s.ids...)
				}
				if slices.Sort(ids); !slices.Equal(ids, by) {
					t.Fatalf("proto %d port %d: decided by %v, want %v\nrows %v\nstatements %s", proto, port, ids, by, tab.Rows, show(sts))
				}
			}
		}
		promises(t, tab)
	}
}

func show(sts []*statement) string {
	var b strings.Builder
	for _, s := range sts {
		fmt.Fprintf(&b, "\n  %d tier %d priority %d effect %d %+v", s.id, tierOf(s.order), s.order<<8>>8, s.effect, s.ports)
	}
	return b.String()
}

// promises: rows are sorted, of one kind do not overlap, and none repeats what the next general one says.
func promises(t *testing.T, tab *Table) {
	t.Helper()
	if !slices.IsSortedFunc(tab.Rows, compareRows) {
		t.Fatalf("rows are not sorted: %v", tab.Rows)
	}
	general := map[uint8]PortVerdict{}
	for _, r := range tab.Rows {
		if r.AnyPort {
			general[r.Proto] = r.Verdict
			if r.First != 0 || r.Last != 0 {
				t.Fatalf("any port, but from %d to %d", r.First, r.Last)
			}
		}
	}
	for i := range tab.Rows {
		r := &tab.Rows[i]
		if i > 0 {
			if p := &tab.Rows[i-1]; p.Proto == r.Proto && p.kind() == r.kind() && (r.AnyPort || p.Last >= r.First) {
				t.Fatalf("rows overlap: %v", tab.Rows)
			}
		}
		if r.First > r.Last {
			t.Fatalf("backwards: %v", *r)
		}
		if v, ok := general[r.Proto]; ok && !r.AnyPort && r.kind() == 1 && v == r.Verdict {
			t.Fatalf("%v says what the row for the whole protocol says: %v", *r, tab.Rows)
		}
		if v, ok := general[0]; ok && r.AnyPort && r.Proto != 0 && v == r.Verdict {
			t.Fatalf("%v says what the row for every protocol says: %v", *r, tab.Rows)
		}
	}
}

// TestTableLookup: a table with every kind of row, looked up at the edges.
func TestTableLookup(t *testing.T) {
	v := func(n Cookie) PortVerdict { return PortVerdict{Action: verdict.Allow, Cookie: n} }
	rows := []Row{
		{Proto: 6, First: 80, Last: 80, Verdict: v(1)},
		{Proto: 6, First: 70, Last: 90, Verdict: v(2)},
		{Proto: 6, First: 91, Last: 91, Verdict: v(3)},
		{Proto: 6, First: 100, Last: 65535, Verdict: v(4)},
		{Proto: 17, AnyPort: true, Verdict: v(5)},
		{Proto: 17, First: 0, Last: 0, Verdict: v(6)},
		{AnyPort: true, Verdict: v(7)},
		{Proto: 5, First: 1, Last: 9, Verdict: v(8)},
		{Proto: 255, First: 65535, Last: 65535, Verdict: v(9)},
	}
	slices.SortFunc(rows, compareRows)
	tab := &Table{Rows: rows}
	for _, c := range []struct {
		proto uint8
		port  uint16
		want  Cookie
	}{
		{6, 69, 7},
		{6, 70, 2},
		{6, 79, 2},
		{6, 80, 1},
		{6, 81, 2},
		{6, 90, 2},
		{6, 91, 3},
		{6, 92, 7},
		{6, 99, 7},
		{6, 100, 4},
		{6, 65535, 4},
		{17, 0, 6},
		{17, 1, 5},
		{5, 0, 7},
		{5, 9, 8},
		{5, 10, 7},
		{255, 65535, 9},
		{255, 0, 7},
		{0, 0, 7},
		{1, 8, 7},
	} {
		if got, ok := tab.Lookup(c.proto, c.port); !ok || got.Cookie != c.want {
			t.Errorf("proto %d port %d: row %d %t, want %d", c.proto, c.port, got.Cookie, ok, c.want)
		}
	}
	if _, ok := (&Table{}).Lookup(6, 80); ok {
		t.Error("an empty table has a verdict")
	}
}
