/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <stdbool.h>

#include "types.h"
#include "verdict.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

/* What a subject says. */
struct ruling {
	__u8 action; /* enum action */
	__u8 reason; /* enum drop_reason, when action denies */
	__u16 pad;
	__u32 cookie;
};

/* One end of a flow. */
struct side {
	__u32 identity;
	__u32 ifindex; /* pod of this node, else 0 */
	__u32 flags; /* PEER_* */
	__u32 subject_in;
	__u32 subject_out;
	__u16 ep;
	__u16 ep_flags;
	__u8 mac[6];
	__u8 pad[2];
};

struct judgement {
	struct side lo;
	struct side hi;
	struct ruling out;
	struct ruling in;
};

/* The packet in hand: what the stages of a pipeline tell each other. One per CPU: a program is never interrupted by
 * another program of its CPU, and 200 bytes are too many for the stack beside keys and headers.
 */
struct packet {
	/* Zeroed for every packet; keep it a multiple of 8 bytes. */
	__u8 reason; /* enum drop_reason */
	__u8 direction; /* enum direction */
	__u8 status; /* enum ct_status */
	__u8 event; /* enum event_type to send, 0 none */
	__u8 action; /* enum action */
	__u8 proto; /* transport protocol */
	__u8 tcp_flags;
	__u8 flags; /* PF_* */
	__u32 cookie_out;
	__u32 cookie_in;
	__u32 src_identity;
	__u32 dst_identity;
	__u32 src_ifindex; /* pods of this node, else 0 */
	__u32 dst_ifindex;
	__u32 out_ifindex;
	__u16 src_ep;
	__u16 dst_ep;
	/* Set where they mean something. */
	__u64 now; /* CLOCK_MONOTONIC ns, in steps of a jiffy */
	struct addr src;
	struct addr dst;
	__be16 sport; /* ICMP: identifier of an echo, type of the others, on both sides */
	__be16 dport;
	__be16 ethertype;
	__u16 l4_off; /* from the start of the frame */
	__u32 l4_end; /* end of the IP packet, from the start of the frame */
	__u32 epoch;
	__u32 ifindex;
	__u32 len;
	__u8 point; /* enum point: where the program sits */
	__u8 verdict; /* of the last packet on this CPU: read by tests */
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 src_hi; /* conntrack key: 1 when the sender (of the inner packet for an ICMP error) is hi */
	__u8 ttl;
	__u16 frag_start; /* where the fragmentable part of the datagram begins */
	__u32 frag_id;
	__u16 frag_words; /* offset of this fragment in 8-byte words */
	__u8 echo; /* conntrack key is one of an ICMP echo */
	__u8 inner_proto; /* ICMP error: of the packet it is about */
	__u16 inner_l4; /* from the start of the frame */
	__be16 inner_sport;
	__be16 inner_dport;
	__u8 fault; /* enum drop_reason: an ICMP error that belongs to no flow */
	__u8 pad;
	__u8 dst_mac[6]; /* of the pod behind dst_ifindex */
	__u8 pad2[2];
	struct addr inner_src;
	struct addr inner_dst;
	struct ct_key key;
	/* The tunnel: by which it came, or will go. */
	struct addr outer; /* the other node */
	__u32 vni;
	__u16 mtu; /* V_TOO_BIG: what the way takes of the inner packet */
	__be16 outer_sport;
	__u8 hop_known; /* the next hop's MACs are below, else the kernel resolves it */
	__u8 foreign; /* skb->protocol is still the outer packet's */
	__u8 hop_smac[6];
	__u8 hop_dmac[6];
	__u8 pad3[2];
	/* Of a flow that is judged. Here and not on the stack, where the verifier would follow every one of its bytes down
	 * every way: two thirds of all that it did.
	 */
	struct judgement judgement;
};

enum packet_flag {
	PF_L3 = 1, /* src and dst are known */
	PF_V4 = 2,
	PF_FIRST = 4, /* first fragment of several */
	PF_LATER = 8, /* later fragment: no transport header */
	PF_ERROR = 16, /* ICMP error: the key is that of the packet it is about */
	PF_L4 = 32, /* ports are known */
	PF_OWN = 64, /* sent by the pod behind ifindex, source checked */
	PF_NATTED = 128, /* came back through a source translation */
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define IDENTITY_HOST	     1
#define IDENTITY_HEALTH	     4
#define IDENTITY_REMOTE_NODE 6
#define IDENTITY_FIRST	     256 /* of a label set */
#define IDENTITY_LIMIT	     (1 << 24) /* from here on they mean something on this node only */

#define PACKET_HOST 0 /* linux/if_packet.h: addressed to this device */

/* linux/icmp.h pulls in the C library. */
struct icmp {
	__u8 type;
	__u8 code;
	__sum16 csum;
	__be16 id; /* echo */
	__be16 seq;
};

#define ICMP_ECHOREPLY	    0
#define ICMP_DEST_UNREACH   3
#define ICMP_SOURCE_QUENCH  4
#define ICMP_REDIRECT	    5
#define ICMP_ECHO	    8
#define ICMP_ROUTER_ADVERT  9
#define ICMP_ROUTER_SOLICIT 10
#define ICMP_TIME_EXCEEDED  11
#define ICMP_PARAMETERPROB  12
#define ICMP_FRAG_NEEDED    4 /* code of DEST_UNREACH */

#define ICMPV6_PKT_TOOBIG   2
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY   129

/* scratch: struct packet of the packet in hand.
 * 0 -> struct packet per CPU.
 * Written and read by every program; never pinned.
 * One element.
 */
MAP(scratch, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct packet, 1, 0);

/* A report of the groups that a host listens to (RFC 3810 5.2.14): to all routers, from each interface, again and again. */
static __always_inline bool is_mld(const struct packet *p)
{
	return !(p->flags & PF_V4) && p->dst.w[0] == bpf_htonl(0xff020000) && !p->dst.w[1] && !p->dst.w[2] &&
	       p->dst.w[3] == bpf_htonl(0x16);
}

static __always_inline enum verdict drop(struct packet *p, enum drop_reason reason)
{
	p->reason = reason;
	return V_DROP;
}

static __always_inline const struct settings *settings_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

/* The packet in hand, for global functions: handed to one as an argument it is no more than some memory to the verifier,
 * and before 6.2 no key of a map.
 */
static __always_inline struct packet *packet_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

/* Only the array lookups of the kernel's own making can fail here; NULL drops the packet. */
static __always_inline struct packet *packet_new(struct __sk_buff *ctx, enum point point)
{
	__u32 zero = 0;
	__u32 *number = bpf_map_lookup_elem(&epoch, &zero);
	struct packet *p = bpf_map_lookup_elem(&scratch, &zero);
	__u64 *head = (__u64 *)p;

	if (!number || !p)
		return NULL;
	/* Before any row of policy is read: a verdict of old rules must never carry a new epoch. */
	p->epoch = *(volatile __u32 *)number;
	head[0] = 0;
	head[1] = 0;
	head[2] = 0;
	head[3] = 0;
	head[4] = 0;
	p->now = bpf_ktime_get_coarse_ns();
	p->ifindex = ctx->ifindex;
	p->len = ctx->len;
	p->point = point;
	return p;
}

/* The first n bytes of the frame as memory. False when the frame is shorter. */
static __always_inline bool packet_bytes(struct __sk_buff *ctx, __u32 n, void **data, void **end)
{
	*data = (void *)(long)ctx->data;
	*end = (void *)(long)ctx->data_end;
	if (*data + n <= *end)
		return true;
	if (ctx->len < n || bpf_skb_pull_data(ctx, n))
		return false;
	*data = (void *)(long)ctx->data;
	*end = (void *)(long)ctx->data_end;
	return *data + n <= *end;
}

static __always_inline bool addr_equal(const struct addr *a, const struct addr *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

static __always_inline void addr_copy(struct addr *to, const struct addr *from)
{
	((__u64 *)to)[0] = ((const __u64 *)from)[0];
	((__u64 *)to)[1] = ((const __u64 *)from)[1];
}

static __always_inline void addr_v4(struct addr *a, __be32 v4)
{
	__u64 *x = (__u64 *)a;

	x[0] = 0;
	x[1] = (__u64)v4 << 32 | bpf_htonl(0xffff); /* little endian, as the objects are */
}

static __always_inline void addr_v6(struct addr *a, const void *v6)
{
	__builtin_memcpy(a, v6, sizeof(*a));
}

static __always_inline bool addr_zero(const struct addr *a)
{
	const __u64 *x = (const __u64 *)a;

	return !(x[0] | x[1]);
}

/* The IPv6 form of an IPv4 address may not come in by the wire: it would pass for the IPv4 address. */
static __always_inline bool addr_mapped(const struct addr *a)
{
	return !((const __u64 *)a)[0] && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline bool mac_equal(const void *a, const void *b)
{
	const __u16 *x = a, *y = b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

static __always_inline void mac_copy(void *to, const void *from)
{
	__builtin_memcpy(to, from, ETH_ALEN);
}

static __always_inline bool is_echo(const struct packet *p)
{
	if (p->proto == IPPROTO_ICMP)
		return p->icmp_type == ICMP_ECHO || p->icmp_type == ICMP_ECHOREPLY;
	return p->proto == IPPROTO_ICMPV6 && (p->icmp_type == ICMPV6_ECHO_REQUEST || p->icmp_type == ICMPV6_ECHO_REPLY);
}

static __always_inline bool is_echo_reply(const struct packet *p)
{
	if (p->proto == IPPROTO_ICMP)
		return p->icmp_type == ICMP_ECHOREPLY;
	return p->proto == IPPROTO_ICMPV6 && p->icmp_type == ICMPV6_ECHO_REPLY;
}

static __always_inline bool is_icmp(__u8 proto)
{
	return proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6;
}

/* ICMP types that nobody may send through porin: they are between a host and its router. */
static __always_inline bool icmp4_local(__u8 type)
{
	return type == ICMP_REDIRECT || type == ICMP_ROUTER_ADVERT || type == ICMP_ROUTER_SOLICIT;
}

static __always_inline bool icmp4_error(__u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_SOURCE_QUENCH || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETERPROB;
}

static __always_inline __u16 csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}
