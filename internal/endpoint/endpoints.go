package endpoint

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"porin/internal/identity"
	"porin/internal/ipam"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/state"
)

// Config of Endpoints. The zero value of a duration means its default.
type Config struct {
	StateDir string                            // the agent's; the files are in its folder endpoints
	MTU      func() int                        // of workloads that do not ask for one; nil: the datapath decides
	Security func(labels.Labels) labels.Labels // which labels make the identity; nil: all
	// Prefixes are the CIDRs that the kernel still knows from before a restart. The allocator must know them too.
	Prefixes map[netip.Prefix]identity.ID
	// Identities, when given, is watched by Run for identities of other nodes.
	Identities *state.Table[identity.Identity]

	Check      time.Duration    // how often Run looks for vanished devices (default 5 s)
	RetryFirst time.Duration    // first retry of what did not work (default 250 ms), doubled up to
	RetryMax   time.Duration    // (default 30 s)
	Grace      time.Duration    // how long a CIDR's rows outlive its last prefix, for packets under way (default 1 s)
	Now        func() time.Time // default time.Now
}

// Deps are the rooms that Endpoints works with.
type Deps struct {
	DB         *state.DB
	Datapath   Datapath
	Policy     Policy
	Identities Identities
	Addresses  *ipam.IPAM
}

// PolicyRow is a row of the policies table.
type PolicyRow struct {
	Ref       policy.Ref `json:"ref"`
	Source    string     `json:"source"` // the file it was read from
	Revision  uint64     `json:"revision"`
	Rules     int        `json:"rules"`
	Endpoints int        `json:"endpoints"` // of this node whose verdicts it takes part in
}

// Endpoints runs the life of all endpoints of this node. Safe for concurrent use.
//
//	          Create                                     ApplyPolicies, SetLabels, identities
//	             │                                                  │
//	creating ─▶ waiting-for-identity ─▶ (device) ─▶ ready ◀──────────┤
//	    │                                 ▲   │ kernel says no       │
//	    │ failure: undone in reverse      │   ▼                      │
//	    ▼                             retried  not-ready (denied) ◀──┘
//	disconnecting ─▶ gone                 ▲
//	    ▲                                 │
//	  Delete, GC, device vanished     restoring ◀─ Restore
//
// Two locks: one per attachment, held through a whole Create, Delete or SetLabels of it; and the turn, held for
// each change of what the kernel decides by, so that changes come one after the other. Devices are made, addresses and
// identities fetched and files written outside the turn.
type Endpoints struct {
	log  *slog.Logger
	cfg  Config
	deps Deps
	rows *state.Table[Endpoint]
	refs *state.Table[PolicyRow]

	attachments keyed
	turn        chan struct{} // holds a token while nobody has the turn
	begun       chan struct{} // closed once the first policies are in force
	kick        chan struct{} // wakes Run when there is something to retry

	kernel   kernel        // guarded by the turn
	revision atomic.Uint64 // of the policies in force; the turn's holder writes it

	identities *state.Follower[identity.Identity] // read by Run; nil: none

	mu     sync.Mutex
	nextID uint16                // mu
	byKey  map[string]uint16     // mu: by device name
	byAddr map[netip.Addr]uint16 // mu
	notes  map[uint16]*note      // mu: what is known of an endpoint beside its row
	alarms map[string]string     // mu: kind -> text
	newer  chan struct{}         // mu: closed when revision rises
}

// note is what only this room needs to know of an endpoint.
type note struct {
	device    string
	log       []LogEntry
	tries     int       // of retries in vain
	next      time.Time // when to try again
	unsaved   bool      // the state file is older than the row
	unclaimed bool      // the identity is not counted with the allocator: restored
	doubted   bool      // the store says that the number means other labels
	blocked   bool      // another endpoint has its address: denied until it is deleted
}

// New returns Endpoints without any; it does no i/O. The tables endpoints and policies are added to deps.DB.
func New(log *slog.Logger, cfg Config, deps Deps) *Endpoints {
	if cfg.Security == nil {
		cfg.Security = func(ls labels.Labels) labels.Labels { return ls }
	}
	if cfg.MTU == nil {
		cfg.MTU = func() int { return 0 }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	for _, d := range []struct {
		to    *time.Duration
		value time.Duration
	}{{&cfg.Check, 5 * time.Second}, {&cfg.RetryFirst, 250 * time.Millisecond}, {&cfg.RetryMax, 30 * time.Second}, {&cfg.Grace, time.Second}} {
		if *d.to == 0 {
			*d.to = d.value
		}
	}
	e := &Endpoints{
		log: log, cfg: cfg, deps: deps,
		rows: state.NewTable(deps.DB, "endpoints", func(ep Endpoint) string { return rowKey(ep.ID) }),
		refs: state.NewTable(deps.DB, "policies", func(p PolicyRow) string { return refKey(p.Ref) }),
		turn: make(chan struct{}, 1), begun: make(chan struct{}), kick: make(chan struct{}, 1),
		kernel: newKernel(),
		nextID: 1,
		byKey:  map[string]uint16{}, byAddr: map[netip.Addr]uint16{}, notes: map[uint16]*note{}, alarms: map[string]string{},
		newer: make(chan struct{}),
	}
	if cfg.Identities != nil {
		e.identities = cfg.Identities.Follow() // from now on, so that nothing goes unnoticed before Run
	}
	e.turn <- struct{}{}
	return e
}

func rowKey(id uint16) string { return fmt.Sprintf("%05d", id) }

func refKey(r policy.Ref) string { return r.Kind + "/" + r.Namespace + "/" + r.Name }

func (e *Endpoints) dir() string { return filepath.Join(e.cfg.StateDir, "endpoints") }

// Table is the endpoints table; others read it only.
func (e *Endpoints) Table() *state.Table[Endpoint] { return e.rows }

// PolicyTable is the policies table; others read it only.
func (e *Endpoints) PolicyTable() *state.Table[PolicyRow] { return e.refs }

// List returns all endpoints by number.
func (e *Endpoints) List() []Endpoint { return e.rows.List() }

// ByID returns the endpoint with this number.
func (e *Endpoints) ByID(id uint16) (Endpoint, bool) { return e.rows.Get(rowKey(id)) }

// ByAddr returns the endpoint that has addr.
func (e *Endpoints) ByAddr(addr netip.Addr) (Endpoint, bool) {
	e.mu.Lock()
	id, ok := e.byAddr[addr]
	e.mu.Unlock()
	if !ok {
		return Endpoint{}, false
	}
	return e.ByID(id)
}

// ByAttachment returns the endpoint of a container's interface.
func (e *Endpoints) ByAttachment(a Attachment) (Endpoint, bool) {
	ep, ok := e.byDevice(a.DeviceName())
	if ok && ep.ContainerID != "" && ep.Attachment() != a {
		return Endpoint{}, false
	}
	return ep, ok
}

func (e *Endpoints) byDevice(name string) (Endpoint, bool) {
	e.mu.Lock()
	id, ok := e.byKey[name]
	e.mu.Unlock()
	if !ok {
		return Endpoint{}, false
	}
	return e.ByID(id)
}

// Get finds an endpoint by one of the forms 12, endpoint-id:12, cni-attachment-id:CONTAINER:INTERFACE,
// container-id:CONTAINER, pod-name:NAMESPACE/POD, ipv4:ADDRESS, ipv6:ADDRESS.
func (e *Endpoints) Get(ref string) (Endpoint, error) {
	kind, value, ok := strings.Cut(ref, ":")
	if !ok {
		kind, value = "endpoint-id", ref
	}
	var ep Endpoint
	found := false
	switch kind {
	case "endpoint-id", "porin-local", "cilium-local":
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil || n == 0 {
			return Endpoint{}, fmt.Errorf("endpoint %q: write its number, NAMESPACE/POD, an address, or one of the forms endpoint-id: cni-attachment-id: container-id: pod-name: ipv4: ipv6: %w", ref, ErrInvalid)
		}
		ep, found = e.ByID(uint16(n))
	case "cni-attachment-id":
		container, ifname, ok := strings.Cut(value, ":")
		if !ok {
			ifname = "eth0"
		}
		ep, found = e.ByAttachment(Attachment{container, ifname})
	case "ipv4", "ipv6":
		addr, err := netip.ParseAddr(value)
		if err != nil || addr.Is4() != (kind == "ipv4") {
			return Endpoint{}, fmt.Errorf("endpoint %q: %q is no %s address: %w", ref, value, kind, ErrInvalid)
		}
		ep, found = e.ByAddr(addr)
	case "container-id", "pod-name", "cep-name":
		if value == "" {
			break
		}
		for _, row := range e.rows.List() {
			name := row.ContainerID
			if kind != "container-id" {
				name = row.Namespace + "/" + row.Pod
			}
			if name != value {
				continue
			}
			if found {
				return Endpoint{}, fmt.Errorf("endpoint %q: there are several, %d and %d among them; give the number: %w", ref, ep.ID, row.ID, ErrInvalid)
			}
			ep, found = row, true
		}
	default:
		return Endpoint{}, fmt.Errorf("endpoint %q: unknown form %s:; there are endpoint-id: cni-attachment-id: container-id: pod-name: ipv4: ipv6: %w", ref, kind, ErrInvalid)
	}
	if !found {
		return Endpoint{}, fmt.Errorf("endpoint %q: %w", ref, ErrNotFound)
	}
	return ep, nil
}

// put commits ep's row, and keeps the indexes and the log in step.
func (e *Endpoints) put(ep Endpoint) {
	old, had := e.ByID(ep.ID)
	e.mu.Lock()
	e.byKey[ep.Device] = ep.ID
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if a.IsValid() {
			e.byAddr[a] = ep.ID
		}
	}
	n := e.notes[ep.ID]
	if n == nil {
		n = &note{device: ep.Device}
		e.notes[ep.ID] = n
	}
	if !had || old.Phase != ep.Phase || old.Message != ep.Message || old.Identity != ep.Identity {
		n.add(LogEntry{e.cfg.Now(), ep.Phase, step(old.Phase, ep)})
	}
	e.mu.Unlock()
	e.rows.Put(ep)
}

// drop removes ep's row and frees its number.
func (e *Endpoints) drop(ep Endpoint) {
	e.rows.Delete(rowKey(ep.ID))
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byKey[ep.Device] == ep.ID {
		delete(e.byKey, ep.Device)
	}
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if e.byAddr[a] == ep.ID {
			delete(e.byAddr, a)
		}
	}
	delete(e.notes, ep.ID)
}

// number reserves a free endpoint number for a device. Numbers go round, so that one comes back late.
func (e *Endpoints) number(device string) (uint16, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for range 1 << 16 {
		id := e.nextID
		e.nextID++
		if _, used := e.notes[id]; id != 0 && !used {
			e.notes[id] = &note{device: device}
			return id, nil
		}
	}
	return 0, fmt.Errorf("number for %s: all 65535 endpoint numbers are in use", device)
}

func (e *Endpoints) noteOf(id uint16, f func(*note)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := e.notes[id]; n != nil {
		f(n)
	}
}

// take waits for the turn. Whoever has it must give it back.
func (e *Endpoints) take(ctx context.Context) error {
	select {
	case <-e.turn:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for earlier changes: %w", context.Cause(ctx))
	}
}

func (e *Endpoints) give() { e.turn <- struct{}{} }

// wake makes Run look at once.
func (e *Endpoints) wake() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// waitBegun returns once policies are in force: before, an endpoint would be judged by none.
func (e *Endpoints) waitBegun(ctx context.Context) error {
	select {
	case <-e.begun:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the policies to be in force after the start: %w", ErrNotReady)
	}
}
