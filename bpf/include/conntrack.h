/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "icmp.h"
#include "judge.h"
#include "packet.h"

/*
 * Flows. One entry per flow, found by one lookup from either direction and from either pod of a same-node flow; it
 * holds the verdict of the policy epoch in which it was judged last.
 *
 *            SYN or first packet, allowed            reply                    FIN of both, or RST
 *   (none) -----------------------------> 60 s -------------> TCP: 8000 s -------------------------> 10 s -> (none)
 *                                                  others: 60 s
 */

#define SECOND		 1000000000ULL
#define LIFE_ESTABLISHED (8000 * SECOND)
#define LIFE_CLOSING	 (10 * SECOND)
#define LIFE_OTHER	 (60 * SECOND)

#define REPORT_SHIFT 20 /* a millisecond or so: ct_entry.reported */

static __always_inline bool conntrack_closing(__u8 flags)
{
	return flags & CTF_RST || (flags & (CTF_LO_FIN | CTF_HI_FIN)) == (CTF_LO_FIN | CTF_HI_FIN);
}

static __always_inline __u64 conntrack_life(const struct packet *p, __u8 flags)
{
	if (p->proto != IPPROTO_TCP)
		return LIFE_OTHER;
	if (conntrack_closing(flags))
		return LIFE_CLOSING;
	return flags & CTF_SEEN_REPLY && !(p->tcp_flags & TCP_SYN) ? LIFE_ESTABLISHED : LIFE_OTHER;
}

static __always_inline __u8 conntrack_close_flags(const struct packet *p)
{
	__u8 flags = 0;

	if (p->tcp_flags & TCP_FIN)
		flags |= p->src_hi ? CTF_HI_FIN : CTF_LO_FIN;
	if (p->tcp_flags & TCP_RST)
		flags |= CTF_RST;
	return flags;
}

/* The live flow of a packet, or of the packet that an ICMP error is about: the only lookup. */
static __always_inline struct ct_entry *conntrack_lookup(struct __sk_buff *ctx, struct packet *p)
{
	struct ct_entry *e;

	p->fault = REASON_NONE;
	if (!(p->flags & PF_L4))
		return NULL;
	if (!(p->flags & PF_ERROR)) {
		conntrack_key(p, &p->src, &p->dst, p->sport, p->dport, p->proto, is_echo(p), is_echo_reply(p));
	} else if (icmp_inner(ctx, p) != NEXT) {
		p->fault = p->reason; /* told when the sender is known to be who he says */
		return NULL;
	}
	e = bpf_map_lookup_elem(&conntrack, &p->key);
	return e && e->expires >= p->now ? e : NULL;
}

/* An ICMP error is related when it is about a packet that went this way: the initiator's, or an answer once there was
 * one. A pod is no router that could speak about others' packets.
 */
static __always_inline enum verdict conntrack_related(struct packet *p, const struct ct_entry *e)
{
	if (p->fault)
		return drop(p, p->fault);
	if (!e || (e->initiator != p->src_hi && !(e->flags & CTF_SEEN_REPLY)) ||
	    (p->flags & PF_OWN && !addr_equal(&p->inner_dst, &p->src)))
		return drop(p, DROP_CT_NO_FLOW);
	p->status = CT_RELATED;
	return NEXT;
}

/* What the packet is to the flow of its tuple, if there is one. */
static __always_inline enum verdict conntrack_find(struct packet *p, const struct ct_entry *e)
{
	bool first = e && e->initiator == p->src_hi;

	if (p->flags & PF_ERROR)
		return conntrack_related(p, e);
	/* Whoever sends a bare SYN begins a flow: the responder of a live one has no right to it by that flow, and the
	 * initiator's old one is over.
	 */
	if (e && p->proto == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN &&
	    (!first || conntrack_closing(e->flags)))
		e = NULL;
	if (e) {
		p->status = first ? CT_ESTABLISHED : CT_REPLY;
		return p->flags & PF_NATTED && first ? drop(p, DROP_CT_NO_FLOW) : NEXT;
	}
	if (p->flags & PF_NATTED || is_echo_reply(p))
		return drop(p, DROP_CT_NO_FLOW);
	if (p->proto == IPPROTO_TCP &&
	    (p->tcp_flags & TCP_RST || (p->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK)))
		return drop(p, DROP_CT_NO_FLOW);
	p->status = CT_NEW;
	return NEXT;
}

/* What the judges said: all that another epoch may change. */
static __always_inline void conntrack_note(struct ct_entry *e, const struct packet *p, const struct judgement *j)
{
	e->lo_ifindex = j->lo.ifindex;
	e->hi_ifindex = j->hi.ifindex;
	e->lo_identity = j->lo.identity;
	e->hi_identity = j->hi.identity;
	e->cookie_out = j->out.cookie;
	e->cookie_in = j->in.cookie;
	e->lo_ep = j->lo.ep;
	e->hi_ep = j->hi.ep;
	e->action = p->action;
	e->reason = p->reason;
	e->direction = p->direction;
}

/* A flow that begins with p: all that no judge is asked about. */
static __always_inline void conntrack_begin(struct ct_entry *e, struct packet *p)
{
	__u8 flags = conntrack_close_flags(p);

	p->event = EVENT_POLICY_VERDICT;
	e->expires = p->now + conntrack_life(p, flags);
	e->created = p->now;
	e->reported = p->now >> REPORT_SHIFT;
	e->flags = flags;
	e->tcp_flags = p->tcp_flags;
	e->lo_to_hi.packets = !p->src_hi;
	e->lo_to_hi.bytes = p->src_hi ? 0 : p->len;
	e->hi_to_lo.packets = p->src_hi;
	e->hi_to_lo.bytes = p->src_hi ? p->len : 0;
}

/* Its ends and its verdict, but for the epoch. */
static __always_inline void conntrack_fill(struct ct_entry *e, struct packet *p, const struct judgement *j)
{
	conntrack_begin(e, p);
	conntrack_note(e, p, j);
	e->initiator = p->src_hi;
	e->proxy_port = 0;
	mac_copy(e->lo_mac, j->lo.mac);
	mac_copy(e->hi_mac, j->hi.mac);
}

/* over: the closed or reversed flow of the same tuple, if there is one. Its entry is written anew where it stands: to
 * take another from the LRU list and give this one back takes a microsecond. Only live ones: what is expired may be in
 * the sweep's hands.
 */
static __noinline enum verdict conntrack_create(struct packet *p, const struct judgement *j, struct ct_entry *over)
{
	struct ct_entry e;

	if (over) {
		over->epoch = p->epoch - 1; /* no other CPU takes a cached verdict from it before all is written */
		barrier();
		conntrack_fill(over, p, j);
		barrier();
		over->epoch = p->epoch;
		return NEXT;
	}
	conntrack_fill(&e, p, j);
	e.epoch = p->epoch;
	if (bpf_map_update_elem(&conntrack, &p->key, &e, BPF_ANY)) {
		p->event = 0;
		return drop(p, DROP_CT_INSERT);
	}
	return NEXT;
}

/* Both rulings as one word. */
static __always_inline void conntrack_sentence(struct packet *p, const struct judgement *j)
{
	p->cookie_out = j->out.cookie;
	p->cookie_in = j->in.cookie;
	p->action = ACTION_ALLOW;
	p->reason = REASON_NONE;
	if (j->out.action == ACTION_DENY) {
		p->action = ACTION_DENY;
		p->reason = j->out.reason;
		p->direction = DIR_EGRESS;
	} else if (j->in.action == ACTION_DENY) {
		p->action = ACTION_DENY;
		p->reason = j->in.reason;
		p->direction = DIR_INGRESS;
	} else if (j->out.action == ACTION_REDIRECT || j->in.action == ACTION_REDIRECT) {
		p->action = ACTION_DENY; /* no proxy listens: refused, never bypassed */
		p->reason = DROP_PROXY_DOWN;
		p->direction = j->out.action == ACTION_REDIRECT ? DIR_EGRESS : DIR_INGRESS;
	} else if (j->out.action == ACTION_AUDIT || j->in.action == ACTION_AUDIT) {
		p->action = ACTION_AUDIT;
	}
}

/* Only the pod's own device may bring packets with its address, and only this node's stack those of the node. */
static __always_inline enum verdict conntrack_source(struct packet *p)
{
	if (!(p->flags & PF_OWN) &&
	    (p->src_ifindex || (p->point == POINT_FROM_NETWORK && p->src_identity == IDENTITY_HOST)))
		return drop(p, DROP_INVALID_SOURCE_IP);
	return NEXT;
}

/* Judges a new flow, or an old one whose verdict is of another epoch. A global function: the verifier looks at it once,
 * not once for every way that leads to it.
 */
__noinline int conntrack_judge(struct ct_entry *e)
{
	struct packet *p = packet_get();
	struct ct_entry *over = NULL;
	struct side *src, *dst;
	struct judgement *j;
	enum verdict v;
	bool first_hi;

	if (!p)
		return V_DROP;
	j = &p->judgement;
	if (p->status == CT_NEW) {
		over = e;
		e = NULL;
	}
	first_hi = e ? e->initiator : p->src_hi;
	v = judge_flow(p, j, first_hi, p->echo);
	if (v != NEXT)
		return v;
	src = p->src_hi ? &j->hi : &j->lo;
	dst = p->src_hi ? &j->lo : &j->hi;
	if (p->flags & PF_ERROR) /* goes back to the sender of the packet it is about */
		dst = src;
	p->dst_identity = dst->identity;
	p->dst_ifindex = dst->ifindex;
	p->dst_ep = dst->ep;
	mac_copy(p->dst_mac, dst->mac);
	if (!(p->flags & PF_ERROR)) {
		p->src_identity = src->identity;
		p->src_ifindex = src->ifindex;
		p->src_ep = src->ep;
		v = conntrack_source(p);
		if (v != NEXT)
			return v;
		if (src->flags & PEER_NO_OWNER)
			return drop(p, DROP_INVALID_SOURCE_IP);
	}
	if (dst->flags & PEER_NO_OWNER)
		return drop(p, DROP_UNKNOWN_L3_TARGET);
	/* Another pod has the address by now: what was allowed to the former one, answers too, is not allowed to it. A
	 * pod's MAC stays when its device is made anew.
	 */
	if (e && (!mac_equal(e->lo_mac, j->lo.mac) || !mac_equal(e->hi_mac, j->hi.mac))) {
		e->expires = 0;
		return drop(p, DROP_CT_NO_FLOW);
	}
	conntrack_sentence(p, j);
	if (!e)
		return p->action == ACTION_DENY ? V_DROP : conntrack_create(p, j, over);
	conntrack_note(e, p, j);
	barrier();
	e->epoch = p->epoch; /* last: another CPU takes the cached verdict as soon as it sees this */
	return p->action == ACTION_DENY ? V_DROP : NEXT;
}

/* Has this very device, with this MAC, sent the sender's packets when the flow was judged in this epoch? Then its
 * address is its own: endpoints do not change within an epoch.
 */
static __always_inline bool conntrack_knows_source(struct __sk_buff *ctx, const struct packet *p,
						   const struct ct_entry *e)
{
	void *data, *end;

	if (!e || e->epoch != p->epoch || p->flags & PF_ERROR ||
	    (p->src_hi ? e->hi_ifindex : e->lo_ifindex) != p->ifindex || !packet_bytes(ctx, ETH_HLEN, &data, &end))
		return false;
	return mac_equal(((struct ethhdr *)data)->h_source, p->src_hi ? e->hi_mac : e->lo_mac);
}

/* The cached verdict and both ends, as the packet sees them. */
static __always_inline enum verdict conntrack_cached(struct packet *p, const struct ct_entry *e)
{
	bool dst_hi = !p->src_hi;

	if (p->flags & PF_ERROR)
		dst_hi = p->src_hi;
	p->dst_ifindex = dst_hi ? e->hi_ifindex : e->lo_ifindex;
	p->dst_identity = dst_hi ? e->hi_identity : e->lo_identity;
	p->dst_ep = dst_hi ? e->hi_ep : e->lo_ep;
	mac_copy(p->dst_mac, dst_hi ? e->hi_mac : e->lo_mac);
	if (!(p->flags & PF_ERROR)) {
		p->src_ifindex = dst_hi ? e->lo_ifindex : e->hi_ifindex;
		p->src_identity = dst_hi ? e->lo_identity : e->hi_identity;
		p->src_ep = dst_hi ? e->lo_ep : e->hi_ep;
	}
	p->cookie_out = e->cookie_out;
	p->cookie_in = e->cookie_in;
	p->action = e->action;
	if (e->action != ACTION_ALLOW && e->action != ACTION_AUDIT) {
		p->direction = e->direction;
		return drop(p, e->reason ? e->reason : DROP_INTERNAL);
	}
	return NEXT;
}

/* Who sends an ICMP error need not be an end of the flow. */
static __noinline enum verdict conntrack_error_source(struct packet *p)
{
	const struct settings *s = settings_get();
	struct side side = {};

	if (!s)
		return drop(p, DROP_INTERNAL);
	if (p->flags & PF_OWN)
		return NEXT;
	judge_peer(s, &p->src, &side);
	p->src_identity = side.identity;
	p->src_ifindex = side.ifindex;
	if (side.flags & PEER_NO_OWNER)
		return drop(p, DROP_INVALID_SOURCE_IP);
	return conntrack_source(p);
}

/* A packet of a live, allowed flow: counters, life, and whether it is worth an event. */
static __always_inline void conntrack_count(const struct settings *s, struct packet *p, struct ct_entry *e)
{
	__u64 expires;
	__u8 flags = e->flags, seen;

	if (p->src_hi) {
		e->hi_to_lo.packets++;
		e->hi_to_lo.bytes += p->len;
	} else {
		e->lo_to_hi.packets++;
		e->lo_to_hi.bytes += p->len;
	}
	if (p->status == CT_REPLY && !(flags & CTF_SEEN_REPLY)) {
		flags |= CTF_SEEN_REPLY;
		p->event = EVENT_TRACE;
	}
	if (p->proto == IPPROTO_TCP) {
		flags |= conntrack_close_flags(p);
		seen = e->tcp_flags | p->tcp_flags;
		if (seen != e->tcp_flags) {
			if ((seen ^ e->tcp_flags) & (TCP_FIN | TCP_RST))
				p->event = EVENT_TRACE;
			e->tcp_flags = seen;
		}
	}
	if (flags != e->flags)
		e->flags = flags;
	expires = p->now + conntrack_life(p, flags);
	/* Not for less than a second: the entry's cache line stays clean on the other CPUs. */
	if (expires > e->expires + SECOND ||
	    (p->proto == IPPROTO_TCP && conntrack_closing(flags) && expires < e->expires))
		e->expires = expires;
	if (s->report_interval && (__u32)(p->now >> REPORT_SHIFT) - e->reported >= s->report_interval >> REPORT_SHIFT) {
		e->reported = p->now >> REPORT_SHIFT;
		p->event = EVENT_TRACE;
	}
}

/* Holds the verdict that this entry has? Not that of a flow that begins the other way round. One that begins the same way
 * has the same ends, and within an epoch nothing of them and of the rules changes: the judges would say the same again.
 */
static __always_inline bool conntrack_holds(const struct packet *p, const struct ct_entry *e)
{
	return e && e->epoch == p->epoch && (p->status != CT_NEW || e->initiator == p->src_hi);
}

/* Verdict of the flow that conntrack_find named. */
static __always_inline enum verdict conntrack_verdict(struct packet *p, struct ct_entry *e)
{
	const struct settings *s = settings_get();
	bool begin = p->status == CT_NEW;
	enum verdict v;

	if (!s)
		return drop(p, DROP_INTERNAL);
	if (conntrack_holds(p, e)) {
		v = conntrack_cached(p, e);
		if (v == NEXT && !(p->flags & PF_ERROR))
			v = conntrack_source(p);
		if (v == NEXT && begin)
			conntrack_begin(e, p);
	} else {
		v = conntrack_judge(e);
	}
	if (v == NEXT && p->flags & PF_ERROR)
		return conntrack_error_source(p);
	if (v == NEXT && e && !begin)
		conntrack_count(s, p, e);
	if (v == NEXT && p->flags & PF_FIRST && !(p->flags & PF_NATTED))
		v = fragment_store(p);
	return v;
}
