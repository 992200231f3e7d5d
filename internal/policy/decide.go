package policy

import (
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
// force about these two identities; neither needs to be known to UpdateIdentities.
func (e *Engine) Decide(from, to identity.Identity, proto uint8, port uint16) Decision {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sweep()
	d := Decision{
		Egress:  e.judge(&from, &to, verdict.Egress, proto, port),
		Ingress: e.judge(&to, &from, verdict.Ingress, proto, port),
	}
	d.Action = verdict.Allow
	for _, v := range []PortVerdict{d.Egress, d.Ingress} {
		switch {
		case v.Action == verdict.Deny:
			d.Action = verdict.Deny
		case v.Action == verdict.Redirect && d.Action == verdict.Allow:
			d.Action = verdict.Redirect
		}
	}
	if d.Action == verdict.Deny && e.cfg.Audit {
		d.Action = verdict.Audit
	}
	return d
}

// judge is one direction of Decide: the subject's class for that one peer, flattened.
func (e *Engine) judge(subject, peer *identity.Identity, d verdict.Direction, proto uint8, port uint16) PortVerdict {
	if !judged(subject) {
		return PortVerdict{Action: verdict.Allow, Cookie: e.cookies.name(e.implicit[d].outside)}
	}
	r := e.prepare(e.plan(subject, e.groups(subject), d))
	list := e.start(r)
	for i, s := range r.selections {
		if s.matches(peer, &e.cfg) {
			list = e.add(list, r.naming[i])
		}
	}
	e.scratch.list = list
	if v, ok := e.flatten(r, list).Lookup(proto, port); ok {
		return v
	}
	return PortVerdict{Action: verdict.Deny, Cookie: r.def}
}

// judged tells whether an identity can be an endpoint of porin, whose traffic is judged at its device.
func judged(i *identity.Identity) bool {
	if i.Prefix.IsValid() {
		return false
	}
	switch i.ID {
	case identity.Host, identity.World, identity.WorldIPv4, identity.WorldIPv6, identity.RemoteNode, identity.KubeAPIServer:
		return false
	}
	return true
}
