package policy

import (
	"encoding/json"
	"fmt"
	"strings"
)

// selectorJSON writes a selector.
func selectorJSON(reqs []oReq) map[string]any {
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

func list[T any](from []T, f func(T) any) []any {
	out := []any{}
	for _, x := range from {
		out = append(out, f(x))
	}
	return out
}

func pairs(ls [][2]string) map[string]string {
	out := map[string]string{}
	for _, l := range ls {
		out[l[0]] = l[1]
	}
	return out
}

func (c oCIDR) json() any {
	x := map[string]any{}
	switch {
	case c.labels != nil:
		x["cidrGroupSelector"] = selectorJSON(c.labels)
	case c.group != "":
		x["cidrGroupRef"] = c.group
	default:
		x["cidr"] = c.cidr
	}
	if c.except != nil {
		x["except"] = c.except
	}
	return x
}

// peerJSON writes an element of a field like toEndpoints.
func peerJSON(kind string, q oPeer) any {
	switch kind {
	case "Endpoints", "Nodes":
		return selectorJSON(q.selector)
	case "Entities":
		return q.entity
	case "CIDR":
		return q.cidr.cidr
	case "FQDNs":
		if strings.Contains(q.name, "*") {
			return map[string]any{"matchPattern": q.name}
		}
		return map[string]any{"matchName": q.name}
	case "Services":
		s := map[string]any{}
		if q.service[0] != "" {
			s["namespace"] = q.service[0]
		}
		if q.services != nil {
			s["selector"] = selectorJSON(q.services)
			return map[string]any{"k8sServiceSelector": s}
		}
		s["serviceName"] = q.service[1]
		return map[string]any{"k8sService": s}
	}
	return q.cidr.json()
}

func (p oPort) json() map[string]any {
	x := map[string]any{"port": fmt.Sprint(p.port)}
	if p.name != "" {
		x["port"] = p.name
	}
	if p.end > 0 {
		x["endPort"] = p.end
	}
	if p.proto != "" {
		x["protocol"] = p.proto
	}
	return x
}

// json adds what an element of toPorts says beside its ports.
func (l *oL7) json(to map[string]any) {
	if l == nil {
		return
	}
	if l.names != nil {
		to["serverNames"] = l.names
	}
	if l.listener != "" {
		to["listener"] = map[string]any{"name": l.listener, "envoyConfig": map[string]any{"name": "config"}}
	}
	field := map[string]string{"http": "path", "kafka": "topic", "dns": "matchName", "echo": "word"}[l.parser]
	rules := list(l.rules, func(s string) any { return map[string]any{field: s} })
	switch l.parser {
	case "":
	case "echo":
		to["rules"] = map[string]any{"l7proto": "echo", "l7": rules}
	default:
		to["rules"] = map[string]any{l.parser: rules}
	}
}

func (e oEntry) json(prefix string) map[string]any {
	m := map[string]any{}
	if e.kind != "" {
		m[prefix+e.kind] = list(e.peers, func(q oPeer) any { return peerJSON(e.kind, q) })
	}
	if e.requires != nil {
		m[prefix+"Requires"] = list(e.requires, func(r []oReq) any { return selectorJSON(r) })
	}
	if e.auth != "" {
		m["authentication"] = map[string]any{"mode": e.auth}
	}
	var groups, fields []any
	for n := range len(e.ports) { // no more groups than ports
		var ports []any
		for _, q := range e.ports {
			switch {
			case q.family != "" && n == 0:
				fields = append(fields, map[string]any{"family": q.family, "type": q.port})
			case q.family == "" && q.group == n:
				ports = append(ports, q.json())
			}
		}
		if ports == nil {
			continue
		}
		x := map[string]any{"ports": ports}
		if n < len(e.l7) {
			e.l7[n].json(x)
		}
		groups = append(groups, x)
	}
	if groups != nil {
		m["toPorts"] = groups
	}
	if fields != nil {
		m["icmps"] = []any{map[string]any{"fields": fields}}
	}
	return m
}

// document writes p as JSON, which is YAML.
func (p oPolicy) document() []byte {
	meta := map[string]any{"name": p.name}
	if p.namespace != "" {
		meta["namespace"] = p.namespace
	}
	ls := pairs(p.labels)
	doc := map[string]any{"kind": p.kind, "metadata": meta}
	switch p.kind {
	case "CiliumCIDRGroup":
		doc["apiVersion"], doc["spec"] = "cilium.io/v2", map[string]any{"externalCIDRs": append([]string{}, p.blocks...)}
	case "Service":
		doc["apiVersion"], doc["spec"] = "v1", map[string]any{"clusterIP": "10.96.0.1", "selector": pairs(p.selector)}
	case "EndpointSlice":
		ls["kubernetes.io/service-name"] = p.service
		family := "IPv4"
		if len(p.addresses) > 0 && strings.Contains(p.addresses[0], ":") {
			family = "IPv6"
		}
		doc["apiVersion"], doc["addressType"] = "discovery.k8s.io/v1", family
		doc["endpoints"] = list(p.addresses, func(a string) any { return map[string]any{"addresses": []string{a}} })
	case "NetworkPolicy":
		doc["apiVersion"], doc["spec"] = "networking.k8s.io/v1", p.specs[0].kubernetes()
	case "ClusterNetworkPolicy":
		doc["apiVersion"], doc["spec"] = "policy.networking.k8s.io/v1alpha2", p.specs[0].cluster()
	default:
		doc["apiVersion"] = "cilium.io/v2"
		specs := list(p.specs, func(s oSpec) any { return s.cilium() })
		if p.many {
			doc["specs"] = specs
		} else {
			doc["spec"] = specs[0]
		}
	}
	if len(ls) > 0 {
		meta["labels"] = ls
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	return b
}

func (s oSpec) cilium() map[string]any {
	spec := map[string]any{}
	if s.nodes {
		spec["nodeSelector"] = selectorJSON(s.subject)
	} else {
		spec["endpointSelector"] = selectorJSON(s.subject)
	}
	if s.defaultDeny != nil {
		spec["enableDefaultDeny"] = s.defaultDeny
	}
	place := map[string]any{}
	if s.tier != "" {
		place["tier"] = s.tier
	}
	if s.priority > 0 {
		place["priority"] = s.priority
	}
	if s.audit {
		place["audit"] = true
	}
	if len(place) > 0 {
		spec["porin"] = place
	}
	for name, entries := range s.lists {
		prefix := "to"
		if strings.HasPrefix(name, "ingress") {
			prefix = "from"
		}
		spec[name] = list(entries, func(e oEntry) any { return e.json(prefix) })
	}
	return spec
}

func (s oSpec) kubernetes() map[string]any {
	spec := map[string]any{"podSelector": selectorJSON(s.subject)}
	if s.types != nil {
		spec["policyTypes"] = s.types
	}
	for name, entries := range s.lists {
		end := map[string]string{"ingress": "from", "egress": "to"}[name]
		spec[name] = list(entries, func(e oEntry) any {
			m := map[string]any{}
			if e.ports != nil {
				m["ports"] = list(e.ports, func(p oPort) any {
					x := map[string]any{}
					if p.proto != "TCP" || p.end%2 == 1 { // TCP may be left out
						x["protocol"] = p.proto
					}
					if p.name != "" {
						x["port"] = p.name
					} else if p.port > 0 {
						x["port"] = p.port
					}
					if p.end > 0 {
						x["endPort"] = p.end
					}
					return x
				})
			}
			if e.kind == "Pods" {
				m[end] = list(e.peers, func(q oPeer) any {
					x := map[string]any{}
					if q.cidr.cidr != "" {
						return map[string]any{"ipBlock": q.cidr.json()}
					}
					if q.hasPods {
						x["podSelector"] = selectorJSON(q.selector)
					}
					if q.hasSpaces {
						x["namespaceSelector"] = selectorJSON(q.spaces)
					}
					return x
				})
			}
			return m
		})
	}
	return spec
}

// podsJSON writes a choice of pods of a ClusterNetworkPolicy.
func podsJSON(pods, spaces []oReq, whole bool) map[string]any {
	if whole {
		return map[string]any{"namespaces": selectorJSON(spaces)}
	}
	return map[string]any{"pods": map[string]any{"podSelector": selectorJSON(pods), "namespaceSelector": selectorJSON(spaces)}}
}

func (s oSpec) cluster() map[string]any {
	spec := map[string]any{"tier": s.tier, "priority": s.priority, "subject": podsJSON(s.subject, s.spaces, s.whole)}
	for name, entries := range s.lists {
		end := map[string]string{"ingress": "from", "egress": "to"}[name]
		spec[name] = list(entries, func(e oEntry) any {
			m := map[string]any{"action": e.action}
			if e.ports != nil {
				m["protocols"] = list(e.ports, func(p oPort) any {
					if p.name != "" {
						return map[string]any{"destinationNamedPort": p.name}
					}
					dest := map[string]any{"number": p.port}
					if p.end > 0 {
						dest = map[string]any{"range": map[string]any{"start": p.port, "end": p.end}}
					}
					return map[string]any{strings.ToLower(p.proto): map[string]any{"destinationPort": dest}}
				})
			}
			m[end] = list(e.peers, func(q oPeer) any {
				switch e.kind {
				case "Nodes":
					return map[string]any{"nodes": selectorJSON(q.selector)}
				case "FQDNs":
					return map[string]any{"domainNames": []string{strings.TrimSuffix(q.name, ".")}}
				case "CIDR":
					return map[string]any{"networks": []string{q.cidr.cidr}}
				}
				return podsJSON(q.selector, q.spaces, !q.hasPods)
			})
			return m
		})
	}
	return spec
}
