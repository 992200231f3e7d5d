package agent

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"porin/internal/datapath"
	"porin/internal/identity"
	"porin/internal/kvstore"
	"porin/internal/labels"
	"porin/internal/node"
)

// ClusterConfig is what an agent needs to know to be one of several.
type ClusterConfig struct {
	ID            uint8 // in the numbers of identities; 0: the cluster has no others beside it
	Shared        bool  // the store is one that other nodes use
	Listen        string
	ListenCert    string
	ListenKey     string
	ListenCA      string
	Routing       string // geneve, vxlan or native
	TunnelPort    uint16
	Underlay      node.Family
	TunnelDevice  string
	DirectRoutes  bool
	NativeCIDRs   []netip.Prefix
	NodeAddresses []netip.Addr // empty: those of the uplinks
	NodeLabels    labels.Labels
	Grace         time.Duration
	MeshDir       string
	MeshGrace     time.Duration
}

// Ways in which packets travel between nodes.
const (
	routingGeneve = "geneve"
	routingVXLAN  = "vxlan"
	routingNative = "native"
	routingTunnel = "tunnel"
)

// maxNodeGrace is shorter than a freed identity number rests: an address that is kept must not get another meaning.
const maxNodeGrace = 30 * time.Minute

func clusterFlags(f *pflag.FlagSet) {
	f.Uint8("cluster-id", 0, "number of the cluster among those that it is meshed with, 1 to 255 (0: no mesh)")
	f.StringSlice("kvstore-endpoints", nil, "another way to write --kvstore")
	f.String("kvstore-listen", "", "HOST:PORT where the embedded store serves other nodes ('' for none)")
	f.String("kvstore-listen-cert", "", "certificate of that listener (PEM)")
	f.String("kvstore-listen-key", "", "its key (PEM)")
	f.String("kvstore-listen-ca", "", "authority that signs the certificates of other nodes (PEM)")
	f.Bool("kvstore-insecure", false, "let the embedded store serve other nodes without certificates: for labs only")
	f.String("routing", routingGeneve, "how packets reach other nodes: geneve, vxlan, or native")
	f.String("routing-mode", "", "tunnel or native: another way to write --routing")
	f.String("tunnel-protocol", "", "geneve or vxlan, with --routing-mode tunnel")
	f.Uint16("tunnel-port", 0, "UDP port of the tunnel (0: 6081 for geneve, 8472 for vxlan)")
	f.String("tunnel-device", datapath.TunnelByPrograms, "who frames: bpf, or kernel (its own VXLAN device)")
	f.String("underlay", string(node.Auto), "family of the addresses that nodes reach each other by: auto, ipv4, or ipv6")
	f.Bool("auto-direct-node-routes", false, "with native routing: a route to every node's pods by that node's address")
	f.StringSlice("native-routing-cidr", nil, "CIDRs that the network carries to pods: not masqueraded")
	f.StringSlice("node-address", nil, "addresses by which other nodes reach this one, at most one of each family (default: the uplinks')")
	f.StringSlice("node-labels", nil, "labels of this node, key=value")
	f.Duration("node-grace", 10*time.Minute, "how long a node that is cut off from the store stays known to the others after its lease ended")
	f.String("cluster-mesh-config", "", "folder with a file for each other cluster whose store is to be read")
	f.Duration("cluster-mesh-grace", time.Hour, "how long another cluster stays known while its store does not answer")
}

// cluster checks what makes this node one of several.
func (b *builder) cluster(c *Config, fs *pflag.FlagSet) {
	k := &c.Cluster
	k.ID, _ = fs.GetUint8("cluster-id")
	if list := b.values["kvstore-endpoints"]; list != "" {
		if b.values["kvstore"] != embedded && b.values["kvstore"] != list {
			b.fail("kvstore-endpoints", "kvstore is set too, to something else; set one of the two")
		}
		c.Endpoints = b.store("kvstore-endpoints")
	}
	b.listener(k, c.Endpoints == nil)
	k.Shared = c.Endpoints != nil || k.Listen != ""
	b.routing(k)
	if k.Underlay = node.Family(b.values["underlay"]); !slices.Contains([]node.Family{node.Auto, node.IPv4, node.IPv6}, k.Underlay) {
		b.fail("underlay", fmt.Sprintf("%q: auto, ipv4 or ipv6 is wanted", k.Underlay))
	}
	for _, s := range b.list("native-routing-cidr") {
		p, err := netip.ParsePrefix(s)
		if err != nil || p != p.Masked() {
			b.fail("native-routing-cidr", fmt.Sprintf("%q is no CIDR (or has bits behind its prefix length)", s))
		}
		k.NativeCIDRs = append(k.NativeCIDRs, p)
	}
	for _, s := range b.list("node-address") {
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil || a.Zone() != "" || a.Is4In6() || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast():
			b.fail("node-address", fmt.Sprintf("%q is no address that other nodes could reach", s))
		case slices.ContainsFunc(k.NodeAddresses, func(o netip.Addr) bool { return o.Is4() == a.Is4() }):
			b.fail("node-address", "at most one address of each family")
		}
		k.NodeAddresses = append(k.NodeAddresses, a)
	}
	var list []labels.Label
	for _, s := range b.list("node-labels") {
		l, err := labels.Parse(labels.SourceNode + ":" + s)
		if err != nil || strings.Contains(s, ":") {
			b.fail("node-labels", fmt.Sprintf("%q: key=value is wanted", s))
			continue
		}
		list = append(list, l)
	}
	k.NodeLabels = labels.New(list...)
	if k.Grace, _ = fs.GetDuration("node-grace"); k.Grace <= 0 || k.Grace > maxNodeGrace {
		b.fail("node-grace", fmt.Sprintf("%s: more than 0 and at most %s is wanted, the time for which a freed identity is sure to rest", k.Grace, maxNodeGrace))
	}
	b.mesh(k, fs)
}

func (b *builder) mesh(k *ClusterConfig, fs *pflag.FlagSet) {
	if k.MeshDir = b.values["cluster-mesh-config"]; k.MeshDir != "" {
		if !filepath.IsAbs(k.MeshDir) {
			b.fail("cluster-mesh-config", fmt.Sprintf("%q: an absolute path is wanted", k.MeshDir))
		}
		if k.ID == 0 {
			b.fail("cluster-mesh-config", "the cluster has no number of its own: set cluster-id to one from 1 to 255 that no other cluster has, on all of its nodes")
		}
	}
	if k.MeshGrace, _ = fs.GetDuration("cluster-mesh-grace"); k.MeshGrace <= 0 {
		b.fail("cluster-mesh-grace", "a time above 0 is wanted")
	}
}

// listener checks where the embedded store serves others. Without certificates it does so only when asked by name.
func (b *builder) listener(k *ClusterConfig, own bool) {
	k.Listen = b.values["kvstore-listen"]
	k.ListenCert, k.ListenKey, k.ListenCA = b.values["kvstore-listen-cert"], b.values["kvstore-listen-key"], b.values["kvstore-listen-ca"]
	if k.Listen == "" {
		if k.ListenCert+k.ListenKey+k.ListenCA != "" {
			b.fail("kvstore-listen", "its certificates are given, but not where to listen: HOST:PORT")
		}
		return
	}
	if _, port, err := net.SplitHostPort(k.Listen); err != nil || port == "" {
		b.fail("kvstore-listen", fmt.Sprintf("%q: HOST:PORT is wanted, such as 10.0.0.1:2379", k.Listen))
	}
	if !own {
		b.fail("kvstore-listen", "only an embedded store can serve others; kvstore names another one")
	}
	given := 0
	for _, f := range []string{k.ListenCert, k.ListenKey, k.ListenCA} {
		if f != "" {
			given++
		}
	}
	switch insecure := b.bool("kvstore-insecure"); {
	case given == 0 && !insecure:
		b.fail("kvstore-listen", "whoever reaches the store rules the cluster: give kvstore-listen-cert, -key and -ca (or, in a lab, kvstore-insecure)")
	case given > 0 && insecure:
		b.fail("kvstore-insecure", "certificates are given; leave one of the two out")
	case given > 0 && given < 3:
		b.fail("kvstore-listen", "all three of kvstore-listen-cert, -key and -ca are needed: who connects must show a certificate too")
	}
}

// routing reads both spellings.
func (b *builder) routing(k *ClusterConfig) {
	k.Routing = b.values["routing"]
	switch mode, protocol := b.values["routing-mode"], b.values["tunnel-protocol"]; {
	case mode == "" && protocol == "":
	case mode == routingNative && protocol == "":
		k.Routing = routingNative
	case (mode == routingTunnel || mode == "") && (protocol == "" || protocol == routingGeneve || protocol == routingVXLAN):
		if k.Routing = protocol; protocol == "" {
			k.Routing = routingGeneve
		}
	default:
		b.fail("routing-mode", fmt.Sprintf("%q with tunnel-protocol %q: tunnel with geneve or vxlan, or native without a protocol", mode, protocol))
	}
	if !slices.Contains([]string{routingGeneve, routingVXLAN, routingNative}, k.Routing) {
		b.fail("routing", fmt.Sprintf("%q: geneve, vxlan or native is wanted", k.Routing))
	}
	port, _ := strconv.ParseUint(b.values["tunnel-port"], 10, 16) // the flag's type has seen to it
	switch k.TunnelPort = uint16(port); {
	case port == 0 && k.Routing == routingVXLAN:
		k.TunnelPort = 8472
	case port == 0:
		k.TunnelPort = 6081
	}
	k.TunnelDevice = b.values["tunnel-device"]
	switch {
	case k.TunnelDevice != datapath.TunnelByPrograms && k.TunnelDevice != datapath.TunnelByKernel:
		b.fail("tunnel-device", fmt.Sprintf("%q: bpf or kernel is wanted", k.TunnelDevice))
	case k.TunnelDevice == datapath.TunnelByKernel && k.Routing != routingVXLAN:
		b.fail("tunnel-device", "the kernel's own device is there for vxlan only; set routing to vxlan")
	}
	if k.DirectRoutes = b.bool("auto-direct-node-routes"); k.DirectRoutes && k.Routing != routingNative {
		b.fail("auto-direct-node-routes", "only native routing needs routes; set routing to native")
	}
}

// storeClient is how the agent speaks to the store. The numbers that it may give out are those of its cluster.
func (c Config) storeClient(did func(scope string, took time.Duration, err error)) kvstore.Config {
	first := uint32(c.Cluster.ID) << 16
	return kvstore.Config{
		Endpoints: c.Endpoints, Cert: c.StoreCert, Key: c.StoreKey, CA: c.StoreCA, Node: c.NodeName, Did: did,
		First: first + uint32(identity.MinCluster), Last: first + uint32(identity.MaxCluster),
	}
}

// routes adds to d how packets reach other nodes. A node that is alone has no tunnel.
func (c Config) routes(d datapath.Config) datapath.Config {
	if !c.Cluster.Shared {
		return d
	}
	k := c.Cluster
	d.Routing, d.TunnelPort, d.TunnelDevice, d.Underlay = k.Routing, k.TunnelPort, k.TunnelDevice, k.Underlay
	d.NodeAddresses, d.DirectRoutes, d.NativeCIDRs = k.NodeAddresses, k.DirectRoutes, k.NativeCIDRs
	return d
}

// storeServer is the embedded store.
func (c Config) storeServer() kvstore.ServerConfig {
	return kvstore.ServerConfig{
		Dir: filepath.Join(c.StateDir, storeDir), Socket: filepath.Join(c.RunDir, storeSocket),
		Listen: c.Cluster.Listen, Cert: c.Cluster.ListenCert, Key: c.Cluster.ListenKey, CA: c.Cluster.ListenCA,
	}
}
