package packet

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"net/netip"
	"strings"
)

// EtherTypes and protocols that the language has words for.
const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeVLAN = 0x8100
	typeIPv6 = 0x86dd

	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoAH       = 51
	protoICMPv6   = 58
	protoNone     = 59
	protoDstOpts  = 60
	protoSCTP     = 132
)

const maxFrame = 1 << 16

func encodeFrame(ls []layer, link Link) ([]byte, error) {
	if len(ls) == 0 {
		return nil, fmt.Errorf("no layers")
	}
	if len(ls) == 1 && ls[0].kind == "raw" {
		if ls[0].args[0] == "-" {
			return nil, nil
		}
		b, err := hex.DecodeString(ls[0].args[0])
		if err != nil {
			return nil, fmt.Errorf("raw: %q is not hexadecimal", ls[0].args[0])
		}
		return b, nil
	}
	var etherType uint64 = math.MaxUint16 + 1
	if ls[0].kind == "eth" {
		src, dst, err := ls[0].ends()
		if err != nil {
			return nil, err
		}
		if link.Src, err = ParseMAC(src); err != nil {
			return nil, err
		}
		if link.Dst, err = ParseMAC(dst); err != nil {
			return nil, err
		}
		if etherType, err = ls[0].num("type", 16, etherType); err != nil {
			return nil, err
		}
		ls = ls[1:]
	}
	cut, pad := -1, 0
	for len(ls) > 0 {
		last := ls[len(ls)-1]
		if last.kind != "cut" && last.kind != "pad" {
			break
		}
		n, err := number(last.kind, last.args[0], 16)
		if err != nil {
			return nil, err
		}
		if last.kind == "cut" {
			cut = int(n)
		} else {
			pad = int(n)
		}
		ls = ls[:len(ls)-1]
	}
	auto, body, err := encodeLink(ls)
	if err != nil {
		return nil, err
	}
	if etherType > math.MaxUint16 {
		etherType = uint64(auto)
	}
	frame := append(append([]byte{}, link.Dst[:]...), link.Src[:]...)
	frame = binary.BigEndian.AppendUint16(frame, uint16(etherType))
	frame = append(frame, body...)
	if cut >= 0 {
		if cut > len(frame) {
			return nil, fmt.Errorf("cut %d: the frame has %d bytes only", cut, len(frame))
		}
		frame = frame[:cut]
	}
	frame = append(frame, make([]byte, pad)...)
	if len(frame) > maxFrame {
		return nil, fmt.Errorf("%d bytes are too many for a frame", len(frame))
	}
	return frame, nil
}

// encodeLink encodes what follows an EtherType and says which one it is.
func encodeLink(ls []layer) (etherType uint16, body []byte, err error) {
	if len(ls) == 0 {
		return 0, nil, nil
	}
	switch ls[0].kind {
	case "vlan":
		id, err := number("vlan", ls[0].args[0], 16)
		if err != nil {
			return 0, nil, err
		}
		inner, body, err := encodeLink(ls[1:])
		if err != nil {
			return 0, nil, err
		}
		head := binary.BigEndian.AppendUint16(nil, uint16(id))
		head = binary.BigEndian.AppendUint16(head, inner)
		return typeVLAN, append(head, body...), nil
	case "arp":
		head, err := encodeARP(ls[0])
		if err != nil {
			return 0, nil, err
		}
		tail, err := encodePayload(ls[1:])
		return typeARP, append(head, tail...), err
	case "ip":
		src, _, err := ls[0].addrs()
		if err != nil {
			return 0, nil, err
		}
		body, err := encodeIP(ls)
		if src.Is4() {
			return typeIPv4, body, err
		}
		return typeIPv6, body, err
	}
	body, err = encodePayload(ls)
	return 0, body, err
}

func encodeARP(l layer) ([]byte, error) {
	op := uint64(1)
	switch l.args[0] {
	case "request":
	case "reply":
		op = 2
	default:
		return nil, fmt.Errorf("arp: %q is neither request nor reply", l.args[0])
	}
	op, err := l.num("op", 16, op)
	if err != nil {
		return nil, err
	}
	if l.args[3] != ">" {
		return nil, fmt.Errorf("arp: want MAC IP > MAC IP")
	}
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, uint16(op))
	for _, i := range []int{1, 4} {
		mac, err := ParseMAC(l.args[i])
		if err != nil {
			return nil, err
		}
		ip, err := netip.ParseAddr(l.args[i+1])
		if err != nil || !ip.Is4() {
			return nil, fmt.Errorf("arp: %q is no IPv4 address", l.args[i+1])
		}
		b = append(append(b, mac[:]...), ip.AsSlice()...)
	}
	return b, nil
}

// encodePayload encodes hex and data.
func encodePayload(ls []layer) ([]byte, error) {
	var b []byte
	for _, l := range ls {
		switch l.kind {
		case "hex":
			h, err := hex.DecodeString(l.args[0])
			if err != nil {
				return nil, fmt.Errorf("hex: %q is not hexadecimal", l.args[0])
			}
			b = append(b, h...)
		case "data":
			n, err := number("data", l.args[0], 16)
			if err != nil {
				return nil, err
			}
			b = append(b, strings.Repeat("x", int(n))...)
		default:
			return nil, fmt.Errorf("%s cannot follow here", l.kind)
		}
	}
	return b, nil
}

func encodeIP(ls []layer) ([]byte, error) {
	src, dst, err := ls[0].addrs()
	if err != nil {
		return nil, err
	}
	if src.Is4() {
		return encodeIPv4(ls, src, dst)
	}
	return encodeIPv6(ls, src, dst)
}

func encodeIPv4(ls []layer, src, dst netip.Addr) ([]byte, error) {
	l := ls[0]
	proto, body, err := encodeL4(ls[1:], src, dst)
	if err != nil {
		return nil, err
	}
	opt, err := l.hex("opt")
	if err != nil {
		return nil, err
	}
	if len(opt)%4 != 0 || len(opt) > 40 {
		return nil, fmt.Errorf("ip opt: %d bytes are not a number of words up to 40 bytes", len(opt))
	}
	n, err := l.nums(map[string]attr{
		"ttl": {8, 64}, "tos": {8, 0}, "id": {16, 0}, "frag": {16, 0}, "ihl": {4, uint64(5 + len(opt)/4)},
		"version": {4, 4}, "len": {16, uint64(20 + len(opt) + len(body))}, "proto": {8, uint64(proto)}, "csum": {16, 0},
	})
	if err != nil {
		return nil, err
	}
	if n["frag"]%8 != 0 || l.has("class") || l.has("label") {
		return nil, fmt.Errorf("ip: frag must be a multiple of 8; class and label are IPv6's")
	}
	frag := uint16(n["frag"] / 8)
	if l.has("df") {
		frag |= 0x4000
	}
	if l.has("more") {
		frag |= 0x2000
	}
	b := []byte{byte(n["version"]<<4 | n["ihl"]), byte(n["tos"])}
	b = binary.BigEndian.AppendUint16(b, uint16(n["len"]))
	b = binary.BigEndian.AppendUint16(b, uint16(n["id"]))
	b = binary.BigEndian.AppendUint16(b, frag)
	b = append(b, byte(n["ttl"]), byte(n["proto"]), 0, 0)
	b = append(append(append(b, src.AsSlice()...), dst.AsSlice()...), opt...)
	sum := checksum(b)
	if l.has("csum") {
		sum = uint16(n["csum"])
	}
	binary.BigEndian.PutUint16(b[10:], sum)
	return append(b, body...), nil
}

func encodeIPv6(ls []layer, src, dst netip.Addr) ([]byte, error) {
	l := ls[0]
	for _, a := range []string{"tos", "id", "frag", "opt", "ihl", "csum", "df", "more"} {
		if l.has(a) {
			return nil, fmt.Errorf("ip: %s is IPv4's", a)
		}
	}
	ext := 1
	for ext < len(ls) && isExt(ls[ext].kind) {
		ext++
	}
	proto, body, err := encodeL4(ls[ext:], src, dst)
	if err != nil {
		return nil, err
	}
	last, err := l.num("proto", 8, uint64(proto))
	if err != nil {
		return nil, err
	}
	next := byte(last)
	for i := ext - 1; i >= 1; i-- {
		h, err := encodeExt(ls[i], next)
		if err != nil {
			return nil, err
		}
		body = append(h, body...)
		next = extProto(ls[i].kind)
	}
	n, err := l.nums(map[string]attr{
		"ttl": {8, 64}, "class": {8, 0}, "label": {20, 0}, "version": {4, 6}, "len": {16, uint64(len(body) & 0xffff)},
	})
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(n["version"]<<28|n["class"]<<20|n["label"]))
	b = binary.BigEndian.AppendUint16(b, uint16(n["len"]))
	b = append(b, next, byte(n["ttl"]))
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	return append(b, body...), nil
}

// attr is a numeric attribute: its bits and its value when it is not written.
type attr struct {
	bits int
	or   uint64
}

func (l layer) nums(want map[string]attr) (map[string]uint64, error) {
	got := map[string]uint64{}
	for name, a := range want {
		n, err := l.num(name, a.bits, a.or)
		if err != nil {
			return nil, err
		}
		got[name] = n
	}
	return got, nil
}

func isExt(kind string) bool {
	switch kind {
	case "hbh", "dstopts", "route", "fragment", "ah":
		return true
	}
	return false
}

func extProto(kind string) byte {
	switch kind {
	case "hbh":
		return protoHopByHop
	case "route":
		return protoRouting
	case "fragment":
		return protoFragment
	case "ah":
		return protoAH
	}
	return protoDstOpts
}

func encodeExt(l layer, next byte) ([]byte, error) {
	opt, err := l.hex("opt")
	if err != nil {
		return nil, err
	}
	switch l.kind {
	case "fragment":
		off, err := number("fragment", l.args[0], 16)
		if err != nil {
			return nil, err
		}
		id, err := l.num("id", 32, 0)
		if err != nil {
			return nil, err
		}
		if off%8 != 0 {
			return nil, fmt.Errorf("fragment: %d is no multiple of 8", off)
		}
		if l.has("more") {
			off |= 1
		}
		b := binary.BigEndian.AppendUint16([]byte{next, 0}, uint16(off))
		return binary.BigEndian.AppendUint32(b, uint32(id)), nil
	case "route":
		kind, err := number("route", l.args[0], 8)
		if err != nil {
			return nil, err
		}
		left, err := number("route", l.args[1], 8)
		if err != nil {
			return nil, err
		}
		opt = append([]byte{byte(kind), byte(left)}, opt...)
		if !l.has("opt") {
			opt = append(opt, 0, 0, 0, 0)
		}
	case "ah":
		if !l.has("opt") {
			opt = make([]byte, 22) // reserved, SPI, sequence, 12 bytes of integrity
		}
		if (len(opt)+2)%4 != 0 || len(opt) < 6 || len(opt) > 1026 {
			return nil, fmt.Errorf("ah: %d bytes do not fill words", len(opt))
		}
		return append([]byte{next, byte((len(opt)+2)/4 - 2)}, opt...), nil
	default:
		if !l.has("opt") {
			opt = []byte{1, 4, 0, 0, 0, 0} // PadN
		}
	}
	if (len(opt)+2)%8 != 0 || len(opt) > 2046 {
		return nil, fmt.Errorf("%s: %d bytes do not fill double words", l.kind, len(opt))
	}
	return append([]byte{next, byte((len(opt)+2)/8 - 1)}, opt...), nil
}
