package endpoint

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// probe is a packet that a test asks the kernel about.
type probe struct {
	device string
	dir    verdict.Direction
	remote netip.Addr
	port   uint16
}

// remotes are addresses in and around the CIDRs that random policies name.
var remotes = []netip.Addr{
	netip.MustParseAddr("20.0.0.1"), netip.MustParseAddr("20.1.0.1"), netip.MustParseAddr("20.1.2.1"),
	netip.MustParseAddr("20.1.2.200"), netip.MustParseAddr("30.0.0.1"), netip.MustParseAddr("fd20::1"),
}

var blocks = []string{"20.0.0.0/8", "20.1.0.0/16", "20.1.2.0/24", "20.1.2.200/32", "30.0.0.0/8", "0.0.0.0/0", "fd20::/16"}

var ports = []uint16{80, 443}

// judgements asks the kernel everything. The lock is held.
func judgements(k *kernelModel) map[probe]verdict.Action {
	out := map[probe]verdict.Action{}
	all := slices.Clone(remotes)
	for _, r := range k.rows {
		all = append(all, r.ep.IPv4, r.ep.IPv6)
	}
	for ifindex, r := range k.rows {
		for _, remote := range all {
			for _, dir := range []verdict.Direction{verdict.Ingress, verdict.Egress} {
				for _, port := range ports {
					out[probe{r.ep.Device, dir, remote, port}] = k.verdict(ifindex, dir, remote, port)
				}
			}
		}
	}
	return out
}

// randomPolicy writes a policy about the apps a, b and c.
func randomPolicy(r *rand.Rand, name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: %s, namespace: default}\nspec:\n", name)
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	fmt.Fprintf(&b, "  endpointSelector: {%s}\n", pick("", "matchLabels: {app: a}", "matchLabels: {app: b}"))
	for _, dir := range []string{"ingress", "egress"} {
		from := map[string]string{"ingress": "from", "egress": "to"}[dir]
		for _, deny := range []string{"", "Deny"} {
			n := r.IntN(3)
			if n == 0 {
				continue
			}
			fmt.Fprintf(&b, "  %s%s:\n", dir, deny)
			for range n {
				switch r.IntN(5) {
				case 4:
					fmt.Fprintf(&b, "  - %sCIDRSet: [{cidrGroupRef: g, except: [20.1.2.0/24]}]\n", from)
				case 0:
					fmt.Fprintf(&b, "  - %sEndpoints: [{matchLabels: {app: %s}}]\n", from, pick("a", "b", "c"))
				case 1:
					fmt.Fprintf(&b, "  - %sEntities: [%s]\n", from, pick("world", "all", "cluster"))
				case 2:
					fmt.Fprintf(&b, "  - %sCIDR: [%s]\n", from, pick(blocks...))
				case 3:
					fmt.Fprintf(&b, "  - %sCIDRSet: [{cidr: 20.0.0.0/8, except: [%s]}]\n", from, pick("20.1.0.0/16", "20.1.2.0/24", "20.1.2.200/32"))
				}
				if r.IntN(2) == 0 {
					fmt.Fprintf(&b, "    toPorts: [{ports: [{port: \"%s\", protocol: TCP}]}]\n", pick("80", "443"))
				}
			}
		}
	}
	if !strings.Contains(b.String(), "gress") {
		b.WriteString("  ingress: []\n")
	}
	return b.String()
}

// randomGroup writes the group of blocks that random policies refer to.
func randomGroup(r *rand.Rand) string {
	var some []string
	for range r.IntN(3) {
		some = append(some, "'"+blocks[r.IntN(len(blocks))]+"'")
	}
	return "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: g}\nspec: {externalCIDRs: [" + strings.Join(some, ", ") + "]}\n"
}

// TestChangesAreNeverMixed applies random changes and asks the kernel after each single row that is written: every
// verdict is that of the rules before or that of the rules after, and once the new one has been seen the old one does not
// come back.
func TestChangesAreNeverMixed(t *testing.T) {
	seed := soakSeed(t)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 40 {
		a := startAgent(t, newModel(), newStore(), filepath.Join(t.TempDir(), "state"), func(c *Config) { c.Grace = time.Nanosecond })
		a.apply()
		for _, app := range []string{"a", "b", "c"} {
			a.create(app, "k8s:app="+app)
		}
		for range 15 {
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
			switch r.IntN(4) {
			case 0:
				put = append(put, parse(t, randomGroup(r))...)
			case 1:
				del = append(del, policy.Ref{Kind: policy.KindCIDRGroup, Name: "g"})
			}
			checkChange(t, a, put, del)
		}
		// The same rules from scratch give the same verdicts.
		fresh := newAgent(t)
		for _, app := range []string{"a", "b", "c"} {
			fresh.create(app, "k8s:app="+app)
		}
		if _, err := fresh.ApplyPolicies(t.Context(), a.engine.Policies(), nil); err != nil {
			t.Fatal(err)
		}
		got, want := judgements(a.kernel), judgements(fresh.kernel)
		for p, w := range want {
			if got[p] != w {
				t.Fatalf("%+v: after many changes %s, from scratch %s", p, got[p], w)
			}
		}
		if t.Failed() {
			return
		}
	}
}

func checkChange(t *testing.T, a *agent, put []*policy.Policy, del []policy.Ref) {
	t.Helper()
	before := judgements(a.kernel)
	var seen []map[probe]verdict.Action
	var ops []string
	a.kernel.step = func(op string) {
		seen = append(seen, judgements(a.kernel))
		ops = append(ops, op)
	}
	if _, err := a.ApplyPolicies(context.Background(), put, del); err != nil {
		t.Fatal(err)
	}
	a.retry(t.Context()) // sweeps what has left
	a.kernel.step = nil
	after := judgements(a.kernel)
	for p := range after {
		flipped := false
		for i, s := range seen {
			switch {
			case s[p] == after[p] && s[p] != before[p]:
				flipped = true
			case s[p] != before[p] && s[p] != after[p], flipped && s[p] != after[p]:
				t.Fatalf("%+v: %s before, %s after, but %s after step %d (%s) of\n%s\nput %s\ndel %v",
					p, before[p], after[p], s[p], i, ops[i], strings.Join(ops, "\n"), texts(put), del)
			}
		}
	}
}

func texts(ps []*policy.Policy) (out []string) {
	for _, p := range ps {
		out = append(out, p.YAML)
	}
	return out
}

// TestOrderOfWrites pins the order that the comment of ApplyPolicies promises.
func TestOrderOfWrites(t *testing.T) {
	a := newAgent(t, randomless("20.0.0.0/8"))
	a.create("a", "k8s:app=a")
	a.kernel.ops = nil
	a.apply(randomless("20.1.0.0/16"))
	want := "PatchSubject PutPrefixes Commit PutSubject WriteEndpoint Commit DeletePrefixes Commit"
	if got := strings.Join(a.kernel.ops, " "); got != want {
		t.Errorf("order of writes:\n got %s\nwant %s", got, want)
	}
	if len(a.kernel.prefixes) != 1 {
		t.Errorf("prefixes: %v", a.kernel.prefixes)
	}
	a.run()
	a.eventually("the identity of the old CIDR is released", func() bool {
		n := 0
		for _, id := range a.ids.List() {
			if id.ID.IsLocal() {
				n++
			}
		}
		return n == 1
	})
}

func randomless(cidr string) string {
	return "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: default}\nspec:\n" +
		"  endpointSelector: {}\n  egress:\n  - toCIDR: [" + cidr + "]\n"
}

// TestMapFull: the endpoint whose rules do not fit is denied, visible and repaired; the others have the new rules.
func TestMapFull(t *testing.T) {
	a := newAgent(t)
	a.run()
	web, other := a.create("web", "k8s:app=web"), a.create("other", "k8s:app=other")
	full := true
	boom := errors.New("map policy_ports is full")
	a.kernel.mu.Lock()
	a.kernel.fail = func(op string) error {
		if op == "PutSubject" && full {
			return boom
		}
		return nil
	}
	a.kernel.mu.Unlock()
	rev := a.apply(allowWeb)
	if row, _ := a.ByID(web.ID); row.Phase != NotReady || !strings.Contains(row.Message, boom.Error()) {
		t.Errorf("row of web: %s %q", row.Phase, row.Message)
	}
	if row, _ := a.ByID(other.ID); row.Phase != Ready || row.Revision != rev {
		t.Errorf("row of other: %s, revision %d, want ready at %d", row.Phase, row.Revision, rev)
	}
	if a.can(web, verdict.Egress, remotes[0], 80) {
		t.Error("web talks although its rules could not be written")
	}
	if !a.can(other, verdict.Egress, remotes[0], 80) {
		t.Error("other is denied too")
	}
	if al := a.Alarms(); len(al) != 1 || !strings.Contains(al[0], "default/web") {
		t.Errorf("alarms: %q", al)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.WaitRevision(ctx, rev); err == nil || !strings.Contains(err.Error(), "endpoint 1") {
		t.Errorf("WaitRevision: %v", err)
	}
	if t.Failed() {
		return // what follows would wait for ever
	}
	a.kernel.mu.Lock()
	full = false
	a.kernel.mu.Unlock()
	if err := a.WaitRevision(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	if !a.can(web, verdict.Egress, remotes[0], 80) || len(a.Alarms()) != 0 {
		t.Errorf("not repaired: alarms %q", a.Alarms())
	}
}

// TestIdentitiesRest: a block that no rule needs any more is gone at once, its identity and rows not before the packets
// under way that may hold it.
func TestIdentitiesRest(t *testing.T) {
	now := time.Unix(1e9, 0)
	a := startAgent(t, newModel(), newStore(), filepath.Join(t.TempDir(), "state"), func(c *Config) {
		c.Grace, c.Now = time.Minute, func() time.Time { return now }
	})
	a.apply()
	a.create("web", "k8s:app=web")
	block := netip.MustParsePrefix("198.51.100.0/24")
	a.apply(randomless(block.String()))
	id, there := a.kernel.prefixes[block]
	if !there {
		t.Fatal("the block has no row")
	}
	a.apply(randomless("203.0.113.0/24"))
	for _, c := range []struct {
		later time.Duration
		known bool
	}{{0, true}, {time.Minute - 1, true}, {1, false}} {
		now = now.Add(c.later)
		a.sweepPrefixes()
		if _, there := a.kernel.prefixes[block]; there {
			t.Error("the block still has its row")
		}
		if _, known := a.ids.Get(id); known != c.known {
			t.Errorf("after %s more: its identity is known: %v", c.later, known)
		}
	}
}

// TestPatchThatFails denies the endpoints whose subject could not learn of an identity: it would be judged as everyone
// else.
func TestPatchThatFails(t *testing.T) {
	a := newAgent(t, allowWeb)
	web := a.create("web", "k8s:app=web")
	fails := 0
	a.kernel.fail = func(op string) error {
		if op == "PatchSubject" {
			fails++
			return errors.New("no room")
		}
		return nil
	}
	client := a.create("client", "k8s:app=client")
	row, _ := a.ByID(web.ID)
	if fails != 1 || row.Phase != NotReady || a.can(web, verdict.Ingress, client.IPv4, 80) {
		t.Fatalf("%d patches failed; web is %s", fails, row.Phase)
	}
	a.run()
	a.eventually("web is ready", func() bool { row, _ := a.ByID(web.ID); return row.Phase == Ready })
	if !a.can(web, verdict.Ingress, client.IPv4, 80) {
		t.Error("the rewritten subject does not know the client")
	}
}

// TestPrefixesThatDoNotFit: the change is refused whole.
func TestPrefixesThatDoNotFit(t *testing.T) {
	a := newAgent(t, allowWeb)
	ep := a.create("a", "k8s:app=a")
	before := judgements(a.kernel)
	a.kernel.fail = func(op string) error {
		if op == "PutPrefixes" {
			return errors.New("no room")
		}
		return nil
	}
	rev, err := a.ApplyPolicies(t.Context(), parse(t, randomless("20.0.0.0/8")), nil)
	if err == nil || rev != 0 || a.Revision() != 1 || !strings.Contains(err.Error(), "nothing has changed") {
		t.Fatalf("revision %d, %v", rev, err)
	}
	for p, v := range judgements(a.kernel) {
		if before[p] != v {
			t.Errorf("%+v was %s, is %s", p, before[p], v)
		}
	}
	if row, _ := a.ByID(ep.ID); row.Phase != Ready {
		t.Errorf("the endpoint is %s", row.Phase)
	}
	a.kernel.fail = nil
	a.apply(randomless("20.0.0.0/8"))
	if !a.can(ep, verdict.Egress, remotes[0], 80) || a.can(ep, verdict.Egress, netip.MustParseAddr("30.0.0.1"), 80) {
		t.Error("the rules are not in force after all")
	}
}

// TestCommitIsOwed: a commit that fails is an error and an alarm, and is made up for.
func TestCommitIsOwed(t *testing.T) {
	a := newAgent(t)
	bad := true
	a.kernel.fail = func(op string) error {
		if op == "Commit" && bad {
			return errors.New("no")
		}
		return nil
	}
	if rev, err := a.ApplyPolicies(t.Context(), parse(t, allowWeb), nil); err == nil || rev != 2 || len(a.Alarms()) != 1 {
		t.Fatalf("revision %d, %v, alarms %q", rev, err, a.Alarms())
	}
	a.run()
	a.kernel.mu.Lock()
	bad = false
	a.kernel.mu.Unlock()
	a.eventually("the commit is done", func() bool { return len(a.Alarms()) == 0 })
}

func TestSetLabels(t *testing.T) {
	a := newAgent(t, allowWeb)
	web, client := a.create("web", "k8s:app=web"), a.create("client", "k8s:app=client")
	if !a.can(web, verdict.Ingress, client.IPv4, 80) {
		t.Fatal("client is not allowed at first")
	}
	moved, err := a.SetLabels(t.Context(), client.ID, labels.Labels{{Source: "k8s", Key: "app", Value: "guest"}}, nil)
	if err != nil || moved.Identity == client.Identity || moved.Phase != Ready {
		t.Fatalf("%+v, %v", moved, err)
	}
	if a.can(web, verdict.Ingress, client.IPv4, 80) || a.can(web, verdict.Ingress, client.IPv6, 80) {
		t.Error("the client keeps what its old labels allowed")
	}
	if _, err := a.SetLabels(t.Context(), client.ID, nil, labels.Labels{{Source: "unspec", Key: "app"}}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "k8s:app=guest") {
		t.Errorf("taking away a label without its source: %v; want to be told of k8s:app=guest", err)
	}
	if _, err := a.SetLabels(t.Context(), client.ID, nil, labels.Labels{{Source: "k8s", Key: "app"}, {Source: "k8s", Key: "none"}}); err != nil {
		t.Fatal(err)
	}
	back, err := a.SetLabels(t.Context(), client.ID, labels.Labels{{Source: "k8s", Key: "app", Value: "client"}}, nil)
	if err != nil || back.Identity != client.Identity || !a.can(web, verdict.Ingress, client.IPv4, 80) {
		t.Errorf("back: %+v, %v", back, err)
	}
	for _, l := range []labels.Label{{Source: "reserved", Key: "host"}, {Source: "k8s", Key: labels.KeyNamespace, Value: "kube-system"}} {
		if _, err := a.SetLabels(t.Context(), client.ID, labels.Labels{l}, nil); !errors.Is(err, ErrRefused) {
			t.Errorf("adding %s: got %v, want ErrRefused", l, err)
		}
		if _, err := a.SetLabels(t.Context(), client.ID, nil, labels.Labels{l}); !errors.Is(err, ErrRefused) {
			t.Errorf("removing %s: got %v, want ErrRefused", l, err)
		}
	}
	if log := a.Log(client.ID); len(log) < 3 || log[len(log)-1].Phase != Ready {
		t.Errorf("log: %+v", log)
	}
	for _, name := range []string{"web", "client"} {
		if err := a.Delete(t.Context(), name, "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	a.empty()
}

// TestIdentitiesOfOtherNodes: they are in the subjects as soon as the table has them, and go with it.
func TestIdentitiesOfOtherNodes(t *testing.T) {
	a := newAgent(t, allowWeb)
	web := a.create("web", "k8s:app=web")
	a.run()
	far := identity.Identity{ID: 900, Labels: labels.New(
		labels.Label{Source: "k8s", Key: "app", Value: "client"}, labels.Label{Source: "k8s", Key: labels.KeyNamespace, Value: "default"})}
	has := func() bool {
		a.kernel.mu.Lock()
		defer a.kernel.mu.Unlock()
		return a.kernel.rows[web.Ifindex].in.peers[far.ID] != nil
	}
	a.cfg.Identities.Put(far)
	a.eventually("the subject knows it", has)
	a.cfg.Identities.Delete("0000000900")
	a.eventually("the subject has forgotten it", func() bool { return !has() })
	if err := a.Learn(t.Context(), far); err != nil || !has() {
		t.Errorf("Learn: %v, known %v", err, has())
	}
	// nobody tells a second time that it is not in the table
	a.cfg.Identities.Put(identity.Identity{ID: 901, Labels: labels.New(labels.Label{Source: "k8s", Key: "app", Value: "other"})})
	a.eventually("the subject has forgotten what came late", func() bool { return !has() })
}

// TestIdentityOfAnEndpointThatTheStoreForgot: what an endpoint here has stays known until the endpoint goes.
func TestIdentityOfAnEndpointThatTheStoreForgot(t *testing.T) {
	a := newAgent(t, allowWeb)
	web, client := a.create("web", "k8s:app=web"), a.create("client", "k8s:app=client")
	a.run()
	has := func() bool {
		a.kernel.mu.Lock()
		defer a.kernel.mu.Unlock()
		return a.kernel.rows[web.Ifindex].in.peers[client.Identity] != nil
	}
	other := func(id identity.ID) {
		a.cfg.Identities.Put(identity.Identity{ID: id, Labels: labels.New(labels.Label{Source: "k8s", Key: "app", Value: fmt.Sprint(id)})})
		a.eventually("the change is told", func() bool {
			if err := a.take(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer a.give()
			_, known := a.Endpoints.kernel.known[id]
			return known
		})
	}
	a.eventually("the subject knows the client", has)
	a.cfg.Identities.Delete(fmt.Sprintf("%010d", uint32(client.Identity)))
	other(901)
	if !has() {
		t.Error("an endpoint's identity was forgotten because the store did")
	}
	if err := a.Delete(t.Context(), "client", "eth0"); err != nil {
		t.Fatal(err)
	}
	other(902)
	a.eventually("the subject has forgotten it", func() bool { return !has() })
}

func TestPoliciesTable(t *testing.T) {
	a := newAgent(t)
	a.create("web", "k8s:app=web")
	a.create("client", "k8s:app=client")
	a.apply(allowWeb)
	rows := a.PolicyTable().List()
	if len(rows) != 1 || rows[0].Revision != 2 || rows[0].Endpoints != 1 || rows[0].Source != "test.yaml" || rows[0].Rules != 1 {
		t.Fatalf("policies table: %+v", rows)
	}
	a.run()
	a.create("web2", "k8s:app=web")
	a.eventually("the new endpoint is counted", func() bool { return a.PolicyTable().List()[0].Endpoints == 2 })
	if _, err := a.ApplyPolicies(t.Context(), nil, []policy.Ref{rows[0].Ref}); err != nil || a.PolicyTable().Len() != 0 {
		t.Errorf("after the deletion: %+v, %v", a.PolicyTable().List(), err)
	}
}

// BenchmarkApply replaces one of 100 policies on a node of 250 endpoints of 25 kinds.
func BenchmarkApply(b *testing.B) {
	a := newAgent(b)
	for i := range 250 {
		a.create(fmt.Sprintf("p%d", i), fmt.Sprintf("k8s:app=a%d", i%25))
	}
	doc := func(i, port int) string {
		return fmt.Sprintf("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p%d, namespace: default}\nspec:\n"+
			"  endpointSelector: {matchLabels: {app: a%d}}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: a%d}}]\n"+
			"    toPorts: [{ports: [{port: \"%d\", protocol: TCP}]}]\n", i, i%25, (i*7)%25, port)
	}
	for i := range 100 {
		a.apply(doc(i, 80))
	}
	for i := 0; b.Loop(); i++ {
		a.apply(doc(0, 1000+i%1000))
	}
}
