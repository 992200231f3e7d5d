// Package flow observes what happens to packets and explains it: whose they were, what was decided and by which rule.
// It reads the kernel's events, the endpoints table and the policy engine's explanations, keeps the last events in a
// ring and writes them to whoever listens. It never decides about a packet and never slows one down: a reader that
// cannot keep up loses events and is told exactly how many.
package flow

import (
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "porin/api/agent/v1"
	"porin/bpf"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
)

// DefaultSize is how many past events are kept.
const DefaultSize = 4095

// Limits that keep memory bounded however many readers come and however slowly they read.
const (
	maxReaders = 8
	queueSize  = 16384 // per reader and class of event: 160 ms of the 100k events a second that a node can make
)

// Resolver turns the numbers of an event into names. Its methods are called while a reader is served, never while an
// event is taken in.
type Resolver interface {
	EndpointByID(id uint16) (endpoint.Endpoint, bool)
	EndpointByAddr(addr netip.Addr) (endpoint.Endpoint, bool)
	IdentityLabels(id identity.ID) labels.Labels
	NameByAddr(addr netip.Addr) string
	Explain(c policy.Cookie) []policy.RuleRef
	DeviceName(ifindex uint32) string
	NodeName() string
}

// Observer keeps the newest events and serves readers.
//
//	kernel --Handle--> ring (newest size events) --join(last)--> reader
//	                     \--offer--> reader's queues --Monitor--> send
type Observer struct {
	log      *slog.Logger
	resolver Resolver
	clock    func() (wall time.Time, mono uint64)
	uuid     [8]byte // tells this observer's events from those of another run
	queue    int     // most records in each of a reader's queues

	mu      sync.Mutex
	ring    []record
	head    int    // where the next record goes
	seen    uint64 // events taken in since the start, agent events included
	readers []*reader
	counts  Counts
	warned  time.Time // when lost kernel events were last logged
}

// record is one event as it came from the kernel; names are looked up only when somebody reads it.
type record struct {
	seq   uint64
	event bpf.Event
	agent *agentv1.AgentEvent // an agent event; then event is empty
}

// Counts are totals since the start.
type Counts struct {
	Seen         uint64          // events taken in
	LostKernel   uint64          // events for which the kernel's ring had no room
	LostReaders  uint64          // events that readers were too slow for
	FlowsByEvent map[Kind]uint64 // flows by type and action of the event
}

// Kind is what flows are counted by.
type Kind struct{ Type, Action uint8 }

// New returns an observer that keeps size past events; 0 means DefaultSize.
func New(log *slog.Logger, resolver Resolver, size int) *Observer {
	if size <= 0 {
		size = DefaultSize
	}
	o := &Observer{
		log: log, resolver: resolver, clock: systemClock, queue: queueSize,
		ring:   make([]record, size),
		counts: Counts{FlowsByEvent: make(map[Kind]uint64)},
	}
	wall, mono := o.clock()
	for i := range o.uuid {
		o.uuid[i] = byte((uint64(wall.UnixNano()) ^ mono<<20) >> (8 * i))
	}
	return o
}

// systemClock reads both clocks: events carry the monotonic one, people read the other.
func systemClock() (time.Time, uint64) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return time.Now(), 0
	}
	return time.Now(), uint64(ts.Nano())
}

// Handle takes in an event. It copies it, allocates nothing and never waits for a reader.
func (o *Observer) Handle(ev *bpf.Event) {
	o.mu.Lock()
	rec := o.next()
	rec.event, rec.agent = *ev, nil
	o.counts.FlowsByEvent[Kind{ev.Type, ev.Action}]++
	for _, r := range o.readers {
		o.offer(r, rec)
	}
	o.mu.Unlock()
}

// Announce takes in something that the agent did, now if ev does not say when.
func (o *Observer) Announce(ev *agentv1.AgentEvent) {
	if ev.GetTime() == nil {
		now, _ := o.clock()
		ev = &agentv1.AgentEvent{Time: timestamppb.New(now), Type: ev.GetType(), Text: ev.GetText()}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	rec := o.next()
	rec.event, rec.agent = bpf.Event{}, ev
	for _, r := range o.readers {
		o.offer(r, rec)
	}
}

// Lost says that the kernel had no room for n events. Every reader is told, since nobody knows what they were.
func (o *Observer) Lost(n uint64) {
	if n == 0 {
		return
	}
	o.mu.Lock()
	o.counts.LostKernel += n
	for _, r := range o.readers {
		r.lost += n
		r.notify()
	}
	now, _ := o.clock()
	warn := now.Sub(o.warned) >= time.Minute
	if warn {
		o.warned = now
	}
	total := o.counts.LostKernel
	o.mu.Unlock()
	if warn {
		o.log.Warn("the kernel's event ring was full: flow events were lost, packets were not; a larger --events-bytes helps",
			"lost", n, "since start", total)
	}
}

// Counts returns the totals so far.
func (o *Observer) Counts() Counts {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.counts
	c.Seen = o.seen
	c.FlowsByEvent = make(map[Kind]uint64, len(o.counts.FlowsByEvent))
	maps.Copy(c.FlowsByEvent, o.counts.FlowsByEvent)
	return c
}

// next returns the slot for a new record, the oldest one's. The caller holds mu.
func (o *Observer) next() *record {
	rec := &o.ring[o.head]
	if o.head++; o.head == len(o.ring) {
		o.head = 0
	}
	rec.seq = o.seen
	o.seen++
	return rec
}

// newest returns copies of the newest n records that f wants, oldest first. The caller holds mu.
func (o *Observer) newest(n int, f *filter) []record {
	have := min(uint64(len(o.ring)), o.seen)
	var out []record
	for i := uint64(1); i <= have && len(out) < n; i++ {
		rec := &o.ring[(o.head-int(i)+len(o.ring))%len(o.ring)]
		if f.match(rec) {
			out = append(out, *rec)
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}
