package node

import (
	"context"
	"net/netip"
)

// Batch is what a store told about one cluster at one moment; it is taken in as a whole. A record that is not acceptable
// is refused by itself, the rest stands.
type Batch struct {
	Nodes     []Node
	Addresses []Address
	GoneNodes []string    // names
	Gone      []Ownership // addresses
	// Listing is not 0 in batches that come from reading everything: the number of that reading, higher than any before.
	// The last one has Done; what the store told before the listing began and not since is gone then.
	Listing uint64
	Done    bool
}

// Ownership names the record of an address: several nodes may have one for the same address.
type Ownership struct {
	Node string
	Addr netip.Addr
}

// Store is where a cluster's records are.
type Store interface {
	// Watch tells f of every record of the cluster, then of each change, until ctx ends. After an interruption that the
	// store's history does not bridge it lists everything again. f is called by one goroutine.
	Watch(ctx context.Context, f func(Batch)) error
}

// Publisher is where this node's own records go. The methods return at once; what they say is written when the store
// answers, and again whenever the store has lost it.
type Publisher interface {
	PublishNode(Node)
	PublishAddresses(put []Address, remove []netip.Addr)
}
