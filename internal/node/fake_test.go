package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/state"
)

// fakeKernel is a datapath in memory that may fail half way.
type fakeKernel struct {
	t      *testing.T
	rules  *fakeRules
	mu     sync.Mutex
	nodes  map[string]Node
	rows   map[netip.Addr]Remote
	fail   func() bool
	calls  int
	forgot int
}

var errFake = errors.New("no room")

func (f *fakeKernel) failing() bool { return f.fail != nil && f.fail() }

func (f *fakeKernel) PutNodes(list []Node) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	for _, n := range list {
		if f.failing() {
			return errFake
		}
		f.nodes[n.Key()] = n
	}
	return nil
}

func (f *fakeKernel) DeleteNodes(keys []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	for _, k := range keys {
		if f.failing() {
			return errFake
		}
		delete(f.nodes, k)
	}
	return nil
}

func (f *fakeKernel) PutRemotes(list []Remote) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	for _, r := range list {
		if f.failing() {
			return errFake
		}
		if !f.rules.knows(r.Identity) {
			f.t.Errorf("%s got identity %d before the rules knew it", r.Addr, r.Identity)
		}
		f.rows[r.Addr] = r
	}
	return nil
}

func (f *fakeKernel) DeleteRemotes(list []Remote) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	for _, r := range list {
		if f.failing() {
			return errFake
		}
		if f.rows[r.Addr].Node == r.Node {
			delete(f.rows, r.Addr)
		}
	}
	return nil
}

func (f *fakeKernel) ForgetFormer() error {
	if f.failing() {
		return errFake
	}
	f.forgot++
	return nil
}

// fakeRules is the identities that the node knows and those that the rules know.
type fakeRules struct {
	mu      sync.Mutex
	known   map[identity.ID]labels.Labels
	learned map[identity.ID]labels.Labels
	held    map[identity.ID]int
	ports   map[identity.ID][]Port
	fail    func() bool
}

func newFakeRules() *fakeRules {
	return &fakeRules{
		known: map[identity.ID]labels.Labels{}, learned: map[identity.ID]labels.Labels{}, held: map[identity.ID]int{},
		ports: map[identity.ID][]Port{},
	}
}

func (f *fakeRules) Hold(id identity.ID) (identity.Identity, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ls, ok := f.known[id]
	if ok {
		f.held[id]++
	}
	return identity.Identity{ID: id, Labels: ls}, ok
}

func (f *fakeRules) LetGo(id identity.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held[id]--; f.held[id] < 0 {
		panic(fmt.Sprintf("identity %d let go more often than held", id))
	}
	if f.held[id] == 0 {
		delete(f.held, id)
	}
}

func (f *fakeRules) Learn(_ context.Context, ids []identity.Identity, ports map[identity.ID][]Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil && f.fail() {
		return errFake
	}
	for _, id := range ids {
		f.learned[id.ID] = id.Labels
	}
	for id, list := range ports {
		f.ports[id] = list
		if len(list) == 0 {
			delete(f.ports, id)
		}
	}
	return nil
}

func (f *fakeRules) knows(id identity.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.learned[id]
	return ok || id == identity.Health
}

func (f *fakeRules) holds(id identity.ID) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held[id]
}

func (f *fakeRules) set(id identity.ID, ls labels.Labels) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ls == nil {
		delete(f.known, id)
		return
	}
	f.known[id] = ls
}

// scene is Nodes over fakes with a clock of its own.
type scene struct {
	*Nodes
	t      *testing.T
	kernel *fakeKernel
	rules  *fakeRules
	db     *state.DB
	now    time.Time
	src    Source
}

func newScene(t *testing.T) *scene {
	rules := newFakeRules()
	s := &scene{
		t: t, rules: rules, db: state.New(), now: time.Unix(1000, 0), src: Source{Cluster: "c", ID: 0},
		kernel: &fakeKernel{t: t, rules: rules, nodes: map[string]Node{}, rows: map[netip.Addr]Remote{}},
	}
	s.Nodes = NewNodes(slog.New(slog.DiscardHandler), Config{Self: nodeOf("self", 0, 100), Now: func() time.Time { return s.now }},
		Deps{DB: s.db, Datapath: s.kernel, Identities: rules})
	return s
}

// nodeOf is node number i, with ranges 10.<i>.0.0/24 and fd00:<i>::/64.
func nodeOf(name string, i int, generation uint64) Node {
	return Node{
		Cluster: "c", Name: name, Generation: generation,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})},
		PodCIDRs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 24),
			netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/64", i)),
		},
	}
}

func podOf(i, host int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i), 0, byte(host)}) }

func set(name string) labels.Labels {
	return labels.New(labels.Label{Source: "k8s", Key: "app", Value: name})
}

func addressOf(node string, addr netip.Addr, id identity.ID, app string) Address {
	return Address{Addr: addr, Identity: id, Meaning: MeaningOf(set(app)), Cluster: "c", Node: node, Generation: 1, Namespace: "default", Pod: app}
}

// tell gives a batch to Nodes and carries it out.
func (s *scene) tell(b Batch) {
	s.t.Helper()
	s.Heard(s.src, b)
	s.settle()
}

func (s *scene) settle() {
	s.t.Helper()
	s.expire()
	if err := s.flush(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) know(id identity.ID, app string) {
	s.rules.set(id, set(app))
	s.Told(id)
}

// want compares the kernel's rows with text lines "address identity node".
func (s *scene) want(lines ...string) {
	s.t.Helper()
	var got []string
	for _, r := range s.kernel.rows {
		got = append(got, fmt.Sprintf("%s %d %s", r.Addr, uint32(r.Identity), r.Node))
	}
	slices.Sort(got)
	slices.Sort(lines)
	if !slices.Equal(got, lines) {
		s.t.Errorf("the kernel has\n%q\nwant\n%q", got, lines)
	}
	s.consistent()
}

// consistent checks what must hold at any time: every row's identity is held, and nothing else is.
func (s *scene) consistent() {
	s.t.Helper()
	uses := map[identity.ID]bool{}
	for _, r := range s.kernel.rows {
		if r.Identity != identity.Health {
			uses[r.Identity] = true
			if s.rules.holds(r.Identity) == 0 {
				s.t.Errorf("row of %s: identity %d is not held", r.Addr, r.Identity)
			}
		}
	}
	if len(s.Nodes.kernel.doubt) > 0 {
		return
	}
	for id, n := range s.rules.held {
		if !uses[id] {
			s.t.Errorf("identity %d is held %d times without a row", id, n)
		}
	}
}

func sometimes(r *rand.Rand, p float64) func() bool { return func() bool { return r.Float64() < p } }
