/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "types.h"

#include <bpf/bpf_helpers.h>

/*
 * All maps, flat (an outer map-in-map write costs an RCU grace period). max_entries here are the defaults;
 * internal/datapath sets the configured sizes before load. Only the maps named (LRU) may forget by themselves.
 */

#define MAP(NAME, TYPE, KEY, VALUE, MAX, FLAGS) \
	struct { \
		__uint(type, TYPE); \
		__type(key, KEY); \
		__type(value, VALUE); \
		__uint(max_entries, MAX); \
		__uint(map_flags, FLAGS); \
	} NAME SEC(".maps")

/* endpoints: the pods of this node.
 * ifindex of the veth's host side -> identity, subjects, addresses.
 * Written by internal/datapath; read by pod.bpf.c and host.bpf.c.
 * Sized for 4096 pods.
 */
MAP(endpoints, BPF_MAP_TYPE_HASH, __u32, struct endpoint, 4096, 0);

/* peers: who has an address.
 * exact address -> identity, device if local, node.
 * Written by internal/datapath; read by every program.
 * 512k, as many as the field's address cache; allocated on demand.
 */
MAP(peers, BPF_MAP_TYPE_HASH, struct addr, struct peer, 512000, BPF_F_NO_PREALLOC);

/* prefixes: who is behind a CIDR, asked only when peers has no row.
 * CIDR -> identity, flags.
 * Written by internal/datapath; read by every program.
 * 64k CIDRs.
 */
MAP(prefixes, BPF_MAP_TYPE_LPM_TRIE, struct prefix_key, struct peer, 65536, BPF_F_NO_PREALLOC);

/* policy_peers: which verdict table a subject applies to a peer.
 * (subject, identity) -> table; (subject, 0) is everyone else and must exist for a subject to be usable.
 * Written by internal/datapath; read by policy.h.
 * One row per subject and selected identity.
 */
MAP(policy_peers, BPF_MAP_TYPE_HASH, struct policy_peer_key, struct policy_peer, 262144, BPF_F_NO_PREALLOC);

/* policy_ports: the verdict tables. Rows of a table never change once a subject points to it.
 * (table, protocol, port) -> verdict.
 * Written by internal/datapath; read by policy.h.
 * Tables are shared by content, so this grows with distinct rules, not with pods.
 */
MAP(policy_ports, BPF_MAP_TYPE_HASH, struct policy_port_key, struct policy_verdict, 262144, BPF_F_NO_PREALLOC);

/* policy_ranges: port ranges of verdict tables, as prefixes.
 * (table, protocol, port prefix) -> verdict.
 * Written by internal/datapath; read by policy.h when the table says TABLE_RANGES.
 * At most 30 rows per range.
 */
MAP(policy_ranges, BPF_MAP_TYPE_LPM_TRIE, struct policy_range_key, struct policy_verdict, 65536, BPF_F_NO_PREALLOC);

/* conntrack (LRU): live flows, one entry for both directions and both pods.
 * canonical tuple -> initiator, cached verdict and its epoch, identities, counters.
 * Written by conntrack.h, swept by internal/datapath; read by the same.
 * 524,288 flows.
 */
MAP(conntrack, BPF_MAP_TYPE_LRU_HASH, struct ct_key, struct ct_entry, 524288, 0);

/* nat (LRU): source translations, two rows each.
 * tuple as sent / as it returns -> translated / original source.
 * Written by nat.h, swept by internal/datapath; read by nat.h.
 * 262,144 rows.
 */
MAP(nat, BPF_MAP_TYPE_LRU_HASH, struct nat_key, struct nat_entry, 262144, 0);

/* fragments (LRU): ports of datagrams whose later fragments have none.
 * (source, destination, id, protocol) -> ports.
 * Written and read by fragment.h.
 * 8192, as in the field.
 */
MAP(fragments, BPF_MAP_TYPE_LRU_HASH, struct frag_key, struct frag_entry, 8192, 0);

/* nodes: the other nodes of the cluster.
 * underlay address -> node, what the way there takes.
 * Written by internal/datapath, path MTU and last use by overlay.h; read by overlay.h.
 * 16k addresses.
 */
MAP(nodes, BPF_MAP_TYPE_HASH, struct addr, struct node, 16384, BPF_F_NO_PREALLOC);

/* settings: what may change while the programs run.
 * 0 -> struct settings.
 * Written by internal/datapath; read by every program.
 * One element.
 */
MAP(settings, BPF_MAP_TYPE_ARRAY, __u32, struct settings, 1, 0);

/* epoch: number of the policy in force; a cached verdict of another epoch is judged anew.
 * 0 -> epoch.
 * Written by internal/datapath after every change of rules, identities or endpoints; read by every program.
 * One element.
 */
MAP(epoch, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);

/* counters: packets and bytes by fate.
 * reason * 4 + direction -> packets, bytes per CPU. Reason 0 is forwarded.
 * Written by finish.h; read by internal/datapath.
 * 256 reasons x 4.
 */
MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, 1024, 0);

/* lost: events that found the ring full.
 * 0 -> events per CPU.
 * Written by event.h; read by internal/datapath.
 * One element.
 */
MAP(lost, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, 1, 0);

/* events: flow events.
 * ring buffer of struct event.
 * Written by event.h; read by internal/datapath.
 * 8 MiB.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} events SEC(".maps");
