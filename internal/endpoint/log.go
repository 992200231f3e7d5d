package endpoint

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// LogEntry is one step of an endpoint's life.
type LogEntry struct {
	Time    time.Time
	Phase   Phase
	Message string
}

const logSize = 64

// step tells in a few words what ep's new row means, from the phase that it was in before.
func step(was Phase, ep Endpoint) string {
	switch {
	case ep.Message != "":
		return ep.Message
	case ep.Phase == Creating && was == WaitingForIdentity:
		return fmt.Sprintf("has identity %s; its device %s is made", ep.Identity, ep.Device)
	case ep.Phase == Creating:
		return "has addresses " + addresses(ep)
	case ep.Phase == WaitingForIdentity:
		return "asks for the identity of " + ep.Security.String()
	case ep.Phase == Ready:
		return fmt.Sprintf("identity %s, policy revision %d is in force", ep.Identity, ep.Revision)
	case ep.Phase == Restoring:
		return "was there before the agent started; is compared with the kernel"
	case ep.Phase == Disconnecting:
		return "device, addresses and identity are given back"
	}
	return ""
}

func addresses(ep Endpoint) string {
	var out []string
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if a.IsValid() {
			out = append(out, a.String())
		}
	}
	return strings.Join(out, ", ")
}

func (n *note) add(l LogEntry) {
	if len(n.log) == logSize {
		n.log = append(n.log[:0:0], n.log[1:]...)
	}
	n.log = append(n.log, l)
}

// Log returns the last steps of an endpoint's life, oldest first.
func (e *Endpoints) Log(id uint16) []LogEntry {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := e.notes[id]; n != nil {
		return slices.Clone(n.log)
	}
	return nil
}

// alarm raises the alarm of a kind, or ends it when text is empty.
func (e *Endpoints) alarm(kind, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if text == "" {
		delete(e.alarms, kind)
	} else {
		e.alarms[kind] = text
	}
}

// Alarms returns what a person must see: endpoints that are denied because something failed, state that is not on
// disk, kernel writes that are owed.
func (e *Endpoints) Alarms() []string {
	e.mu.Lock()
	out := slices.Collect(maps.Values(e.alarms))
	for _, n := range e.notes {
		if n.unsaved {
			out = append(out, fmt.Sprintf("state file of %s is out of date: writing it is tried until it works", n.device))
		}
	}
	e.mu.Unlock()
	for _, ep := range e.rows.List() {
		if ep.Phase == NotReady {
			out = append(out, fmt.Sprintf("endpoint %d (%s) is denied all traffic: %s", ep.ID, ep.Name(), ep.Message))
		}
	}
	slices.Sort(out)
	return out
}

// keyed is a lock per name. Unlike a mutex it gives up when the context ends.
type keyed struct {
	mu    sync.Mutex
	locks map[string]*keyedLock // mu
}

type keyedLock struct {
	ch   chan struct{}
	want int
}

// lock waits for name and returns what unlocks it.
func (k *keyed) lock(ctx context.Context, name string) (unlock func(), err error) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	l := k.locks[name]
	if l == nil {
		l = &keyedLock{ch: make(chan struct{}, 1)}
		k.locks[name] = l
	}
	l.want++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		if l.want--; l.want == 0 {
			delete(k.locks, name)
		}
		k.mu.Unlock()
	}
	select {
	case l.ch <- struct{}{}:
		return func() { <-l.ch; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("wait for an earlier request about %s: %w", name, context.Cause(ctx))
	}
}
