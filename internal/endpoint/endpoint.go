// Package endpoint decides the life of every local workload's attachment: create, identify, wire, ready, gone.
// It reads requests, identities and policies and writes the endpoints table and one state file per endpoint. It never
// touches the kernel itself: what it needs of it goes through the Datapath interface that it declares.
package endpoint

import (
	"context"
	"net"
	"net/netip"
	"time"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
)

// Phase of an endpoint's life, in the field's words.
type Phase string

// Phases.
const (
	Creating           Phase = "creating"             // being built: addresses, device
	WaitingForIdentity Phase = "waiting-for-identity" // its labels have no number yet
	NotReady           Phase = "not-ready"            // wiring or policy failed; denied and retried
	Restoring          Phase = "restoring"            // read from disk, not yet checked against the kernel
	Ready              Phase = "ready"                // policy in force
	Disconnecting      Phase = "disconnecting"
)

// Endpoint is a row of the endpoints table. A value: never modified once committed.
type Endpoint struct {
	ID          uint16             `json:"id"` // 1..65535, unique on the node
	ContainerID string             `json:"container-id"`
	IfName      string             `json:"ifname"`            // in the workload
	Netns       string             `json:"netns"`             // path
	Network     string             `json:"network,omitempty"` // name of the CNI network that asked for it
	Namespace   string             `json:"namespace"`
	Pod         string             `json:"pod"`
	Labels      labels.Labels      `json:"labels"`          // all of them
	Security    labels.Labels      `json:"security-labels"` // those that make the identity
	Identity    identity.ID        `json:"identity"`
	IPv4        netip.Addr         `json:"ipv4,omitzero"`
	IPv6        netip.Addr         `json:"ipv6,omitzero"`
	Device      string             `json:"device"` // host side of the veth
	Ifindex     int                `json:"ifindex"`
	MAC         net.HardwareAddr   `json:"mac"`
	MTU         int                `json:"mtu"`
	NamedPorts  []policy.NamedPort `json:"named-ports,omitempty"` // that its containers declare
	Phase       Phase              `json:"phase"`
	Message     string             `json:"message,omitempty"` // why it is not ready
	Ingress     policy.SubjectKey  `json:"ingress"`
	Egress      policy.SubjectKey  `json:"egress"`
	Revision    uint64             `json:"revision"` // policy revision in force
	Created     time.Time          `json:"created"`
}

// Attachment of the endpoint; without a container id when it was rebuilt from the kernel.
func (e Endpoint) Attachment() Attachment { return Attachment{e.ContainerID, e.IfName} }

// owner is the name under which it holds its addresses.
func (e Endpoint) owner() string { return e.Device }

// Name is what people call it: namespace/pod, else the container id.
func (e Endpoint) Name() string {
	if e.Pod != "" {
		return e.Namespace + "/" + e.Pod
	}
	return e.ContainerID
}

// Datapath is what endpoints need of the kernel. Every method is idempotent.
type Datapath interface {
	// CreateDevice makes the veth pair: host side ep.Device in this network namespace, ep.IfName in ep.Netns with the
	// endpoint's addresses, MTU and routes. It returns the host side's ifindex and the workload's MAC. Traffic does
	// not flow before WriteEndpoint. On error nothing is left behind.
	CreateDevice(ep Endpoint) (ifindex int, mac net.HardwareAddr, err error)
	// DeviceIndex returns the ifindex of the host side if it still exists.
	DeviceIndex(name string) (ifindex int, ok bool)
	// DeleteDevice removes the veth pair; no error if it is gone.
	DeleteDevice(name string) error

	// PutSubject writes a subject completely: verdict tables first, then its peers. No packet uses it before an
	// endpoint points to it. Called again for a key that was written before, it makes the rows exactly those of s:
	// an earlier write or patch may have ended half way.
	PutSubject(s *policy.Subject) error
	// PatchSubject changes rows of a subject in place.
	PatchSubject(p policy.Patch) error
	// WriteEndpoint makes the programs know ep: endpoints row with its two subjects, peers rows of its addresses,
	// programs attached to its device. A changed subject takes effect with one write.
	WriteEndpoint(ep Endpoint) error
	// LockEndpoint denies everything from and to ep, keeping its row.
	LockEndpoint(ep Endpoint) error
	// RemoveEndpoint takes the rows away (peers only where they still point to this endpoint) and detaches.
	RemoveEndpoint(ep Endpoint) error

	// PutPrefixes and DeletePrefixes say which identity is behind a CIDR.
	PutPrefixes(map[netip.Prefix]identity.ID) error
	DeletePrefixes([]netip.Prefix) error

	// Commit makes every cached verdict stale and, a grace period later, frees subjects and tables that no endpoint
	// uses. Called once after the writes of one change.
	Commit() error
}

// Survivors is implemented by a Datapath that can read back what an earlier run of the agent left in the kernel. With
// it an endpoint whose state file is damaged or lost is rebuilt; without, it stays denied until it is deleted.
type Survivors interface {
	// Survivors returns a row for every workload that the kernel still knows: ID, Identity, IPv4, IPv6, MAC, Ifindex,
	// and Device as it is called now (empty if the device is gone).
	Survivors() ([]Endpoint, error)
	// Devices lists the host sides of workloads' devices that exist, whoever they belonged to.
	Devices() ([]string, error)
}

// Checker is implemented by a Datapath that can look at the workload's side too.
type Checker interface {
	// CheckDevice compares ep's device, addresses and routes in its network namespace with what CreateDevice made.
	CheckDevice(ep Endpoint) error
}

// Identities is what endpoints need of the allocator of identities.
type Identities interface {
	Allocate(ctx context.Context, ls labels.Labels) (identity.Identity, error)
	Release(ctx context.Context, id identity.ID) error
	Restore(id identity.ID, ls labels.Labels) error
	Get(id identity.ID) (identity.Identity, bool)
	List() []identity.Identity
	AllocateCIDR(p netip.Prefix) (id identity.Identity, isNew bool, err error)
	ReleaseCIDR(p netip.Prefix) (id identity.ID, last bool)
}

// Policy is what endpoints need of the policy engine.
type Policy interface {
	UpdatePolicies(put []*policy.Policy, del []policy.Ref)
	Policies() []*policy.Policy
	CIDRs(ps []*policy.Policy) []netip.Prefix
	UpdateIdentities(add []identity.Identity, del []identity.ID) []policy.Patch
	UpdatePorts(set map[identity.ID][]policy.NamedPort) []policy.Patch
	Resolve(id identity.Identity, own []policy.NamedPort) (ingress, egress *policy.Subject, err error)
	Forget(key policy.SubjectKey)
}
