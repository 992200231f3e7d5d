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
	Spec       any         `yaml:"spec,omitempty"`
	Specs      []*yamlRule `yaml:"specs,omitempty"`
}

type yamlMeta struct {
	Name      string            `yaml:"name"`
	Namespace string            `yaml:"namespace,omitempty"`
	Labels    map[string]string `yaml:"labels,omitempty"`
}

type yamlRule struct {
	Description string           `yaml:"description,omitempty"`
	Labels      []yamlLabel      `yaml:"labels,omitempty"`
	Log         *yamlLog         `yaml:"log,omitempty"`
	Porin       *yamlPlace       `yaml:"porin,omitempty"`
	Subject     *yamlSelector    `yaml:"endpointSelector,omitempty"`
	Nodes       *yamlSelector    `yaml:"nodeSelector,omitempty"`
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

type yamlPlace struct {
	Tier     string `yaml:"tier,omitempty"`
	Priority uint32 `yaml:"priority,omitempty"`
	Audit    bool   `yaml:"audit,omitempty"`
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

// yamlEntry is fields by name: from... on ingress, to... on egress.
type yamlEntry map[string]any

type yamlCIDR struct {
	CIDR     *netip.Prefix  `yaml:"cidr,omitempty"`
	Group    string         `yaml:"cidrGroupRef,omitempty"`
	Selector *yamlSelector  `yaml:"cidrGroupSelector,omitempty"`
	Except   []netip.Prefix `yaml:"except,omitempty"`
}

type yamlService struct {
	Named    *yamlNamedService    `yaml:"k8sService,omitempty"`
	Selector *yamlServiceSelector `yaml:"k8sServiceSelector,omitempty"`
}

type yamlNamedService struct {
	Name      string `yaml:"serviceName"`
	Namespace string `yaml:"namespace"`
}

type yamlServiceSelector struct {
	Selector  yamlSelector `yaml:"selector"`
	Namespace string       `yaml:"namespace,omitempty"`
}

type yamlFQDN struct {
	Name    string `yaml:"matchName,omitempty"`
	Pattern string `yaml:"matchPattern,omitempty"`
}

type yamlPorts struct {
	Ports          []yamlPort    `yaml:"ports"`
	Rules          yamlEntry     `yaml:"rules,omitempty"`
	ServerNames    []string      `yaml:"serverNames,omitempty"`
	TerminatingTLS *yamlTLS      `yaml:"terminatingTLS,omitempty"`
	OriginatingTLS *yamlTLS      `yaml:"originatingTLS,omitempty"`
	Listener       *yamlListener `yaml:"listener,omitempty"`
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
	kind, ok := kindOf(p.Kind)
	if !ok {
		return nil, fmt.Errorf("print %s: the kind is unknown", p.Ref)
	}
	doc := yamlPolicy{APIVersion: kind.versions[0], Kind: p.Kind, Metadata: yamlMeta{Name: p.Name, Namespace: p.Namespace}}
	for _, l := range p.Labels {
		if doc.Metadata.Labels == nil {
			doc.Metadata.Labels = map[string]string{}
		}
		doc.Metadata.Labels[l.Key] = l.Value
	}
	switch p.Kind {
	case KindKubernetesNetworkPolicy:
		doc.Spec = marshalKubernetes(p.Rules[0])
	case KindClusterNetworkPolicy:
		doc.Spec = marshalCluster(p.Rules[0])
	case KindCIDRGroup:
		doc.Spec = yamlEntry{"externalCIDRs": append([]netip.Prefix{}, p.Group.CIDRs...)}
	case KindService:
		doc.Spec = marshalSelectedPods(p.Service)
	case KindEndpointSlice:
		return encode(p.Ref, marshalSlice(doc, p.Slice))
	default:
		for _, r := range p.Rules {
			y := marshalRule(r)
			if r.Spec < 0 {
				doc.Spec = y
			} else {
				doc.Specs = append(doc.Specs, y)
			}
		}
	}
	return encode(p.Ref, doc)
}

func encode(ref Ref, doc any) ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("print %s: %w", ref, err)
	}
	return b.Bytes(), nil
}

func marshalRule(r *Rule) *yamlRule {
	y := &yamlRule{
		Description: r.Description,
		Ingress:     marshalEntries(r.Ingress.Allow, true), IngressDeny: marshalEntries(r.Ingress.Deny, true),
		Egress: marshalEntries(r.Egress.Allow, false), EgressDeny: marshalEntries(r.Egress.Deny, false),
	}
	subject := marshalSelector(r.Subject)
	if r.Nodes {
		y.Nodes = &subject
	} else {
		y.Subject = &subject
	}
	for _, l := range r.Labels {
		y.Labels = append(y.Labels, yamlLabel(l))
	}
	if r.Log != "" {
		y.Log = &yamlLog{r.Log}
	}
	if r.Tier != TierNormal || r.Priority != 0 || r.Audit {
		y.Porin = &yamlPlace{tierName(r.Tier), r.Priority, r.Audit}
	}
	if r.Ingress.DefaultDeny != nil || r.Egress.DefaultDeny != nil {
		y.DefaultDeny = &yamlDefaultDeny{r.Ingress.DefaultDeny, r.Egress.DefaultDeny}
	}
	return y
}

func tierName(t Tier) string {
	for name, tier := range tierNames() {
		if tier == t {
			return name
		}
	}
	return ""
}

func marshalSelector(s labels.Selector) yamlSelector { return marshalConditions(s.Requirements()) }

func marshalConditions(reqs []labels.Requirement) (y yamlSelector) {
	for _, q := range reqs {
		key := q.Key
		if q.Source != "" {
			key = q.Source + ":" + q.Key
		}
		y.MatchExpressions = append(y.MatchExpressions, yamlExpression{key, string(q.Operator), q.Values})
	}
	return y
}

// marshalList writes each element; the list is there even if it is empty.
func marshalList[T, Y any](list []T, write func(T) Y) []Y {
	out := make([]Y, 0, len(list))
	for _, one := range list {
		out = append(out, write(one))
	}
	return out
}

func marshalEntries(list []*Entry, ingress bool) *[]yamlEntry {
	if list == nil {
		return nil
	}
	end := site{ingress: ingress}.end()
	out := marshalList(list, func(e *Entry) yamlEntry {
		y := yamlEntry{}
		switch p := &e.Peers; p.Kind {
		case PeersEndpoints:
			y[end+"Endpoints"] = marshalList(p.Endpoints, marshalSelector)
		case PeersEntities:
			y[end+"Entities"] = append([]string{}, p.Entities...)
		case PeersCIDR:
			y[end+"CIDR"] = marshalList(p.CIDRs, func(c CIDR) netip.Prefix { return c.Prefix })
		case PeersCIDRSet:
			y[end+"CIDRSet"] = marshalList(p.CIDRs, marshalCIDR)
		case PeersServices:
			y[end+"Services"] = marshalList(p.Services, marshalService)
		case PeersNodes:
			y[end+"Nodes"] = marshalList(p.Nodes, marshalSelector)
		case PeersFQDNs:
			y[end+"FQDNs"] = marshalList(p.FQDNs, marshalFQDN)
		}
		if e.Requires != nil {
			y[end+"Requires"] = marshalList(e.Requires, marshalSelector)
		}
		if e.Auth != AuthNone {
			y["authentication"] = map[string]string{"mode": authName(e.Auth)}
		}
		switch {
		case e.Ports == nil:
		case onlyTypes(e.Ports):
			y["icmps"] = marshalICMP(e.Ports)
		default:
			y["toPorts"] = marshalPorts(e.Ports)
		}
		return y
	})
	return &out
}

func authName(a Auth) string {
	for name, mode := range authModes() {
		if mode == a {
			return name
		}
	}
	return ""
}

func marshalCIDR(c CIDR) yamlCIDR {
	y := yamlCIDR{Group: c.Group, Except: c.Except}
	switch {
	case c.GroupSelector != nil:
		s := marshalSelector(*c.GroupSelector)
		y.Selector = &s
	case c.Group == "":
		y.CIDR = &c.Prefix
	}
	return y
}

func marshalService(s ServicePeer) yamlService {
	if s.Selector == nil {
		return yamlService{Named: &yamlNamedService{s.Name, s.Namespace}}
	}
	return yamlService{Selector: &yamlServiceSelector{marshalSelector(*s.Selector), s.Namespace}}
}

func marshalFQDN(f FQDN) yamlFQDN { return yamlFQDN(f) }

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

// marshalPorts writes ports that stood in one element, which have their L7 in common, into one again.
func marshalPorts(ports []Port) (out []yamlPorts) {
	for len(ports) > 0 {
		n := 1
		for n < len(ports) && n < maxPorts && ports[n].L7 == ports[0].L7 {
			n++
		}
		y := yamlPorts{Ports: marshalList(ports[:n], marshalPort)}
		if l := ports[0].L7; l != nil {
			marshalL7(l, &y)
		}
		out, ports = append(out, y), ports[n:]
	}
	return out
}

func marshalPort(p Port) yamlPort {
	y := yamlPort{Protocol: protocolName(p), Port: p.Name}
	if !p.Any && p.Name == "" {
		y.Port = fmt.Sprint(p.First)
	}
	if p.Last != p.First {
		y.EndPort = p.Last
	}
	return y
}
