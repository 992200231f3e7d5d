/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "packet.h"

/*
 * Fragments. The first one carries the ports and is judged; once it passes, a row lets the later ones of the same
 * datagram take its flow. A later fragment without a row is dropped: nothing passes unjudged. A first fragment must
 * hold the whole transport header and no later one may reach back into it.
 */

#define FRAGMENT_LIFE (30 * 1000000000ULL)

/* words: offset in 8-byte words; len: bytes of the datagram that this fragment holds. */
static __always_inline enum verdict fragment_mark(struct packet *p, __u32 words, bool more, __u32 len)
{
	if ((more && (len % 8 || !len)) || words * 8 + len > 0xffff)
		return drop(p, DROP_FRAG_INVALID);
	p->frag_words = words;
	p->flags |= words ? PF_LATER : PF_FIRST;
	return NEXT;
}

static __always_inline enum verdict fragment_v4(struct packet *p, __u16 field, __be16 id)
{
	p->frag_id = id;
	return fragment_mark(p, field & 0x1fff, field & 0x2000, p->l4_end - p->l4_off);
}

static __always_inline enum verdict fragment_v6(struct packet *p, const __u8 *h)
{
	__u16 field = h[2] << 8 | h[3];

	if (p->l4_end < p->frag_start)
		return drop(p, DROP_INVALID_EXTHDR);
	p->frag_id = (__u32)h[4] << 24 | h[5] << 16 | h[6] << 8 | h[7];
	return fragment_mark(p, field >> 3, field & 1, p->l4_end - p->frag_start);
}

static __always_inline void fragment_key(const struct packet *p, struct frag_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->src = p->src;
	key->dst = p->dst;
	key->id = p->frag_id;
	key->proto = p->flags & PF_V4 ? p->proto : 0;
}

/* Ports of a later fragment, from the row that the first one left. */
static __noinline enum verdict fragment_find(struct packet *p)
{
	struct frag_entry *row;
	struct frag_key key;

	fragment_key(p, &key);
	row = bpf_map_lookup_elem(&fragments, &key);
	if (!row || row->expires < p->now)
		return drop(p, DROP_FRAG_NOT_FOUND);
	if (p->frag_words < row->words)
		return drop(p, DROP_FRAG_INVALID);
	p->proto = row->proto;
	p->sport = row->sport;
	p->dport = row->dport;
	if (is_icmp(row->proto)) {
		p->icmp_type = bpf_ntohs(row->dport) >> 8;
		p->icmp_code = bpf_ntohs(row->dport) & 0xff;
		p->dport = row->sport;
	}
	p->flags |= PF_L4;
	return NEXT;
}

/* The first fragment passes: let the later ones follow. */
static __noinline enum verdict fragment_store(struct packet *p)
{
	struct frag_entry row = {};
	struct frag_key key;
	__u32 header = p->proto == IPPROTO_TCP ? 20 : p->proto == IPPROTO_SCTP ? 12 : 8;

	fragment_key(p, &key);
	row.sport = p->sport;
	row.dport = is_icmp(p->proto) ? bpf_htons(p->icmp_type << 8 | p->icmp_code) : p->dport;
	row.proto = p->proto;
	row.words = (p->l4_off - p->frag_start + header + 7) / 8;
	row.expires = p->now + FRAGMENT_LIFE;
	if (bpf_map_update_elem(&fragments, &key, &row, BPF_ANY))
		return drop(p, DROP_FRAG_NOT_FOUND);
	return NEXT;
}
