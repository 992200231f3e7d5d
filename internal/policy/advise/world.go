// Package advise decides what people ask about a set of policies and workloads: what is allowed and why, what would
// change a verdict, what changes between two sets, which rules do nothing.
// It reads the text of policy and workload files, and returns answers; every verdict is policy.Engine's.
// It never judges by itself, and never touches the agent or the kernel.
package advise

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
)

// Kind of an end.
type Kind string

// Kinds of ends.
const (
	Workload Kind = "workload"
	Outside  Kind = "outside" // a host with addresses of its own
	Node     Kind = "node"
	Address  Kind = "address"
	Reserved Kind = "reserved"
	Ad       Kind = "labels" // labels without a workload that has them
)

// End is one end of a connection: who may be asked about.
type End struct {
	Kind     Kind
	Name     string // "default/xwing", "203.0.113.10", "reserved:host"
	Replica  string // of workloads with replicas: the workload's name
	Identity identity.Identity
	Addrs    []netip.Addr
	Serves   []Served
	Ports    []policy.NamedPort // that rules may name
	Names    []string           // of outside hosts: DNS names, lower case with the final dot
}

// Served is a port that a workload answers on.
type Served struct {
	Port
	Name string
}

// Config of a world.
type Config struct {
	policy.Config
	Families []string                           // ipv4, ipv6; empty: both
	Ports    map[identity.ID][]policy.NamedPort // of workloads that are not among the ends
}

// World is workloads and the policies over them, ready to be asked.
type World struct {
	Config   Config
	Ends     []End // workloads first, then outside hosts and nodes
	Policies []*policy.Policy
	Engine   *policy.Engine

	blocks []identity.Identity // of the policies' CIDRs, the longest prefix first
	names  []policy.FQDN       // of the policies
}

// New returns the world of these ends and policies. Identities of workloads that have no number get one.
func New(cfg Config, ends []End, policies []*policy.Policy) *World {
	if len(cfg.Families) == 0 {
		cfg.Families = []string{"ipv4", "ipv6"}
	}
	cfg.DualStack, cfg.OnlyIPv6 = len(cfg.Families) > 1, cfg.Families[0] == "ipv6"
	w := &World{Config: cfg, Ends: number(ends), Policies: policies, Engine: policy.NewEngine(cfg.Config)}
	w.Engine.UpdatePolicies(policies, nil)
	ports := map[identity.ID][]policy.NamedPort{}
	for id, list := range cfg.Ports {
		ports[id] = slices.Clone(list)
	}
	for _, e := range w.Ends {
		if len(e.Ports) > 0 {
			ports[e.Identity.ID] = append(ports[e.Identity.ID], e.Ports...)
		}
	}
	w.Engine.UpdatePorts(ports)
	w.setBlocks(policies)
	return w
}

// number gives each distinct label set a number of its own.
func number(ends []End) []End {
	used, byKey := map[identity.ID]bool{}, map[string]identity.ID{}
	for _, e := range ends {
		used[e.Identity.ID] = true
	}
	next := identity.MinCluster
	out := slices.Clone(ends)
	for i := range out {
		id := &out[i].Identity
		if id.ID != identity.Unknown {
			continue
		}
		key := id.Labels.Key()
		if byKey[key] == 0 {
			for used[next] {
				next++
			}
			byKey[key], used[next] = next, true
		}
		id.ID = byKey[key]
	}
	return out
}

// setBlocks makes an identity of each block and name of policies, as an agent does before it puts them in force.
func (w *World) setBlocks(policies []*policy.Policy) {
	w.blocks, w.names = nil, w.Engine.FQDNs(policies)
	prefixes := w.Engine.CIDRs(policies)
	for _, p := range append(slices.Clone(prefixes), w.named(prefixes)...) {
		w.blocks = append(w.blocks, identity.Identity{ID: identity.ScopeLocal + 1 + identity.ID(len(w.blocks)), Prefix: p, Labels: w.blockLabels(p)})
	}
	slices.SortFunc(w.blocks, func(a, b identity.Identity) int {
		return cmp.Or(cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
}

func (w *World) blockLabels(p netip.Prefix) labels.Labels {
	all := []labels.Label{
		{Source: labels.SourceCIDR, Key: p.String()},
		{Source: labels.SourceReserved, Key: strings.TrimPrefix(w.world(p.Addr()).ID.String(), "reserved:")},
	}
	if p.IsSingleIP() {
		all = append(all, w.nameLabels(p.Addr())...)
	}
	return labels.New(all...)
}

// world is the rest of the world as far as a is concerned.
func (w *World) world(a netip.Addr) identity.Identity {
	switch {
	case !w.Config.DualStack:
		return reserved(identity.World)
	case a.Is4():
		return reserved(identity.WorldIPv4)
	}
	return reserved(identity.WorldIPv6)
}

func reserved(id identity.ID) identity.Identity { return identity.Reserved()[id-identity.Host] }

// At returns who an address is: a workload or a node that has it, the smallest block of a policy around it, or the world.
func (w *World) At(a netip.Addr) identity.Identity {
	for _, e := range w.Ends {
		if (e.Kind == Workload || e.Kind == Node) && slices.Contains(e.Addrs, a) {
			return e.Identity
		}
	}
	for _, b := range w.blocks {
		if b.Prefix.Contains(a) {
			return b
		}
	}
	return w.world(a)
}

// Workloads returns the ends that are workloads.
func (w *World) Workloads() (out []End) {
	for _, e := range w.Ends {
		if e.Kind == Workload {
			out = append(out, e)
		}
	}
	return out
}

// Find returns the ends that a person means by text: a workload (name or namespace/name; all replicas of one), an
// outside host, a node, an address, a reserved name, or labels. family limits the addresses of outside hosts.
func (w *World) Find(text, family string) ([]End, error) {
	var out []End
	found := false // if only with addresses of the other family
	for _, e := range w.Ends {
		if e.Name != text && e.Replica != text && shortName(e.Name) != text && (e.Replica == "" || shortName(e.Replica) != text) {
			continue
		}
		found = true
		if e.Kind != Outside {
			out = append(out, e)
			continue
		}
		for _, a := range e.Addrs {
			if Family(a) == family || family == "" {
				out = append(out, End{Kind: Outside, Name: e.Name, Identity: w.At(a), Addrs: []netip.Addr{a}, Serves: e.Serves, Names: e.Names})
			}
		}
	}
	if places := distinct(out, shortName(text) == text); len(places) > 1 {
		return nil, fmt.Errorf("%q means several: %s; write the namespace too", text, strings.Join(places, ", "))
	}
	if found {
		return out, nil
	}
	e, err := w.other(text)
	return []End{e}, err
}

// distinct returns the workloads that a name without namespace could mean.
func distinct(ends []End, short bool) (names []string) {
	for _, e := range ends {
		if name := cmp.Or(e.Replica, e.Name); short && e.Kind == Workload && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func shortName(s string) string { return s[strings.LastIndexByte(s, '/')+1:] }

// other reads ends that need no workload.
func (w *World) other(text string) (End, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap().WithZone("")
		if i := slices.IndexFunc(w.Ends, func(e End) bool { return e.Kind != Outside && slices.Contains(e.Addrs, a) }); i >= 0 {
			return w.Ends[i], nil
		}
		return End{Kind: Address, Name: a.String(), Identity: w.At(a), Addrs: []netip.Addr{a}}, nil
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		for _, b := range w.blocks {
			if b.Prefix.Bits() > p.Bits() && p.Contains(b.Prefix.Addr()) {
				return End{}, fmt.Errorf("%s holds the smaller block %s of a policy, which may be judged differently; ask about an address", text, b.Prefix)
			}
		}
		id := w.At(p.Masked().Addr())
		return End{Kind: Address, Name: p.Masked().String(), Identity: id, Addrs: []netip.Addr{p.Addr()}}, nil
	}
	for _, id := range identity.Reserved() {
		if name := id.ID.String(); text == name || "reserved:"+text == name {
			if id.ID == identity.World && w.Config.DualStack {
				return End{}, fmt.Errorf("with two families the world is world-ipv4 and world-ipv6; ask about one of them")
			}
			return End{Kind: Reserved, Name: name, Identity: w.reserved(id.ID)}, nil
		}
	}
	if strings.Contains(text, "=") {
		return w.labelled(text)
	}
	var names []string
	for _, e := range w.Ends {
		names = append(names, e.Name, shortName(e.Name))
	}
	hint := ""
	if near := nearest(text, names); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	return End{}, fmt.Errorf("nothing is called %q%s: name a workload of the file, an address, a reserved name as host or world-ipv4, or labels as app=web,tier=db", text, hint)
}

// labelled reads "a=b,c=d", with namespace/ before it if it is not the default one.
func (w *World) labelled(text string) (End, error) {
	namespace, list := "default", text
	if i := strings.IndexByte(text, '/'); i >= 0 && i < strings.IndexByte(text, '=') && !strings.ContainsAny(text[:i], ".:") {
		namespace, list = text[:i], text[i+1:]
	}
	own := map[string]string{}
	var more []labels.Label
	for word := range strings.SplitSeq(list, ",") {
		l, err := labels.Parse(strings.TrimSpace(word))
		if err != nil {
			return End{}, err
		}
		if l.Source != labels.SourceUnspec && l.Source != labels.SourceK8s {
			more = append(more, l)
			continue
		}
		own[l.Key] = l.Value
	}
	ls, refused := labels.Pod{Namespace: namespace, Labels: own}.All()
	if len(refused) > 0 {
		return End{}, fmt.Errorf("labels %q: only porin gives %s; write the namespace as namespace/key=value", text, strings.Join(refused, " and "))
	}
	e := End{Kind: Ad, Name: namespace + "/" + list, Identity: identity.Identity{Labels: labels.New(append(ls, more...)...)}}
	return number(append(slices.Clone(w.Ends), e))[len(w.Ends)], nil
}

// reserved is one of the identities with a fixed number; this node with its labels, if the file says which it has.
func (w *World) reserved(id identity.ID) identity.Identity {
	for _, e := range w.Ends {
		if e.Kind == Node && e.Identity.ID == id {
			return e.Identity
		}
	}
	return reserved(id)
}

// Family returns ipv4 or ipv6.
func Family(a netip.Addr) string {
	if a.Is4() {
		return "ipv4"
	}
	return "ipv6"
}

// nearest returns the name that text was probably meant to be, or nothing.
func nearest(text string, names []string) string {
	best, least := "", max(2, len(text)/3)+1
	for _, n := range names {
		if d := distance(text, n); d < least {
			best, least = n, d
		}
	}
	return best
}

// distance counts the letters to change, add or take away.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
