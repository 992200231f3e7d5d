/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "packet.h"

/* What a subject's rules say about a peer and a port. At most six probes, two in the common cases: an exact port, or a
 * table that allows or denies all.
 */

/* Verdict of a table for (protocol, port): the most specific row that matches, see policy.Row in internal/policy. */
static __always_inline const struct policy_verdict *policy_table(__u32 table, __u32 flags, __u8 proto, __be16 port)
{
	struct policy_port_key key = {.table = table, .port = port, .proto = proto};
	const struct policy_verdict *row;

	if (!(flags & TABLE_NO_PORTS)) {
		row = bpf_map_lookup_elem(&policy_ports, &key);
		if (row)
			return row;
	}
	if (flags & TABLE_RANGES) {
		struct policy_range_key range = {.prefixlen = 64, .table = table, .proto = proto, .port = port};

		row = bpf_map_lookup_elem(&policy_ranges, &range);
		if (row)
			return row;
	}
	key.port = 0;
	key.wild = 1;
	if (!(flags & TABLE_NO_PROTOS)) {
		row = bpf_map_lookup_elem(&policy_ports, &key);
		if (row)
			return row;
	}
	key.proto = 0;
	return bpf_map_lookup_elem(&policy_ports, &key);
}

static __noinline void policy_lookup(__u32 subject, __u32 identity, __u8 proto, __be16 port, struct ruling *out)
{
	struct policy_peer_key key = {.subject = subject, .identity = identity};
	const struct policy_verdict *row = NULL;
	const struct policy_peer *peer;

	out->action = ACTION_DENY;
	out->reason = DROP_NO_SUBJECT;
	out->cookie = 0;
	if (!subject)
		return;
	peer = bpf_map_lookup_elem(&policy_peers, &key);
	if (!peer) {
		key.identity = 0;
		peer = bpf_map_lookup_elem(&policy_peers, &key);
	}
	if (!peer)
		return;
	if (peer->table)
		row = policy_table(peer->table, peer->flags, proto, port);
	if (!row) {
		out->reason = DROP_POLICY;
		out->cookie = peer->cookie;
		return;
	}
	out->cookie = row->cookie;
	out->reason = REASON_NONE;
	out->action = row->action;
	if (row->action == ACTION_DENY && row->flags & VERDICT_AUTH)
		out->reason = DROP_AUTH_REQUIRED;
	else if (row->action == ACTION_DENY)
		out->reason = row->flags & VERDICT_EXPLICIT_DENY ? DROP_POLICY_DENY : DROP_POLICY;
	else if (row->action > ACTION_AUDIT) { /* a word of another version: deny */
		out->action = ACTION_DENY;
		out->reason = DROP_INTERNAL;
	}
}
