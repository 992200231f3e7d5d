/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "overlay.h"
#include "packet.h"

/* Where an allowed packet goes. */

#define AF_INET	 2
#define AF_INET6 10

/* To a pod of this node: one hop, so the TTL stays. */
static __always_inline enum verdict route_local(struct __sk_buff *ctx, struct packet *p, enum verdict by)
{
	const struct settings *s = settings_get();
	void *data, *end;
	struct ethhdr *eth;

	if (!s || !packet_bytes(ctx, ETH_HLEN, &data, &end))
		return drop(p, DROP_INTERNAL);
	eth = data;
	mac_copy(eth->h_dest, p->dst_mac);
	mac_copy(eth->h_source, s->gateway_mac);
	p->out_ifindex = p->dst_ifindex;
	return by;
}

/* Into this node's stack. porin_host has the gateway's MAC, which the frame bears already. */
static __always_inline enum verdict route_host(struct packet *p, const struct settings *s)
{
	p->out_ifindex = s->host_ifindex;
	return V_HOST;
}

/* Length on the wire of the largest piece of this packet, without Ethernet. */
static __always_inline __u16 route_length(struct __sk_buff *ctx, struct packet *p)
{
	__u32 len = p->l4_end - ETH_HLEN;

	if (!ctx->gso_size)
		return len;
	len = p->l4_off - ETH_HLEN + 8 + ctx->gso_size;
	if (p->proto == IPPROTO_TCP) {
		__u8 doff = 0x50;

		bpf_skb_load_bytes(ctx, p->l4_off + 12, &doff, sizeof(doff));
		len += (doff >> 4) * 4 - 8;
	}
	return len;
}

static __always_inline enum verdict route_ttl(struct __sk_buff *ctx, struct packet *p)
{
	void *data, *end;

	if (!packet_bytes(ctx, ETH_HLEN + sizeof(struct iphdr), &data, &end))
		return drop(p, DROP_INTERNAL);
	if (p->flags & PF_V4) {
		struct iphdr *ip = data + ETH_HLEN;
		__u32 sum = ip->check + bpf_htons(0x0100); /* RFC 1624 for a high byte that falls by one */

		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	} else {
		struct ipv6hdr *ip = data + ETH_HLEN;

		ip->hop_limit--;
	}
	return NEXT;
}

/* Beyond this node, as the kernel's routing table says. What needs an ICMP answer (TTL used up, too big, a route that
 * refuses) goes to the stack, which finds the same and gives it. What the stack would keep for itself does not: the
 * broadcast address of an uplink, a router's anycast address, an address that the agent does not know yet. It was judged
 * as somebody else's.
 */
static __noinline enum verdict route_out(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();
	struct bpf_fib_lookup fib = {};
	void *data, *end;
	struct ethhdr *eth;
	long rc;

	if (!s)
		return drop(p, DROP_INTERNAL);
	fib.l4_protocol = p->proto;
	fib.sport = p->sport;
	fib.dport = p->dport;
	fib.tot_len = route_length(ctx, p);
	fib.ifindex = p->ifindex;
	if (p->flags & PF_V4) {
		fib.family = AF_INET;
		fib.ipv4_src = p->src.w[3];
		fib.ipv4_dst = p->dst.w[3];
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &p->src, sizeof(fib.ipv6_src));
		__builtin_memcpy(fib.ipv6_dst, &p->dst, sizeof(fib.ipv6_dst));
	}
	rc = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (rc < 0)
		return drop(p, DROP_INTERNAL);
	switch (rc) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		break;
	case BPF_FIB_LKUP_RET_UNREACHABLE:
	case BPF_FIB_LKUP_RET_PROHIBIT:
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
	case BPF_FIB_LKUP_RET_UNSUPP_LWT: /* the stack encapsulates */
		return route_host(p, s);
	default:
		return drop(p, DROP_FIB);
	}
	if (fib.ifindex == s->host_ifindex) /* our own pod range, and no pod has the address */
		return drop(p, DROP_UNKNOWN_L3_TARGET);
	if (p->ttl <= 1)
		return route_host(p, s);
	if (route_ttl(ctx, p) != NEXT)
		return V_DROP;
	p->out_ifindex = fib.ifindex;
	if (rc == BPF_FIB_LKUP_RET_NO_NEIGH)
		return V_NEIGH;
	if (!packet_bytes(ctx, ETH_HLEN, &data, &end))
		return drop(p, DROP_INTERNAL);
	eth = data;
	mac_copy(eth->h_dest, fib.dmac);
	mac_copy(eth->h_source, fib.smac);
	return V_REDIRECT;
}

/* Behind another node. To the node itself no pod may speak as a tunnel does. */
static __always_inline enum verdict route_tunnel(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();

	if (s && p->dst_identity == IDENTITY_REMOTE_NODE && overlay_port(s, p))
		return drop(p, DROP_ENCAP_PROHIBITED);
	return overlay_route(ctx, p, route_length(ctx, p));
}

static __always_inline enum verdict route_pod(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();

	if (p->dst_ifindex)
		return route_local(ctx, p, V_PEER);
	if (!s)
		return drop(p, DROP_INTERNAL);
	if (overlay_target(s, p))
		return route_tunnel(ctx, p);
	if (overlay_port(s, p))
		return drop(p, DROP_ENCAP_PROHIBITED);
	if (p->dst_identity == IDENTITY_HOST)
		return route_host(p, s);
	return route_out(ctx, p);
}
