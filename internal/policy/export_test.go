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

// Peer is who the oracle thinks is behind an address, with its named ports and those of all of its identity.
type Peer struct {
	oIdentity
	Own, All []NamedPort
}

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

// Doc makes a random policy that an agent takes: none for nodes.
func (o *Oracle) Doc(t *testing.T, name string) Doc {
	for {
		p := o.policy(name)
		if !slices.ContainsFunc(p.specs, func(s oSpec) bool { return s.nodes }) {
			return Doc{parsed(t, p), p}
		}
	}
}

// Object makes a random document that policies refer to.
func (o *Oracle) Object(t *testing.T) Doc {
	p := o.object()
	return Doc{parsed(t, p), p}
}

// Numbers are random named ports of a workload.
func (o *Oracle) Numbers() []NamedPort { return realPorts(o.numbers()) }

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
func (o *Oracle) Remote() Peer { return Peer{oIdentity: o.workload(1000)} }

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
			return Peer{oIdentity: r}
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
	return Peer{oIdentity: oIdentity{id: 1<<24 + 60000, prefix: block, labels: [][3]string{{"cidr", block, ""}, {"reserved", world, ""}}}}
}

// Identity is p for the engine.
func (p Peer) Identity() identity.Identity { return p.real() }

// Judge asks the oracle about a flow between two ends, of which each that is a pod of this node is judged. Nobody listens
// for what is to be redirected.
func (o *Oracle) Judge(docs []Doc, from, to Peer, fromPod, toPod bool, proto uint8, port uint16) (out Outcome) {
	var policies []oPolicy
	for _, d := range docs {
		policies = append(policies, d.doc)
	}
	out.Action = verdict.Allow
	redirected := false
	ask := func(subject, peer Peer, ports []NamedPort, ingress bool) string {
		var numbers []oNumber
		for _, p := range ports {
			numbers = append(numbers, oNumber{p.Name, p.Proto, p.Port})
		}
		v := oracle(o.cfg, policies, oEnd{subject.oIdentity, numbers}, oEnd{peer.oIdentity, numbers}, ingress, proto, port)
		switch {
		case v.action == "redirect":
			redirected = true
		case v.action == "audit", v.action == "deny" && o.audit:
			out.Action = verdict.Audit
		case v.action == "deny":
			out.Action, out.Reason = verdict.Deny, verdict.PolicyDenied
			if v.explicit {
				out.Reason = verdict.PolicyDenyRule
			}
			if v.auth {
				out.Reason = verdict.AuthRequired
			}
		}
		return v.rules
	}
	if fromPod {
		out.Egress = ask(from, to, to.All, false)
	}
	if toPod && out.Action != verdict.Deny {
		out.Ingress = ask(to, from, to.Own, true)
	}
	if redirected && out.Action != verdict.Deny {
		out.Action, out.Reason = verdict.Deny, verdict.ProxyDown
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
