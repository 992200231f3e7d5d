package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"porin/internal/verdict"
)

// rule is what a verdict can name.
type rule struct {
	ref *RuleRef
	id  uint64 // hash of what names it - not of where its file is, nor of what it says: it outlives restarts and moves
}

func newRule(ref RuleRef) rule {
	b := make([]byte, 0, 256)
	for _, s := range []string{ref.Policy.Kind, ref.Policy.Namespace, ref.Policy.Name} {
		b = append(strconv.AppendQuote(b, s), ' ')
	}
	for _, n := range []int{ref.Spec, ref.Index, int(ref.Direction)} {
		b = append(strconv.AppendInt(b, int64(n), 10), ' ')
	}
	sum := sha256.Sum256(strconv.AppendBool(b, ref.Deny))
	return rule{&ref, binary.BigEndian.Uint64(sum[:])}
}

// statement is one entry of a policy, ready to be resolved.
type statement struct {
	rule
	order  uint64 // tier and priorities: lower decides first
	effect Effect
	audit  bool         // of a rule that only reports
	free   bool         // no requirement narrows it
	all    bool         // everyone, known or not
	peers  []*selection // unless all
	ports  []Port       // nil: every protocol and port
	names  bool         // some of the ports have a name
	sums   []sum        // by port: of what L7 says; nil when none says anything

	mark       uint64 // scratch: the last list that it was put on
	pos, count int32  // scratch of the flattener: place among the active, its ports that cover the current piece
	level      int32  // scratch of the flattener: index of its order
	views      uint8  // scratch of the flattener: in which views it counts
}

// compiled is a rule of a policy in force: whom it selects and its statements in both directions.
type compiled struct {
	subject selector
	parts   [3]*part // by direction; nil: says nothing
	digest  [16]byte
}

type part struct {
	statements []*statement
	requires   []*selection // all of which must hold a peer that is allowed
	isolates   *isolator    // nil: does not
	audit      bool
	digest     [16]byte // of everything in the part
}

// isolator denies what is not allowed.
type isolator struct {
	rule
	audit bool
	last  bool // after the Baseline tier, not before it
}

func (p *part) empty() bool {
	return p == nil || len(p.statements) == 0 && p.isolates == nil && len(p.requires) == 0
}

const entryBits = 24

// order puts tiers first, then the priorities of rules, then those of their entries.
func order(t Tier, priority, entry uint32) uint64 {
	return uint64(t)<<56 | uint64(priority)<<entryBits | uint64(min(entry, 1<<entryBits-1))
}

func tierOf(order uint64) Tier { return Tier(order >> 56) }

// compile makes r ready. Selections are acquired from the engine: see release.
func (e *Engine) compile(p *Policy, r *Rule) *compiled {
	c := &compiled{subject: scope(r.Subject, p.Namespace, true)}
	if r.Nodes {
		c.subject = nodeSelector(r.Subject, true)
	}
	for _, d := range []verdict.Direction{verdict.Ingress, verdict.Egress} {
		sec, part := r.Section(d), &part{audit: r.Audit}
		for _, deny := range []bool{true, false} {
			list := sec.Allow
			if deny {
				list = sec.Deny
			}
			for _, entry := range list {
				effect := EffectAllow
				switch {
				case deny:
					effect = EffectDeny
				case entry.Auth == AuthRequired || entry.Auth == AuthTestAlwaysFail:
					effect = EffectAuth
				}
				e.entry(p, r, part, d, effect, entry)
			}
		}
		for _, entry := range sec.Pass {
			e.entry(p, r, part, d, EffectPass, entry)
		}
		if sec.Isolates() {
			part.isolates = &isolator{
				rule: newRule(RuleRef{
					Policy: p.Ref, Spec: r.Spec, Index: -1, Direction: d, File: p.File, Line: r.Line,
					Description: r.Description,
				}),
				audit: r.Audit, last: r.Tier > TierNormal,
			}
			e.cookies.know(&part.isolates.rule)
		}
		if part.empty() {
			continue
		}
		c.parts[d] = part
		b := e.scratch.bytes[:0]
		for _, st := range part.statements {
			b = st.digest(b)
		}
		if i := part.isolates; i != nil {
			b = fmt.Appendf(b, "isolates %d %t", i.id, i.last)
		}
		for _, s := range part.requires {
			b = fmt.Appendf(b, "requires %d %s", len(s.key), s.key)
		}
		b = fmt.Appendf(b, "audit %t", r.Audit)
		e.scratch.bytes = b
		sum := sha256.Sum256(b)
		copy(part.digest[:], sum[:])
	}
	var both [32]byte
	for i, d := range []verdict.Direction{verdict.Ingress, verdict.Egress} {
		if c.parts[d] != nil {
			copy(both[16*i:], c.parts[d].digest[:])
		}
	}
	whole := sha256.Sum256(both[:])
	copy(c.digest[:], whole[:])
	return c
}

// entry adds what one entry says.
func (e *Engine) entry(p *Policy, r *Rule, part *part, d verdict.Direction, effect Effect, entry *Entry) {
	for _, s := range entry.Requires {
		want := e.ours(scope(s, p.Namespace, false))
		part.requires = e.adopt(part.requires, &selection{key: want.key(), want: want})
	}
	if entry.selectsNothing() {
		return
	}
	st := &statement{
		rule: newRule(RuleRef{
			Policy: p.Ref, Spec: r.Spec, Index: entry.Index, Direction: d, Deny: effect == EffectDeny, File: p.File,
			Line: entry.Line, Description: cmp.Or(entry.Name, r.Description),
		}),
		order: order(r.Tier, r.Priority, entry.Priority), effect: effect, audit: r.Audit, ports: entry.Ports,
	}
	e.cookies.know(&st.rule)
	for i, q := range entry.Ports {
		st.names = st.names || q.Name != ""
		if q.L7 != nil && effect == EffectAllow {
			if st.sums == nil {
				st.sums = make([]sum, len(entry.Ports))
			}
			st.sums[i] = q.L7.sum()
		}
	}
	e.peers(st, &entry.Peers, p.Namespace)
	part.statements = append(part.statements, st)
}

// sum is a hash of what l says.
func (l *L7) sum() sum {
	b, err := json.Marshal(l)
	if err != nil { // a value that JSON cannot hold, which Parse never makes: equal to nothing but itself
		b = fmt.Appendf(nil, "%p", l)
	}
	return hash(b)
}

// adopt acquires s and adds it to a list, once.
func (e *Engine) adopt(list []*selection, s *selection) []*selection {
	s = e.acquire(s)
	at, have := slices.BinarySearchFunc(list, s.key, func(o *selection, key string) int { return strings.Compare(o.key, key) })
	if have {
		s.refs--
		return list
	}
	return slices.Insert(list, at, s)
}

// peers acquires the selections of an entry.
func (e *Engine) peers(st *statement, p *Peers, namespace string) {
	add := func(s *selection) { st.peers = e.adopt(st.peers, s) }
	switch p.Kind {
	case PeersAny:
		st.all = true
	case PeersEndpoints:
		for _, s := range p.Endpoints {
			want := e.ours(scope(s, namespace, false))
			add(&selection{key: want.key(), want: want})
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
		for _, c := range e.docs.blocks(p.CIDRs) {
			add(&selection{key: "cidr " + c.String(), cidr: c})
		}
	case PeersServices:
		for _, s := range e.services(p.Services) {
			add(s)
		}
	case PeersNodes:
		for _, s := range p.Nodes {
			want := nodeSelector(s, false)
			add(&selection{key: want.key(), want: want})
		}
	case PeersFQDNs:
		for _, f := range p.FQDNs {
			add(&selection{key: "fqdn " + f.key(), fqdn: f.key()})
		}
	}
}

// digest appends everything that the statement decides.
func (st *statement) digest(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, st.id)
	b = binary.BigEndian.AppendUint64(b, st.order)
	b = append(b, byte(st.effect), byte(b2i(st.all)), byte(b2i(st.audit)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(st.peers)))
	for _, s := range st.peers {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s.key)))
		b = append(b, s.key...)
	}
	b = append(b, byte(b2i(st.ports == nil)))
	for i, p := range st.ports {
		b = append(b, p.Proto, byte(b2i(p.Any)), byte(b2i(p.AnyProto)), byte(b2i(p.L7 != nil)))
		b = binary.BigEndian.AppendUint16(b, p.First)
		b = binary.BigEndian.AppendUint16(b, p.Last)
		b = binary.BigEndian.AppendUint32(b, uint32(len(p.Name)))
		b = append(b, p.Name...)
		if p.L7 != nil && st.sums != nil {
			b = append(b, st.sums[i][:]...)
		}
	}
	return binary.BigEndian.AppendUint32(b, uint32(len(st.ports)))
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
