package policy

import (
	"fmt"
	"net/netip"

	"porin/internal/labels"
	"porin/internal/verdict"
)

// Kinds of documents.
const (
	KindNetworkPolicy            = "CiliumNetworkPolicy"
	KindClusterwideNetworkPolicy = "CiliumClusterwideNetworkPolicy"
	KindKubernetesNetworkPolicy  = "NetworkPolicy"
	KindClusterNetworkPolicy     = "ClusterNetworkPolicy"
	KindCIDRGroup                = "CiliumCIDRGroup"
	KindService                  = "Service"
	KindEndpointSlice            = "EndpointSlice"
	KindPorin                    = "porin" // what porin itself decides, in RuleRefs
)

// Ref names a policy.
type Ref struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// Policy is one document: rules, or something that the rules of others refer to. Never modified once made.
type Policy struct {
	Ref
	Rules  []*Rule
	Group  *CIDRGroup    // of a CiliumCIDRGroup
	Labels labels.Labels // of the document itself; source k8s
	YAML   string        // as it was written
	File   string
	Line   int // of the document in File

	Service *Service // of a Service
	Slice   *Slice   // of an EndpointSlice
}

// CIDRGroup is a list of blocks that rules name by the group's name or labels.
type CIDRGroup struct {
	CIDRs []netip.Prefix
}

// Service is what rules with toServices need to know of a Service: which workloads it means.
type Service struct {
	Selector labels.Selector // of its own namespace; meaningless unless Selects
	Selects  bool            // false: no selector; its backends come from slices
}

// Slice is one EndpointSlice: addresses behind a service.
type Slice struct {
	Service   string // name; of the slice's own namespace
	Addresses []netip.Addr
}

// Tier orders groups of rules: the first tier that does not pass decides.
type Tier uint8

// Tiers. Documents of Cilium's kinds are Normal.
const (
	TierAdmin    Tier = 100
	TierNormal   Tier = 200
	TierBaseline Tier = 250
)

// Effect of a rule's entry. Among entries of one tier and priority the higher number wins.
type Effect uint8

// Effects.
const (
	EffectPass Effect = iota // the next tier decides
	EffectAllow
	EffectAuth // would allow, but demands what nobody proves: denies
	EffectDeny
)

// Rule is one spec of a document: whom it selects, and what it says in each direction.
type Rule struct {
	Spec        int // index in specs; -1 for the single spec
	Line        int
	Tier        Tier
	Priority    uint32 // within the tier, lower first
	Subject     labels.Selector
	Nodes       bool // Subject selects nodes, by their labels (source node), not workloads
	Audit       bool // what the rule alone would deny is forwarded and reported
	Ingress     Section
	Egress      Section
	Labels      labels.Labels
	Description string
	Log         string
}

// Section returns the rule's part for a direction.
func (r *Rule) Section(d verdict.Direction) *Section {
	if d == verdict.Egress {
		return &r.Egress
	}
	return &r.Ingress
}

// Section is what a rule says about one direction. A list that is nil was not in the document; one that is empty was,
// and isolates.
type Section struct {
	Allow       []*Entry
	Deny        []*Entry
	Pass        []*Entry // the next tier decides
	DefaultDeny *bool    // as in the document; nil: isolate when one of the lists is there
}

// Isolates tells whether the section denies what nothing allows.
func (s *Section) Isolates() bool {
	if s.DefaultDeny != nil {
		return *s.DefaultDeny
	}
	return s.Allow != nil || s.Deny != nil
}

// Entry is one element of ingress, egress, ingressDeny or egressDeny: peers and ports, both of which must fit.
type Entry struct {
	Line     int
	Index    int    // in the list of the document that holds it
	Name     string // of the rule of a ClusterNetworkPolicy, for people
	Priority uint32 // among entries of rules of the same tier and priority, lower first (ClusterNetworkPolicy: its place)
	Peers    Peers
	Requires []labels.Selector // fromRequires, toRequires: see Engine
	Ports    []Port            // nil: every protocol and port
	Auth     Auth
}

// Auth is what an entry demands of the two ends before it allows.
type Auth uint8

// Authentication modes. Nothing authenticates workloads yet, so those that demand it allow nothing.
const (
	AuthNone Auth = iota // not said
	AuthDisabled
	AuthRequired
	AuthTestAlwaysFail
)

// selectsNothing: an entry that says neither who nor what, like "ingress: [{}]", opens nothing.
func (e *Entry) selectsNothing() bool { return e.Peers.Kind == PeersAny && e.Ports == nil }

// PeerKind says which field named the peers.
type PeerKind uint8

// Peer kinds. One entry has one kind.
const (
	PeersAny PeerKind = iota // no field: everyone
	PeersEndpoints
	PeersEntities
	PeersCIDR
	PeersCIDRSet
	PeersServices
	PeersNodes
	PeersFQDNs
)

// Peers of an entry. The list of its kind may be empty: then it selects nobody.
type Peers struct {
	Kind      PeerKind
	Endpoints []labels.Selector // as written; see scope
	Entities  []string
	CIDRs     []CIDR // of PeersCIDR (no excepts) and PeersCIDRSet
	Services  []ServicePeer
	Nodes     []labels.Selector // by the labels of nodes, source node
	FQDNs     []FQDN
}

// CIDR is blocks of addresses without some smaller blocks: one block, or those of groups.
type CIDR struct {
	Prefix        netip.Prefix
	Group         string           // name of a CiliumCIDRGroup, instead of Prefix
	GroupSelector *labels.Selector // labels of CiliumCIDRGroups, instead of Prefix
	Except        []netip.Prefix
}

// ServicePeer names services of one namespace: one by name, or those whose labels match.
type ServicePeer struct {
	Namespace string // empty: every namespace (selector only)
	Name      string
	Selector  *labels.Selector
}

// FQDN names DNS names: one, lower case with the final dot, or a pattern of them. "*" stands for part of one label,
// "**." for one label or more.
type FQDN struct {
	Name    string
	Pattern string
}

// Port is a set of (protocol, port): ports First..Last of Proto, or every port of it. ICMP types are ports.
type Port struct {
	Proto       uint8
	Any         bool
	First, Last uint16
	AnyProto    bool   // written as protocol ANY: TCP, UDP and SCTP; Proto is 0
	Name        string // a named port, lower case: then First and Last are 0 and its numbers are the responder's
	L7          *L7    // what may be said there; nil: anything
}

// NamedPort is a port of a workload that has a name.
type NamedPort struct {
	Name  string `json:"name"` // lower case
	Proto uint8  `json:"protocol"`
	Port  uint16 `json:"port"`
}

// Protocol numbers.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
	ProtoSCTP   = 132
)

// protocols returns the protocol numbers that p stands for.
func (p Port) protocols() []uint8 {
	if p.AnyProto {
		return []uint8{ProtoTCP, ProtoUDP, ProtoSCTP}
	}
	return []uint8{p.Proto}
}

// RuleRef names one entry of one policy, or with Index -1 all of a spec's section (what isolates).
type RuleRef struct {
	Policy      Ref               `json:"policy"`
	Spec        int               `json:"spec"` // index in specs; -1 for the single spec
	Index       int               `json:"index"`
	Direction   verdict.Direction `json:"direction"`
	Deny        bool              `json:"deny"`
	File        string            `json:"file,omitempty"`
	Line        int               `json:"line,omitempty"`
	Description string            `json:"description,omitempty"`
}

// String returns, for instance, "CiliumNetworkPolicy default/web ingressDeny[2]".
func (r RuleRef) String() string {
	if r.Policy.Kind == KindPorin {
		return r.Policy.Name
	}
	s := r.Policy.String() + " "
	if r.Spec >= 0 {
		s += fmt.Sprintf("specs[%d].", r.Spec)
	}
	s += r.Direction.String()
	if r.Index < 0 {
		return s
	}
	if r.Deny && r.Policy.Kind != KindClusterNetworkPolicy { // its one list says of each entry what it does
		s += "Deny"
	}
	return fmt.Sprintf("%s[%d]", s, r.Index)
}
