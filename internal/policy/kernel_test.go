package policy_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"porin/internal/policy"
)

// shuffled returns changes in another order, but those of one key in their own.
func shuffled(r *rand.Rand, changes []change) []change {
	queues := map[string][]change{}
	var turns []string
	for _, c := range changes {
		queues[c.key] = append(queues[c.key], c)
		turns = append(turns, c.key)
	}
	r.Shuffle(len(turns), func(i, j int) { turns[i], turns[j] = turns[j], turns[i] })
	var out []change
	for _, key := range turns {
		out = append(out, queues[key][0])
		queues[key] = queues[key][1:]
	}
	return out
}

// TestRootKernelAgreesWithOracle sends random packets through the real programs, whose maps were filled by the engine, the
// endpoints and the datapath through random changes, and compares with the oracle what becomes of them and by which rules.
// Then the same changes happen in another order to rooms that start anew, which must end with the same verdicts.
func TestRootKernelAgreesWithOracle(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	r := policy.NewGenerator(t)
	n := newKernelNode(t, r.IntN(5) > 0)
	st := &stats{by: map[string]int{}}
	worlds := 0
	for ; st.first < 12_000 || !st.everything() && st.first < 300_000; worlds++ {
		o := policy.NewOracle(r, n.dual)
		w := newWorld(t, n, o, st)
		for i := range 1 + o.IntN(pods) {
			peer, ns, given := o.Pod()
			w.do(createPod(i, peer, ns, given, o.Numbers()))
		}
		for i := range 3 + o.IntN(5) {
			w.do(putPolicy(o.Doc(t, fmt.Sprintf("p%d", i))))
		}
		for range 14 {
			w.do(w.random())
			if len(w.pods) == 0 {
				continue
			}
			w.again()
			for range 50 {
				w.first(w.probe())
			}
		}
		if len(w.pods) == 0 {
			peer, ns, given := o.Pod()
			w.do(createPod(0, peer, ns, given, o.Numbers()))
		}
		var probes []flow
		var verdicts []string
		for range 300 {
			f := w.probe()
			probes, verdicts = append(probes, f), append(verdicts, w.first(f))
		}
		order := shuffled(r, w.done)
		w.end()

		w = newWorld(t, n, o, st)
		for _, c := range order {
			w.do(c)
		}
		for i, f := range probes {
			if got := w.first(f); got != verdicts[i] {
				w.fail(f, "after the same changes in another order: %s, before %s", got, verdicts[i])
			}
			st.replayed++
		}
		w.end()
	}
	t.Logf("%d worlds, dual stack %t: %d first packets (%d allowed, %d refused, %d denied, %d audited, %d without a proxy, %d without authentication), %d of them replayed; %d packets of live flows, %d times judged anew, %d times against them; by program %v",
		worlds, n.dual, st.first, st.allowed, st.refused, st.denied, st.audited, st.proxied, st.unproven, st.replayed, st.again, st.rejudged, st.against, st.by)
	if !st.everything() {
		t.Error("some kind of verdict was never made: the generator is broken")
	}
}
