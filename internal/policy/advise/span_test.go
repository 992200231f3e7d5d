package advise

import (
	"fmt"
	"slices"
	"testing"

	"porin/internal/verdict"
)

// holds tells whether a span covers the port, given all spans that might.
func holds(spans []Span, p Port) bool {
	named := slices.Contains(protocols(), p.Proto)
	return slices.ContainsFunc(spans, func(s Span) bool {
		return s.Other && !named || !s.Other && s.Proto == p.Proto && s.First <= p.Number && p.Number <= s.Last
	})
}

func morePorts(g gen) []Port {
	out := append(somePorts(), Port{47, 0}, Port{6, 0}, Port{6, 65535}, Port{17, 65535}, Port{6, 7999}, Port{6, 79}, Port{6, 81})
	for range 5 {
		out = append(out, Port{pick[uint8](g, 6, 17, 132), uint16(g.IntN(65536))})
	}
	return out
}

// TestDiffIsDecideTwice: a port is in a change exactly when the two engines decide differently about it.
func TestDiffIsDecideTwice(t *testing.T) {
	g := seeded(t)
	seen := map[string]int{}
	for range 60 {
		a, b := g.policies(), g.policies()
		before, after := world(t, people, a), world(t, people, b)
		list, err := before.Diff(after)
		if err != nil {
			t.Fatal(err)
		}
		known := before.Known()
		for range 150 {
			from, to, p := pick(g, known...), pick(g, known...), pick(g, morePorts(g)...)
			if from.Name == to.Name || from.Kind != Workload && to.Kind != Workload {
				continue
			}
			x, y := before.Ask(from, to, p).Word(), after.Ask(from, to, p).Word()
			var said []string
			for _, c := range list {
				if c.From == from.Name && c.To == to.Name && holds(c.Spans, p) {
					said = append(said, c.Old+" "+c.New)
				}
			}
			var want []string
			if x != y {
				want = []string{x + " " + y}
			}
			if !slices.Equal(said, want) {
				t.Fatalf("%s -> %s %s: diff says %v, the engines %v\nold:%s\nnew:%s", from.Name, to.Name, p, said, want, a, b)
			}
			seen[fmt.Sprint(want)]++
		}
	}
	for _, what := range []string{"[]", "[allow deny]", "[deny allow]"} {
		if seen[what] < 100 {
			t.Errorf("%s was seen only %d times", what, seen[what])
		}
	}
}

// TestReachIsDecide: a port is reached exactly when the engine does not deny it.
func TestReachIsDecide(t *testing.T) {
	g := seeded(t)
	yes, no := 0, 0
	for range 60 {
		text := g.policies()
		w := world(t, people, text)
		known := w.Known()
		end, out := pick(g, w.Workloads()...), g.IntN(2) == 0
		list, err := w.Reach(end, out, known)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			peer, p := pick(g, known...), pick(g, morePorts(g)...)
			if peer.Name == end.Name {
				continue
			}
			from, to := peer, end
			if out {
				from, to = end, peer
			}
			i := slices.IndexFunc(list, func(r Reached) bool { return r.From == from.Name && r.To == to.Name })
			got := i >= 0 && holds(list[i].Spans, p)
			if want := w.Ask(from, to, p).Action != verdict.Deny; got != want {
				t.Fatalf("%s -> %s %s: reach says %t, the engine %t\n%s", from.Name, to.Name, p, got, want, text)
			}
			if got {
				yes++
			} else {
				no++
			}
		}
	}
	if yes < 200 || no < 200 {
		t.Errorf("%d reached, %d not: does the generator still make both?", yes, no)
	}
}

func TestSpanNames(t *testing.T) {
	w := world(t, people, "")
	list, err := w.Reach(w.Workloads()[0], false, w.Known())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if got := SpanNames(r.Spans); got != "everything" {
			t.Errorf("without policies: %s", got)
		}
	}
	for want, s := range map[string]Span{"80/TCP": {Proto: 6, First: 80, Last: 80}, "1-2/UDP": {Proto: 17, First: 1, Last: 2}, "TCP": {Proto: 6, Last: 65535}, "other protocols": {Proto: 255, Other: true, Last: 65535}} {
		if got := SpanNames([]Span{s}); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
