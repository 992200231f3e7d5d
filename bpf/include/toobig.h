/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "packet.h"

/* A packet that is too long for the way to another node: its sender is told how much the way takes. */

#define TOOBIG_QUOTE4 512 /* bytes of the packet in an answer (RFC 1812 4.3.2.3) */
#define TOOBIG_QUOTE6 1232 /* RFC 4443 3.2: all that 1280 bytes hold */

/* Too long for the way: answered where an answer is allowed (RFC 1122 3.2.2, RFC 4443 2.4) and there is enough to quote. */
static __always_inline enum verdict toobig_refuse(struct packet *p, __u32 len, __u32 mtu)
{
	p->action = ACTION_DENY;
	if (p->flags & (PF_ERROR | PF_LATER) || len < (p->flags & PF_V4 ? TOOBIG_QUOTE4 : TOOBIG_QUOTE6))
		return drop(p, DROP_TOO_BIG);
	p->reason = DROP_TOO_BIG;
	p->mtu = mtu;
	if (!(p->flags & PF_V4) && mtu < 1280)
		p->mtu = 1280; /* RFC 8200 5: no link says less */
	return V_TOO_BIG;
}

/* Ethernet of an answer that goes back to where the packet came from. */
static __always_inline void toobig_turn(const struct settings *s, struct ethhdr *eth)
{
	mac_copy(eth->h_dest, eth->h_source);
	mac_copy(eth->h_source, s->gateway_mac);
}

static __always_inline int toobig_answer4(struct __sk_buff *ctx, struct packet *p, const struct settings *s)
{
	struct {
		struct iphdr ip;
		struct icmp icmp;
	} *h;
	void *data, *end;
	__u64 sum = 0;
	__s64 quoted;

	if (bpf_skb_change_tail(ctx, ETH_HLEN + TOOBIG_QUOTE4, 0) ||
	    bpf_skb_adjust_room(ctx, sizeof(*h), BPF_ADJ_ROOM_MAC, 0) ||
	    !packet_bytes(ctx, ETH_HLEN + sizeof(*h) + TOOBIG_QUOTE4, &data, &end))
		return -1;
	toobig_turn(s, data);
	h = data + ETH_HLEN;
	__builtin_memset(h, 0, sizeof(*h));
	*(__be16 *)&h->ip = bpf_htons(0x4500);
	h->ip.tot_len = bpf_htons(sizeof(*h) + TOOBIG_QUOTE4);
	h->ip.ttl = 64;
	h->ip.protocol = IPPROTO_ICMP;
	h->ip.saddr = p->point == POINT_FROM_ENDPOINT && s->router4.w[3] ? s->router4.w[3] : p->dst.w[3];
	h->ip.daddr = p->src.w[3];
	for (int i = 0; i < 5; i++)
		sum += ((__u32 *)&h->ip)[i];
	h->ip.check = csum_fold(sum);
	h->icmp.type = ICMP_DEST_UNREACH;
	h->icmp.code = ICMP_FRAG_NEEDED;
	h->icmp.seq = bpf_htons(p->mtu);
	quoted = bpf_csum_diff(0, 0, (__be32 *)&h->icmp, sizeof(h->icmp), 0);
	quoted = bpf_csum_diff(0, 0, data + ETH_HLEN + sizeof(*h), TOOBIG_QUOTE4, quoted);
	h->icmp.csum = csum_fold(quoted);
	return 0;
}

static __always_inline int toobig_answer6(struct __sk_buff *ctx, struct packet *p, const struct settings *s)
{
	struct {
		struct ipv6hdr ip;
		struct icmp icmp;
	} *h;
	__be32 pseudo[2] = {bpf_htonl(sizeof(h->icmp) + TOOBIG_QUOTE6), bpf_htonl(IPPROTO_ICMPV6)};
	void *data, *end;
	__s64 sum;

	if (bpf_skb_change_tail(ctx, ETH_HLEN + TOOBIG_QUOTE6, 0) ||
	    bpf_skb_adjust_room(ctx, sizeof(*h), BPF_ADJ_ROOM_MAC, 0) ||
	    !packet_bytes(ctx, ETH_HLEN + sizeof(*h) + TOOBIG_QUOTE6, &data, &end))
		return -1;
	toobig_turn(s, data);
	h = data + ETH_HLEN;
	__builtin_memset(h, 0, sizeof(*h));
	*(__be32 *)&h->ip = bpf_htonl(0x60000000);
	h->ip.payload_len = bpf_htons(sizeof(h->icmp) + TOOBIG_QUOTE6);
	h->ip.nexthdr = IPPROTO_ICMPV6;
	h->ip.hop_limit = 64;
	if (p->point == POINT_FROM_ENDPOINT && !addr_zero(&s->router6))
		__builtin_memcpy(&h->ip.saddr, &s->router6, sizeof(h->ip.saddr));
	else
		__builtin_memcpy(&h->ip.saddr, &p->dst, sizeof(h->ip.saddr));
	__builtin_memcpy(&h->ip.daddr, &p->src, sizeof(h->ip.daddr));
	h->icmp.type = ICMPV6_PKT_TOOBIG;
	h->icmp.seq = bpf_htons(p->mtu); /* lower half of the MTU's word */
	sum = bpf_csum_diff(0, 0, (__be32 *)&h->ip.saddr, 32, 0);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), sum);
	sum = bpf_csum_diff(0, 0, (__be32 *)&h->icmp, sizeof(h->icmp) + 504, sum); /* the helper takes 512 at a time */
	sum = bpf_csum_diff(0, 0, data + ETH_HLEN + sizeof(*h) + 504, 512, sum);
	sum = bpf_csum_diff(0, 0, data + ETH_HLEN + sizeof(*h) + 1016, TOOBIG_QUOTE6 - 1016, sum);
	h->icmp.csum = csum_fold(sum);
	return 0;
}

/* Tells the sender what the way takes. Of a pod's packets the node says so, as its router; to the node's own stack it
 * comes from the other end, for the stack takes no packet from its own addresses. -1: there is no answer.
 */
static __noinline int toobig_answer(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();

	if (!s || (p->flags & PF_V4 ? toobig_answer4(ctx, p, s) : toobig_answer6(ctx, p, s)))
		return -1;
	if (p->point == POINT_FROM_ENDPOINT)
		return bpf_redirect(p->ifindex, 0);
	return bpf_redirect(s->host_ifindex, BPF_F_INGRESS);
}
