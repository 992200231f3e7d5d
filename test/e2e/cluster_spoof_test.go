package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	flowpb "porin/api/flow"
)

// forged is a tunnel's payload: a UDP datagram to port 80 in Ethernet under the number of an identity.
func forged(routing string, identity uint32, src, dst netip.Addr) []byte {
	var b []byte
	switch routing {
	case "vxlan":
		b = append(b, 8, 0, 0, 0)
	default:
		b = append(b, 0, 0, 0x65, 0x58)
	}
	b = append(b, byte(identity>>16), byte(identity>>8), byte(identity), 0)
	udp := []byte{0x9c, 0x40, 0, 80, 0, 9, 0, 0, 'x'} // no checksum
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(udp)))
	copy(ip[12:], src.AsSlice())
	copy(ip[16:], dst.AsSlice())
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	b = append(b, 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0)
	return append(append(b, ip...), udp...)
}

// send makes a place send a datagram.
func (l *lab) send(from, to string, port int, payload []byte) {
	l.t.Helper()
	var text strings.Builder
	for _, c := range payload {
		fmt.Fprintf(&text, `\x%02x`, c)
	}
	l.run(from, "bash", "-c", fmt.Sprintf("printf '%s' > /dev/udp/%s/%d", text.String(), to, port))
}

// Forged tunnel packets of a host that is no node, and of a pod, end where they arrive or begin, with reasons of their own;
// the workload that they name hears nothing.
func TestRootForgedTunnelPackets(t *testing.T) {
	for _, r := range []string{"geneve", "vxlan"} {
		t.Run(r, func(t *testing.T) {
			l := up(t, fmt.Sprintf(`
nodes: 2
routing: %s
families: [ipv4]
workloads:
  - {name: server, node: node1, labels: {app: server}, serves: [{port: 80, protocol: UDP}]}
  - {name: friend, node: node2, labels: {app: friend}}
  - {name: foe, node: node1, labels: {app: foe}}
outside: [{name: internet, addresses: [203.0.113.10]}]
objects:
  - inline: |
%s
`, r, indent(allowApps("friend"), "      ")))
			l.logsOnFailure()
			l.sees("node1", "node2", "live")
			port := map[string]int{"geneve": 6081, "vxlan": 8472}[r]
			server, friend := netip.MustParseAddr(l.at("server", 4)), netip.MustParseAddr(l.at("friend", 4))
			packet := forged(r, 256, friend, server)
			for _, c := range []struct {
				from, to, what string
				want           flowpb.DropReason
			}{
				{"internet", l.at("node1", 4), "a host that is no node", flowpb.DropReason_UNKNOWN_SENDER},
				{"foe", l.at("node1", 4), "a pod, to its own node", flowpb.DropReason_ENCAPSULATION_TRAFFIC_IS_PROHIBITED},
				{"foe", l.at("node2", 4), "a pod, to another node", flowpb.DropReason_ENCAPSULATION_TRAFFIC_IS_PROHIBITED},
			} {
				l.send(c.from, c.to, port, packet)
				var seen []string
				eventually(t, time.Minute, c.what+": its packet is dropped by node1 for "+c.want.String(), func() bool {
					seen = nil
					for _, f := range l.past("--type", "drop", "--last", "4095") {
						seen = append(seen, f.GetIP().GetDestination()+" "+f.GetDropReasonDesc().String())
						if f.GetDropReasonDesc() == c.want && f.GetIP().GetDestination() == c.to {
							return true
						}
					}
					return false
				}, func() string { return strings.Join(seen, "\n") })
			}
			// nothing of it came out of the tunnel
			for _, f := range l.past("--last", "4095") {
				if f.GetIP().GetSource() == friend.String() && f.GetIP().GetDestination() == server.String() && f.GetVerdict() == flowpb.Verdict_FORWARDED {
					t.Errorf("a forged packet was passed on: %v", f)
				}
			}
		})
	}
}
