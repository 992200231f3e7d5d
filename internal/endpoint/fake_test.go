package endpoint

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"porin/internal/identity"
	"porin/internal/ipam"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/state"
	"porin/internal/verdict"
)

// kernelModel is a Datapath in memory. It judges packets as the programs do, and calls step after each row that it
// writes, so that a test sees every state in which a packet could come. It outlives the Endpoints that writes it, as the
// kernel does.
type kernelModel struct {
	mu       sync.Mutex
	devices  map[string]int           // name -> ifindex
	rows     map[int]*modelRow        // endpoints
	peers    map[netip.Addr]modelPeer // addresses of pods
	prefixes map[netip.Prefix]identity.ID
	subjects map[policy.SubjectKey]*modelSubject
	next     int
	ops      []string
	step     func(op string)       // after each write; nil: none
	enter    func(op string)       // before the lock of CreateDevice; nil: none
	fail     func(op string) error // before each call; nil: never
}

type modelRow struct {
	ep     Endpoint
	in, eg *modelSubject
	locked bool
}

type modelPeer struct {
	id      identity.ID
	ifindex int
}

type modelSubject struct {
	key   policy.SubjectKey
	peers map[identity.ID]*policy.Table
	other *policy.Table
}

func newModel() *kernelModel {
	return &kernelModel{
		devices: map[string]int{}, rows: map[int]*modelRow{}, peers: map[netip.Addr]modelPeer{},
		prefixes: map[netip.Prefix]identity.ID{}, subjects: map[policy.SubjectKey]*modelSubject{}, next: 10,
	}
}

// begin locks the model and decides whether the call fails.
func (k *kernelModel) begin(op string) error {
	k.mu.Lock()
	k.ops = append(k.ops, op)
	if k.fail != nil {
		return k.fail(op)
	}
	return nil
}

func (k *kernelModel) wrote(op string) {
	if k.step != nil {
		k.step(op)
	}
}

func (k *kernelModel) CreateDevice(ep Endpoint) (int, net.HardwareAddr, error) {
	if k.enter != nil {
		k.enter("CreateDevice")
	}
	defer k.mu.Unlock()
	if err := k.begin("CreateDevice"); err != nil {
		return 0, nil, err
	}
	if _, dup := k.devices[ep.Device]; dup {
		return 0, nil, fmt.Errorf("device %s exists", ep.Device)
	}
	k.next++
	k.devices[ep.Device] = k.next
	k.wrote("CreateDevice")
	return k.next, net.HardwareAddr{2, 0, 0, 0, byte(k.next >> 8), byte(k.next)}, nil
}

func (k *kernelModel) DeviceIndex(name string) (int, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	i, ok := k.devices[name]
	return i, ok
}

func (k *kernelModel) DeleteDevice(name string) error {
	defer k.mu.Unlock()
	if err := k.begin("DeleteDevice"); err != nil {
		return err
	}
	delete(k.devices, name)
	k.wrote("DeleteDevice")
	return nil
}

func (k *kernelModel) PutSubject(s *policy.Subject) error {
	defer k.mu.Unlock()
	if err := k.begin("PutSubject"); err != nil {
		return err
	}
	m := k.subjects[s.Key]
	if m == nil {
		m = &modelSubject{key: s.Key, peers: map[identity.ID]*policy.Table{}}
		k.subjects[s.Key] = m
	}
	for _, id := range slices.Sorted(maps.Keys(s.Peers)) {
		m.peers[id] = s.Peers[id]
		k.wrote("PutSubject row")
	}
	for id := range m.peers {
		if s.Peers[id] == nil {
			delete(m.peers, id)
			k.wrote("PutSubject row")
		}
	}
	m.other = s.Else
	k.wrote("PutSubject")
	return nil
}

func (k *kernelModel) PatchSubject(p policy.Patch) error {
	defer k.mu.Unlock()
	if err := k.begin("PatchSubject"); err != nil {
		return err
	}
	m := k.subjects[p.Subject]
	if m == nil {
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(p.Put)) {
		m.peers[id] = p.Put[id]
		k.wrote("PatchSubject row")
	}
	for _, id := range p.Delete {
		delete(m.peers, id)
		k.wrote("PatchSubject row")
	}
	return nil
}

func (k *kernelModel) WriteEndpoint(ep Endpoint) error {
	defer k.mu.Unlock()
	if err := k.begin("WriteEndpoint"); err != nil {
		return err
	}
	in, eg := k.subjects[ep.Ingress], k.subjects[ep.Egress]
	if in == nil || eg == nil || in.other == nil || eg.other == nil {
		return fmt.Errorf("subjects of endpoint %d are not written", ep.ID)
	}
	if i, ok := k.devices[ep.Device]; !ok || i != ep.Ifindex {
		return fmt.Errorf("no device %s with index %d", ep.Device, ep.Ifindex)
	}
	k.rows[ep.Ifindex] = &modelRow{ep: ep, in: in, eg: eg}
	k.wrote("WriteEndpoint row")
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		k.peers[a] = modelPeer{ep.Identity, ep.Ifindex}
		k.wrote("WriteEndpoint peer")
	}
	return nil
}

func (k *kernelModel) LockEndpoint(ep Endpoint) error {
	defer k.mu.Unlock()
	if err := k.begin("LockEndpoint"); err != nil {
		return err
	}
	if r := k.rows[ep.Ifindex]; r != nil {
		k.rows[ep.Ifindex] = &modelRow{ep: r.ep, locked: true}
		k.wrote("LockEndpoint")
	}
	return nil
}

func (k *kernelModel) RemoveEndpoint(ep Endpoint) error {
	defer k.mu.Unlock()
	if err := k.begin("RemoveEndpoint"); err != nil {
		return err
	}
	if i, there := k.devices[ep.Device]; there && i == ep.Ifindex {
		return fmt.Errorf("device %s would be without a program", ep.Device)
	}
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if k.peers[a].ifindex == ep.Ifindex {
			delete(k.peers, a)
			k.wrote("RemoveEndpoint peer")
		}
	}
	if r := k.rows[ep.Ifindex]; r != nil && r.ep.ID == ep.ID {
		delete(k.rows, ep.Ifindex)
		k.wrote("RemoveEndpoint row")
	}
	return nil
}

func (k *kernelModel) PutPrefixes(ps map[netip.Prefix]identity.ID) error {
	defer k.mu.Unlock()
	if err := k.begin("PutPrefixes"); err != nil {
		return err
	}
	for _, p := range sortedPrefixes(ps) {
		k.prefixes[p] = ps[p]
		k.wrote("PutPrefixes row")
	}
	return nil
}

func (k *kernelModel) DeletePrefixes(ps []netip.Prefix) error {
	defer k.mu.Unlock()
	if err := k.begin("DeletePrefixes"); err != nil {
		return err
	}
	for _, p := range ps {
		delete(k.prefixes, p)
		k.wrote("DeletePrefixes row")
	}
	return nil
}

// Commit frees the subjects that no row points to, as the datapath does later.
func (k *kernelModel) Commit() error {
	defer k.mu.Unlock()
	if err := k.begin("Commit"); err != nil {
		return err
	}
	used := map[policy.SubjectKey]bool{}
	for _, r := range k.rows {
		if !r.locked {
			used[r.in.key], used[r.eg.key] = true, true
		}
	}
	for key := range k.subjects {
		if !used[key] {
			delete(k.subjects, key)
		}
	}
	k.wrote("Commit")
	return nil
}

func (k *kernelModel) Survivors() ([]Endpoint, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	names := map[int]string{}
	for n, i := range k.devices {
		names[i] = n
	}
	var out []Endpoint
	for i, r := range k.rows {
		out = append(out, Endpoint{
			ID: r.ep.ID, Identity: r.ep.Identity, IPv4: r.ep.IPv4, IPv6: r.ep.IPv6, MAC: r.ep.MAC, Ifindex: i, Device: names[i],
		})
	}
	return out, nil
}

func (k *kernelModel) Devices() ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Keys(k.devices)), nil
}

// restart forgets what only the agent's process knew: subjects by key. Rows keep theirs, as in the kernel.
func (k *kernelModel) restart() {
	k.subjects = map[policy.SubjectKey]*modelSubject{}
	k.step, k.fail = nil, nil
	k.ops = nil
}

// identityAt is what the programs find for an address. The lock is held.
func (k *kernelModel) identityAt(a netip.Addr) identity.ID {
	if p, ok := k.peers[a]; ok {
		return p.id
	}
	best, id := -1, identity.WorldIPv6
	if a.Is4() {
		id = identity.WorldIPv4
	}
	for p, n := range k.prefixes {
		if p.Contains(a) && p.Bits() > best {
			best, id = p.Bits(), n
		}
	}
	return id
}

// verdict is what the programs say about TCP between a pod and an address. The lock is held.
func (k *kernelModel) verdict(ifindex int, dir verdict.Direction, remote netip.Addr, port uint16) verdict.Action {
	r := k.rows[ifindex]
	if r == nil || r.locked {
		return verdict.Deny
	}
	s := r.in
	if dir == verdict.Egress {
		s = r.eg
	}
	t := s.peers[k.identityAt(remote)]
	if t == nil {
		t = s.other
	}
	return judge(t, policy.ProtoTCP, port)
}

// judge finds the most specific row of a table.
func judge(t *policy.Table, proto uint8, port uint16) verdict.Action {
	best, action := -1, verdict.Deny
	for _, r := range t.Rows {
		score := -1
		switch {
		case r.Proto == 0 && r.AnyPort:
			score = 0
		case r.Proto == proto && r.AnyPort:
			score = 1
		case r.Proto == proto && r.First <= port && port <= r.Last && r.First != r.Last:
			score = 2
		case r.Proto == proto && r.First == port && r.Last == port:
			score = 3
		}
		if score > best {
			best, action = score, r.Verdict.Action
		}
	}
	return action
}

// memStore gives cluster-wide numbers. It is shared by the agents that a test starts one after the other.
type memStore struct {
	mu   sync.Mutex
	ids  map[string]identity.ID
	next identity.ID
	down bool
	tell func(upsert bool, id identity.ID, key string) // to the allocator that watches
}

func newStore() *memStore { return &memStore{ids: map[string]identity.ID{}, next: identity.MinCluster} }

func (s *memStore) Allocate(ctx context.Context, key string) (identity.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return 0, fmt.Errorf("store: away")
	}
	if s.ids[key] == 0 {
		s.ids[key] = s.next
		s.next++
	}
	return s.ids[key], nil
}
func (s *memStore) Adopt(string, identity.ID)                          {}
func (s *memStore) Release(context.Context, string, identity.ID) error { return nil }
func (s *memStore) Watch(ctx context.Context, tell func(bool, identity.ID, string)) error {
	s.mu.Lock()
	s.tell = tell
	s.mu.Unlock()
	<-ctx.Done()
	return nil
}

// agent is one run of the agent's rooms around a kernel, a store and a state folder that outlive it.
type agent struct {
	*Endpoints
	t      testing.TB
	kernel *kernelModel
	store  *memStore
	dir    string
	db     *state.DB
	ids    *identity.Allocator
	ipam   *ipam.IPAM
	engine *policy.Engine
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

type option func(*Config)

// startAgent makes the rooms and restores. The caller applies the first policies.
func startAgent(t testing.TB, k *kernelModel, store *memStore, dir string, opts ...option) *agent {
	t.Helper()
	return startLogging(t, quiet, k, store, dir, opts...)
}

func startLogging(t testing.TB, log *slog.Logger, k *kernelModel, store *memStore, dir string, opts ...option) *agent {
	t.Helper()
	a := &agent{t: t, kernel: k, store: store, dir: dir, db: state.New(), engine: policy.NewEngine(policy.Config{DualStack: true})}
	table := identity.NewTable(a.db)
	conflict := func(id identity.ID, _ labels.Labels) { a.Reidentify(id) }
	a.ids = identity.New(quiet, identity.Config{DualStack: true, Conflict: conflict}, store, table)
	restored := maps.Clone(k.prefixes)
	a.ids.RestoreCIDRs(restored)
	var err error
	a.ipam, err = ipam.New(ipam.Config{IPv4: netip.MustParsePrefix("10.1.0.0/16"), IPv6: netip.MustParsePrefix("fd00:1::/64")})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		StateDir: dir, MTU: func() int { return 1500 }, Prefixes: restored, Identities: table,
		Check: 5 * time.Millisecond, RetryFirst: time.Millisecond, RetryMax: 10 * time.Millisecond, Grace: time.Millisecond,
	}
	for _, o := range opts {
		o(&cfg)
	}
	a.Endpoints = New(log, cfg, Deps{DB: a.db, Datapath: k, Policy: a.engine, Identities: a.ids, Addresses: a.ipam})
	if err := a.Restore(t.Context()); err != nil {
		t.Fatalf("restore: %v", err)
	}
	return a
}

// newAgent is an agent on an empty node, with policies in force.
func newAgent(t testing.TB, docs ...string) *agent {
	t.Helper()
	a := startAgent(t, newModel(), newStore(), filepath.Join(t.TempDir(), "state"))
	a.apply(docs...)
	return a
}

// restart starts the next run on the same kernel, store and folder.
func (a *agent) restart() *agent {
	a.t.Helper()
	a.kernel.restart()
	return startAgent(a.t, a.kernel, a.store, a.dir)
}

// run runs the agent's Run, and its allocator's, until the test ends.
func (a *agent) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- a.Run(ctx) }()
	go func() { done <- a.ids.Run(ctx) }()
	a.t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				a.t.Errorf("Run: %v", err)
			}
		}
	})
}

func (a *agent) apply(docs ...string) uint64 {
	a.t.Helper()
	rev, err := a.ApplyPolicies(context.Background(), parse(a.t, docs...), nil)
	if err != nil {
		a.t.Fatalf("apply: %v", err)
	}
	return rev
}

func parse(t testing.TB, docs ...string) (out []*policy.Policy) {
	t.Helper()
	for _, d := range docs {
		ps, err := policy.Parse("test.yaml", []byte(d))
		if err != nil {
			t.Fatalf("parse policy: %v\n%s", err, d)
		}
		out = append(out, ps...)
	}
	return out
}

func request(name string, ls ...string) Request {
	set, err := labels.ParseAll(ls...)
	if err != nil {
		panic(err)
	}
	return Request{
		ContainerID: name, IfName: "eth0", Netns: "/run/netns/" + name, Network: "net", Namespace: "default", Pod: name, Labels: set,
	}
}

func (a *agent) create(name string, ls ...string) Endpoint {
	a.t.Helper()
	ep, err := a.Create(context.Background(), request(name, ls...))
	if err != nil {
		a.t.Fatalf("create %s: %v", name, err)
	}
	return ep
}

// can is what the kernel says about TCP.
func (a *agent) can(ep Endpoint, dir verdict.Direction, remote netip.Addr, port uint16) bool {
	a.kernel.mu.Lock()
	defer a.kernel.mu.Unlock()
	return a.kernel.verdict(ep.Ifindex, dir, remote, port) == verdict.Allow
}

// idle tells whether no endpoint is there and none is being worked on.
func (a *agent) idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.attachments.mu.Lock()
	defer a.attachments.mu.Unlock()
	return a.rows.Len() == 0 && len(a.notes) == 0 && len(a.attachments.locks) == 0
}

// empty fails the test if anything is left of endpoints.
func (a *agent) empty() {
	a.t.Helper()
	k := a.kernel
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.devices)+len(k.rows)+len(k.peers)+len(k.subjects) > 0 {
		a.t.Errorf("left in the kernel: %d devices, %d rows, %d peers, %d subjects", len(k.devices), len(k.rows), len(k.peers), len(k.subjects))
	}
	for _, p := range a.ipam.Pools() {
		if p.Used != 0 {
			a.t.Errorf("pool %s: %d addresses used", p.Prefix, p.Used)
		}
	}
	if files, _ := filepath.Glob(filepath.Join(a.dir, "endpoints", "*")); len(files) > 0 {
		a.t.Errorf("left on disk: %v", files)
	}
	e := a.Endpoints
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.rows.Len()+len(e.notes)+len(e.byKey)+len(e.byAddr)+len(e.attachments.locks) > 0 {
		a.t.Errorf("left in memory: %d rows, %d notes, %d keys, %d addresses, %d locks", e.rows.Len(), len(e.notes), len(e.byKey), len(e.byAddr), len(e.attachments.locks))
	}
	if n := &e.kernel.ports; len(n.here)+len(n.users)+len(n.told) > 0 {
		a.t.Errorf("named ports are left in memory: %+v", n)
	}
	if len(e.kernel.pointed)+len(e.kernel.subjects) > 0 {
		a.t.Errorf("left in memory: %d pointers, %d subjects", len(e.kernel.pointed), len(e.kernel.subjects))
	}
}

// soakSeed is the same in every run, so that a run says something of the change and not of chance; another one in every run
// with PORIN_SOAK, which is how faults are looked for.
func soakSeed(t testing.TB) uint64 {
	t.Helper()
	if os.Getenv("PORIN_SOAK") == "" {
		return 1
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return seed
}

// eventually waits for cond, looking again after each change of the endpoints table or a millisecond.
func (a *agent) eventually(what string, cond func() bool) {
	a.t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	for !cond() {
		_, _, changed := a.rows.Watch()
		poll := time.NewTimer(time.Millisecond)
		select {
		case <-changed:
		case <-poll.C:
		case <-deadline.C:
			a.t.Fatalf("waited a minute until %s; endpoints: %+v; alarms: %q", what, a.List(), a.Alarms())
		}
		poll.Stop()
	}
}

// fresh are the agent's rooms with new tables, for another Endpoints.
func (a *agent) fresh() Deps {
	deps := a.deps
	deps.DB = state.New()
	return deps
}

func identityRow(ep Endpoint) identity.Identity {
	return identity.Identity{ID: ep.Identity, Labels: ep.Security}
}
