package flow

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"testing"

	agentv1 "porin/api/agent/v1"
	flowpb "porin/api/flow"
	"porin/bpf"
)

// listen runs a monitor that collects what it is sent, and returns a function that waits until n messages have come.
func listen(t *testing.T, o *Observer, req *agentv1.MonitorRequest) (wait func(n int) []*agentv1.MonitorResponse) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan *agentv1.MonitorResponse, 10000)
	done := make(chan error, 1)
	go func() {
		done <- o.Monitor(ctx, req, func(m *agentv1.MonitorResponse) error { got <- m; return nil })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("monitor ended with %v", err)
		}
		if len(o.readers) != 0 {
			t.Errorf("%d readers are left", len(o.readers))
		}
	})
	joined(t, o, 1)
	return func(n int) (out []*agentv1.MonitorResponse) {
		t.Helper()
		for len(out) < n {
			select {
			case m := <-got:
				out = append(out, m)
			case <-t.Context().Done():
				t.Fatalf("%d messages came, want %d", len(out), n)
			}
		}
		return out
	}
}

// joined waits until n readers are registered.
func joined(t testing.TB, o *Observer, n int) {
	t.Helper()
	for t.Context().Err() == nil {
		o.mu.Lock()
		have := len(o.readers)
		o.mu.Unlock()
		if have == n {
			return
		}
		runtime.Gosched()
	}
	t.Fatalf("%d readers never came", n)
}

func typed(typ uint8, src, dst uint16) *bpf.Event {
	return story("10.0.0.6", "10.0.0.7", func(ev *bpf.Event) { ev.Type, ev.SrcEP, ev.DstEP = typ, src, dst })
}

func TestFilters(t *testing.T) {
	for _, c := range []struct {
		name string
		req  *agentv1.MonitorRequest
		want string // which of the events come
	}{
		{"all", &agentv1.MonitorRequest{}, "abcdef"},
		{"drops", &agentv1.MonitorRequest{Types: []string{"drop"}}, "ad"},
		{"two types", &agentv1.MonitorRequest{Types: []string{"drop", "policy-verdict"}}, "acd"},
		{"agent", &agentv1.MonitorRequest{Types: []string{"agent"}}, "f"},
		{"capture", &agentv1.MonitorRequest{Types: []string{"capture"}}, "abcde"},
		{"from", &agentv1.MonitorRequest{From: []uint32{11}}, "ae"},
		{"to", &agentv1.MonitorRequest{To: []uint32{11, 12}}, "bde"},
		{"from and to", &agentv1.MonitorRequest{From: []uint32{11}, To: []uint32{12}}, "e"},
		{"related", &agentv1.MonitorRequest{RelatedTo: []uint32{12}}, "bcde"},
		{"from and type", &agentv1.MonitorRequest{From: []uint32{11}, Types: []string{"trace"}}, "e"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := observer(t, starwars(t))
			events := []*bpf.Event{typed(1, 11, 13), typed(4, 13, 12), typed(5, 12, 13), typed(1, 13, 12), typed(4, 11, 12)}
			for i := range events {
				events[i].Len = uint32('a' + i)
			}
			read := func(m *agentv1.MonitorResponse) string {
				if m.GetAgent() != nil {
					return "f"
				}
				return string(rune(m.GetFlow().GetPorinLength()))
			}
			play := func() {
				for _, ev := range events {
					o.Handle(ev)
				}
				o.Announce(&agentv1.AgentEvent{Type: "agent-started", Text: "f"})
			}
			play()
			req := c.req
			req.Last = 100
			wait := listen(t, o, req)
			play()
			var got strings.Builder
			for _, m := range wait(2 * len(c.want)) {
				got.WriteString(read(m))
			}
			if got.String() != c.want+c.want {
				t.Errorf("replayed and live = %s, want %s twice", got.String(), c.want)
			}
		})
	}
}

// An announcement without a time is of now.
func TestAnnounceNow(t *testing.T) {
	o := observer(t, starwars(t))
	o.Announce(&agentv1.AgentEvent{Type: "agent-started", Text: "it serves"})
	var got []string
	err := o.Monitor(t.Context(), &agentv1.MonitorRequest{Last: 1, PastOnly: true}, func(m *agentv1.MonitorResponse) error {
		got = append(got, m.GetAgent().GetTime().AsTime().Format("2006-01-02 15:04")+" "+m.GetAgent().GetType())
		return nil
	})
	if err != nil || len(got) != 1 || got[0] != "2026-11-21 10:00 agent-started" {
		t.Errorf("announced %q, %v", got, err)
	}
}

func TestBadRequests(t *testing.T) {
	for _, c := range []struct {
		req  *agentv1.MonitorRequest
		want string
	}{
		{&agentv1.MonitorRequest{Types: []string{"l9"}}, `monitor type "l9": no such type; the types are agent, capture, drop, policy-verdict, trace`},
		{&agentv1.MonitorRequest{From: []uint32{70000}}, "monitor from 70000: not an endpoint id"},
		{&agentv1.MonitorRequest{RelatedTo: []uint32{0}}, "monitor related-to 0: not an endpoint id"},
	} {
		err := observer(t, starwars(t)).Monitor(t.Context(), c.req, func(*agentv1.MonitorResponse) error { return nil })
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %s", c.req, err, c.want)
		}
	}
}

func TestLastIsTheNewestOfTheRing(t *testing.T) {
	o := New(slog.New(slog.NewTextHandler(io.Discard, nil)), starwars(t), 8)
	for i := range 20 {
		ev := typed(4, 11, 12)
		ev.Len = uint32(i)
		o.Handle(ev)
	}
	for _, c := range []struct{ last, first, n uint32 }{{3, 17, 3}, {8, 12, 8}, {1000, 12, 8}} {
		var got []uint32
		err := o.Monitor(t.Context(), &agentv1.MonitorRequest{Last: c.last, PastOnly: true}, func(m *agentv1.MonitorResponse) error {
			got = append(got, m.GetFlow().GetPorinLength())
			return nil
		})
		if err != nil || len(got) != int(c.n) || got[0] != c.first || got[c.n-1] != 19 {
			t.Errorf("last %d = %v, %v; want %d flows from %d to 19", c.last, got, err, c.n, c.first)
		}
	}
}

// A reader that stops reading loses traces, keeps drops and verdicts, and afterwards knows exactly how many it lost.
func TestSlowReader(t *testing.T) {
	o := observer(t, starwars(t))
	o.queue = 100
	release := make(chan struct{})
	var flows, traces, drops, lost uint64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	const sent = 1 + 5000 + 90 + 7
	go func() {
		done <- o.Monitor(ctx, &agentv1.MonitorRequest{}, func(m *agentv1.MonitorResponse) error {
			<-release
			lost += m.GetLost()
			if f := m.GetFlow(); f != nil {
				flows++
				switch f.GetEventType().GetType() {
				case eventTrace:
					traces++
				case eventDrop, eventPolicyVerdict:
					drops++
				}
			}
			if flows+lost == sent {
				cancel()
			}
			return nil
		})
	}()
	joined(t, o, 1)
	o.Handle(typed(4, 11, 12)) // the reader takes this one and hangs
	for i := range 5000 {
		o.Handle(typed(4, 11, 12))
		if i%500 == 0 {
			for range 9 {
				o.Handle(typed(1, 11, 12))
			}
		}
	}
	o.Lost(7)
	close(release)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("monitor ended with %v", err)
	}
	if flows+lost != sent {
		t.Errorf("received %d + lost %d = %d, sent %d", flows, lost, flows+lost, sent)
	}
	if drops != 90 {
		t.Errorf("%d of 90 drops came through the flood of traces", drops)
	}
	if lost < 4800 {
		t.Errorf("lost only %d: the queue is not bounded", lost)
	}
	if c := o.Counts(); c.LostReaders+7 != lost || c.LostKernel != 7 || c.Seen != sent-7 {
		t.Errorf("counts = %+v, want lost %d by readers, 7 by the kernel, %d seen", c, lost-7, sent-7)
	}
}

// Two readers: the one that hangs does not hold up the other, nor the kernel's side.
func TestReadersAreIndependent(t *testing.T) {
	o := observer(t, starwars(t))
	wait := listen(t, o, &agentv1.MonitorRequest{Types: []string{"drop"}})
	ctx, cancel := context.WithCancel(t.Context())
	hung := make(chan error, 1)
	go func() {
		hung <- o.Monitor(ctx, &agentv1.MonitorRequest{}, func(*agentv1.MonitorResponse) error { <-ctx.Done(); return ctx.Err() })
	}()
	joined(t, o, 2)
	for range 100 {
		o.Handle(typed(1, 11, 12))
	}
	wait(100)
	cancel()
	if err := <-hung; !errors.Is(err, context.Canceled) {
		t.Errorf("hung reader ended with %v", err)
	}
	joined(t, o, 1)
}

func TestTooManyReaders(t *testing.T) {
	o := observer(t, starwars(t))
	f, err := newFilter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for range maxReaders {
		if _, _, err := o.join(f, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := o.join(f, 0); err == nil || !strings.Contains(err.Error(), "monitors are running already") {
		t.Errorf("reader %d: %v", maxReaders+1, err)
	}
}

func TestHandleAllocatesNothing(t *testing.T) {
	o := observer(t, starwars(t))
	f, err := newFilter(&agentv1.MonitorRequest{RelatedTo: []uint32{11}})
	if err != nil {
		t.Fatal(err)
	}
	ev := typed(4, 11, 12)
	o.Handle(ev)
	if n := testing.AllocsPerRun(1000, func() { o.Handle(ev) }); n != 0 {
		t.Errorf("%v allocations per event without a reader", n)
	}
	if _, _, err := o.join(f, 0); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(1000, func() { o.Handle(ev) }); n != 0 {
		t.Errorf("%v allocations per event with a reader that hangs", n)
	}
}

func BenchmarkHandle(b *testing.B) {
	for _, readers := range []int{0, 1} {
		b.Run(map[int]string{0: "alone", 1: "slow-reader"}[readers], func(b *testing.B) {
			o := observer(b, starwars(b))
			for range readers {
				f, err := newFilter(nil)
				if err != nil {
					b.Fatal(err)
				}
				if _, _, err := o.join(f, 0); err != nil {
					b.Fatal(err)
				}
			}
			ev := typed(4, 11, 12)
			b.ReportAllocs()
			for b.Loop() {
				o.Handle(ev)
			}
		})
	}
}

func BenchmarkFlow(b *testing.B) {
	o := observer(b, starwars(b))
	tell := newTeller(o)
	rec := &record{event: *story("10.0.0.6", "10.0.0.7", nil)}
	var f *flowpb.Flow
	b.ReportAllocs()
	for b.Loop() {
		f = tell.flow(rec, false)
	}
	_ = Line(f, false)
}
