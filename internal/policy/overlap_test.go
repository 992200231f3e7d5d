package policy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"porin/internal/verdict"
)

// overlapping returns a policy with n rules, the i-th for the ports from i on: at every port another list of rules decides.
func overlapping(t *testing.T, n int, contents string) []*Policy {
	t.Helper()
	var entries []string
	for i := range n {
		entries = append(entries, fmt.Sprintf("{fromEntities: [all], toPorts: [{ports: [{port: %d, endPort: 65535, protocol: TCP}]%s}]}", i+1, contents))
	}
	return mustParse(t, document("p", "app: db", entries))
}

// TestOverlapsAreBounded: rules that overlap in ever new ways make lists of rules, and sets of layer 7 rules, that grow as
// the square of their number. A mebibyte of them must not cost minutes and gigabytes: it is refused, and then denied.
func TestOverlapsAreBounded(t *testing.T) {
	subject := workload(5000, "app=db")
	e := NewEngine(Config{})
	e.UpdatePolicies(overlapping(t, 1200, ""), nil)
	in, _, err := e.Resolve(subject, nil)
	if err != nil {
		t.Fatalf("1,200 ranges that overlap: %v", err)
	}
	remembered := 0
	for _, s := range e.cookies.lists {
		remembered += len(s.ids)
	}
	if limit := (1200 + 10) * maxNamed; remembered > limit {
		t.Errorf("%d rules remembered in lists, want at most %d", remembered, limit)
	}
	v := in.Lookup(1000, ProtoTCP, 1200)
	if refs := e.Explain(v.Cookie); v.Action != verdict.Allow || len(refs) != maxNamed+1 || refs[maxNamed].String() != "and 944 more" {
		t.Errorf("port 1200: %v by %d rules, the last %v", v, len(refs), refs[len(refs)-1])
	}

	e = NewEngine(Config{MaxRows: 20000})
	e.UpdatePolicies(overlapping(t, 1000, ", rules: {http: []}"), nil)
	if _, _, err = e.Resolve(subject, nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("1,000 ranges that overlap, with layer 7: error %v, want ErrTooLarge", err)
	}
	d := e.Decide(workload(5001, "app=web"), subject, ProtoTCP, 1).Ingress
	if why := fmt.Sprint(e.Explain(d.Cookie)); d.Action != verdict.Deny || !strings.Contains(why, "too large") {
		t.Errorf("decided without a subject: %v because of %s; want a denial that says it is too large", d, why)
	}
	e.UpdatePolicies(overlapping(t, 50, ", rules: {http: []}"), nil)
	if _, _, err = e.Resolve(subject, nil); err != nil {
		t.Errorf("50 ranges that overlap, with layer 7: %v", err)
	}
}

// TestLongListsDoNotDependOnOrder: of more rules than are remembered, the same ones are, whoever comes first.
func TestLongListsDoNotDependOnOrder(t *testing.T) {
	var want string
	for round := range 4 {
		e := NewEngine(Config{})
		ps := make([]*Policy, 0, 400)
		for i := range 400 {
			ps = append(ps, mustParse(t, document(fmt.Sprintf("p%d", i), "app: db", []string{"{fromEntities: [all]}"}))...)
		}
		rand.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
		for _, p := range ps {
			e.UpdatePolicies([]*Policy{p}, nil)
		}
		in, _, err := e.Resolve(workload(5000, "app=db"), nil)
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(e.Explain(in.Lookup(1000, ProtoTCP, 1).Cookie), e.Explain(in.Default))
		if round == 0 {
			want = got
		} else if got != want {
			t.Fatalf("another order, other rules: %.300s\nwant %.300s", got, want)
		}
		if n := strings.Count(got, "and 144 more"); n != 2 {
			t.Fatalf("%d lists tell how many more there are, want 2", n)
		}
	}
}
