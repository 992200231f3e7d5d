/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "packet.h"
#include "toobig.h"

/*
 * The tunnel between nodes: Geneve or VXLAN, framed here and not by a device of the kernel. The network identifier is the
 * sender's identity. A frame inside a frame:
 *
 *	Ethernet | IPv4 or IPv6 | UDP | Geneve or VXLAN | Ethernet | the packet
 *
 * What comes in must be from a known node, about an address behind that node, with the identity that the address is known
 * to have here. A tunnel's word alone gives nobody a permission, nor does an address that comes by another way.
 */

#define OVERLAY_MARK	 0x706f7274 /* on frames that we made: the node's own processes may not make any */
#define OVERLAY_ROOM4	 50
#define OVERLAY_ROOM6	 70
#define OVERLAY_FRAGMENT 1 /* overlay_match: the port is right, but it is a piece only */
#define OVERLAY_ICMP	 2
#define OVERLAY_ODD	 3 /* the port is right, but behind options, which no tunnel sends */
#define OVERLAY_SHORT	 40
#define OVERLAY_REFRESH	 1000000000ULL
#define OVERLAY_MTU_LIFE (600 * 1000000000ULL) /* RFC 1191 6.3 */

/* Behind the outer IP header. */
struct overlay_tail {
	struct udphdr udp;
	__be32 word; /* that of the kind: version, flags, protocol */
	__be32 vni; /* in the upper 24 bits */
	struct ethhdr eth;
} __attribute__((packed));

/* Linux 6.3; Debian 12's headers are older. */
#define ROOM_DECAP_IPV4 (1ULL << 7)
#define ROOM_DECAP_IPV6 (1ULL << 8)

_Static_assert(sizeof(struct iphdr) + sizeof(struct overlay_tail) == OVERLAY_ROOM4, "room of an IPv4 tunnel");
_Static_assert(sizeof(struct ipv6hdr) + sizeof(struct overlay_tail) == OVERLAY_ROOM6, "room of an IPv6 tunnel");

/* First word of the header. Geneve (RFC 8926): version 0, no options, Ethernet inside. VXLAN (RFC 7348): identifier valid. */
static __always_inline __be32 overlay_word(const struct settings *s)
{
	return s->tunnel == TUNNEL_GENEVE ? bpf_htonl(0x6558) : bpf_htonl(0x08000000);
}

/* Who may send and be sent to by tunnel: label sets, nodes and their health endpoints. Never the numbers that mean
 * something on one node only, and never a number that is reserved in every cluster.
 */
static __always_inline bool overlay_identity(__u32 id)
{
	if (id == IDENTITY_REMOTE_NODE || id == IDENTITY_HEALTH)
		return true;
	return id < IDENTITY_LIMIT && (id & 0xffff) >= IDENTITY_FIRST;
}

/* Is the packet for an address behind another node? */
static __always_inline bool overlay_target(const struct settings *s, const struct packet *p)
{
	return s->tunnel && overlay_identity(p->dst_identity);
}

static __always_inline const struct peer *overlay_peer(const struct addr *a)
{
	const struct peer *peer = bpf_map_lookup_elem(&peers, a);
	struct prefix_key key;

	if (peer)
		return peer;
	key.prefixlen = 128;
	addr_copy(&key.addr, a);
	return bpf_map_lookup_elem(&prefixes, &key);
}

/* The least that a way to another node is taken to carry. Whoever says less of it to an IPv6 packet that needs no leave (RFC
 * 8200 5) would stop IPv6 between two nodes, and anybody may say so: words about ways are not signed.
 */
static __always_inline __u32 overlay_floor(const struct packet *p, __u32 room)
{
	return p->flags & PF_V4 ? 0 : 1280 + room;
}

/* The kernel's routes learn what ways carry from the same words. Its devices have not learned it from anybody. */
static __always_inline long overlay_trust_device(struct __sk_buff *ctx, struct bpf_fib_lookup *fib, __u32 whole)
{
	__u32 mtu = 0;
	__u16 said = fib->mtu_result;
	long rc;

	fib->tot_len = 0; /* no limit */
	rc = bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return rc;
	if (bpf_check_mtu(ctx, fib->ifindex, &mtu, 0, 0) < 0 || whole > mtu) {
		fib->mtu_result = said;
		return BPF_FIB_LKUP_RET_FRAG_NEEDED;
	}
	return rc;
}

/* The way to the node behind which the destination is; len: of the longest piece, without Ethernet. The kernel's routes
 * and neighbours are asked, and once a second the kernel sends the packet itself, or it would forget that the neighbour
 * is in use and never look again whether it still has its MAC.
 */
static __noinline enum verdict overlay_route(struct __sk_buff *ctx, struct packet *p, __u32 len)
{
	const struct settings *s = settings_get();
	struct bpf_fib_lookup fib = {};
	const struct addr *from;
	const struct peer *to;
	struct node *node;
	__u32 room, mtu;
	long rc;

	if (!s)
		return drop(p, DROP_INTERNAL);
	to = overlay_peer(&p->dst);
	if (!to || addr_zero(&to->node))
		return drop(p, DROP_NO_TUNNEL_ENDPOINT);
	addr_copy(&p->outer, &to->node);
	node = bpf_map_lookup_elem(&nodes, &p->outer);
	from = addr_mapped(&p->outer) ? &s->underlay4 : &s->underlay6;
	if (!node || addr_zero(from))
		return drop(p, DROP_NO_TUNNEL_ENDPOINT);
	p->vni = p->src_identity == IDENTITY_HOST ? IDENTITY_REMOTE_NODE : p->src_identity;
	if (!overlay_identity(p->vni))
		return drop(p, DROP_INVALID_IDENTITY);
	p->outer_sport = bpf_htons(0xc000 | (bpf_get_hash_recalc(ctx) & 0x3fff));
	fib.l4_protocol = IPPROTO_UDP;
	fib.sport = p->outer_sport;
	fib.dport = s->tunnel_port;
	fib.ifindex = p->ifindex;
	if (addr_mapped(&p->outer)) {
		room = OVERLAY_ROOM4;
		fib.family = 2; /* AF_INET */
		fib.ipv4_src = from->w[3];
		fib.ipv4_dst = p->outer.w[3];
	} else {
		room = OVERLAY_ROOM6;
		fib.family = 10; /* AF_INET6 */
		__builtin_memcpy(fib.ipv6_src, from, sizeof(fib.ipv6_src));
		__builtin_memcpy(fib.ipv6_dst, &p->outer, sizeof(fib.ipv6_dst));
	}
	len &= 0xffff;
	mtu = node->mtu && node->mtu_until > p->now ? node->mtu : 0xffff;
	if (mtu < overlay_floor(p, room))
		mtu = overlay_floor(p, room);
	if (len + room > mtu || ctx->len + room > 0xffff + ETH_HLEN)
		return toobig_refuse(p, len, mtu - room);
	fib.tot_len = len + room;
	rc = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED && len + room <= overlay_floor(p, room))
		rc = overlay_trust_device(ctx, &fib, len + room);
	if (rc < 0)
		return drop(p, DROP_INTERNAL);
	if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return toobig_refuse(p, len, fib.mtu_result > room ? fib.mtu_result - room : 0);
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return drop(p, DROP_FIB);
	p->out_ifindex = fib.ifindex;
	p->hop_known = rc == BPF_FIB_LKUP_RET_SUCCESS;
	if (node->resolved + OVERLAY_REFRESH < p->now) {
		node->resolved = p->now;
		p->hop_known = 0;
	}
	mac_copy(p->hop_dmac, fib.dmac);
	mac_copy(p->hop_smac, fib.smac);
	return V_TUNNEL;
}

/* By the kernel's own device: it makes the frame from what the packet carries along. */
static __noinline int overlay_send_kernel(struct __sk_buff *ctx, struct packet *p, __u32 device)
{
	struct bpf_tunnel_key key = {};
	__u64 flags = BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT;

	key.tunnel_id = p->vni;
	key.tunnel_ttl = 64;
	if (addr_mapped(&p->outer)) {
		key.remote_ipv4 = bpf_ntohl(p->outer.w[3]);
	} else {
		__builtin_memcpy(key.remote_ipv6, &p->outer, sizeof(key.remote_ipv6));
		flags |= BPF_F_TUNINFO_IPV6;
	}
	if (bpf_skb_set_tunnel_key(ctx, &key, sizeof(key), flags))
		return -1;
	return bpf_redirect(device, 0);
}

/* Frames the packet and sends it where overlay_route found. What the outer packet says of itself is the same for all:
 * no fragmentation, no class of service, no checksum where IPv6 lets a tunnel do without (RFC 6935). -1: it cannot be framed.
 */
static __noinline int overlay_send(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
		      BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN);
	__u32 len = ctx->len - ETH_HLEN;
	struct overlay_tail *tail;
	void *data, *end;
	struct ethhdr *eth;
	long rc;

	if (!s)
		return -1;
	ctx->mark = OVERLAY_MARK;
	if (s->tunnel_ifindex)
		return overlay_send_kernel(ctx, p, s->tunnel_ifindex);
	/* What is shorter could not be unpacked everywhere: see overlay_strip. Ethernet pads to more. */
	if (!addr_mapped(&p->outer) && len < OVERLAY_SHORT) {
		len = OVERLAY_SHORT;
		if (bpf_skb_change_tail(ctx, ETH_HLEN + OVERLAY_SHORT, 0))
			return -1;
	}
	if (addr_mapped(&p->outer))
		rc = bpf_skb_adjust_room(ctx, OVERLAY_ROOM4, BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
	else
		rc = bpf_skb_adjust_room(ctx, OVERLAY_ROOM6, BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6);
	/* The shorter header with the shortest packet behind it is as long as the longer header. */
	if (rc || !packet_bytes(ctx, ETH_HLEN + OVERLAY_ROOM6, &data, &end))
		return -1;
	eth = data;
	mac_copy(eth->h_dest, p->hop_dmac);
	mac_copy(eth->h_source, p->hop_smac);
	if (addr_mapped(&p->outer)) {
		struct iphdr *ip = data + ETH_HLEN;
		__u64 sum = 0;

		eth->h_proto = bpf_htons(ETH_P_IP);
		*(__be16 *)ip = bpf_htons(0x4500);
		ip->tot_len = bpf_htons(len + OVERLAY_ROOM4);
		ip->id = 0; /* RFC 6864 4.1 */
		ip->frag_off = bpf_htons(0x4000);
		ip->ttl = 64;
		ip->protocol = IPPROTO_UDP;
		ip->check = 0;
		ip->saddr = s->underlay4.w[3];
		ip->daddr = p->outer.w[3];
		for (int i = 0; i < 5; i++)
			sum += ((__u32 *)ip)[i];
		ip->check = csum_fold(sum);
		tail = (void *)(ip + 1);
		tail->udp.len = bpf_htons(len + sizeof(*tail));
	} else {
		struct ipv6hdr *ip = data + ETH_HLEN;

		eth->h_proto = bpf_htons(ETH_P_IPV6);
		*(__be32 *)ip = bpf_htonl(0x60000000);
		ip->payload_len = bpf_htons(len + sizeof(*tail));
		ip->nexthdr = IPPROTO_UDP;
		ip->hop_limit = 64;
		__builtin_memcpy(&ip->saddr, &s->underlay6, sizeof(ip->saddr));
		__builtin_memcpy(&ip->daddr, &p->outer, sizeof(ip->daddr));
		tail = (void *)(ip + 1);
		tail->udp.len = ip->payload_len;
	}
	tail->udp.source = p->outer_sport;
	tail->udp.dest = s->tunnel_port;
	tail->udp.check = 0;
	tail->word = overlay_word(s);
	tail->vni = bpf_htonl(p->vni << 8);
	mac_copy(tail->eth.h_dest, s->gateway_mac);
	mac_copy(tail->eth.h_source, s->gateway_mac);
	tail->eth.h_proto = p->ethertype;
	if (p->hop_known)
		return bpf_redirect(p->out_ifindex, 0);
	return bpf_redirect_neigh(p->out_ifindex, NULL, 0, 0);
}

/* IPv6: UDP, the first piece of UDP, or ICMP. */
static __noinline __u32 overlay_match6(struct __sk_buff *ctx, struct packet *p, __be16 port)
{
	struct {
		struct ipv6hdr ip;
		__u8 next[8]; /* UDP, or the fragment header in front of it */
		struct udphdr udp;
	} *h;
	void *data, *end;
	bool piece;

	if (!packet_bytes(ctx, ETH_HLEN + sizeof(*h), &data, &end))
		return 0;
	h = data + ETH_HLEN;
	addr_v6(&p->src, &h->ip.saddr);
	addr_v6(&p->dst, &h->ip.daddr);
	if (h->ip.nexthdr == IPPROTO_ICMPV6)
		return OVERLAY_ICMP;
	piece = h->ip.nexthdr == IPPROTO_FRAGMENT && h->next[0] == IPPROTO_UDP && !h->next[2] && !(h->next[3] & 0xf8);
	if (piece)
		return h->udp.dest == port ? OVERLAY_FRAGMENT : 0;
	return h->ip.nexthdr == IPPROTO_UDP && *(__be16 *)&h->next[2] == port ? OVERLAY_ROOM6 : 0;
}

/* Is it a datagram to the tunnel port, as tunnels send it? Then the length of its headers, and its ends are known.
 * With options it is odd: the kernel's own device would unpack it, the programs do not. With extension headers or as a
 * later fragment it is none.
 */
static __noinline __u32 overlay_match(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();
	void *data, *end;
	__be16 type, port;
	struct {
		struct iphdr ip;
		struct udphdr udp;
	} *h;

	if (!s || !s->tunnel || !packet_bytes(ctx, ETH_HLEN + sizeof(*h), &data, &end))
		return 0;
	type = ((struct ethhdr *)data)->h_proto;
	p->proto = IPPROTO_UDP;
	p->flags = PF_L3;
	if (type == bpf_htons(ETH_P_IPV6))
		return overlay_match6(ctx, p, s->tunnel_port);
	h = data + ETH_HLEN;
	if (type != bpf_htons(ETH_P_IP) || h->ip.version != 4 || h->ip.frag_off & bpf_htons(0x1fff))
		return 0;
	p->flags |= PF_V4;
	addr_v4(&p->src, h->ip.saddr);
	addr_v4(&p->dst, h->ip.daddr);
	if (h->ip.protocol == IPPROTO_ICMP)
		return h->ip.ihl == 5 ? OVERLAY_ICMP : 0;
	if (h->ip.protocol != IPPROTO_UDP)
		return 0;
	if (h->ip.ihl != 5) {
		port = 0;
		bpf_skb_load_bytes(ctx, ETH_HLEN + h->ip.ihl * 4 + offsetof(struct udphdr, dest), &port, sizeof(port));
		return port == s->tunnel_port ? OVERLAY_ODD : 0;
	}
	if (h->udp.dest != s->tunnel_port)
		return 0;
	return h->ip.frag_off & bpf_htons(0x2000) ? OVERLAY_FRAGMENT : OVERLAY_ROOM4;
}

/* A router on the way says how much it takes of what we tunnel. It is believed for ten minutes, about a known node, and
 * nothing that would stop the tunnel.
 */
static __noinline void overlay_learn(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();
	struct addr from, to;
	struct node *node;
	__be16 port;
	__u32 mtu;

	if (!s)
		return;
	if (p->flags & PF_V4) {
		struct {
			struct icmp icmp;
			struct iphdr about;
			struct udphdr udp;
		} h;

		if (bpf_skb_load_bytes(ctx, ETH_HLEN + sizeof(struct iphdr), &h, sizeof(h)) ||
		    h.icmp.type != ICMP_DEST_UNREACH || h.icmp.code != ICMP_FRAG_NEEDED || h.about.ihl != 5 ||
		    h.about.protocol != IPPROTO_UDP)
			return;
		mtu = bpf_ntohs(h.icmp.seq);
		addr_v4(&from, h.about.saddr);
		addr_v4(&to, h.about.daddr);
		port = h.udp.dest;
		if (mtu < 576 || !addr_equal(&from, &s->underlay4))
			return;
	} else {
		struct {
			struct icmp icmp;
			struct ipv6hdr about;
			struct udphdr udp;
		} h;

		if (bpf_skb_load_bytes(ctx, ETH_HLEN + sizeof(struct ipv6hdr), &h, sizeof(h)) ||
		    h.icmp.type != ICMPV6_PKT_TOOBIG || h.icmp.code || h.icmp.id || h.about.nexthdr != IPPROTO_UDP)
			return;
		mtu = bpf_ntohs(h.icmp.seq); /* lower half of the MTU's word */
		addr_v6(&from, &h.about.saddr);
		addr_v6(&to, &h.about.daddr);
		port = h.udp.dest;
		if (mtu < 1280 || !addr_equal(&from, &s->underlay6))
			return;
	}
	node = port == s->tunnel_port && addr_equal(&from, &p->dst) ? bpf_map_lookup_elem(&nodes, &to) : NULL;
	if (!node || (node->mtu && node->mtu_until > p->now && node->mtu <= mtu))
		return;
	node->mtu = mtu;
	node->mtu_until = p->now + OVERLAY_MTU_LIFE;
}

/* Takes the outer headers off; the packet is then as its sender's stack made it. Linux before 6.3 cannot be told that another
 * family comes to light: it wants 40 bytes behind the headers of an IPv6 tunnel, which IPv4 need not have, and goes on to
 * take the packet for IPv6.
 */
static __noinline enum verdict overlay_strip(struct __sk_buff *ctx, struct packet *p, __u32 room, __be16 type)
{
	__u64 to = type == bpf_htons(ETH_P_IP) ? ROOM_DECAP_IPV4 : ROOM_DECAP_IPV6;
	void *data, *end;
	long rc;

	if (room == OVERLAY_ROOM4)
		rc = bpf_skb_adjust_room(ctx, -OVERLAY_ROOM4, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | to);
	else
		rc = bpf_skb_adjust_room(ctx, -OVERLAY_ROOM6, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | to);
	p->foreign = rc && (to == ROOM_DECAP_IPV4) != (room == OVERLAY_ROOM4);
	if (p->foreign && room == OVERLAY_ROOM6 && ctx->len < ETH_HLEN + OVERLAY_ROOM6 + OVERLAY_SHORT)
		bpf_skb_change_tail(ctx, ETH_HLEN + OVERLAY_ROOM6 + OVERLAY_SHORT, 0);
	if (rc && room == OVERLAY_ROOM4)
		rc = bpf_skb_adjust_room(ctx, -OVERLAY_ROOM4, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	else if (rc)
		rc = bpf_skb_adjust_room(ctx, -OVERLAY_ROOM6, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	if (rc || !packet_bytes(ctx, ETH_HLEN, &data, &end))
		return drop(p, DROP_TUNNEL_KEY);
	((struct ethhdr *)data)->h_proto = type;
	return NEXT;
}

/* From the kernel's own device: the outer packet is gone, what it said has come along. */
static __noinline enum verdict overlay_receive_kernel(struct __sk_buff *ctx, struct packet *p)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(ctx, &key, sizeof(key), 0)) {
		addr_v4(&p->outer, bpf_htonl(key.remote_ipv4));
	} else if (!bpf_skb_get_tunnel_key(ctx, &key, sizeof(key), BPF_F_TUNINFO_IPV6)) {
		addr_v6(&p->outer, key.remote_ipv6);
	} else {
		return drop(p, DROP_TUNNEL_KEY);
	}
	p->vni = key.tunnel_id;
	bpf_skb_change_type(ctx, PACKET_HOST);
	return NEXT;
}

/* What a node tunnels to us: the outer packet is checked and taken off. NEXT with p->point changed, or untouched when the
 * packet is none of a tunnel.
 */
static __noinline enum verdict overlay_receive(struct __sk_buff *ctx, struct packet *p)
{
	const struct settings *s = settings_get();
	struct overlay_tail *tail;
	void *data, *end;
	__u32 room = 0, len;
	__be16 type = 0;
	enum verdict v;

	if (!s || !s->tunnel)
		return NEXT;
	if (s->tunnel_ifindex) {
		if (p->ifindex != s->tunnel_ifindex)
			return NEXT; /* the kernel's device hears it */
		v = overlay_receive_kernel(ctx, p);
		if (v != NEXT)
			return v;
	} else {
		if (ctx->pkt_type != PACKET_HOST)
			return NEXT;
		room = overlay_match(ctx, p);
		if (room == OVERLAY_ICMP)
			overlay_learn(ctx, p);
		if (room < OVERLAY_ROOM4 && room != OVERLAY_FRAGMENT)
			goto none;
		if (!addr_equal(&p->dst, p->flags & PF_V4 ? &s->underlay4 : &s->underlay6))
			goto none;
		if (room == OVERLAY_FRAGMENT)
			return drop(p, DROP_TUNNEL_FRAGMENT);
		addr_copy(&p->outer, &p->src);
	}
	if (!bpf_map_lookup_elem(&nodes, &p->outer))
		return drop(p, DROP_UNKNOWN_SENDER);
	if (room) {
		if (!packet_bytes(ctx, ETH_HLEN + OVERLAY_ROOM6, &data, &end))
			return drop(p, DROP_TUNNEL_KEY);
		tail = p->flags & PF_V4 ? data + ETH_HLEN + sizeof(struct iphdr)
					: data + ETH_HLEN + sizeof(struct ipv6hdr);
		len = bpf_ntohs(tail->udp.len);
		type = tail->eth.h_proto;
		if (tail->word != overlay_word(s) || len < sizeof(*tail) + sizeof(struct iphdr) ||
		    len + room - sizeof(*tail) + ETH_HLEN > ctx->len ||
		    (type != bpf_htons(ETH_P_IP) && type != bpf_htons(ETH_P_IPV6)))
			return drop(p, DROP_TUNNEL_KEY);
		p->vni = bpf_ntohl(tail->vni) >> 8;
	}
	if (!p->vni || (p->vni >= 1 << 16 && (p->vni & 0xffff) < IDENTITY_FIRST))
		return drop(p, DROP_INVALID_VNI);
	if (!overlay_identity(p->vni))
		return drop(p, DROP_INVALID_IDENTITY);
	if (room) {
		v = overlay_strip(ctx, p, room, type);
		if (v != NEXT)
			return v;
	}
	p->len = ctx->len;
	p->point = POINT_FROM_OVERLAY;
none:
	p->flags = 0;
	return NEXT;
}

/* Are both underlay addresses of one node? */
static __always_inline bool overlay_same_node(const struct addr *a, const struct addr *b)
{
	const struct node *x, *y;

	if (addr_equal(a, b))
		return true;
	x = bpf_map_lookup_elem(&nodes, a);
	y = bpf_map_lookup_elem(&nodes, b);
	return x && y && x->id == y->id;
}

/* The inner packet: its source must be behind the node that sent it and have the identity that the node says, its
 * destination must be here.
 */
static __noinline enum verdict overlay_check(struct packet *p)
{
	const struct peer *from = overlay_peer(&p->src), *to;

	if (!from || from->flags & (PEER_LOCAL | PEER_HOST) ||
	    (from->flags & (PEER_NO_OWNER | PEER_REMOTE)) == PEER_NO_OWNER)
		return drop(p, from ? DROP_TUNNEL_LOCAL : DROP_TUNNEL_SOURCE);
	if (!(from->flags & PEER_REMOTE) || !overlay_same_node(&p->outer, &from->node))
		return drop(p, DROP_TUNNEL_SOURCE);
	p->src_identity = p->vni;
	if (from->flags & PEER_NO_OWNER)
		return drop(p, DROP_TUNNEL_UNANNOUNCED);
	if (from->identity != p->vni)
		return drop(p, DROP_TUNNEL_IDENTITY);
	to = bpf_map_lookup_elem(&peers, &p->dst);
	return to && to->flags & (PEER_LOCAL | PEER_HOST) ? NEXT : drop(p, DROP_UNKNOWN_L3_TARGET);
}

/* Does somebody else on this node send to a node's tunnel port? It would speak with the node's address, and so for all that
 * is behind the node.
 */
static __always_inline bool overlay_forged(struct __sk_buff *ctx, struct packet *p)
{
	__u32 room = overlay_match(ctx, p);

	return room && room != OVERLAY_ICMP && bpf_map_lookup_elem(&nodes, &p->dst);
}

/* A pod that sends to the tunnel port, of a node or of whoever may be one, leaves the node under the node's address. */
static __always_inline bool overlay_port(const struct settings *s, const struct packet *p)
{
	return s->tunnel && p->proto == IPPROTO_UDP && p->dport == s->tunnel_port;
}
