package policy

import (
	"net/netip"
	"slices"
	"strings"

	"porin/internal/labels"
)

type yamlKubernetes struct {
	Pods    yamlSelector `yaml:"podSelector"`
	Types   []string     `yaml:"policyTypes"`
	Ingress []yamlEntry  `yaml:"ingress,omitempty"`
	Egress  []yamlEntry  `yaml:"egress,omitempty"`
}

type yamlCluster struct {
	Tier     string      `yaml:"tier"`
	Priority uint32      `yaml:"priority"`
	Subject  yamlEntry   `yaml:"subject"`
	Ingress  []yamlEntry `yaml:"ingress,omitempty"`
	Egress   []yamlEntry `yaml:"egress,omitempty"`
}

type yamlSlice struct {
	yamlPolicy `yaml:",inline"`
	Family     string      `yaml:"addressType"`
	Endpoints  []yamlEntry `yaml:"endpoints"`
}

// marshalPods writes a selector of a document of Kubernetes: what it wants of pods, and what of their namespaces if it
// speaks of them.
func marshalPods(s labels.Selector) yamlEntry {
	var pods, namespaces []labels.Requirement
	named := false
	for _, q := range s.Requirements() {
		q.Source = ""
		switch {
		case q.Key == labels.KeyNamespace && q.Operator == labels.Exists:
			named = true
		case q.Key == labels.KeyNamespace:
			q.Key = keyNamespaceName
			named, namespaces = true, append(namespaces, q)
		case strings.HasPrefix(q.Key, labels.KeyNamespaceLabels):
			q.Key = strings.TrimPrefix(q.Key, labels.KeyNamespaceLabels)
			named, namespaces = true, append(namespaces, q)
		default:
			pods = append(pods, q)
		}
	}
	y := yamlEntry{"podSelector": marshalConditions(pods)}
	if named {
		y["namespaceSelector"] = marshalConditions(namespaces)
	}
	return y
}

// byPlace returns entries that one rule of a document became, rule by rule.
func byPlace(entries []*Entry) (out [][]*Entry) {
	sorted := slices.Clone(entries)
	slices.SortStableFunc(sorted, func(a, b *Entry) int { return a.Index - b.Index })
	for i, e := range sorted {
		if i == 0 || e.Index != sorted[i-1].Index {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], e)
	}
	return out
}

func marshalKubernetes(r *Rule) yamlKubernetes {
	var pods []labels.Requirement
	for _, q := range r.Subject.Requirements() {
		q.Source = ""
		pods = append(pods, q)
	}
	y := yamlKubernetes{Pods: marshalConditions(pods)}
	if r.Ingress.Allow != nil {
		y.Types = append(y.Types, "Ingress")
		y.Ingress = marshalList(byPlace(r.Ingress.Allow), func(l []*Entry) yamlEntry { return marshalKubernetesRule(l, "from") })
	}
	if r.Egress.Allow != nil {
		y.Types = append(y.Types, "Egress")
		y.Egress = marshalList(byPlace(r.Egress.Allow), func(l []*Entry) yamlEntry { return marshalKubernetesRule(l, "to") })
	}
	return y
}

func marshalKubernetesRule(entries []*Entry, end string) yamlEntry {
	y := yamlEntry{}
	var peers []yamlEntry
	for _, e := range entries {
		for _, s := range e.Peers.Endpoints {
			peers = append(peers, marshalPods(s))
		}
		for _, c := range e.Peers.CIDRs {
			peers = append(peers, yamlEntry{"ipBlock": marshalCIDR(c)})
		}
	}
	if peers != nil { // none: everyone
		y[end] = peers
	}
	if ports := entries[0].Ports; ports != nil {
		y["ports"] = marshalList(ports, marshalKubernetesPort)
	}
	return y
}

func marshalKubernetesPort(p Port) yamlEntry {
	y := yamlEntry{"protocol": protocolName(p)}
	switch {
	case p.Name != "":
		y["port"] = p.Name
	case !p.Any:
		y["port"] = p.First
		if p.Last != p.First {
			y["endPort"] = p.Last
		}
	}
	return y
}

func marshalCluster(r *Rule) yamlCluster {
	section := func(s *Section, end string) []yamlEntry {
		return marshalList(byPlace(slices.Concat(s.Allow, s.Deny, s.Pass)), func(l []*Entry) yamlEntry {
			y := marshalClusterRule(l, end)
			switch {
			case slices.Contains(s.Allow, l[0]):
				y["action"] = "Accept"
			case slices.Contains(s.Deny, l[0]):
				y["action"] = "Deny"
			default:
				y["action"] = "Pass"
			}
			return y
		})
	}
	return yamlCluster{
		Tier: tierName(r.Tier), Priority: r.Priority, Subject: yamlEntry{"pods": marshalPods(r.Subject)},
		Ingress: section(&r.Ingress, "from"), Egress: section(&r.Egress, "to"),
	}
}

func marshalClusterRule(entries []*Entry, end string) yamlEntry {
	var peers []yamlEntry
	for _, e := range entries { // entities follow from networks
		for _, s := range e.Peers.Endpoints {
			peers = append(peers, yamlEntry{"pods": marshalPods(s)})
		}
		for _, s := range e.Peers.Nodes {
			var reqs []labels.Requirement
			for _, q := range s.Requirements() {
				q.Source = ""
				reqs = append(reqs, q)
			}
			peers = append(peers, yamlEntry{"nodes": marshalConditions(reqs)})
		}
		for part := range slices.Chunk(e.Peers.CIDRs, maxClusterRules) {
			peers = append(peers, yamlEntry{"networks": marshalList(part, func(c CIDR) netip.Prefix { return c.Prefix })})
		}
		for part := range slices.Chunk(e.Peers.FQDNs, maxClusterRules) {
			peers = append(peers, yamlEntry{"domainNames": marshalList(part, func(f FQDN) string {
				if f.Name != "" {
					return f.Name
				}
				return strings.TrimPrefix(f.Pattern, "*") // "**.": one label or more, here "*."
			})})
		}
	}
	y := yamlEntry{end: peers}
	if name := entries[0].Name; name != "" {
		y["name"] = name
	}
	if ports := entries[0].Ports; ports != nil {
		y["protocols"] = marshalList(ports, marshalClusterPort)
	}
	return y
}

func marshalClusterPort(p Port) yamlEntry {
	if p.Name != "" {
		return yamlEntry{"destinationNamedPort": p.Name}
	}
	port := yamlEntry{"number": p.First}
	if p.Last != p.First {
		port = yamlEntry{"range": yamlEntry{"start": p.First, "end": p.Last}}
	}
	return yamlEntry{strings.ToLower(protocolName(p)): yamlEntry{"destinationPort": port}}
}

func marshalSelectedPods(s *Service) yamlEntry {
	y := yamlEntry{}
	if s.Selects {
		selector := map[string]string{}
		for _, q := range s.Selector.Requirements() {
			selector[q.Key] = q.Values[0]
		}
		y["selector"] = selector
	}
	return y
}

func marshalSlice(doc yamlPolicy, s *Slice) yamlSlice {
	y := yamlSlice{yamlPolicy: doc, Family: "FQDN"}
	for _, a := range s.Addresses {
		if y.Family = "IPv6"; a.Is4() {
			y.Family = "IPv4"
		}
		y.Endpoints = append(y.Endpoints, yamlEntry{"addresses": []netip.Addr{a}})
	}
	return y
}
