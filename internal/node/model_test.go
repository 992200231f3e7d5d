package node

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"porin/internal/identity"
)

// event is one thing that the store or the identities tell.
type event struct {
	batch Batch
	id    identity.ID
	app   string // what id means from now on; empty: nobody knows
}

// told is what a node's events leave behind, by the plain words of the documentation.
type told struct {
	node    *Node
	lapsed  bool
	records map[netip.Addr]Address
	stale   map[netip.Addr]bool
}

// script makes one node's events: it comes, gives addresses up, takes new ones, lapses, returns.
func script(r *rand.Rand, name string) (events []event, end *told) {
	end = &told{records: map[netip.Addr]Address{}, stale: map[netip.Addr]bool{}}
	add := func(b Batch) { events = append(events, event{batch: b}) }
	randomAddress := func() Address {
		id := identity.ID(300 + r.IntN(4))
		if r.IntN(12) == 0 {
			id = identity.ID(r.IntN(300)) // what must be refused
		}
		a := addressOf(name, podOf(1+r.IntN(4), 1+r.IntN(6)), id, fmt.Sprint(r.IntN(2)))
		a.Generation = uint64(r.IntN(3))
		return a
	}
	put := func() {
		a := randomAddress()
		end.records[a.Addr], end.stale[a.Addr] = a, false
		add(Batch{Addresses: []Address{a}})
	}
	for range 6 + r.IntN(12) {
		switch k := r.IntN(10); {
		case k < 4:
			put()
		case k < 6 && len(end.records) > 0 && end.node != nil && !end.lapsed:
			for a := range end.records {
				delete(end.records, a)
				add(Batch{Gone: []Ownership{{name, a}}})
				break
			}
		case k < 7 && end.node != nil && !end.lapsed: // the lease ends: everything in one revision
			b := Batch{GoneNodes: []string{name}}
			for a := range end.records {
				b.Gone = append(b.Gone, Ownership{name, a})
				end.stale[a] = true
			}
			end.lapsed = true
			add(b)
		default:
			n := nodeOf(name, 1+r.IntN(5), uint64(1+r.IntN(5)))
			n.Addresses[0] = netip.AddrFrom4([4]byte{192, 168, 1, byte(r.IntN(6))})
			if r.IntN(3) == 0 {
				n.PodCIDRs[0] = netip.PrefixFrom(n.PodCIDRs[0].Addr(), 29)
			}
			if r.IntN(4) == 0 {
				n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix("10.4.0.0/29"))
			}
			if end.node == nil || end.lapsed {
				for a := range end.records {
					if end.stale[a] {
						delete(end.records, a)
					}
				}
			}
			end.node, end.lapsed = &n, false
			add(Batch{Nodes: []Node{n}})
		}
	}
	return events, end
}

// model says which rows the kernel must have, by comparing everyone with everyone.
func model(self Node, ends map[string]*told, means map[identity.ID]string) []string {
	type claim struct {
		name string
		*told
		owned []netip.Prefix
	}
	src := Source{Cluster: "c"}
	var claims []*claim
	for name, e := range ends {
		if e.node != nil {
			claims = append(claims, &claim{name: name, told: e})
		}
	}
	slices.SortFunc(claims, func(a, b *claim) int {
		return cmp.Or(order(a.lapsed, b.lapsed), cmp.Compare(a.node.Generation, b.node.Generation), strings.Compare(a.name, b.name))
	})
	ranges := slices.Clone(self.PodCIDRs)
	hosts := slices.Clone(self.Addresses)
	for _, c := range claims {
		if src.check(*c.node) != nil || slices.Contains(hosts, c.node.Addresses[0]) {
			continue
		}
		var got []netip.Prefix
		for _, p := range c.node.PodCIDRs {
			if !slices.ContainsFunc(ranges, p.Overlaps) {
				got = append(got, p)
				ranges = append(ranges, p)
			}
		}
		hosts = append(hosts, c.node.Addresses[0])
		c.owned = got
	}
	best := map[netip.Addr]*claim{}
	for _, c := range claims {
		for addr, a := range c.records {
			if a.Identity < identity.MinCluster || !within(c.owned, addr) {
				continue
			}
			if b := best[addr]; b == nil || order(b.lapsed, c.lapsed) > 0 || b.lapsed == c.lapsed && a.Generation > b.records[addr].Generation {
				best[addr] = c
			}
		}
	}
	var rows []string
	for addr, c := range best {
		a := c.records[addr]
		if app, ok := means[a.Identity]; ok && MeaningOf(set(app)) == a.Meaning {
			rows = append(rows, fmt.Sprintf("%s %d %s", addr, uint32(a.Identity), c.node.Addresses[0]))
		}
	}
	return rows
}

// Whatever the order in which nodes are heard of, however the records are batched, and however often the kernel
// refuses meanwhile: in the end it has what the model says, and at no moment an identity that the rules do not know.
func TestShuffledReplay(t *testing.T) {
	withRows := 0
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 7))
		ends := map[string]*told{}
		var queues [][]event
		for i := range 2 + r.IntN(4) {
			name := fmt.Sprintf("n%d", i)
			events, end := script(r, name)
			ends[name] = end
			queues = append(queues, events)
		}
		means := map[identity.ID]string{}
		var ids []event
		for range 12 {
			e := event{id: identity.ID(300 + r.IntN(4)), app: fmt.Sprint(r.IntN(2))}
			if r.IntN(6) == 0 {
				e.app = ""
			}
			ids = append(ids, e)
			if means[e.id] = e.app; e.app == "" {
				delete(means, e.id)
			}
		}
		queues = append(queues, ids)
		for order := range 3 {
			s := newScene(t)
			replay(s, rand.New(rand.NewPCG(seed, uint64(order))), queues)
			rows := model(s.cfg.Self, ends, means)
			withRows += len(rows)
			s.want(rows...)
			if t.Failed() {
				t.Fatalf("seed %d, order %d", seed, order)
			}
		}
	}
	if withRows < 1000 {
		t.Errorf("only %d rows were compared", withRows)
	}
}

// replay interleaves the queues by chance, keeping each one's order.
func replay(s *scene, r *rand.Rand, queues [][]event) {
	queues = slices.Clone(queues)
	s.kernel.fail, s.rules.fail = sometimes(r, 0.05), sometimes(r, 0.05)
	for len(queues) > 0 {
		i := r.IntN(len(queues))
		if len(queues[i]) == 0 {
			queues = slices.Delete(queues, i, i+1)
			continue
		}
		e := queues[i][0]
		queues[i] = queues[i][1:]
		if e.id == 0 {
			s.Heard(s.src, e.batch)
		} else {
			s.redefine(e.id, e.app)
		}
		if r.IntN(3) == 0 {
			if s.flush(s.t.Context()) == nil {
				s.consistent()
			}
		}
	}
	s.kernel.fail, s.rules.fail = nil, nil
	s.settle()
}

// redefine does what the allocator does: it changes what a number means only once no row has it, and does not forget
// one that is held.
func (s *scene) redefine(id identity.ID, app string) {
	s.rules.mu.Lock()
	old, known := s.rules.known[id]
	held := s.rules.held[id] > 0
	s.rules.mu.Unlock()
	if known && app != "" && old.Key() == set(app).Key() {
		return
	}
	if known {
		s.rules.set(id, nil)
		for s.Withdraw(id) != nil { // the kernel refuses now and then
		}
	}
	if app == "" && held {
		delete(s.rules.learned, id)
	}
	if app != "" {
		s.know(id, app)
	}
}
