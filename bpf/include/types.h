/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

/*
 * Keys and values of the maps. Every byte is explicit (no implicit padding) and every key is zeroed before it is
 * filled: the kernel hashes all of it. __be16/__be32 mark network order; everything else is host order.
 * A change of any struct here changes the layout version under which the maps are pinned (internal/datapath).
 */

/* IPv6 address, or IPv4 as ::ffff:a.b.c.d. All zero: none. */
struct addr {
	__be32 w[4];
};

/* A pod's device. Key: ifindex of the host side of the veth. */
struct endpoint {
	__u32 identity;
	__u32 subject_in; /* 0: locked down, denies all */
	__u32 subject_out; /* 0: locked down, denies all */
	__u16 id;
	__u16 flags; /* EP_* */
	struct addr v4;
	struct addr v6;
	__u8 mac[6]; /* of the pod's side */
	__u8 pad[2];
};

enum endpoint_flag {
	EP_LOCKDOWN = 1, /* policy could not be written: deny everything in both directions */
	EP_AUDIT = 2, /* denials are reported as audit and forwarded */
};

/* Who has an address. Key of peers: struct addr. Value also of prefixes. */
struct peer {
	__u32 identity;
	__u32 ifindex; /* host side of the veth when PEER_LOCAL */
	__u32 flags; /* PEER_* */
	__u32 pad;
	struct addr node; /* node behind which it lives; zero: none known */
};

enum peer_flag {
	PEER_LOCAL = 1, /* endpoint on this node */
	PEER_HOST = 2, /* address of this node itself */
	PEER_CLUSTER = 4, /* inside the cluster's address space: never masqueraded */
	PEER_NO_OWNER = 8, /* pod range: an address here that has no row of its own is nobody's and unreachable */
	PEER_REMOTE = 16, /* behind the node that the row names, and heard of from there only */
};

/* Key of prefixes (LPM trie). prefixlen counts from the start of the 128-bit address: IPv4 /8 is 104. */
struct prefix_key {
	__u32 prefixlen;
	struct addr addr;
};

struct policy_peer_key {
	__u32 subject;
	__u32 identity; /* 0: everyone without a row of their own */
};

struct policy_peer {
	__u32 table; /* verdict table id; 0: empty, denies */
	__u32 cookie; /* what isolates the subject: reported when the table has no row */
	__u32 flags; /* TABLE_* */
};

enum table_flag {
	TABLE_RANGES = 1, /* policy_ranges has rows of this table */
	TABLE_NO_PORTS = 2, /* no row names a port: spares a probe, as the next */
	TABLE_NO_PROTOS = 4, /* no row names a protocol with any port */
};

struct policy_port_key {
	__u32 table;
	__be16 port; /* destination port; ICMP: type in the low byte, host order 0..255 put through bpf_htons */
	__u8 proto; /* 0 with wild: any protocol */
	__u8 wild; /* 1: any port (port is 0) */
};

/* Key of policy_ranges (LPM trie); prefixlen 48 + bits of the port that are fixed. */
struct policy_range_key {
	__u32 prefixlen;
	__u32 table;
	__u8 pad;
	__u8 proto;
	__be16 port;
};

struct policy_verdict {
	__u8 action; /* enum action */
	__u8 flags; /* VERDICT_* */
	__be16 proxy_port;
	__u32 l7; /* L7 rule set id, 0 none */
	__u32 cookie; /* names the rules that decided */
};

enum verdict_flag {
	VERDICT_EXPLICIT_DENY = 1, /* a deny rule, not the lack of an allow rule */
	VERDICT_AUTH = 2, /* a rule that allows those who authenticate, which nobody did */
};

/*
 * Conntrack key: both ends in canonical order (lower address first, then lower port), so that both directions of a
 * flow, and both pods of a same-node flow, share one entry.
 */
struct ct_key {
	struct addr lo;
	struct addr hi;
	__be16 lo_port; /* ICMP echo: identifier on both sides */
	__be16 hi_port;
	__u8 proto;
	__u8 role; /* ICMP: bit 0 when hi asks, bit 1 when it is no echo; always 0 for others */
	__u16 pad;
};

/* Counters of one direction. Racing CPUs may lose a packet's count, never its verdict. */
struct ct_count {
	__u64 packets;
	__u64 bytes;
};

struct ct_entry {
	__u64 expires; /* CLOCK_MONOTONIC ns */
	__u64 created; /* CLOCK_MONOTONIC ns */
	__u32 epoch; /* policy epoch of the cached verdict */
	__u32 lo_ifindex; /* host side of lo's veth when it is a pod of this node, else 0 */
	__u32 hi_ifindex;
	__u32 lo_identity;
	__u32 hi_identity;
	__u32 cookie_out; /* rules that decided egress of the initiator */
	__u32 cookie_in; /* rules that decided ingress of the responder */
	__u8 initiator; /* 0: lo began, 1: hi began */
	__u8 action; /* enum action: cached verdict */
	__u8 flags; /* CT_* */
	__u8 tcp_flags; /* flags seen of both directions, ORed: a new one makes an event */
	__be16 proxy_port;
	__u8 reason; /* enum drop_reason, when action denies */
	__u8 direction; /* enum direction that denied */
	__u8 lo_mac[6]; /* of the pods behind lo_ifindex and hi_ifindex */
	__u8 hi_mac[6];
	__u16 lo_ep; /* their endpoint ids */
	__u16 hi_ep;
	__u32 reported; /* last periodic event, in steps of 2^20 ns */
	struct ct_count lo_to_hi;
	struct ct_count hi_to_lo;
};

enum ct_flag {
	CTF_SEEN_REPLY = 1,
	CTF_LO_FIN = 2,
	CTF_HI_FIN = 4,
	CTF_RST = 8,
	CTF_NAT = 16, /* left the node through a source translation */
};

/* Source translation. dir 0: pod -> outside as the pod sends it; dir 1: outside -> node as it arrives. */
struct nat_key {
	struct addr src;
	struct addr dst;
	__be16 sport; /* ICMP echo: identifier in both */
	__be16 dport;
	__u8 proto;
	__u8 dir;
	__u16 pad;
};

struct nat_entry {
	struct addr addr; /* dir 0: translated source; dir 1: original source */
	__be16 port;
	__u16 pad;
	__u32 pad2;
	__u64 used; /* CLOCK_MONOTONIC ns of the last packet */
};

struct frag_key {
	struct addr src;
	struct addr dst;
	__u32 id;
	__u8 proto; /* IPv6: 0, the identification alone names the datagram (RFC 8200) */
	__u8 pad[3];
};

struct frag_entry {
	__be16 sport; /* ICMP: identifier */
	__be16 dport; /* ICMP: type and code */
	__u8 proto; /* of the datagram's transport header */
	__u8 words; /* 8-byte words of the datagram that the transport header reaches into: later fragments start behind */
	__u16 pad;
	__u64 expires; /* CLOCK_MONOTONIC ns; a datagram is reassembled within 30 s or never (RFC 791, RFC 8200) */
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

/* A node of the cluster. Key of nodes: each of its underlay addresses. */
struct node {
	__u64 id; /* the same for all addresses of a node */
	__u64 resolved; /* CLOCK_MONOTONIC ns when the kernel was last asked to reach it, which keeps its neighbour entry true */
	__u64 mtu_until; /* CLOCK_MONOTONIC ns until which mtu holds */
	__u32 mtu; /* of the way there, as a router between told; 0: none did */
	__u32 pad;
};

enum tunnel {
	TUNNEL_NONE = 0, /* native routing, or a node alone */
	TUNNEL_GENEVE = 1,
	TUNNEL_VXLAN = 2,
};

/* Settings that change while the programs run. One element. */
struct settings {
	struct addr masq4; /* source address of masqueraded IPv4; zero: none */
	struct addr masq6;
	__u32 host_ifindex; /* porin_host */
	__u32 world4; /* identity of an unknown IPv4 address */
	__u32 world6;
	__u32 flags; /* SETTING_* */
	__u16 nat_min; /* source ports of the masquerade, inclusive, host order */
	__u16 nat_max;
	__u8 gateway_mac[6]; /* of porin_host and of the host side of every veth */
	__u8 tunnel; /* enum tunnel */
	__u8 pad;
	__be16 tunnel_port;
	__u8 pad2[2];
	__u64 report_interval; /* ns between periodic events of a live flow; 0: none */
	struct addr underlay4; /* this node among the others: source of what it tunnels; zero: none */
	struct addr underlay6;
	struct addr router4; /* of porin_host */
	struct addr router6;
	__u32 tunnel_ifindex; /* kernel device that frames; 0: the programs do */
	__u32 pad3;
};

enum setting_flag {
	SETTING_AUDIT = 1, /* audit mode for the whole node */
	SETTING_MASQ4 = 2,
	SETTING_MASQ6 = 4,
	SETTING_TRACE_ALL = 8, /* an event per packet */
	SETTING_SNAP = 16, /* events of packets that pass carry their first bytes, as those of drops do */
};

#define EVENT_SNAP	 128
#define EVENT_SNAP_SHORT 14 /* the Ethernet header */

/* A record of the ring is all of it for a drop, else only up to the Ethernet header, unless the settings ask for more:
 * writing is most of what one costs.
 */
struct event {
	__u64 time; /* CLOCK_MONOTONIC ns */
	struct addr src;
	struct addr dst;
	__u32 src_identity;
	__u32 dst_identity;
	__u32 ifindex; /* device it came in by */
	__u32 out_ifindex; /* device it leaves by; 0: none */
	__u32 cookie_out; /* rules that decided egress of the initiator; 0: not judged */
	__u32 cookie_in; /* rules that decided ingress of the responder; 0: not judged */
	__u32 len; /* bytes on the wire, Ethernet header included */
	__u16 src_ep; /* endpoint ids on this node; 0: none */
	__u16 dst_ep;
	__be16 sport; /* ICMP: type in the low byte of host order */
	__be16 dport; /* ICMP: code */
	__u8 type; /* enum event_type */
	__u8 action; /* enum action */
	__u8 reason; /* enum drop_reason */
	__u8 point; /* enum point */
	__u8 status; /* enum ct_status */
	__u8 direction; /* enum direction: the one that denied, or the observing endpoint's */
	__u8 proto;
	__u8 tcp_flags;
	__u16 snap_len; /* bytes of the packet in snap */
	__u8 snap[EVENT_SNAP];
	__u8 pad[2];
};
