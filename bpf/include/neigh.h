/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "packet.h"

/*
 * Neighbour discovery of pods. A pod has one neighbour, its gateway (169.254.1.1, fe80::1), and that is answered here,
 * in place. Nothing else of ARP or ND leaves a pod.
 */

#define ND_ROUTER_SOLICIT 133
#define ND_ROUTER_ADVERT  134
#define ND_SOLICIT	  135
#define ND_ADVERT	  136
#define ND_REDIRECT	  137
#define ND_RENUMBER	  138

#define ND_OPT_TARGET_MAC 2

#define GATEWAY4 0xa9fe0101 /* 169.254.1.1 */

struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 op;
	__u8 sender_mac[6];
	__be16 sender_ip[2]; /* halves: the field is not aligned to its size */
	__u8 target_mac[6];
	__be16 target_ip[2];
} __attribute__((packed));

struct nd {
	__u8 type;
	__u8 code;
	__sum16 csum;
	__be32 flags;
	struct addr target;
	__u8 opt_type;
	__u8 opt_len; /* in 8-byte words */
	__u8 opt_mac[6];
};

static __always_inline bool is_nd(const struct packet *p)
{
	return p->proto == IPPROTO_ICMPV6 && !(p->flags & PF_LATER) && p->icmp_type >= ND_ROUTER_SOLICIT &&
	       p->icmp_type <= ND_RENUMBER;
}

static __always_inline bool half_equal(const __be16 *half, __be32 v4)
{
	return half[0] == (__be16)(v4 & 0xffff) && half[1] == (__be16)(v4 >> 16);
}

static __always_inline bool is_gateway4(const __be16 *half)
{
	return half_equal(half, bpf_htonl(GATEWAY4));
}

static __always_inline bool is_gateway6(const struct addr *a)
{
	return a->w[0] == bpf_htonl(0xfe800000) && !a->w[1] && !a->w[2] && a->w[3] == bpf_htonl(1);
}

/* A pod asks for its gateway: the frame goes back as the answer. Everything else of ARP claims or probes what is not
 * the pod's business.
 */
static __noinline enum verdict neigh_arp(struct __sk_buff *ctx, struct packet *p, const struct endpoint *ep)
{
	const struct settings *s = settings_get();
	struct ethhdr *eth;
	struct arp *arp;
	void *data, *end;

	if (!s)
		return drop(p, DROP_INTERNAL);
	if (!packet_bytes(ctx, ETH_HLEN + sizeof(*arp), &data, &end))
		return drop(p, DROP_INVALID_PACKET);
	eth = data;
	arp = data + ETH_HLEN;
	if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_len != ETH_ALEN ||
	    arp->protocol_len != 4 || arp->op != bpf_htons(1))
		return drop(p, DROP_ARP_SPOOF);
	if (!mac_equal(arp->sender_mac, ep->mac) || !half_equal(arp->sender_ip, ep->v4.w[3]) || !ep->v4.w[3] ||
	    !is_gateway4(arp->target_ip))
		return drop(p, DROP_ARP_SPOOF);
	mac_copy(eth->h_dest, ep->mac);
	mac_copy(eth->h_source, s->gateway_mac);
	arp->op = bpf_htons(2);
	arp->target_ip[0] = arp->sender_ip[0];
	arp->target_ip[1] = arp->sender_ip[1];
	mac_copy(arp->target_mac, ep->mac);
	arp->sender_ip[0] = bpf_htons(GATEWAY4 >> 16);
	arp->sender_ip[1] = bpf_htons(GATEWAY4 & 0xffff);
	mac_copy(arp->sender_mac, s->gateway_mac);
	p->out_ifindex = p->ifindex;
	return V_REPLY;
}

/* The answer to a solicitation of fe80::1, in the place of the solicitation. */
static __noinline enum verdict neigh_advertise(struct __sk_buff *ctx, struct packet *p, const struct endpoint *ep)
{
	const struct settings *s = settings_get();
	struct {
		__u8 pad[2]; /* aligns what follows the 14 bytes of Ethernet */
		struct ethhdr eth;
		struct ipv6hdr ip;
		struct nd nd;
	} f = {};
	__be32 pseudo[2] = {bpf_htonl(sizeof(f.nd)), bpf_htonl(IPPROTO_ICMPV6)};
	__s64 sum;

	if (!s)
		return drop(p, DROP_INTERNAL);
	mac_copy(f.eth.h_dest, ep->mac);
	mac_copy(f.eth.h_source, s->gateway_mac);
	f.eth.h_proto = bpf_htons(ETH_P_IPV6);
	f.ip.version = 6;
	f.ip.payload_len = bpf_htons(sizeof(f.nd));
	f.ip.nexthdr = IPPROTO_ICMPV6;
	f.ip.hop_limit = 255;
	f.ip.saddr.s6_addr32[0] = bpf_htonl(0xfe800000);
	f.ip.saddr.s6_addr32[3] = bpf_htonl(1);
	__builtin_memcpy(&f.ip.daddr, &ep->v6, sizeof(f.ip.daddr));
	f.nd.type = ND_ADVERT;
	f.nd.flags = bpf_htonl(0xe0000000); /* router, solicited, override (RFC 4861 4.4) */
	f.nd.target.w[0] = bpf_htonl(0xfe800000);
	f.nd.target.w[3] = bpf_htonl(1);
	f.nd.opt_type = ND_OPT_TARGET_MAC;
	f.nd.opt_len = 1;
	mac_copy(f.nd.opt_mac, s->gateway_mac);
	sum = bpf_csum_diff(0, 0, (__be32 *)&f.ip.saddr, 32, 0);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), sum);
	sum = bpf_csum_diff(0, 0, (__be32 *)&f.nd, sizeof(f.nd), sum);
	if (sum < 0)
		return drop(p, DROP_INTERNAL);
	f.nd.csum = csum_fold(sum);
	if (bpf_skb_change_tail(ctx, sizeof(f) - sizeof(f.pad), 0) ||
	    bpf_skb_store_bytes(ctx, 0, &f.eth, sizeof(f) - sizeof(f.pad), 0))
		return drop(p, DROP_INTERNAL);
	p->out_ifindex = p->ifindex;
	return V_REPLY;
}

/* All of neighbour discovery that a pod sends. */
static __noinline enum verdict neigh_nd(struct __sk_buff *ctx, struct packet *p, const struct endpoint *ep)
{
	struct addr target;

	if (p->icmp_type == ND_ROUTER_SOLICIT && (p->dst.w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000))
		return drop(p, DROP_MULTICAST); /* there is no router to hear it */
	if ((p->icmp_type != ND_SOLICIT && p->icmp_type != ND_ADVERT) || p->flags & (PF_FIRST | PF_LATER) ||
	    p->ttl != 255 || p->icmp_code || p->l4_off != ETH_HLEN + sizeof(struct ipv6hdr) ||
	    p->l4_off + 24 > p->l4_end)
		return drop(p, DROP_FORBIDDEN_ICMP6);
	if (bpf_skb_load_bytes(ctx, p->l4_off + 8, &target, sizeof(target)))
		return drop(p, DROP_INVALID_PACKET);
	if (p->icmp_type == ND_SOLICIT && p->flags & PF_OWN && is_gateway6(&target))
		return neigh_advertise(ctx, p, ep);
	if (addr_zero(&ep->v6) || !addr_equal(&target, &ep->v6))
		return drop(p, DROP_FORBIDDEN_ICMP6);
	/* Duplicate address detection or announcement of its own address: true, but nobody needs to hear it. */
	return drop(p, DROP_MULTICAST);
}
