package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"porin/internal/lab/serve"
)

// Networks of the underlay: nodes get .11, .12 ... (::11 ...), the router that joins everything .1.
func underlay4() netip.Prefix { return netip.MustParsePrefix("172.31.0.0/16") }
func underlay6() netip.Prefix { return netip.MustParsePrefix("fd00:31::/64") }

func (s *Spec) setDefaults() {
	if s.Name == "" {
		// starwars/lab.yaml is called starwars, anything else by its file
		base := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(s.file), ".yaml"), ".yml")
		if base == "lab" {
			if abs, err := filepath.Abs(s.dir); err == nil {
				base = filepath.Base(abs)
			}
		}
		s.Name = base
	}
	if len(s.Nodes) == 0 {
		s.Nodes = nodeList{{Name: "node1", line: 1}}
	}
	if len(s.Families) == 0 {
		s.Families = []string{ipv4, ipv6}
	}
	if s.Routing == "" {
		s.Routing = "geneve"
	}
	if s.Store == "" {
		s.Store = embeddedStore
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		serverDefaults(n.Serves)
		if len(n.PodCIDRs) == 0 && !s.operated() {
			if s.has(ipv4) {
				n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", i+1)))
			}
			if s.has(ipv6) {
				n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(fmt.Sprintf("fd00:%d::/64", i+1)))
			}
		}
	}
	for i := range s.Workloads {
		w := &s.Workloads[i]
		if w.Namespace == "" {
			w.Namespace = "default"
		}
		if w.Replicas == 0 {
			w.Replicas = 1
		}
		serverDefaults(w.Serves)
	}
	for i := range s.Outside {
		serverDefaults(s.Outside[i].Serves)
	}
	for i := range s.Checks {
		c := &s.Checks[i]
		if c.Protocol == "" {
			c.Protocol = "TCP"
		}
		c.Protocol = strings.ToUpper(c.Protocol)
		if c.Named != "" {
			c.Port = s.port(c)
		}
		if c.Times == 0 {
			c.Times = 1
		}
		if c.Run != nil && c.Expect == "" {
			c.Expect = "0"
		}
	}
}

// port is what a check's port means: a number, or the name that the workload gives to one.
func (s *Spec) port(c *check) uint16 {
	if n, err := strconv.ParseUint(c.Named, 10, 16); err == nil {
		return uint16(n)
	}
	for _, p := range s.pods() {
		if c.To != p.name && c.To != p.Name && c.To != p.Namespace+"/"+p.name {
			continue
		}
		for _, v := range p.Serves {
			if strings.EqualFold(v.Name, c.Named) && strings.EqualFold(cmp.Or(v.Protocol, "TCP"), c.Protocol) {
				return v.Port
			}
		}
	}
	return 0
}

func serverDefaults(list []server) {
	for i := range list {
		if list[i].Protocol == "" {
			list[i].Protocol = "TCP"
		}
		list[i].Protocol = strings.ToUpper(list[i].Protocol)
		if list[i].Kind == "" {
			list[i].Kind = serve.Echo
		}
	}
}

func replicaName(name string, i int) string { return name + "-" + strconv.Itoa(i+1) }

// names collects what `from`, `to`, `on` and `lab exec` can name, and finds clashes.
type names struct {
	line map[string]int
	what map[string]string
}

// newNames has what the lab itself brings along.
func (s *Spec) newNames() names {
	n := names{map[string]int{}, map[string]string{}}
	if s.ownStore() {
		n.line[storeName], n.what[storeName] = 1, "lab's own store"
	}
	return n
}

func (s *Spec) checkStore(p *problems) {
	if s.Store == embeddedStore {
		return
	}
	for u := range strings.SplitSeq(string(s.Store), ",") {
		url, err := url.Parse(strings.TrimSpace(u))
		if err != nil || !slices.Contains([]string{"http", "https", "unix"}, url.Scheme) {
			p.add(1, "store: %q is neither embedded nor an endpoint such as https://172.31.0.9:2379", u)
		}
	}
}

func (n names) add(p *problems, what, name string, line int) {
	if !validName(name) {
		p.add(line, "%s: name %q: use up to 40 lower-case letters, digits and '-', beginning with a letter", what, name)
		return
	}
	if first, ok := n.line[name]; ok {
		p.add(line, "%s: the name %q is already taken by the %s of line %d", what, name, n.what[name], first)
		return
	}
	n.line[name], n.what[name] = line, what
}

func validName(s string) bool {
	if s == "" || len(s) > 40 || s[0] < 'a' || s[0] > 'z' || s[len(s)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' })
}

// check reports what cannot be built.
func (s *Spec) check(p *problems) {
	if !validName(s.Name) {
		p.add(1, "name: %q: use up to 40 lower-case letters, digits and '-', beginning with a letter", s.Name)
	}
	for i, f := range s.Families {
		if f != ipv4 && f != ipv6 {
			p.add(1, "families: unknown family %q%s", f, suggest(f, []string{ipv4, ipv6}))
		}
		if slices.Contains(s.Families[:i], f) {
			p.add(1, "families: %s is there twice", f)
		}
	}
	if routes := []string{"geneve", "native", "vxlan"}; !slices.Contains(routes, s.Routing) {
		p.add(1, "routing: unknown %q%s", s.Routing, suggest(s.Routing, routes))
	}
	if families := []string{"", ipv4, ipv6}; !slices.Contains(families, s.Underlay) {
		p.add(1, "underlay: unknown family %q%s", s.Underlay, suggest(s.Underlay, families[1:]))
	}
	s.checkStore(p)
	if s.operated() && !s.ownStore() {
		p.add(1, "operator: it works on the lab's own store: take 'store' away, or start porin-operator where that store is")
	}
	n := s.newNames()
	s.checkNodes(p, n)
	s.checkNamespaces(p)
	s.checkWorkloads(p, n)
	s.checkOutside(p, n)
	for _, o := range s.Objects {
		if (o.File == "") == (o.Inline == "") {
			p.add(o.line, "objects: an item has either file or inline")
		}
	}
	for i := range s.Checks {
		s.Checks[i].check(p, s, n)
	}
}

func (s *Spec) checkNodes(p *problems, n names) {
	var taken []netip.Prefix
	for _, x := range s.Nodes {
		n.add(p, "node", x.Name, x.line)
		checkServers(p, "node "+x.Name, x.Serves)
		if s.operated() && len(x.PodCIDRs) > 0 {
			p.add(x.line, "node %s: podCIDRs: the operator gives the nodes their ranges: take podCIDRs or operator away", x.Name)
		}
		for _, c := range x.PodCIDRs {
			if c != c.Masked() {
				p.add(x.line, "node %s: podCIDRs: %s has bits behind its mask: write %s", x.Name, c, c.Masked())
			}
			for _, t := range append([]netip.Prefix{underlay4(), underlay6()}, taken...) {
				if t.Overlaps(c) {
					p.add(x.line, "node %s: podCIDRs: %s overlaps %s", x.Name, c, t)
				}
			}
			taken = append(taken, c)
		}
		for _, f := range s.Families {
			if s.operated() {
				break // the operator gives them
			}
			if prefixOf(x.PodCIDRs, f == ipv6) == (netip.Prefix{}) {
				p.add(x.line, "node %s: podCIDRs: no %s range, but families has %s", x.Name, f, f)
			}
		}
	}
}

func prefixOf(list []netip.Prefix, v6 bool) netip.Prefix {
	for _, c := range list {
		if c.Addr().Is6() == v6 {
			return c
		}
	}
	return netip.Prefix{}
}

func (s *Spec) checkNamespaces(p *problems) {
	seen := map[string]int{}
	for _, ns := range s.Namespaces {
		if !validName(ns.Name) {
			p.add(ns.line, "namespaces: name %q: use up to 40 lower-case letters, digits and '-'", ns.Name)
		}
		if first, ok := seen[ns.Name]; ok {
			p.add(ns.line, "namespaces: %s is already in line %d", ns.Name, first)
		}
		seen[ns.Name] = ns.line
		if len(ns.Labels) > 0 {
			p.add(ns.line, "namespaces: %s: labels of namespaces need the Kubernetes issue: give the workloads labels", ns.Name)
		}
	}
}

func (s *Spec) checkWorkloads(p *problems, n names) {
	nodes := make([]string, len(s.Nodes))
	for i := range s.Nodes {
		nodes[i] = s.Nodes[i].Name
	}
	for _, w := range s.Workloads {
		n.add(p, "workload", w.Name, w.line)
		if w.Replicas < 1 || w.Replicas > 64 {
			p.add(w.line, "workload %s: replicas: %d is not from 1 to 64", w.Name, w.Replicas)
		} else if w.Replicas > 1 {
			for i := range w.Replicas {
				n.add(p, "workload", replicaName(w.Name, i), w.line)
			}
		}
		if w.Node != "" && !slices.Contains(nodes, w.Node) {
			p.add(w.line, "workload %s: unknown node %q%s", w.Name, w.Node, suggest(w.Node, nodes))
		}
		if len(w.Serves) > 0 && len(w.Run) > 0 {
			p.add(w.line, "workload %s: either serves (built-in servers) or run (a program)", w.Name)
		}
		checkServers(p, "workload "+w.Name, w.Serves)
	}
}

func checkServers(p *problems, who string, list []server) {
	seen := map[string]bool{}
	for _, s := range list {
		switch {
		case slices.Contains([]string{"grpc", "kafka", "dns"}, s.Kind):
			p.add(s.line, "%s: serves: kind %s needs the L7 issue: use echo or http, or run a program", who, s.Kind)
		case s.Kind != serve.Echo && s.Kind != serve.HTTP:
			p.add(s.line, "%s: serves: unknown kind %q%s", who, s.Kind, suggest(s.Kind, []string{serve.Echo, serve.HTTP}))
		}
		switch s.Protocol {
		case "TCP", "UDP":
		case "SCTP":
			p.add(s.line, "%s: serves: built-in servers have no SCTP: run a program", who)
		default:
			p.add(s.line, "%s: serves: unknown protocol %q%s", who, s.Protocol, suggest(s.Protocol, []string{"TCP", "UDP"}))
		}
		if s.Protocol == "UDP" && s.Kind == serve.HTTP {
			p.add(s.line, "%s: serves: http is served over TCP", who)
		}
		if s.Port == 0 {
			p.add(s.line, "%s: serves: port is missing", who)
		}
		if at := fmt.Sprintf("%d/%s", s.Port, s.Protocol); seen[at] {
			p.add(s.line, "%s: serves: port %s is there twice", who, at)
		} else {
			seen[at] = true
		}
	}
}

func (s *Spec) checkOutside(p *problems, n names) {
	taken := map[netip.Addr]string{}
	for _, o := range s.Outside {
		n.add(p, "outside host", o.Name, o.line)
		checkServers(p, "outside host "+o.Name, o.Serves)
		if len(o.Addresses) == 0 {
			p.add(o.line, "outside host %s: addresses is empty", o.Name)
		}
		for _, a := range o.Addresses {
			switch {
			case !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "":
				p.add(o.line, "outside host %s: %s is not a unicast address that can be routed", o.Name, a)
			case underlay4().Contains(a) || underlay6().Contains(a):
				p.add(o.line, "outside host %s: %s is in the nodes' own network %s or %s", o.Name, a, underlay4(), underlay6())
			case taken[a] != "":
				p.add(o.line, "outside host %s: %s is already the address of %s", o.Name, a, taken[a])
			}
			for _, x := range s.Nodes {
				for _, c := range x.PodCIDRs {
					if c.Contains(a) {
						p.add(o.line, "outside host %s: %s is in the pod range %s of %s", o.Name, a, c, x.Name)
					}
				}
			}
			taken[a] = o.Name
		}
	}
}

func (c *check) check(p *problems, s *Spec, n names) {
	at := func(format string, args ...any) { p.add(c.line, "check: "+format, args...) }
	if c.Times < 1 || c.Times > 10000 {
		at("times: %d is not from 1 to 10000", c.Times)
	}
	if c.Run != nil {
		c.checkRun(at, n)
		return
	}
	if c.HTTP != nil || isNumber(c.Expect) {
		at("HTTP requests and statuses need the L7 issue: expect allow, deny or reject")
		return
	}
	if c.Backends != 0 || strings.HasPrefix(c.To, "service ") {
		at("services need the services issue: name a workload or an address")
		return
	}
	if c.On != "" {
		at("on goes with run; a connection has from and to")
	}
	for _, end := range []struct{ field, value string }{{"from", c.From}, {"to", c.To}} {
		if end.value == "" {
			at("%s is missing: name a workload, an outside host, a node or an address", end.field)
		} else if _, err := netip.ParseAddr(end.value); err != nil && n.what[end.value] == "" {
			at("%s: nothing is called %q%s", end.field, end.value, suggest(end.value, keys(n.what)))
		}
	}
	if a, err := netip.ParseAddr(c.From); err == nil && !s.ownsAddr(a) {
		at("from: %s is the address of no outside host: a client needs a place to run in", a)
	}
	switch c.Protocol {
	case "TCP", "UDP":
		if c.Port == 0 && c.Named != "" {
			at("port: %q is neither a number from 1 to 65535 nor the name of a %s port that %s serves", c.Named, c.Protocol, c.To)
		} else if c.Port == 0 {
			at("port is missing")
		}
	case "ICMP":
		if c.Port != 0 {
			at("ICMP has no port")
		}
	case "SCTP":
		at("there is no SCTP client in this version: use TCP, UDP or ICMP")
	default:
		at("unknown protocol %q%s", c.Protocol, suggest(c.Protocol, []string{"TCP", "UDP", "ICMP"}))
	}
	if c.Family != "" && !s.has(c.Family) {
		at("family: %q is not among the lab's families%s", c.Family, suggest(c.Family, s.Families))
	}
	if words := []string{expectAllow, expectDeny, expectReject}; !slices.Contains(words, c.Expect) {
		at("expect: unknown %q%s", c.Expect, suggest(c.Expect, words))
	}
	if c.Reason != "" && c.Expect != expectDeny {
		at("reason goes with expect: deny")
	}
}

func (c *check) checkRun(at func(string, ...any), n names) {
	if len(c.Run) == 0 {
		at("run is empty")
	}
	if c.From != "" || c.To != "" || c.Port != 0 || c.Family != "" || c.HTTP != nil || c.Reason != "" {
		at("a command has only run, on, expect and times")
	}
	if c.On == "" {
		at("on is missing: name the node, workload or outside host to run the command in")
	} else if n.what[c.On] == "" {
		at("on: nothing is called %q%s", c.On, suggest(c.On, keys(n.what)))
	}
	if code, err := strconv.Atoi(c.Expect); err != nil || code < 0 || code > 255 {
		at("expect: %q is not an exit code from 0 to 255", c.Expect)
	}
}

func isNumber(s string) bool {
	_, err := strconv.Atoi(s)
	return err == nil
}

func (s *Spec) ownsAddr(a netip.Addr) bool {
	for _, o := range s.Outside {
		if slices.Contains(o.Addresses, a) {
			return true
		}
	}
	return false
}
