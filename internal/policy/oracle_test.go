package policy

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
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
	dual                            bool
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
		return family(true) || i.prefix == "" && i.reserved("world-ipv4")
	case "world-ipv6":
		return family(false) || i.prefix == "" && i.reserved("world-ipv6")
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
		blocks = []string{"0.0.0.0/0", "::/0"}
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
	return oVerdict{true, false, "enforcement default: not isolated"}
}

// document writes p as JSON, which is YAML.
func (p oPolicy) document() []byte {
	selector := func(reqs []oReq) map[string]any {
		exprs := []any{}
		ml := map[string]string{}
		for _, q := range reqs {
			key := q.key
			if q.source != "" {
				key = q.source + ":" + q.key
			}
			if _, twice := ml[key]; q.op == "In" && len(q.values) == 1 && !twice {
				ml[key] = q.values[0]
				continue
			}
			x := map[string]any{"key": key, "operator": q.op}
			if len(q.values) > 0 {
				x["values"] = q.values
			}
			exprs = append(exprs, x)
		}
		out := map[string]any{}
		if len(ml) > 0 {
			out["matchLabels"] = ml
		}
		if len(exprs) > 0 {
			out["matchExpressions"] = exprs
		}
		return out
	}
	var specs []any
	for _, s := range p.specs {
		spec := map[string]any{"endpointSelector": selector(s.subject)}
		if s.defaultDeny != nil {
			spec["enableDefaultDeny"] = s.defaultDeny
		}
		for name, list := range s.lists {
			prefix := "to"
			if strings.HasPrefix(name, "ingress") {
				prefix = "from"
			}
			entries := []any{}
			for _, e := range list {
				m := map[string]any{}
				switch e.kind {
				case "Endpoints":
					l := []any{}
					for _, q := range e.selectors {
						l = append(l, selector(q))
					}
					m[prefix+e.kind] = l
				case "Entities":
					m[prefix+e.kind] = append([]string{}, e.entities...)
				case "CIDR":
					l := []any{}
					for _, c := range e.cidrs {
						l = append(l, c.cidr)
					}
					m[prefix+e.kind] = l
				case "CIDRSet":
					l := []any{}
					for _, c := range e.cidrs {
						x := map[string]any{"cidr": c.cidr}
						if c.except != nil {
							x["except"] = c.except
						}
						l = append(l, x)
					}
					m[prefix+e.kind] = l
				}
				var ports, fields []any
				for _, q := range e.ports {
					if q.family != "" {
						fields = append(fields, map[string]any{"family": q.family, "type": q.port})
						continue
					}
					x := map[string]any{"port": fmt.Sprint(q.port)}
					if q.end > 0 {
						x["endPort"] = q.end
					}
					if q.proto != "" {
						x["protocol"] = q.proto
					}
					ports = append(ports, x)
				}
				if ports != nil {
					m["toPorts"] = []any{map[string]any{"ports": ports}}
				}
				if fields != nil {
					m["icmps"] = []any{map[string]any{"fields": fields}}
				}
				entries = append(entries, m)
			}
			spec[name] = entries
		}
		specs = append(specs, spec)
	}
	doc := map[string]any{"apiVersion": "cilium.io/v2", "kind": p.kind}
	meta := map[string]any{"name": p.name}
	if p.namespace != "" {
		meta["namespace"] = p.namespace
	}
	doc["metadata"] = meta
	if p.many {
		doc["specs"] = specs
	} else {
		doc["spec"] = specs[0]
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	return b
}

// gen makes random policies and identities from a small vocabulary, so that they meet each other often.
type gen struct{ *rand.Rand }

func pick[T any](g gen, list ...T) T { return list[g.IntN(len(list))] }

func (g gen) chance(percent int) bool { return g.IntN(100) < percent }

func (g gen) some(most int, f func()) {
	for range g.IntN(most + 1) {
		f()
	}
}

func (g gen) reqs(subject bool, namespace string) []oReq {
	var out []oReq
	g.some(2, func() {
		q := oReq{source: pick(g, "", "", "k8s", "any", "container"), key: pick(g, "app", "tier", "env", "app.kubernetes.io/name"),
			op: pick(g, "In", "In", "In", "NotIn", "Exists", "DoesNotExist")}
		if q.op == "In" || q.op == "NotIn" {
			q.values = []string{pick(g, "a", "b", "c", "")}
			if g.chance(30) {
				q.values = append(q.values, pick(g, "a", "b", "d"))
			}
		}
		out = append(out, q)
	})
	own := subject && namespace != "" // must not exclude its namespace, nor ask for what is in none
	switch g.IntN(8) {
	case 0:
		if own {
			return append(out, oReq{"k8s", "io.kubernetes.pod.namespace", "In", []string{"green", namespace}})
		}
		out = append(out, oReq{pick(g, "", "k8s"), "io.kubernetes.pod.namespace", "In", []string{pick(g, "red", "blue")}})
	case 1:
		out = append(out, oReq{"", "io.kubernetes.pod.namespace", pick(g, "Exists", "DoesNotExist"), nil})
		if own {
			out[len(out)-1].op = "Exists"
		}
	case 2:
		out = append(out, oReq{"", "io.cilium.k8s.namespace.labels.team", pick(g, "In", "NotIn"), []string{pick(g, "x", "y")}})
	case 3:
		if own {
			return out
		}
		out = append(out, oReq{"reserved", pick(g, "host", "world", "init", "remote-node", "health"), pick(g, "Exists", "Exists", "DoesNotExist"), nil})
	}
	return out
}

func oBlocks() []string {
	return []string{"0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/32", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32", "10.128.0.0/9", "192.168.0.0/16",
		"203.0.113.7/32", "::/0", "fd00::/8", "fd00:1::/32", "fd00:1::5/128", "2001:db8::/32"}
}

func (g gen) cidr(excepts bool) oCIDR {
	c := oCIDR{cidr: pick(g, oBlocks()...)}
	if excepts {
		for _, b := range oBlocks() {
			if g.chance(25) && inside(b, c.cidr) {
				c.except = append(c.except, b)
			}
		}
	}
	return c
}

func (g gen) port() oPort {
	p := oPort{proto: pick(g, "TCP", "TCP", "UDP", "SCTP", "ANY", "", "ICMP", "ICMPV6"), port: pick(g, 0, 1, 53, 80, 81, 100, 443, 8000, 8080, 65535)}
	if strings.HasPrefix(p.proto, "ICMP") {
		p.port = pick(g, 0, 3, 8, 128, 255)
		return p
	}
	if p.port > 0 && g.chance(35) {
		p.end = min(65535, p.port+pick(g, 0, 1, 20, 900, 65535))
	}
	return p
}

func (g gen) entry(deny bool, namespace string) oEntry {
	e := oEntry{kind: pick(g, "", "Endpoints", "Endpoints", "Entities", "CIDR", "CIDRSet")}
	g.some(3, func() {
		switch e.kind {
		case "Endpoints":
			e.selectors = append(e.selectors, g.reqs(false, namespace))
		case "Entities":
			e.entities = append(e.entities, pick(g, "all", "world", "world", "world-ipv4", "world-ipv6", "cluster", "cluster-mesh", "host",
				"remote-node", "kube-apiserver", "ingress", "health", "init", "unmanaged", "none"))
		case "CIDR":
			e.cidrs = append(e.cidrs, g.cidr(false))
		case "CIDRSet":
			e.cidrs = append(e.cidrs, g.cidr(true))
		}
	})
	switch {
	case g.chance(45) || deny && e.kind == "" && g.chance(60):
		for range 1 + g.IntN(4) {
			e.ports = append(e.ports, g.port())
		}
	case g.chance(15) || deny && e.kind == "":
		for range 1 + g.IntN(3) {
			e.ports = append(e.ports, oPort{family: pick(g, "IPv4", "IPv6"), port: pick(g, 0, 3, 8, 128, 129)})
		}
	}
	return e
}

func (g gen) policy(name string) oPolicy {
	p := oPolicy{kind: "CiliumNetworkPolicy", namespace: pick(g, "red", "blue"), name: name, many: g.chance(30)}
	if g.chance(35) {
		p.kind, p.namespace = "CiliumClusterwideNetworkPolicy", ""
	}
	n := 1
	if p.many {
		n += g.IntN(3)
	}
	for range n {
		s := oSpec{subject: g.reqs(true, p.namespace), lists: map[string][]oEntry{}}
		for len(s.lists) == 0 {
			for _, list := range []string{"ingress", "ingressDeny", "egress", "egressDeny"} {
				if g.chance(60) {
					continue
				}
				s.lists[list] = []oEntry{}
				g.some(3, func() {
					s.lists[list] = append(s.lists[list], g.entry(strings.HasSuffix(list, "Deny"), p.namespace))
				})
			}
		}
		if g.chance(30) {
			s.defaultDeny = map[string]bool{}
			for _, d := range []string{"ingress", "egress"} {
				if g.chance(60) {
					s.defaultDeny[d] = g.chance(40)
				}
			}
		}
		p.specs = append(p.specs, s)
	}
	return p
}

func (g gen) workload(id uint32) oIdentity {
	i := oIdentity{id: id}
	add := func(source, key, value string) { i.labels = append(i.labels, [3]string{source, key, value}) }
	if g.chance(90) {
		add("k8s", "io.kubernetes.pod.namespace", pick(g, "red", "blue", "green"))
	}
	if g.chance(50) {
		add("k8s", "io.cilium.k8s.namespace.labels.team", pick(g, "x", "y"))
	}
	if g.chance(50) {
		add("k8s", "io.cilium.k8s.policy.cluster", pick(g, "one", "two"))
	}
	for _, key := range []string{"app", "tier", "env", "app.kubernetes.io/name"} {
		if g.chance(60) {
			add(pick(g, "k8s", "k8s", "container"), key, pick(g, "a", "b", "c", ""))
		}
	}
	if g.chance(20) {
		add("cni", "app", pick(g, "a", "b"))
	}
	if g.chance(20) { // imitates a label that only porin gives: another source
		add("container", "io.kubernetes.pod.namespace", pick(g, "red", "blue"))
	}
	return i
}

func oReserved() []oIdentity {
	var out []oIdentity
	for n, name := range []string{"host", "world", "unmanaged", "health", "init", "remote-node", "kube-apiserver", "ingress", "world-ipv4", "world-ipv6"} {
		out = append(out, oIdentity{id: uint32(n + 1), labels: [][3]string{{"reserved", name, ""}}})
	}
	return out
}

func (g gen) outside(id uint32, block string) oIdentity {
	family := "world-ipv6"
	if strings.Contains(block, ".") {
		family = "world-ipv4"
	}
	return oIdentity{id: id, prefix: block, labels: [][3]string{{"cidr", block, ""}, {"reserved", pick(g, "world", family), ""}}}
}
