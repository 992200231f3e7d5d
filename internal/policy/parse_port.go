package policy

import (
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"
)

// The reference takes at most 40 ports in one ports list and 40 fields in one icmps element.
const maxPorts = 40

// toPorts reads all ports lists of an entry. Empty lists are refused: in the reference they mean sometimes all ports
// and sometimes none.
func (r *reader) toPorts(v value, at site) []Port {
	list, ok := r.list(v)
	if ok && len(v.Content) == 0 {
		r.fail(v.Node, v.path, "the list is empty; take the field out to mean every port")
	}
	out := []Port{}
	for _, e := range list {
		o, ok := r.object(e)
		if !ok {
			continue
		}
		var read []readPort
		if ports, ok := o.take("ports"); ok {
			read = r.ports(ports)
		} else if _, null := o.fields["ports"]; !null {
			r.fail(e.Node, e.at("ports"), "missing; take toPorts out to mean every port")
		}
		l7 := r.contents(o, at, read)
		o.done()
		for _, p := range read {
			p.port.L7 = l7
			out = append(out, p.port)
		}
	}
	return out
}

// readPort is a port with the place where it was read.
type readPort struct {
	value
	port Port
}

func (r *reader) ports(v value) (out []readPort) {
	list, ok := r.list(v)
	if ok && len(v.Content) == 0 {
		r.fail(v.Node, v.path, "the list is empty; take toPorts out to mean every port")
	}
	if len(list) > maxPorts {
		r.fail(v.Node, v.path, "%d ports; at most %d in one list, write several toPorts elements", len(list), maxPorts)
		return nil
	}
	for _, p := range list {
		if port, ok := r.port(p); ok {
			out = append(out, readPort{p, port})
		}
	}
	return out
}

// protocol is a word for a protocol.
type protocol struct {
	name   string
	number uint8
	ports  bool // has ports, or types
}

func protocols() []protocol {
	return []protocol{
		{"TCP", ProtoTCP, true},
		{"UDP", ProtoUDP, true},
		{"SCTP", ProtoSCTP, true},
		{"ICMP", ProtoICMP, true},
		{"ICMPV6", ProtoICMPv6, true},
		{"VRRP", 112, false},
		{"IGMP", 2, false},
		{"GRE", 47, false},
		{"IPIP", 4, false},
		{"IPV6", 41, false},
		{"ESP", 50, false},
		{"AH", 51, false},
	}
}

// protocolName returns the word for p's protocol.
func protocolName(p Port) string {
	for _, one := range protocols() {
		if one.number == p.Proto && !p.AnyProto {
			return one.name
		}
	}
	return "ANY"
}

// readProtocol sets p's protocol.
func (r *reader) readProtocol(v value, p *Port) (protocol, bool) {
	s, ok := r.text(v)
	if !ok {
		return protocol{}, false
	}
	var names []string
	for _, one := range protocols() {
		if strings.EqualFold(one.name, s) {
			p.Proto, p.AnyProto = one.number, false
			return one, true
		}
		names = append(names, one.name)
	}
	if !strings.EqualFold(s, "ANY") {
		r.fail(v.Node, v.path, "protocol %.40q is not supported; use %s or ANY", s, strings.Join(names, ", "))
		return protocol{}, false
	}
	return protocol{"ANY", 0, true}, true
}

// port reads {port, endPort, protocol}.
func (r *reader) port(v value) (Port, bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return Port{}, false
	}
	p := Port{Any: true, AnyProto: true}
	number, numbered := o.take("port")
	if numbered {
		if isPortName(number) {
			p.Any, p.Name = false, r.portName(number)
		} else if n, ok := r.number(number, 65535); ok && n > 0 {
			p.Any, p.First, p.Last = false, uint16(n), uint16(n)
		}
	}
	if end, ok := o.take("endPort"); ok {
		if n, ok := r.number(end, 65535); ok && n > 0 {
			switch {
			case p.Name != "":
				r.fail(end.Node, end.path, "cannot follow a name; write the first port as a number")
			case p.Any:
				r.fail(end.Node, end.path, "needs a port above 0 to start from")
			case uint16(n) < p.First:
				r.fail(end.Node, end.path, "%d is below port %d", n, p.First)
			}
			p.Last = uint16(n)
		}
	}
	protocol, named := o.take("protocol")
	if named {
		known, ok := r.readProtocol(protocol, &p)
		switch {
		case !ok:
		case p.Name != "" && (p.Proto == ProtoICMP || p.Proto == ProtoICMPv6):
			r.fail(number.Node, number.path, "%s has no named ports; write icmps with the name of the type", known.name)
		case !known.ports && !p.Any:
			r.fail(number.Node, number.path, "%s has no ports; take the port out", known.name)
		}
	}
	if !numbered && !named {
		r.fail(v.Node, v.at("port"), "missing; write a port, a protocol or both")
	}
	if p.Last > 255 && (p.Proto == ProtoICMP || p.Proto == ProtoICMPv6) {
		r.fail(v.Node, v.at("port"), "the port of ICMP is its type, at most 255")
	}
	o.done()
	return p, len(r.errs) == errs
}

// isPortName tells whether v is meant as the name of a port.
func isPortName(v value) bool {
	return v.Kind == yaml.ScalarNode && v.Tag == "!!str" && strings.ContainsAny(v.Value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
}

// portName reads the name of a port by IANA's rules, which do not tell upper from lower case (RFC 6335 5.1).
func (r *reader) portName(v value) string {
	s := strings.ToLower(v.Value)
	if len(s) > 15 || !isLabel(s) || strings.Contains(s, "--") {
		r.fail(v.Node, v.path, "%.40q is no name of a port; use letters, digits and single '-' between them, at most 15", v.Value)
		return ""
	}
	return s
}

// number reads 0..limit in decimal, as text or as a number.
func (r *reader) number(v value, limit int) (int, bool) {
	if v.Kind == yaml.ScalarNode && (v.Tag == "!!str" || v.Tag == "!!int") {
		n, err := strconv.Atoi(v.Value)
		if err == nil && n >= 0 && n <= limit && strconv.Itoa(n) == v.Value {
			return n, true
		}
	}
	r.fail(v.Node, v.path, "%s where a number from 0 to %d is expected", describe(v.Node), limit)
	return 0, false
}
