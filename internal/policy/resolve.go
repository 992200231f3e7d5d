package policy

import (
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
	silence    PortVerdict // where no statement decides
	statements []*statement
	everyone   []*statement   // those for everyone
	selections []*selection   // distinct, of the others
	naming     [][]*statement // by selection: the statements that name it
	other      *Table         // Subject.Else
	peers      []*Table       // by slot; nil: as everyone else
	classes    map[string]*Table
	snapshot   weak.Pointer[Subject]
	small      *Subject // keeps the snapshot, unless it is big
	rows       int      // of the tables made
	pending    []int32  // scratch of addIdentity
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
	r.snapshot, r.small = weak.Pointer[Subject]{}, nil
}

// count returns the rows of the tables in use.
func (r *resolved) count() int {
	n, seen := len(r.other.Rows), map[*Table]bool{r.other: true, nil: true}
	for _, t := range r.peers {
		if !seen[t] {
			seen[t] = true
			n += len(t.Rows)
		}
	}
	return n
}

// scratch is reused from one resolve to the next.
type scratch struct {
	class []int32 // by slot
	nodes []node
	list  []*statement
	mark  uint64 // number of the list
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
	groups := e.groups(&id)
	if ingress, err = e.subject(e.plan(&id, groups, verdict.Ingress)); err == nil {
		egress, err = e.subject(e.plan(&id, groups, verdict.Egress))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("resolve policy of identity %s: %w", id.ID, err)
	}
	return ingress, egress, nil
}

// Keys returns the keys of the subjects that Resolve would return, without making them: enough to see that a change
// does not concern an identity.
func (e *Engine) Keys(id identity.Identity) (ingress, egress SubjectKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	groups := e.groups(&id)
	return e.plan(&id, groups, verdict.Ingress).key, e.plan(&id, groups, verdict.Egress).key
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

// groups returns the rules that count for id.
func (e *Engine) groups(id *identity.Identity) []*group {
	if e.cfg.Enforcement == EnforceNever && !is(id, identity.Init) {
		return nil
	}
	return e.subjects.selecting(id)
}

// plan is a subject about to be resolved.
type plan struct {
	key       SubjectKey
	direction verdict.Direction
	isolated  bool
	parts     []*groupPart
	own       *rule      // isolates besides the policies; else nil
	open      *rule      // names what is allowed because nothing isolates
	localhost *statement // nil: none
}

// plan collects what counts for id in one direction, and its key.
func (e *Engine) plan(id *identity.Identity, groups []*group, d verdict.Direction) plan {
	im := &e.implicit[d]
	p := plan{direction: d, open: im.open}
	h := make([]byte, 0, 256)
	h = fmt.Appendf(h, "%d %q %t %t\n", d, e.cfg.Cluster, e.cfg.DualStack, e.cfg.OnlyIPv6)
	for _, g := range groups {
		part := g.part(d)
		if part.empty {
			continue
		}
		p.parts = append(p.parts, part)
		p.isolated = p.isolated || len(part.isolates) > 0
		h = append(h, part.digest[:]...)
	}
	switch {
	case is(id, identity.Init):
		p.own = im.init
	case e.cfg.Enforcement == EnforceNever:
		p.open = im.never
	case e.cfg.Enforcement == EnforceAlways:
		p.own = im.always
	}
	p.isolated = p.isolated || p.own != nil
	if p.own != nil {
		h = binary.BigEndian.AppendUint64(h, p.own.id)
	}
	if p.isolated {
		p.localhost = im.localhost
		h = fmt.Appendf(h, "\nisolated %t", p.localhost != nil)
	} else {
		h = binary.BigEndian.AppendUint64(h, p.open.id)
	}
	p.key = SubjectKey(hash(h).String())
	return p
}

// subject returns the subject of a plan, resolved before or now.
func (e *Engine) subject(p plan) (*Subject, error) {
	r, ok := e.resolved[p.key]
	if !ok {
		r = e.prepare(p)
		if err := e.resolve(r); err != nil {
			return nil, fmt.Errorf("%s: %w", p.direction, err)
		}
		e.keep(r)
	}
	if s := r.snapshot.Value(); s != nil {
		return s, nil
	}
	s := &Subject{Key: r.key, Direction: r.direction, Isolated: r.isolated, Default: r.def, Else: r.other}
	n := 0
	for _, t := range r.peers {
		n += b2i(t != nil)
	}
	s.Peers = make(map[identity.ID]*Table, n)
	for i, t := range r.peers {
		if t != nil {
			s.Peers[e.people.slots[i].ID] = t
		}
	}
	if r.snapshot = weak.Make(s); n <= 4096 {
		r.small = s
	}
	return s, nil
}

// prepare makes the part of a subject that does not depend on the identities that exist.
func (e *Engine) prepare(p plan) *resolved {
	r := &resolved{key: p.key, direction: p.direction, isolated: p.isolated}
	count := b2i(p.localhost != nil)
	var isolates []*rule
	for _, part := range p.parts {
		count += len(part.statements)
		isolates = append(isolates, part.isolates...)
	}
	r.statements = make([]*statement, 0, count)
	for _, part := range p.parts {
		r.statements = append(r.statements, part.statements...)
	}
	if p.localhost != nil {
		r.statements = append(r.statements, p.localhost)
	}
	if p.own != nil {
		isolates = append(isolates, p.own)
	}
	if p.isolated {
		r.def = e.cookies.name(isolates...)
		r.silence = PortVerdict{Action: verdict.Deny, Cookie: r.def}
	} else {
		r.silence = PortVerdict{Action: verdict.Allow, Cookie: e.cookies.name(p.open)}
	}
	e.group(r)
	r.other = e.flatten(r, r.everyone)
	return r
}

// group lists the distinct selections of a subject and the statements that name each.
func (e *Engine) group(r *resolved) {
	e.selections.round++
	round, total := e.selections.round, 0
	for _, st := range r.statements {
		if st.all {
			r.everyone = append(r.everyone, st)
			continue
		}
		total += len(st.peers)
		for _, s := range st.peers {
			if s.round != round {
				s.round, s.index = round, int32(len(r.selections))
				r.selections = append(r.selections, s)
				r.naming = append(r.naming, nil)
			}
			s.named++
		}
	}
	all := make([]*statement, total) // cut into one list per selection
	for i, s := range r.selections {
		r.naming[i], all, s.named = all[:0:s.named], all[s.named:], 0
	}
	for _, st := range r.statements {
		if !st.all {
			for _, s := range st.peers {
				r.naming[s.index] = append(r.naming[s.index], st)
			}
		}
	}
}

// keep puts a subject to use: from now on it is patched.
func (e *Engine) keep(r *resolved) {
	e.resolved[r.key] = r
	for _, st := range r.statements {
		for _, s := range st.peers {
			s.refs++
		}
	}
	for i, s := range r.selections {
		s.users = append(s.users, use{r, int32(i)})
	}
}

// resolve sorts the identities into classes and flattens each class that has members.
func (e *Engine) resolve(r *resolved) error {
	sc := &e.scratch
	sc.class = append(sc.class[:0], make([]int32, len(e.people.slots))...)
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
	r.peers = make([]*Table, len(e.people.slots))
	for m, c := range sc.class {
		if c == 0 {
			continue
		}
		n := &sc.nodes[c]
		if n.table == nil {
			if n.table = e.nodeTable(r, c); r.rows > e.cfg.MaxRows {
				return fmt.Errorf("%w: more than %d verdict rows for %d rules", ErrTooLarge, e.cfg.MaxRows, len(r.statements))
			}
		}
		if n.table != r.other {
			r.peers[m] = n.table
		}
	}
	return nil
}

// nodeTable flattens a class of the partition.
func (e *Engine) nodeTable(r *resolved, c int32) *Table {
	list := e.start(r)
	for ; c != 0; c = e.scratch.nodes[c].parent {
		list = e.add(list, r.naming[e.scratch.nodes[c].selection])
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
	list := e.start(r)
	for _, i := range held {
		list = e.add(list, r.naming[i])
	}
	e.scratch.list = list
	t := e.flatten(r, list)
	if r.rows > e.cfg.MaxRows { // some of those rows may be gone: count what is there
		r.rows = r.count() + len(t.Rows)
	}
	if r.rows > e.cfg.MaxRows {
		r.rows -= len(t.Rows)
		k := e.cookies.name(e.implicit[r.direction].overflow)
		t = e.tables.intern([]Row{{AnyPort: true, Verdict: PortVerdict{Action: verdict.Deny, ExplicitDeny: true, Cookie: k}}})
	}
	if r.classes == nil || len(r.classes) >= 4096 {
		r.classes = map[string]*Table{}
	}
	r.classes[string(key)] = t
	return t
}

// start begins the list of a class's statements.
func (e *Engine) start(r *resolved) []*statement {
	e.scratch.mark++
	return append(e.scratch.list[:0], r.everyone...)
}

// add appends those that are not on the list yet.
func (e *Engine) add(list, more []*statement) []*statement {
	for _, st := range more {
		if st.mark != e.scratch.mark {
			st.mark = e.scratch.mark
			list = append(list, st)
		}
	}
	return list
}

func (e *Engine) flatten(r *resolved, list []*statement) *Table {
	e.flat.silence, e.flat.nothing = r.silence, PortVerdict{Action: verdict.Deny, Cookie: r.def}
	rows := e.flat.table(list)
	r.rows += len(rows)
	return e.tables.intern(rows)
}

// sweep drops tables and cookies that no subject uses, once there are many.
func (e *Engine) sweep() {
	if len(e.tables.bySum)+len(e.cookies.lists) >= 2*e.swept+8192 {
		e.sweepNow()
	}
}

func (e *Engine) sweepNow() {
	used, cookies, ids := map[*Table]bool{}, map[Cookie]bool{}, map[uint64]bool{}
	for _, r := range e.resolved {
		r.classes = nil
		used[r.other] = true
		for _, t := range r.peers {
			if t != nil {
				used[t] = true
			}
		}
		cookies[r.def], cookies[r.silence.Cookie] = true, true
		for _, st := range r.statements {
			ids[st.id] = true
		}
	}
	for k, t := range e.tables.bySum {
		if !used[t] {
			delete(e.tables.bySum, k)
			continue
		}
		for i := range t.Rows {
			cookies[t.Rows[i].Verdict.Cookie] = true
		}
	}
	for _, rules := range e.rules {
		for _, c := range rules {
			for d := range c.parts {
				for _, st := range c.parts[d].statements {
					ids[st.id] = true
				}
				if c.parts[d].isolates != nil {
					ids[c.parts[d].isolates.id] = true
				}
			}
		}
	}
	for _, r := range e.own {
		ids[r.id] = true
	}
	e.cookies.sweep(cookies, ids)
	e.swept = len(e.tables.bySum) + len(e.cookies.lists)
}
