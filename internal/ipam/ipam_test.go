package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func mustNew(t testing.TB, v4, v6 string) *IPAM {
	t.Helper()
	var cfg Config
	if v4 != "" {
		cfg.IPv4 = netip.MustParsePrefix(v4)
	}
	if v6 != "" {
		cfg.IPv6 = netip.MustParsePrefix(v6)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatalf("New(%s, %s): %v", v4, v6, err)
	}
	return m
}

func TestNewRefuses(t *testing.T) {
	p := netip.MustParsePrefix
	for _, tc := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "neither"},
		{Config{IPv4: p("10.0.0.1/24")}, "host bits set; write 10.0.0.0/24"},
		{Config{IPv4: p("10.0.0.0/31")}, "too small"},
		{Config{IPv6: p("fd00::/127")}, "too small"},
		{Config{IPv4: p("fd00::/64")}, "other family"},
		{Config{IPv6: p("10.0.0.0/24")}, "other family"},
		{Config{IPv4: p("224.0.0.0/24")}, "multicast"},
		{Config{IPv4: p("127.0.0.0/8")}, "loopback"},
		{Config{IPv6: p("fe80::/64")}, "link-local"},
		{Config{IPv4: p("0.0.0.0/0")}, "unspecified"},
	} {
		_, err := New(tc.cfg)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("New(%v): got error %v, want one with %q", tc.cfg, err, tc.want)
		}
	}
}

func TestRouterIsNeverHandedOut(t *testing.T) {
	m := mustNew(t, "10.0.1.0/29", "fd00:1::/125")
	r4, r6 := m.Router()
	if r4 != netip.MustParseAddr("10.0.1.1") || r6 != netip.MustParseAddr("fd00:1::1") {
		t.Fatalf("router %s %s", r4, r6)
	}
	got := map[netip.Addr]bool{}
	for i := range 5 { // .2 - .6: .0 is the network's, .1 the router's, .7 the broadcast address
		v4, v6, err := m.Allocate(fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		got[v4], got[v6] = true, true
	}
	for _, bad := range []string{"10.0.1.0", "10.0.1.1", "10.0.1.7", "fd00:1::", "fd00:1::1"} {
		if got[netip.MustParseAddr(bad)] {
			t.Errorf("%s was handed out", bad)
		}
		if err := m.AllocateExact("x", netip.MustParseAddr(bad)); !errors.Is(err, ErrOutside) {
			t.Errorf("AllocateExact(%s): got %v, want ErrOutside", bad, err)
		}
	}
	if len(got) != 10 {
		t.Errorf("%d distinct addresses, want 10", len(got))
	}
}

func TestExhaustedSaysHowFullAndLeavesNothing(t *testing.T) {
	m := mustNew(t, "10.0.1.0/24", "fd00:1::/126") // 253 and 2
	for i := range 2 {
		if _, _, err := m.Allocate(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := m.Allocate("third")
	if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "pool fd00:1::/126: 2 of 2 used") {
		t.Fatalf("got %v", err)
	}
	if p := m.Pools(); p[0].Used != 2 || p[0].Size != 253 {
		t.Errorf("after the refused allocation: %+v, want 2 IPv4 addresses used of 253", p[0])
	}
}

func TestLongestFreeFirst(t *testing.T) {
	m := mustNew(t, "10.0.0.0/29", "")
	take := func(owner string) string {
		a, _, err := m.Allocate(owner)
		if err != nil {
			t.Fatal(err)
		}
		return a.String()
	}
	a, b := take("a"), take("b")
	m.Release("b", netip.MustParseAddr(b))
	m.Release("a", netip.MustParseAddr(a))
	for _, want := range []string{"10.0.0.4", "10.0.0.5", "10.0.0.6", b, a} {
		if got := take("c" + want); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestLateReleaseDoesNotFreeTheNextOwner(t *testing.T) {
	m := mustNew(t, "10.0.0.0/30", "")
	a, _, err := m.Allocate("old")
	if err != nil {
		t.Fatal(err)
	}
	if !m.Release("old", a) {
		t.Fatal("first release: not freed")
	}
	if _, _, err := m.Allocate("new"); err != nil {
		t.Fatal(err)
	}
	if m.Release("old", a) {
		t.Error("the late release of the former owner freed the address")
	}
	if err := m.AllocateExact("third", a); !errors.Is(err, ErrTaken) {
		t.Errorf("got %v, want ErrTaken", err)
	}
	if err := m.AllocateExact("new", a); err != nil {
		t.Errorf("same owner again: %v", err)
	}
}

func TestRestoredAddressesPushOn(t *testing.T) {
	m := mustNew(t, "10.0.0.0/29", "fd00::/64")
	for _, a := range []string{"10.0.0.3", "fd00::8000:0:0:1"} {
		if err := m.AllocateExact("r", netip.MustParseAddr(a)); err != nil {
			t.Fatal(err)
		}
	}
	v4, v6, err := m.Allocate("n")
	if err != nil {
		t.Fatal(err)
	}
	if v4.String() != "10.0.0.4" || v6.String() != "fd00::8000:0:0:2" {
		t.Errorf("got %s %s, want the addresses behind the restored ones", v4, v6)
	}
}

// TestModel runs random operations against a plain list of free addresses.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, err := New(Config{IPv4: netip.MustParsePrefix("10.9.0.0/28")})
		if err != nil {
			t.Fatal(err)
		}
		owners := map[netip.Addr]string{}
		var free []netip.Addr // longest free first
		for i := 2; i < 15; i++ {
			free = append(free, netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}))
		}
		t.Repeat(map[string]func(*rapid.T){
			"allocate": func(t *rapid.T) {
				owner := rapid.StringMatching("[a-d]").Draw(t, "owner")
				got, _, err := m.Allocate(owner)
				if len(free) == 0 {
					if !errors.Is(err, ErrExhausted) {
						t.Fatalf("got %v, %v, want ErrExhausted", got, err)
					}
					return
				}
				if err != nil || owners[got] != "" {
					t.Fatalf("got %v, %v with %d free; owner was %q", got, err, len(free), owners[got])
				}
				if i := indexOf(free, got); i < 0 {
					t.Fatalf("got %v, which is not free: %v", got, free)
				} else {
					free = append(free[:i:i], free[i+1:]...)
				}
				owners[got] = owner
			},
			"release": func(t *rapid.T) {
				owner := rapid.StringMatching("[a-d]").Draw(t, "owner")
				addr := netip.AddrFrom4([4]byte{10, 9, 0, byte(rapid.IntRange(0, 16).Draw(t, "n"))})
				freed := m.Release(owner, addr)
				if want := owners[addr] == owner; freed != want {
					t.Fatalf("Release(%s, %s) = %v, owner %q", owner, addr, freed, owners[addr])
				}
				if freed {
					delete(owners, addr)
					free = append(free, addr)
				}
			},
			"exact": func(t *rapid.T) {
				owner := rapid.StringMatching("[a-d]").Draw(t, "owner")
				addr := netip.AddrFrom4([4]byte{10, 9, 0, byte(rapid.IntRange(0, 16).Draw(t, "n"))})
				err := m.AllocateExact(owner, addr)
				i := indexOf(free, addr)
				if ok := i >= 0 || owners[addr] == owner; ok != (err == nil) {
					t.Fatalf("AllocateExact(%s, %s) = %v; free %v, owner %q", owner, addr, err, i >= 0, owners[addr])
				}
				if i >= 0 {
					free = append(free[:i:i], free[i+1:]...)
					owners[addr] = owner
				}
			},
			"": func(t *rapid.T) {
				if used := m.Pools()[0].Used; used != uint64(len(owners)) {
					t.Fatalf("used %d, want %d", used, len(owners))
				}
			},
		})
	})
}

func indexOf(s []netip.Addr, a netip.Addr) int {
	for i := range s {
		if s[i] == a {
			return i
		}
	}
	return -1
}

func BenchmarkAllocateRelease(b *testing.B) {
	m := mustNew(b, "10.0.0.0/16", "fd00::/64")
	for b.Loop() {
		v4, v6, err := m.Allocate("x")
		if err != nil {
			b.Fatal(err)
		}
		m.Release("x", v4)
		m.Release("x", v6)
	}
}
