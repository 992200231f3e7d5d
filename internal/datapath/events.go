package datapath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"porin/bpf"
)

// How often the ring is looked into, since its writer wakes nobody (event.h): often enough for people, and when the last
// look found an eighth of the ring full, often enough for a flood.
const (
	eventsEvery = 20 * time.Millisecond
	eventsFlood = time.Millisecond
)

// Events calls f with every event of the ring until ctx ends or the datapath is closed. The event is valid during the call
// only; nothing is allocated per event. One reader at a time.
func (d *Datapath) Events(ctx context.Context, f func(*bpf.Event)) error {
	// Not a deadline of ctx's end: setting one waits for the lock that a waiting reader holds.
	stop := context.AfterFunc(ctx, func() { _ = d.reader.Flush() })
	defer stop()
	var rec ringbuf.Record
	var ev bpf.Event
	d.reader.SetDeadline(time.Now().Add(eventsEvery))
	read := 0 // bytes since the last look
	for ctx.Err() == nil {
		if err := d.reader.ReadInto(&rec); err != nil {
			if errors.Is(err, ringbuf.ErrClosed) || ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, os.ErrDeadlineExceeded) { // everything in the ring has been read
				next := eventsEvery
				if read > d.reader.BufferSize()/8 {
					next = eventsFlood
				}
				read = 0
				d.reader.SetDeadline(time.Now().Add(next))
				continue
			}
			if errors.Is(err, ringbuf.ErrFlushed) { // of an earlier call's end
				continue
			}
			return fmt.Errorf("read ring of events: %w", err)
		}
		read += len(rec.RawSample)
		if !ev.Decode(rec.RawSample) {
			d.lost.Add(1)
			continue
		}
		f(&ev)
	}
	return nil
}

// Lost counts events that nobody will see: the ring was full, or a record was malformed.
func (d *Datapath) Lost() uint64 {
	sum := d.lost.Load()
	var perCPU []uint64
	if err := d.maps[mapLost].Lookup(uint32(0), &perCPU); err == nil {
		for _, n := range perCPU {
			sum += n
		}
	}
	return sum
}

// Counters returns packets and bytes by {reason, direction}, those that are not zero. Reason 0 is forwarded.
func (d *Datapath) Counters() map[[2]uint8]bpf.Counter {
	out := map[[2]uint8]bpf.Counter{}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return out
	}
	const batch = 1024 // all of it in one call
	keys, values := make([]uint32, batch), make([]bpf.Counter, batch*cpus)
	var cursor ebpf.MapBatchCursor
	n, err := d.maps[mapCounters].BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return out
	}
	for i, k := range keys[:n] {
		var sum bpf.Counter
		for _, c := range values[i*cpus : (i+1)*cpus] {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
		if sum.Packets > 0 {
			out[[2]uint8{uint8(k / 4), uint8(k % 4)}] = sum
		}
	}
	return out
}

// MapCapacity returns how many rows each map can take.
func (d *Datapath) MapCapacity() map[string]uint32 {
	out := make(map[string]uint32, len(d.maps))
	for name, m := range d.maps {
		out[name] = m.MaxEntries()
	}
	return out
}

// MapPressure returns how full each map is, 0 to 1. Flows are counted by the sweep.
func (d *Datapath) MapPressure() map[string]float64 {
	rows := map[string]int{
		mapConntrack: int(d.flows.conntrack.Load()), mapNat: int(d.flows.nat.Load()),
	}
	d.policy.mu.Lock()
	for _, s := range d.policy.subjects {
		rows[mapPolicyPeers] += len(s.peers) + 1
	}
	for _, t := range d.policy.tables {
		rows[mapPolicyPorts] += len(t.rows.ports)
		rows[mapPolicyRanges] += len(t.rows.ranges)
	}
	d.policy.mu.Unlock()
	d.prefixes.mu.Lock()
	rows[mapPrefixes] = len(d.prefixes.written)
	d.prefixes.mu.Unlock()
	d.mu.Lock()
	rows[mapEndpoints] = len(d.attached)
	rows[mapPeers] = len(d.hosts)
	for _, at := range d.attached {
		for _, a := range []bpf.Addr{at.row.V4, at.row.V6} {
			if a != (bpf.Addr{}) {
				rows[mapPeers]++
			}
		}
	}
	d.mu.Unlock()
	out := make(map[string]float64, len(rows))
	for name, n := range rows {
		out[name] = float64(n) / float64(d.maps[name].MaxEntries())
	}
	return out
}
