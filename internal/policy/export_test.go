package policy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/verdict"
)

// What the test of the kernel's verdicts (package policy_test, because the datapath imports this one) needs of the oracle.

// Oracle is a random run: its seed, its configuration, and the naive reading of its policies.
type Oracle struct {
	gen
	cfg   oConfig
	audit bool
}

// Doc is a random policy, as the engine and as the oracle read it.
type Doc struct {
	Policy *Policy
	doc    oPolicy
}

// Peer is who the oracle thinks is behind an address.
type Peer struct{ oIdentity }

// Outcome is what must become of the first packet of a flow.
type Outcome struct {
	Action          verdict.Action
	Reason          verdict.Reason
	Egress, Ingress string // rules that decided, "" where nobody was asked
}

// NewGenerator reads or makes the seed.
func NewGenerator(t *testing.T) *rand.Rand { return seed(t).Rand }

// NewOracle makes a random configuration.
func NewOracle(r *rand.Rand, dual bool) *Oracle {
	o := &Oracle{gen: gen{r}}
	o.cfg, o.audit = o.config(), o.chance(20)
	o.cfg.dual, o.cfg.six = dual, false
	return o
}

// Config is the configuration for the engine.
func (o *Oracle) Config() Config {
	c := o.cfg.real()
	c.Audit = o.audit
	return c
}

// Doc makes a random policy.
func (o *Oracle) Doc(t *testing.T, name string) Doc {
	p := o.policy(name)
	return Doc{parsed(t, p), p}
}

// Text is the policy as it was parsed.
func (d Doc) Text() string { return string(d.doc.document()) }

// Blocks are the CIDRs that policies speak of.
func (o *Oracle) Blocks() []netip.Prefix {
	var out []netip.Prefix
	for _, b := range oBlocks() {
		out = append(out, netip.MustParsePrefix(b))
	}
	return out
}

// Remote is a random workload of another node, with labels that only an orchestrator gives.
func (o *Oracle) Remote() Peer { return Peer{o.workload(1000)} }

// Pod is a random workload of this node: what its request says. An empty one is reserved:init.
func (o *Oracle) Pod() (p Peer, namespace string, given labels.Labels) {
	if o.chance(90) {
		namespace = pick(o.gen, "red", "blue", "green")
	}
	return o.Relabeled(namespace)
}

// Relabeled is a random workload of a namespace.
func (o *Oracle) Relabeled(namespace string) (p Peer, ns string, given labels.Labels) {
	p.id = 1000
	for _, l := range o.workload(1000).labels {
		if !labels.IsTrusted(l[1]) && (namespace != "" || o.chance(50)) {
			p.labels = append(p.labels, l)
			given = append(given, labels.Label{Source: l[0], Key: l[1], Value: l[2]})
		}
	}
	if namespace != "" {
		p.labels = append(p.labels, [3]string{"k8s", "io.kubernetes.pod.namespace", namespace})
	}
	if len(p.labels) == 0 {
		p = Reserved(identity.Init)
	}
	return p, namespace, labels.New(given...)
}

// Reserved is one of the identities with a fixed number.
func Reserved(id identity.ID) Peer {
	for _, r := range oReserved() {
		if r.id == uint32(id) {
			return Peer{r}
		}
	}
	return Peer{}
}

// Outside is an address that nobody has. The oracle takes it by itself: it knows nothing of longest prefixes.
func (o *Oracle) Outside(a netip.Addr) Peer {
	block := netip.PrefixFrom(a, a.BitLen()).String()
	world := "world"
	if o.cfg.dual {
		world = "world-ipv6"
		if a.Is4() {
			world = "world-ipv4"
		}
	}
	return Peer{oIdentity{id: 1<<24 + 60000, prefix: block, labels: [][3]string{{"cidr", block, ""}, {"reserved", world, ""}}}}
}

// Identity is p for the engine.
func (p Peer) Identity() identity.Identity { return p.real() }

// Judge asks the oracle about a flow between two ends, of which each that is a pod of this node is judged.
func (o *Oracle) Judge(docs []Doc, from, to Peer, fromPod, toPod bool, proto uint8, port uint16) (out Outcome) {
	var policies []oPolicy
	for _, d := range docs {
		policies = append(policies, d.doc)
	}
	out.Action = verdict.Allow
	ask := func(subject, peer Peer, ingress bool) string {
		v := oracle(o.cfg, policies, subject.oIdentity, peer.oIdentity, ingress, proto, port)
		switch {
		case v.allow:
		case o.audit:
			out.Action = verdict.Audit
		case v.explicit:
			out.Action, out.Reason = verdict.Deny, verdict.PolicyDenyRule
		default:
			out.Action, out.Reason = verdict.Deny, verdict.PolicyDenied
		}
		return v.rules
	}
	if fromPod {
		out.Egress = ask(from, to, false)
	}
	if toPod && out.Action != verdict.Deny {
		out.Ingress = ask(to, from, true)
	}
	return out
}

// Explained names the rules behind a cookie as the oracle names them; "" for none.
func Explained(e *Engine, c Cookie) string {
	if c == 0 {
		return ""
	}
	return explained(e, c)
}

// Ports are worth asking about.
func (o *Oracle) Ports() (proto uint8, port uint16) {
	p := o.packets(1)[0]
	return p.proto, p.port
}

// Sorted puts policies into one order, whatever order they came in.
func Sorted(docs map[Ref]Doc) []Doc {
	var out []Doc
	for _, d := range docs {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b Doc) int { return strings.Compare(a.Policy.Ref.String(), b.Policy.Ref.String()) })
	return out
}
