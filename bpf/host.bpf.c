//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#include "parse.h"

#include "conntrack.h"
#include "export.h"
#include "finish.h"
#include "nat.h"
#include "route.h"
#include "source.h"

/* Addresses that no packet may come from. */
static __always_inline bool is_martian(const struct packet *p)
{
	__u32 w = bpf_ntohl(p->flags & PF_V4 ? p->src.w[3] : p->src.w[0]);

	if (p->flags & PF_V4)
		return w >> 24 == 0 || w >> 24 == 127 || w >> 29 == 7;
	return w >> 24 == 0xff || (w & 0xffc00000) == 0xfe800000 || (!w && !p->src.w[1] && !p->src.w[2]);
}

/* Neighbour discovery is between neighbours; no pod has one behind these hooks. */
static __always_inline enum verdict host_guard(struct packet *p)
{
	if (is_nd(p))
		return drop(p, DROP_FORBIDDEN_ICMP6);
	if (is_martian(p) || addr_equal(&p->src, &p->dst))
		return drop(p, DROP_INVALID_SOURCE_IP);
	return p->ttl ? NEXT : drop(p, DROP_TTL);
}

/* porin_host: what this node's stack sends to its pods. */
static __always_inline enum verdict host_parse(struct __sk_buff *ctx, struct packet *p)
{
	enum verdict v = parse_l3(ctx, p);

	if (v == NEXT && !(p->flags & PF_L3))
		return drop(p, DROP_UNSUPPORTED_L3); /* ARP: the device has none */
	if (v == NEXT && is_multicast(p))
		return drop(p, DROP_MULTICAST);
	if (v == NEXT)
		v = parse_l4(ctx, p);
	return v == NEXT ? host_guard(p) : v;
}

static __always_inline enum verdict host_route(struct __sk_buff *ctx, struct packet *p)
{
	if (!p->dst_ifindex)
		return drop(p, DROP_UNKNOWN_L3_TARGET);
	return route_local(ctx, p, V_REDIRECT);
}

/* tcx egress of porin_host, where the routes to this node's pods end: the stack's packets, its own and forwarded. */
SEC("tc/host_egress")
int host_egress(struct __sk_buff *ctx)
{
	struct packet *p = packet_new(ctx, POINT_FROM_HOST);
	struct ct_entry *e = NULL;
	enum verdict v;

	if (!p)
		return TC_ACT_SHOT;
	v = host_parse(ctx, p);
	/* What the stack forwards is not its own, whatever its source says: for IPv4 the kernel refuses the node's own
	 * addresses as sources from outside, so there they are a masquerade's; for IPv6 it takes them.
	 */
	if (ctx->ingress_ifindex && !(p->flags & PF_V4))
		p->point = POINT_FROM_NETWORK;
	if (v == NEXT)
		e = conntrack_lookup(ctx, p);
	if (v == NEXT)
		v = conntrack_find(p, e);
	if (v == NEXT)
		v = conntrack_verdict(p, e);
	if (v == NEXT)
		v = host_route(ctx, p);
	return finish(ctx, p, v, DIR_INGRESS);
}

/* What an uplink brings for pods. Everything else is the stack's, parsed or not. */
static __always_inline enum verdict uplink_parse(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();
	struct side side;
	enum verdict v;
	bool back;

	if (!s)
		return drop(p, DROP_INTERNAL);
	if (ctx->pkt_type != PACKET_HOST)
		return V_STACK;
	v = parse_l3(ctx, p);
	if (!(p->flags & PF_L3))
		return V_STACK;
	back = addr_equal(&p->dst, p->flags & PF_V4 ? &s->masq4 : &s->masq6);
	if (!back) {
		judge_peer(s, &p->dst, &side);
		if (!(side.flags & PEER_LOCAL))
			return V_STACK;
	}
	if (v == NEXT)
		v = parse_l4(ctx, p);
	if (back)
		return v == NEXT ? nat_in(ctx, p) : V_STACK;
	return v == NEXT ? host_guard(p) : v;
}

static __always_inline enum verdict uplink_route(struct __sk_buff *ctx, struct packet *p)
{
	if (!p->dst_ifindex)
		return drop(p, DROP_UNKNOWN_L3_TARGET);
	return route_local(ctx, p, V_PEER);
}

/* tcx ingress of an uplink: answers to masqueraded packets, and packets straight to pods. */
SEC("tc/uplink_ingress")
int uplink_ingress(struct __sk_buff *ctx)
{
	struct packet *p = packet_new(ctx, POINT_FROM_NETWORK);
	struct ct_entry *e = NULL;
	enum verdict v;

	if (!p)
		return TC_ACT_SHOT;
	v = uplink_parse(ctx, p);
	if (v == NEXT)
		e = conntrack_lookup(ctx, p);
	if (v == NEXT)
		v = conntrack_find(p, e);
	if (v == NEXT)
		v = conntrack_verdict(p, e);
	if (v == NEXT)
		v = uplink_route(ctx, p);
	return finish(ctx, p, v, DIR_INGRESS);
}

/* Pods' packets that leave the cluster; all others pass untouched. */
static __always_inline enum verdict uplink_masquerade(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();
	const struct addr *masq;
	struct side side;
	enum verdict v;

	if (!s)
		return drop(p, DROP_INTERNAL);
	if (!(s->flags & (SETTING_MASQ4 | SETTING_MASQ6)))
		return V_STACK;
	v = parse_l3(ctx, p);
	if (!(p->flags & PF_L3) || !(s->flags & (p->flags & PF_V4 ? SETTING_MASQ4 : SETTING_MASQ6)))
		return V_STACK;
	masq = p->flags & PF_V4 ? &s->masq4 : &s->masq6;
	if (addr_equal(&p->src, masq))
		return V_STACK;
	judge_peer(s, &p->src, &side);
	if (!(side.flags & PEER_LOCAL))
		return V_STACK;
	p->src_identity = side.identity;
	p->src_ifindex = side.ifindex;
	judge_peer(s, &p->dst, &side);
	if (side.flags & (PEER_LOCAL | PEER_HOST | PEER_CLUSTER | PEER_NO_OWNER))
		return V_STACK;
	p->dst_identity = side.identity;
	if (v == NEXT)
		v = parse_l4(ctx, p);
	if (v != NEXT)
		return p->reason == DROP_UNKNOWN_L4 ? drop(p, DROP_NAT_UNSUPPORTED) : v;
	v = nat_masquerade(ctx, p, masq);
	return v == NEXT ? V_STACK : v;
}

/* tcx egress of an uplink. */
SEC("tc/uplink_egress")
int uplink_egress(struct __sk_buff *ctx)
{
	struct packet *p = packet_new(ctx, POINT_TO_NETWORK);

	if (!p)
		return TC_ACT_SHOT;
	return finish(ctx, p, uplink_masquerade(ctx, p), DIR_EGRESS);
}

char _license[] SEC("license") = "Dual BSD/GPL";
