/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "fragment.h"
#include "icmp.h"
#include "packet.h"

/*
 * Masquerade: pods' packets that leave the cluster take the node's address and a port of nat_min..nat_max. Two rows
 * per translation, one per direction. A port is taken by creating the row of the way back, so two flows never share
 * one; ports on which a socket of this host hears the same peer are passed over.
 */

#define NAT_TRIES      32
#define NAT_IDLE_TCP   (8000 * 1000000000ULL)
#define NAT_IDLE_OTHER (60 * 1000000000ULL)
#define NAT_REFRESH    1000000000ULL

static __always_inline void nat_key(struct nat_key *key, const struct addr *src, const struct addr *dst, __be16 sport,
				    __be16 dport, __u8 proto, __u8 dir)
{
	key->src = *src;
	key->dst = *dst;
	key->sport = sport;
	key->dport = dport;
	key->proto = proto;
	key->dir = dir;
	key->pad = 0;
}

/* Offset of the checksum in the transport header. */
static __always_inline __u32 nat_csum_off(__u8 proto)
{
	return proto == IPPROTO_TCP ? 16 : proto == IPPROTO_UDP ? 6 : 2;
}

/* Offset of the port, or identifier, in the transport header. */
static __always_inline __u32 nat_port_off(__u8 proto, bool source)
{
	return is_icmp(proto) ? 4 : source ? 0 : 2;
}

/* Address of one end in the IP header at off. */
static __always_inline __u32 nat_addr_off(bool v4, bool source)
{
	return v4 ? (source ? 12 : 16) : (source ? 8 : 24);
}

/* Replaces one end's address. The checksum of the transport header follows where the packet has one that covers it. */
static __noinline enum verdict nat_set_addr(struct __sk_buff *ctx, struct packet *p, bool source, const struct addr *to)
{
	__u32 csum = p->l4_off + nat_csum_off(p->proto);
	bool v4 = p->flags & PF_V4;
	__u32 off = ETH_HLEN + nat_addr_off(v4, source);
	__u64 mangled = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	struct addr from = source ? p->src : p->dst, new = *to;

	if (v4) {
		if (!(p->flags & PF_LATER) && p->proto != IPPROTO_ICMP &&
		    bpf_l4_csum_replace(ctx, csum, from.w[3], new.w[3], BPF_F_PSEUDO_HDR | mangled | 4))
			return drop(p, DROP_INTERNAL);
		if (bpf_l3_csum_replace(ctx, ETH_HLEN + 10, from.w[3], new.w[3], 4) ||
		    bpf_skb_store_bytes(ctx, off, &new.w[3], 4, 0))
			return drop(p, DROP_INTERNAL);
	} else {
		__s64 diff = bpf_csum_diff(from.w, sizeof(from), new.w, sizeof(new), 0);

		if (diff < 0)
			return drop(p, DROP_INTERNAL);
		if (!(p->flags & PF_LATER)) {
			if (bpf_l4_csum_replace(ctx, csum, 0, diff, BPF_F_PSEUDO_HDR | mangled))
				return drop(p, DROP_INTERNAL);
			/* IPv6 has no header checksum, so the address and the transport checksum cancel out in a
			 * full checksum of the device; the helper has counted only the latter.
			 */
			bpf_csum_update(ctx, diff);
		}
		if (bpf_skb_store_bytes(ctx, off, &new, sizeof(new), 0))
			return drop(p, DROP_INTERNAL);
	}
	if (source)
		p->src = new;
	else
		p->dst = new;
	return NEXT;
}

/* Replaces one end's address and port. */
static __noinline enum verdict nat_rewrite(struct __sk_buff *ctx, struct packet *p, bool source, struct nat_entry *to)
{
	__be16 from = source ? p->sport : p->dport;
	__u64 mangled = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__be16 port = to->port;
	enum verdict v;

	v = nat_set_addr(ctx, p, source, &to->addr);
	if (v != NEXT)
		return v;
	if (!(p->flags & PF_LATER) && from != port &&
	    (bpf_l4_csum_replace(ctx, p->l4_off + nat_csum_off(p->proto), from, port, mangled | 2) ||
	     bpf_skb_store_bytes(ctx, p->l4_off + nat_port_off(p->proto, source), &port, 2, 0)))
		return drop(p, DROP_INTERNAL);
	if (source || is_icmp(p->proto))
		p->sport = port;
	if (!source || is_icmp(p->proto))
		p->dport = port;
	return NEXT;
}

/* Does a socket of this host already speak to, or wait for, what would come back? */
static __always_inline bool nat_host_socket(struct __sk_buff *ctx, const struct packet *p, const struct addr *masq,
					    __be16 port)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	__u32 size;

	if (is_icmp(p->proto))
		return false;
	if (p->flags & PF_V4) {
		t.ipv4.saddr = p->dst.w[3];
		t.ipv4.daddr = masq->w[3];
		t.ipv4.sport = p->dport;
		t.ipv4.dport = port;
		size = sizeof(t.ipv4);
	} else {
		__builtin_memcpy(t.ipv6.saddr, &p->dst, sizeof(t.ipv6.saddr));
		__builtin_memcpy(t.ipv6.daddr, masq, sizeof(t.ipv6.daddr));
		t.ipv6.sport = p->dport;
		t.ipv6.dport = port;
		size = sizeof(t.ipv6);
	}
	if (p->proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

static __always_inline __u32 nat_hash(const struct packet *p)
{
	const __u32 *w = (const __u32 *)&p->key;
	__u32 h = 0x9e3779b9;

	for (__u32 i = 0; i < sizeof(p->key) / 4; i++) {
		h ^= w[i];
		h *= 0x85ebca6b;
		h ^= h >> 15;
	}
	return h;
}

static __always_inline bool nat_idle(const struct packet *p, const struct nat_entry *row)
{
	return row->used + (p->proto == IPPROTO_TCP ? NAT_IDLE_TCP : NAT_IDLE_OTHER) < p->now;
}

/* Takes a port: the row of the way back first, which settles whose it is. */
static __noinline enum verdict nat_allocate(struct __sk_buff *ctx, struct packet *p, const struct addr *masq,
					    struct nat_entry *to)
{
	const struct settings *s = settings_get();
	struct nat_entry back = {.addr = p->src, .port = p->sport, .used = p->now};
	__u32 range, start;

	if (!s || addr_zero(masq) || s->nat_max < s->nat_min || !s->nat_min)
		return drop(p, DROP_NAT_NO_MAPPING);
	range = s->nat_max - s->nat_min + 1;
	start = nat_hash(p);
	to->addr = *masq;
	to->used = p->now;
#pragma clang loop unroll(disable)
	for (int i = 0; i < NAT_TRIES; i++) {
		__be16 port = bpf_htons(s->nat_min + (start + i) % range);
		struct nat_entry *row;
		struct nat_key key;

		/* Answers to the tunnel's port would be taken for a tunnel's. */
		if (s->tunnel && p->proto == IPPROTO_UDP && port == s->tunnel_port)
			continue;
		if (nat_host_socket(ctx, p, masq, port))
			continue;
		nat_key(&key, &p->dst, masq, is_icmp(p->proto) ? port : p->dport, port, p->proto, 1);
		if (bpf_map_update_elem(&nat, &key, &back, BPF_NOEXIST)) {
			row = bpf_map_lookup_elem(&nat, &key);
			/* Ours, its other half lost; or nobody's any more. */
			if (!row || (!(addr_equal(&row->addr, &p->src) && row->port == p->sport) && !nat_idle(p, row)))
				continue;
			if (bpf_map_update_elem(&nat, &key, &back, BPF_ANY))
				continue;
		}
		to->port = port;
		nat_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto, 0);
		if (bpf_map_update_elem(&nat, &key, to, BPF_ANY))
			return drop(p, DROP_NAT_NO_MAPPING);
		return NEXT;
	}
	return drop(p, DROP_NAT_NO_MAPPING);
}

/* The way back of a translation may have been forgotten under pressure, or its port given away. */
static __noinline bool nat_alive(struct packet *p, struct nat_entry *row, const struct addr *masq)
{
	struct nat_entry *back;
	struct nat_key key;

	if (!addr_equal(&row->addr, masq))
		return false;
	if (row->used + NAT_REFRESH > p->now)
		return true;
	nat_key(&key, &p->dst, masq, is_icmp(p->proto) ? row->port : p->dport, row->port, p->proto, 1);
	back = bpf_map_lookup_elem(&nat, &key);
	if (!back || !addr_equal(&back->addr, &p->src) || back->port != p->sport)
		return false;
	row->used = p->now;
	return true;
}

static __noinline enum verdict nat_out(struct __sk_buff *ctx, struct packet *p, const struct addr *masq)
{
	struct nat_entry *row, to = {};
	struct nat_key key;
	enum verdict v;

	nat_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto, 0);
	row = bpf_map_lookup_elem(&nat, &key);
	if (row && nat_alive(p, row, masq)) {
		to = *row;
	} else {
		v = nat_allocate(ctx, p, masq, &to);
		if (v != NEXT)
			return v;
	}
	return nat_rewrite(ctx, p, true, &to);
}

/* Replaces n bytes that an ICMP checksum covers. Both offsets are even, from the start of the ICMP header. */
static __always_inline enum verdict nat_patch(struct __sk_buff *ctx, struct packet *p, __u32 off, void *from, void *to,
					      __u32 n)
{
	__s64 diff = bpf_csum_diff(from, n, to, n, 0);

	if (diff < 0 || bpf_skb_store_bytes(ctx, off, to, n, 0) ||
	    bpf_l4_csum_replace(ctx, p->l4_off + nat_csum_off(p->proto), 0, diff, 0))
		return drop(p, DROP_INTERNAL);
	return NEXT;
}

/* A 16-bit field that changes, widened: checksums want whole words. */
static __always_inline enum verdict nat_patch16(struct __sk_buff *ctx, struct packet *p, __u32 off, __u16 from,
						__u16 to)
{
	if (bpf_skb_store_bytes(ctx, off, &to, 2, 0) ||
	    bpf_l4_csum_replace(ctx, p->l4_off + nat_csum_off(p->proto), from, to, 2))
		return drop(p, DROP_INTERNAL);
	return NEXT;
}

/* A checksum after a change of what it covers (RFC 1624, equation 3). */
static __always_inline __u16 nat_csum_after(__u16 csum, __s64 diff)
{
	return csum_fold((__u64)(__u16)~csum + (__u32)diff);
}

/* Replaces one end of the packet inside an ICMP error, its checksums, and the error's own. */
static __noinline enum verdict nat_inner(struct __sk_buff *ctx, struct packet *p, bool source, struct nat_entry *to)
{
	struct addr from = source ? p->inner_src : p->inner_dst, new = to->addr;
	__u32 ip = p->l4_off + 8;
	bool v4 = p->flags & PF_V4;
	__u16 port = source ? p->inner_sport : p->inner_dport, new_port = to->port;
	__be32 words[2] = {port, new_port};
	__s64 addr_diff, port_diff;
	__u16 csum, sum;
	__u32 off;

	addr_diff = v4 ? bpf_csum_diff(&from.w[3], 4, &new.w[3], 4, 0)
		       : bpf_csum_diff(from.w, sizeof(from), new.w, sizeof(new), 0);
	port_diff = bpf_csum_diff(&words[0], 4, &words[1], 4, 0);
	if (addr_diff < 0 || port_diff < 0)
		return drop(p, DROP_INTERNAL);
	if (v4) {
		if (bpf_skb_load_bytes(ctx, ip + 10, &csum, 2) ||
		    nat_patch16(ctx, p, ip + 10, csum, nat_csum_after(csum, addr_diff)) != NEXT ||
		    nat_patch(ctx, p, ip + nat_addr_off(true, source), &from.w[3], &new.w[3], 4) != NEXT)
			return drop(p, DROP_INTERNAL);
	} else if (nat_patch(ctx, p, ip + nat_addr_off(false, source), &from, &new, sizeof(new)) != NEXT) {
		return V_DROP;
	}
	if (nat_patch16(ctx, p, p->inner_l4 + nat_port_off(p->inner_proto, source), port, new_port) != NEXT)
		return V_DROP;
	/* The inner transport checksum, if the error quotes it; UDP's zero means none. */
	off = p->inner_l4 + nat_csum_off(p->inner_proto);
	if (off + 2 <= p->l4_end && !bpf_skb_load_bytes(ctx, off, &csum, 2) &&
	    (csum || p->inner_proto != IPPROTO_UDP)) {
		sum = nat_csum_after(csum, port_diff);
		if (p->inner_proto != IPPROTO_ICMP)
			sum = nat_csum_after(sum, addr_diff);
		if (nat_patch16(ctx, p, off, csum, sum) != NEXT)
			return V_DROP;
	}
	return NEXT;
}

/* A pod's ICMP error about a packet that reached it through a translation. */
static __noinline enum verdict nat_error_out(struct __sk_buff *ctx, struct packet *p, const struct addr *masq)
{
	struct nat_entry *row, to;
	struct nat_key key;
	enum verdict v;

	v = icmp_inner(ctx, p);
	if (v != NEXT)
		return v;
	nat_key(&key, &p->inner_dst, &p->inner_src, p->inner_dport, p->inner_sport, p->inner_proto, 0);
	row = bpf_map_lookup_elem(&nat, &key);
	if (!row) /* about a flow that came to the pod's own address goes out under it */
		return bpf_map_lookup_elem(&conntrack, &p->key) ? V_STACK : drop(p, DROP_NAT_ICMP);
	to = *row;
	v = nat_inner(ctx, p, false, &to);
	if (v == NEXT)
		v = nat_set_addr(ctx, p, true, masq);
	return v;
}

/* What comes back from outside to the masquerade address: NEXT when it was a pod's and is the pod's again. */
static __noinline enum verdict nat_in(struct __sk_buff *ctx, struct packet *p)
{
	struct nat_entry *row, to;
	struct nat_key key;
	enum verdict v;

	if (p->flags & PF_ERROR) {
		if (icmp_inner(ctx, p) != NEXT)
			return V_STACK;
		nat_key(&key, &p->inner_dst, &p->dst, p->inner_dport, p->inner_sport, p->inner_proto, 1);
	} else {
		nat_key(&key, &p->src, &p->dst, p->sport, p->dport, p->proto, 1);
	}
	row = bpf_map_lookup_elem(&nat, &key);
	if (!row)
		return V_STACK;
	if (row->used + NAT_REFRESH < p->now)
		row->used = p->now;
	to = *row;
	p->flags |= PF_NATTED;
	if (p->flags & PF_FIRST) { /* under the addresses that the later ones bear */
		v = fragment_store(p);
		if (v != NEXT)
			return v;
	}
	if (!(p->flags & PF_ERROR))
		return nat_rewrite(ctx, p, false, &to);
	v = nat_inner(ctx, p, true, &to);
	if (v == NEXT)
		v = nat_set_addr(ctx, p, false, &to.addr);
	return v;
}

/* A packet of a pod at an uplink: masquerade it unless it stays in the cluster or answers who came from outside. */
static __always_inline enum verdict nat_masquerade(struct __sk_buff *ctx, struct packet *p, const struct addr *masq)
{
	struct ct_entry *e;
	enum verdict v;

	if (p->flags & PF_ERROR)
		return nat_error_out(ctx, p, masq);
	if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP && !is_echo(p))
		return drop(p, DROP_NAT_UNSUPPORTED);
	conntrack_key(p, &p->src, &p->dst, p->sport, p->dport, p->proto, is_echo(p), is_echo_reply(p));
	e = bpf_map_lookup_elem(&conntrack, &p->key);
	if (e && e->expires > p->now) {
		if (e->initiator != p->src_hi)
			return V_STACK;
		if (!(e->flags & CTF_NAT))
			e->flags |= CTF_NAT;
	}
	if (p->flags & PF_FIRST) {
		v = fragment_store(p);
		if (v != NEXT)
			return v;
	}
	v = nat_out(ctx, p, masq);
	return v == NEXT ? V_STACK : v;
}
