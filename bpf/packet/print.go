package packet

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// Print turns a frame into text; Parse of that text gives the same bytes back. What the language has no words for is
// written in hexadecimal.
func Print(frame []byte) string {
	if text, ok := printFrame(frame); ok {
		return text
	}
	if len(frame) >= 14 {
		text := printEth(frame, binary.BigEndian.Uint16(frame[12:])) + printHex(frame[14:])
		if same(text, frame) {
			return text
		}
	}
	if len(frame) == 0 {
		return "raw -"
	}
	return "raw " + hex.EncodeToString(frame)
}

func same(text string, frame []byte) bool {
	b, err := Parse(text, Link{})
	return err == nil && bytes.Equal(b, frame)
}

func printEth(frame []byte, etherType uint16) string {
	s := fmt.Sprintf("eth %s > %s", MAC(frame[6:12]), MAC(frame[:6]))
	if etherType != 0 {
		s += fmt.Sprintf(" type %#04x", etherType)
	}
	return s
}

func printHex(b []byte) string {
	switch {
	case len(b) == 0:
		return ""
	case len(b) <= 0xffff && len(bytes.Trim(b, "x")) == 0:
		return fmt.Sprintf(" data %d", len(b))
	}
	return " hex " + hex.EncodeToString(b)
}

// printFrame tries the words; false when they do not give the same frame again.
func printFrame(frame []byte) (string, bool) {
	if len(frame) < 14 {
		return "", false
	}
	var text strings.Builder
	text.WriteString(printEth(frame, 0))
	etherType, rest := binary.BigEndian.Uint16(frame[12:]), frame[14:]
	for etherType == typeVLAN && len(rest) >= 4 {
		text.WriteString(fmt.Sprintf(" vlan %d", binary.BigEndian.Uint16(rest)))
		etherType, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
	}
	pad := 0
	switch {
	case etherType == typeARP && len(rest) >= 28:
		text.WriteString(printARP(rest))
	case etherType == typeIPv4 || etherType == typeIPv6:
		if n := ipLen(rest); n > 0 && n < len(rest) && len(bytes.Trim(rest[n:], "\x00")) == 0 {
			pad, rest = len(rest)-n, rest[:n]
		}
		ip, ok := printIP(rest)
		if !ok {
			return "", false
		}
		text.WriteString(ip)
	default:
		return "", false
	}
	if pad > 0 {
		text.WriteString(fmt.Sprintf(" pad %d", pad))
	}
	return text.String(), same(text.String(), frame)
}

func printARP(b []byte) string {
	op := binary.BigEndian.Uint16(b[6:])
	word, extra := "request", ""
	if op == 2 {
		word = "reply"
	} else if op != 1 {
		extra = fmt.Sprintf(" op %d", op)
	}
	return fmt.Sprintf(" arp %s %s %s > %s %s%s%s", word, MAC(b[8:14]), netip.AddrFrom4([4]byte(b[14:18])), MAC(b[18:24]),
		netip.AddrFrom4([4]byte(b[24:28])), extra, printHex(b[28:]))
}

// ipLen is the length that the IP header claims.
func ipLen(b []byte) int {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return int(binary.BigEndian.Uint16(b[2:]))
	case len(b) >= 40 && b[0]>>4 == 6:
		return 40 + int(binary.BigEndian.Uint16(b[4:]))
	}
	return 0
}

func printIP(b []byte) (string, bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && b[0]&15 >= 5 && int(b[0]&15)*4 <= len(b):
		return printIPv4(b), true
	case len(b) >= 40 && b[0]>>4 == 6:
		return printIPv6(b), true
	}
	return "", false
}

// opt writes an attribute unless it has the value that Parse fills in.
func opt[N uint8 | uint16 | uint32 | int](name string, n, usual N) string {
	if n == usual {
		return ""
	}
	return fmt.Sprintf(" %s %d", name, n)
}

func printIPv4(b []byte) string {
	header := int(b[0]&15) * 4
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	frag := binary.BigEndian.Uint16(b[6:])
	s := fmt.Sprintf(" ip %s > %s", src, dst) + opt("ttl", b[8], 64) + opt("tos", b[1], 0) +
		opt("id", binary.BigEndian.Uint16(b[4:]), 0)
	if frag&0x4000 != 0 {
		s += " df"
	}
	s += opt("frag", int(frag&0x1fff)*8, 0)
	if frag&0x2000 != 0 {
		s += " more"
	}
	if header > 20 {
		s += " opt " + hex.EncodeToString(b[20:header])
	}
	s += opt("len", binary.BigEndian.Uint16(b[2:]), uint16(len(b)))
	plain := append([]byte{}, b[:header]...)
	plain[10], plain[11] = 0, 0
	s += opt("csum", binary.BigEndian.Uint16(b[10:]), checksum(plain))
	l4, proto := printL4(b[9], b[header:], src, dst, frag&0x1fff != 0)
	return s + opt("proto", b[9], proto) + l4
}

func printIPv6(b []byte) string {
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	word := binary.BigEndian.Uint32(b)
	s := fmt.Sprintf(" ip %s > %s", src, dst) + opt("ttl", b[7], 64) + opt("class", uint8(word>>20), 0) +
		opt("label", word&0xfffff, 0) + opt("len", binary.BigEndian.Uint16(b[4:]), uint16(len(b)-40))
	var ext strings.Builder
	next, rest, later := b[6], b[40:], false
	for !later {
		text, n, ok := printExt(next, rest)
		if !ok {
			break
		}
		later = next == protoFragment && binary.BigEndian.Uint16(rest[2:])&^7 != 0
		ext.WriteString(text)
		next, rest = rest[0], rest[n:]
	}
	l4, proto := printL4(next, rest, src, dst, later)
	return s + opt("proto", next, proto) + ext.String() + l4
}

func printExt(kind byte, b []byte) (text string, n int, ok bool) {
	if len(b) < 8 {
		return "", 0, false
	}
	n = (int(b[1]) + 1) * 8
	switch kind {
	case protoFragment:
		off := binary.BigEndian.Uint16(b[2:])
		text = fmt.Sprintf(" fragment %d", off&^7)
		if off&1 != 0 {
			text += " more"
		}
		return text + opt("id", binary.BigEndian.Uint32(b[4:]), 0), 8, b[1] == 0 && off&6 == 0
	case protoAH:
		n = (int(b[1]) + 2) * 4
		text = " ah opt "
	case protoHopByHop:
		text = " hbh opt "
	case protoDstOpts:
		text = " dstopts opt "
	case protoRouting:
		text = fmt.Sprintf(" route %d %d opt ", b[2], b[3])
	default:
		return "", 0, false
	}
	if n > len(b) {
		return "", 0, false
	}
	if kind == protoRouting {
		return text + hex.EncodeToString(b[4:n]), n, true
	}
	return text + hex.EncodeToString(b[2:n]), n, true
}

// printL4 writes the transport header and what follows, and says which protocol Parse will take it for.
func printL4(proto byte, b []byte, src, dst netip.Addr, later bool) (text string, as uint8) {
	if !later {
		switch {
		case proto == protoTCP && len(b) >= 20 && b[12]>>4 >= 5 && int(b[12]>>4)*4 <= len(b) && b[12]&15 == 0:
			return printTCP(b, src, dst), proto
		case proto == protoUDP && len(b) >= 8:
			return printUDP(b, src, dst), proto
		case proto == protoSCTP && len(b) >= 12:
			return printSCTP(b), proto
		case (proto == protoICMP && src.Is4() || proto == protoICMPv6 && src.Is6()) && len(b) >= 8:
			return printICMP(b, src, dst), proto
		}
	}
	return printHex(b), protoNone
}

func ends(kind string, b []byte) string {
	return fmt.Sprintf(" %s %d > %d", kind, binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]))
}

// csumOf is the checksum at off, and the one that the bytes should have.
func csumOf(b []byte, off int, src, dst netip.Addr, proto byte) (is, right uint16) {
	plain := append([]byte{}, b...)
	plain[off], plain[off+1] = 0, 0
	if proto == protoICMP {
		return binary.BigEndian.Uint16(b[off:]), checksum(plain)
	}
	return binary.BigEndian.Uint16(b[off:]), pseudo(src, dst, proto, plain)
}

func printTCP(b []byte, src, dst netip.Addr) string {
	var s strings.Builder
	s.WriteString(ends("tcp", b) + " ")
	for i, f := range tcpFlags {
		if b[13]&(1<<i) != 0 {
			s.WriteString(string(f))
		}
	}
	if b[13] == 0 {
		s.WriteString("-")
	}
	s.WriteString(opt("seq", binary.BigEndian.Uint32(b[4:]), 0) + opt("ack", binary.BigEndian.Uint32(b[8:]), 0) +
		opt("win", binary.BigEndian.Uint16(b[14:]), 65535))
	header := int(b[12]>>4) * 4
	if header > 20 {
		s.WriteString(" opt " + hex.EncodeToString(b[20:header]))
	}
	is, right := csumOf(b, 16, src, dst, protoTCP)
	s.WriteString(opt("csum", is, right))
	if urgent := binary.BigEndian.Uint16(b[18:]); urgent != 0 {
		return s.String() + " hex urgent" // no word for it: Parse refuses, the caller writes bytes
	}
	return s.String() + printHex(b[header:])
}

func printUDP(b []byte, src, dst netip.Addr) string {
	is, right := csumOf(b, 6, src, dst, protoUDP)
	if right == 0 {
		right = 0xffff
	}
	if inner, ok := printTunnel(binary.BigEndian.Uint16(b[2:]), b[8:]); ok {
		return ends("udp", b) + opt("len", binary.BigEndian.Uint16(b[4:]), uint16(len(b))) + opt("csum", is, 0) + inner
	}
	return ends("udp", b) + opt("len", binary.BigEndian.Uint16(b[4:]), uint16(len(b))) + opt("csum", is, right) +
		printHex(b[8:])
}

func printSCTP(b []byte) string {
	return ends("sctp", b) + opt("tag", binary.BigEndian.Uint32(b[4:]), 0) +
		fmt.Sprintf(" csum %d", binary.LittleEndian.Uint32(b[8:])) + printHex(b[12:])
}

func printICMP(b []byte, src, dst netip.Addr) string {
	proto := l4Proto("icmp", src)
	is, right := csumOf(b, 2, src, dst, proto)
	sum := opt("csum", is, right)
	rest := binary.BigEndian.Uint32(b[4:])
	echo, reply := byte(8), byte(0)
	if proto == protoICMPv6 {
		echo, reply = 128, 129
	}
	switch {
	case (b[0] == echo || b[0] == reply) && b[1] == 0:
		word := "echo"
		if b[0] == reply {
			word = "reply"
		}
		return " icmp " + word + opt("id", rest>>16, 0) + opt("seq", rest&0xffff, 0) + sum + printHex(b[8:])
	case proto == protoICMPv6 && (b[0] == 135 || b[0] == 136) && b[1] == 0 && len(b) >= 24 && sum == "":
		s := " ns "
		if b[0] == 136 {
			s = " na "
		}
		s += netip.AddrFrom16([16]byte(b[8:24])).String()
		tail := b[24:]
		if len(tail) == 8 && tail[0] == b[0]-134 && tail[1] == 1 {
			s += " mac " + MAC(tail[2:8]).String()
			tail = nil
		}
		return s + opt("flags", rest, 0) + printHex(tail)
	}
	s := fmt.Sprintf(" icmp %d/%d", b[0], b[1])
	if rest != 0 {
		s += fmt.Sprintf(" rest %#x", rest)
	}
	if inner, ok := printIP(b[8:]); ok && isError(b[0], proto) && !strings.Contains(inner, " icmp ") {
		return s + sum + " [" + inner + " ]"
	}
	return s + sum + printHex(b[8:])
}

func isError(typ, proto byte) bool {
	if proto == protoICMPv6 {
		return typ < 128
	}
	return typ == 3 || typ == 4 || typ == 5 || typ == 11 || typ == 12
}
