// Package lab assembles a whole porin cluster on one machine from one file: nodes in namespaces with their own agents,
// workloads attached by the real CNI plugin, hosts outside, and checks that prove who may talk to whom and why.
// It reads lab files and the agents' answers, and writes only below its state directory and in namespaces and cgroups
// of its own. It never touches the machine's own devices, routes, rules or agents.
package lab

import (
	"net/netip"
	"slices"

	"porin/internal/lab/serve"
)

// Spec is a lab file.
type Spec struct {
	Name       string         `yaml:"name"`
	Nodes      nodeList       `yaml:"nodes"`
	Routing    string         `yaml:"routing"`
	Underlay   string         `yaml:"underlay"` // family of the nodes' network that tunnels use; default: the agent's choice
	Families   []string       `yaml:"families"`
	Agent      map[string]any `yaml:"agent"`
	Store      storeURLs      `yaml:"store"`
	Operator   map[string]any `yaml:"operator"` // settings of an operator, which then gives the nodes their pod ranges
	Namespaces []namespace    `yaml:"namespaces"`
	Workloads  []workload     `yaml:"workloads"`
	Outside    []outside      `yaml:"outside"`
	Objects    []object       `yaml:"objects"`
	Checks     []check        `yaml:"checks"`

	file string // as the user named it, for messages
	dir  string // of the file: what relative names are relative to
}

type node struct {
	Name     string            `yaml:"name"`
	Labels   map[string]string `yaml:"labels"`
	PodCIDRs []netip.Prefix    `yaml:"podCIDRs"`
	Serves   []server          `yaml:"serves"` // on the node itself: what host-network programs would do

	line int
}

// storeURLs are the endpoints of a store, comma separated, or "embedded".
type storeURLs string

// nodeList is a number of nodes or a list of them.
type nodeList []node

type namespace struct {
	Name   string            `yaml:"name"`
	Labels map[string]string `yaml:"labels"`

	line int
}

type workload struct {
	Name      string            `yaml:"name"`
	Namespace string            `yaml:"namespace"`
	Node      string            `yaml:"node"`
	Labels    map[string]string `yaml:"labels"`
	Replicas  int               `yaml:"replicas"`
	Serves    []server          `yaml:"serves"`
	Run       command           `yaml:"run"`

	line int
}

type server struct {
	Port     uint16 `yaml:"port"`
	Protocol string `yaml:"protocol"`
	Name     string `yaml:"name"`
	Kind     string `yaml:"kind"`

	line int
}

type outside struct {
	Name      string       `yaml:"name"`
	Addresses []netip.Addr `yaml:"addresses"`
	Serves    []server     `yaml:"serves"`

	line int
}

type object struct {
	File   string `yaml:"file"`
	Inline string `yaml:"inline"`

	line    int
	content []byte
}

// command is a program with arguments; a single text is run by a shell.
type command []string

type check struct {
	From     string  `yaml:"from"`
	To       string  `yaml:"to"`
	Named    string  `yaml:"port"` // number, or name of a port that To serves; Port is what it means
	Protocol string  `yaml:"protocol"`
	Family   string  `yaml:"family"`
	Expect   string  `yaml:"expect"`
	Reason   string  `yaml:"reason"` // drop reason that must be reported; default: one of policy's
	Times    int     `yaml:"times"`
	Run      command `yaml:"run"`
	On       string  `yaml:"on"`

	// Known, so that they get an answer better than "unknown field"; not in this slice.
	HTTP     map[string]any `yaml:"http"`
	Backends int            `yaml:"backends"`

	Port uint16 `yaml:"-"`
	line int
}

// What a check expects.
const (
	expectAllow  = "allow"
	expectDeny   = "deny"
	expectReject = "reject"
)

const (
	ipv4 = "ipv4"
	ipv6 = "ipv6"

	embeddedStore = "embedded"
	routingNative = "native"
)

func (s *Spec) has(family string) bool { return slices.Contains(s.Families, family) }

// wired tells whether the nodes' network has the family: tunnels may use one that pods do not.
func (s *Spec) wired(family string) bool { return s.has(family) || s.Underlay == family }

// cluster tells whether the nodes have to know of each other.
func (s *Spec) cluster() bool { return len(s.Nodes) > 1 || s.Operator != nil }

// ownStore tells whether the lab runs a store for all nodes. A single node has one of its own, inside its agent.
func (s *Spec) ownStore() bool { return s.cluster() && s.Store == embeddedStore }

// operated tells whether an operator gives the nodes their pod ranges.
func (s *Spec) operated() bool { return s.Operator != nil }

func (s *Spec) tunnels() bool { return s.Routing != routingNative }

// pods are the workloads with replicas spread out, in order.
func (s *Spec) pods() []pod {
	var out []pod
	next := 0
	for i := range s.Workloads {
		w := &s.Workloads[i]
		for r := range w.Replicas {
			p := pod{workload: w, name: w.Name, node: w.Node}
			if w.Replicas > 1 {
				p.name = replicaName(w.Name, r)
			}
			if p.node == "" {
				p.node = s.Nodes[next%len(s.Nodes)].Name
				next++
			}
			out = append(out, p)
		}
	}
	return out
}

// pod is one replica of a workload.
type pod struct {
	*workload
	name string
	node string
}

func serveList(list []server) []serve.Server {
	out := make([]serve.Server, len(list))
	for i, s := range list {
		out[i] = serve.Server{Port: s.Port, Protocol: s.Protocol, Kind: s.Kind, Name: s.Name}
	}
	return out
}
