package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestCIDRIdentity(t *testing.T) {
	dual := newNode(newFakeStore())
	single := newNode(newFakeStore(), func(c *Config) { c.DualStack = false })
	for _, c := range []struct {
		n            *node
		prefix, want string
	}{
		{dual, "10.0.0.0/8", "cidr:10.0.0.0/8,reserved:world-ipv4"},
		{dual, "10.1.2.3/8", "cidr:10.0.0.0/8,reserved:world-ipv4"},
		{dual, "::ffff:10.0.0.0/104", "cidr:10.0.0.0/8,reserved:world-ipv4"},
		{dual, "fd00::1/64", "cidr:fd00::/64,reserved:world-ipv6"},
		{dual, "0.0.0.0/0", "cidr:0.0.0.0/0,reserved:world-ipv4"},
		{dual, "::/0", "cidr:::/0,reserved:world-ipv6"},
		{single, "10.0.0.0/8", "cidr:10.0.0.0/8,reserved:world"},
	} {
		id, _, err := c.n.AllocateCIDR(netip.MustParsePrefix(c.prefix))
		if err != nil || id.Labels.String() != c.want {
			t.Errorf("%s: %s %v want %s", c.prefix, id.Labels, err, c.want)
		}
		if row, ok := c.n.Get(id.ID); !ok || row.Prefix != id.Prefix || !id.ID.IsLocal() {
			t.Errorf("%s: row %v %v", c.prefix, row, ok)
		}
	}
	if _, _, err := dual.AllocateCIDR(netip.Prefix{}); err == nil {
		t.Error("an invalid prefix got an identity")
	}
}

func TestCIDRReferences(t *testing.T) {
	n := newNode(newFakeStore())
	p := netip.MustParsePrefix("10.0.0.0/8")
	a, first, _ := n.AllocateCIDR(p)
	b, second, _ := n.AllocateCIDR(netip.MustParsePrefix("10.9.9.9/8"))
	if !first || second || a.ID != b.ID {
		t.Fatalf("%v %v, %v %v: want one number, new the first time only", a.ID, first, b.ID, second)
	}
	if id, last := n.ReleaseCIDR(p); last || id != a.ID {
		t.Errorf("first release: %v %v", id, last)
	}
	if id, last := n.ReleaseCIDR(p); !last || id != a.ID {
		t.Errorf("second release: %v %v", id, last)
	}
	if id, last := n.ReleaseCIDR(p); last || id != Unknown {
		t.Errorf("third release: %v %v", id, last)
	}
	if _, ok := n.Get(a.ID); ok {
		t.Error("row left behind")
	}
}

func TestFreedNumbersRest(t *testing.T) {
	n := newNode(newFakeStore(), func(c *Config) { c.LastLocal = firstLocal + 2 })
	ps := prefixes(4)
	first := mustCIDR(t, n, ps[0])
	mustCIDR(t, n, ps[1])
	mustCIDR(t, n, ps[2])
	if _, _, err := n.AllocateCIDR(ps[3]); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "all 3 are in use") {
		t.Fatalf("a fourth of three numbers: %v", err)
	}
	n.ReleaseCIDR(ps[0])
	n.now = n.now.Add(59 * time.Second)
	if _, _, err := n.AllocateCIDR(ps[3]); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "1 rest after use, the next is free in 1s") {
		t.Fatalf("while the only free number rests: %v", err)
	}
	n.now = n.now.Add(time.Second)
	if again := mustCIDR(t, n, ps[3]); again != first {
		t.Errorf("got %d after the rest, want %d", again, first)
	}
}

func TestRestoreCIDRs(t *testing.T) {
	n := newNode(newFakeStore())
	kept, dropped := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")
	n.RestoreCIDRs(map[netip.Prefix]ID{
		kept:                                ScopeLocal + 70,
		dropped:                             ScopeLocal + 90,
		netip.MustParsePrefix("10.1.1.1/8"): ScopeLocal + 91, // the same prefix once more
		netip.MustParsePrefix("1.0.0.0/8"):  300,             // not a local number
		netip.MustParsePrefix("2.0.0.0/8"):  ScopeLocal,
		netip.MustParsePrefix("3.0.0.0/8"):  MaxLocal + 1,
		netip.MustParsePrefix("99.0.0.0/8"): ScopeLocal + 70, // the number of another
		{}:                                  ScopeLocal + 5,
	})
	if got := strings.Count(n.log.String(), "not restored"); got != 6 {
		t.Errorf("%d refusals, want 6:\n%s", got, n.log.String())
	}
	id, isNew, err := n.AllocateCIDR(kept)
	if err != nil || id.ID != ScopeLocal+70 || !isNew {
		t.Errorf("restored prefix: %v %v %v; want its old number, new to policy", id.ID, isNew, err)
	}
	if got := mustCIDR(t, n, netip.MustParsePrefix("7.0.0.0/8")); got <= ScopeLocal+90 {
		t.Errorf("a new prefix got %d, which may have been freed just before the restart", got)
	}
	if got := mustCIDR(t, n, dropped); got != ScopeLocal+90 {
		t.Errorf("a restored prefix got %d", got)
	}
	if id, last := n.ReleaseCIDR(dropped); id != ScopeLocal+90 || !last {
		t.Errorf("release of a restored prefix: %d, last %v", id, last)
	}
	if _, ok := n.Get(ScopeLocal + 90); ok {
		t.Error("row of the released prefix left behind")
	}
}

// Random prefixes come and go over a small range: no number has two prefixes, none is given out while it rests, none
// leaves its range, and the references add up.
func TestCIDRsAgainstModel(t *testing.T) {
	ps := prefixes(12)
	rapid.Check(t, func(t *rapid.T) {
		const size = 8
		n := newNode(newFakeStore(), func(c *Config) { c.LastLocal = firstLocal + size - 1 })
		refs := map[netip.Prefix]int{}
		number := map[netip.Prefix]ID{}
		freed := map[ID]time.Time{}
		one := rapid.SampledFrom(ps)
		t.Repeat(map[string]func(*rapid.T){
			"allocate": func(t *rapid.T) {
				p := one.Draw(t, "p")
				id, isNew, err := n.AllocateCIDR(p)
				if err != nil {
					resting := 0
					for _, at := range freed {
						if n.now.Sub(at) < time.Minute {
							resting++
						}
					}
					if len(number)+resting < size || number[p] != 0 {
						t.Fatalf("%s: %v though %d are in use and %d rest", p, err, len(number), resting)
					}
					return
				}
				if isNew != (refs[p] == 0) {
					t.Fatalf("%s: isNew %v with %d references", p, isNew, refs[p])
				}
				if old, ok := number[p]; ok && old != id.ID {
					t.Fatalf("%s changed from %d to %d", p, old, id.ID)
				}
				if id.ID < firstLocal || id.ID >= firstLocal+size {
					t.Fatalf("%s got %d, outside the range", p, id.ID)
				}
				if at, ok := freed[id.ID]; ok && n.now.Sub(at) < time.Minute {
					t.Fatalf("%d reused after %s", id.ID, n.now.Sub(at))
				}
				for q, o := range number {
					if q != p && o == id.ID {
						t.Fatalf("%d is %s and %s", o, p, q)
					}
				}
				delete(freed, id.ID)
				refs[p]++
				number[p] = id.ID
			},
			"release": func(t *rapid.T) {
				p := one.Draw(t, "p")
				id, last := n.ReleaseCIDR(p)
				if id != number[p] || last != (refs[p] == 1) {
					t.Fatalf("%s: released %d last %v; had %d with %d references", p, id, last, number[p], refs[p])
				}
				if refs[p] > 0 {
					refs[p]--
				}
				if last {
					freed[id] = n.now
					delete(number, p)
				}
			},
			"time": func(t *rapid.T) {
				n.now = n.now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "s")) * time.Second)
			},
			"": func(t *rapid.T) {
				if got := n.Len() - 10; got != len(number) {
					t.Fatalf("%d rows for %d prefixes", got, len(number))
				}
			},
		})
	})
}

func TestWholeLocalRange(t *testing.T) {
	n := newNode(newFakeStore())
	total := int(MaxLocal-firstLocal) + 1
	for i := range total {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		mustCIDR(t, n, netip.PrefixFrom(a, 32))
	}
	if _, _, err := n.AllocateCIDR(netip.MustParsePrefix("11.0.0.0/8")); !errors.Is(err, ErrExhausted) {
		t.Errorf("number %d of %d: %v", total+1, total, err)
	}
}

func mustCIDR(t *testing.T, n *node, p netip.Prefix) ID {
	t.Helper()
	id, _, err := n.AllocateCIDR(p)
	if err != nil {
		t.Fatal(err)
	}
	return id.ID
}

func prefixes(n int) (out []netip.Prefix) {
	for i := range n {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", i)))
	}
	return out
}
