// Package packet defines a small language in which tests write packets: one line of text is one Ethernet frame.
// It reads text and writes bytes, with lengths and checksums filled in, and turns bytes back into text.
// It never touches the network.
//
// A frame is a row of layers, each a word with its arguments and attributes, outermost first:
//
//	eth 02:00:00:00:00:01 > 02:00:00:00:00:02 [type 0x88cc]
//	vlan 100
//	arp request|reply MAC IP > MAC IP
//	ip 10.0.0.1 > 10.0.0.2   ttl N tos N id N df more frag BYTES opt HEX ihl N version N len N proto N csum N
//	ip fd00::1 > fd00::2     ttl N class N label N version N len N proto N
//	hbh [opt HEX]  dstopts [opt HEX]  route TYPE LEFT [opt HEX]  fragment BYTES [more] [id N]  ah [opt HEX]
//	tcp 40000 > 80 S         seq N ack N win N doff N opt HEX csum N     flags of FSRPAUEC, - for none
//	udp 40000 > 53           len N csum N
//	sctp 40000 > 80          tag N csum N
//	geneve 1001 ...          word N: a frame in a tunnel, behind udp; without eth between two gateways' addresses
//	vxlan 1001 ...           word N
//	icmp 3/4                 rest N csum N      icmp echo|reply id N seq N
//	ns|na TARGET             mac MAC flags N
//	[ ip ... ]               the packet that an ICMP error is about
//	hex 0102  data 100       payload
//	cut N  pad N             the frame ends after N bytes; N zero bytes follow it
//	raw 0102                 a frame that is none of this
//
// Without eth the caller's default addresses are used. What is not written is filled in so that the packet is right.
package packet

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// MAC is a hardware address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// ParseMAC reads the usual form with colons.
func ParseMAC(s string) (m MAC, err error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return m, fmt.Errorf("%q is no MAC address", s)
	}
	copy(m[:], hw)
	return m, nil
}

// Link is the Ethernet header of a frame whose text has none.
type Link struct{ Src, Dst MAC }

// layer is one word of the text with what belongs to it.
type layer struct {
	kind  string
	args  []string
	attrs map[string]string
	inner []layer // in brackets
}

// shape says what a layer takes.
type shape struct {
	args  int
	attrs string // those with a value, then behind | those without
}

func shapeOf(kind string) (shape, bool) {
	switch kind {
	case "eth":
		return shape{3, "type"}, true
	case "vlan":
		return shape{1, ""}, true
	case "arp":
		return shape{6, "op"}, true
	case "ip":
		return shape{3, "ttl tos id frag opt ihl version len proto csum class label|df more"}, true
	case "hbh", "dstopts", "ah":
		return shape{0, "opt"}, true
	case "route":
		return shape{2, "opt"}, true
	case "fragment":
		return shape{1, "id|more"}, true
	case "tcp":
		return shape{4, "seq ack win doff opt csum"}, true
	case "udp":
		return shape{3, "len csum"}, true
	case "sctp":
		return shape{3, "tag csum"}, true
	case "geneve", "vxlan":
		return shape{1, "word"}, true
	case "icmp":
		return shape{1, "rest id seq csum"}, true
	case "ns", "na":
		return shape{1, "mac flags"}, true
	case "hex", "data", "cut", "pad", "raw":
		return shape{1, ""}, true
	}
	return shape{}, false
}

// takes reports whether the layer has the attribute and whether the attribute has a value.
func (s shape) takes(word string) (ok, value bool) {
	with, without, _ := strings.Cut(s.attrs, "|")
	for w := range strings.FieldsSeq(with) {
		if w == word {
			return true, true
		}
	}
	for w := range strings.FieldsSeq(without) {
		if w == word {
			return true, false
		}
	}
	return false, false
}

// scan turns words into layers, up to the closing bracket when inside one.
func scan(words []string, nested bool) (ls []layer, rest []string, err error) {
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		if word == "]" && nested {
			return ls, words, nil
		}
		if word == "[" {
			if len(ls) == 0 || ls[len(ls)-1].kind != "icmp" || nested {
				return nil, nil, fmt.Errorf("a bracket follows icmp only, once")
			}
			inner, rest, err := scan(words, true)
			if err != nil {
				return nil, nil, err
			}
			ls[len(ls)-1].inner = inner
			words = rest
			continue
		}
		sh, ok := shapeOf(word)
		if !ok {
			return nil, nil, fmt.Errorf("%q is no layer of a packet", word)
		}
		l := layer{kind: word, attrs: map[string]string{}}
		if len(words) < sh.args {
			return nil, nil, fmt.Errorf("%s needs %d words behind it, has %d", word, sh.args, len(words))
		}
		l.args, words = words[:sh.args], words[sh.args:]
		for len(words) > 0 {
			ok, value := sh.takes(words[0])
			if !ok {
				break
			}
			name := words[0]
			words = words[1:]
			if _, twice := l.attrs[name]; twice {
				return nil, nil, fmt.Errorf("%s has %s twice", word, name)
			}
			l.attrs[name] = ""
			if value {
				if len(words) == 0 {
					return nil, nil, fmt.Errorf("%s of %s needs a value", name, word)
				}
				l.attrs[name], words = words[0], words[1:]
			}
		}
		ls = append(ls, l)
	}
	if nested {
		return nil, nil, fmt.Errorf("bracket is not closed")
	}
	return ls, nil, nil
}

// Parse turns text into a frame.
func Parse(text string, link Link) ([]byte, error) {
	ls, _, err := scan(strings.Fields(text), false)
	if err != nil {
		return nil, fmt.Errorf("packet %q: %w", text, err)
	}
	frame, err := encodeFrame(ls, link)
	if err != nil {
		return nil, fmt.Errorf("packet %q: %w", text, err)
	}
	return frame, nil
}

// num is attribute name as a number of the given bits; or when absent.
func (l layer) num(name string, bits int, or uint64) (uint64, error) {
	s, ok := l.attrs[name]
	if !ok {
		return or, nil
	}
	return number(l.kind+" "+name, s, bits)
}

func number(what, s string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(s, 0, bits)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is no number of %d bits", what, s, bits)
	}
	return n, nil
}

func (l layer) hex(name string) ([]byte, error) {
	b, err := hex.DecodeString(l.attrs[name])
	if err != nil {
		return nil, fmt.Errorf("%s %s: %q is not hexadecimal", l.kind, name, l.attrs[name])
	}
	return b, nil
}

func (l layer) has(name string) bool {
	_, ok := l.attrs[name]
	return ok
}

// ends are the words of "SRC > DST".
func (l layer) ends() (src, dst string, err error) {
	if l.args[1] != ">" {
		return "", "", fmt.Errorf("%s: want SRC > DST, have %q", l.kind, strings.Join(l.args, " "))
	}
	return l.args[0], l.args[2], nil
}

func (l layer) addrs() (src, dst netip.Addr, err error) {
	s, d, err := l.ends()
	if err != nil {
		return src, dst, err
	}
	if src, err = netip.ParseAddr(s); err != nil || src.Zone() != "" {
		return src, dst, fmt.Errorf("ip: %q is no address", s)
	}
	if dst, err = netip.ParseAddr(d); err != nil || dst.Zone() != "" {
		return src, dst, fmt.Errorf("ip: %q is no address", d)
	}
	if src.Is4() != dst.Is4() {
		return src, dst, fmt.Errorf("ip: %s and %s are of different families", s, d)
	}
	return src, dst, nil
}

func (l layer) ports() (src, dst uint16, err error) {
	s, d, err := l.ends()
	if err != nil {
		return 0, 0, err
	}
	a, err := number(l.kind+" port", s, 16)
	if err != nil {
		return 0, 0, err
	}
	b, err := number(l.kind+" port", d, 16)
	return uint16(a), uint16(b), err
}
