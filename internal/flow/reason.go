package flow

import (
	"fmt"

	flowpb "porin/api/flow"
)

// Reason says in words why a packet was dropped, the same words as the comments of enum drop_reason in
// bpf/include/verdict.h.
func Reason(r flowpb.DropReason) string {
	if s, ok := reasons()[r]; ok {
		return s
	}
	return fmt.Sprintf("reason %d, which this version does not know", int32(r))
}

func reasons() map[flowpb.DropReason]string {
	return map[flowpb.DropReason]string{
		flowpb.DropReason_INVALID_SOURCE_MAC:                        "the frame's source MAC is not the endpoint's",
		flowpb.DropReason_INVALID_SOURCE_IP:                         "the packet's source address is not the sender's",
		flowpb.DropReason_POLICY_DENIED:                             "no rule allows it and a policy isolates the endpoint",
		flowpb.DropReason_INVALID_PACKET_DROPPED:                    "the packet contradicts itself in lengths, versions or flags",
		flowpb.DropReason_CT_TRUNCATED_OR_INVALID_HEADER:            "the transport header is cut short",
		flowpb.DropReason_CT_MISSING_TCP_ACK_FLAG:                   "it answers a flow that does not exist",
		flowpb.DropReason_CT_UNKNOWN_L4_PROTOCOL:                    "the transport protocol cannot be tracked",
		flowpb.DropReason_UNSUPPORTED_L3_PROTOCOL:                   "porin does not forward this EtherType",
		flowpb.DropReason_UNKNOWN_L4_PROTOCOL:                       "porin does not forward this IP protocol",
		flowpb.DropReason_UNKNOWN_L3_TARGET_ADDRESS:                 "no endpoint of this node has that pod address",
		flowpb.DropReason_STALE_OR_UNROUTABLE_IP:                    "there is no delivery path",
		flowpb.DropReason_CT_MAP_INSERTION_FAILED:                   "the conntrack entry could not be written",
		flowpb.DropReason_INVALID_IPV6_EXTENSION_HEADER:             "the chain of IPv6 extension headers is broken, too long or forbidden",
		flowpb.DropReason_NO_POLICY_CONFIGURATION:                   "the endpoint has no policy programmed: locked down, see 'porin endpoint list'",
		flowpb.DropReason_UNSUPPORTED_L2_PROTOCOL:                   "not Ethernet as a pod may send it",
		flowpb.DropReason_NO_MAPPING_FOR_NAT_MASQUERADE:             "no source port is free for the masquerade",
		flowpb.DropReason_UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE:   "the protocol cannot be masqueraded",
		flowpb.DropReason_FIB_LOOKUP_FAILED:                         "the kernel's routing table has no way there",
		flowpb.DropReason_INVALID_IDENTITY:                          "an identity that may not appear here",
		flowpb.DropReason_FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND: "a later fragment of a datagram whose first one was not seen",
		flowpb.DropReason_FORBIDDEN_ICMPV6_MESSAGE:                  "a router advertisement, redirect or foreign neighbour advertisement from a pod",
		flowpb.DropReason_DENIED_BY_LB_SRC_RANGE_CHECK:              "the source is outside the ranges that the service allows",
		flowpb.DropReason_POLICY_DENY:                               "a deny rule forbids it",
		flowpb.DropReason_VLAN_FILTERED:                             "a tagged frame",
		flowpb.DropReason_TTL_EXCEEDED:                              "the TTL or hop limit is used up",
		flowpb.DropReason_ENDPOINT_NOT_READY:                        "the device has no endpoint yet",
		flowpb.DropReason_PUNT_TO_PROXY_DOWN:                        "an L7 rule applies, but no proxy listens",
		flowpb.DropReason_ARP_SPOOF:                                 "ARP that claims an address which is not the endpoint's",
		flowpb.DropReason_DHCP_SERVER:                               "a pod speaks as a DHCP server",
		flowpb.DropReason_FRAGMENT_INVALID:                          "a tiny or overlapping fragment",
		flowpb.DropReason_IP_OPTION:                                 "a source route or malformed IPv4 option",
		flowpb.DropReason_MULTICAST:                                 "multicast or broadcast, which porin does not forward",
		flowpb.DropReason_NAT_ICMP_NO_FLOW:                          "an ICMP error about a translated flow that does not exist",
		flowpb.DropReason_INTERNAL:                                  "a kernel helper failed that cannot fail; dropped to be safe",
	}
}
