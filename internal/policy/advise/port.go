package advise

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"porin/internal/policy"
)

// Port is a protocol with a port, or with an ICMP type.
type Port struct {
	Proto  uint8
	Number uint16
}

// protocols are those that people can write, in the order in which they are shown.
func protocols() []uint8 {
	return []uint8{policy.ProtoTCP, policy.ProtoUDP, policy.ProtoSCTP, policy.ProtoICMP, policy.ProtoICMPv6}
}

func protocolName(n uint8) string {
	switch n {
	case policy.ProtoTCP:
		return "TCP"
	case policy.ProtoUDP:
		return "UDP"
	case policy.ProtoSCTP:
		return "SCTP"
	case policy.ProtoICMP:
		return "ICMP"
	case policy.ProtoICMPv6:
		return "ICMPV6"
	}
	return fmt.Sprintf("protocol %d", n)
}

// String returns "80/TCP", or "8/ICMP" for a type.
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, protocolName(p.Proto)) }

// Echo requests, which "ICMP" means.
const (
	echo4 = 8
	echo6 = 128
)

// ParsePort reads 80/TCP, 80 (TCP), 53/UDP, 9/SCTP, 8/ICMP, 128/ICMPv6, or ICMP: the echo requests of the families.
func ParsePort(text string, families []string) ([]Port, error) {
	number, name, both := strings.Cut(strings.ToUpper(text), "/")
	if !both && (number == "ICMP" || number == "ICMPV6") {
		var out []Port
		for _, f := range families {
			if f == "ipv4" && number == "ICMP" {
				out = append(out, Port{policy.ProtoICMP, echo4})
			} else if f == "ipv6" {
				out = append(out, Port{policy.ProtoICMPv6, echo6})
			}
		}
		return out, nil
	}
	if !both {
		name = "TCP"
	}
	for _, proto := range protocols() {
		if protocolName(proto) != name {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 16)
		icmp := proto == policy.ProtoICMP || proto == policy.ProtoICMPv6
		if err != nil || icmp && n > 255 || !icmp && n == 0 {
			break
		}
		return []Port{{proto, uint16(n)}}, nil
	}
	return nil, fmt.Errorf("port %q: write it as 80/TCP, 53/UDP, 9/SCTP, 8/ICMP (a type) or ICMP (ping)", text)
}

// IsPortName tells whether text is the name of a port, with or without a protocol: something with a letter.
func IsPortName(text string) bool {
	name, proto, both := strings.Cut(strings.ToUpper(text), "/")
	if both && !slices.Contains([]string{"TCP", "UDP", "SCTP"}, proto) || !both && (name == "ICMP" || name == "ICMPV6") {
		return false
	}
	return strings.ContainsAny(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") && !strings.ContainsFunc(name, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z')
	})
}

// Port reads a port of the end as ParsePort does, or by the name that the end gives to it: http, dns/UDP. A name may
// mean a port of several protocols.
func (e End) Port(text string, families []string) ([]Port, error) {
	if !IsPortName(text) {
		return ParsePort(text, families)
	}
	name, proto, both := strings.Cut(text, "/")
	var out []Port
	var others []string
	for _, n := range e.Ports {
		p := Port{n.Proto, n.Port}
		switch {
		case !strings.EqualFold(n.Name, name) || both && !strings.EqualFold(protocolName(n.Proto), proto):
			others = append(others, n.Name+" ("+p.String()+")")
		case !slices.Contains(out, p):
			out = append(out, p)
		}
	}
	if len(out) == 0 && len(others) == 0 {
		return nil, fmt.Errorf("port %q: %s has no ports with names; write a number", text, e.Name)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("port %q: %s has no port of that name; it has %s", text, e.Name, strings.Join(others, ", "))
	}
	return out, nil
}
