/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "packet.h"
#include "policy.h"

/*
 * A flow before its two judges: egress policy of who began it and ingress policy of who answers, where they are pods
 * of this node. Always asked in the initiator's direction, whichever packet raised the question.
 */

/* Who has an address: peers, else prefixes, else the world. */
static __always_inline void judge_peer(const struct settings *s, const struct addr *a, struct side *side)
{
	const struct peer *peer = bpf_map_lookup_elem(&peers, a);

	if (!peer) {
		struct prefix_key key = {.prefixlen = 128, .addr = *a};

		peer = bpf_map_lookup_elem(&prefixes, &key);
	}
	side->ifindex = 0;
	side->flags = 0;
	if (!peer) {
		side->identity = addr_mapped(a) ? s->world4 : s->world6;
		return;
	}
	side->identity = peer->identity;
	side->flags = peer->flags;
	if (peer->flags & PEER_LOCAL)
		side->ifindex = peer->ifindex;
}

/* own: the pod that sent the packet, found by its device; peers need not be asked about it. */
static __always_inline enum verdict judge_side(struct packet *p, const struct settings *s, const struct addr *a,
					       bool own, struct side *side)
{
	const struct endpoint *ep;

	side->subject_in = 0;
	side->subject_out = 0;
	side->ep = 0;
	side->ep_flags = 0;
	__builtin_memset(side->mac, 0, sizeof(side->mac));
	if (own) {
		side->ifindex = p->ifindex;
		side->flags = PEER_LOCAL;
	} else {
		judge_peer(s, a, side);
	}
	if (side->flags & PEER_LOCAL) {
		ep = bpf_map_lookup_elem(&endpoints, &side->ifindex);
		if (!ep)
			return drop(p, DROP_ENDPOINT_NOT_READY);
		if (!addr_equal(a, addr_mapped(a) ? &ep->v4 : &ep->v6)) /* the device is another's by now */
			return drop(p, DROP_UNKNOWN_L3_TARGET);
		side->identity = ep->identity;
		side->subject_in = ep->subject_in;
		side->subject_out = ep->subject_out;
		side->ep = ep->id;
		side->ep_flags = ep->flags;
		mac_copy(side->mac, ep->mac);
		if (ep->flags & EP_LOCKDOWN) {
			side->subject_in = 0;
			side->subject_out = 0;
		}
	}
	if (!side->identity)
		return drop(p, DROP_INVALID_IDENTITY);
	return NEXT;
}

/* A denial that audit mode turns into a report. Not for a missing subject: that is no rule's word. */
static __always_inline void judge_audit(const struct settings *s, const struct side *of, struct ruling *r)
{
	if (r->action == ACTION_DENY &&
	    (r->reason == DROP_POLICY || r->reason == DROP_POLICY_DENY || r->reason == DROP_AUTH_REQUIRED) &&
	    (s->flags & SETTING_AUDIT || of->ep_flags & EP_AUDIT)) {
		r->action = ACTION_AUDIT;
		r->reason = REASON_NONE;
	}
}

/* Port that the rules are asked about: the responder's; ICMP: the type of the request. */
static __always_inline __be16 judge_port(const struct ct_key *key, bool initiator_hi, bool echo)
{
	if (echo)
		return key->proto == IPPROTO_ICMP ? bpf_htons(ICMP_ECHO) : bpf_htons(ICMPV6_ECHO_REQUEST);
	return initiator_hi ? key->lo_port : key->hi_port;
}

static __noinline enum verdict judge_flow(struct packet *p, struct judgement *j, bool initiator_hi, bool echo)
{
	const struct settings *s = settings_get();
	struct side *from = initiator_hi ? &j->hi : &j->lo;
	struct side *to = initiator_hi ? &j->lo : &j->hi;
	bool own_lo, own_hi;
	enum verdict v;
	__be16 port;

	if (!s)
		return drop(p, DROP_INTERNAL);
	own_lo = p->flags & PF_OWN && addr_equal(&p->src, &p->key.lo);
	own_hi = p->flags & PF_OWN && addr_equal(&p->src, &p->key.hi);
	v = judge_side(p, s, &p->key.lo, own_lo, &j->lo);
	if (v == NEXT)
		v = judge_side(p, s, &p->key.hi, own_hi, &j->hi);
	if (v != NEXT)
		return v;

	port = judge_port(&p->key, initiator_hi, echo);
	j->out = (struct ruling){.action = ACTION_ALLOW};
	j->in = (struct ruling){.action = ACTION_ALLOW};
	if (from->flags & PEER_LOCAL) {
		policy_lookup(from->subject_out, to->identity, p->key.proto, port, &j->out);
		judge_audit(s, from, &j->out);
	}
	if (j->out.action != ACTION_DENY && to->flags & PEER_LOCAL) {
		policy_lookup(to->subject_in, from->identity, p->key.proto, port, &j->in);
		judge_audit(s, to, &j->in);
	}
	return NEXT;
}
