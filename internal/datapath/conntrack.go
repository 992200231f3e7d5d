package datapath

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"porin/bpf"
)

// flowStats is what the last sweep found.
type flowStats struct {
	conntrack, nat           atomic.Int64 // live rows
	expired, released, sweep atomic.Uint64
}

// Times after which rows without news are swept although their own expiry says otherwise.
const natSettle = 10 * time.Second // the programs write a translation before its flow; younger rows are left alone

// monotonic is the clock of the programs, bpf_ktime_get_ns: it never jumps with the wall clock.
func monotonic() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // cannot happen on Linux; at 0 nothing is ever expired
	}
	return uint64(ts.Nano())
}

// sweep removes flows that expired, with the source ports they held, and translations whose flow is gone.
func (d *Datapath) sweep(now uint64) error {
	var dead []bpf.CTKey
	live := int64(0)
	if err := d.conntrack.each(func(keys []bpf.CTKey, values []bpf.CTEntry) error {
		for i, k := range keys {
			if values[i].Expires < now {
				dead = append(dead, k)
			} else {
				live++
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for _, k := range dead {
		// asked again: a packet may have revived it since the batch was read
		e, ok, err := d.conntrack.get(k)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if e.Expires >= now {
			live++
			continue
		}
		if err := d.conntrack.del(k); err != nil {
			return err
		}
		d.flows.expired.Add(1)
		if e.Flags&bpf.CTNat != 0 {
			if err := d.releaseNat(natKeyOf(k, e)); err != nil {
				return err
			}
		}
	}
	d.flows.conntrack.Store(live)
	d.flows.sweep.Add(1)
	return d.sweepNat(now)
}

// natKeyOf returns the tuple of a flow as its initiator sends it.
func natKeyOf(k bpf.CTKey, e bpf.CTEntry) bpf.NatKey {
	n := bpf.NatKey{Src: k.Lo, Dst: k.Hi, Sport: k.LoPort, Dport: k.HiPort, Proto: k.Proto}
	if e.Initiator == 1 {
		n.Src, n.Dst, n.Sport, n.Dport = k.Hi, k.Lo, k.HiPort, k.LoPort
	}
	return n
}

// ctKeyOf returns the conntrack key of a tuple that src began, in the canonical order of struct ct_key.
func ctKeyOf(n bpf.NatKey) bpf.CTKey {
	k := bpf.CTKey{Lo: n.Src, Hi: n.Dst, LoPort: n.Sport, HiPort: n.Dport, Proto: n.Proto}
	c := bytes.Compare(n.Src[:], n.Dst[:])
	if c == 0 {
		c = bytes.Compare(n.Sport[:], n.Dport[:])
	}
	if c > 0 {
		k.Lo, k.Hi, k.LoPort, k.HiPort = k.Hi, k.Lo, k.HiPort, k.LoPort
		if n.Proto == unix.IPPROTO_ICMP || n.Proto == unix.IPPROTO_ICMPV6 {
			k.Role = 1 // hi asks
		}
	}
	return k
}

// releaseNat removes both rows of the translation of a tuple; its source port is free again.
func (d *Datapath) releaseNat(out bpf.NatKey) error {
	e, ok, err := d.nat.get(out)
	if err != nil || !ok {
		return err
	}
	back := backOf(out, e)
	// the answer's row first: while it stands alone it would lead answers of a later flow to this pod
	if orig, ok, err := d.nat.get(back); err != nil {
		return err
	} else if ok && orig.Addr == out.Src && orig.Port == out.Sport {
		if err := d.nat.del(back); err != nil {
			return err
		}
	}
	d.flows.released.Add(1)
	return d.nat.del(out)
}

// backOf returns the key under which the answers of a translated tuple arrive.
func backOf(out bpf.NatKey, e bpf.NatEntry) bpf.NatKey {
	back := bpf.NatKey{Src: out.Dst, Dst: e.Addr, Sport: out.Dport, Dport: e.Port, Proto: out.Proto, Dir: 1}
	if out.Proto == unix.IPPROTO_ICMP || out.Proto == unix.IPPROTO_ICMPV6 {
		back.Sport = e.Port // the identifier stands in both
	}
	return back
}

// sweepNat releases translations that no live flow uses, and answers' rows whose partner the LRU forgot.
func (d *Datapath) sweepNat(now uint64) error {
	settled := now - min(now, uint64(natSettle))
	var idle []bpf.NatKey
	live := int64(0)
	if err := d.nat.each(func(keys []bpf.NatKey, values []bpf.NatEntry) error {
		for i, k := range keys {
			if values[i].Used < settled {
				idle = append(idle, k)
			}
			live++
		}
		return nil
	}); err != nil {
		return err
	}
	for _, k := range idle {
		e, ok, err := d.nat.get(k)
		if err != nil {
			return err
		}
		if !ok || e.Used >= settled { // gone with its partner, or in use again
			continue
		}
		if k.Dir == 1 {
			if _, ok, err = d.nat.get(outOf(k, e)); err != nil {
				return err
			}
			if ok {
				continue // goes with its partner
			}
			if err := d.nat.del(k); err != nil {
				return err
			}
			live--
			continue
		}
		flow, ok, err := d.conntrack.get(ctKeyOf(k))
		if err != nil {
			return err
		}
		if ok && flow.Expires >= now {
			continue
		}
		if err := d.releaseNat(k); err != nil {
			return err
		}
		live -= 2
	}
	d.flows.nat.Store(max(live, 0))
	return nil
}

// outOf returns the key of the sending direction that belongs to an answers' row.
func outOf(back bpf.NatKey, e bpf.NatEntry) bpf.NatKey {
	out := bpf.NatKey{Src: e.Addr, Dst: back.Src, Sport: e.Port, Dport: back.Sport, Proto: back.Proto}
	if back.Proto == unix.IPPROTO_ICMP || back.Proto == unix.IPPROTO_ICMPV6 {
		out.Dport = e.Port
	}
	return out
}

// FlushMap removes all rows of ct or nat and returns how many there were. Live flows are judged anew.
func (d *Datapath) FlushMap(name string) (uint64, error) {
	switch name {
	case "ct":
		return flush(d.conntrack)
	case "nat":
		return flush(d.nat)
	}
	return 0, fmt.Errorf("flush map %q: only ct and nat can be flushed", name)
}

func flush[K comparable, V any](t table[K, V]) (uint64, error) {
	var keys []K
	if err := t.each(func(ks []K, _ []V) error { keys = append(keys, ks...); return nil }); err != nil {
		return 0, err
	}
	return uint64(len(keys)), t.delAll(keys)
}
