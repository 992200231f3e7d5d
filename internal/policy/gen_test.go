package policy

import (
	"math/rand/v2"
	"strings"
)

// gen makes random policies and identities from a small vocabulary, so that they meet each other often.
type gen struct{ *rand.Rand }

func pick[T any](g gen, list ...T) T { return list[g.IntN(len(list))] }

func (g gen) chance(percent int) bool { return g.IntN(100) < percent }

func (g gen) some(most int, f func()) {
	for range g.IntN(most + 1) {
		f()
	}
}

func (g gen) reqs(subject bool, namespace string) []oReq {
	var out []oReq
	g.some(2, func() {
		q := oReq{
			source: pick(g, "", "", "k8s", "any", "container"), key: pick(g, "app", "tier", "env", "app.kubernetes.io/name"),
			op: pick(g, "In", "In", "In", "NotIn", "Exists", "DoesNotExist"),
		}
		if q.op == "In" || q.op == "NotIn" {
			q.values = []string{pick(g, "a", "b", "c", "")}
			if g.chance(30) {
				q.values = append(q.values, pick(g, "a", "b", "d"))
			}
		}
		out = append(out, q)
	})
	own := subject && namespace != "" // must not exclude its namespace, nor ask for what is in none
	switch g.IntN(8) {
	case 0:
		if own {
			return append(out, oReq{"k8s", "io.kubernetes.pod.namespace", "In", []string{"green", namespace}})
		}
		out = append(out, oReq{pick(g, "", "k8s"), "io.kubernetes.pod.namespace", "In", []string{pick(g, "red", "blue")}})
	case 1:
		out = append(out, oReq{"", "io.kubernetes.pod.namespace", pick(g, "Exists", "DoesNotExist"), nil})
		if own {
			out[len(out)-1].op = "Exists"
		}
	case 2:
		out = append(out, oReq{"", "io.cilium.k8s.namespace.labels.team", pick(g, "In", "NotIn"), []string{pick(g, "x", "y")}})
	case 3:
		if own {
			return out
		}
		out = append(out, oReq{"reserved", pick(g, "host", "world", "init", "remote-node", "health"), pick(g, "Exists", "Exists", "DoesNotExist"), nil})
	}
	return out
}

func oBlocks() []string {
	return []string{
		"0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/32", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32", "10.128.0.0/9", "192.168.0.0/16",
		"203.0.113.7/32", "::/0", "fd00::/8", "fd00:1::/32", "fd00:1::5/128", "2001:db8::/32",
	}
}

func (g gen) cidr(excepts bool) oCIDR {
	c := oCIDR{cidr: pick(g, oBlocks()...)}
	outer := c.cidr
	if excepts {
		switch g.IntN(6) {
		case 0:
			c.cidr, c.group = "", pick(g, oGroups()...)
		case 1:
			c.cidr, c.labels = "", []oReq{{"", "purpose", pick(g, "In", "NotIn", "Exists"), nil}}
			if c.labels[0].op != "Exists" {
				c.labels[0].values = []string{pick(g, "office", "partner")}
			}
		}
		for _, b := range oBlocks() {
			if g.chance(25) && (c.cidr == "" || inside(b, outer)) {
				c.except = append(c.except, b)
			}
		}
	}
	return c
}

func oGroups() []string { return []string{"offices", "partners", "nobody"} }

func oNames() []string { return []string{"example.com.", "www.example.com.", "*.example.com."} }

func (g gen) port() oPort {
	p := oPort{proto: pick(g, "TCP", "TCP", "UDP", "SCTP", "ANY", "", "ICMP", "ICMPV6"), port: pick(g, 0, 1, 53, 80, 81, 100, 443, 8000, 8080, 65535)}
	if strings.HasPrefix(p.proto, "ICMP") {
		p.port = pick(g, 0, 3, 8, 128, 255)
		return p
	}
	if g.chance(15) {
		p.port, p.name = 0, pick(g, "http", "dns", "admin")
		return p
	}
	if p.port > 0 && g.chance(35) {
		p.end = min(65535, p.port+pick(g, 0, 1, 20, 900, 65535))
	}
	return p
}

// numbers are named ports of a workload.
func (g gen) numbers() (out []oNumber) {
	g.some(3, func() {
		out = append(out, oNumber{pick(g, "http", "dns", "admin", "other"), pick[uint8](g, 6, 6, 17), pick[uint16](g, 53, 80, 81, 443, 8080)})
	})
	return out
}

// contents makes what an element of toPorts says beside its ports, and ports on which it may say that.
func (g gen) contents(ingress bool) (*oL7, []oPort) {
	l := &oL7{parser: pick(g, "http", "http", "http", "kafka", "echo", "")}
	ports := []oPort{{proto: "TCP", port: pick(g, 80, 80, 80, 81, 8080)}}
	switch {
	case g.chance(15) && !ingress:
		l.parser = "dns"
		ports = []oPort{{proto: pick(g, "UDP", "ANY", ""), port: 53}}
	case g.chance(20):
		ports[0].end = ports[0].port + g.IntN(30)
	case g.chance(20):
		ports = []oPort{{proto: "TCP", name: pick(g, "http", "admin")}}
	}
	switch {
	case l.parser == "" && g.chance(20) && !ingress:
		l.listener = pick(g, "one", "two")
	case l.parser == "":
		l.names = []string{pick(g, "a.example.com", "*.example.org")}
	}
	if l.parser != "" {
		g.some(2, func() {
			l.rules = append(l.rules, map[string][]string{
				"http": {"/a", "/b", "/.*"}, "kafka": {"orders", "bills"}, "echo": {"yes", "no"}, "dns": {"example.com.", "www.example.com."},
			}[l.parser][g.IntN(2)])
		})
	}
	if g.chance(20) {
		ports = append(ports, oPort{proto: ports[0].proto, port: max(ports[0].port, 53), end: ports[0].end})
		if ports[1].port == 53 && l.parser != "dns" {
			ports = ports[:1]
		}
	}
	return l, ports
}

func (g gen) entry(list, namespace string, host bool) oEntry {
	deny, ingress := strings.HasSuffix(list, "Deny"), strings.HasPrefix(list, "ingress")
	kinds := []string{"", "Endpoints", "Endpoints", "Entities", "CIDR", "CIDRSet", "CIDRSet", "Nodes"}
	if !ingress {
		kinds = append(kinds, "Services")
		if !deny {
			kinds = append(kinds, "FQDNs")
		}
	}
	e := oEntry{kind: pick(g, kinds...)}
	said := g.chance(35) && !deny && !(host && ingress) // something about what may be said
	proven := g.chance(12) && !deny                     // that the other end is who it is
	if (said || proven) && g.chance(50) {
		e.kind = ""
	}
	g.some(3, func() {
		var q oPeer
		switch e.kind {
		case "":
			return
		case "Endpoints":
			q.selector = g.reqs(false, namespace)
		case "Nodes":
			q.selector = g.nodeReqs()
		case "Entities":
			q.entity = pick(g, "all", "world", "world", "world-ipv4", "world-ipv6", "cluster", "cluster-mesh", "host",
				"remote-node", "kube-apiserver", "ingress", "health", "init", "unmanaged", "none")
		case "CIDR":
			q.cidr = g.cidr(false)
		case "CIDRSet":
			q.cidr = g.cidr(true)
		case "FQDNs":
			q.name = pick(g, oNames()...)
		case "Services":
			if q.service = [2]string{pick(g, "red", "blue"), pick(g, "web", "out", "gone")}; g.chance(40) {
				q.service = [2]string{pick(g, "", "red"), ""}
				q.services = []oReq{{"", "side", "In", []string{pick(g, "front", "back")}}}
			}
		}
		e.peers = append(e.peers, q)
	})
	if !deny && g.chance(3) {
		for range 1 + g.IntN(2) {
			e.requires = append(e.requires, g.reqs(false, namespace))
		}
	}
	if proven {
		e.auth = pick(g, "disabled", "required", "required", "test-always-fail")
	}
	switch {
	case said:
		for n := range 1 + g.IntN(2) {
			l, ports := g.contents(ingress)
			if host {
				l, ports = &oL7{parser: "dns", rules: []string{"example.com."}}, []oPort{{proto: "UDP", port: 53}}
			} else if g.chance(25) {
				l = nil
			}
			e.l7 = append(e.l7, l)
			for _, p := range ports {
				p.group = n
				e.ports = append(e.ports, p)
			}
		}
	case g.chance(45) || (deny || proven) && e.kind == "" && g.chance(60):
		for range 1 + g.IntN(4) {
			e.ports = append(e.ports, g.port())
		}
	case g.chance(15) || (deny || proven) && e.kind == "":
		for range 1 + g.IntN(3) {
			e.ports = append(e.ports, oPort{family: pick(g, "IPv4", "IPv6"), port: pick(g, 0, 3, 8, 128, 129)})
		}
	}
	return e
}

func (g gen) nodeReqs() []oReq {
	var out []oReq
	g.some(2, func() {
		q := oReq{source: pick(g, "", "", "node", "k8s"), key: pick(g, "zone", "kubernetes.io/hostname"), op: pick(g, "In", "In", "NotIn", "Exists")}
		if q.op != "Exists" {
			q.values = []string{pick(g, "x", "y")}
		}
		out = append(out, q)
	})
	return out
}

// policy makes a document with rules.
func (g gen) policy(name string) oPolicy {
	switch g.IntN(10) {
	case 0, 1:
		return g.kubernetes(name)
	case 2, 3:
		return g.cluster(name)
	}
	p := oPolicy{kind: "CiliumNetworkPolicy", namespace: pick(g, "red", "blue"), name: name, many: g.chance(30)}
	if g.chance(35) {
		p.kind, p.namespace = "CiliumClusterwideNetworkPolicy", ""
	}
	n := 1
	if p.many {
		n += g.IntN(3)
	}
	for range n {
		s := oSpec{subject: g.reqs(true, p.namespace), lists: map[string][]oEntry{}, audit: g.chance(10)}
		if g.chance(25) {
			s.subject = nil
		}
		if p.namespace == "" && g.chance(15) {
			s.nodes, s.subject = true, g.nodeReqs()
		}
		if g.chance(25) {
			s.tier = pick(g, "Admin", "Normal", "Baseline")
		}
		if g.chance(30) {
			s.priority = pick(g, 1, 2, 1000, 1<<31-1)
		}
		for len(s.lists) == 0 {
			for _, list := range []string{"ingress", "ingressDeny", "egress", "egressDeny"} {
				if g.chance(60) {
					continue
				}
				s.lists[list] = []oEntry{}
				g.some(3, func() { s.lists[list] = append(s.lists[list], g.entry(list, p.namespace, s.nodes)) })
			}
		}
		if g.chance(30) {
			s.defaultDeny = map[string]bool{}
			for _, d := range []string{"ingress", "egress"} {
				if g.chance(60) {
					s.defaultDeny[d] = g.chance(40)
				}
			}
		}
		p.specs = append(p.specs, s)
	}
	return p
}

// plainReqs are conditions on labels of pods or, as Kubernetes' own kinds have them, of namespaces.
func (g gen) plainReqs(spaces bool) []oReq {
	var out []oReq
	g.some(2, func() {
		q := oReq{key: pick(g, "app", "tier", "env"), op: pick(g, "In", "In", "NotIn", "Exists", "DoesNotExist")}
		values := []string{pick(g, "a", "b", "c")}
		if spaces {
			if q.key, values = "team", []string{pick(g, "x", "y")}; g.chance(40) {
				q.key, values = "kubernetes.io/metadata.name", []string{pick(g, "red", "blue")}
			}
		}
		if q.op == "In" || q.op == "NotIn" {
			q.values = values
		}
		out = append(out, q)
	})
	return out
}

// kubernetes makes a NetworkPolicy.
func (g gen) kubernetes(name string) oPolicy {
	s := oSpec{subject: g.plainReqs(false), lists: map[string][]oEntry{}}
	s.types = pick(g, nil, nil, []string{"Ingress"}, []string{"Egress"}, []string{"Ingress", "Egress"})
	for _, list := range []string{"ingress", "egress"} {
		if g.chance(40) {
			continue
		}
		s.lists[list] = []oEntry{}
		g.some(3, func() {
			e := oEntry{kind: "Everyone"}
			g.some(3, func() {
				e.kind = "Pods"
				q := oPeer{hasPods: g.chance(60), hasSpaces: g.chance(60)}
				switch {
				case g.chance(30):
					q = oPeer{cidr: g.cidr(true)}
					if q.cidr.cidr == "" {
						q.cidr = g.cidr(false)
					}
				case !q.hasPods && !q.hasSpaces:
					q.hasPods = true
				}
				if q.hasPods {
					q.selector = g.plainReqs(false)
				}
				if q.hasSpaces {
					q.spaces = g.plainReqs(true)
				}
				e.peers = append(e.peers, q)
			})
			g.some(3, func() {
				p := oPort{proto: pick(g, "TCP", "TCP", "UDP", "SCTP"), port: pick(g, 0, 53, 80, 81, 443, 8000)}
				switch {
				case g.chance(25):
					p.port, p.name = 0, pick(g, "http", "dns", "admin")
				case p.port > 0 && g.chance(30):
					p.end = p.port + g.IntN(300)
				}
				e.ports = append(e.ports, p)
			})
			s.lists[list] = append(s.lists[list], e)
		})
	}
	return oPolicy{kind: "NetworkPolicy", namespace: pick(g, "red", "blue"), name: name, specs: []oSpec{s}}
}

// cluster makes a ClusterNetworkPolicy.
func (g gen) cluster(name string) oPolicy {
	s := oSpec{
		subject: g.plainReqs(false), spaces: g.plainReqs(true), whole: g.chance(50), tier: pick(g, "Admin", "Baseline"),
		priority: pick(g, 0, 1, 2, 1000), lists: map[string][]oEntry{},
	}
	if s.whole {
		s.subject = nil
	}
	for _, list := range []string{"ingress", "egress"} {
		if g.chance(40) {
			continue
		}
		s.lists[list] = []oEntry{}
		g.some(4, func() {
			e := oEntry{kind: "Pods", action: pick(g, "Accept", "Deny", "Pass")}
			if list == "egress" {
				e.kind = pick(g, "Pods", "Pods", "Nodes", "CIDR", "FQDNs")
			}
			if e.kind == "FQDNs" {
				e.action = "Accept"
			}
			for range 1 + g.IntN(3) {
				q := oPeer{hasSpaces: true}
				switch e.kind {
				case "Nodes":
					q.selector = g.nodeReqs()
					for i := range q.selector {
						q.selector[i].source = ""
					}
				case "FQDNs":
					q.name = pick(g, oNames()[:2]...)
				case "CIDR":
					for q.cidr.cidr == "" || strings.HasSuffix(q.cidr.cidr, "/0") { // those speak of the cluster too
						q.cidr = g.cidr(false)
					}
				default:
					if q.spaces, q.hasPods = g.plainReqs(true), g.chance(60); q.hasPods {
						q.selector = g.plainReqs(false)
					}
				}
				e.peers = append(e.peers, q)
			}
			g.some(2, func() {
				p := oPort{proto: pick(g, "TCP", "TCP", "UDP", "SCTP"), port: pick(g, 53, 80, 81, 443, 8000)}
				switch {
				case g.chance(25) && e.kind == "Pods":
					p = oPort{proto: "ANY", name: pick(g, "http", "dns", "admin")}
				case g.chance(30):
					p.end = p.port + 1 + g.IntN(300)
				}
				e.ports = append(e.ports, p)
			})
			s.lists[list] = append(s.lists[list], e)
		})
	}
	return oPolicy{kind: "ClusterNetworkPolicy", name: name, specs: []oSpec{s}}
}

// object makes a document that rules refer to.
func (g gen) object() oPolicy {
	switch g.IntN(3) {
	case 0:
		p := oPolicy{kind: "CiliumCIDRGroup", name: pick(g, oGroups()[:2]...)}
		if g.chance(70) {
			p.labels = [][2]string{{"purpose", pick(g, "office", "partner")}}
		}
		g.some(3, func() { p.blocks = append(p.blocks, pick(g, oBlocks()...)) })
		return p
	case 1:
		p := oPolicy{kind: "Service", namespace: pick(g, "red", "blue"), name: pick(g, "web", "out")}
		if g.chance(70) {
			p.labels = [][2]string{{"side", pick(g, "front", "back")}}
		}
		if p.name == "web" || g.chance(20) {
			p.selector = [][2]string{{pick(g, "app", "tier"), pick(g, "a", "b", "c")}}
		}
		return p
	}
	p := oPolicy{kind: "EndpointSlice", namespace: pick(g, "red", "blue"), name: pick(g, "slice1", "slice2"), service: pick(g, "web", "out", "out")}
	family := g.chance(70)
	g.some(2, func() {
		if family {
			p.addresses = append(p.addresses, pick(g, "10.1.1.1", "203.0.113.7", "10.0.0.0"))
		} else {
			p.addresses = append(p.addresses, "fd00:1::5")
		}
	})
	return p
}

func (g gen) workload(id uint32) oIdentity {
	i := oIdentity{id: id}
	add := func(source, key, value string) { i.labels = append(i.labels, [3]string{source, key, value}) }
	if g.chance(90) {
		add("k8s", "io.kubernetes.pod.namespace", pick(g, "red", "blue", "green"))
	}
	if g.chance(50) {
		add("k8s", "io.cilium.k8s.namespace.labels.team", pick(g, "x", "y"))
	}
	if g.chance(50) {
		add("k8s", "io.cilium.k8s.policy.cluster", pick(g, "one", "two"))
	}
	for _, key := range []string{"app", "tier", "env", "app.kubernetes.io/name"} {
		if g.chance(60) {
			add(pick(g, "k8s", "k8s", "container"), key, pick(g, "a", "b", "c", ""))
		}
	}
	if g.chance(20) {
		add("cni", "app", pick(g, "a", "b"))
	}
	if g.chance(20) { // imitates a label that only porin gives: another source
		add("container", "io.kubernetes.pod.namespace", pick(g, "red", "blue"))
	}
	return i
}

func oReserved() []oIdentity {
	var out []oIdentity
	for n, name := range []string{"host", "world", "unmanaged", "health", "init", "remote-node", "kube-apiserver", "ingress", "world-ipv4", "world-ipv6"} {
		out = append(out, oIdentity{id: uint32(n + 1), labels: [][3]string{{"reserved", name, ""}}})
	}
	return out
}

func (g gen) outside(id uint32, block string) oIdentity {
	family := "world-ipv6"
	if strings.Contains(block, ".") {
		family = "world-ipv4"
	}
	i := oIdentity{id: id, prefix: block, labels: [][3]string{{"cidr", block, ""}, {"reserved", pick(g, "world", family), ""}}}
	for _, n := range oNames() {
		if g.chance(20) {
			i.labels = append(i.labels, [3]string{"fqdn", n, ""})
		}
	}
	return i
}

// node is this node, or another with a number of its own.
func (g gen) node(id uint32) oIdentity {
	i := oIdentity{id: id, labels: [][3]string{{"reserved", "remote-node", ""}}}
	if id == 1 {
		i.labels[0][1] = "host"
	}
	for _, key := range []string{"zone", "kubernetes.io/hostname"} {
		if g.chance(70) {
			i.labels = append(i.labels, [3]string{"node", key, pick(g, "x", "y")})
		}
	}
	return i
}
