package policy

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// L7Set is what a redirected verdict lets pass: what any of its rules allows.
type L7Set struct {
	ID     uint32
	Parser string // of all rules that have one; empty: only demands on TLS
	Rules  []L7Rule
}

// L7Rule is what one entry of a policy contributes to a set.
type L7Rule struct {
	Rule   RuleRef
	Cookie Cookie // names this entry alone
	L7     *L7
}

// l7sets keeps every set in use once, by a number that is a hash of its content: the same after a restart. Of two sets
// with the same hash, one pair in 2^32, the later one takes the next number that is free.
type l7sets struct {
	byID map[uint32]*l7set
}

type l7set struct {
	sum   sum
	parts []l7part
	old   bool // nobody used it at the last sweep
}

// l7part is one element of one statement.
type l7part struct {
	rule *rule
	sum  sum // of what it says
	l7   *L7
}

func compareL7Parts(a, b l7part) int {
	return cmp.Or(cmp.Compare(a.rule.id, b.rule.id), bytes.Compare(a.sum[:], b.sum[:]))
}

// conflict tells whether no proxy could serve all parts at once: it has to know how to read a connection, and with
// which certificates, before it sees what is in it.
func conflict(parts []l7part) bool {
	var parser, listener string
	var terminating, originating *TLSContext
	for i, p := range parts {
		l := p.l7
		switch {
		case l.Parser != "" && parser != "" && l.Parser != parser,
			i > 0 && l.Listener != listener,
			l.TerminatingTLS != nil && terminating != nil && *l.TerminatingTLS != *terminating,
			l.OriginatingTLS != nil && originating != nil && *l.OriginatingTLS != *originating:
			return true
		}
		parser, listener = cmp.Or(parser, l.Parser), l.Listener
		terminating, originating = cmp.Or(terminating, l.TerminatingTLS), cmp.Or(originating, l.OriginatingTLS)
	}
	return false
}

// keep returns the number of the set of parts.
func (x *l7sets) keep(parts []l7part) uint32 {
	slices.SortFunc(parts, compareL7Parts)
	parts = slices.CompactFunc(parts, func(a, b l7part) bool { return compareL7Parts(a, b) == 0 })
	var b []byte
	for _, p := range parts {
		b = append(binary.BigEndian.AppendUint64(b, p.rule.id), p.sum[:]...)
	}
	s := hash(b)
	for id := max(binary.BigEndian.Uint32(s[:]), 1); ; id = max(id+1, 1) {
		switch have := x.byID[id]; {
		case have == nil:
			x.byID[id] = &l7set{sum: s, parts: slices.Clone(parts)}
			return id
		case have.sum == s:
			return id
		}
	}
}

// sweep forgets sets that nobody used at this and the previous sweep.
func (x *l7sets) sweep(used map[uint32]bool) {
	for id, s := range x.byID {
		switch {
		case used[id]:
			s.old = false
		case s.old:
			delete(x.byID, id)
		default:
			s.old = true
		}
	}
}

// L7 returns the set of rules that a redirected verdict names.
func (e *Engine) L7(id uint32) (L7Set, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, ok := e.l7.byID[id]
	if !ok {
		return L7Set{}, false
	}
	out := L7Set{ID: id}
	for _, p := range s.parts {
		out.Parser = cmp.Or(out.Parser, p.l7.Parser)
		out.Rules = append(out.Rules, L7Rule{Rule: *p.rule.ref, Cookie: e.cookies.name(p.rule), L7: p.l7})
	}
	slices.SortStableFunc(out.Rules, func(a, b L7Rule) int { return compareRefs(a.Rule, b.Rule) })
	return out, true
}
