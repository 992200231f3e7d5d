// Package identity decides which number stands for which set of security-relevant labels.
// It reads label sets and CIDRs, asks a store (through the Store interface it declares) for cluster-wide numbers, and
// writes the identities table. It never speaks to a network and never programs the kernel.
package identity

import (
	"fmt"
	"net/netip"

	"porin/internal/labels"
)

// ID is a security identity's number.
type ID uint32

// Reserved numbers, as in the field (notes on semantics, section 3).
const (
	Unknown       ID = 0
	Host          ID = 1
	World         ID = 2
	Unmanaged     ID = 3
	Health        ID = 4
	Init          ID = 5
	RemoteNode    ID = 6
	KubeAPIServer ID = 7
	Ingress       ID = 8
	WorldIPv4     ID = 9
	WorldIPv6     ID = 10
)

// Number ranges. Cluster-wide numbers carry the cluster id in bits 16 and up; the top byte is the scope.
const (
	MinCluster ID = 256
	MaxCluster ID = 65535
	ScopeLocal ID = 1 << 24 // node-local: CIDRs and DNS names; never leaves the node
	MaxLocal   ID = ScopeLocal + 1<<16 - 1
)

// IsReserved tells whether id is one of the fixed numbers below 256.
func (id ID) IsReserved() bool { return id < MinCluster }

// IsLocal tells whether id has a meaning on this node only.
func (id ID) IsLocal() bool { return id>>24 == ScopeLocal>>24 }

func (id ID) String() string {
	if n, ok := reservedNames[id]; ok {
		return "reserved:" + n
	}
	return fmt.Sprintf("%d", uint32(id))
}

var reservedNames = map[ID]string{
	Host: "host", World: "world", Unmanaged: "unmanaged", Health: "health", Init: "init", RemoteNode: "remote-node",
	KubeAPIServer: "kube-apiserver", Ingress: "ingress", WorldIPv4: "world-ipv4", WorldIPv6: "world-ipv6",
}

// Identity is a number and what it stands for.
type Identity struct {
	ID     ID            `json:"id"`
	Labels labels.Labels `json:"labels"`
	Prefix netip.Prefix  `json:"prefix,omitzero"` // CIDR identities only
}

// Reserved returns the identities with fixed numbers, in order. Each has the one label reserved:<name>.
func Reserved() []Identity {
	out := make([]Identity, 0, len(reservedNames))
	for id := Host; id <= WorldIPv6; id++ {
		out = append(out, Identity{ID: id, Labels: labels.New(labels.Label{Source: labels.SourceReserved, Key: reservedNames[id]})})
	}
	return out
}
