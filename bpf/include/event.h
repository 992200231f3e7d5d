/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "packet.h"

/* Flow events: a drop, a judged flow, its first answer, a TCP flag not seen before, a sign of life. Nothing else. */

static __noinline void event_lost(void)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&lost, &zero);

	if (n)
		(*n)++;
}

static __always_inline __u8 event_point(const struct packet *p, enum verdict v)
{
	switch (v) {
	case V_PEER:
		return POINT_TO_ENDPOINT;
	case V_HOST:
		return p->dst_identity == IDENTITY_HOST ? POINT_TO_HOST : POINT_TO_STACK;
	case V_REDIRECT:
		return p->dst_ifindex ? POINT_TO_ENDPOINT : POINT_TO_NETWORK;
	case V_NEIGH:
		return POINT_TO_NETWORK;
	case V_TUNNEL:
		return POINT_TO_OVERLAY;
	default:
		return p->point;
	}
}

/* Endpoints that nobody has looked up for the packet's sake. */
static __always_inline void event_endpoints(struct packet *p)
{
	__u32 from = p->point == POINT_FROM_ENDPOINT ? p->ifindex : p->src_ifindex;
	const struct endpoint *ep;

	if (from && !p->src_ep) {
		ep = bpf_map_lookup_elem(&endpoints, &from);
		if (ep) {
			p->src_ep = ep->id;
			p->src_identity = ep->identity;
		}
	}
	if (p->dst_ifindex && !p->dst_ep) {
		ep = bpf_map_lookup_elem(&endpoints, &p->dst_ifindex);
		if (ep)
			p->dst_ep = ep->id;
	}
}

static __always_inline void event_fill(struct packet *p, struct event *e, enum verdict v)
{
	event_endpoints(p);
	e->time = bpf_ktime_get_ns();
	e->proto = 0;
	if (p->flags & PF_L3) {
		addr_copy(&e->src, &p->src);
		addr_copy(&e->dst, &p->dst);
		e->proto = p->proto;
	} else {
		__builtin_memset(&e->src, 0, sizeof(e->src));
		__builtin_memset(&e->dst, 0, sizeof(e->dst));
	}
	e->src_identity = p->src_identity;
	e->dst_identity = p->dst_identity;
	e->ifindex = p->ifindex;
	e->out_ifindex = v == V_DROP ? 0 : p->out_ifindex;
	e->cookie_out = p->cookie_out;
	e->cookie_in = p->cookie_in;
	e->len = p->len;
	e->src_ep = p->src_ep;
	e->dst_ep = p->dst_ep;
	e->sport = 0;
	e->dport = 0;
	if (p->flags & PF_L4) {
		e->sport = p->sport;
		e->dport = p->dport;
	}
	if (is_icmp(e->proto)) {
		bool known = p->flags & PF_L4; /* else zeroes would say that it is an echo reply */

		e->sport = known ? bpf_htons(p->icmp_type) : 0xffff;
		e->dport = known ? bpf_htons(p->icmp_code) : 0xffff;
	}
	e->type = p->event;
	e->action = v == V_DROP ? ACTION_DENY : p->action;
	e->reason = p->reason;
	e->point = event_point(p, v);
	e->status = p->status;
	e->direction = p->direction;
	e->tcp_flags = p->tcp_flags;
	e->snap_len = 0;
}

/* To wake the reader takes microseconds, fifty times as long as the packet: it looks by itself, 50 times a second. */
static __always_inline void event_submit(struct event *e)
{
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

/* Global functions: the verifier looks at them once, not once for every way that leads to them. They find
 * the packet by themselves.
 */

/* With the first bytes of the packet. */
__noinline int event_whole(struct __sk_buff *ctx, __u32 v)
{
	struct packet *p = packet_get();
	struct event *e;
	__u32 snap;

	if (!p)
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		event_lost();
		return 0;
	}
	snap = p->len;
	event_fill(p, e, v);
	if (snap > EVENT_SNAP)
		snap = EVENT_SNAP;
	/* Both bounds must be seen by the verifier in the register of the call (6.1 to 6.18, clang-19): clang forgets
	 * the one above, would make one test of a difference out of the two below, and before 6.8 nothing is learnt of
	 * the least value from a test against zero. A frame has its Ethernet header.
	 */
	asm volatile("" : "+r"(snap));
	if (snap >= ETH_HLEN) {
		asm volatile("" : "+r"(snap));
		if (snap <= EVENT_SNAP && !bpf_skb_load_bytes(ctx, 0, e->snap, snap))
			e->snap_len = snap;
	}
	event_submit(e);
	return 0;
}

/* Of a packet that passes: who and whereto, no more. */
__noinline int event_short(struct __sk_buff *ctx, __u32 v)
{
	struct packet *p = packet_get();
	struct event *e;
	void *data, *end;

	if (!p)
		return 0;
	e = bpf_ringbuf_reserve(&events, offsetof(struct event, snap) + EVENT_SNAP_SHORT, 0);
	if (!e) {
		event_lost();
		return 0;
	}
	event_fill(p, e, v);
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + EVENT_SNAP_SHORT <= end) {
		__builtin_memcpy(e->snap, data, EVENT_SNAP_SHORT);
		e->snap_len = EVENT_SNAP_SHORT;
	}
	event_submit(e);
	return 0;
}
