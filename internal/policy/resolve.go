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
	views      [2]view // what is in force, and what would be if rules that only report were
	two        bool    // they differ
	statements []*statement
	everyone   []*statement   // those for everyone
	selections []*selection   // distinct, of the others
	naming     [][]*statement // by selection: the statements that name it
	required   []uint8        // by selection: the views in which it narrows what is allowed; nil: none does
	names      []string       // of ports that peers have; nil: the rules use none
	other      *Table         // Subject.Else
	peers      peerTables     // of those who are not as everyone else
	classes    map[string]*Table
	snapshot   weak.Pointer[Subject]
	small      *Subject // keeps the snapshot, unless it is big or tiny
	rows       int      // of the tables made
	work       int      // done for those of one change
	pending    []int32  // scratch of addIdentity
}

func (r *resolved) peer(n int32) *Table { return r.peers.get(n) }

func (r *resolved) setPeer(n int32, t *Table) {
	r.peers.set(n, t)
	r.snapshot, r.small = weak.Pointer[Subject]{}, nil
}

// count returns the rows of the tables in use.
func (r *resolved) count() int {
	n, seen := len(r.other.Rows), map[*Table]bool{r.other: true}
	for _, t := range r.peers.all() {
		if !seen[t] {
			seen[t] = true
			n += len(t.Rows)
		}
	}
	return n
}

// view is one reading of a subject's rules.
type view struct {
	silence PortVerdict // where no statement decides
	normal  bool        // it comes before the Baseline tier
	needs   int         // selections that must hold whoever is allowed
	local   bool        // a node reaches its own pods
}

// scratch is reused from one resolve to the next.
type scratch struct {
	class  []int32 // by slot; all 0 between two uses
	placed []int32 // slots of another class
	nodes  []node
	having []having
	list   []*statement
	mark   uint64 // number of the list
	met    [2]int // requirements that its class satisfies, by view
	bytes  []byte // text to be hashed
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

// Resolve returns what the policies say about an identity in both directions; own are the named ports of the workload
// that is asked about, whatever others of its identity have. Subjects with equal keys are equal: of two endpoints, or
// of one before and after a change. The result is a snapshot: UpdateIdentities and UpdatePorts do not change it.
func (e *Engine) Resolve(id identity.Identity, own []NamedPort) (ingress, egress *Subject, err error) {
	if id.ID == identity.Unknown && len(id.Labels) == 0 {
		return nil, nil, fmt.Errorf("resolve policy of an identity without number and labels: it cannot be a subject")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	groups := e.groups(&id)
	if ingress, err = e.subject(e.plan(&id, groups, verdict.Ingress, own)); err == nil {
		egress, err = e.subject(e.plan(&id, groups, verdict.Egress, nil))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("resolve policy of identity %s: %w", id.ID, err)
	}
	return ingress, egress, nil
}

// Keys returns the keys of the subjects that Resolve would return, without making them: enough to see that a change
// does not concern an identity.
func (e *Engine) Keys(id identity.Identity, own []NamedPort) (ingress, egress SubjectKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	groups := e.groups(&id)
	return e.plan(&id, groups, verdict.Ingress, own).key, e.plan(&id, groups, verdict.Egress, nil).key
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
	e.release(r.selections)
	delete(e.ports.subjects, r)
	e.sweep()
}

// subject returns the subject of a plan, resolved before or now.
func (e *Engine) subject(p plan) (*Subject, error) {
	r, ok := e.resolved[p.key]
	if !ok {
		r = e.prepare(p)
		err := e.tooLarge(r)
		if err == nil {
			err = e.resolve(r)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.direction, err)
		}
		e.keep(r)
	}
	if s := r.snapshot.Value(); s != nil {
		return s, nil
	}
	s := &Subject{Key: r.key, Direction: r.direction, Isolated: r.isolated, Default: r.def, Else: r.other}
	n := r.peers.n
	s.Peers = make(map[identity.ID]*Table, n)
	for i, t := range r.peers.all() {
		s.Peers[e.people.slots[i].ID] = t
	}
	if r.snapshot = weak.Make(s); n > 16 && n <= 4096 { // not those that are made in no time
		r.small = s
	}
	return s, nil
}

// keep puts a subject to use: from now on it is patched.
func (e *Engine) keep(r *resolved) {
	e.resolved[r.key] = r
	for i, s := range r.selections {
		s.refs++
		s.users = append(s.users, use{r, int32(i)})
	}
	if r.names != nil {
		e.ports.subjects[r] = true
	}
}

// resolve sorts the identities into classes and flattens each class that has members.
func (e *Engine) resolve(r *resolved) error {
	sc := &e.scratch
	if n := len(e.people.slots); n > len(sc.class) {
		sc.class = make([]int32, n+n/4)
	}
	sc.placed = sc.placed[:0]
	defer func() {
		for _, m := range sc.placed {
			sc.class[m] = 0
		}
	}()
	sc.nodes = append(sc.nodes[:0], node{split: -1})
	split := func(i int32, members []int32) {
		for _, m := range members {
			c := sc.class[m]
			n := &sc.nodes[c]
			if n.split != i {
				n.split, n.into = i, int32(len(sc.nodes))
				sc.nodes = append(sc.nodes, node{parent: c, selection: i, split: -1})
				n = &sc.nodes[c]
			}
			if c == 0 {
				sc.placed = append(sc.placed, m)
			}
			sc.class[m] = n.into
		}
	}
	for i, s := range r.selections {
		split(int32(i), s.members)
	}
	sc.having = e.having(r) // after the selections: see nodeTable
	for i, h := range sc.having {
		split(int32(len(r.selections)+i), h.members)
	}
	r.peers = newPeerTables(len(sc.placed), len(e.people.slots))
	if r.peers.many == nil {
		slices.Sort(sc.placed)
	} else { // in the order of memory
		sc.placed = sc.placed[:0]
		for m := range e.people.slots {
			if sc.class[m] != 0 {
				sc.placed = append(sc.placed, int32(m))
			}
		}
	}
	for _, m := range sc.placed {
		c := sc.class[m]
		n := &sc.nodes[c]
		if n.table == nil {
			e.nodeTable(r, c)
			if err := e.tooLarge(r); err != nil {
				return err
			}
		}
		if n.table != r.other {
			r.peers.put(m, n.table)
		}
	}
	return nil
}

// nodeTable flattens a class of the partition.
func (e *Engine) nodeTable(r *resolved, c int32) *Table {
	n := &e.scratch.nodes[c]
	switch {
	case n.table != nil:
		return n.table
	case c == 0:
		n.table = r.other
		return n.table
	}
	var ports []NamedPort
	at := c
	if i := int(n.selection) - len(r.selections); i >= 0 {
		ports, at = e.scratch.having[i].ports, n.parent
	}
	list := e.start(r)
	for ; at != 0; at = e.scratch.nodes[at].parent {
		i := e.scratch.nodes[at].selection
		list = e.add(list, r.naming[i])
		e.met(r, i)
	}
	e.scratch.list = list
	if ports != nil && !slices.ContainsFunc(list, func(st *statement) bool { return st.names }) {
		n.table = e.nodeTable(r, n.parent) // no rule for this class asks for their ports
	} else {
		n.table = e.flatten(r, list, ports)
	}
	return n.table
}

// classTable flattens the class of identities that exactly the selections with these indexes hold, with these ports.
func (e *Engine) classTable(r *resolved, held []int32, ports []NamedPort) *Table {
	var buf [256]byte
	key := buf[:0]
	key = binary.BigEndian.AppendUint32(key, uint32(len(ports)))
	for _, p := range ports {
		key = fmt.Appendf(key, "%s %d %d\n", p.Name, p.Proto, p.Port)
	}
	for _, i := range held {
		key = binary.BigEndian.AppendUint32(key, uint32(i))
	}
	if t, ok := r.classes[string(key)]; ok {
		return t
	}
	list := e.start(r)
	for _, i := range held {
		list = e.add(list, r.naming[i])
		e.met(r, i)
	}
	e.scratch.list = list
	r.work = 0 // of this table alone: peers come and go for as long as the subject is in use
	t := e.flatten(r, list, ports)
	if r.rows > e.cfg.MaxRows { // some of those rows may be gone: count what is there
		r.rows = r.count() + len(t.Rows)
	}
	if r.rows > e.cfg.MaxRows {
		r.rows -= len(t.Rows)
		t = e.overflow(r)
	}
	if r.classes == nil || len(r.classes) >= 4096 {
		r.classes = map[string]*Table{}
	}
	r.classes[string(key)] = t
	return t
}

// tooLarge tells that the tables made for r, or the work on them, went beyond the limit.
func (e *Engine) tooLarge(r *resolved) error {
	if r.rows <= e.cfg.MaxRows {
		return nil
	}
	return fmt.Errorf("%w: %d rules make more than %d verdict rows, or overlap too much; give them fewer ports and ranges, or fewer sets of peers", ErrTooLarge, len(r.statements), e.cfg.MaxRows)
}

// overflow is the table of those for whom there was no room: denied.
func (e *Engine) overflow(r *resolved) *Table {
	k := e.cookies.name(e.implicit[r.direction].overflow)
	return e.tables.intern([]Row{{AnyPort: true, Verdict: PortVerdict{Action: verdict.Deny, ExplicitDeny: true, Cookie: k}}})
}

// start begins the list of a class's statements.
func (e *Engine) start(r *resolved) []*statement {
	e.scratch.mark++
	e.scratch.met = [2]int{}
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

// met counts the requirements that a class satisfies.
func (e *Engine) met(r *resolved, selection int32) {
	if int(selection) < len(r.required) {
		e.scratch.met[0] += int(r.required[selection] & 1)
		e.scratch.met[1] += int(r.required[selection] >> 1)
	}
}

// workPerRow: rules may overlap so that few rows cost very much. As many statements and ports as this for each row of the
// limit may be looked at for one subject: seconds, and not minutes.
const workPerRow = 64

// flatten makes the table of a class from its statements; ports are those that its members have by name.
func (e *Engine) flatten(r *resolved, list []*statement, ports []NamedPort) *Table {
	if r.names != nil {
		for i, st := range list {
			list[i] = st.numbered(ports)
		}
	}
	f := &e.flat
	f.conflict = e.implicit[r.direction].conflict
	f.views, f.two, f.nothing = r.views, r.two, PortVerdict{Action: verdict.Deny, Cookie: r.def}
	for v := range f.met {
		f.met[v] = e.scratch.met[v] == r.views[v].needs
	}
	f.limit = workPerRow*e.cfg.MaxRows - r.work
	rows := f.table(list)
	r.work += f.work
	if f.over { // half a table would not say what the rules say
		r.rows = e.cfg.MaxRows + 1
		return e.overflow(r)
	}
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
	used, cookies, ids, sets := map[*Table]bool{}, map[Cookie]bool{}, map[uint64]bool{}, map[uint32]bool{}
	for _, r := range e.resolved {
		r.classes = nil
		used[r.other] = true
		for _, t := range r.peers.all() {
			used[t] = true
		}
		cookies[r.views[0].silence.Cookie], cookies[r.views[1].silence.Cookie] = true, true
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
			if id := t.Rows[i].Verdict.L7; id != 0 {
				sets[id] = true
			}
		}
	}
	e.l7.sweep(sets)
	for _, f := range e.policies {
		for _, c := range f.rules {
			for _, part := range c.parts {
				if part == nil {
					continue
				}
				for _, st := range part.statements {
					ids[st.id] = true
				}
				if part.isolates != nil {
					ids[part.isolates.id] = true
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
