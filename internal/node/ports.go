package node

import (
	"cmp"
	"maps"
	"slices"

	"porin/internal/identity"
)

// ports are the named ports of the workloads behind the kernel's rows: an identity has those of all its workloads.
type ports struct {
	of    map[key]portUse // rows whose workload has any
	count map[identity.ID]map[Port]int
	fewer map[identity.ID]bool // identities that lost some since the rules were told
}

type portUse struct {
	identity identity.ID
	list     []Port
}

func newPorts() ports {
	return ports{of: map[key]portUse{}, count: map[identity.ID]map[Port]int{}, fewer: map[identity.ID]bool{}}
}

// same tells whether a row's workload still has just these ports.
func (p *ports) same(k key, list []Port) bool { return slices.Equal(p.of[k].list, list) }

// with returns the whole lists of the identities that get ports by the changes, or lost some.
func (p *ports) with(coming []change) map[identity.ID][]Port {
	more := map[identity.ID]map[Port]bool{}
	for _, c := range coming {
		for _, port := range c.ports {
			if p.count[c.now.identity][port] == 0 {
				if more[c.now.identity] == nil {
					more[c.now.identity] = map[Port]bool{}
				}
				more[c.now.identity][port] = true
			}
		}
	}
	for id := range p.fewer {
		if more[id] == nil {
			more[id] = map[Port]bool{}
		}
	}
	if len(more) == 0 {
		return nil
	}
	out := make(map[identity.ID][]Port, len(more))
	for id, set := range more {
		for port := range p.count[id] {
			set[port] = true
		}
		out[id] = slices.SortedFunc(maps.Keys(set), func(a, b Port) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
		})
	}
	return out
}

// note takes over what a row's workload has by now.
func (p *ports) note(k key, now row, list []Port) {
	old := p.of[k]
	for _, port := range old.list {
		if p.count[old.identity][port]--; p.count[old.identity][port] == 0 {
			delete(p.count[old.identity], port)
			p.fewer[old.identity] = true
		}
	}
	if len(p.count[old.identity]) == 0 {
		delete(p.count, old.identity)
	}
	delete(p.of, k)
	if now == (row{}) || len(list) == 0 {
		return
	}
	p.of[k] = portUse{now.identity, list}
	if p.count[now.identity] == nil {
		p.count[now.identity] = map[Port]int{}
	}
	for _, port := range list {
		p.count[now.identity][port]++
	}
}
