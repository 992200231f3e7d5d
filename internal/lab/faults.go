package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"porin/internal/lab/relay"
	"porin/internal/lab/space"
)

// fault is something wrong with the cable of a place. What is lost is lost without a word to either end, as behind a
// switch: devices stay up and routes stay.
//
//	cut, loss   node1 ── node0 ── br0          programs on node0 drop frames
//	delay       node1 ── node0 ··relay·· slow0 ── port0 ── br0
type fault struct {
	Peer  string        `json:"peer,omitempty"`  // with this place only; "": with everybody
	Share float64       `json:"share,omitempty"` // of the frames that is lost; 1: cut
	Delay time.Duration `json:"delay,omitempty"` // of every frame, each way
}

func (f fault) String() string {
	text := fmt.Sprintf("loses %g %%", 100*f.Share)
	switch {
	case f.Share == 1:
		text = "cut"
	case f.Delay > 0:
		text = "delays " + f.Delay.String()
	}
	if f.Peer != "" {
		text += " (" + f.Peer + ")"
	}
	return text
}

// Cut separates places from everybody, or with between, two places from each other.
func (l *Lab) Cut(ctx context.Context, between bool, names ...string) error {
	return l.fail(ctx, between, names, fault{Share: 1})
}

// Lose makes a share of the frames get lost, 0 to 1, each way.
func (l *Lab) Lose(ctx context.Context, share float64, between bool, names ...string) error {
	if share < 0 || share > 1 {
		return fmt.Errorf("a share of %g of the frames cannot be lost: 0 to 100 %%", share)
	}
	return l.fail(ctx, between, names, fault{Share: share})
}

// Delay makes every frame take longer, each way.
func (l *Lab) Delay(ctx context.Context, d time.Duration, between bool, names ...string) error {
	if d < 0 || d > time.Minute {
		return fmt.Errorf("a delay of %s: 0 to 1m", d)
	}
	return l.fail(ctx, between, names, fault{Delay: d})
}

// Heal takes the faults of places away, those between two places, or with no names all there are.
func (l *Lab) Heal(ctx context.Context, between bool, names ...string) error {
	if len(names) == 0 {
		for _, p := range l.cabled() {
			names = append(names, p.Name)
		}
	}
	if !between {
		for _, name := range names { // also what others have with them
			for _, p := range l.cabled() {
				if err := l.alter(ctx, p.Name, func(f fault) bool { return p.Name == name || f.Peer == name }, fault{}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return l.fail(ctx, between, names, fault{})
}

// fail sets a fault of the cables of places, instead of what was wrong between the same two before.
func (l *Lab) fail(ctx context.Context, between bool, names []string, f fault) error {
	for _, n := range names {
		p, err := l.place(n)
		if err != nil {
			return err
		}
		if p.Port == "" || (between || f.Delay > 0) && p.Kind == kindOutside {
			return fmt.Errorf("%s: faults are for nodes, the store and outside hosts; between two places and delays for nodes and the store", n)
		}
	}
	if between {
		if len(names) != 2 || names[0] == names[1] {
			return errors.New("--between is for two places")
		}
		// either of them may have it: one cable is enough
		if err := l.alter(ctx, names[1], func(old fault) bool { return old.Peer == names[0] }, fault{}); err != nil {
			return err
		}
		f.Peer = names[1]
		names = names[:1]
	}
	for _, n := range names {
		if err := l.alter(ctx, n, func(old fault) bool { return old.Peer == f.Peer }, f); err != nil {
			return err
		}
	}
	return nil
}

// cabled are the places that have a cable in the underlay.
func (l *Lab) cabled() []place {
	return slices.Concat(l.places(kindStore), l.places(kindNode), l.places(kindOutside))
}

// alter takes the faults that drop names off a cable and puts f there, if it is one.
func (l *Lab) alter(ctx context.Context, name string, drop func(fault) bool, f fault) error {
	p, err := l.place(name)
	if err != nil {
		return err
	}
	before := len(p.Faults)
	faults := slices.DeleteFunc(slices.Clone(p.Faults), drop)
	if f.Share > 0 || f.Delay > 0 {
		faults = append(faults, f)
	} else if len(faults) == before {
		return nil
	}
	if err := l.update(name, func(p *place) { p.Faults = faults }); err != nil {
		return err
	}
	return l.applyFaults(ctx, name)
}

// applyFaults makes a cable as faulty as the state says.
func (l *Lab) applyFaults(ctx context.Context, name string) error {
	p, err := l.place(name)
	if err != nil {
		return err
	}
	var losses []space.Loss
	var delays []relay.Rule
	for _, f := range p.Faults {
		var peer []byte
		if f.Peer != "" {
			other, err := l.place(f.Peer)
			if err != nil {
				return err
			}
			if peer, err = space.HardwareAddr(other.Netns, uplink); err != nil {
				return err
			}
		}
		if f.Delay > 0 {
			delays = append(delays, relay.Rule{Peer: peer, Delay: f.Delay})
		} else {
			losses = append(losses, space.Loss{Peer: peer, Share: f.Share})
		}
	}
	ns := l.path("ns", underlayNS)
	port := p.Port
	if len(delays) > 0 {
		if port, err = l.slowCable(ctx, p, delays, losses); err != nil {
			return fmt.Errorf("%s: make its cable slow: %w", name, err)
		}
	} else if p.Relay.PID != 0 {
		if err := l.fastCable(ctx, p, losses); err != nil {
			return fmt.Errorf("%s: make its cable fast again: %w", name, err)
		}
		return nil
	}
	return space.Filter(ns, port, losses)
}

// slowDevices are the two ends of the extra cable behind a relay.
func slowDevices(p place) (relayEnd, bridgeEnd string) { return "s-" + p.Port, "p-" + p.Port }

// slowCable puts a relay between the place's cable and the bridge, and returns the device that is the bridge's port now.
func (l *Lab) slowCable(ctx context.Context, p place, delays []relay.Rule, losses []space.Loss) (string, error) {
	ns := l.path("ns", underlayNS)
	near, far := slowDevices(p)
	if p.Relay.PID == 0 {
		if err := space.DeleteDevice(ns, near); err != nil { // of a try that went wrong
			return "", err
		}
		if err := space.Connect(space.End{Netns: ns, Name: near}, space.End{Netns: ns, Name: far}); err != nil {
			return "", err
		}
		err := errors.Join(
			space.NoIPv6(ns, near), space.NoIPv6(ns, p.Port), space.Blackhole(ns, near),
			space.Offload(p.Netns, uplink, false), space.Offload(ns, far, false),
			space.Filter(ns, far, losses), // before anything can pass there
		)
		if err != nil {
			return "", err
		}
	}
	b, err := json.Marshal(relay.Config{Node: p.Port, Bridge: near, Rules: delays})
	if err != nil {
		return "", fmt.Errorf("describe the relay: %w", err)
	}
	if err := p.Relay.Signal(ctx, syscall.SIGKILL); err != nil {
		return "", err
	}
	proc, err := l.startReady(ctx, self("relay", string(b)), space.Where{Netns: ns, Cgroup: p.Cgroup}, p.Name+"-relay")
	if err != nil {
		return "", err
	}
	if err := l.update(p.Name, func(p *place) { p.Relay = proc }); err != nil {
		return "", err
	}
	if p.Relay.PID != 0 {
		return far, nil
	}
	// The filter of the direct way goes only now, when nothing takes that way any more.
	return far, errors.Join(
		space.Plug(ns, p.Port, ""), space.Filter(ns, p.Port, nil), space.Blackhole(ns, p.Port), space.Plug(ns, far, bridge))
}

// fastCable takes the relay away again; the losses that stay are in force before the first frame passes.
func (l *Lab) fastCable(ctx context.Context, p place, losses []space.Loss) error {
	ns := l.path("ns", underlayNS)
	near, _ := slowDevices(p)
	return errors.Join(
		p.Relay.Signal(ctx, syscall.SIGKILL), space.DeleteDevice(ns, near), space.Filter(ns, p.Port, losses),
		space.Offload(p.Netns, uplink, true), space.Plug(ns, p.Port, bridge),
		l.update(p.Name, func(p *place) { p.Relay = space.Process{} }))
}
