package verdict

import "fmt"

// Reason says why a packet was dropped, numbered as enum drop_reason in bpf/include/verdict.h and as DropReason of the
// flow API. Zero: it was not.
type Reason uint8

// Reasons. Those below 220 bear the numbers and words of Hubble.
const (
	None              Reason = 0
	InvalidSourceMAC  Reason = 130
	InvalidSourceIP   Reason = 132
	PolicyDenied      Reason = 133
	InvalidPacket     Reason = 134
	CTInvalidHeader   Reason = 135
	CTNoFlow          Reason = 136
	CTUnknownProto    Reason = 137
	UnsupportedL3     Reason = 139
	UnknownL4         Reason = 142
	TunnelKey         Reason = 147
	UnknownL3Target   Reason = 150
	Unroutable        Reason = 151
	CTInsert          Reason = 155
	InvalidExtHdr     Reason = 156
	NoTunnelEndpoint  Reason = 160
	NoSubject         Reason = 165
	UnsupportedL2     Reason = 166
	NATNoMapping      Reason = 167
	NATUnsupported    Reason = 168
	FIB               Reason = 169
	EncapProhibited   Reason = 170
	InvalidIdentity   Reason = 171
	UnknownSender     Reason = 172
	FragNotFound      Reason = 175
	ForbiddenICMP6    Reason = 176
	PolicyDenyRule    Reason = 181
	VLAN              Reason = 182
	InvalidVNI        Reason = 183
	AuthRequired      Reason = 189
	TTL               Reason = 196
	EndpointNotReady  Reason = 203
	ProxyDown         Reason = 205
	ARPSpoof          Reason = 220
	DHCPServer        Reason = 221
	FragInvalid       Reason = 222
	IPOption          Reason = 223
	Multicast         Reason = 224
	NATICMP           Reason = 225
	Internal          Reason = 226
	TunnelSource      Reason = 227
	TunnelLocal       Reason = 228
	TunnelUnannounced Reason = 229
	TunnelIdentity    Reason = 230
	TunnelFragment    Reason = 231
	NotTunnelled      Reason = 232
	TooBig            Reason = 233
)

// word is what a reason is called in C and by people.
type word struct{ name, text string }

// word returns what r is called; empty for a number without a meaning. A function and not a table: nobody can change
// it, and an event's text costs no allocation.
func (r Reason) word() word {
	switch r {
	case None:
		return word{"REASON_NONE", "Forwarded"}
	case InvalidSourceMAC:
		return word{"DROP_INVALID_SOURCE_MAC", "Invalid source mac"}
	case InvalidSourceIP:
		return word{"DROP_INVALID_SOURCE_IP", "Invalid source ip"}
	case PolicyDenied:
		return word{"DROP_POLICY", "Policy denied"}
	case InvalidPacket:
		return word{"DROP_INVALID_PACKET", "Invalid packet"}
	case CTInvalidHeader:
		return word{"DROP_CT_INVALID_HEADER", "CT: Truncated or invalid header"}
	case CTNoFlow:
		return word{"DROP_CT_NO_FLOW", "CT: Answer to an unknown flow"}
	case CTUnknownProto:
		return word{"DROP_CT_UNKNOWN_PROTO", "CT: Unknown L4 protocol"}
	case UnsupportedL3:
		return word{"DROP_UNSUPPORTED_L3", "Unsupported L3 protocol"}
	case UnknownL4:
		return word{"DROP_UNKNOWN_L4", "Unknown L4 protocol"}
	case TunnelKey:
		return word{"DROP_TUNNEL_KEY", "Invalid tunnel header"}
	case UnknownL3Target:
		return word{"DROP_UNKNOWN_L3_TARGET", "Unknown L3 target address"}
	case Unroutable:
		return word{"DROP_UNROUTABLE", "Stale or unroutable IP"}
	case CTInsert:
		return word{"DROP_CT_INSERT", "CT: Map insertion failed"}
	case InvalidExtHdr:
		return word{"DROP_INVALID_EXTHDR", "Invalid IPv6 extension header"}
	case NoTunnelEndpoint:
		return word{"DROP_NO_TUNNEL_ENDPOINT", "No tunnel endpoint"}
	case NoSubject:
		return word{"DROP_NO_SUBJECT", "No policy programmed, endpoint locked down"}
	case UnsupportedL2:
		return word{"DROP_UNSUPPORTED_L2", "Unsupported L2 protocol"}
	case NATNoMapping:
		return word{"DROP_NAT_NO_MAPPING", "No mapping for NAT masquerade"}
	case NATUnsupported:
		return word{"DROP_NAT_UNSUPPORTED", "Unsupported protocol for NAT masquerade"}
	case FIB:
		return word{"DROP_FIB", "FIB lookup failed"}
	case EncapProhibited:
		return word{"DROP_ENCAP_PROHIBITED", "Encapsulation traffic is prohibited"}
	case InvalidIdentity:
		return word{"DROP_INVALID_IDENTITY", "Invalid identity"}
	case UnknownSender:
		return word{"DROP_UNKNOWN_SENDER", "Unknown sender"}
	case FragNotFound:
		return word{"DROP_FRAG_NOT_FOUND", "First logical datagram fragment not found"}
	case ForbiddenICMP6:
		return word{"DROP_FORBIDDEN_ICMP6", "Forbidden ICMPv6 message"}
	case PolicyDenyRule:
		return word{"DROP_POLICY_DENY", "Policy denied by deny rule"}
	case VLAN:
		return word{"DROP_VLAN", "VLAN traffic not allowed"}
	case InvalidVNI:
		return word{"DROP_INVALID_VNI", "Invalid VNI"}
	case AuthRequired:
		return word{"DROP_AUTH_REQUIRED", "Authentication required"}
	case TTL:
		return word{"DROP_TTL", "TTL exceeded"}
	case EndpointNotReady:
		return word{"DROP_ENDPOINT_NOT_READY", "Endpoint not ready"}
	case ProxyDown:
		return word{"DROP_PROXY_DOWN", "Proxy down"}
	case ARPSpoof:
		return word{"DROP_ARP_SPOOF", "ARP spoofing"}
	case DHCPServer:
		return word{"DROP_DHCP_SERVER", "DHCP server in a workload"}
	case FragInvalid:
		return word{"DROP_FRAG_INVALID", "Tiny or overlapping fragment"}
	case IPOption:
		return word{"DROP_IP_OPTION", "Forbidden or broken IP option"}
	case Multicast:
		return word{"DROP_MULTICAST", "Multicast not forwarded"}
	case NATICMP:
		return word{"DROP_NAT_ICMP", "ICMP error about an unknown translation"}
	case Internal:
		return word{"DROP_INTERNAL", "Internal error, failed closed"}
	case TunnelSource:
		return word{"DROP_TUNNEL_SOURCE", "Tunnelled source is not behind the sending node"}
	case TunnelLocal:
		return word{"DROP_TUNNEL_LOCAL", "Tunnelled source is of this node"}
	case TunnelUnannounced:
		return word{"DROP_TUNNEL_UNANNOUNCED", "Tunnelled source has no known owner"}
	case TunnelIdentity:
		return word{"DROP_TUNNEL_IDENTITY", "Tunnelled identity is not the known one"}
	case TunnelFragment:
		return word{"DROP_TUNNEL_FRAGMENT", "Tunnel packet in fragments"}
	case NotTunnelled:
		return word{"DROP_NOT_TUNNELLED", "Source of another node outside its tunnel"}
	case TooBig:
		return word{"DROP_TOO_BIG", "Packet too big for the way"}
	}
	return word{}
}

// Reasons returns every reason in ascending order.
func Reasons() []Reason {
	var rs []Reason
	for n := range 256 {
		if r := Reason(n); r.Known() {
			rs = append(rs, r)
		}
	}
	return rs
}

// Known reports whether r has a meaning.
func (r Reason) Known() bool { return r.word().name != "" }

// Name returns the word of enum drop_reason, such as DROP_POLICY.
func (r Reason) Name() string { return r.word().name }

// String returns the text that people read, such as "Policy denied".
func (r Reason) String() string {
	if w := r.word(); w.text != "" {
		return w.text
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// Point is where a packet was seen, numbered as enum point and as Hubble's TraceObservationPoint.
type Point uint8

// Points.
const (
	UnknownPoint Point = 0
	ToHost       Point = 2
	ToStack      Point = 3
	ToOverlay    Point = 4
	FromEndpoint Point = 5
	FromHost     Point = 7
	FromOverlay  Point = 9
	FromNetwork  Point = 10
	ToNetwork    Point = 11
	ToEndpoint   Point = 101
)

func (p Point) String() string {
	switch p {
	case ToHost:
		return "to-host"
	case ToStack:
		return "to-stack"
	case ToOverlay:
		return "to-overlay"
	case FromEndpoint:
		return "from-endpoint"
	case FromHost:
		return "from-host"
	case FromOverlay:
		return "from-overlay"
	case FromNetwork:
		return "from-network"
	case ToNetwork:
		return "to-network"
	case ToEndpoint:
		return "to-endpoint"
	}
	return "unknown"
}

// Status is what conntrack said of a packet, numbered as enum ct_status and as Hubble's TraceReason.
type Status uint8

// Statuses.
const (
	StatusUnknown     Status = 0
	StatusNew         Status = 1
	StatusEstablished Status = 2
	StatusReply       Status = 3
	StatusRelated     Status = 4
)

func (s Status) String() string {
	switch s {
	case StatusNew:
		return "new"
	case StatusEstablished:
		return "established"
	case StatusReply:
		return "reply"
	case StatusRelated:
		return "related"
	}
	return "unknown"
}
