package flow

import (
	"context"
	"fmt"
	"math"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "porin/api/agent/v1"
)

// reader is one listener with its own two queues, so that a flood of traces can neither push out a drop or a policy
// verdict nor hold up the other readers. Its fields are protected by the observer's mu, except wake.
type reader struct {
	filter *filter
	urgent queue // drops, policy verdicts, agent events
	traces queue
	lost   uint64        // since the last message
	wake   chan struct{} // holds a token when there is something to take
}

// queue is a ring of records that grows with what waits in it, up to most.
type queue struct {
	buf   []record
	first int
	n     int
	most  int
}

const firstRoom = 64 // records for which a queue has room at first

func (q *queue) push(rec *record) bool {
	if q.n == q.most {
		return false
	}
	if q.n == len(q.buf) {
		buf := make([]record, min(q.most, max(firstRoom, 2*len(q.buf))))
		n := copy(buf, q.buf[q.first:])
		copy(buf[n:], q.buf[:q.first])
		q.buf, q.first = buf, 0
	}
	q.buf[(q.first+q.n)%len(q.buf)] = *rec
	q.n++
	return true
}

func (q *queue) pop() *record {
	rec := &q.buf[q.first]
	q.first = (q.first + 1) % len(q.buf)
	q.n--
	return rec
}

func (r *reader) notify() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// offer hands rec to r if r wants it, and counts it as lost if r has no room. The caller holds mu.
func (o *Observer) offer(r *reader, rec *record) {
	if !r.filter.match(rec) {
		return
	}
	q := &r.urgent
	if classOf(rec) == classTrace {
		q = &r.traces
	}
	if !q.push(rec) {
		r.lost++
		o.counts.LostReaders++
	}
	r.notify()
}

// join registers a reader and returns the newest records that it asked for. Both happen at once: no event is missed
// and none comes twice.
func (o *Observer) join(f *filter, last uint32) (*reader, []record, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.readers) >= maxReaders {
		return nil, nil, status.Error(codes.ResourceExhausted, fmt.Sprintf("monitor: %d monitors are running already, which is the most; end one", maxReaders))
	}
	r := &reader{
		filter: f, wake: make(chan struct{}, 1),
		urgent: queue{most: o.queue}, traces: queue{most: o.queue},
	}
	o.readers = append(o.readers, r)
	return r, o.newest(int(min(last, math.MaxInt32)), f), nil
}

func (o *Observer) leave(r *reader) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.readers = slices.DeleteFunc(o.readers, func(x *reader) bool { return x == r })
}

// take moves what waits for r to batch, in the order of the events, and returns how many were lost before it.
func (o *Observer) take(r *reader, batch []record) ([]record, uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	lost := r.lost
	r.lost = 0
	for len(batch) < cap(batch) && r.urgent.n+r.traces.n > 0 {
		q := &r.traces
		if r.traces.n == 0 || r.urgent.n > 0 && r.urgent.buf[r.urgent.first].seq < r.traces.buf[r.traces.first].seq {
			q = &r.urgent
		}
		batch = append(batch, *q.pop())
	}
	return batch, lost
}

// Monitor sends the flows of the past that req asks for and then, unless the past is all it asks for, every new one
// until ctx ends or send fails. A gap is told before the flow that follows it: sent and lost together are all that
// happened.
func (o *Observer) Monitor(ctx context.Context, req *agentv1.MonitorRequest, send func(*agentv1.MonitorResponse) error) error {
	f, err := newFilter(req)
	if err != nil {
		return err
	}
	r, past, err := o.join(f, req.GetLast())
	if err != nil {
		return err
	}
	defer o.leave(r)
	t := newTeller(o)
	for i := range past {
		if err := send(t.response(&past[i], f.snap)); err != nil {
			return err
		}
	}
	if req.GetPastOnly() {
		return nil
	}
	batch := make([]record, 0, 64)
	for {
		var lost uint64
		batch, lost = o.take(r, batch[:0])
		if lost > 0 {
			if err := send(&agentv1.MonitorResponse{Event: &agentv1.MonitorResponse_Lost{Lost: lost}}); err != nil {
				return err
			}
		}
		for i := range batch {
			if err := send(t.response(&batch[i], f.snap)); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if len(batch) > 0 || lost > 0 {
			continue
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// response turns a record into a message.
func (t *teller) response(rec *record, snap bool) *agentv1.MonitorResponse {
	if rec.agent != nil {
		return &agentv1.MonitorResponse{Event: &agentv1.MonitorResponse_Agent{Agent: rec.agent}}
	}
	return &agentv1.MonitorResponse{Event: &agentv1.MonitorResponse_Flow{Flow: t.flow(rec, snap)}}
}
