package packet

import (
	"encoding/binary"
	"fmt"
)

// Ports that tunnels have unless somebody wants others: Print looks for frames behind them.
const (
	portGeneve = 6081
	portVXLAN  = 8472
)

// tunnelLink is the inner Ethernet header that porin writes in the stories' node.
func tunnelLink() Link {
	gateway := MAC{2, 0, 0, 0, 0, 0xfe}
	return Link{gateway, gateway}
}

func isTunnel(kind string) bool { return kind == "geneve" || kind == "vxlan" }

// tunnelWord is the first word of the header as it usually is: Ethernet inside, or identifier valid.
func tunnelWord(kind string) uint64 {
	if kind == "geneve" {
		return 0x6558
	}
	return 0x08000000
}

// encodeTunnel encodes the frame behind a tunnel's header, or a plain payload.
func encodeTunnel(ls []layer, tunnel bool) ([]byte, error) {
	if !tunnel {
		return encodePayload(ls)
	}
	vni, err := number(ls[0].kind, ls[0].args[0], 24)
	if err != nil {
		return nil, err
	}
	word, err := ls[0].num("word", 32, tunnelWord(ls[0].kind))
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(word))
	b = binary.BigEndian.AppendUint32(b, uint32(vni)<<8)
	if len(ls) == 1 {
		return b, nil
	}
	inner, err := encodeFrame(ls[1:], tunnelLink())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ls[0].kind, err)
	}
	return append(b, inner...), nil
}

// printTunnel writes the frame in a tunnel, when the port says that there is one.
func printTunnel(port uint16, b []byte) (string, bool) {
	kind := map[uint16]string{portGeneve: "geneve", portVXLAN: "vxlan"}[port]
	if kind == "" || len(b) < 8+14+20 || b[7] != 0 {
		return "", false
	}
	text := fmt.Sprintf(" %s %d", kind, binary.BigEndian.Uint32(b[4:])>>8)
	if word := binary.BigEndian.Uint32(b); uint64(word) != tunnelWord(kind) {
		text += fmt.Sprintf(" word %#x", word)
	}
	inner := b[8:]
	if link := tunnelLink(); MAC(inner[:6]) != link.Dst || MAC(inner[6:12]) != link.Src {
		text += " " + printEth(inner, 0)
	}
	ip, ok := printIP(inner[14:])
	return text + ip, ok
}
