package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"weak"

	"porin/internal/identity"
	"porin/internal/verdict"
)

// resolved is a subject in use: what it was resolved from and the state that patches change.
type resolved struct {
	key        SubjectKey
	direction  verdict.Direction
	isolated   bool
	def        Cookie
	implicit   Cookie
	statements []*statement
	everyone   []*statement   // those for everyone
	selections []*selection   // distinct, of the others
	naming     [][]*statement // by selection: the statements that name it
	other      *Table         // Subject.Else
	peers      []*Table       // by slot; nil: as everyone else
	classes    map[string]*Table
	snapshot   weak.Pointer[Subject]
	pending    []int32 // scratch of addIdentity
}

func (r *resolved) peer(n int32) *Table {
	if int(n) < len(r.peers) {
		return r.peers[n]
	}
	return nil
}

func (r *resolved) setPeer(n int32, t *Table) {
	if int(n) >= len(r.peers) {
		r.peers = append(r.peers, make([]*Table, int(n)+1-len(r.peers))...)
	}
	r.peers[n] = t
	r.snapshot = weak.Pointer[Subject]{}
}

// scratch is reused from one resolve to the next.
type scratch struct {
	class []int32 // by slot
	nodes []node
	list  []*statement
}

// node is a class of identities: those held by the selection and by all of the parents' and by no other. The class 0
// is held by none. Following the parents gives the selections, so a class is known exactly, without hashing.
type node struct {
	parent    int32
	selection int32
	split     int32 // the selection that last split this class
	into      int32 // and the class that then went off
	table     *Table
}

// Resolve returns what the policies say about an identity in both directions. Subjects with equal keys are equal: of
// two endpoints, or of one before and after a change. The result is a snapshot: UpdateIdentities does not change it.
func (e *Engine) Resolve(id identity.Identity) (ingress, egress *Subject, err error) {
	if id.ID == identity.Unknown && len(id.Labels) == 0 {
		return nil, nil, fmt.Errorf("resolve policy of an identity without number and labels: it cannot be a subject")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	rules := e.rulesFor(&id)
	return e.subject(e.plan(&id, rules, verdict.Ingress)), e.subject(e.plan(&id, rules, verdict.Egress)), nil
}

// Forget drops a subject that nobody uses any more: no patch is made for it afterwards.
func (e *Engine) Forget(key SubjectKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r, ok := e.resolved[key]
	if !ok {
		return
	}
	delete(e.resolved, key)
	for _, s := range r.selections {
		if i := slices.IndexFunc(s.users, func(u use) bool { return u.subject == r }); i >= 0 {
			s.users = slices.Delete(s.users, i, i+1)
		}
	}
	for _, st := range r.statements {
		e.release(st)
	}
	e.sweep()
}

// rulesFor returns the rules that select id, in an order that depends on their content only.
func (e *Engine) rulesFor(id *identity.Identity) []*compiled {
	if e.cfg.Enforcement == EnforceNever && !is(id, identity.Init) {
		return nil
	}
	var out []*compiled
	e.subjects.find(id.Labels, func(c *compiled) {
		if c.subject.matches(id) {
			out = append(out, c)
		}
	})
	slices.SortFunc(out, func(a, b *compiled) int { return bytes.Compare(a.digest[:], b.digest[:]) })
	return slices.Compact(out) // one rule may come by several labels
}

// plan is a subject about to be resolved.
type plan struct {
	key        SubjectKey
	direction  verdict.Direction
	isolated   bool
	def        ruleList
	defRefs    []*RuleRef
	implicit   *statement
	statements []*statement
}

// plan collects the statements for id in one direction and what isolates it.
func (e *Engine) plan(id *identity.Identity, rules []*compiled, d verdict.Direction) *plan {
	p := &plan{direction: d}
	im := &e.implicit[d]
	isolate := func(ref *RuleRef, hash uint64) {
		p.isolated = true
		p.def.add(hash)
		p.defRefs = append(p.defRefs, ref)
	}
	h := make([]byte, 0, 64+16*len(rules))
	h = fmt.Appendf(h, "%d %q %t", d, e.cfg.Cluster, e.cfg.DualStack)
	for _, c := range rules {
		part := &c.parts[d]
		if part.empty() {
			continue
		}
		p.statements = append(p.statements, part.statements...)
		if part.isolates != nil {
			isolate(part.isolates, part.id)
		}
		h = append(h, part.digest[:]...)
	}
	switch {
	case is(id, identity.Init):
		isolate(im.init, refID(im.init))
	case e.cfg.Enforcement == EnforceNever:
		p.implicit = &statement{ref: *im.never}
	case e.cfg.Enforcement == EnforceAlways:
		isolate(im.always, refID(im.always))
	}
	if p.implicit == nil {
		p.implicit = im.open
	}
	if p.isolated && im.localhost != nil {
		p.statements = append(p.statements, im.localhost)
		h = binary.BigEndian.AppendUint64(h, im.localhost.id)
	}
	h = binary.BigEndian.AppendUint64(h, p.def.sum)
	h = fmt.Appendf(h, "%t %s", p.isolated, p.implicit.ref.Policy.Name)
	sum := sha256.Sum256(h)
	p.key = SubjectKey(base64.RawURLEncoding.EncodeToString(sum[:18]))
	return p
}

// subject returns the subject of a plan, resolved before or now.
func (e *Engine) subject(p *plan) *Subject {
	r, ok := e.resolved[p.key]
	if !ok {
		r = e.resolve(p)
		e.resolved[p.key] = r
	}
	if s := r.snapshot.Value(); s != nil {
		return s
	}
	s := &Subject{Key: r.key, Direction: r.direction, Isolated: r.isolated, Default: r.def, Else: r.other}
	n := 0
	for _, t := range r.peers {
		n += b2i(t != nil)
	}
	s.Peers = make(map[identity.ID]*Table, n)
	for i, t := range r.peers {
		if t != nil {
			s.Peers[e.slots[i].ID] = t
		}
	}
	r.snapshot = weak.Make(s)
	return s
}

// prepare makes the part of a subject that does not depend on the identities that exist.
func (e *Engine) prepare(p *plan) *resolved {
	r := &resolved{key: p.key, direction: p.direction, isolated: p.isolated, statements: p.statements, classes: map[string]*Table{}}
	if p.isolated {
		r.def = p.def.cookie()
		e.name(p.def, p.defRefs...)
	} else {
		var l ruleList
		l.add(refID(&p.implicit.ref))
		r.implicit = l.cookie()
		e.name(l, &p.implicit.ref)
	}
	e.selections.round++
	round := e.selections.round
	for _, st := range p.statements {
		e.cookies.refs[st.id] = st.ref
		if st.all {
			r.everyone = append(r.everyone, st)
			continue
		}
		for _, s := range st.peers {
			if s.round != round {
				s.round, s.index = round, int32(len(r.selections))
				r.selections = append(r.selections, s)
				r.naming = append(r.naming, nil)
			}
			r.naming[s.index] = append(r.naming[s.index], st)
		}
	}
	r.other = e.flatten(r, r.everyone)
	return r
}

// name remembers a list of rules that are no statements.
func (e *Engine) name(l ruleList, refs ...*RuleRef) {
	if e.cookies.known(l) {
		return
	}
	ids := make([]uint64, len(refs))
	for i, ref := range refs {
		ids[i] = refID(ref)
		e.cookies.refs[ids[i]] = *ref
	}
	e.cookies.remember(l, ids)
}

// resolve sorts the identities into classes and flattens each class that has members.
func (e *Engine) resolve(p *plan) *resolved {
	r := e.prepare(p)
	for _, st := range r.statements {
		for _, s := range st.peers {
			s.refs++
		}
	}
	for i, s := range r.selections {
		s.users = append(s.users, use{r, int32(i)})
	}
	sc := &e.scratch
	sc.class = append(sc.class[:0], make([]int32, len(e.slots))...)
	sc.nodes = append(sc.nodes[:0], node{split: -1})
	for i, s := range r.selections {
		for _, m := range s.members {
			c := sc.class[m]
			n := &sc.nodes[c]
			if n.split != int32(i) {
				n.split, n.into = int32(i), int32(len(sc.nodes))
				sc.nodes = append(sc.nodes, node{parent: c, selection: int32(i), split: -1})
				n = &sc.nodes[c]
			}
			sc.class[m] = n.into
		}
	}
	r.peers = make([]*Table, len(e.slots))
	for m, c := range sc.class {
		if c == 0 {
			continue
		}
		n := &sc.nodes[c]
		if n.table == nil {
			n.table = e.nodeTable(r, c)
		}
		if n.table != r.other {
			r.peers[m] = n.table
		}
	}
	return r
}

// nodeTable flattens a class of the partition.
func (e *Engine) nodeTable(r *resolved, c int32) *Table {
	list := append(e.scratch.list[:0], r.everyone...)
	for ; c != 0; c = e.scratch.nodes[c].parent {
		list = addStatements(list, r.naming[e.scratch.nodes[c].selection])
	}
	e.scratch.list = list
	return e.flatten(r, list)
}

// classTable flattens the class of identities that exactly the selections with these indexes hold.
func (e *Engine) classTable(r *resolved, held []int32) *Table {
	var buf [256]byte
	key := buf[:0]
	for _, i := range held {
		key = binary.BigEndian.AppendUint32(key, uint32(i))
	}
	if t, ok := r.classes[string(key)]; ok {
		return t
	}
	list := append(e.scratch.list[:0], r.everyone...)
	for _, i := range held {
		list = addStatements(list, r.naming[i])
	}
	e.scratch.list = list
	t := e.flatten(r, list)
	if len(r.classes) >= 4096 {
		clear(r.classes)
	}
	r.classes[string(key)] = t
	return t
}

// addStatements appends those that are not there yet.
func addStatements(list, more []*statement) []*statement {
	for _, st := range more {
		if len(st.peers) == 1 || !slices.Contains(list, st) {
			list = append(list, st)
		}
	}
	return list
}

func (e *Engine) flatten(r *resolved, list []*statement) *Table {
	e.flat.isolated, e.flat.implicit = r.isolated, r.implicit
	return e.tables.intern(e.flat.table(list))
}

// sweep drops tables and cookies that no subject uses, once there are many.
func (e *Engine) sweep() {
	if len(e.tables.byRows)+len(e.cookies.lists) < 2*e.swept+8192 {
		return
	}
	used, cookies, ids := map[*Table]bool{}, map[Cookie]bool{}, map[uint64]bool{}
	for _, r := range e.resolved {
		clear(r.classes)
		used[r.other] = true
		for _, t := range r.peers {
			if t != nil {
				used[t] = true
			}
		}
		cookies[r.def], cookies[r.implicit] = true, true
		for _, st := range r.statements {
			ids[st.id] = true
		}
	}
	for k, t := range e.tables.byRows {
		if !used[t] {
			delete(e.tables.byRows, k)
			continue
		}
		for i := range t.Rows {
			cookies[t.Rows[i].Verdict.Cookie] = true
		}
	}
	e.cookies.sweep(cookies, ids)
	e.swept = len(e.tables.byRows) + len(e.cookies.lists)
}
