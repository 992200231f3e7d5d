package bpf

import (
	"encoding/binary"
	"net/netip"
)

// The structs below are the Go twins of bpf/include/types.h, byte for byte. TestTypesParity compares size and
// offsets with the BTF of the compiled objects. Fields that hold network order are byte arrays.

// Addr is struct addr: an IPv6 address, or IPv4 as ::ffff:a.b.c.d. The zero value is none.
type Addr [16]byte

// AddrFrom returns the 128-bit form of a; the zero Addr for an invalid one.
func AddrFrom(a netip.Addr) Addr {
	if !a.IsValid() {
		return Addr{}
	}
	return a.As16()
}

// Netip returns the address, IPv4 unmapped; the zero netip.Addr for the zero Addr.
func (a Addr) Netip() netip.Addr {
	if a == (Addr{}) {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a).Unmap()
}

// Port is a port in network order.
type Port [2]byte

// PortFrom returns p in network order.
func PortFrom(p uint16) (b Port) {
	binary.BigEndian.PutUint16(b[:], p)
	return b
}

// Host returns the port in host order.
func (p Port) Host() uint16 { return binary.BigEndian.Uint16(p[:]) }

// Endpoint flags, enum endpoint_flag.
const (
	EndpointLockdown uint16 = 1
	EndpointAudit    uint16 = 2
)

// Endpoint is struct endpoint.
type Endpoint struct {
	Identity   uint32
	SubjectIn  uint32
	SubjectOut uint32
	ID         uint16
	Flags      uint16
	V4         Addr
	V6         Addr
	MAC        [6]byte
	_          [2]byte
}

// Peer flags, enum peer_flag.
const (
	PeerLocal   uint32 = 1
	PeerHost    uint32 = 2
	PeerCluster uint32 = 4
	PeerNoOwner uint32 = 8
	PeerRemote  uint32 = 16
)

// Peer is struct peer.
type Peer struct {
	Identity uint32
	Ifindex  uint32
	Flags    uint32
	_        uint32
	Node     Addr
}

// PrefixKey is struct prefix_key.
type PrefixKey struct {
	PrefixLen uint32 // bits of Addr, so 96 more than an IPv4 prefix's own length
	Addr      Addr
}

// PrefixKeyFrom returns the trie key of p.
func PrefixKeyFrom(p netip.Prefix) PrefixKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return PrefixKey{PrefixLen: uint32(bits), Addr: AddrFrom(p.Masked().Addr())}
}

// Prefix returns the CIDR of the key.
func (k PrefixKey) Prefix() netip.Prefix {
	a := netip.AddrFrom16(k.Addr)
	if a.Is4In6() && k.PrefixLen >= 96 {
		return netip.PrefixFrom(a.Unmap(), int(k.PrefixLen)-96)
	}
	return netip.PrefixFrom(a, int(k.PrefixLen))
}

// PolicyPeerKey is struct policy_peer_key.
type PolicyPeerKey struct {
	Subject  uint32
	Identity uint32
}

// Enum table_flag.
const (
	TableRanges   uint32 = 1
	TableNoPorts  uint32 = 2
	TableNoProtos uint32 = 4
)

// PolicyPeer is struct policy_peer.
type PolicyPeer struct {
	Table  uint32
	Cookie uint32
	Flags  uint32
}

// PolicyPortKey is struct policy_port_key.
type PolicyPortKey struct {
	Table uint32
	Port  Port
	Proto uint8
	Wild  uint8
}

// PolicyRangeKey is struct policy_range_key.
type PolicyRangeKey struct {
	PrefixLen uint32 // 48 + fixed bits of Port
	Table     uint32
	_         uint8
	Proto     uint8
	Port      Port
}

// enum verdict_flag.
const (
	VerdictExplicitDeny uint8 = 1
	VerdictAuth         uint8 = 2
)

// PolicyVerdict is struct policy_verdict.
type PolicyVerdict struct {
	Action    uint8
	Flags     uint8
	ProxyPort Port
	L7        uint32
	Cookie    uint32
}

// CTKey is struct ct_key.
type CTKey struct {
	Lo     Addr
	Hi     Addr
	LoPort Port
	HiPort Port
	Proto  uint8
	Role   uint8
	_      uint16
}

// CTCount is struct ct_count.
type CTCount struct {
	Packets uint64
	Bytes   uint64
}

// Conntrack flags, enum ct_flag.
const (
	CTSeenReply uint8 = 1
	CTLoFin     uint8 = 2
	CTHiFin     uint8 = 4
	CTRst       uint8 = 8
	CTNat       uint8 = 16
)

// CTEntry is struct ct_entry.
type CTEntry struct {
	Expires    uint64
	Created    uint64
	Epoch      uint32
	LoIfindex  uint32
	HiIfindex  uint32
	LoIdentity uint32
	HiIdentity uint32
	CookieOut  uint32
	CookieIn   uint32
	Initiator  uint8
	Action     uint8
	Flags      uint8
	TCPFlags   uint8
	ProxyPort  Port
	Reason     uint8 // when Action denies
	Direction  uint8 // that denied
	LoMAC      [6]byte
	HiMAC      [6]byte
	LoEP       uint16
	HiEP       uint16
	Reported   uint32 // steps of 2^20 ns
	LoToHi     CTCount
	HiToLo     CTCount
}

// NatKey is struct nat_key.
type NatKey struct {
	Src   Addr
	Dst   Addr
	Sport Port
	Dport Port
	Proto uint8
	Dir   uint8
	_     uint16
}

// NatEntry is struct nat_entry.
type NatEntry struct {
	Addr Addr
	Port Port
	_    uint16
	_    uint32
	Used uint64
}

// FragKey is struct frag_key.
type FragKey struct {
	Src   Addr
	Dst   Addr
	ID    uint32
	Proto uint8
	_     [3]uint8
}

// FragEntry is struct frag_entry.
type FragEntry struct {
	Sport   Port
	Dport   Port
	Proto   uint8
	Words   uint8
	_       uint16
	Expires uint64
}

// Counter is struct counter.
type Counter struct {
	Packets uint64
	Bytes   uint64
}

// Settings flags, enum setting_flag.
const (
	SettingAudit    uint32 = 1
	SettingMasq4    uint32 = 2
	SettingMasq6    uint32 = 4
	SettingTraceAll uint32 = 8
	SettingSnap     uint32 = 16
)

// Node is struct node.
type Node struct {
	ID       uint64
	Resolved uint64
	MTUUntil uint64
	MTU      uint32
	_        uint32
}

// Kinds of tunnels, enum tunnel.
const (
	TunnelNone   uint8 = 0
	TunnelGeneve uint8 = 1
	TunnelVXLAN  uint8 = 2
)

// Settings is struct settings.
type Settings struct {
	Masq4          Addr
	Masq6          Addr
	HostIfindex    uint32
	World4         uint32
	World6         uint32
	Flags          uint32
	NatMin         uint16
	NatMax         uint16
	GatewayMAC     [6]byte
	Tunnel         uint8
	_              uint8
	TunnelPort     Port
	_              [2]byte
	ReportInterval uint64
	Underlay4      Addr
	Underlay6      Addr
	Router4        Addr
	Router6        Addr
	TunnelIfindex  uint32
	_              uint32
}

// Bytes of a packet that an event carries: at most, and when the packet passed and nobody asked for more.
const (
	EventSnap      = 128
	EventSnapShort = 14
)

// Event is struct event.
type Event struct {
	Time        uint64
	Src         Addr
	Dst         Addr
	SrcIdentity uint32
	DstIdentity uint32
	Ifindex     uint32
	OutIfindex  uint32
	CookieOut   uint32
	CookieIn    uint32
	Len         uint32
	SrcEP       uint16
	DstEP       uint16
	Sport       Port
	Dport       Port
	Type        uint8
	Action      uint8
	Reason      uint8
	Point       uint8
	Status      uint8
	Direction   uint8
	Proto       uint8
	TCPFlags    uint8
	SnapLen     uint16
	Snap        [EventSnap]byte
	_           [2]byte
}
