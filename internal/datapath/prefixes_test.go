package datapath

import (
	"net/netip"
	"testing"

	"porin/bpf"
	"porin/internal/identity"
)

func TestRootPrefixesCompose(t *testing.T) {
	n := newNode(t)
	n.cfg.MasqueradeExclude = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	d := n.open()
	const a, b, c = identity.ScopeLocal + 1, identity.ScopeLocal + 2, identity.ScopeLocal + 3
	ask := func(addr string) bpf.Peer {
		t.Helper()
		ip := netip.MustParseAddr(addr)
		row, ok, err := d.prefixes.rows.get(bpf.PrefixKeyFrom(netip.PrefixFrom(ip, ip.BitLen())))
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return bpf.Peer{}
		}
		return row
	}
	check := func(addr string, id identity.ID, flags uint32) {
		t.Helper()
		if got := ask(addr); got.Identity != uint32(id) || got.Flags != flags {
			t.Errorf("%s: identity %d flags %d, want %d %d", addr, got.Identity, got.Flags, id, flags)
		}
	}
	check("10.9.9.9", identity.WorldIPv4, bpf.PeerCluster)
	check("10.7.0.9", identity.WorldIPv4, bpf.PeerCluster|bpf.PeerNoOwner)
	check("8.8.8.8", identity.WorldIPv4, 0)
	put := func(m map[string]identity.ID) {
		t.Helper()
		add := map[netip.Prefix]identity.ID{}
		for p, id := range m {
			add[netip.MustParsePrefix(p)] = id
		}
		if err := d.PutPrefixes(add); err != nil {
			t.Fatal(err)
		}
	}
	put(map[string]identity.ID{"10.1.1.1/32": a, "0.0.0.0/0": b, "::/0": c})
	check("10.1.1.1", a, bpf.PeerCluster)                 // a CIDR inside an excluded range keeps the range's flag
	check("10.9.9.9", b, bpf.PeerCluster)                 // an excluded range inside a CIDR has the CIDR's identity
	check("10.7.0.9", b, bpf.PeerCluster|bpf.PeerNoOwner) // and so has the pod range
	check("8.8.8.8", b, 0)                                //
	check("2001:db8::1", c, 0)                            //
	check("fd07::9", c, bpf.PeerCluster|bpf.PeerNoOwner)  //
	if err := d.DeletePrefixes([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}); err != nil {
		t.Fatal(err)
	}
	check("8.8.8.8", identity.WorldIPv4, 0) // ::/0 must not answer for IPv4
	check("10.9.9.9", identity.WorldIPv4, bpf.PeerCluster)
	put(map[string]identity.ID{"::ffff:192.0.2.0/120": b})
	check("192.0.2.5", b, 0)
	d.Close()

	d = n.open()
	got := d.RestoredPrefixes()
	if len(got) != 3 || got[netip.MustParsePrefix("::/0")] != c || got[netip.MustParsePrefix("10.1.1.1/32")] != a {
		t.Errorf("restored %v", got)
	}
}
