package policy

import (
	"encoding/binary"
	"fmt"

	"porin/internal/identity"
	"porin/internal/verdict"
)

// groups returns the rules that count for id.
func (e *Engine) groups(id *identity.Identity) []*group {
	if e.cfg.Enforcement == EnforceNever && !is(id, identity.Init) {
		return nil
	}
	return e.subjects.selecting(id)
}

// plan is a subject about to be resolved.
type plan struct {
	key       SubjectKey
	direction verdict.Direction
	parts     []*groupPart
	own       *rule       // isolates besides the policies; else nil
	open      *rule       // names what is allowed because nothing isolates
	localhost *statement  // nil: none
	local     uint8       // views in which it counts
	names     []string    // of ports that the rules use, sorted
	numbers   []NamedPort // ingress: what the subject has of those
}

// plan collects what counts for id in one direction, and its key.
func (e *Engine) plan(id *identity.Identity, groups []*group, d verdict.Direction, own []NamedPort) plan {
	im := &e.implicit[d]
	p := plan{direction: d, open: im.open}
	h := make([]byte, 0, 256)
	h = fmt.Appendf(h, "%d %q %t %t\n", d, e.cfg.Cluster, e.cfg.DualStack, e.cfg.OnlyIPv6)
	for _, g := range groups {
		part := g.part(d)
		if part == nil {
			continue
		}
		p.parts = append(p.parts, part)
		p.local |= part.views
		p.names = union(p.names, part.names)
		h = append(h, part.digest[:]...)
	}
	switch {
	case is(id, identity.Init):
		p.own = im.init
	case e.cfg.Enforcement == EnforceNever:
		p.open = im.never
	case e.cfg.Enforcement == EnforceAlways:
		p.own = im.always
	}
	if p.own != nil {
		p.local = 3
		h = binary.BigEndian.AppendUint64(h, p.own.id)
	}
	if p.local != 0 { // where something may deny
		p.localhost = im.localhost
	}
	h = fmt.Appendf(h, "\nlocalhost %t", p.localhost != nil)
	h = binary.BigEndian.AppendUint64(h, p.open.id)
	if len(p.names) > 0 && d == verdict.Ingress {
		p.numbers = relevant(own, p.names)
		for _, q := range p.numbers {
			h = fmt.Appendf(h, "\n%s %d %d", q.Name, q.Proto, q.Port)
		}
	}
	p.key = SubjectKey(hash(h).String())
	return p
}

// prepare makes the part of a subject that does not depend on the identities that exist.
func (e *Engine) prepare(p plan) *resolved {
	r := &resolved{key: p.key, direction: p.direction}
	count := b2i(p.localhost != nil)
	for _, part := range p.parts {
		count += len(part.statements)
		r.two = r.two || part.audit
	}
	r.statements = make([]*statement, 0, count)
	for _, part := range p.parts {
		r.statements = append(r.statements, part.statements...)
	}
	if p.localhost != nil {
		r.statements = append(r.statements, p.localhost)
	}
	r.views[0] = e.view(&p, false)
	if r.two {
		r.views[1] = e.view(&p, true)
	}
	if r.views[0].silence.Action == verdict.Deny {
		r.isolated, r.def = true, r.views[0].silence.Cookie
	}
	if len(p.names) > 0 {
		if p.direction == verdict.Ingress {
			for i, st := range r.statements {
				r.statements[i] = st.numbered(p.numbers)
			}
		} else {
			r.names = p.names
		}
	}
	e.group(r, p.parts)
	list := e.start(r)
	e.scratch.list = list
	r.other = e.flatten(r, list, nil)
	return r
}

// view is what a subject says where no statement does: those that isolate in the Normal tier or above have the word
// before the Baseline tier, the others after it.
func (e *Engine) view(p *plan, audit bool) view {
	v := view{local: p.local>>b2i(audit)&1 != 0}
	var early, late []*rule
	for _, part := range p.parts {
		for _, i := range part.isolates {
			switch {
			case i.audit && !audit:
			case i.last:
				late = append(late, &i.rule)
			default:
				early = append(early, &i.rule)
			}
		}
	}
	if v.normal = len(early) > 0; !v.normal {
		early = late
	}
	if p.own != nil {
		early = append(early, p.own)
	}
	if len(early) > 0 {
		v.silence = PortVerdict{Action: verdict.Deny, Cookie: e.cookies.name(early...)}
	} else {
		v.silence = PortVerdict{Action: verdict.Allow, Cookie: e.cookies.name(p.open)}
	}
	return v
}

// group lists the distinct selections of a subject and the statements that name each.
func (e *Engine) group(r *resolved, parts []*groupPart) {
	e.selections.round++
	round, total := e.selections.round, 0
	for _, part := range parts {
		for _, q := range part.requires {
			s := q.selection
			if s.round != round {
				s.round, s.index = round, int32(len(r.selections))
				r.selections = append(r.selections, s)
				r.naming = append(r.naming, nil)
				r.required = append(r.required, 0)
			}
			r.required[s.index] |= 2 | uint8(b2i(!q.audit))
		}
	}
	for _, views := range r.required {
		r.views[0].needs += int(views & 1)
		r.views[1].needs += int(views >> 1)
	}
	for _, st := range r.statements {
		if st.all {
			r.everyone = append(r.everyone, st)
			continue
		}
		total += len(st.peers)
		for _, s := range st.peers {
			if s.round != round {
				s.round, s.index = round, int32(len(r.selections))
				r.selections = append(r.selections, s)
				r.naming = append(r.naming, nil)
			}
			s.named++
		}
	}
	all := make([]*statement, total) // cut into one list per selection
	for i, s := range r.selections {
		r.naming[i], all, s.named = all[:0:s.named], all[s.named:], 0
	}
	for _, st := range r.statements {
		if !st.all {
			for _, s := range st.peers {
				r.naming[s.index] = append(r.naming[s.index], st)
			}
		}
	}
}
