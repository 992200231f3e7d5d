package policy

import (
	"slices"

	"porin/internal/identity"
	"porin/internal/verdict"
)

// Decision is what both ends of a connection say about its first packet. Replies pass without being asked.
type Decision struct {
	Action  verdict.Action // of both together; Audit where Config.Audit lets a denial pass
	Egress  PortVerdict    // of the sender
	Ingress PortVerdict    // of the receiver
}

// Decide tells what happens to a new connection, or to an ICMP message with its type as port. It asks the rules in
// force about these two identities; neither needs to be known to UpdateIdentities. The receiver has the named ports that
// UpdatePorts gave its identity.
func (e *Engine) Decide(from, to identity.Identity, proto uint8, port uint16) Decision {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.decide(&from, &to, e.ports.of(to.ID), proto, port)
}

// DecideAt is Decide for a receiver with named ports of its own, whatever others of its identity have.
func (e *Engine) DecideAt(from, to identity.Identity, own []NamedPort, proto uint8, port uint16) Decision {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.decide(&from, &to, own, proto, port)
}

func (e *Engine) decide(from, to *identity.Identity, own []NamedPort, proto uint8, port uint16) Decision {
	e.sweep()
	d := Decision{
		Egress:  e.judge(from, to, nil, verdict.Egress, proto, port),
		Ingress: e.judge(to, from, own, verdict.Ingress, proto, port),
	}
	d.Action = verdict.Allow
	for _, a := range []verdict.Action{verdict.Deny, verdict.Redirect, verdict.Audit} { // the strictest of both
		if d.Egress.Action == a || d.Ingress.Action == a {
			d.Action = a
			break
		}
	}
	if d.Action == verdict.Deny && e.cfg.Audit {
		d.Action = verdict.Audit
	}
	return d
}

// judge is one direction of Decide: the subject's class for that one peer, flattened.
func (e *Engine) judge(subject, peer *identity.Identity, own []NamedPort, d verdict.Direction, proto uint8, port uint16) PortVerdict {
	groups := e.groups(subject)
	if !judged(subject, groups) {
		return PortVerdict{Action: verdict.Allow, Cookie: e.cookies.name(e.implicit[d].outside)}
	}
	r := e.prepare(e.plan(subject, groups, d, own))
	if e.tooLarge(r) != nil {
		v, _ := e.overflow(r).Lookup(proto, port)
		return v
	}
	list := e.start(r)
	for i, s := range r.selections {
		if s.matches(peer, &e.cfg) {
			list = e.add(list, r.naming[i])
			e.met(r, int32(i))
		}
	}
	e.scratch.list = list
	if v, ok := e.flatten(r, list, relevant(e.ports.of(peer.ID), r.names)).Lookup(proto, port); ok {
		return v
	}
	return PortVerdict{Action: verdict.Deny, Cookie: r.def}
}

// judged tells whether an identity can be an endpoint of porin, whose traffic is judged at its device, or is this node
// and rules for nodes select it.
func judged(i *identity.Identity, groups []*group) bool {
	if slices.ContainsFunc(groups, func(g *group) bool { return g.subject.among == thisNode }) {
		return true
	}
	if i.Prefix.IsValid() || isNode(i) {
		return false
	}
	switch i.ID {
	case identity.Host, identity.World, identity.WorldIPv4, identity.WorldIPv6, identity.RemoteNode, identity.KubeAPIServer:
		return false
	}
	return true
}
