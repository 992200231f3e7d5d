//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#include "parse.h"

#include "conntrack.h"
#include "finish.h"
#include "route.h"
#include "source.h"

/* Programs that only the benchmark runs: floors to subtract, lookups with random keys, and the pod program with what
 * a test run cannot vary (a new flow per run) or with what was not chosen (32-bit addresses).
 */

#define PEERS	       131072 /* 10.128.0.0/15, identities 65536 + n: bench.go fills them in */
#define FIRST_PEER     0x0a800000
#define FIRST_IDENTITY 65536
#define TABLES	       16
#define TABLE_PORTS    1000 /* of each table: 1..1000 */

static __always_inline __u32 any(void)
{
	return bpf_get_prandom_u32();
}

SEC("tc/empty")
int empty(struct __sk_buff *ctx)
{
	return TC_ACT_OK;
}

/* Floor of the programs that draw one random number. */
SEC("tc/random")
int random1(struct __sk_buff *ctx)
{
	return any() == 1 ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("tc/random2")
int random2(struct __sk_buff *ctx)
{
	return any() == 1 && any() == 2 ? TC_ACT_SHOT : any() == 3;
}

SEC("tc/peer_lookup")
int peer_lookup(struct __sk_buff *ctx)
{
	const struct settings *s = settings_get();
	struct side side;
	struct addr a __attribute__((aligned(8)));

	if (!s)
		return TC_ACT_SHOT;
	addr_v4(&a, bpf_htonl(FIRST_PEER + any() % PEERS));
	judge_peer(s, &a, &side);
	return side.identity == s->world4 ? TC_ACT_SHOT : TC_ACT_OK;
}

/* Exact rows of one table, all TABLES x TABLE_PORTS of them in turn, without the peer's row. */
SEC("tc/policy_ports")
int policy_row(struct __sk_buff *ctx)
{
	__u32 r = any();
	const struct policy_verdict *row;

	row = policy_table(100 + r % TABLES, 0, IPPROTO_TCP, bpf_htons(1 + (r >> 8) % TABLE_PORTS));
	return row && row->action == ACTION_ALLOW ? TC_ACT_OK : TC_ACT_SHOT;
}

/* Peer's row and table row: what one side's policy costs. */
SEC("tc/policy_lookup")
int policy_random(struct __sk_buff *ctx)
{
	struct ruling r;
	__u32 n = any();

	policy_lookup(2, FIRST_IDENTITY + n % PEERS, IPPROTO_TCP, bpf_htons(80), &r);
	return r.action == ACTION_ALLOW ? TC_ACT_OK : TC_ACT_SHOT;
}

/* pod_egress with another peer and another port for every run. The route is left out: it is no part of a judgement. */
SEC("tc/first_packet")
int first_packet(struct __sk_buff *ctx)
{
	struct packet *p = packet_new(ctx, POINT_FROM_ENDPOINT);
	struct ct_entry *e = NULL;
	enum verdict v;

	if (!p)
		return TC_ACT_SHOT;
	ctx->mark = 0;
	ctx->priority = 0;
	v = parse_packet(ctx, p);
	p->dst.w[3] = bpf_htonl(FIRST_PEER + any() % PEERS);
	p->sport = any();
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
	return finish(ctx, p, v == NEXT ? V_HOST : v, DIR_EGRESS);
}

/* ---- the established path with 32-bit addresses, for the decision on 128-bit keys ---- */

struct ct_key4 {
	__be32 lo;
	__be32 hi;
	__be16 lo_port;
	__be16 hi_port;
	__u8 proto;
	__u8 role;
	__u16 pad;
};

/* conntrack4: conntrack with 16-byte keys.
 * 32-bit canonical tuple -> the same entry.
 * Written by bench.go, read by pod_egress4.
 * As conntrack.
 */
MAP(conntrack4, BPF_MAP_TYPE_LRU_HASH, struct ct_key4, struct ct_entry, 524288, 0);

/* parse_packet without IPv6, addresses as they stand in the header. */
static __always_inline enum verdict parse4(struct __sk_buff *ctx, struct packet *p, __be32 *src, __be32 *dst)
{
	void *data, *end;
	struct iphdr *ip;
	__u32 total, header;
	__u64 sum = 0;

	if (ctx->vlan_present)
		return drop(p, DROP_VLAN);
	if (!packet_bytes(ctx, ETH_HLEN + sizeof(*ip), &data, &end))
		return drop(p, DROP_INVALID_PACKET);
	p->ethertype = ((struct ethhdr *)data)->h_proto;
	if (p->ethertype != bpf_htons(ETH_P_IP))
		return drop(p, DROP_UNSUPPORTED_L3);
	ip = data + ETH_HLEN;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || total < header || total + ETH_HLEN > p->len)
		return drop(p, DROP_INVALID_PACKET);
	*src = ip->saddr;
	*dst = ip->daddr;
	p->flags |= PF_L3 | PF_V4;
	p->proto = ip->protocol;
	p->ttl = ip->ttl;
	p->l4_off = ETH_HLEN + header;
	p->l4_end = ETH_HLEN + total;
	p->frag_start = p->l4_off;
	for (int i = 0; i < 5; i++)
		sum += ((__u32 *)ip)[i];
	if (ip->frag_off & bpf_htons(0x3fff)) {
		enum verdict v = fragment_v4(p, bpf_ntohs(ip->frag_off), ip->id);

		if (v != NEXT)
			return v;
	}
	if (header > sizeof(*ip))
		return drop(p, DROP_IP_OPTION);
	if (csum_fold(sum))
		return drop(p, DROP_INVALID_PACKET);
	return parse_l4(ctx, p);
}

/* source_guard on 32 bits. */
static __always_inline enum verdict guard4(struct __sk_buff *ctx, struct packet *p, __be32 src, __be32 dst)
{
	const struct settings *s = settings_get();
	__u32 w = bpf_ntohl(dst);
	void *data, *end;

	if (!s)
		return drop(p, DROP_INTERNAL);
	if (p->proto == IPPROTO_UDP && p->sport == bpf_htons(67))
		return drop(p, DROP_DHCP_SERVER);
	if (w >> 28 == 14 || w == 0xffffffff)
		return drop(p, DROP_MULTICAST);
	if (!packet_bytes(ctx, ETH_HLEN, &data, &end))
		return drop(p, DROP_INVALID_PACKET);
	if (!mac_equal(((struct ethhdr *)data)->h_dest, s->gateway_mac))
		return drop(p, DROP_UNSUPPORTED_L2);
	if (w >> 24 == 0 || w >> 24 == 127 || w >> 28 == 15 || src == dst)
		return drop(p, DROP_UNROUTABLE);
	return p->ttl ? NEXT : drop(p, DROP_TTL);
}

SEC("tc/pod_egress4")
int pod_egress4(struct __sk_buff *ctx)
{
	struct packet *p = packet_new(ctx, POINT_FROM_ENDPOINT);
	struct ct_entry *e = NULL;
	struct ct_key4 key = {};
	__be32 src = 0, dst = 0;
	enum verdict v;
	bool echo, hi;

	if (!p)
		return TC_ACT_SHOT;
	ctx->mark = 0;
	ctx->priority = 0;
	v = parse4(ctx, p, &src, &dst);
	if (v == NEXT) {
		hi = bpf_ntohl(dst) < bpf_ntohl(src);
		echo = is_echo(p);
		key.lo = hi ? dst : src;
		key.hi = hi ? src : dst;
		key.lo_port = hi ? p->dport : p->sport;
		key.hi_port = hi ? p->sport : p->dport;
		key.proto = p->proto;
		key.role = is_icmp(p->proto) ? hi != (echo && is_echo_reply(p)) : 0;
		p->src_hi = hi;
		p->echo = echo;
		e = bpf_map_lookup_elem(&conntrack4, &key);
		if (e && e->expires < p->now)
			e = NULL;
	}
	/* Only the established path is timed: everything else ends here. */
	if (v == NEXT && (!conntrack_knows_source(ctx, p, e) || p->flags & PF_ERROR))
		v = drop(p, DROP_CT_NO_FLOW);
	p->flags |= PF_OWN;
	if (v == NEXT)
		v = guard4(ctx, p, src, dst);
	if (v == NEXT)
		v = conntrack_find(p, e);
	if (v == NEXT)
		v = conntrack_verdict(p, e);
	if (v == NEXT)
		v = route_pod(ctx, p);
	return finish(ctx, p, v, DIR_EGRESS);
}

char _license[] SEC("license") = "Dual BSD/GPL";
