package packet

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
	"strings"
)

// encodeL4 encodes the transport header and what follows it, with its checksum.
func encodeL4(ls []layer, src, dst netip.Addr) (proto byte, b []byte, err error) {
	if len(ls) == 0 {
		return protoNone, nil, nil
	}
	l := ls[0]
	switch l.kind {
	case "tcp", "udp", "sctp":
		b, err = encodePorts(l, ls[1:], src, dst)
	case "icmp", "ns", "na":
		b, err = encodeICMP(l, ls[1:], src, dst)
	default:
		b, err = encodePayload(ls)
		return protoNone, b, err
	}
	return l4Proto(l.kind, src), b, err
}

func l4Proto(kind string, src netip.Addr) byte {
	switch {
	case kind == "tcp":
		return protoTCP
	case kind == "udp":
		return protoUDP
	case kind == "sctp":
		return protoSCTP
	case src.Is4():
		return protoICMP
	}
	return protoICMPv6
}

const tcpFlags = "FSRPAUEC"

func encodePorts(l layer, rest []layer, src, dst netip.Addr) ([]byte, error) {
	sport, dport, err := l.ports()
	if err != nil {
		return nil, err
	}
	tunnel := l.kind == "udp" && len(rest) > 0 && isTunnel(rest[0].kind)
	payload, err := encodeTunnel(rest, tunnel)
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	csum, err := l.num("csum", 32, 0)
	if err != nil {
		return nil, err
	}
	switch l.kind {
	case "udp":
		size, err := l.num("len", 16, uint64(8+len(payload))&0xffff)
		if err != nil {
			return nil, err
		}
		b = binary.BigEndian.AppendUint16(b, uint16(size))
		b = append(append(b, 0, 0), payload...)
		sum := pseudo(src, dst, protoUDP, b)
		if sum == 0 {
			sum = 0xffff
		}
		if l.has("csum") {
			sum = uint16(csum)
		} else if tunnel {
			sum = 0
		}
		binary.BigEndian.PutUint16(b[6:], sum)
	case "sctp":
		tag, err := l.num("tag", 32, 0)
		if err != nil {
			return nil, err
		}
		b = binary.BigEndian.AppendUint32(b, uint32(tag))
		b = append(append(b, 0, 0, 0, 0), payload...)
		sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
		if l.has("csum") {
			sum = uint32(csum)
		}
		binary.LittleEndian.PutUint32(b[8:], sum)
	case "tcp":
		opt, err := l.hex("opt")
		if err != nil {
			return nil, err
		}
		if len(opt)%4 != 0 || len(opt) > 40 {
			return nil, fmt.Errorf("tcp opt: %d bytes are not a number of words up to 40 bytes", len(opt))
		}
		n, err := l.nums(map[string]attr{
			"seq": {32, 0}, "ack": {32, 0}, "win": {16, 65535}, "doff": {4, uint64(5 + len(opt)/4)},
		})
		if err != nil {
			return nil, err
		}
		var flags byte
		for _, f := range l.args[3] {
			i := strings.IndexRune(tcpFlags, f)
			if i < 0 && f != '-' {
				return nil, fmt.Errorf("tcp: %q is no flag of %s", f, tcpFlags)
			}
			if i >= 0 {
				flags |= 1 << i
			}
		}
		b = binary.BigEndian.AppendUint32(b, uint32(n["seq"]))
		b = binary.BigEndian.AppendUint32(b, uint32(n["ack"]))
		b = append(b, byte(n["doff"]<<4), flags)
		b = binary.BigEndian.AppendUint16(b, uint16(n["win"]))
		b = append(append(append(b, 0, 0, 0, 0), opt...), payload...)
		sum := pseudo(src, dst, protoTCP, b)
		if l.has("csum") {
			sum = uint16(csum)
		}
		binary.BigEndian.PutUint16(b[16:], sum)
	}
	return b, nil
}

// icmpType reads TYPE, TYPE/CODE, echo or reply.
func icmpType(s string, v4 bool) (typ, code byte, err error) {
	switch {
	case s == "echo" && v4:
		return 8, 0, nil
	case s == "reply" && v4:
		return 0, 0, nil
	case s == "echo":
		return 128, 0, nil
	case s == "reply":
		return 129, 0, nil
	}
	t, c, _ := strings.Cut(s, "/")
	if c == "" {
		c = "0"
	}
	tn, err1 := strconv.ParseUint(t, 0, 8)
	cn, err2 := strconv.ParseUint(c, 0, 8)
	if err1 != nil || err2 != nil {
		return 0, 0, fmt.Errorf("icmp: %q is no TYPE/CODE, echo or reply", s)
	}
	return byte(tn), byte(cn), nil
}

func encodeICMP(l layer, rest []layer, src, dst netip.Addr) ([]byte, error) {
	b := []byte{0, 0, 0, 0}
	if l.kind == "icmp" {
		typ, code, err := icmpType(l.args[0], src.Is4())
		if err != nil {
			return nil, err
		}
		n, err := l.nums(map[string]attr{"rest": {32, 0}, "id": {16, 0}, "seq": {16, 0}})
		if err != nil {
			return nil, err
		}
		b[0], b[1] = typ, code
		b = binary.BigEndian.AppendUint32(b, uint32(n["rest"]|n["id"]<<16|n["seq"]))
		if l.inner != nil {
			if len(l.inner) == 0 || l.inner[0].kind != "ip" {
				return nil, fmt.Errorf("icmp: a packet in brackets begins with ip")
			}
			inner, err := encodeIP(l.inner)
			if err != nil {
				return nil, err
			}
			b = append(b, inner...)
		}
	} else {
		target, err := netip.ParseAddr(l.args[0])
		if err != nil || !target.Is6() || target.Zone() != "" || src.Is4() {
			return nil, fmt.Errorf("%s: %q is no IPv6 target", l.kind, l.args[0])
		}
		flags, err := l.num("flags", 32, 0)
		if err != nil {
			return nil, err
		}
		b[0] = 135
		if l.kind == "na" {
			b[0] = 136
		}
		b = binary.BigEndian.AppendUint32(b, uint32(flags))
		b = append(b, target.AsSlice()...)
		if l.has("mac") {
			mac, err := ParseMAC(l.attrs["mac"])
			if err != nil {
				return nil, err
			}
			b = append(append(b, b[0]-134, 1), mac[:]...)
		}
	}
	payload, err := encodePayload(rest)
	if err != nil {
		return nil, err
	}
	b = append(b, payload...)
	sum := checksum(b)
	if src.Is6() {
		sum = pseudo(src, dst, protoICMPv6, b)
	}
	if l.has("csum") {
		n, err := l.num("csum", 16, 0)
		if err != nil {
			return nil, err
		}
		sum = uint16(n)
	}
	binary.BigEndian.PutUint16(b[2:], sum)
	return b, nil
}

// checksum is the Internet checksum (RFC 1071).
func checksum(parts ...[]byte) uint16 {
	var sum uint64
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint64(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint64(b[len(b)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// pseudo is the checksum of a transport header and payload with its pseudo header.
func pseudo(src, dst netip.Addr, proto byte, b []byte) uint16 {
	head := append(src.AsSlice(), dst.AsSlice()...)
	head = binary.BigEndian.AppendUint32(head, uint32(len(b)))
	head = append(head, 0, 0, 0, proto)
	return checksum(head, b)
}
