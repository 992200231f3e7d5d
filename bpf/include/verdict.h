/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/*
 * Words shared with Go (internal/verdict). Append only, never renumber: TestVerdictParity walks these enums through
 * BTF and compares names and numbers. Drop reasons carry the numbers that the Hubble API gives them; the ones from
 * 220 on are porin's own.
 */

/* What a stage of the pipeline says. NEXT hands the packet to the following stage, all others end it. */
enum verdict {
	NEXT = 0,
	V_DROP = 1, /* p->reason says why */
	V_STACK = 2, /* to this node's IP stack on the device it came in by */
	V_REDIRECT = 3, /* out of p->out_ifindex */
	V_PEER = 4, /* into the network namespace of the pod behind p->out_ifindex */
	V_NEIGH = 5, /* out of p->out_ifindex, the kernel resolves the neighbour */
	V_REPLY = 6, /* answered in place (ARP, ND): back out of the device it came from */
	V_HOST = 7, /* to this node's IP stack, as if it came in by porin_host */
	V_TUNNEL = 8, /* framed, to the node p->hop names */
	V_TOO_BIG = 9, /* dropped, and the sender told p->mtu */
};

enum action {
	ACTION_DENY = 0,
	ACTION_ALLOW = 1,
	ACTION_REDIRECT = 2,
	ACTION_AUDIT = 3,
};

enum direction {
	DIR_NONE = 0,
	DIR_INGRESS = 1,
	DIR_EGRESS = 2,
};

enum drop_reason {
	REASON_NONE = 0, /* forwarded */
	DROP_INVALID_SOURCE_MAC = 130, /* frame's source MAC is not the endpoint's */
	DROP_INVALID_SOURCE_IP = 132, /* packet's source address is not the sender's */
	DROP_POLICY = 133, /* no rule allows it and a policy isolates the endpoint */
	DROP_INVALID_PACKET = 134, /* malformed: lengths, versions or flags contradict each other */
	DROP_CT_INVALID_HEADER = 135, /* transport header cut short */
	DROP_CT_NO_FLOW = 136, /* answers a flow that does not exist (SYN-ACK, echo reply, ICMP error) */
	DROP_CT_UNKNOWN_PROTO = 137, /* transport protocol that cannot be tracked */
	DROP_UNSUPPORTED_L3 = 139, /* EtherType that porin does not forward */
	DROP_UNKNOWN_L4 = 142, /* IP protocol that porin does not forward */
	DROP_TUNNEL_KEY = 147, /* tunnel header that porin does not write, or that it could not write */
	DROP_UNKNOWN_L3_TARGET = 150, /* pod address of this node that no endpoint has */
	DROP_UNROUTABLE = 151, /* no delivery path */
	DROP_CT_INSERT = 155, /* conntrack entry could not be written */
	DROP_INVALID_EXTHDR = 156, /* IPv6 extension header chain broken, too long or forbidden */
	DROP_NO_TUNNEL_ENDPOINT = 160, /* address of the cluster, but no node known behind which it is */
	DROP_NO_SUBJECT = 165, /* the endpoint has no policy programmed: locked down */
	DROP_UNSUPPORTED_L2 = 166, /* not Ethernet as a pod may send it */
	DROP_NAT_NO_MAPPING = 167, /* no free source port for the masquerade */
	DROP_NAT_UNSUPPORTED = 168, /* protocol that cannot be masqueraded */
	DROP_FIB = 169, /* the kernel's routing table has no way */
	DROP_ENCAP_PROHIBITED = 170, /* sent to the tunnel port, but not by a tunnel */
	DROP_INVALID_IDENTITY = 171, /* identity that may not appear here */
	DROP_UNKNOWN_SENDER = 172, /* tunnelled by an address that is no node's */
	DROP_FRAG_NOT_FOUND = 175, /* later fragment of a datagram whose first one was not seen */
	DROP_FORBIDDEN_ICMP6 = 176, /* router advertisement, redirect or foreign neighbour advertisement from a pod */
	DROP_POLICY_DENY = 181, /* a deny rule forbids it */
	DROP_VLAN = 182, /* tagged frame */
	DROP_INVALID_VNI = 183, /* network identifier that is no identity's number */
	DROP_AUTH_REQUIRED = 189, /* a rule would allow it, but demands an authentication that nobody gave */
	DROP_TTL = 196, /* TTL or hop limit used up */
	DROP_ENDPOINT_NOT_READY = 203, /* device without an endpoint row */
	DROP_PROXY_DOWN = 205, /* L7 rule, but no proxy listens */
	DROP_ARP_SPOOF = 220, /* ARP that claims an address which is not the endpoint's */
	DROP_DHCP_SERVER = 221, /* a pod speaks as a DHCP or DHCPv6 server */
	DROP_FRAG_INVALID = 222, /* tiny or overlapping fragment */
	DROP_IP_OPTION = 223, /* source route or malformed IPv4 option */
	DROP_MULTICAST = 224, /* multicast or broadcast, which porin does not forward */
	DROP_NAT_ICMP = 225, /* ICMP error about a translated flow that does not exist */
	DROP_INTERNAL = 226, /* a helper failed that cannot fail; fail closed */
	DROP_TUNNEL_SOURCE = 227, /* inner source is not behind the node that tunnelled it */
	DROP_TUNNEL_LOCAL = 228, /* inner source is an address of this node or of its pods */
	DROP_TUNNEL_UNANNOUNCED = 229, /* inner source is in the node's pod range, but nobody is known to have it */
	DROP_TUNNEL_IDENTITY = 230, /* the tunnel names another identity than the address is known to have */
	DROP_TUNNEL_FRAGMENT = 231, /* tunnelled packet in fragments */
	DROP_NOT_TUNNELLED = 232, /* source behind another node, but not by that node's tunnel */
	DROP_TOO_BIG = 233, /* more than the way to the node takes; the sender is told, where it can be */
};

/* Kind of a flow event. Numbers of Hubble's monitor messages. */
enum event_type {
	EVENT_DROP = 1,
	EVENT_TRACE = 4, /* a packet seen at a point: first of a direction, flag change, or periodic */
	EVENT_POLICY_VERDICT = 5, /* the packet that was judged */
};

/* Where a packet was seen. Numbers of Hubble's TraceObservationPoint. */
enum point {
	POINT_UNKNOWN = 0,
	POINT_TO_HOST = 2,
	POINT_TO_STACK = 3,
	POINT_TO_OVERLAY = 4,
	POINT_FROM_ENDPOINT = 5,
	POINT_FROM_HOST = 7,
	POINT_FROM_OVERLAY = 9,
	POINT_FROM_NETWORK = 10,
	POINT_TO_NETWORK = 11,
	POINT_TO_ENDPOINT = 101,
};

/* What conntrack said. Numbers of Hubble's TraceReason. */
enum ct_status {
	CT_UNKNOWN = 0,
	CT_NEW = 1,
	CT_ESTABLISHED = 2,
	CT_REPLY = 3,
	CT_RELATED = 4,
};
