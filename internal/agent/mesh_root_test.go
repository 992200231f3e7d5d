package agent

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	agentv1 "porin/api/agent/v1"
	"porin/internal/identity"
	"porin/internal/kvstore"
	"porin/internal/labels"
	"porin/internal/node"
)

// fromFar lets workloads of cluster far with app=a, and nobody else, reach app=web.
const fromFar = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web-from-far, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: a, io.cilium.k8s.policy.cluster: far}}]
`

// cable connects two empty namespaces as the uplinks of two nodes, 192.0.2.1 and 192.0.2.2.
func cable(t *testing.T, one, two holder) {
	t.Helper()
	end := func(last byte) error {
		up, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, last), Mask: net.CIDRMask(24, 32)}}
		if err := netlink.AddrAdd(up, addr); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(up); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 0, 2, 3-last)})
	}
	err := one.in(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "up0"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up0", PeerNamespace: netlink.NsPid(two.pid)}); err != nil {
			return err
		}
		return end(1)
	})
	if err == nil {
		err = two.in(func() error { return end(2) })
	}
	if err != nil {
		t.Fatalf("connect two nodes: %v", err)
	}
}

// meshNode is the one node of a cluster that reads another cluster's store.
func meshNode(t *testing.T, h holder, store, cluster string, id int, pods string, peer *sharedStore, peerName string, peerID int, prefixes string) *testNode {
	t.Helper()
	n := newTestNodeIn(t, h, "--kvstore="+store, "--cluster-name="+cluster, fmt.Sprintf("--cluster-id=%d", id),
		"--node-name="+cluster+"-node", "--ipv4-range=10."+pods+".0.0/24", "--ipv6-range=fd00:"+pods+"::/64")
	dir := filepath.Join(n.dir, "mesh")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("id: %d\nendpoints: ['%s']\nprefixes: [%s]\n", peerID, peer.Endpoint(), prefixes)
	if err := os.WriteFile(filepath.Join(dir, peerName+".yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n.extra = append(n.extra, "--cluster-mesh-config="+dir)
	return n
}

// Two clusters with a store each read each other's. Their pods talk, policy tells the clusters apart, and the other
// cluster's store may end without any change. What that store says of this cluster is refused.
func TestRootClusterMesh(t *testing.T) {
	needRoot(t)
	nearStore, farStore := newSharedStore(t), newSharedStore(t)
	h1, h2 := hold(t, "pod"), hold(t, "pod")
	cable(t, h1, h2)
	near := meshNode(t, h1, nearStore.Endpoint(), "near", 1, "1", farStore, "far", 2, "10.2.0.0/16, 'fd00:2::/48'")
	far := meshNode(t, h2, farStore.Endpoint(), "far", 2, "2", nearStore, "near", 1, "10.1.0.0/16, 'fd00:1::/48'")
	near.ready()
	far.ready()
	eventually(t, "each knows the other's node", func() bool {
		return near.nodeRow("far-node").State == node.Live && far.nodeRow("near-node").State == node.Live
	})
	web, nearA := near.pod("web", "web"), near.pod("a", "a")
	farA, farB := far.pod("a", "a"), far.pod("b", "b")
	known := func(at *testNode, addr, cluster string) bool {
		return slices.ContainsFunc(at.addressRows(), func(r node.AddressRow) bool {
			return r.Addr.String() == addr && r.Message == "" && r.Cluster == cluster && !r.Identity.IsReserved()
		})
	}
	both := func() bool {
		return known(near, farA.v4, "far") && known(near, farA.v6, "far") && known(near, farB.v4, "far") && known(near, farB.v6, "far") &&
			known(far, web.v4, "near") && known(far, web.v6, "near") && known(far, nearA.v4, "near")
	}
	eventually(t, "each knows the other's pods", both)
	web.serve(t, port)
	for _, from := range []pod{nearA, farA, farB} {
		reaches(t, from, web, true)
	}
	near.apply(fromFar)
	matrix := func() {
		t.Helper()
		reaches(t, farA, web, true)
		reaches(t, farB, web, false)
		reaches(t, nearA, web, false) // the same labels, but of this cluster
	}
	matrix()

	lies(t, farStore, web)
	refusals := func() string {
		st, err := near.Status(t.Context(), &agentv1.StatusRequest{})
		if err != nil {
			return ""
		}
		return strings.Join(st.GetAlarms(), "\n")
	}
	eventually(t, "near names what it refuses", func() bool {
		return strings.Contains(refusals(), "node far/thief") && strings.Contains(refusals(), "that node far/far-node tells of are refused")
	})
	for _, r := range near.addressRows() {
		if r.Message == "" && (r.Addr.String() == web.v4 || r.Addr.String() == "10.2.0.99") {
			t.Errorf("near believes %+v", r)
		}
	}
	for _, n := range near.identities() {
		if n.GetId() == uint32(300) || n.GetId() == 2<<16+999 {
			t.Errorf("near believes identity %v", n)
		}
	}
	if got := near.metric("porin_kvstore_records_refused_total"); got < 4 {
		t.Errorf("%v records refused, want at least 4", got)
	}

	farStore.stop()
	eventually(t, "near says that far's store is away", func() bool { return strings.Contains(refusals(), "cluster far: its store has not answered") })
	if !both() {
		t.Error("something is forgotten, though only the store of the other cluster ended")
	}
	matrix()
}

// lies writes what no node of cluster far may say into its store: a node with ranges of cluster near, a pod's address of
// near, an identity of near for an address of its own, and numbers that mean labels of near. The node comes last: in its own
// cluster the first to claim a range has it.
func lies(t *testing.T, store *sharedStore, victim pod) {
	t.Helper()
	client, err := kvstore.Dial(slog.New(slog.DiscardHandler), kvstore.Config{Endpoints: []string{store.Endpoint()}, Node: "liar"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	write := func(key, value string) {
		t.Helper()
		if err := client.Set(t.Context(), key, value, true); err != nil {
			t.Fatal(err)
		}
	}
	thief := node.Node{
		Cluster: "far", ClusterID: 2, Name: "thief", Generation: math.MaxInt64, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.77")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")},
	}
	write(kvstore.NodeKey("far", "thief"), jsonText(t, thief))
	address := func(id identity.ID) string {
		return fmt.Sprintf(`{"identity":%d,"meaning":"0000000000000000","pod":"lie","generation":9}`, id)
	}
	write(kvstore.AddressKey("far", "far-node", netip.MustParseAddr(victim.v4)), address(2<<16+300))
	write(kvstore.AddressKey("far", "far-node", netip.MustParseAddr("10.2.0.99")), address(1<<16+300))
	write("porin/identities/v1/id/300", "k8s:app=a;")
	ls := labels.New(labels.Label{Source: labels.SourceK8s, Key: "app", Value: "a"}, labels.Label{Source: labels.SourceK8s, Key: labels.KeyCluster, Value: "near"})
	write(fmt.Sprintf("porin/identities/v1/id/%d", 2<<16+999), ls.Key())
}

func jsonText(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (n *testNode) identities() []*agentv1.Identity {
	n.t.Helper()
	resp, err := n.ListIdentities(n.t.Context(), &agentv1.ListIdentitiesRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.GetIdentities()
}

// metric returns the sum of a metric's values.
func (n *testNode) metric(name string) (sum float64) {
	n.t.Helper()
	resp, err := n.ListMetrics(n.t.Context(), &agentv1.ListMetricsRequest{Pattern: name})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, r := range resp.GetRows() {
		v, err := strconv.ParseFloat(r.GetCells()[len(r.GetCells())-1], 64)
		if err != nil {
			n.t.Fatal(err)
		}
		sum += v
	}
	return sum
}
