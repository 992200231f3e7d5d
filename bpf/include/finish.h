/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "event.h"
#include "overlay.h"
#include "packet.h"

/* The end of every pipeline: counts, tells, and is the only place that knows TC_ACT_*. */

#define TC_NEXT (-1) /* TC_ACT_UNSPEC with clsact, TCX_NEXT with tcx: the next program, else the stack */

static __always_inline void finish_count(const struct packet *p)
{
	__u32 key = p->reason * 4 + p->direction;
	struct counter *c = bpf_map_lookup_elem(&counters, &key);

	if (!c)
		return;
	c->packets++;
	c->bytes += p->len;
}

/* The last step of a tunnel can fail for want of memory, when the packet is counted already. */
static __always_inline int finish_tunnel(struct packet *p, int code)
{
	if (code >= 0)
		return code;
	p->reason = DROP_TUNNEL_KEY;
	finish_count(p);
	return TC_ACT_SHOT;
}

/* direction: of the endpoints whose packets the program sees, where no policy has named another. */
static __always_inline int finish(struct __sk_buff *ctx, struct packet *p, enum verdict v, enum direction direction)
{
	const struct settings *s = settings_get();

	if (!s)
		return TC_ACT_SHOT;
	p->verdict = v;
	if (v == V_STACK) /* not ours, or done with */
		return TC_NEXT;
	if (v == NEXT)
		v = drop(p, DROP_INTERNAL);
	if (v == V_DROP) {
		/* Nobody waits for the news that there is no router; the counter has it. */
		if (p->reason != DROP_MULTICAST || !is_mld(p) || s->flags & SETTING_TRACE_ALL)
			p->event = EVENT_DROP;
		if (p->reason == REASON_NONE)
			p->reason = DROP_INTERNAL;
	}
	if (v == V_TOO_BIG)
		p->event = EVENT_DROP;
	if (!p->direction)
		p->direction = direction;
	finish_count(p);
	if (p->event || s->flags & SETTING_TRACE_ALL) {
		if (!p->event)
			p->event = EVENT_TRACE;
		if (v == V_DROP || s->flags & (SETTING_SNAP | SETTING_TRACE_ALL))
			event_whole(ctx, v);
		else
			event_short(ctx, v);
	}
	switch (v) {
	case V_PEER:
		return bpf_redirect_peer(p->out_ifindex, 0);
	case V_REDIRECT:
	case V_REPLY:
		return bpf_redirect(p->out_ifindex, 0);
	case V_HOST:
		return bpf_redirect(p->out_ifindex, BPF_F_INGRESS);
	case V_NEIGH:
		return bpf_redirect_neigh(p->out_ifindex, NULL, 0, 0);
	case V_TUNNEL:
		return finish_tunnel(p, overlay_send(ctx, p));
	case V_TOO_BIG:
		return finish_tunnel(p, toobig_answer(ctx, p));
	default:
		return TC_ACT_SHOT;
	}
}
