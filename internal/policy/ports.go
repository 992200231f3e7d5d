package policy

import (
	"cmp"
	"slices"
	"strings"

	"porin/internal/identity"
)

// numbers is what is known of the named ports of identities: those of all workloads of each, together.
type numbers struct {
	byID     map[identity.ID][]NamedPort // sorted, distinct, not empty
	subjects map[*resolved]bool          // those whose rules ask for the ports of peers
}

func newPorts() numbers {
	return numbers{byID: map[identity.ID][]NamedPort{}, subjects: map[*resolved]bool{}}
}

func (p *numbers) of(id identity.ID) []NamedPort { return p.byID[id] }

func compareNamedPorts(a, b NamedPort) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
}

// relevant returns the ports that have one of the names, sorted and distinct.
func relevant(ports []NamedPort, names []string) []NamedPort {
	var out []NamedPort
	for _, p := range ports {
		if _, ok := slices.BinarySearch(names, p.Name); ok {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, compareNamedPorts)
	return slices.Compact(out)
}

// union returns the names of both sorted lists.
func union(a, b []string) []string {
	if len(a) == 0 {
		return b
	}
	for _, s := range b {
		if at, have := slices.BinarySearch(a, s); !have {
			a = slices.Insert(slices.Clip(a), at, s)
		}
	}
	return a
}

// numbered returns st with the numbers that its names have; those that have none open nothing.
func (st *statement) numbered(have []NamedPort) *statement {
	if !st.names {
		return st
	}
	out := *st
	out.ports, out.sums = []Port{}, nil
	for i, p := range st.ports {
		add := func(q Port) {
			out.ports = append(out.ports, q)
			if st.sums != nil {
				out.sums = append(out.sums, st.sums[i])
			}
		}
		if p.Name == "" {
			add(p)
			continue
		}
		for _, h := range have {
			if h.Name == p.Name && p.covers(h.Proto) {
				add(Port{Proto: h.Proto, First: h.Port, Last: h.Port, L7: p.L7})
			}
		}
	}
	return &out
}

// having is the identities whose ports of the names that a subject's rules use are the same.
type having struct {
	ports   []NamedPort
	members []int32 // slots, ascending
}

// having returns the known identities that have ports of those names, by what they have.
func (e *Engine) having(r *resolved) []having {
	if r.names == nil {
		return nil
	}
	type one struct {
		ports []NamedPort
		slot  int32
	}
	var all []one
	for id, list := range e.ports.byID {
		if n, ok := e.people.slotOf[id]; ok {
			if ps := relevant(list, r.names); len(ps) > 0 {
				all = append(all, one{ps, n})
			}
		}
	}
	slices.SortFunc(all, func(a, b one) int {
		return cmp.Or(slices.CompareFunc(a.ports, b.ports, compareNamedPorts), cmp.Compare(a.slot, b.slot))
	})
	var out []having
	for _, a := range all {
		if len(out) == 0 || !slices.Equal(out[len(out)-1].ports, a.ports) {
			out = append(out, having{ports: a.ports})
		}
		last := &out[len(out)-1]
		last.members = append(last.members, a.slot)
	}
	return out
}

// UpdatePorts says which named ports the workloads of identities have, all of each together; an empty list: none. The
// identities may be unknown yet. It returns a patch for each subject that changes, as UpdateIdentities does.
func (e *Engine) UpdatePorts(set map[identity.ID][]NamedPort) []Patch {
	e.mu.Lock()
	defer e.mu.Unlock()
	ch := changes{}
	for id, list := range set {
		list = slices.Clone(list)
		slices.SortFunc(list, compareNamedPorts)
		list = slices.Compact(list)
		old := e.ports.byID[id]
		if slices.Equal(old, list) {
			continue
		}
		if e.ports.byID[id] = list; len(list) == 0 {
			delete(e.ports.byID, id)
		}
		n, known := e.people.slotOf[id]
		if !known || len(e.ports.subjects) == 0 {
			continue
		}
		e.replace(n, ch)
	}
	e.sweep()
	return ch.patches()
}

// replace gives an identity whose ports changed the rows that it should have now.
func (e *Engine) replace(n int32, ch changes) {
	id := e.people.slots[n].ID
	ports := e.ports.of(id)
	for _, s := range e.selections.holding(&e.people.slots[n].Identity, &e.cfg) {
		for _, u := range s.users {
			if u.subject.names != nil {
				u.subject.pending = append(u.subject.pending, u.index)
			}
		}
	}
	for r := range e.ports.subjects {
		slices.Sort(r.pending)
		t := e.classTable(r, r.pending, relevant(ports, r.names))
		r.pending = r.pending[:0]
		e.setRow(r, n, id, t, ch)
	}
}
