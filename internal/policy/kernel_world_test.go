package policy_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/ipam"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/state"
)

// change is one thing that happens to a node. Changes of one key replace each other, so they keep their order; others may
// come in any.
type change struct {
	key  string
	does func(w *world) error
}

// world is an agent's rooms on the node, from the first policy to the last, and the oracle's view of the same.
type world struct {
	t          *testing.T
	node       *kernelNode
	oracle     *policy.Oracle
	engine     *policy.Engine
	endpoints  *endpoint.Endpoints
	identities *identity.Allocator

	docs    map[policy.Ref]policy.Doc
	pods    map[string]*pod
	remotes map[string]remote
	flows   []flow // that were let through once
	sport   uint16
	done    []change
	stats   *stats
}

type pod struct {
	peer      policy.Peer
	row       endpoint.Endpoint
	namespace string
	given     labels.Labels
	ports     []policy.NamedPort
}

type remote struct {
	peer  policy.Peer
	id    identity.ID
	ports []policy.NamedPort
}

type stats struct {
	first, again, replayed            int
	by                                map[string]int
	allowed, refused, denied, audited int
	rejudged, against                 int
	proxied, unproven                 int
}

// everything tells whether every kind of verdict was made.
func (s *stats) everything() bool {
	return !slices.Contains([]int{s.allowed, s.refused, s.denied, s.against, s.audited, s.proxied, s.unproven}, 0) && len(s.by) == 3
}

// newWorld starts the rooms on the node, without policies and pods.
func newWorld(t *testing.T, n *kernelNode, o *policy.Oracle, st *stats) *world {
	t.Helper()
	w := &world{
		t: t, node: n, oracle: o, engine: policy.NewEngine(o.Config()), sport: 20000, stats: st,
		docs: map[policy.Ref]policy.Doc{}, pods: map[string]*pod{}, remotes: map[string]remote{},
	}
	w.endpoints, w.identities = newRooms(t, n, w.engine)
	if err := n.datapath.SetAudit(o.Config().Audit); err != nil {
		t.Fatal(err)
	}
	return w
}

// newRooms starts the endpoints of the node with an engine without policies.
func newRooms(t testing.TB, n *kernelNode, engine *policy.Engine) (*endpoint.Endpoints, *identity.Allocator) {
	t.Helper()
	db := state.New()
	log := slog.New(slog.DiscardHandler)
	identities := identity.New(log, identity.Config{DualStack: n.dual}, &store{}, identity.NewTable(db))
	ranges := ipam.Config{IPv4: netip.MustParsePrefix("10.7.0.0/24")}
	if n.dual {
		ranges.IPv6 = netip.MustParsePrefix("fd07::/112")
	}
	addresses, err := ipam.New(ranges)
	if err != nil {
		t.Fatal(err)
	}
	endpoints := endpoint.New(log, endpoint.Config{StateDir: t.TempDir(), Grace: 1}, endpoint.Deps{
		DB: db, Datapath: n.datapath, Policy: engine, Identities: identities, Addresses: addresses,
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	if err := endpoints.Restore(ctx); err != nil {
		t.Fatal(err)
	}
	go func() { done <- endpoints.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if _, err := endpoints.ApplyPolicies(ctx, nil, nil); err != nil {
		t.Fatal(err)
	}
	return endpoints, identities
}

// end takes everything off the node again.
func (w *world) end() {
	w.t.Helper()
	for name := range maps.Clone(w.pods) {
		w.do(deletePod(name))
	}
	for name := range maps.Clone(w.remotes) {
		w.do(forgetRemote(name))
	}
	if _, err := w.endpoints.ApplyPolicies(w.t.Context(), nil, slices.Collect(maps.Keys(w.docs))); err != nil {
		w.t.Fatal(err)
	}
	if a := append(w.endpoints.Alarms(), w.node.datapath.Alarms()...); len(a) > 0 {
		w.t.Fatalf("alarms: %q", a)
	}
	if _, err := w.node.datapath.FlushMap("ct"); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) do(c change) {
	w.t.Helper()
	if err := c.does(w); err != nil {
		w.t.Fatalf("%s: %v", c.key, err)
	}
	w.done = append(w.done, c)
}

func putPolicy(d policy.Doc) change {
	return change{d.Policy.String(), func(w *world) error {
		w.docs[d.Policy.Ref] = d
		_, err := w.endpoints.ApplyPolicies(w.t.Context(), []*policy.Policy{d.Policy}, nil)
		return err
	}}
}

func deletePolicy(ref policy.Ref) change {
	return change{ref.String(), func(w *world) error {
		delete(w.docs, ref)
		_, err := w.endpoints.ApplyPolicies(w.t.Context(), nil, []policy.Ref{ref})
		return err
	}}
}

func podAt(i int) string { return fmt.Sprintf("pod%d", i) }

func createPod(i int, peer policy.Peer, namespace string, given labels.Labels, ports []policy.NamedPort) change {
	return change{podAt(i), func(w *world) error {
		row, err := w.endpoints.Create(w.t.Context(), endpoint.Request{
			ContainerID: podAt(i), IfName: "eth0", Netns: w.node.netns[i], Namespace: namespace, Labels: given, MTU: 1500,
			NamedPorts: ports,
		})
		if err == nil {
			w.pods[podAt(i)] = &pod{peer, row, namespace, given, ports}
		}
		return err
	}}
}

func relabelPod(name string, peer policy.Peer, given labels.Labels) change {
	return change{name, func(w *world) (err error) {
		p := w.pods[name]
		p.row, err = w.endpoints.SetLabels(w.t.Context(), p.row.ID, given, p.given)
		p.peer, p.given = peer, given
		return err
	}}
}

func deletePod(name string) change {
	return change{name, func(w *world) error {
		delete(w.pods, name)
		w.flows = slices.DeleteFunc(w.flows, func(f flow) bool { return f.from.name == name || f.to.name == name })
		return w.endpoints.Delete(w.t.Context(), name, "eth0")
	}}
}

const remotes = 6

func remoteAt(i int) string { return fmt.Sprintf("remote%d", i) }

func remoteAddr(name string, six bool) netip.Addr {
	i := name[len(name)-1] - '0'
	if six {
		return netip.AddrFrom16([16]byte{0: 0xfd, 1: 9, 15: 10 + i})
	}
	return netip.AddrFrom4([4]byte{10, 9, 0, 10 + i})
}

func remotePrefixes(name string) (out []netip.Prefix) {
	for _, six := range []bool{false, true} {
		a := remoteAddr(name, six)
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// putRemote gives addresses to a workload of another node, or to a reserved identity: the rules learn it first.
func putRemote(name string, peer policy.Peer, ports []policy.NamedPort) change {
	return change{name, func(w *world) error {
		id := peer.Identity()
		if len(id.Labels) == 0 || !id.ID.IsReserved() {
			var err error
			if id, err = w.identities.Allocate(w.t.Context(), id.Labels); err != nil {
				return err
			}
		}
		if id.ID == identity.Init {
			peer = policy.Reserved(identity.Init) // no labels at all
		}
		if err := w.endpoints.Learn(w.t.Context(), id); err != nil {
			return err
		}
		rows := map[netip.Prefix]identity.ID{}
		for _, p := range remotePrefixes(name) {
			rows[p] = id.ID
		}
		was := w.remotes[name].id
		w.remotes[name] = remote{peer, id.ID, ports}
		if err := w.learnPorts(was, id.ID); err != nil {
			return err
		}
		if err := w.node.datapath.PutPrefixes(rows); err != nil {
			return err
		}
		return w.node.datapath.Commit()
	}}
}

func forgetRemote(name string) change {
	return change{name, func(w *world) error {
		was := w.remotes[name].id
		delete(w.remotes, name)
		if err := w.learnPorts(was); err != nil {
			return err
		}
		if err := w.node.datapath.DeletePrefixes(remotePrefixes(name)); err != nil {
			return err
		}
		return w.node.datapath.Commit()
	}}
}

// learnPorts says which named ports the workloads of other nodes have.
func (w *world) learnPorts(ids ...identity.ID) error {
	set := map[identity.ID][]policy.NamedPort{}
	for _, id := range ids {
		set[id] = nil
		for _, r := range w.remotes {
			if r.id == id {
				set[id] = append(set[id], r.ports...)
			}
		}
	}
	delete(set, identity.Unknown)
	return w.endpoints.LearnPorts(w.t.Context(), set)
}

// random makes a change that is possible now.
func (w *world) random() change {
	o := w.oracle
	switch o.IntN(9) {
	case 8:
		return putPolicy(o.Object(w.t))
	case 0, 1, 2:
		return putPolicy(o.Doc(w.t, fmt.Sprintf("p%d", o.IntN(9))))
	case 3:
		if docs := policy.Sorted(w.docs); len(docs) > 0 {
			return deletePolicy(docs[o.IntN(len(docs))].Policy.Ref)
		}
	case 4:
		i := o.IntN(remotes)
		if _, there := w.remotes[remoteAt(i)]; there && o.IntN(2) == 0 {
			return forgetRemote(remoteAt(i))
		}
		if o.IntN(3) == 0 {
			kinds := []identity.ID{identity.RemoteNode, identity.Health, identity.Unmanaged, identity.KubeAPIServer, identity.Ingress}
			return putRemote(remoteAt(i), policy.Reserved(kinds[o.IntN(len(kinds))]), nil)
		}
		return putRemote(remoteAt(i), o.Remote(), o.Numbers())
	case 5:
		i := o.IntN(pods)
		if _, there := w.pods[podAt(i)]; there {
			return deletePod(podAt(i))
		}
		peer, ns, given := o.Pod()
		return createPod(i, peer, ns, given, o.Numbers())
	}
	i := o.IntN(pods)
	if p, there := w.pods[podAt(i)]; there {
		peer, _, given := o.Relabeled(p.namespace)
		return relabelPod(podAt(i), peer, given)
	}
	peer, ns, given := o.Pod()
	return createPod(i, peer, ns, given, o.Numbers())
}
