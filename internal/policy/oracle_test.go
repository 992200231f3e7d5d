package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
)

// The oracle: a second, naive reading of the policy language. It has its own model of documents, which the tests
// generate at random, hand to Parse as JSON, and evaluate here entry by entry. It shares no code with the engine.

type oReq struct { // one condition of a selector
	source, key, op string
	values          []string
}

type oCIDR struct {
	cidr   string
	except []string
}

type oPort struct {
	proto     string // TCP UDP SCTP ICMP ICMPV6 ANY; "" is ANY
	port, end int
	family    string // IPv4, IPv6: an icmps field, port is the type
}

type oEntry struct {
	kind      string // "", Endpoints, Entities, CIDR, CIDRSet
	selectors [][]oReq
	entities  []string
	cidrs     []oCIDR
	ports     []oPort // nil: not given
}

type oSpec struct {
	subject     []oReq
	lists       map[string][]oEntry // ingress, ingressDeny, egress, egressDeny; absent or present
	defaultDeny map[string]bool
}

type oPolicy struct {
	kind, namespace, name string
	specs                 []oSpec
	many                  bool // written as specs
}

type oIdentity struct {
	id     uint32
	labels [][3]string // source, key, value
	prefix string
}

type oConfig struct {
	enforcement, localhost, cluster string
	dual, six                       bool // both families, or IPv6 only
}

type oVerdict struct {
	allow, explicit bool
	rules           string // who decided, sorted
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

// peerFits: a selector of fromEndpoints or toEndpoints in a policy of the namespace ("": clusterwide).
func peerFits(reqs []oReq, namespace string, i oIdentity) bool {
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
	if !i.workload() {
		return false
	}
	return namespace == "" || spoken || slices.Contains(i.has("k8s", "io.kubernetes.pod.namespace"), namespace)
}

func subjectFits(reqs []oReq, namespace string, i oIdentity) bool {
	if !peerFits(reqs, namespace, i) {
		return false
	}
	return namespace == "" || slices.Contains(i.has("k8s", "io.kubernetes.pod.namespace"), namespace)
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
		return mesh && (cfg.cluster == "" || len(other) == 0 || other[0] == cfg.cluster)
	case "cluster-mesh":
		return mesh
	}
	return i.reserved(name)
}

func cidrFits(c oCIDR, cfg oConfig, i oIdentity) bool {
	var blocks []string
	switch {
	case i.prefix != "":
		blocks = []string{i.prefix}
	case i.reserved("world-ipv4"):
		blocks = []string{"0.0.0.0/0"}
	case i.reserved("world-ipv6"):
		blocks = []string{"::/0"}
	case i.reserved("world") && !cfg.dual:
		blocks = []string{"0.0.0.0/0"}
		if cfg.six {
			blocks = []string{"::/0"}
		}
	}
	for _, b := range blocks {
		in := inside(b, c.cidr)
		for _, x := range c.except {
			in = in && !inside(b, x)
		}
		if in {
			return true
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

func (e oEntry) peerFits(namespace string, cfg oConfig, i oIdentity) bool {
	switch e.kind {
	case "":
		return e.ports != nil // says neither who nor what: nothing
	case "Endpoints":
		return slices.ContainsFunc(e.selectors, func(s []oReq) bool { return peerFits(s, namespace, i) })
	case "Entities":
		return slices.ContainsFunc(e.entities, func(n string) bool { return entityFits(n, cfg, i) })
	}
	return slices.ContainsFunc(e.cidrs, func(c oCIDR) bool { return cidrFits(c, cfg, i) })
}

func (e oEntry) portFits(proto uint8, port uint16) bool {
	if e.ports == nil {
		return true
	}
	for _, p := range e.ports {
		num := map[string]uint8{"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPV6": 58}[p.proto]
		switch {
		case p.family == "IPv4" || p.family == "IPv6":
			if proto == map[string]uint8{"IPv4": 1, "IPv6": 58}[p.family] && int(port) == p.port {
				return true
			}
			continue
		case p.proto == "" || p.proto == "ANY":
			if proto != 6 && proto != 17 && proto != 132 {
				continue
			}
		case proto != num:
			continue
		}
		if p.port == 0 || int(port) == p.port || int(port) > p.port && int(port) <= p.end {
			return true
		}
	}
	return false
}

// oracle judges one packet in one direction.
func oracle(cfg oConfig, policies []oPolicy, subject, peer oIdentity, ingress bool, proto uint8, port uint16) oVerdict {
	init := subject.reserved("init")
	names := map[bool][2]string{true: {"ingress", "ingressDeny"}, false: {"egress", "egressDeny"}}[ingress]
	var allow, deny, isolating []string
	for _, p := range policies {
		for n, s := range p.specs {
			if cfg.enforcement == "never" && !init || !subjectFits(s.subject, p.namespace, subject) {
				continue
			}
			at := func(list string, i int) string {
				spec := -1
				if p.many {
					spec = n
				}
				return fmt.Sprintf("%s %s/%s %d %s[%d]", p.kind, p.namespace, p.name, spec, list, i)
			}
			_, a := s.lists[names[0]]
			_, d := s.lists[names[1]]
			on, set := s.defaultDeny[names[0]]
			if set && on || !set && (a || d) {
				isolating = append(isolating, at(names[0], -1))
			}
			for i, e := range s.lists[names[0]] {
				if e.peerFits(p.namespace, cfg, peer) && e.portFits(proto, port) {
					allow = append(allow, at(names[0], i))
				}
			}
			for i, e := range s.lists[names[1]] {
				if e.peerFits(p.namespace, cfg, peer) && e.portFits(proto, port) {
					deny = append(deny, at(names[1], i))
				}
			}
		}
	}
	if init {
		isolating = append(isolating, "reserved:init: isolated")
	} else if cfg.enforcement == "always" {
		isolating = append(isolating, "enforcement always: isolated")
	}
	if len(isolating) > 0 && ingress && cfg.localhost != "policy" && peer.reserved("host") {
		allow = append(allow, "allow-localhost")
	}
	join := func(s []string) string { sort.Strings(s); return strings.Join(s, "; ") }
	switch {
	case len(deny) > 0:
		return oVerdict{false, true, join(deny)}
	case len(allow) > 0:
		return oVerdict{true, false, join(allow)}
	case len(isolating) > 0:
		return oVerdict{false, false, join(isolating)}
	case cfg.enforcement == "never":
		return oVerdict{true, false, "enforcement never: rules are ignored"}
	}
	return oVerdict{true, false, "no policy isolates it"}
}
