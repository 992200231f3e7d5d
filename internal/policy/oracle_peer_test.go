package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The oracle's documents and whom they name.

type oReq struct { // one condition of a selector
	source, key, op string
	values          []string
}

type oCIDR struct {
	cidr, group string
	labels      []oReq // of groups; nil: not by labels
	except      []string
}

type oPeer struct {
	selector  []oReq // of workloads, or of nodes
	spaces    []oReq // labels of namespaces, of Kubernetes' kinds
	hasPods   bool
	hasSpaces bool
	entity    string
	cidr      oCIDR
	service   [2]string // namespace and name
	services  []oReq    // or labels, in that namespace or, without one, in all; nil: by name
	name      string    // DNS
}

type oPort struct {
	proto     string // TCP UDP SCTP ICMP ICMPV6 ANY; "" is ANY
	port, end int
	name      string
	family    string // IPv4, IPv6: an icmps field, port is the type
	group     int    // element of toPorts
}

type oL7 struct {
	parser   string // http, kafka, dns, echo (a generic one), or empty: only names of servers
	rules    []string
	names    []string
	listener string
}

func (l *oL7) String() string {
	return fmt.Sprintf("%s%q%q%s", l.parser, l.rules, l.names, l.listener)
}

type oEntry struct {
	kind     string // "", Endpoints, Entities, CIDR, CIDRSet, Services, Nodes, FQDNs; Kubernetes: Pods, IPBlocks, Everyone
	peers    []oPeer
	requires [][]oReq
	ports    []oPort // nil: not given
	l7       []*oL7  // by element of toPorts
	auth     string
	action   string // of a ClusterNetworkPolicy
}

type oSpec struct {
	subject     []oReq
	spaces      []oReq // labels of namespaces, of a ClusterNetworkPolicy
	whole       bool   // all pods of those
	nodes       bool
	tier        string
	priority    int
	audit       bool
	lists       map[string][]oEntry // ingress, ingressDeny, egress, egressDeny; absent or present
	defaultDeny map[string]bool
	types       []string // of a NetworkPolicy
}

type oPolicy struct {
	kind, namespace, name string
	specs                 []oSpec
	many                  bool        // written as specs
	labels                [][2]string // of the document
	blocks                []string    // of a group
	selector              [][2]string // of a service
	service               string      // of a slice
	addresses             []string
}

type oIdentity struct {
	id     uint32
	labels [][3]string // source, key, value
	prefix string
}

func (i oIdentity) has(source, key string) (values []string) {
	for _, l := range i.labels {
		if l[1] == key && (source == "" || source == "any" || l[0] == source) {
			values = append(values, l[2])
		}
	}
	return values
}

func (q oReq) fits(i oIdentity) bool {
	source := q.source
	if source == "" && strings.HasPrefix(q.key, "io.") {
		source = "k8s" // keys of ours are trusted from this source only
	}
	have := i.has(source, q.key)
	among := false
	for _, v := range have {
		among = among || slices.Contains(q.values, v)
	}
	switch q.op {
	case "In":
		return among
	case "NotIn":
		return !among
	case "Exists":
		return len(have) > 0
	}
	return len(have) == 0
}

func fitsAll(reqs []oReq, i oIdentity) bool {
	for _, q := range reqs {
		if !q.fits(i) {
			return false
		}
	}
	return true
}

func (i oIdentity) reserved(names ...string) bool {
	for _, n := range names {
		if len(i.has("reserved", n)) > 0 {
			return true
		}
	}
	return false
}

func (i oIdentity) workload() bool {
	for _, l := range i.labels {
		if l[0] == "reserved" {
			return false
		}
	}
	return i.prefix == "" && i.id >= 256 && i.id < 1<<24
}

// nodeFits: a selector of nodes, which have their labels from source node.
func nodeFits(reqs []oReq, i oIdentity) bool {
	if !i.reserved("host", "remote-node") {
		return false
	}
	var mine []oReq
	for _, q := range reqs {
		q.source = "node"
		mine = append(mine, q)
	}
	return fitsAll(mine, i)
}

// ofCluster: a selector that says nothing of clusters means the workloads of the own one; so do those that say no cluster.
func ofCluster(reqs []oReq, cluster string, i oIdentity) bool {
	for _, q := range reqs {
		if q.key == "io.cilium.k8s.policy.cluster" && (q.source == "k8s" || q.source == "" || q.source == "any") {
			return true
		}
	}
	of := i.has("k8s", "io.cilium.k8s.policy.cluster")
	return cluster == "" || len(of) == 0 || of[0] == cluster
}

// peerFits: a selector of fromEndpoints or toEndpoints in a policy of the namespace ("": clusterwide).
func peerFits(reqs []oReq, namespace, cluster string, i oIdentity) bool {
	if !fitsAll(reqs, i) {
		return false
	}
	spoken := false
	for _, q := range reqs {
		if q.source == "reserved" && (q.op == "In" || q.op == "Exists") {
			return true
		}
		k8s := q.source == "k8s" || q.source == "" || q.source == "any"
		if k8s && (q.key == "io.kubernetes.pod.namespace" || strings.HasPrefix(q.key, "io.cilium.k8s.namespace.labels.")) {
			spoken = true
		}
	}
	if !i.workload() || !ofCluster(reqs, cluster, i) {
		return false
	}
	return namespace == "" || spoken || slices.Contains(i.has("k8s", "io.kubernetes.pod.namespace"), namespace)
}

// podFits: labels of pods and of their namespaces, as Kubernetes' own kinds name them.
func podFits(pods, spaces []oReq, i oIdentity) bool {
	if !i.workload() || len(i.has("k8s", "io.kubernetes.pod.namespace")) == 0 {
		return false
	}
	for _, q := range pods {
		q.source = "k8s"
		if !q.fits(i) {
			return false
		}
	}
	for _, q := range spaces {
		q.source = "k8s"
		if q.key == "kubernetes.io/metadata.name" {
			q.key = "io.kubernetes.pod.namespace"
		} else {
			q.key = "io.cilium.k8s.namespace.labels." + q.key
		}
		if !q.fits(i) {
			return false
		}
	}
	return true
}

// selects tells whether a spec is about an identity.
func (s oSpec) selects(p oPolicy, i oIdentity) bool {
	own := slices.Contains(i.has("k8s", "io.kubernetes.pod.namespace"), p.namespace)
	switch p.kind {
	case "NetworkPolicy":
		return podFits(s.subject, nil, i) && own
	case "ClusterNetworkPolicy":
		return podFits(s.subject, s.spaces, i)
	}
	if s.nodes {
		return i.reserved("host") && nodeFits(s.subject, i)
	}
	return peerFits(s.subject, p.namespace, "", i) && (p.namespace == "" || own)
}

func entityFits(name string, cfg oConfig, i oIdentity) bool {
	family := func(v4 bool) bool { return i.prefix != "" && netip.MustParsePrefix(i.prefix).Addr().Is4() == v4 }
	mesh := i.workload() || i.reserved("host", "init", "unmanaged", "remote-node", "ingress", "health", "kube-apiserver")
	switch name {
	case "all":
		return true
	case "none":
		return false
	case "world":
		return i.prefix != "" || i.reserved("world", "world-ipv4", "world-ipv6")
	case "world-ipv4":
		return family(true) || i.prefix == "" && (i.reserved("world-ipv4") || !cfg.dual && !cfg.six && i.reserved("world"))
	case "world-ipv6":
		return family(false) || i.prefix == "" && (i.reserved("world-ipv6") || !cfg.dual && cfg.six && i.reserved("world"))
	case "cluster":
		other := i.has("k8s", "io.cilium.k8s.policy.cluster")
		return mesh && (cfg.cluster == "" || len(other) == 0 || other[0] == cfg.cluster || !i.workload())
	case "cluster-mesh":
		return mesh
	}
	return i.reserved(name)
}

// standsFor returns the blocks that an identity of the outside stands for.
func standsFor(cfg oConfig, i oIdentity) []string {
	switch {
	case i.prefix != "":
		return []string{i.prefix}
	case i.reserved("world-ipv4"):
		return []string{"0.0.0.0/0"}
	case i.reserved("world-ipv6"):
		return []string{"::/0"}
	case i.reserved("world") && !cfg.dual && cfg.six:
		return []string{"::/0"}
	case i.reserved("world") && !cfg.dual:
		return []string{"0.0.0.0/0"}
	}
	return nil
}

// docLabels: a selector by the labels of a document.
func docLabels(reqs []oReq, p oPolicy) bool {
	var i oIdentity
	for _, l := range p.labels {
		i.labels = append(i.labels, [3]string{"k8s", l[0], l[1]})
	}
	for _, q := range reqs {
		q.source = "k8s"
		if !q.fits(i) {
			return false
		}
	}
	return true
}

func cidrFits(c oCIDR, docs []oPolicy, cfg oConfig, i oIdentity) bool {
	blocks := []string{c.cidr}
	if c.cidr == "" {
		blocks = nil
		for _, p := range docs {
			if p.kind == "CiliumCIDRGroup" && (c.labels == nil && p.name == c.group || c.labels != nil && docLabels(c.labels, p)) {
				blocks = append(blocks, p.blocks...)
			}
		}
	}
	for _, b := range standsFor(cfg, i) {
		for _, outer := range blocks {
			in := inside(b, outer)
			for _, x := range c.except {
				in = in && !inside(b, x)
			}
			if in {
				return true
			}
		}
	}
	return false
}

// inside compares the first bits of two blocks one by one.
func inside(inner, outer string) bool {
	a, b := netip.MustParsePrefix(inner), netip.MustParsePrefix(outer)
	if a.Addr().Is4() != b.Addr().Is4() || a.Bits() < b.Bits() {
		return false
	}
	x, y := a.Addr().AsSlice(), b.Addr().AsSlice()
	for bit := range b.Bits() {
		if x[bit/8]>>(7-bit%8)&1 != y[bit/8]>>(7-bit%8)&1 {
			return false
		}
	}
	return true
}

// serviceFits: workloads that the service selects in its own namespace, or addresses in its slices.
func serviceFits(q oPeer, docs []oPolicy, cfg oConfig, i oIdentity) bool {
	for _, s := range docs {
		if s.kind != "Service" || q.services == nil && (s.namespace != q.service[0] || s.name != q.service[1]) ||
			q.services != nil && (q.service[0] != "" && q.service[0] != s.namespace || !docLabels(q.services, s)) {
			continue
		}
		if len(s.selector) > 0 {
			fits := i.workload() && ofCluster(nil, cfg.cluster, i) && slices.Contains(i.has("k8s", "io.kubernetes.pod.namespace"), s.namespace)
			for _, l := range s.selector {
				fits = fits && slices.Contains(i.has("k8s", l[0]), l[1])
			}
			if fits {
				return true
			}
			continue
		}
		for _, slice := range docs {
			if slice.kind != "EndpointSlice" || slice.namespace != s.namespace || slice.service != s.name {
				continue
			}
			for _, a := range slice.addresses {
				addr := netip.MustParseAddr(a)
				block := netip.PrefixFrom(addr, addr.BitLen()).String()
				if slices.ContainsFunc(standsFor(cfg, i), func(b string) bool { return inside(b, block) }) {
					return true
				}
			}
		}
	}
	return false
}

func (e oEntry) peerFits(docs []oPolicy, p oPolicy, cfg oConfig, i oIdentity) bool {
	if e.kind == "" {
		return e.ports != nil // says neither who nor what: nothing
	}
	if e.kind == "Everyone" {
		return true
	}
	for _, q := range e.peers {
		fits := false
		switch e.kind {
		case "Endpoints":
			fits = peerFits(q.selector, p.namespace, cfg.cluster, i)
		case "Entities":
			fits = entityFits(q.entity, cfg, i)
		case "Nodes":
			fits = nodeFits(q.selector, i)
		case "FQDNs":
			fits = len(i.has("fqdn", q.name)) > 0
		case "Services":
			fits = serviceFits(q, docs, cfg, i)
		case "Pods": // of Kubernetes' own kinds: those of a NetworkPolicy without a selector of namespaces are of its own
			if q.cidr.cidr != "" {
				fits = cidrFits(q.cidr, docs, cfg, i)
				break
			}
			fits = podFits(q.selector, q.spaces, i) && ofCluster(nil, cfg.cluster, i) &&
				(q.hasSpaces || slices.Contains(i.has("k8s", "io.kubernetes.pod.namespace"), p.namespace))
		default:
			fits = cidrFits(q.cidr, docs, cfg, i)
		}
		if fits {
			return true
		}
	}
	return false
}
