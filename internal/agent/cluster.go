package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"porin/internal/durable"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/kvstore"
	"porin/internal/labels"
	"porin/internal/metrics"
	"porin/internal/node"
	"porin/internal/policy"
)

// claimFile is where the node remembers its place in the store.
const claimFile = "node.json"

// addressCheck is how often the node's own addresses are looked at.
const addressCheck = 10 * time.Second

// cluster is this node's part in the cluster: what it says of itself, and what it hears of others.
//
//	endpoints table ──▶ own records ──▶ store ──▶ other nodes' records ──▶ node.Nodes ──▶ kernel
//	uplinks' addresses ─┘                 other clusters' stores ──┘
type cluster struct {
	log     *slog.Logger
	nodes   *node.Nodes
	records *kvstore.Records // nil while the store is this node's alone
	mesh    *mesh            // nil without other clusters
}

// rules are the identities as the node room wants them.
type rules struct{ a *agent }

func (r rules) Hold(id identity.ID) (identity.Identity, bool) { return r.a.identities.Hold(id) }
func (r rules) LetGo(id identity.ID)                          { r.a.identities.LetGo(id) }

// Learn makes the rules know identities before an address has them.
func (r rules) Learn(ctx context.Context, ids []identity.Identity, ports map[identity.ID][]node.Port) error {
	if len(ports) > 0 {
		named := make(map[identity.ID][]policy.NamedPort, len(ports))
		for id, list := range ports {
			for _, p := range list {
				named[id] = append(named[id], policy.NamedPort(p))
			}
			if len(list) == 0 {
				named[id] = nil
			}
		}
		if err := r.a.endpoints.LearnPorts(ctx, named); err != nil {
			return err
		}
	}
	return r.a.endpoints.Learn(ctx, ids...)
}

// newCluster makes the part without starting it.
func (a *agent) newCluster(log *slog.Logger) *cluster {
	return &cluster{log: log, nodes: node.NewNodes(log, node.Config{
		Self: a.self(nil), Family: a.cfg.Cluster.Underlay, Grace: a.cfg.Cluster.Grace,
	}, node.Deps{DB: a.db, Datapath: a.datapath, Identities: rules{a}})}
}

// self is what this node says of itself.
func (a *agent) self(addresses []netip.Addr) node.Node {
	n := node.Node{
		Cluster: a.cfg.ClusterName, ClusterID: a.cfg.Cluster.ID, Name: a.cfg.NodeName, Addresses: addresses, Labels: a.cfg.Cluster.NodeLabels,
		Health:     a.healthAddresses(),
		Generation: 1, // until there is a claim
	}
	for _, p := range []netip.Prefix{a.cfg.IPv4Range, a.cfg.IPv6Range} {
		if p.IsValid() {
			n.PodCIDRs = append(n.PodCIDRs, p)
		}
	}
	return n
}

// startCluster publishes and listens, once the endpoints are restored.
func (a *agent) startCluster(run *stack, room func(string) *slog.Logger) error {
	c := a.cluster
	if !a.cfg.Cluster.Shared {
		run.start("node", c.nodes.Run)
		return nil
	}
	a.metrics.Cluster(a.clusterFigures)
	path := filepath.Join(a.cfg.StateDir, claimFile)
	claim, err := readClaim(path)
	if err != nil {
		c.log.Warn("claim of this node not read; it claims its ranges anew", "err", err)
	}
	c.records = kvstore.NewRecords(room("kvstore"), a.store, kvstore.RecordsConfig{
		Cluster: a.cfg.ClusterName, ClusterID: a.cfg.Cluster.ID, Node: a.cfg.NodeName, Claim: claim,
		Save: func(cl kvstore.Claim) error { return writeClaim(path, cl) },
	})
	c.records.OnClaim(func(uint64) { a.publishSelf(nil) })
	first := a.publishEndpoints(nil)
	last := a.nodeAddresses()
	if len(last) == 0 {
		last = c.nodes.Self().Addresses // an uplink that is not up yet does not make the others unreachable for good
	}
	a.publishSelf(last)
	run.start("node", c.nodes.Run)
	run.start("keep", a.keep)
	own := node.Source{Cluster: a.cfg.ClusterName, ID: a.cfg.Cluster.ID}
	run.start("own records", c.records.Run)
	run.start("records", func(ctx context.Context) error {
		return c.records.Watch(ctx, func(b node.Batch) { c.nodes.Heard(own, b) })
	})
	run.start("own addresses", func(ctx context.Context) error { return a.follow(ctx, first, last) })
	if a.cfg.Cluster.MeshDir == "" {
		return nil
	}
	c.mesh = newMesh(a, room("mesh"))
	run.start("mesh", c.mesh.Run)
	return nil
}

// publishSelf tells the others and the own room what this node is. Without addresses those that were told last stay.
func (a *agent) publishSelf(addresses []netip.Addr) {
	if addresses == nil {
		addresses = a.cluster.nodes.Self().Addresses
	}
	n := a.self(addresses)
	a.cluster.records.PublishNode(n)
	n.Generation = a.cluster.records.Generation()
	a.cluster.nodes.SetSelf(n)
}

// follow publishes endpoints and addresses as they change.
func (a *agent) follow(ctx context.Context, told map[netip.Addr]node.Address, addresses []netip.Addr) error {
	tick := time.NewTicker(addressCheck)
	defer tick.Stop()
	for {
		_, _, changed := a.endpoints.Table().Watch()
		told = a.publishEndpoints(told)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-tick.C:
			if now := a.nodeAddresses(); len(now) > 0 && !slices.Equal(now, addresses) {
				a.cluster.log.Info("this node's addresses changed", "addresses", now, "were", addresses)
				addresses = now
				a.publishSelf(now)
			}
		}
	}
}

// publishEndpoints publishes the difference between what was told and what is, and returns the latter.
func (a *agent) publishEndpoints(told map[netip.Addr]node.Address) map[netip.Addr]node.Address {
	now := make(map[netip.Addr]node.Address, len(told))
	for _, ep := range a.endpoints.List() {
		for _, r := range a.record(ep) {
			now[r.Addr] = r
		}
	}
	var put []node.Address
	var remove []netip.Addr
	for addr, r := range now {
		if old, ok := told[addr]; !ok || !sameAddress(old, r) {
			put = append(put, r)
		}
	}
	for addr := range told {
		if _, still := now[addr]; !still {
			remove = append(remove, addr)
		}
	}
	if len(put)+len(remove) > 0 {
		a.cluster.records.PublishAddresses(put, remove)
	}
	return now
}

func sameAddress(a, b node.Address) bool {
	return a.Addr == b.Addr && a.Identity == b.Identity && a.Meaning == b.Meaning && a.Namespace == b.Namespace && a.Pod == b.Pod &&
		a.Generation == b.Generation && slices.Equal(a.Ports, b.Ports)
}

// record is what others must know of an endpoint: nothing before its identity is known to the cluster. One that is denied
// keeps its record: its address is still its own.
func (a *agent) record(ep endpoint.Endpoint) (list []node.Address) {
	switch ep.Phase {
	case endpoint.Ready, endpoint.NotReady, endpoint.Restoring:
	default:
		return nil
	}
	if ep.Identity != identity.Health && (ep.Identity.IsReserved() || ep.Identity.IsLocal()) {
		return nil
	}
	security := ep.Security
	if id, ok := a.identities.Get(ep.Identity); len(security) == 0 && ok {
		security = id.Labels
	}
	for _, addr := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if !addr.IsValid() {
			continue
		}
		r := node.Address{
			Addr: addr, Identity: ep.Identity, Meaning: node.MeaningOf(security), Cluster: a.cfg.ClusterName, Node: a.cfg.NodeName,
			Namespace: ep.Namespace, Pod: ep.Pod, Generation: uint64(max(ep.Created.UnixNano(), 1)),
		}
		for _, p := range ep.NamedPorts {
			r.Ports = append(r.Ports, node.Port(p))
		}
		list = append(list, r)
	}
	return list
}

// security is the label filter; in a mesh every workload also carries its cluster's name.
func (c Config) security(all labels.Labels) labels.Labels {
	ls := c.Labels.Security(all)
	if c.Cluster.ID == 0 {
		return ls
	}
	return labels.New(append(slices.Clone(ls), labels.Label{Source: labels.SourceK8s, Key: labels.KeyCluster, Value: c.ClusterName})...)
}

// nodeAddresses returns the addresses by which others reach this node: those that the datapath sends from.
func (a *agent) nodeAddresses() []netip.Addr {
	v4, v6, err := a.datapath.Underlay()
	if err != nil {
		a.cluster.log.Warn("this node's addresses not found; those that the others know stay", "err", err)
		return nil
	}
	var out []netip.Addr
	for _, addr := range []netip.Addr{v4, v6} {
		if addr.IsValid() {
			out = append(out, addr)
		}
	}
	return out
}

func readClaim(path string) (c kvstore.Claim, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return kvstore.Claim{}, fmt.Errorf("claim in %s: %w", path, err)
	}
	return c, nil
}

func writeClaim(path string, c kvstore.Claim) error {
	b, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("claim for %s: %w", path, err)
	}
	return durable.Replace(path, b)
}

// alarms says what is wrong with the cluster as this node sees it.
func (c *cluster) alarms() []string {
	out := c.nodes.Alarms()
	if c.mesh != nil {
		out = append(out, c.mesh.Alarms()...)
	}
	return out
}

// summary is one line for the status.
func (c *cluster) summary() string {
	if c.records == nil {
		return "this node is alone"
	}
	n := c.nodes.Counts()
	there, wanted := c.records.Published()
	text := fmt.Sprintf("%d nodes live, %d lapsed, %d refused; %d addresses of theirs, %d wait for their identity, %d refused; %d of %d own records published",
		n.Nodes[node.Live], n.Nodes[node.Lapsed], n.Nodes[node.Refused], n.Addresses, n.Waiting, n.Refused, there, wanted)
	if c.mesh != nil {
		text += fmt.Sprintf("; %d other clusters", len(c.mesh.Clusters()))
	}
	return text
}

// clusterFigures are for the metrics.
func (a *agent) clusterFigures() metrics.ClusterFigures {
	f := metrics.ClusterFigures{Nodes: map[string]int{}, Addresses: map[string]int{}}
	c := a.cluster
	n := c.nodes.Counts()
	for state, count := range n.Nodes {
		f.Nodes[string(state)] = count
	}
	maps.Copy(f.Addresses, n.Reasons)
	f.Addresses["programmed"] = n.Addresses
	counts := a.store.Counts()
	f.Refused = n.Refusals + counts["refused"] + a.identities.Refused()
	f.Listings, f.Lost = counts["listings"], counts["lost"]
	if c.records != nil {
		there, wanted := c.records.Published()
		f.Published, f.Unpublished = there, wanted-there
	}
	if c.mesh != nil {
		f.Clusters = c.mesh.Clusters()
	}
	return f
}
