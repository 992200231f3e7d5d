package flow

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "porin/api/agent/v1"
	"porin/bpf"
)

// Types of messages, as users name them. Capture means every flow, with the packet's first bytes.
const (
	TypeDrop          = "drop"
	TypeTrace         = "trace"
	TypePolicyVerdict = "policy-verdict"
	TypeCapture       = "capture"
	TypeAgent         = "agent"
)

// Types lists the message types that a monitor can be asked for.
func Types() []string {
	return []string{TypeAgent, TypeCapture, TypeDrop, TypePolicyVerdict, TypeTrace}
}

// Numbers of Hubble's monitor messages, as in enum event_type of bpf/include/verdict.h.
const (
	eventDrop          = 1
	eventTrace         = 4
	eventPolicyVerdict = 5
)

// class is a bit per kind of message.
type class uint8

const (
	classDrop class = 1 << iota
	classTrace
	classPolicyVerdict
	classAgent
	classFlows = classDrop | classTrace | classPolicyVerdict
)

// filter says what a reader wants. The lists are of endpoint ids; within one list any matches, all lists must.
type filter struct {
	classes           class
	from, to, related []uint16
	snap              bool
}

// newFilter reads a request; it refuses what it does not know instead of showing something else.
func newFilter(req *agentv1.MonitorRequest) (*filter, error) {
	f := &filter{snap: req.GetSnap()}
	for _, t := range req.GetTypes() {
		switch t {
		case TypeDrop:
			f.classes |= classDrop
		case TypeTrace:
			f.classes |= classTrace
		case TypePolicyVerdict:
			f.classes |= classPolicyVerdict
		case TypeCapture:
			f.classes |= classFlows
			f.snap = true
		case TypeAgent:
			f.classes |= classAgent
		default:
			return nil, status.Error(codes.InvalidArgument, fmt.Sprintf("monitor type %q: no such type; the types are %s", t, strings.Join(Types(), ", ")))
		}
	}
	if f.classes == 0 {
		f.classes = classFlows | classAgent
	}
	for _, l := range []struct {
		name string
		in   []uint32
		out  *[]uint16
	}{{"from", req.GetFrom(), &f.from}, {"to", req.GetTo(), &f.to}, {"related-to", req.GetRelatedTo(), &f.related}} {
		for _, id := range l.in {
			if id == 0 || id > math.MaxUint16 {
				return nil, status.Error(codes.InvalidArgument, fmt.Sprintf("monitor %s %d: not an endpoint id; ids are 1 to 65535, see 'porin endpoint list'", l.name, id))
			}
			*l.out = append(*l.out, uint16(id))
		}
	}
	return f, nil
}

// classOf returns the class of a record.
func classOf(rec *record) class {
	switch {
	case rec.agent != nil:
		return classAgent
	case rec.event.Type == eventDrop:
		return classDrop
	case rec.event.Type == eventPolicyVerdict:
		return classPolicyVerdict
	}
	return classTrace
}

// match tells whether the reader wants rec. It allocates nothing: it runs for each event and reader.
func (f *filter) match(rec *record) bool {
	if f.classes&classOf(rec) == 0 {
		return false
	}
	ev := &rec.event
	return f.matchIDs(ev)
}

func (f *filter) matchIDs(ev *bpf.Event) bool {
	if len(f.from) > 0 && !slices.Contains(f.from, ev.SrcEP) {
		return false
	}
	if len(f.to) > 0 && !slices.Contains(f.to, ev.DstEP) {
		return false
	}
	return len(f.related) == 0 || slices.Contains(f.related, ev.SrcEP) || slices.Contains(f.related, ev.DstEP)
}
