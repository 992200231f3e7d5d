/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "packet.h"

/* Conntrack keys, and those of the packets that ICMP errors are about. */

static __always_inline bool addr_less(const struct addr *a, const struct addr *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	if (x[0] != y[0])
		return bpf_be64_to_cpu(x[0]) < bpf_be64_to_cpu(y[0]);
	return bpf_be64_to_cpu(x[1]) < bpf_be64_to_cpu(y[1]);
}

/* Canonical key of a packet from src to dst, in p->key; p->src_hi says which end sent it. For ICMP the role says which
 * end asks, so what one side asks never passes for an answer to the other, whatever the identifiers, and whether it is
 * an echo: else one whose identifier is the number of another type would open the way for that type.
 */
static __always_inline void conntrack_key(struct packet *p, const struct addr *src, const struct addr *dst,
					  __be16 sport, __be16 dport, __u8 proto, bool echo, bool reply)
{
	struct ct_key *key = &p->key;
	bool hi = addr_less(dst, src) || (addr_equal(src, dst) && bpf_ntohs(dport) < bpf_ntohs(sport));

	if (hi) {
		addr_copy(&key->lo, dst);
		addr_copy(&key->hi, src);
		key->lo_port = dport;
		key->hi_port = sport;
	} else {
		addr_copy(&key->lo, src);
		addr_copy(&key->hi, dst);
		key->lo_port = sport;
		key->hi_port = dport;
	}
	key->proto = proto;
	key->role = is_icmp(proto) ? (hi != (echo && reply)) | !echo << 1 : 0;
	key->pad = 0;
	p->src_hi = hi;
	p->echo = echo;
}

/* Inner transport header at p->inner_l4: ports, or the identifier of an echo. */
static __always_inline enum verdict icmp_inner_l4(struct __sk_buff *ctx, struct packet *p)
{
	bool echo = false, reply = false;
	__u8 h[8];

	if (p->inner_l4 + sizeof(h) > p->l4_end || bpf_skb_load_bytes(ctx, p->inner_l4, h, sizeof(h)))
		return drop(p, DROP_CT_NO_FLOW);
	switch (p->inner_proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		p->inner_sport = *(__be16 *)&h[0];
		p->inner_dport = *(__be16 *)&h[2];
		break;
	case IPPROTO_ICMP:
		echo = h[0] == ICMP_ECHO || h[0] == ICMP_ECHOREPLY;
		reply = h[0] == ICMP_ECHOREPLY;
		if (icmp4_error(h[0])) /* RFC 1122 3.2.2: no error about an error */
			return drop(p, DROP_CT_NO_FLOW);
		break;
	case IPPROTO_ICMPV6:
		echo = h[0] == ICMPV6_ECHO_REQUEST || h[0] == ICMPV6_ECHO_REPLY;
		reply = h[0] == ICMPV6_ECHO_REPLY;
		if (h[0] < 128)
			return drop(p, DROP_CT_NO_FLOW);
		break;
	default:
		return drop(p, DROP_CT_NO_FLOW);
	}
	if (is_icmp(p->inner_proto)) {
		p->inner_sport = echo ? *(__be16 *)&h[4] : bpf_htons(h[0]);
		p->inner_dport = p->inner_sport;
	}
	conntrack_key(p, &p->inner_src, &p->inner_dst, p->inner_sport, p->inner_dport, p->inner_proto, echo, reply);
	return NEXT;
}

/* The packet that an ICMP error is about, and its conntrack key. */
static __noinline enum verdict icmp_inner(struct __sk_buff *ctx, struct packet *p)
{
	__u32 off = p->l4_off + 8;
	__be32 rest;

	/* RFC 791: every host takes 68 bytes; RFC 8200 5: every link takes 1280. Less is an attack. */
	if (bpf_skb_load_bytes(ctx, p->l4_off + 4, &rest, sizeof(rest)))
		return drop(p, DROP_CT_INVALID_HEADER);
	if (p->flags & PF_V4) {
		struct iphdr ip;

		if (p->icmp_type == ICMP_DEST_UNREACH && p->icmp_code == ICMP_FRAG_NEEDED &&
		    (bpf_ntohl(rest) & 0xffff) < 68)
			return drop(p, DROP_INVALID_PACKET);
		if (off + sizeof(ip) > p->l4_end || bpf_skb_load_bytes(ctx, off, &ip, sizeof(ip)))
			return drop(p, DROP_CT_NO_FLOW);
		if (ip.version != 4 || ip.ihl < 5 || ip.frag_off & bpf_htons(0x1fff))
			return drop(p, DROP_CT_NO_FLOW);
		addr_v4(&p->inner_src, ip.saddr);
		addr_v4(&p->inner_dst, ip.daddr);
		p->inner_proto = ip.protocol;
		p->inner_l4 = off + ip.ihl * 4;
	} else {
		struct ipv6hdr ip;
		__u8 h[8];

		if (p->icmp_type == ICMPV6_PKT_TOOBIG && bpf_ntohl(rest) < 1280)
			return drop(p, DROP_INVALID_PACKET);
		if (off + sizeof(ip) > p->l4_end || bpf_skb_load_bytes(ctx, off, &ip, sizeof(ip)))
			return drop(p, DROP_CT_NO_FLOW);
		addr_v6(&p->inner_src, &ip.saddr);
		addr_v6(&p->inner_dst, &ip.daddr);
		if (ip.version != 6 || addr_mapped(&p->inner_src) || addr_mapped(&p->inner_dst))
			return drop(p, DROP_CT_NO_FLOW);
		p->inner_proto = ip.nexthdr;
		p->inner_l4 = off + sizeof(ip);
		if (ip.nexthdr == IPPROTO_FRAGMENT) { /* the one header that the network itself asks for */
			if (p->inner_l4 + sizeof(h) > p->l4_end || bpf_skb_load_bytes(ctx, p->inner_l4, h, sizeof(h)) ||
			    h[2] || h[3] & 0xf8)
				return drop(p, DROP_CT_NO_FLOW);
			p->inner_proto = h[0];
			p->inner_l4 += sizeof(h);
		}
	}
	if (!addr_equal(&p->inner_src, &p->dst)) /* an error goes back to who sent the packet */
		return drop(p, DROP_CT_NO_FLOW);
	return icmp_inner_l4(ctx, p);
}
