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

/* An address behind another node never comes by this node's stack, unless the stack routes between the nodes: a process
 * of the node that took it would pass for a pod.
 */
static __always_inline enum verdict host_source(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();
	struct side side;

	if (!s)
		return drop(p, DROP_INTERNAL);
	judge_peer(s, &p->src, &side);
	if (side.flags & PEER_REMOTE && (s->tunnel || !ctx->ingress_ifindex))
		return drop(p, DROP_NOT_TUNNELLED);
	return NEXT;
}

static __always_inline enum verdict host_route(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();

	if (p->dst_ifindex)
		return route_local(ctx, p, V_REDIRECT);
	if (s && overlay_target(s, p))
		return overlay_route(ctx, p, route_length(ctx, p));
	return drop(p, DROP_UNKNOWN_L3_TARGET);
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
		v = host_source(ctx, p);
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

/* What an uplink brings for pods, or a tunnel for pods and the node. Everything else is the stack's, parsed or not. */
static __noinline enum verdict uplink_parse(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();
	bool tunnelled = p->point == POINT_FROM_OVERLAY, back = false;
	struct side side;
	enum verdict v;

	if (!s)
		return drop(p, DROP_INTERNAL);
	if (!tunnelled && ctx->pkt_type != PACKET_HOST)
		return V_STACK;
	v = parse_l3(ctx, p);
	if (tunnelled) {
		if (v == NEXT)
			v = p->flags & PF_L3 ? overlay_check(p) : drop(p, DROP_UNSUPPORTED_L3);
	} else if (!(p->flags & PF_L3)) {
		return V_STACK;
	} else {
		back = addr_equal(&p->dst, p->flags & PF_V4 ? &s->masq4 : &s->masq6);
	}
	if (!back && !tunnelled) {
		judge_peer(s, &p->dst, &side);
		if (!(side.flags & PEER_LOCAL))
			return V_STACK;
		if (s->tunnel) {
			judge_peer(s, &p->src, &side);
			if (side.flags & PEER_REMOTE)
				return drop(p, DROP_NOT_TUNNELLED);
		}
	}
	if (v == NEXT)
		v = parse_l4(ctx, p);
	if (back)
		return v == NEXT ? nat_in(ctx, p) : V_STACK;
	return v == NEXT ? host_guard(p) : v;
}

static __always_inline enum verdict uplink_route(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();
	void *data, *end;
	struct ethhdr *eth;

	/* A kernel that does not know the inner packet's protocol finds out when it comes by a device. */
	if (p->dst_ifindex)
		return route_local(ctx, p, p->point == POINT_FROM_OVERLAY && p->foreign ? V_REDIRECT : V_PEER);
	if (p->point != POINT_FROM_OVERLAY || p->dst_identity != IDENTITY_HOST)
		return drop(p, DROP_UNKNOWN_L3_TARGET);
	if (!s || !packet_bytes(ctx, ETH_HLEN, &data, &end))
		return drop(p, DROP_INTERNAL);
	eth = data;
	mac_copy(eth->h_dest, s->gateway_mac);
	mac_copy(eth->h_source, s->gateway_mac);
	return route_host(p, s);
}

/* tcx ingress of an uplink, or of the kernel's tunnel device: what other nodes tunnel, answers to masqueraded packets, and
 * packets straight to pods.
 */
SEC("tc/uplink_ingress")
int uplink_ingress(struct __sk_buff *ctx)
{
	struct packet *p = packet_new(ctx, POINT_FROM_NETWORK);
	struct ct_entry *e = NULL;
	enum verdict v;

	if (!p)
		return TC_ACT_SHOT;
	v = overlay_receive(ctx, p);
	if (v == NEXT)
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
	if (overlay_forged(ctx, p))
		return drop(p, DROP_ENCAP_PROHIBITED);
	p->flags = 0;
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
	struct packet *p;

	if (ctx->mark == OVERLAY_MARK) /* ours, with the node's address */
		return TC_NEXT;
	p = packet_new(ctx, POINT_TO_NETWORK);
	if (!p)
		return TC_ACT_SHOT;
	/* No other verdict is possible; to say so spares the verifier the ways to all others. */
	return finish(ctx, p, uplink_masquerade(ctx, p) == V_STACK ? V_STACK : V_DROP, DIR_EGRESS);
}

char _license[] SEC("license") = "Dual BSD/GPL";
