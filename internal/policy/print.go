package policy

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	yaml "go.yaml.in/yaml/v3"

	"porin/internal/labels"
)

// The shape of a document as Marshal writes it. Lists are pointers: an empty one must not vanish, since "nobody" would
// become "everybody".
type yamlPolicy struct {
	APIVersion string      `yaml:"apiVersion"`
	Kind       string      `yaml:"kind"`
	Metadata   yamlMeta    `yaml:"metadata"`
	Spec       *yamlRule   `yaml:"spec,omitempty"`
	Specs      []*yamlRule `yaml:"specs,omitempty"`
}

type yamlMeta struct {
	Name      string `yaml:"name"`
	Namespace string `yaml:"namespace,omitempty"`
}

type yamlRule struct {
	Description string           `yaml:"description,omitempty"`
	Labels      []yamlLabel      `yaml:"labels,omitempty"`
	Log         *yamlLog         `yaml:"log,omitempty"`
	Subject     yamlSelector     `yaml:"endpointSelector"`
	DefaultDeny *yamlDefaultDeny `yaml:"enableDefaultDeny,omitempty"`
	Ingress     *[]yamlEntry     `yaml:"ingress,omitempty"`
	IngressDeny *[]yamlEntry     `yaml:"ingressDeny,omitempty"`
	Egress      *[]yamlEntry     `yaml:"egress,omitempty"`
	EgressDeny  *[]yamlEntry     `yaml:"egressDeny,omitempty"`
}

type yamlLabel struct {
	Source string `yaml:"source"`
	Key    string `yaml:"key"`
	Value  string `yaml:"value"`
}

type yamlLog struct {
	Value string `yaml:"value"`
}

type yamlDefaultDeny struct {
	Ingress *bool `yaml:"ingress,omitempty"`
	Egress  *bool `yaml:"egress,omitempty"`
}

type yamlSelector struct {
	MatchExpressions []yamlExpression `yaml:"matchExpressions,omitempty"`
}

type yamlExpression struct {
	Key      string   `yaml:"key"`
	Operator string   `yaml:"operator"`
	Values   []string `yaml:"values,omitempty"`
}

type yamlEntry struct {
	FromEndpoints *[]yamlSelector `yaml:"fromEndpoints,omitempty"`
	FromEntities  *[]string       `yaml:"fromEntities,omitempty"`
	FromCIDR      *[]netip.Prefix `yaml:"fromCIDR,omitempty"`
	FromCIDRSet   *[]yamlCIDR     `yaml:"fromCIDRSet,omitempty"`
	ToEndpoints   *[]yamlSelector `yaml:"toEndpoints,omitempty"`
	ToEntities    *[]string       `yaml:"toEntities,omitempty"`
	ToCIDR        *[]netip.Prefix `yaml:"toCIDR,omitempty"`
	ToCIDRSet     *[]yamlCIDR     `yaml:"toCIDRSet,omitempty"`
	ToPorts       []yamlPorts     `yaml:"toPorts,omitempty"`
	ICMPs         []yamlICMP      `yaml:"icmps,omitempty"`
}

type yamlCIDR struct {
	CIDR   netip.Prefix   `yaml:"cidr"`
	Except []netip.Prefix `yaml:"except,omitempty"`
}

type yamlPorts struct {
	Ports []yamlPort `yaml:"ports"`
}

type yamlPort struct {
	Port     string `yaml:"port,omitempty"`
	EndPort  uint16 `yaml:"endPort,omitempty"`
	Protocol string `yaml:"protocol"`
}

type yamlICMP struct {
	Fields []yamlField `yaml:"fields"`
}

type yamlField struct {
	Family string `yaml:"family"`
	Type   uint16 `yaml:"type"`
}

// Marshal writes p as a document that Parse reads back to the same rules. The text as it was written is p.YAML.
func (p *Policy) Marshal() ([]byte, error) {
	doc := yamlPolicy{APIVersion: "cilium.io/v2", Kind: p.Kind, Metadata: yamlMeta{p.Name, p.Namespace}}
	for _, r := range p.Rules {
		y := marshalRule(r)
		if r.Spec < 0 {
			doc.Spec = y
		} else {
			doc.Specs = append(doc.Specs, y)
		}
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("print %s: %w", p.Ref, err)
	}
	return b.Bytes(), nil
}

func marshalRule(r *Rule) *yamlRule {
	y := &yamlRule{
		Description: r.Description, Subject: marshalSelector(r.Subject),
		Ingress: marshalEntries(r.Ingress.Allow, true), IngressDeny: marshalEntries(r.Ingress.Deny, true),
		Egress: marshalEntries(r.Egress.Allow, false), EgressDeny: marshalEntries(r.Egress.Deny, false),
	}
	for _, l := range r.Labels {
		y.Labels = append(y.Labels, yamlLabel(l))
	}
	if r.Log != "" {
		y.Log = &yamlLog{r.Log}
	}
	if r.Ingress.DefaultDeny != nil || r.Egress.DefaultDeny != nil {
		y.DefaultDeny = &yamlDefaultDeny{r.Ingress.DefaultDeny, r.Egress.DefaultDeny}
	}
	return y
}

func marshalSelector(s labels.Selector) (y yamlSelector) {
	for _, q := range s.Requirements() {
		key := q.Key
		if q.Source != "" {
			key = q.Source + ":" + q.Key
		}
		y.MatchExpressions = append(y.MatchExpressions, yamlExpression{key, string(q.Operator), q.Values})
	}
	return y
}

func marshalEntries(list []*Entry, ingress bool) *[]yamlEntry {
	if list == nil {
		return nil
	}
	out := make([]yamlEntry, 0, len(list))
	for _, e := range list {
		var y yamlEntry
		to := func(from, to **[]yamlSelector) **[]yamlSelector {
			if ingress {
				return from
			}
			return to
		}
		switch e.Peers.Kind {
		case PeersEndpoints:
			l := make([]yamlSelector, 0, len(e.Peers.Endpoints))
			for _, s := range e.Peers.Endpoints {
				l = append(l, marshalSelector(s))
			}
			*to(&y.FromEndpoints, &y.ToEndpoints) = &l
		case PeersEntities:
			l := append([]string{}, e.Peers.Entities...)
			if ingress {
				y.FromEntities = &l
			} else {
				y.ToEntities = &l
			}
		case PeersCIDR:
			l := make([]netip.Prefix, 0, len(e.Peers.CIDRs))
			for _, c := range e.Peers.CIDRs {
				l = append(l, c.Prefix)
			}
			if ingress {
				y.FromCIDR = &l
			} else {
				y.ToCIDR = &l
			}
		case PeersCIDRSet:
			l := make([]yamlCIDR, 0, len(e.Peers.CIDRs))
			for _, c := range e.Peers.CIDRs {
				l = append(l, yamlCIDR{c.Prefix, c.Except})
			}
			if ingress {
				y.FromCIDRSet = &l
			} else {
				y.ToCIDRSet = &l
			}
		}
		if onlyTypes(e.Ports) {
			y.ICMPs = marshalICMP(e.Ports)
		} else {
			y.ToPorts = marshalPorts(e.Ports)
		}
		out = append(out, y)
	}
	return &out
}

// onlyTypes tells whether ports are single ICMP types. They must be written as icmps: there, type 0 is the echo reply,
// and in toPorts port 0 is every type.
func onlyTypes(ports []Port) bool {
	for _, p := range ports {
		if p.Proto != ProtoICMP && p.Proto != ProtoICMPv6 || p.Any || p.First != p.Last {
			return false
		}
	}
	return true
}

func marshalICMP(ports []Port) (out []yamlICMP) {
	for part := range slices.Chunk(ports, maxPorts) {
		var y yamlICMP
		for _, p := range part {
			family := "IPv4"
			if p.Proto == ProtoICMPv6 {
				family = "IPv6"
			}
			y.Fields = append(y.Fields, yamlField{family, p.First})
		}
		out = append(out, y)
	}
	return out
}

func marshalPorts(ports []Port) (out []yamlPorts) {
	for part := range slices.Chunk(ports, maxPorts) {
		var y yamlPorts
		for _, p := range part {
			one := yamlPort{Protocol: protocolName(p)}
			if !p.Any {
				one.Port = fmt.Sprint(p.First)
			}
			if p.Last != p.First {
				one.EndPort = p.Last
			}
			y.Ports = append(y.Ports, one)
		}
		out = append(out, y)
	}
	return out
}
