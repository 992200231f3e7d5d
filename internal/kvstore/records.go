package kvstore

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"porin/internal/identity"
	"porin/internal/node"
)

const stateRoot = "porin/state/v1/"

// StatePrefix is what all records of a cluster's nodes and addresses begin with. A reader of another cluster needs no
// more than this and IdentityPrefix.
func StatePrefix(cluster string) string { return stateRoot + cluster + "/" }

// IdentityPrefix is what all keys about identity numbers begin with.
const IdentityPrefix = root

// NodeKey is where a node's own record is.
func NodeKey(cluster, name string) string { return StatePrefix(cluster) + "nodes/" + name }

// AddressKey is where a node's record of an address is.
func AddressKey(cluster, name string, addr netip.Addr) string {
	return addressPrefix(cluster, name) + addr.String()
}

func addressPrefix(cluster, name string) string {
	return StatePrefix(cluster) + "addresses/" + name + "/"
}

// Claim is how a node remembers its place in the store: what it must know to tell, after a restart, whether its record
// lapsed meanwhile or the store was lost.
type Claim struct {
	Generation uint64 `json:"generation"`
	Store      string `json:"store"` // what the store's mark said when the record was written
}

// markKey holds a random word that the first writer puts there. A store with another word, or none, has lost what it held.
const markKey = "porin/store"

// RecordsConfig of Records.
type RecordsConfig struct {
	Cluster   string // whose records are read
	ClusterID uint8
	Node      string // whose records are written; empty: none
	Claim     Claim  // as Save was given it last; generation 0: the first start ever
	Save      func(Claim) error
	Now       func() time.Time // default time.Now
}

// Records reads the records of one cluster's nodes and writes this node's own. It implements node.Store and
// node.Publisher.
//
// Own records are written in an order that others rely on: addresses first, the node's record last. Whoever sees the
// node's record come sees all of its addresses, and may forget those that it does not see.
type Records struct {
	log    *slog.Logger
	cfg    RecordsConfig
	client *Client
	kick   chan struct{}

	mu      sync.Mutex
	self    *node.Node              // mu: nil until there is one to publish
	lease   clientv3.LeaseID        // mu: under which the node's record is; 0: still to be written
	under   clientv3.LeaseID        // mu: under which it was written last
	claim   Claim                   // mu
	saved   Claim                   // mu: what Save took last
	want    map[netip.Addr]*record  // mu: addresses as they should be
	gone    map[netip.Addr]bool     // mu: addresses to be removed
	cleaned bool                    // mu: what an earlier run left was looked at
	onClaim func(generation uint64) // mu: told when the generation changes
	listing uint64                  // mu: number of the last listing
}

// record is one of the node's addresses.
type record struct {
	value string
	lease clientv3.LeaseID // 0: still to be written
}

// NewRecords returns the records of a cluster behind client. Watch, and Run if it publishes, must run for it to work.
func NewRecords(log *slog.Logger, client *Client, cfg RecordsConfig) *Records {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Records{
		log: log, cfg: cfg, client: client, kick: make(chan struct{}, 1), claim: cfg.Claim, saved: cfg.Claim,
		want: map[netip.Addr]*record{}, gone: map[netip.Addr]bool{},
	}
}

// addressValue is the value of an address's key; the key says the rest.
type addressValue struct {
	Identity   identity.ID  `json:"identity"`
	Meaning    node.Meaning `json:"meaning"`
	Namespace  string       `json:"namespace,omitempty"`
	Pod        string       `json:"pod,omitempty"`
	Ports      []node.Port  `json:"ports,omitempty"`
	Generation uint64       `json:"generation"`
}

func encodeAddress(a node.Address) string {
	b, err := json.Marshal(addressValue{a.Identity, a.Meaning, a.Namespace, a.Pod, a.Ports, a.Generation})
	if err != nil {
		panic(err) // strings and numbers only
	}
	return string(b)
}

// parse reads a key of the cluster: of a node, or of an address of a node.
func (r *Records) parse(key string) (name string, addr netip.Addr, err error) {
	rest, ok := strings.CutPrefix(key, StatePrefix(r.cfg.Cluster))
	if !ok {
		return "", addr, fmt.Errorf("it is outside %s", StatePrefix(r.cfg.Cluster))
	}
	if name, ok = strings.CutPrefix(rest, "nodes/"); ok && name != "" && !strings.Contains(name, "/") {
		return name, addr, nil
	}
	if rest, ok = strings.CutPrefix(rest, "addresses/"); ok {
		var text string
		if name, text, ok = strings.Cut(rest, "/"); ok && name != "" {
			addr, err = netip.ParseAddr(text)
			if err == nil && (addr.String() != text || addr.Zone() != "" || addr.Is4In6()) {
				err = fmt.Errorf("%q is not how %s is written", text, addr)
			}
			return name, addr, err
		}
	}
	return "", addr, fmt.Errorf("no record has such a key")
}

// decode adds what a key says to the batch. What cannot be read counts as not being there.
func (r *Records) decode(b *node.Batch, key string, value []byte, gone bool) {
	name, addr, err := r.parse(key)
	switch {
	case err != nil:
	case gone && addr.IsValid():
		b.Gone = append(b.Gone, node.Ownership{Node: name, Addr: addr})
	case gone:
		b.GoneNodes = append(b.GoneNodes, name)
	case addr.IsValid():
		var v addressValue
		if err = json.Unmarshal(value, &v); err == nil {
			b.Addresses = append(b.Addresses, node.Address{
				Addr: addr, Identity: v.Identity, Meaning: v.Meaning, Cluster: r.cfg.Cluster, Node: name,
				Namespace: v.Namespace, Pod: v.Pod, Ports: v.Ports, Generation: v.Generation,
			})
		}
	default:
		var n node.Node
		if err = json.Unmarshal(value, &n); err == nil && n.Name != name {
			err = fmt.Errorf("it is the record of %q", n.Name)
		}
		if err == nil {
			b.Nodes = append(b.Nodes, n)
		}
	}
	if err == nil {
		return
	}
	r.client.count("refused")
	r.log.Warn("record in the store ignored", "key", key, "err", err)
	if !gone && name != "" { // whatever was there before is no more
		r.decode(b, key, nil, true)
	}
}

// PublishNode makes n this node's record. Its generation is that of the claim.
func (r *Records) PublishNode(n node.Node) {
	r.mu.Lock()
	if r.claim.Generation == 0 {
		r.claim.Generation = uint64(r.cfg.Now().UnixNano())
	}
	n.Generation = r.claim.Generation
	r.self, r.lease = &n, 0
	r.mu.Unlock()
	r.wake()
}

// Generation is that of the node's claim.
func (r *Records) Generation() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.claim.Generation
}

// OnClaim has f called when the node had to claim anew, with the generation that it has by then.
func (r *Records) OnClaim(f func(generation uint64)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.onClaim = f
}

// PublishAddresses adds or replaces records of addresses, and removes others.
func (r *Records) PublishAddresses(put []node.Address, remove []netip.Addr) {
	r.mu.Lock()
	for _, a := range remove {
		if r.want[a] != nil {
			delete(r.want, a)
			r.gone[a] = true
		}
	}
	for _, a := range put {
		v := encodeAddress(a)
		if old := r.want[a.Addr]; old != nil && old.value == v {
			continue
		}
		r.want[a.Addr] = &record{value: v}
		delete(r.gone, a.Addr)
	}
	r.mu.Unlock()
	r.wake()
}

// Published tells how many own records the store has, and how many it should have.
func (r *Records) Published() (there, wanted int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.want {
		if rec.lease != 0 {
			there++
		}
	}
	wanted = len(r.want)
	if r.self != nil {
		wanted++
		if r.lease != 0 {
			there++
		}
	}
	return there, wanted
}

func (r *Records) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// sortedAddrs makes the order of writes the same for the same change.
func sortedAddrs[V any](m map[netip.Addr]V) []netip.Addr {
	return slices.SortedFunc(maps.Keys(m), netip.Addr.Compare)
}
