package policy

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// The oracle: a second, naive reading of the policy language. It has its own model of documents, which the tests
// generate at random, hand to Parse as JSON, and evaluate here entry by entry. It shares no code with the engine.

type oConfig struct {
	enforcement, localhost, cluster string
	dual, six                       bool // both families, or IPv6 only
}

type oVerdict struct {
	action         string // allow, deny, redirect, audit
	explicit, auth bool
	rules          string // who decided, sorted
	l7             string // what may be said, sorted
}

// oEnd is one end of a connection: who it is, and the named ports that count there.
type oEnd struct {
	oIdentity
	ports []oNumber
}

type oNumber struct {
	name  string
	proto uint8
	port  uint16
}

// opinion is one entry that speaks about the packet.
type opinion struct {
	tier, priority, entry int
	effect                string // deny, auth, allow, pass
	who                   string
	l7                    []*oL7 // of an entry that allows; nil among them: everything
	narrowed              bool   // requirements apply
}

// oracle judges one packet in one direction: as it is, and with the rules that only report.
func oracle(cfg oConfig, docs []oPolicy, subject, peer oEnd, ingress bool, proto uint8, port uint16) oVerdict {
	v := view1(cfg, docs, subject, peer, ingress, proto, port, false)
	if v.action == "allow" {
		if would := view1(cfg, docs, subject, peer, ingress, proto, port, true); would.action == "deny" {
			return oVerdict{action: "audit", rules: would.rules}
		}
	}
	return v
}

func view1(cfg oConfig, docs []oPolicy, subject, peer oEnd, ingress bool, proto uint8, port uint16, audit bool) oVerdict {
	init := subject.reserved("init")
	names := map[bool][2]string{true: {"ingress", "ingressDeny"}, false: {"egress", "egressDeny"}}[ingress]
	responder := peer
	if ingress {
		responder = subject
	}
	var opinions []opinion
	var early, late []string // what isolates before the Baseline tier and after it
	satisfied, baselineDenies := true, false
	for _, p := range docs {
		for n, s := range p.specs {
			if cfg.enforcement == "never" && !init || !s.selects(p, subject.oIdentity) || s.audit && !audit {
				continue
			}
			tier := map[string]int{"Admin": 1, "": 2, "Normal": 2, "Baseline": 3}[s.tier]
			at := func(list string, i int) string {
				spec := -1
				if p.many {
					spec = n
				}
				return fmt.Sprintf("%s %s/%s %d %s[%d]", p.kind, p.namespace, p.name, spec, list, i)
			}
			if s.isolates(p.kind, names[0], names[1]) {
				if tier == 3 {
					late = append(late, at(names[0], -1))
				} else {
					early = append(early, at(names[0], -1))
				}
			}
			if p.kind == "NetworkPolicy" && !s.isolates(p.kind, names[0], "") {
				continue // a section whose type is not listed says nothing
			}
			for _, list := range names {
				for i, e := range s.lists[list] {
					for _, r := range e.requires {
						satisfied = satisfied && peerFits(r, p.namespace, cfg.cluster, peer.oIdentity)
					}
					o := opinion{tier: tier, priority: s.priority, effect: "allow", who: at(list, i), narrowed: true}
					switch {
					case e.action != "":
						o.effect, o.entry = map[string]string{"Accept": "allow", "Deny": "deny", "Pass": "pass"}[e.action], i
					case strings.HasSuffix(list, "Deny"):
						o.effect = "deny"
					case e.auth == "required" || e.auth == "test-always-fail":
						o.effect = "auth"
					}
					if tier == 3 && !e.nobody() && (o.effect == "deny" || o.effect == "auth") {
						baselineDenies = true
					}
					if !e.peerFits(docs, p, cfg, peer.oIdentity) {
						continue
					}
					if fits, l7 := e.portFits(proto, port, responder.ports); fits {
						o.l7 = l7
						opinions = append(opinions, o)
					}
				}
			}
		}
	}
	own := ""
	if init {
		own = "reserved:init: isolated"
	} else if cfg.enforcement == "always" {
		own = "enforcement always: isolated"
	}
	isolated := len(early)+len(late) > 0 || own != ""
	if (isolated || baselineDenies) && ingress && cfg.localhost != "policy" && peer.reserved("host") {
		opinions = append(opinions, opinion{tier: 2, effect: "allow", who: "allow-localhost"})
	}
	if !satisfied {
		opinions = slices.DeleteFunc(opinions, func(o opinion) bool { return o.narrowed && (o.effect == "allow" || o.effect == "auth") })
	}
	return decideAll(cfg, opinions, early, late, own)
}

// decideAll asks tier by tier, in each priority by priority, in each denials first.
func decideAll(cfg oConfig, opinions []opinion, early, late []string, own string) oVerdict {
	sort.SliceStable(opinions, func(i, j int) bool {
		a, b := opinions[i], opinions[j]
		if a.priority != b.priority {
			return a.priority < b.priority
		}
		return a.entry < b.entry
	})
	for tier := 1; tier <= 3; tier++ {
		if tier == 3 && len(early) > 0 {
			break
		}
		var mine []opinion
		for _, o := range opinions {
			if o.tier == tier {
				mine = append(mine, o)
			}
		}
		for len(mine) > 0 {
			first := mine[0]
			var level []opinion
			for len(mine) > 0 && mine[0].priority == first.priority && mine[0].entry == first.entry {
				level, mine = append(level, mine[0]), mine[1:]
			}
			if v, passed := judgeLevel(level); !passed {
				return v
			}
			break // the rest of the tier is passed
		}
	}
	switch {
	case len(early) > 0:
		late = nil
	case len(late) > 0:
	case own == "" && cfg.enforcement == "never":
		return oVerdict{action: "allow", rules: "enforcement never: rules are ignored"}
	case own == "":
		return oVerdict{action: "allow", rules: "no policy isolates it"}
	}
	all := append(slices.Clone(early), late...)
	if own != "" {
		all = append(all, own)
	}
	return oVerdict{action: "deny", rules: join(all)}
}

// judgeLevel is what the entries of one tier and priority say together.
func judgeLevel(level []opinion) (v oVerdict, passed bool) {
	for _, effect := range []string{"deny", "auth", "allow"} {
		var who, said []string
		var sets []*oL7
		for _, o := range level {
			if o.effect != effect {
				continue
			}
			who = append(who, o.who)
			if len(o.l7) == 0 {
				sets = append(sets, nil)
			}
			sets = append(sets, o.l7...)
			for _, l := range o.l7 {
				if l != nil {
					said = append(said, o.who+" "+l.String())
				}
			}
		}
		switch {
		case len(who) == 0:
		case effect != "allow":
			return oVerdict{action: "deny", explicit: effect == "deny", auth: effect == "auth", rules: join(who)}, false
		case slices.Contains(sets, nil): // one of them lets everything be said
			return oVerdict{action: "allow", rules: join(who)}, false
		case contradict(sets):
			return oVerdict{action: "deny", explicit: true, rules: join(append(who, "layer 7 rules of different kinds for one peer and port: denied"))}, false
		default:
			return oVerdict{action: "redirect", rules: join(who), l7: join(said)}, false
		}
	}
	return v, true
}

func contradict(sets []*oL7) bool {
	parsers, listeners := map[string]bool{}, map[string]bool{}
	for _, l := range sets {
		if l.parser != "" {
			parsers[l.parser] = true
		}
		listeners[l.listener] = true
	}
	return len(parsers) > 1 || len(listeners) > 1
}

func join(s []string) string {
	s = slices.Clone(s)
	sort.Strings(s)
	return strings.Join(slices.Compact(s), "; ")
}

// isolates tells whether a spec isolates in a direction.
func (s oSpec) isolates(kind, section, denials string) bool {
	switch kind {
	case "ClusterNetworkPolicy":
		return false
	case "NetworkPolicy":
		if len(s.types) == 0 {
			return section == "ingress" || len(s.lists["egress"]) > 0
		}
		return slices.Contains(s.types, map[string]string{"ingress": "Ingress", "egress": "Egress"}[section])
	}
	if on, set := s.defaultDeny[section]; set {
		return on
	}
	_, a := s.lists[section]
	_, d := s.lists[denials]
	return a || d
}

// nobody: an entry that says neither who nor what selects nothing; but a rule of Kubernetes without peers means all.
func (e oEntry) nobody() bool { return e.kind == "" && e.ports == nil }

func (e oEntry) portFits(proto uint8, port uint16, numbers []oNumber) (fits bool, l7 []*oL7) {
	if e.ports == nil {
		return true, nil
	}
	for _, p := range e.ports {
		if p.fits(proto, port, numbers) {
			fits = true
			var l *oL7
			if p.group < len(e.l7) {
				l = e.l7[p.group]
			}
			l7 = append(l7, l)
		}
	}
	return fits, l7
}

func (p oPort) fits(proto uint8, port uint16, numbers []oNumber) bool {
	num := map[string]uint8{"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPV6": 58}[p.proto]
	protocol := proto == num
	if p.proto == "" || p.proto == "ANY" {
		protocol = proto == 6 || proto == 17 || proto == 132
	}
	switch {
	case p.family == "IPv4" || p.family == "IPv6":
		return proto == map[string]uint8{"IPv4": 1, "IPv6": 58}[p.family] && int(port) == p.port
	case !protocol:
		return false
	case p.name != "":
		return slices.Contains(numbers, oNumber{p.name, proto, port})
	}
	return p.port == 0 || int(port) == p.port || int(port) > p.port && int(port) <= p.end
}
