package endpoint

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"porin/internal/policy"
	"porin/internal/verdict"
)

// TestFaultsNeverWiden lets calls to the kernel fail at random during random changes. In every state every verdict is
// that of the rules before, that of the rules after, or deny; a change that reports revision 0 has changed nothing;
// whoever is denied for it is not ready and says why; and when the kernel works again all is as if nothing had failed.
func TestFaultsNeverWiden(t *testing.T) {
	seed := soakSeed(t)
	r := rand.New(rand.NewPCG(seed, 2))
	for range 15 {
		a, mirror := newAgent(t), newAgent(t)
		for _, app := range []string{"a", "b", "c"} {
			a.create(app, "k8s:app="+app)
			mirror.create(app, "k8s:app="+app)
		}
		for range 12 {
			faultyChange(t, r, a, mirror)
			if t.Failed() {
				return
			}
		}
	}
}

func faultyChange(t *testing.T, r *rand.Rand, a, mirror *agent) {
	t.Helper()
	var put []*policy.Policy
	var del []policy.Ref
	for i := range 3 {
		name := fmt.Sprintf("p%d", i)
		switch r.IntN(3) {
		case 0:
			put = append(put, parse(t, randomPolicy(r, name))...)
		case 1:
			del = append(del, policy.Ref{Kind: policy.KindNetworkPolicy, Namespace: "default", Name: name})
		}
	}
	before := judgements(a.kernel)
	var seen []map[probe]verdict.Action
	var ops []string
	a.kernel.step = func(op string) {
		seen = append(seen, judgements(a.kernel))
		ops = append(ops, op)
	}
	a.kernel.fail = func(op string) error {
		if r.IntN(6) == 0 {
			ops = append(ops, op+" fails")
			return errors.New("injected")
		}
		return nil
	}
	rev, err := a.ApplyPolicies(t.Context(), put, del)
	a.kernel.step, a.kernel.fail = nil, nil
	if rev == 0 && err == nil {
		t.Fatal("revision 0 without an error")
	}
	if rev != 0 {
		if _, err := mirror.ApplyPolicies(t.Context(), put, del); err != nil {
			t.Fatal(err)
		}
	}
	after := judgements(mirror.kernel)
	seen = append(seen, judgements(a.kernel))
	for _, s := range seen {
		for p, v := range s {
			if v != verdict.Deny && v != before[p] && v != after[p] {
				t.Fatalf("%+v: %s before, %s after, but %s in between (revision %d, %v):\n%s\nput %s\ndel %v",
					p, before[p], after[p], v, rev, err, strings.Join(ops, "\n"), texts(put), del)
			}
		}
	}
	for p, v := range seen[len(seen)-1] {
		row, ok := a.byDevice(p.device)
		if ok && v != after[p] && row.Phase == Ready {
			t.Fatalf("%+v is %s and not %s, and its endpoint looks ready:\n%s", p, v, after[p], strings.Join(ops, "\n"))
		}
	}
	// The kernel works again.
	deadline := time.Now().Add(time.Minute)
	for ready := false; !ready; {
		if time.Now().After(deadline) {
			t.Fatalf("not repaired in a minute: %+v, alarms %q", a.List(), a.Alarms())
		}
		if _, err := a.ApplyPolicies(t.Context(), nil, nil); err != nil {
			t.Fatal(err)
		}
		a.retry(t.Context())
		ready = len(a.Alarms()) == 0
	}
	for p, v := range judgements(a.kernel) {
		if after[p] != v {
			t.Fatalf("repaired, and %+v is %s, not %s:\n%s", p, v, after[p], strings.Join(ops, "\n"))
		}
	}
}
