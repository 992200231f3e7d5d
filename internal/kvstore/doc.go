// Package kvstore reads and writes what all nodes of a cluster must agree on, in etcd: the identity numbers, and what
// each node says about itself and its workloads' addresses. It reads and writes keys below porin/, and runs the embedded
// etcd server of a node that has no other store. It never decides which labels make an identity or whose claim stands, and
// never touches the kernel.
//
//	porin/state/v1/<cluster>/nodes/<node>               JSON    leased: the node's record
//	porin/state/v1/<cluster>/addresses/<node>/<address> JSON    leased: who has an address
//	porin/ranges/v1/<cluster>/request/<node>            JSON    leased: the node asks for ranges
//	porin/ranges/v1/<cluster>/given/<node>              JSON    permanent until the node has been gone for long
//	porin/ranges/v1/<cluster>/prefix/<prefix>           node    permanent: makes a range unique
//	porin/leader/v1/operator/<cluster>/<lease>          name    leased: candidates, the oldest leads
//	porin/identities/v1/id/<number>              label set      permanent until collected
//	porin/identities/v1/value/<label set>/       number         permanent until collected: makes the set's number unique
//	porin/identities/v1/value/<label set>/<node> number         leased: the node uses it
//	porin/identities/v1/freed/<number>           label set      leased: the number rests after it was collected
//
// A new label set is one transaction that creates the first three keys if neither the number nor the set is there; so two
// nodes never give two numbers to one set, nor one number to two sets, whatever their caches say. The collector removes
// a set that no node claims in two passes running, and leaves the freed key behind for as long as a node may have been
// cut off and still think of the old meaning.
package kvstore
