package policy

import (
	"net/netip"
	"slices"
	"strings"

	"porin/internal/identity"
	"porin/internal/labels"
)

// selection is one distinct set of peers, shared by every rule that names it: an endpoint selector with its scope, an
// entity, a CIDR without its excepts, or a DNS name. It knows the identities that it holds at any time.
type selection struct {
	key     string
	want    selector // endpoints and nodes
	entity  string
	cidr    CIDR
	fqdn    string  // name or pattern
	members []int32 // slots of identities, ascending
	users   []use   // resolved subjects that depend on it
	refs    int     // statements that name it
	at      int     // where byLabel has it

	round uint64 // scratch: the last walk that met it, and its number in that walk
	index int32
	named int32 // in group: the statements that name it
}

type use struct {
	subject *resolved
	index   int32 // of the selection in subject.selections
}

// selector is an endpoint or node selector with what its document adds.
type selector struct {
	labels.Selector
	among   kind
	cluster string // workloads of this cluster alone; empty: of every cluster
}

// kind of identities that a selector is about.
type kind uint8

const (
	anyone    kind = iota
	workloads      // pods, containers, processes
	nodes          // this one and others
	thisNode
)

func (s *selector) matches(i *identity.Identity) bool {
	switch s.among {
	case workloads:
		if !isWorkload(i) || !s.ofCluster(i) {
			return false
		}
	case nodes:
		if !isNode(i) {
			return false
		}
	case thisNode:
		if !is(i, identity.Host) {
			return false
		}
	}
	return s.Selector.Matches(i.Labels)
}

// key names the selector: equal ones hold the same.
func (s *selector) key() string {
	const kinds = "0123"
	return "labels " + kinds[s.among:s.among+1] + " " + s.Selector.String() + "@" + s.cluster
}

// ofCluster tells whether i is of the cluster that the selector means. Workloads that say no cluster are our own.
func (s *selector) ofCluster(i *identity.Identity) bool {
	if s.cluster == "" {
		return true
	}
	name, named := i.Labels.Get(labels.SourceK8s, labels.KeyCluster)
	return !named || name == s.cluster
}

// ours makes s mean our own cluster's workloads, unless it speaks of clusters itself.
func (e *Engine) ours(s selector) selector {
	speaks := slices.ContainsFunc(s.Requirements(), func(q labels.Requirement) bool {
		return q.Source == labels.SourceK8s && q.Key == labels.KeyCluster
	})
	if s.among == workloads && !speaks {
		s.cluster = e.cfg.Cluster
	}
	return s
}

// nodeSelector is a selector of nodes: by their own labels, whatever source it names.
func nodeSelector(s labels.Selector, this bool) selector {
	var reqs []labels.Requirement
	for _, q := range s.Requirements() {
		q.Source = labels.SourceNode
		reqs = append(reqs, q)
	}
	out := selector{among: nodes}
	if this {
		out.among = thisNode
	}
	var err error
	if out.Selector, err = labels.NewSelector(reqs...); err != nil { // each was one before, so this cannot be
		out.Selector = nobody()
	}
	return out
}

// nobody is a selector that no labels satisfy.
func nobody() labels.Selector {
	none, _ := labels.NewSelector(labels.Requirement{Source: labels.SourceReserved, Key: "none", Operator: labels.Exists})
	return none
}

// scope adds to a selector what its document implies. Selectors mean workloads, of the policy's own namespace unless
// they speak of namespaces themselves - except those that require a reserved label, which mean just that.
func scope(s labels.Selector, namespace string, subject bool) selector {
	named := false
	for _, q := range s.Requirements() {
		if q.Source == labels.SourceReserved && q.Positive() {
			return selector{Selector: s, among: anyone}
		}
		named = named || q.Source == labels.SourceK8s && isNamespaceKey(q.Key)
	}
	if namespace != "" && (!named || subject) {
		own := labels.Requirement{Source: labels.SourceK8s, Key: labels.KeyNamespace, Operator: labels.In, Values: []string{namespace}}
		if scoped, err := s.And(own); err == nil {
			return selector{Selector: scoped, among: workloads}
		}
		return selector{Selector: nobody(), among: workloads} // a namespace that is no label value: Parse refuses it before
	}
	return selector{Selector: s, among: workloads}
}

// isNamespaceKey tells whether a requirement on key says which namespaces are meant.
func isNamespaceKey(key string) bool {
	return key == labels.KeyNamespace || strings.HasPrefix(key, labels.KeyNamespaceLabels)
}

// matches tells whether the selection holds i.
func (s *selection) matches(i *identity.Identity, cfg *Config) bool {
	switch {
	case s.entity != "":
		return inEntity(i, s.entity, cfg)
	case s.cidr.Prefix.IsValid():
		return slices.ContainsFunc(outside(i, cfg), s.cidr.matches)
	case s.fqdn != "":
		return slices.ContainsFunc(i.Labels, func(l labels.Label) bool { return namesAddress(l) && l.Key == s.fqdn })
	}
	return s.want.matches(i)
}

// namesAddress tells whether a label says that the identity is an address of the DNS name, or of one that fits the pattern, in
// its key.
func namesAddress(l labels.Label) bool { return l.Source == labels.SourceFQDN && l.Value == "" }

// anchor is a (key, value) that a label set must hold to satisfy a selector; any value if the operator is Exists.
type anchor struct {
	key, value string
	exists     bool
}

// eachAnchor calls f for the labels of which every label set that satisfies q holds at least one. q is positive.
func eachAnchor(q *labels.Requirement, f func(anchor)) {
	if q.Operator == labels.Exists {
		f(anchor{key: q.Key, exists: true})
	}
	for _, v := range q.Values {
		f(anchor{key: q.Key, value: v})
	}
}

// rarest returns which requirement of s leads by its anchors to the fewest, -1 if s can be satisfied without any label.
// With 25,000 namespaces that all have an app=web it is the namespace, with 10,000 apps in one namespace the app. Values
// come before keys alone, and namespaces after other values.
func rarest(s labels.Selector, count func(anchor) int) (best int) {
	best, least := -1, 0
	const values, namespaces, keys = 0, 1, 2
	for class := values; class <= keys && (class < keys || best < 0); class++ {
		for i := range s.Requirements() {
			q := &s.Requirements()[i]
			of := values
			switch {
			case !q.Positive():
				continue
			case q.Operator == labels.Exists:
				of = keys
			case isNamespaceKey(q.Key):
				of = namespaces
			}
			if of != class {
				continue
			}
			n := 0
			eachAnchor(q, func(a anchor) { n += count(a) })
			if best < 0 || n < least {
				best, least = i, n
			}
		}
	}
	return best
}

// byLabel finds selectors by the labels of an identity without asking each.
type byLabel[T comparable] struct {
	anchored map[anchor][]T
	loose    []T // could match whatever the labels are
}

// add returns at which of its requirements the selector hangs; remove wants to know.
func (x *byLabel[T]) add(s labels.Selector, t T) (at int) {
	if x.anchored == nil {
		x.anchored = map[anchor][]T{}
	}
	if at = rarest(s, func(a anchor) int { return len(x.anchored[a]) }); at < 0 {
		x.loose = append(x.loose, t)
		return at
	}
	eachAnchor(&s.Requirements()[at], func(a anchor) { x.anchored[a] = append(x.anchored[a], t) })
	return at
}

func (x *byLabel[T]) remove(s labels.Selector, t T, at int) {
	if at < 0 {
		x.loose = without(x.loose, t)
		return
	}
	eachAnchor(&s.Requirements()[at], func(a anchor) {
		if rest := without(x.anchored[a], t); len(rest) == 0 {
			delete(x.anchored, a)
		} else {
			x.anchored[a] = rest
		}
	})
}

func without[T comparable](list []T, t T) []T {
	if i := slices.Index(list, t); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// find calls f for each that may match ls. One with several anchors, or whose key comes from several sources, may come
// twice.
func (x *byLabel[T]) find(ls labels.Labels, f func(T)) {
	for _, t := range x.loose {
		f(t)
	}
	for i := range ls {
		for _, t := range x.anchored[anchor{key: ls[i].Key, value: ls[i].Value}] {
			f(t)
		}
		for _, t := range x.anchored[anchor{key: ls[i].Key, exists: true}] {
			f(t)
		}
	}
}

// selections is every selection in use, found by key, by label and by address block.
type selections struct {
	byKey    map[string]*selection
	byLabel  byLabel[*selection]
	entities []*selection
	byBlock  map[netip.Prefix][]*selection
	lengths  [2][129]int // selections per prefix length, IPv4 and IPv6
	round    uint64      // number of the walk that last used the scratch fields
}

func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

func (x *selections) index(s *selection) {
	switch {
	case s.entity != "":
		x.entities = append(x.entities, s)
	case s.cidr.Prefix.IsValid():
		x.byBlock[s.cidr.Prefix] = append(x.byBlock[s.cidr.Prefix], s)
		x.lengths[family(s.cidr.Prefix)][s.cidr.Prefix.Bits()]++
	case s.fqdn != "": // found by key
	default:
		s.at = x.byLabel.add(s.want.Selector, s)
	}
	x.byKey[s.key] = s
}

func (x *selections) drop(s *selection) {
	switch {
	case s.entity != "":
		x.entities = without(x.entities, s)
	case s.cidr.Prefix.IsValid():
		if rest := without(x.byBlock[s.cidr.Prefix], s); len(rest) == 0 {
			delete(x.byBlock, s.cidr.Prefix)
		} else {
			x.byBlock[s.cidr.Prefix] = rest
		}
		x.lengths[family(s.cidr.Prefix)][s.cidr.Prefix.Bits()]--
	case s.fqdn != "":
	default:
		x.byLabel.remove(s.want.Selector, s, s.at)
	}
	delete(x.byKey, s.key)
}

// holding returns the selections that hold i, each once.
func (x *selections) holding(i *identity.Identity, cfg *Config) []*selection {
	var out []*selection
	for _, s := range x.entities {
		if s.matches(i, cfg) {
			out = append(out, s)
		}
	}
	for _, block := range outside(i, cfg) {
		for bits := block.Bits(); bits >= 0; bits-- {
			if x.lengths[family(block)][bits] == 0 {
				continue
			}
			outer, _ := block.Addr().Prefix(bits)
			for _, s := range x.byBlock[outer] {
				if s.cidr.matches(block) {
					out = append(out, s)
				}
			}
		}
	}
	for _, l := range i.Labels {
		if !namesAddress(l) {
			continue
		}
		if s := x.byKey["fqdn "+l.Key]; s != nil && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	x.round++
	x.byLabel.find(i.Labels, func(s *selection) {
		if s.round != x.round && s.want.matches(i) {
			s.round = x.round
			out = append(out, s)
		}
	})
	return out
}
