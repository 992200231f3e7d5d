package flow

import (
	"encoding/binary"
	"encoding/hex"
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	flowpb "porin/api/flow"
	"porin/bpf"
	"porin/internal/verdict"
)

// Protocol numbers of IANA.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132
)

// flow turns a record into the message that readers get.
func (t *teller) flow(rec *record, snap bool) *flowpb.Flow {
	t.fresh()
	ev := &rec.event
	at := t.o.wall(ev.Time)
	src, dst := ev.Src.Netip(), ev.Dst.Netip()
	f := &flowpb.Flow{
		Time:             timestamppb.New(at),
		Uuid:             t.o.eventUUID(rec.seq),
		Verdict:          verdictOf(ev),
		DropReason:       uint32(ev.Reason),
		DropReasonDesc:   flowpb.DropReason(ev.Reason),
		Ethernet:         ethernet(ev),
		IP:               t.ip(src, dst),
		L4:               layer4(ev),
		Source:           t.side(src, ev.SrcEP, ev.SrcIdentity, at),
		Destination:      t.side(dst, ev.DstEP, ev.DstIdentity, at),
		Type:             flowpb.FlowType_L3_L4,
		NodeName:         t.o.resolver.NodeName(),
		EventType:        &flowpb.CiliumEventType{Type: int32(ev.Type)},
		TrafficDirection: flowpb.TrafficDirection(ev.Direction),
		TraceReason:      flowpb.TraceReason(ev.Status),
		Interface:        t.device(ev),
		Summary:          t.summary(ev),
		PorinLength:      ev.Len,
	}
	f.SourceNames, f.DestinationNames = t.names(src, f.GetSource()), t.names(dst, f.GetDestination())
	switch ev.Type {
	case eventDrop:
		f.EventType.SubType = int32(ev.Reason)
	case eventTrace:
		f.EventType.SubType = int32(ev.Point)
		f.TraceObservationPoint = flowpb.TraceObservationPoint(ev.Point)
	}
	if ev.Status != 0 {
		f.IsReply = wrapperspb.Bool(flowpb.TraceReason(ev.Status) == flowpb.TraceReason_REPLY)
	}
	t.explain(f, ev)
	if snap {
		f.PorinSnap = append([]byte(nil), snapOf(ev)...)
	}
	return f
}

// wall returns the time of day of a monotonic time stamp.
func (o *Observer) wall(mono uint64) time.Time {
	wall, now := o.clock()
	return wall.Add(-time.Duration(int64(now) - int64(mono)))
}

// eventUUID names an event; it is the same for every reader. Version 8 (RFC 9562): the bits mean what we say.
func (o *Observer) eventUUID(seq uint64) string {
	var u [16]byte
	copy(u[:8], o.uuid[:])
	binary.BigEndian.PutUint64(u[8:], seq)
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	var text [36]byte
	at := 0
	for i, b := range u {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			text[at] = '-'
			at++
		}
		at += hex.Encode(text[at:], []byte{b})
	}
	return string(text[:])
}

func verdictOf(ev *bpf.Event) flowpb.Verdict {
	if ev.Type == eventDrop {
		return flowpb.Verdict_DROPPED
	}
	if ev.Type == eventPolicyVerdict {
		switch verdict.Action(ev.Action) {
		case verdict.Deny:
			return flowpb.Verdict_DROPPED
		case verdict.Redirect:
			return flowpb.Verdict_REDIRECTED
		case verdict.Audit:
			return flowpb.Verdict_AUDIT
		}
	}
	return flowpb.Verdict_FORWARDED
}

// snapOf returns the packet's bytes that the event carries; a length that does not fit counts as none.
func snapOf(ev *bpf.Event) []byte {
	return ev.Snap[:min(int(ev.SnapLen), len(ev.Snap))]
}

func ethernet(ev *bpf.Event) *flowpb.Ethernet {
	b := snapOf(ev)
	if len(b) < 14 {
		return nil
	}
	return &flowpb.Ethernet{Source: net.HardwareAddr(b[6:12]).String(), Destination: net.HardwareAddr(b[0:6]).String()}
}

func layer4(ev *bpf.Event) *flowpb.Layer4 {
	s, d := uint32(ev.Sport.Host()), uint32(ev.Dport.Host())
	switch ev.Proto {
	case protoTCP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_TCP{TCP: &flowpb.TCP{SourcePort: s, DestinationPort: d, Flags: tcpFlags(ev.TCPFlags)}}}
	case protoUDP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_UDP{UDP: &flowpb.UDP{SourcePort: s, DestinationPort: d}}}
	case protoSCTP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_SCTP{SCTP: &flowpb.SCTP{SourcePort: s, DestinationPort: d}}}
	case protoICMP, protoICMPv6:
		if !icmpKnown(ev) {
			return nil
		}
		if ev.Proto == protoICMPv6 {
			return &flowpb.Layer4{Protocol: &flowpb.Layer4_ICMPv6{ICMPv6: &flowpb.ICMPv6{Type: s, Code: d}}}
		}
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_ICMPv4{ICMPv4: &flowpb.ICMPv4{Type: s, Code: d}}}
	}
	return nil
}

// icmpKnown tells whether the programs read the header: type and code have 8 bits each.
func icmpKnown(ev *bpf.Event) bool { return ev.Sport.Host() != 0xffff }

// tcpFlags reads byte 13 of the TCP header (RFC 9293, section 3.1).
func tcpFlags(b uint8) *flowpb.TCPFlags {
	return &flowpb.TCPFlags{
		FIN: b&0x01 != 0, SYN: b&0x02 != 0, RST: b&0x04 != 0, PSH: b&0x08 != 0,
		ACK: b&0x10 != 0, URG: b&0x20 != 0, ECE: b&0x40 != 0, CWR: b&0x80 != 0,
	}
}

// flagNames lists the set flags in the order of Hubble's summaries.
func flagNames(f *flowpb.TCPFlags) string {
	var out []string
	for _, x := range []struct {
		on   bool
		name string
	}{
		{f.GetSYN(), "SYN"},
		{f.GetACK(), "ACK"},
		{f.GetRST(), "RST"},
		{f.GetFIN(), "FIN"},
		{f.GetPSH(), "PSH"},
		{f.GetURG(), "URG"},
		{f.GetNS(), "NS"},
		{f.GetECE(), "ECE"},
		{f.GetCWR(), "CWR"},
	} {
		if x.on {
			out = append(out, x.name)
		}
	}
	return strings.Join(out, ", ")
}

func summary(ev *bpf.Event) string {
	switch ev.Proto {
	case protoTCP:
		if names := flagNames(tcpFlags(ev.TCPFlags)); names != "" {
			return "TCP Flags: " + names
		}
		return "TCP"
	case protoUDP:
		return "UDP"
	case protoSCTP:
		return "SCTP"
	case protoICMP:
		if !icmpKnown(ev) {
			return "ICMPv4"
		}
		return "ICMPv4 " + icmpName(false, uint32(ev.Sport.Host()), uint32(ev.Dport.Host()))
	case protoICMPv6:
		if !icmpKnown(ev) {
			return "ICMPv6"
		}
		return "ICMPv6 " + icmpName(true, uint32(ev.Sport.Host()), uint32(ev.Dport.Host()))
	case 0:
		return ""
	}
	return "IP protocol " + strconv.Itoa(int(ev.Proto))
}

// icmpName names the messages that people meet (IANA's registries); the others by number.
func icmpName(six bool, typ, code uint32) string {
	four := map[uint32]string{
		0: "EchoReply", 3: "DestinationUnreachable", 4: "SourceQuench", 5: "Redirect", 8: "EchoRequest",
		11: "TimeExceeded", 12: "ParameterProblem", 13: "TimestampRequest", 14: "TimestampReply",
	}
	names := four
	if six {
		names = map[uint32]string{
			1: "DestinationUnreachable", 2: "PacketTooBig", 3: "TimeExceeded", 4: "ParameterProblem",
			128: "EchoRequest", 129: "EchoReply", 130: "MulticastListenerQuery", 131: "MulticastListenerReport",
			132: "MulticastListenerDone", 143: "MulticastListenerReport", 133: "RouterSolicitation", 134: "RouterAdvertisement",
			135: "NeighborSolicitation", 136: "NeighborAdvertisement", 137: "Redirect",
		}
	}
	name, ok := names[typ]
	if !ok {
		name = "type " + strconv.Itoa(int(typ))
	}
	if code != 0 {
		name += " code " + strconv.Itoa(int(code))
	}
	return name
}
