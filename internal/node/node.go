// Package node decides what the kernel must know of the rest of the cluster: which nodes there are, which pod ranges lie
// behind each, and which identity every address of theirs has.
// It reads records of nodes and addresses (through the Store interface that it declares), checks who may say what, and
// writes the tables nodes and addresses and, through the Datapath interface, the kernel. It never publishes a record,
// never speaks to a network, and never gives an address to an identity whose labels this node does not know.
package node

import (
	"net/netip"

	"porin/internal/identity"
	"porin/internal/labels"
)

// Node is what a node says about itself: a record in the store and a row of the table nodes. A value: never modified
// once made.
type Node struct {
	Cluster   string `json:"cluster"`
	ClusterID uint8  `json:"cluster-id"`
	Name      string `json:"name"`
	// Generation says since when the node has its claims: the time, in ns, of the agent's first start with its state
	// folder, or of its return after its record had lapsed. Of two nodes that claim the same range the one with the
	// lower number has it.
	Generation uint64         `json:"generation"`
	Addresses  []netip.Addr   `json:"addresses"`        // underlay, at most one of each family
	PodCIDRs   []netip.Prefix `json:"pod-cidrs"`        // of its workloads
	Health     []netip.Addr   `json:"health,omitempty"` // of its health endpoint: addresses of its pod ranges with identity 4
	Labels     labels.Labels  `json:"labels,omitempty"` // source node
}

// Key names the node among those of all clusters; names alone are unique in a cluster only.
func (n Node) Key() string { return n.Cluster + "/" + n.Name }

// Underlay returns the addresses by which from and to reach each other: IPv4 if both have it, else IPv6. It picks the same
// family on both sides, which the check of a tunnelled packet's outer source depends on. Invalid when there is none.
func Underlay(from, to []netip.Addr, want Family) (src, dst netip.Addr) {
	for _, v4 := range []bool{true, false} {
		if want == IPv4 && !v4 || want == IPv6 && v4 {
			continue
		}
		a, okA := pick(from, v4)
		b, okB := pick(to, v4)
		if okA && okB {
			return a, b
		}
	}
	return netip.Addr{}, netip.Addr{}
}

func pick(list []netip.Addr, v4 bool) (netip.Addr, bool) {
	for _, a := range list {
		if a.Is4() == v4 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Family of the underlay.
type Family string

// Families. Auto is IPv4 where both nodes have it.
const (
	Auto Family = "auto"
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// Port is a port of a workload that has a name.
type Port struct {
	Name  string `json:"name"` // lower case
	Proto uint8  `json:"protocol"`
	Port  uint16 `json:"port"`
}

// Address is what a node says about one address of a workload: a record in the store and a row of the table addresses.
type Address struct {
	Addr     netip.Addr  `json:"address"`
	Identity identity.ID `json:"identity"`
	// Meaning is the hash of the label set that the owner takes the number for. The address is used only while the number
	// means just that here, so a number that came to mean something else lends its permissions to nobody.
	Meaning    Meaning `json:"meaning,omitempty"`
	Cluster    string  `json:"cluster"`
	Node       string  `json:"node"`
	Namespace  string  `json:"namespace,omitempty"`
	Pod        string  `json:"pod,omitempty"`
	Ports      []Port  `json:"ports,omitempty"`
	Generation uint64  `json:"generation"` // of two nodes that own the address by right, the higher one has it
}

// Remote is an address behind another node, as the kernel needs it.
type Remote struct {
	Addr     netip.Addr
	Identity identity.ID
	Node     netip.Addr // underlay address to send to, and to expect it from
}

// Datapath is what the room needs of the kernel. Every method is idempotent and takes all rows of one change. A method that
// fails is called again with the same rows, or with newer ones for the same keys.
type Datapath interface {
	// PutNodes makes nodes known: tunnels accept packets from their underlay addresses, their pod ranges lead to them.
	// A node that was put before (same Key) is replaced: addresses and ranges that it has no more go.
	PutNodes([]Node) error
	// DeleteNodes forgets nodes by Key, after the last of their addresses.
	DeleteNodes(keys []string) error
	// PutRemotes says who has an address and behind which node. Where that changes, cached verdicts become stale. A
	// row of this node's own endpoints or of the node itself is never overwritten.
	PutRemotes([]Remote) error
	// DeleteRemotes removes the rows that still lead to the given node; those of a newer owner stay.
	DeleteRemotes([]Remote) error
	// ForgetFormer is called once, when everything that is true has been put since the start: what an earlier run left and
	// nobody has put goes.
	ForgetFormer() error
}
