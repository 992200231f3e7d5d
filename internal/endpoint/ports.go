package endpoint

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"porin/internal/identity"
	"porin/internal/policy"
)

// maxNamedPorts is far above what a pod's containers declare.
const maxNamedPorts = 1024

// namedPorts is what is known of the ports of workloads that have a name. Guarded by the turn.
type namedPorts struct {
	here  map[uint16]namedUse                 // of this node's endpoints
	there map[identity.ID][]policy.NamedPort  // of the workloads of other nodes, as LearnPorts was told
	told  map[identity.ID][]policy.NamedPort  // what the engine knows
	users map[identity.ID]map[uint16]struct{} // endpoints in here, by identity
}

type namedUse struct {
	identity identity.ID
	ports    []policy.NamedPort
}

func newNamedPorts() namedPorts {
	return namedPorts{
		here: map[uint16]namedUse{}, there: map[identity.ID][]policy.NamedPort{}, told: map[identity.ID][]policy.NamedPort{},
		users: map[identity.ID]map[uint16]struct{}{},
	}
}

func comparePorts(a, b policy.NamedPort) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
}

// checkPorts refuses named ports that mean nothing and puts the others in order.
func checkPorts(ports []policy.NamedPort) ([]policy.NamedPort, error) {
	if len(ports) > maxNamedPorts {
		return nil, fmt.Errorf("%d named ports: at most %d: %w", len(ports), maxNamedPorts, ErrInvalid)
	}
	for _, p := range ports {
		switch {
		case !namespacePattern.MatchString(p.Name) || len(p.Name) > 63:
			return nil, fmt.Errorf("named port %q: only lower-case letters, digits and '-', at most 63: %w", p.Name, ErrInvalid)
		case p.Port == 0 || p.Proto != policy.ProtoTCP && p.Proto != policy.ProtoUDP && p.Proto != policy.ProtoSCTP:
			return nil, fmt.Errorf("named port %q: protocol %d port %d: TCP, UDP or SCTP and a port from 1 on: %w", p.Name, p.Proto, p.Port, ErrInvalid)
		}
	}
	out := slices.Clone(ports)
	slices.SortFunc(out, comparePorts)
	return slices.Compact(out), nil
}

// namePorts tells the rules of others about ep's named ports; before ep gets traffic, so that none is judged without them.
func (e *Endpoints) namePorts(ep Endpoint) {
	n := &e.kernel.ports
	if ep.Identity == identity.Unknown {
		return
	}
	old, had := n.here[ep.ID]
	if had && old.identity == ep.Identity && slices.Equal(old.ports, ep.NamedPorts) {
		return
	}
	if had {
		e.unnamePorts(ep.ID)
	}
	if len(ep.NamedPorts) == 0 {
		return
	}
	n.here[ep.ID] = namedUse{ep.Identity, ep.NamedPorts}
	if n.users[ep.Identity] == nil {
		n.users[ep.Identity] = map[uint16]struct{}{}
	}
	n.users[ep.Identity][ep.ID] = struct{}{}
	e.tellPorts(ep.Identity)
}

// unnamePorts is the reverse.
func (e *Endpoints) unnamePorts(id uint16) {
	n := &e.kernel.ports
	old, had := n.here[id]
	if !had {
		return
	}
	delete(n.here, id)
	if delete(n.users[old.identity], id); len(n.users[old.identity]) == 0 {
		delete(n.users, old.identity)
	}
	e.tellPorts(old.identity)
}

// tellPorts makes the rules in use know what the workloads of these identities have by now.
func (e *Endpoints) tellPorts(ids ...identity.ID) {
	n, set := &e.kernel.ports, map[identity.ID][]policy.NamedPort{}
	for _, id := range ids {
		all := slices.Clone(n.there[id])
		for ep := range n.users[id] {
			all = append(all, n.here[ep].ports...)
		}
		slices.SortFunc(all, comparePorts)
		if all = slices.Compact(all); slices.Equal(all, n.told[id]) {
			continue
		}
		if set[id], n.told[id] = all, all; len(all) == 0 {
			delete(n.told, id)
		}
	}
	if len(set) > 0 {
		e.patch(e.deps.Policy.UpdatePorts(set))
	}
}

// LearnPorts says which named ports the workloads of other nodes have, of each identity all of them; an empty list:
// none. It returns once every rule in force knows.
func (e *Endpoints) LearnPorts(ctx context.Context, set map[identity.ID][]policy.NamedPort) error {
	if err := e.take(ctx); err != nil {
		return fmt.Errorf("learn the named ports of %d identities: %w", len(set), err)
	}
	defer e.give()
	var ids []identity.ID
	for id, list := range set {
		if e.kernel.ports.there[id] = slices.Clone(list); len(list) == 0 {
			delete(e.kernel.ports.there, id)
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	e.tellPorts(ids...)
	if err := e.exposed(); err != nil {
		return err
	}
	return e.commit()
}

// NamedPorts returns the ports that have a name, of every identity whose workloads have some, on whatever node.
func (e *Endpoints) NamedPorts(ctx context.Context) (map[identity.ID][]policy.NamedPort, error) {
	if err := e.take(ctx); err != nil {
		return nil, fmt.Errorf("look up the named ports: %w", err)
	}
	defer e.give()
	return maps.Clone(e.kernel.ports.told), nil
}
