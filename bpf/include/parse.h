/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "fragment.h"
#include "packet.h"

/*
 * Frame -> addresses, protocol, ports. Lengths are those of the IP header: a trailer behind it is ignored, a header
 * that says more than there is drops the packet. Every offset that leaves this file lies inside the packet.
 */

#define EXTHDR_MAX 8

struct option_walk {
	__u8 byte[64]; /* 40 are used: an index is masked where the verifier looks */
	__u32 len;
	__u32 at;
	__u32 bad;
};

static __always_inline __u8 parse_option_byte(const struct option_walk *w, __u32 i)
{
	asm volatile("" : "+r"(i)); /* or clang knows better than the verifier and leaves the mask out */
	return w->byte[i & 63];
}

/* One option; 1 ends the walk. */
static int parse_option(__u32 n, struct option_walk *w)
{
	__u8 kind, size;

	if (w->at >= w->len)
		return 1;
	kind = parse_option_byte(w, w->at);
	if (kind == IPOPT_EOL)
		return 1;
	if (kind == IPOPT_NOP) {
		w->at++;
		return 0;
	}
	size = parse_option_byte(w, w->at + 1);
	if (kind == IPOPT_LSRR || kind == IPOPT_SSRR || w->at + 1 >= w->len || size < 2 || w->at + size > w->len) {
		w->bad = 1;
		return 1;
	}
	w->at += size;
	return 0;
}

/* IPv4 options: adds their words to the header's checksum and drops source routes and broken lengths. With bpf_loop, for
 * in a loop the verifier walks every way through 40 bytes: 72,000 instructions on 6.18, over a million on 6.1.
 */
static __noinline enum verdict parse_options(struct __sk_buff *ctx, struct packet *p, __u64 sum)
{
	struct option_walk w = {.len = p->l4_off - ETH_HLEN - sizeof(struct iphdr)};
	__u32 len = w.len;

	if (len < 4)
		return drop(p, DROP_INVALID_PACKET);
	asm volatile("" : "+r"(len)); /* two tests, not one of a difference: see event_send */
	if (len > 40 || bpf_skb_load_bytes(ctx, ETH_HLEN + sizeof(struct iphdr), w.byte, len))
		return drop(p, DROP_INVALID_PACKET);
	for (__u32 n = 0; n < 10; n++)
		sum += ((__u32 *)w.byte)[n];
	if (csum_fold(sum))
		return drop(p, DROP_INVALID_PACKET);
	if (bpf_loop(40, parse_option, &w, 0) < 0 || w.bad)
		return drop(p, DROP_IP_OPTION);
	return NEXT;
}

static __always_inline enum verdict parse_v4(struct __sk_buff *ctx, struct packet *p)
{
	void *data, *end;
	struct iphdr *ip;
	__u32 total, header;
	__u64 sum = 0;

	if (!packet_bytes(ctx, ETH_HLEN + sizeof(*ip), &data, &end))
		return drop(p, DROP_INVALID_PACKET);
	ip = data + ETH_HLEN;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || total < header || total + ETH_HLEN > p->len)
		return drop(p, DROP_INVALID_PACKET);
	addr_v4(&p->src, ip->saddr);
	addr_v4(&p->dst, ip->daddr);
	p->flags |= PF_L3 | PF_V4;
	p->proto = ip->protocol;
	p->ttl = ip->ttl;
	p->l4_off = ETH_HLEN + header;
	p->l4_end = ETH_HLEN + total;
	p->frag_start = p->l4_off;
	/* A sum that is wrong here stays wrong behind the TTL's update: no receiver would take it. */
	for (int i = 0; i < 5; i++)
		sum += ((__u32 *)ip)[i];
	if (ip->frag_off & bpf_htons(0x3fff)) {
		enum verdict v = fragment_v4(p, bpf_ntohs(ip->frag_off), ip->id);

		if (v != NEXT)
			return v;
	}
	if (header > sizeof(*ip))
		return parse_options(ctx, p, sum);
	if (csum_fold(sum))
		return drop(p, DROP_INVALID_PACKET);
	return NEXT;
}

static __always_inline bool is_exthdr(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_FRAGMENT || next == IPPROTO_AH ||
	       next == IPPROTO_DSTOPTS;
}

/* IPv6 extension headers up to the transport header or to the header of a later fragment. */
static __noinline enum verdict parse_exthdrs(struct __sk_buff *ctx, struct packet *p)
{
	__u32 off = ETH_HLEN + sizeof(struct ipv6hdr);
	__u32 end = p->l4_end;
	__u8 next = p->proto;
	bool fragmented = false;

#pragma clang loop unroll(disable)
	for (int i = 0; i < EXTHDR_MAX; i++) {
		__u8 h[8];
		__u32 len;

		if (!is_exthdr(next))
			break;
		if (off + sizeof(h) > end || bpf_skb_load_bytes(ctx, off, h, sizeof(h)))
			return drop(p, DROP_INVALID_EXTHDR);
		len = (h[1] + 1) * 8;
		switch (next) {
		case IPPROTO_HOPOPTS: /* RFC 8200 4.1: directly behind the IPv6 header or not at all */
			if (i)
				return drop(p, DROP_INVALID_EXTHDR);
			break;
		case IPPROTO_ROUTING: /* type 0 is forbidden (RFC 5095); others only when used up: dst is final */
			if (h[2] == 0 || h[3] != 0)
				return drop(p, DROP_INVALID_EXTHDR);
			break;
		case IPPROTO_AH:
			len = (h[1] + 2) * 4;
			break;
		case IPPROTO_FRAGMENT:
			if (fragmented)
				return drop(p, DROP_INVALID_EXTHDR);
			fragmented = true;
			len = 8;
			p->frag_start = off + 8;
			if (h[2] | (h[3] & 0xf9)) { /* offset or more-fragments: not atomic (RFC 6946) */
				enum verdict v = fragment_v6(p, h);

				if (v != NEXT)
					return v;
			}
			break;
		}
		if (off + len > end)
			return drop(p, DROP_INVALID_EXTHDR);
		off += len;
		next = h[0];
		if (p->flags & PF_LATER)
			break;
	}
	if (!(p->flags & PF_LATER) && is_exthdr(next))
		return drop(p, DROP_INVALID_EXTHDR);
	p->l4_off = off;
	p->proto = next;
	return NEXT;
}

static __always_inline enum verdict parse_v6(struct __sk_buff *ctx, struct packet *p)
{
	void *data, *end;
	struct ipv6hdr *ip;
	__u32 total;

	if (!packet_bytes(ctx, ETH_HLEN + sizeof(*ip), &data, &end))
		return drop(p, DROP_INVALID_PACKET);
	ip = data + ETH_HLEN;
	total = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (ip->version != 6 || total + ETH_HLEN > p->len)
		return drop(p, DROP_INVALID_PACKET);
	addr_v6(&p->src, &ip->saddr);
	addr_v6(&p->dst, &ip->daddr);
	p->flags |= PF_L3;
	if (addr_mapped(&p->src))
		return drop(p, DROP_INVALID_SOURCE_IP);
	if (addr_mapped(&p->dst))
		return drop(p, DROP_INVALID_PACKET);
	p->proto = ip->nexthdr;
	p->ttl = ip->hop_limit;
	p->l4_off = ETH_HLEN + sizeof(*ip);
	p->l4_end = ETH_HLEN + total;
	p->frag_start = p->l4_off;
	if (is_exthdr(p->proto))
		return parse_exthdrs(ctx, p);
	return NEXT;
}

/* n bytes of transport header as memory; NULL when the packet is shorter. */
static __always_inline void *parse_header(struct __sk_buff *ctx, struct packet *p, __u32 n)
{
	__u32 off = p->l4_off;
	void *data, *end;

	if (off + n > p->l4_end || off > 0x7fff)
		return NULL;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + off + n <= end)
		return data + off;
	if (bpf_skb_pull_data(ctx, off + n))
		return NULL;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + off + n > end)
		return NULL;
	return data + off;
}

static __always_inline enum verdict parse_tcp(struct __sk_buff *ctx, struct packet *p)
{
	struct tcphdr *tcp = parse_header(ctx, p, sizeof(*tcp));
	__u8 flags;

	if (!tcp || tcp->doff < 5 || p->l4_off + tcp->doff * 4 > p->l4_end)
		return drop(p, DROP_CT_INVALID_HEADER);
	flags = ((__u8 *)tcp)[13];
	p->tcp_flags = flags;
	p->sport = tcp->source;
	p->dport = tcp->dest;
	if (!(flags & (TCP_SYN | TCP_RST | TCP_ACK | TCP_FIN)) || ((flags & TCP_SYN) && (flags & (TCP_FIN | TCP_RST))))
		return drop(p, DROP_INVALID_PACKET);
	return NEXT;
}

static __always_inline enum verdict parse_udp(struct __sk_buff *ctx, struct packet *p)
{
	struct udphdr *udp = parse_header(ctx, p, sizeof(*udp));
	__u32 len;

	if (!udp)
		return drop(p, DROP_CT_INVALID_HEADER);
	len = bpf_ntohs(udp->len);
	/* The length of a datagram in fragments is that of the whole. */
	if (len < sizeof(*udp) || (!(p->flags & PF_FIRST) && p->l4_off + len > p->l4_end))
		return drop(p, DROP_CT_INVALID_HEADER);
	p->sport = udp->source;
	p->dport = udp->dest;
	return NEXT;
}

static __always_inline enum verdict parse_sctp(struct __sk_buff *ctx, struct packet *p)
{
	__be16 *port = parse_header(ctx, p, 12);

	if (!port)
		return drop(p, DROP_CT_INVALID_HEADER);
	p->sport = port[0];
	p->dport = port[1];
	return NEXT;
}

static __always_inline enum verdict parse_icmp(struct __sk_buff *ctx, struct packet *p)
{
	struct icmp *icmp;
	bool error;

	if ((p->proto == IPPROTO_ICMP) != !!(p->flags & PF_V4))
		return drop(p, DROP_UNKNOWN_L4);
	icmp = parse_header(ctx, p, sizeof(*icmp));
	if (!icmp)
		return drop(p, DROP_CT_INVALID_HEADER);
	p->icmp_type = icmp->type;
	p->icmp_code = icmp->code;
	if (p->flags & PF_V4) {
		if (icmp4_local(icmp->type))
			return drop(p, DROP_CT_UNKNOWN_PROTO);
		error = icmp4_error(icmp->type);
	} else {
		error = icmp->type < 128; /* RFC 4443 2.1 */
	}
	p->sport = is_echo(p) ? icmp->id : bpf_htons(icmp->type);
	p->dport = p->sport;
	if (!error)
		return NEXT;
	if (p->flags & PF_FIRST) /* an error is short enough to go in one piece (RFC 1812 4.3.2.3, RFC 4443 2.4) */
		return drop(p, DROP_FRAG_INVALID);
	p->flags |= PF_ERROR;
	return NEXT;
}

static __always_inline enum verdict parse_l4(struct __sk_buff *ctx, struct packet *p)
{
	enum verdict v;

	if (p->flags & PF_LATER)
		return fragment_find(p);
	if (p->proto == IPPROTO_TCP)
		v = parse_tcp(ctx, p);
	else if (p->proto == IPPROTO_UDP)
		v = parse_udp(ctx, p);
	else if (is_icmp(p->proto))
		v = parse_icmp(ctx, p);
	else if (p->proto == IPPROTO_SCTP)
		v = parse_sctp(ctx, p);
	else
		return drop(p, DROP_UNKNOWN_L4);
	if (v == NEXT)
		p->flags |= PF_L4;
	else if (p->flags & PF_FIRST && p->reason == DROP_CT_INVALID_HEADER)
		return drop(p, DROP_FRAG_INVALID); /* the rest of the header would come unseen in a later fragment */
	return v;
}

/* Ethernet and IP headers. ARP leaves with NEXT and ethertype alone. */
static __always_inline enum verdict parse_l3(struct __sk_buff *ctx, struct packet *p)
{
	void *data, *end;
	struct ethhdr *eth;
	__be16 type;

	p->ethertype = 0;
	if (ctx->vlan_present)
		return drop(p, DROP_VLAN);
	if (!packet_bytes(ctx, ETH_HLEN, &data, &end))
		return drop(p, DROP_INVALID_PACKET);
	eth = data;
	type = eth->h_proto;
	p->ethertype = type;
	if (type == bpf_htons(ETH_P_IP))
		return parse_v4(ctx, p);
	if (type == bpf_htons(ETH_P_IPV6))
		return parse_v6(ctx, p);
	if (type == bpf_htons(ETH_P_ARP))
		return NEXT;
	if (type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD))
		return drop(p, DROP_VLAN);
	if (bpf_ntohs(type) < 0x600) /* a length: 802.3 LLC */
		return drop(p, DROP_UNSUPPORTED_L2);
	return drop(p, DROP_UNSUPPORTED_L3);
}

/* The whole packet. */
static __always_inline enum verdict parse_packet(struct __sk_buff *ctx, struct packet *p)
{
	enum verdict v = parse_l3(ctx, p);

	return v == NEXT && p->flags & PF_L3 ? parse_l4(ctx, p) : v;
}
