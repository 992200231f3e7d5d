//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#include "parse.h"

#include "conntrack.h"
#include "export.h"
#include "finish.h"
#include "route.h"
#include "source.h"

/* tcx ingress of the host side of a pod's veth: all that a pod sends. Both policies of a same-node flow are judged
 * here, for redirect_peer passes no other program.
 */
SEC("tc/pod_egress")
int pod_egress(struct __sk_buff *ctx)
{
	struct packet *p = packet_new(ctx, POINT_FROM_ENDPOINT);
	struct ct_entry *e = NULL;
	enum verdict v;

	if (!p)
		return TC_ACT_SHOT;
	ctx->mark = 0; /* a pod's own marks mean nothing here */
	ctx->priority = 0;
	v = parse_packet(ctx, p);
	if (v == NEXT)
		e = conntrack_lookup(ctx, p);
	if (v == NEXT && conntrack_knows_source(ctx, p, e))
		p->flags |= PF_OWN;
	else if (v == NEXT)
		v = source_check(ctx, p);
	if (v == NEXT)
		v = source_guard(ctx, p);
	if (v == NEXT)
		v = conntrack_find(p, e);
	if (v == NEXT)
		v = conntrack_verdict(p, e);
	if (v == NEXT)
		v = route_pod(ctx, p);
	return finish(ctx, p, v, DIR_EGRESS);
}

char _license[] SEC("license") = "Dual BSD/GPL";
