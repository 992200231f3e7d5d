package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	agentv1 "porin/api/agent/v1"
	flowpb "porin/api/flow"
	"porin/internal/flow"
	"porin/internal/lab/probe"
)

// keptFlows is as many past events as an agent keeps: asked for when listening starts, so that it does not matter
// whether the stream stands before the first packet.
const keptFlows = 4095

// flows collects the policy verdicts and drops of all nodes while checks run.
type flows struct {
	mu      sync.Mutex
	by      map[flowKey][]*flowpb.Flow
	changed chan struct{} // closed and replaced when a flow arrives
	broken  error         // why listening ended
}

// flowKey finds the events of a try. The source is compared separately: a node's address is its agent's choice.
type flowKey struct {
	protocol string
	dst      netip.Addr
	dstPort  uint16
	srcPort  uint16
}

// listen starts collecting; it ends with ctx.
func (l *Lab) listen(ctx context.Context) (*flows, error) {
	f := &flows{by: map[flowKey][]*flowpb.Flow{}, changed: make(chan struct{})}
	for _, n := range l.places(kindNode) {
		if !n.Agent.Alive() {
			continue // its packets are judged all the same, but nobody tells
		}
		conn, client, err := dial(n)
		if err != nil {
			return nil, err
		}
		stream, err := client.Monitor(ctx, &agentv1.MonitorRequest{
			Types: []string{flow.TypeDrop, flow.TypePolicyVerdict}, Last: keptFlows,
		})
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("%s: listen to flow events: %w", n.Name, plain(err))
		}
		go func() {
			defer conn.Close()
			for {
				m, err := stream.Recv()
				if err != nil {
					f.end(fmt.Errorf("%s: listen to flow events: %w", n.Name, plain(err)))
					return
				}
				f.add(m.GetFlow())
			}
		}()
	}
	return f, nil
}

func (f *flows) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = err
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *flows) add(fl *flowpb.Flow) {
	k, ok := keyOf(fl)
	if !ok {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.by[k] = append(f.by[k], fl)
	close(f.changed)
	f.changed = make(chan struct{})
}

func keyOf(fl *flowpb.Flow) (flowKey, bool) {
	dst, err := netip.ParseAddr(fl.GetIP().GetDestination())
	if err != nil {
		return flowKey{}, false
	}
	k := flowKey{dst: dst.Unmap()}
	switch p := fl.GetL4().GetProtocol().(type) {
	case *flowpb.Layer4_TCP:
		k.protocol, k.srcPort, k.dstPort = "TCP", uint16(p.TCP.GetSourcePort()), uint16(p.TCP.GetDestinationPort())
	case *flowpb.Layer4_UDP:
		k.protocol, k.srcPort, k.dstPort = "UDP", uint16(p.UDP.GetSourcePort()), uint16(p.UDP.GetDestinationPort())
	case *flowpb.Layer4_ICMPv4, *flowpb.Layer4_ICMPv6:
		k.protocol = "ICMP"
	default:
		return flowKey{}, false
	}
	return k, true
}

// find returns the events of key since start that satisfy ok.
func (f *flows) find(key flowKey, since time.Time, ok func(*flowpb.Flow) bool) (found []*flowpb.Flow, changed <-chan struct{}, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fl := range f.by[key] {
		// kernel time turned into wall-clock time is some microseconds off
		if fl.GetTime().AsTime().After(since.Add(-5*time.Millisecond)) && ok(fl) {
			found = append(found, fl)
		}
	}
	return found, f.changed, f.broken
}

// await waits until an event as described has come, or ctx ends.
func (f *flows) await(ctx context.Context, key flowKey, since time.Time, ok func(*flowpb.Flow) bool) []*flowpb.Flow {
	for {
		found, changed, err := f.find(key, since, ok)
		if len(found) > 0 || err != nil {
			return found
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// sentBy tells whether the flow's packet came from p. From a node means from no other place: which of its addresses a
// node uses is not ours to say.
func (l *Lab) sentBy(p place) func(*flowpb.Flow) bool {
	others := map[netip.Addr]bool{}
	if p.Kind == kindNode {
		for _, x := range append(l.places(kindWorkload), l.places(kindOutside)...) {
			for _, a := range x.Addrs {
				others[a] = true
			}
		}
	}
	return func(fl *flowpb.Flow) bool {
		src, err := netip.ParseAddr(fl.GetIP().GetSource())
		if err != nil {
			return false
		}
		if p.Kind == kindNode {
			return !others[src.Unmap()]
		}
		return slices.Contains(p.Addrs, src.Unmap())
	}
}

// judges tells whether the flow's node is the one that has to judge in its direction: egress policy is the sender's
// node's, ingress policy the receiver's. Of ends that are on no node nothing is known.
func judges(fl *flowpb.Flow, from, to place) bool {
	want := nodeOf(from)
	if fl.GetTrafficDirection() == flowpb.TrafficDirection_INGRESS {
		want = nodeOf(to)
	}
	return want == "" || fl.GetNodeName() == want
}

func nodeOf(p place) string {
	if p.Kind == kindNode {
		return p.Name
	}
	return p.Node
}

// nodesOf names the nodes that reported flows, each once.
func nodesOf(list []*flowpb.Flow) string {
	var out []string
	for _, f := range list {
		if n := f.GetNodeName(); n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return strings.Join(out, ",")
}

func isDrop(fl *flowpb.Flow) bool { return fl.GetVerdict() == flowpb.Verdict_DROPPED }

// byPolicy tells whether policy, and nothing else, dropped the packet.
func byPolicy(fl *flowpb.Flow) bool {
	r := fl.GetDropReasonDesc()
	return isDrop(fl) && (r == flowpb.DropReason_POLICY_DENIED || r == flowpb.DropReason_POLICY_DENY)
}

// why joins the explanations of flows, each once. Of a denied packet only what denied it: that the other direction
// would have let it pass decided nothing.
func why(list []*flowpb.Flow) string {
	var out []string
	for _, fl := range list {
		parts := strings.Split(flow.Why(fl, false), "; ")
		if isDrop(fl) {
			denied := slices.DeleteFunc(slices.Clone(parts), func(s string) bool { return strings.Contains(s, "gress allowed") })
			if len(denied) > 0 {
				parts = denied
			}
		}
		for _, p := range parts {
			if p != "" && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return strings.Join(out, "; ")
}

// probed is one try and what the nodes said about it.
type probed struct {
	probe.Result
	drops    []*flowpb.Flow
	verdicts []*flowpb.Flow
	astray   string // a drop by a node that had nothing to judge
}
