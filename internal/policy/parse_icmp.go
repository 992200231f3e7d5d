package policy

import (
	"strings"

	yaml "go.yaml.in/yaml/v3"
)

// icmps reads all fields lists of an entry.
func (r *reader) icmps(v value) []Port {
	list, ok := r.list(v)
	if ok && len(v.Content) == 0 {
		r.fail(v.Node, v.path, "the list is empty; name the types, or write toPorts with protocol ICMP for all of them")
	}
	out := []Port{}
	for _, e := range list {
		o, ok := r.object(e)
		if !ok {
			continue
		}
		fields, ok := o.take("fields")
		if !ok {
			r.fail(e.Node, e.at("fields"), "missing")
			continue
		}
		fl, ok := r.list(fields)
		if ok && len(fields.Content) == 0 {
			r.fail(fields.Node, fields.path, "the list is empty; name the types")
		}
		if len(fl) > maxPorts {
			r.fail(fields.Node, fields.path, "%d fields; at most %d in one list, write several icmps elements", len(fl), maxPorts)
		}
		for _, f := range fl {
			if p, ok := r.icmpField(f); ok {
				out = append(out, p)
			}
		}
		o.done()
	}
	return out
}

// icmpField reads {family, type}.
func (r *reader) icmpField(v value) (Port, bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return Port{}, false
	}
	p := Port{Proto: ProtoICMP}
	names := icmp4Types()
	if f, ok := o.take("family"); ok {
		switch s, _ := r.text(f); s {
		case "IPv4":
		case "IPv6":
			p.Proto, names = ProtoICMPv6, icmp6Types()
		default:
			r.fail(f.Node, f.path, "%.40q: use IPv4 or IPv6", s)
		}
	}
	t, ok := o.take("type")
	switch {
	case !ok:
		r.fail(v.Node, v.at("type"), "missing; write a number or a name")
	case t.Kind == yaml.ScalarNode && t.Tag == "!!str" && strings.Trim(t.Value, "0123456789") != "":
		n, known := names[t.Value]
		if !known {
			r.fail(t.Node, t.path, "ICMP type %.40q is unknown for %s; write its number", t.Value, map[bool]string{false: "IPv4", true: "IPv6"}[p.Proto == ProtoICMPv6])
		}
		p.First, p.Last = uint16(n), uint16(n)
	default:
		n, _ := r.number(t, 255)
		p.First, p.Last = uint16(n), uint16(n)
	}
	o.done()
	return p, len(r.errs) == errs
}

// Names of ICMP types, as IANA lists them without spaces.
func icmp4Types() map[string]uint8 {
	return map[string]uint8{
		"EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8,
		"RouterAdvertisement": 9, "RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12, "Timestamp": 13,
		"TimestampReply": 14, "Photuris": 40, "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43,
	}
}

func icmp6Types() map[string]uint8 {
	return map[string]uint8{
		"DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4, "EchoRequest": 128,
		"EchoReply": 129, "MulticastListenerQuery": 130, "MulticastListenerReport": 131, "MulticastListenerDone": 132,
		"RouterSolicitation": 133, "RouterAdvertisement": 134, "NeighborSolicitation": 135, "NeighborAdvertisement": 136,
		"RedirectMessage": 137, "RouterRenumbering": 138, "ICMPNodeInformationQuery": 139,
		"ICMPNodeInformationResponse": 140, "InverseNeighborDiscoverySolicitation": 141,
		"InverseNeighborDiscoveryAdvertisement": 142, "HomeAgentAddressDiscoveryRequestMessage": 144,
		"HomeAgentAddressDiscoveryReplyMessage": 145, "MobilePrefixSolicitation": 146, "MobilePrefixAdvertisement": 147,
		"DuplicateAddressRequestCodeSuffix": 157, "DuplicateAddressConfirmationCodeSuffix": 158,
		"ExtendedEchoRequest": 160, "ExtendedEchoReply": 161,
	}
}
