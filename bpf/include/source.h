/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "neigh.h"
#include "packet.h"

/* Who may send what: a pod speaks with its own MAC and address only, and not as a router or server of addresses. */

static __always_inline bool is_multicast(const struct packet *p)
{
	if (p->flags & PF_V4)
		return (p->dst.w[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || p->dst.w[3] == 0xffffffff;
	return (p->dst.w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* Destinations that no route leads to, wherever they were sent from. */
static __always_inline bool is_unroutable(const struct packet *p)
{
	__u32 w = bpf_ntohl(p->flags & PF_V4 ? p->dst.w[3] : p->dst.w[0]);

	if (p->flags & PF_V4)
		return w >> 24 == 0 || w >> 24 == 127 || w >> 28 == 15 || w == GATEWAY4;
	return (w & 0xffc00000) == 0xfe800000 || (!w && !p->dst.w[1] && !p->dst.w[2]);
}

/* The pod behind the device is asked for its MAC and address. ARP and neighbour discovery end here. */
static __noinline enum verdict source_check(struct __sk_buff *ctx, struct packet *p)
{
	const struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &p->ifindex);
	void *data, *end;

	if (!ep)
		return drop(p, DROP_ENDPOINT_NOT_READY);
	p->src_identity = ep->identity;
	p->src_ep = ep->id;
	if (!packet_bytes(ctx, ETH_HLEN, &data, &end))
		return drop(p, DROP_INVALID_PACKET);
	if (!mac_equal(((struct ethhdr *)data)->h_source, ep->mac))
		return drop(p, DROP_INVALID_SOURCE_MAC);
	if (p->ethertype == bpf_htons(ETH_P_ARP))
		return neigh_arp(ctx, p, ep);
	/* A pod without an address of the family has the zero one in its row. */
	if (!addr_zero(&p->src) && addr_equal(&p->src, p->flags & PF_V4 ? &ep->v4 : &ep->v6))
		p->flags |= PF_OWN;
	/* RFC 4862 5.4.2, RFC 3810 5.2.13: duplicate address detection and a fresh interface's reports come from :: */
	else if (!addr_zero(&p->src) || !is_nd(p))
		return drop(p, addr_zero(&p->src) && is_mld(p) ? DROP_MULTICAST : DROP_INVALID_SOURCE_IP);
	if (is_nd(p))
		return neigh_nd(ctx, p, ep);
	if (ep->flags & EP_LOCKDOWN)
		return drop(p, DROP_NO_SUBJECT);
	return NEXT;
}

/* What no pod may send, whoever it is. */
static __always_inline enum verdict source_guard(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();
	void *data, *end;
	struct ethhdr *eth;

	if (!s)
		return drop(p, DROP_INTERNAL);
	if (p->proto == IPPROTO_UDP && p->sport == (p->flags & PF_V4 ? bpf_htons(67) : bpf_htons(547)))
		return drop(p, DROP_DHCP_SERVER);
	if (is_multicast(p))
		return drop(p, DROP_MULTICAST);
	if (!packet_bytes(ctx, ETH_HLEN, &data, &end))
		return drop(p, DROP_INVALID_PACKET);
	eth = data;
	/* The gateway is a pod's only neighbour; a frame to anybody else would count as foreign behind a redirect. */
	if (!mac_equal(eth->h_dest, s->gateway_mac))
		return drop(p, eth->h_dest[0] & 1 ? DROP_MULTICAST : DROP_UNSUPPORTED_L2);
	if (is_unroutable(p) || addr_equal(&p->src, &p->dst))
		return drop(p, DROP_UNROUTABLE);
	return p->ttl ? NEXT : drop(p, DROP_TTL);
}
