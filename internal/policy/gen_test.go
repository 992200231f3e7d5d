package policy

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
)

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
		q := oReq{
			source: pick(g, "", "", "k8s", "any", "container"), key: pick(g, "app", "tier", "env", "app.kubernetes.io/name"),
			op: pick(g, "In", "In", "In", "NotIn", "Exists", "DoesNotExist"),
		}
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
	return []string{
		"0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/32", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32", "10.128.0.0/9", "192.168.0.0/16",
		"203.0.113.7/32", "::/0", "fd00::/8", "fd00:1::/32", "fd00:1::5/128", "2001:db8::/32",
	}
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
