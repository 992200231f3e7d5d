package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"porin/internal/verdict"
)

// rule is what a verdict can name.
type rule struct {
	ref RuleRef
	id  uint64 // hash of what names it - not of where its file is, nor of what it says: it outlives restarts and moves
}

func newRule(ref RuleRef) *rule {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %d %d %d %t", ref.Policy.Kind, ref.Policy.Namespace, ref.Policy.Name, ref.Spec,
		ref.Index, ref.Direction, ref.Deny))
	return &rule{ref, binary.BigEndian.Uint64(sum[:])}
}

// statement is one entry of a policy, ready to be resolved.
type statement struct {
	rule
	order  uint64 // tier and priority: lower decides first
	effect Effect
	all    bool         // everyone, known or not
	peers  []*selection // unless all
	ports  []Port       // nil: every protocol and port

	mark       uint64 // scratch: the last list that it was put on
	pos, count int32  // scratch of the flattener: place among the active, its ports that cover the current piece
}

// compiled is a rule of a policy in force: whom it selects and its statements in both directions.
type compiled struct {
	subject selector
	parts   [3]part // by direction
	digest  [16]byte
}

type part struct {
	statements []*statement
	isolates   *rule    // nil: does not
	digest     [16]byte // of everything in the part
}

func (p *part) empty() bool { return len(p.statements) == 0 && p.isolates == nil }

func order(t Tier, priority uint32) uint64 { return uint64(t)<<32 | uint64(priority) }

// compile makes r ready. Selections are acquired from the engine: see release.
func (e *Engine) compile(p *Policy, r *Rule) *compiled {
	c := &compiled{subject: scope(r.Subject, p.Namespace, true)}
	for _, d := range []verdict.Direction{verdict.Ingress, verdict.Egress} {
		sec, part := r.Section(d), &c.parts[d]
		h := sha256.New()
		for _, deny := range []bool{true, false} {
			list := sec.Allow
			if deny {
				list = sec.Deny
			}
			for i, entry := range list {
				if entry.selectsNothing() {
					continue
				}
				st := &statement{
					rule: *newRule(RuleRef{
						Policy: p.Ref, Spec: r.Spec, Index: i, Direction: d, Deny: deny, File: p.File,
						Line: entry.Line, Description: r.Description,
					}),
					order: order(r.Tier, r.Priority), effect: EffectAllow, ports: entry.Ports,
				}
				if deny {
					st.effect = EffectDeny
				}
				e.cookies.know(&st.rule)
				e.peers(st, &entry.Peers, p.Namespace)
				part.statements = append(part.statements, st)
				st.digest(h.Write)
			}
		}
		if sec.Isolates() {
			part.isolates = newRule(RuleRef{
				Policy: p.Ref, Spec: r.Spec, Index: -1, Direction: d, File: p.File, Line: r.Line,
				Description: r.Description,
			})
			e.cookies.know(part.isolates)
			fmt.Fprintf(h, "isolates %d", part.isolates.id)
		}
		copy(part.digest[:], h.Sum(nil))
	}
	whole := sha256.Sum256(append(c.parts[verdict.Ingress].digest[:], c.parts[verdict.Egress].digest[:]...))
	copy(c.digest[:], whole[:])
	return c
}

// peers acquires the selections of an entry.
func (e *Engine) peers(st *statement, p *Peers, namespace string) {
	add := func(s *selection) {
		s = e.acquire(s)
		if slices.Contains(st.peers, s) {
			s.refs--
			return
		}
		st.peers = append(st.peers, s)
	}
	switch p.Kind {
	case PeersAny:
		st.all = true
	case PeersEndpoints:
		for _, s := range p.Endpoints {
			want := scope(s, namespace, false)
			add(&selection{key: fmt.Sprintf("labels %t %s", want.workload, want.Selector), want: want})
		}
	case PeersEntities:
		for _, name := range p.Entities {
			if name == "all" {
				st.all = true
				continue
			}
			add(&selection{key: "entity " + name, entity: name})
		}
	case PeersCIDR, PeersCIDRSet:
		for _, c := range p.CIDRs {
			add(&selection{key: "cidr " + c.String(), cidr: c})
		}
	}
	slices.SortFunc(st.peers, func(a, b *selection) int { return strings.Compare(a.key, b.key) })
}

// digest writes everything that the statement decides.
func (st *statement) digest(write func([]byte) (int, error)) {
	b := binary.BigEndian.AppendUint64(nil, st.id)
	b = binary.BigEndian.AppendUint64(b, st.order)
	b = append(b, byte(st.effect), byte(b2i(st.all)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(st.peers)))
	for _, s := range st.peers {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s.key)))
		b = append(b, s.key...)
	}
	b = append(b, byte(b2i(st.ports == nil)))
	for _, p := range st.ports {
		b = append(b, p.Proto, byte(b2i(p.Any)), byte(b2i(p.AnyProto)))
		b = binary.BigEndian.AppendUint16(b, p.First)
		b = binary.BigEndian.AppendUint16(b, p.Last)
	}
	_, _ = write(binary.BigEndian.AppendUint32(b, uint32(len(st.ports))))
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func compareRefs(a, b RuleRef) int {
	return cmp.Or(strings.Compare(a.Policy.Kind, b.Policy.Kind), strings.Compare(a.Policy.Namespace, b.Policy.Namespace),
		strings.Compare(a.Policy.Name, b.Policy.Name), cmp.Compare(a.Spec, b.Spec), cmp.Compare(a.Direction, b.Direction),
		cmp.Compare(b2i(a.Deny), b2i(b.Deny)), cmp.Compare(a.Index, b.Index))
}
