package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"porin/internal/identity"
	"porin/internal/verdict"
)

// Enforcement modes.
const (
	EnforceDefault = "default" // a direction is isolated once a rule isolates it
	EnforceAlways  = "always"
	EnforceNever   = "never" // rules are ignored
)

// Values of Config.AllowLocalhost.
const (
	LocalhostAuto   = "auto" // as always, until there is a host firewall
	LocalhostAlways = "always"
	LocalhostPolicy = "policy"
)

// Config of an engine. Empty strings mean default, auto and one nameless cluster.
type Config struct {
	Enforcement    string
	AllowLocalhost string
	Audit          bool   // Decide reports what audit mode makes of a denial; tables always carry the real verdict
	Cluster        string // our own cluster's name; empty: every workload is of our own
	DualStack      bool   // the outside is world-ipv4 and world-ipv6; else it is world, all of one family:
	OnlyIPv6       bool   // which is IPv6, else IPv4
	MaxRows        int    // of all verdict tables of one subject; 0: 4 million
}

// ErrTooLarge: a subject needs more rows than Config.MaxRows. Rules for everyone count once for each class of peers that
// other rules name, so few rules can ask for very many rows; and rules that overlap in ever new ways ask for much work.
var ErrTooLarge = errors.New("policy too large")

// Engine resolves policies and identities into subjects. Safe for concurrent use; but a caller that applies what it
// returns must apply the results of Resolve and UpdateIdentities in the order in which they were returned.
type Engine struct {
	cfg      Config
	implicit [3]implicit // by direction
	own      []*rule     // all of those

	mu         sync.Mutex
	policies   map[Ref]*inForce
	docs       documents
	subjects   subjects
	selections selections
	people     people
	ports      numbers
	resolved   map[SubjectKey]*resolved
	tables     tables
	cookies    cookies
	l7         l7sets
	flat       flattener
	scratch    scratch
	swept      int // tables and cookies after the last sweep
}

// inForce is a policy and its rules, made ready.
type inForce struct {
	ref      Ref
	policy   *Policy // nil while it is deleted
	rules    []*compiled
	changing bool
}

// implicit is what porin itself decides in a direction, in the form of rules.
type implicit struct {
	open      *rule      // nothing isolates
	never     *rule      // rules are ignored
	always    *rule      // isolates
	init      *rule      // isolates
	outside   *rule      // of a side that is no endpoint of porin
	overflow  *rule      // denies a peer that came after MaxRows was reached
	conflict  *rule      // denies what two rules want read by different parsers
	localhost *statement // nil: none
}

// NewEngine returns an engine without policies that knows no identity.
func NewEngine(cfg Config) *Engine {
	cfg.Enforcement = cmp.Or(cfg.Enforcement, EnforceDefault)
	cfg.AllowLocalhost = cmp.Or(cfg.AllowLocalhost, LocalhostAuto)
	cfg.MaxRows = cmp.Or(cfg.MaxRows, 4<<20)
	e := &Engine{
		cfg:        cfg,
		policies:   map[Ref]*inForce{},
		subjects:   subjects{byKey: map[string]*group{}},
		selections: selections{byKey: map[string]*selection{}, byBlock: map[netip.Prefix][]*selection{}},
		docs:       newDocuments(),
		people:     newPeople(),
		ports:      newPorts(),
		l7:         l7sets{byID: map[uint32]*l7set{}},
		resolved:   map[SubjectKey]*resolved{},
		tables:     tables{bySum: map[sum]*Table{}},
		cookies:    cookies{lists: map[Cookie]ruleSet{}, refs: map[uint64]*RuleRef{}},
	}
	e.flat.cookies, e.flat.l7 = &e.cookies, &e.l7
	for _, d := range []verdict.Direction{verdict.Ingress, verdict.Egress} {
		named := func(name string) *rule {
			r := newRule(RuleRef{Policy: Ref{Kind: KindPorin, Name: name}, Spec: -1, Index: -1, Direction: d})
			e.cookies.know(&r)
			e.own = append(e.own, &r)
			return &r
		}
		im := &e.implicit[d]
		im.open, im.never = named("no policy isolates it"), named("enforcement never: rules are ignored")
		im.always, im.init = named("enforcement always: isolated"), named("reserved:init: isolated")
		im.outside, im.overflow = named("not an endpoint: not judged"), named("policy too large: denied")
		im.conflict = named("layer 7 rules of different kinds for one peer and port: denied")
		if d == verdict.Ingress && cfg.AllowLocalhost != LocalhostPolicy {
			host := e.acquire(&selection{key: "entity host", entity: "host"})
			im.localhost = &statement{rule: *named("allow-localhost"), effect: EffectAllow, free: true, order: order(TierNormal, 0, 0), peers: []*selection{host}}
		}
	}
	return e
}

// UpdatePolicies puts and deletes policies as one change, with the groups, services and slices that rules refer to.
// Subjects resolved before stay as they are, and are patched, until they are forgotten; Resolve again to learn which
// endpoints have new ones.
func (e *Engine) UpdatePolicies(put []*Policy, del []Ref) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.policies) == 0 { // a cluster's at once: the maps need not grow step by step
		e.policies = make(map[Ref]*inForce, len(put))
	}
	var todo []*inForce
	touch := func(f *inForce) {
		if !f.changing {
			f.changing = true
			todo = append(todo, f)
		}
	}
	var moved []reference
	for _, ref := range del {
		if f := e.policies[ref]; f != nil {
			touch(f)
			moved = append(moved, e.docs.remove(f.policy)...)
			e.docs.await(ref, nil)
			f.policy = nil
		}
	}
	for _, p := range put {
		f := e.policies[p.Ref]
		if f == nil {
			f = &inForce{ref: p.Ref}
			e.policies[p.Ref] = f
		}
		touch(f)
		moved = append(moved, e.docs.put(p, f.policy)...)
		e.docs.await(p.Ref, p)
		f.policy = p
	}
	for _, r := range moved {
		for ref := range e.docs.waiting[r] {
			touch(e.policies[ref])
		}
	}
	for _, f := range todo {
		old := f.rules
		f.rules, f.changing = nil, false
		if p := f.policy; p != nil {
			f.rules = make([]*compiled, 0, len(p.Rules))
			for _, r := range p.Rules {
				c := e.compile(p, r) // before the old one goes: shared selections keep their members
				e.subjects.add(c)
				f.rules = append(f.rules, c)
			}
		} else {
			delete(e.policies, f.ref)
		}
		e.deleteRules(old)
	}
	e.sweep()
}

func (e *Engine) deleteRules(list []*compiled) {
	for _, c := range list {
		e.subjects.remove(c)
		for _, part := range c.parts {
			if part == nil {
				continue
			}
			e.release(part.requires)
			for _, st := range part.statements {
				e.release(st.peers)
			}
		}
	}
}

// Policies returns the policies in force, by kind, namespace and name.
func (e *Engine) Policies() []*Policy {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]*Policy, 0, len(e.policies))
	for _, f := range e.policies {
		out = append(out, f.policy)
	}
	slices.SortFunc(out, func(a, b *Policy) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return out
}

// acquire returns the selection in use that is the same as s, or puts s to use.
func (e *Engine) acquire(s *selection) *selection {
	if have, ok := e.selections.byKey[s.key]; ok {
		have.refs++
		return have
	}
	s.refs, s.members = 1, e.people.members(s, &e.cfg)
	e.selections.index(s)
	return s
}

// release gives back what a statement or a subject acquired.
func (e *Engine) release(list []*selection) {
	for _, s := range list {
		if s.refs--; s.refs == 0 {
			e.selections.drop(s)
		}
	}
}

// Explain returns the rules that a cookie stands for; nil for one that is unknown.
func (e *Engine) Explain(c Cookie) []RuleRef {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cookies.explain(c)
}

// UpdateIdentities adds and removes identities. An identity that comes again with other labels replaces the old one.
// It returns a patch for each subject that is resolved and not forgotten and that changes.
func (e *Engine) UpdateIdentities(add []identity.Identity, del []identity.ID) []Patch {
	e.mu.Lock()
	defer e.mu.Unlock()
	ch := changes{}
	for _, id := range del {
		e.removeIdentity(id, ch)
	}
	e.people.grow(len(add))
	last := make(map[identity.ID]int, len(add)) // of an identity that is there twice, the later one counts
	for i := range add {
		last[add[i].ID] = i
	}
	for i := range add {
		if last[add[i].ID] == i {
			e.addIdentity(&add[i], ch)
		}
	}
	e.sweep()
	return ch.patches()
}

// changes collects patches by subject.
type changes map[*resolved]*change

type change struct {
	put map[identity.ID]*Table
	del map[identity.ID]bool
}

func (c changes) of(r *resolved) *change {
	have, ok := c[r]
	if !ok {
		have = &change{map[identity.ID]*Table{}, map[identity.ID]bool{}}
		c[r] = have
	}
	return have
}

func (c changes) put(r *resolved, id identity.ID, t *Table) {
	to := c.of(r)
	to.put[id] = t
	delete(to.del, id)
}

func (c changes) del(r *resolved, id identity.ID) {
	to := c.of(r)
	delete(to.put, id)
	to.del[id] = true
}

func (c changes) patches() []Patch {
	out := make([]Patch, 0, len(c))
	for r, what := range c {
		p := Patch{Subject: r.key, Put: what.put}
		if len(what.put) == 0 {
			p.Put = nil
		}
		if len(what.del) > 0 {
			p.Delete = slices.Sorted(maps.Keys(what.del))
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Patch) int { return strings.Compare(string(a.Subject), string(b.Subject)) })
	return out
}

func (e *Engine) removeIdentity(id identity.ID, ch changes) {
	n, ok := e.people.slotOf[id]
	if !ok {
		return
	}
	drop := func(r *resolved) {
		if r.peer(n) != nil {
			r.setPeer(n, nil)
			ch.del(r, id)
		}
	}
	for _, s := range e.selections.holding(&e.people.slots[n].Identity, &e.cfg) {
		s.members = less(s.members, n)
		for _, u := range s.users {
			drop(u.subject)
		}
	}
	for r := range e.ports.subjects { // everyone's ports by name
		drop(r)
	}
	e.people.remove(n, &e.cfg)
}

func (e *Engine) addIdentity(i *identity.Identity, ch changes) {
	if n, ok := e.people.slotOf[i.ID]; ok {
		old := &e.people.slots[n].Identity
		if old.Prefix == i.Prefix && slices.Equal(old.Labels, i.Labels) {
			return
		}
		e.removeIdentity(i.ID, ch)
	}
	n := e.people.add(i, &e.cfg)
	held := e.selections.holding(i, &e.cfg)
	for _, s := range held {
		s.members = with(s.members, n)
	}
	e.place(n, held, ch)
}

// place gives an identity, held by these selections, the rows that it should have.
func (e *Engine) place(n int32, held []*selection, ch changes) {
	id := e.people.slots[n].ID
	ports := e.ports.of(id)
	var touched []*resolved
	for _, s := range held {
		for _, u := range s.users {
			if len(u.subject.pending) == 0 {
				touched = append(touched, u.subject)
			}
			u.subject.pending = append(u.subject.pending, u.index)
		}
	}
	if ports != nil {
		for r := range e.ports.subjects {
			if len(r.pending) == 0 {
				touched = append(touched, r)
			}
		}
	}
	for _, r := range touched {
		slices.Sort(r.pending)
		t := e.classTable(r, r.pending, relevant(ports, r.names))
		r.pending = r.pending[:0]
		e.setRow(r, n, id, t, ch)
	}
}

// setRow makes t the table of an identity.
func (e *Engine) setRow(r *resolved, n int32, id identity.ID, t *Table, ch changes) {
	if t == r.other {
		t = nil
	}
	switch {
	case t == r.peer(n):
	case t == nil:
		r.setPeer(n, nil)
		ch.del(r, id)
	default:
		r.setPeer(n, t)
		ch.put(r, id, t)
	}
}

// Check is for callers that read the words from a user.
func (c Config) Check() error {
	switch c.Enforcement {
	case "", EnforceDefault, EnforceAlways, EnforceNever:
	default:
		return fmt.Errorf("policy enforcement %q is unknown; use default, always or never", c.Enforcement)
	}
	switch c.AllowLocalhost {
	case "", LocalhostAuto, LocalhostAlways, LocalhostPolicy:
	default:
		return fmt.Errorf("allow-localhost %q is unknown; use auto, always or policy", c.AllowLocalhost)
	}
	return nil
}
