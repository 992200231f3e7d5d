package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func clusterPool(text string, bits int) ClusterPool {
	return ClusterPool{Prefix: netip.MustParsePrefix(text), NodeBits: bits}
}

func TestRangesGiveTakeReturn(t *testing.T) {
	r, err := NewRanges([]ClusterPool{clusterPool("10.0.0.0/22", 24), clusterPool("fd00::/62", 64)})
	if err != nil {
		t.Fatal(err)
	}
	give := func(node string, v4 bool, want string) {
		t.Helper()
		p, err := r.Give(node, v4)
		if err != nil || p.String() != want {
			t.Errorf("%s: got %s %v, want %s", node, p, err, want)
		}
	}
	if err := r.Take("static", netip.MustParsePrefix("10.0.1.128/25")); err != nil { // part of a range of the pool
		t.Fatal(err)
	}
	give("a", true, "10.0.0.0/24")
	give("a", false, "fd00::/64")
	give("b", true, "10.0.2.0/24")
	give("b", false, "fd00:0:0:1::/64")
	r.Return("a")
	give("c", true, "10.0.3.0/24") // never given before
	give("d", true, "10.0.0.0/24")
	if _, err := r.Give("e", true); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "all 4 IPv4 ranges") {
		t.Errorf("a fifth: %v", err)
	}
	if err := r.Take("x", netip.MustParsePrefix("10.0.2.0/25")); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "of b") {
		t.Errorf("what b has: %v", err)
	}
	if err := r.Take("b", netip.MustParsePrefix("10.0.2.0/24")); err != nil {
		t.Errorf("b again: %v", err)
	}
	if err := r.Take("x", netip.MustParsePrefix("0.0.0.0/0")); !errors.Is(err, ErrBadRange) {
		t.Errorf("everything: %v", err)
	}
	if got := fmt.Sprint(r.Of("b")); got != "[10.0.2.0/24 fd00:0:0:1::/64]" {
		t.Errorf("b has %s", got)
	}
	if p := r.Pools(); p[0].Used != 4 || p[0].Size != 4 || p[1].Used != 1 {
		t.Errorf("pools: %+v", p)
	}
}

func TestRangesRefusePools(t *testing.T) {
	for want, pools := range map[string][]ClusterPool{
		"bits behind":      {clusterPool("10.0.0.1/16", 24)},
		"not in it":        {clusterPool("10.0.0.0/16", 8)},
		"from /24 to /30":  {clusterPool("10.0.0.0/24", 31)},
		"more than 65536":  {clusterPool("fd00::/32", 64)},
		"overlap":          {clusterPool("10.0.0.0/16", 24), clusterPool("10.0.128.0/17", 24)},
		"not for workload": {clusterPool("169.254.0.0/16", 24)},
	} {
		if _, err := NewRanges(pools); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want ...%s...", pools, err, want)
		}
	}
}

// No two nodes ever have ranges that overlap, whatever happens, and a free range is found as long as there is one.
func TestRangesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, err := NewRanges([]ClusterPool{clusterPool("10.0.0.0/28", 31-1)})
		if err != nil {
			t.Fatal(err)
		}
		has := map[netip.Prefix]string{}
		node := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		overlaps := func(p netip.Prefix, but string) bool {
			for q, n := range has {
				if n != but && q.Overlaps(p) {
					return true
				}
			}
			return false
		}
		t.Repeat(map[string]func(*rapid.T){
			"give": func(t *rapid.T) {
				n := node.Draw(t, "node")
				p, err := r.Give(n, true)
				if err != nil {
					for i := range uint64(4) {
						if q := r.pools[0].at(i); !overlaps(q, "") {
							t.Fatalf("%v though %s is free", err, q)
						}
					}
					return
				}
				if overlaps(p, "") {
					t.Fatalf("gave %s, has %v", p, has)
				}
				has[p] = n
			},
			"take": func(t *rapid.T) {
				n := node.Draw(t, "node")
				bits := rapid.IntRange(27, 32).Draw(t, "bits")
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 31).Draw(t, "at"))}), bits).Masked()
				err := r.Take(n, p)
				if has[p] == n {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				if (err != nil) != overlaps(p, "") {
					t.Fatalf("take %s for %s: %v, has %v", p, n, err, has)
				}
				if err == nil {
					has[p] = n
				}
			},
			"return": func(t *rapid.T) {
				n := node.Draw(t, "node")
				for _, p := range r.Return(n) {
					if has[p] != n {
						t.Fatalf("%s gave %s back, which it has not", n, p)
					}
					delete(has, p)
				}
				for p, x := range has {
					if x == n {
						t.Fatalf("%s still has %s", n, p)
					}
				}
			},
		})
	})
}
