package packettest

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"porin/bpf"
	"porin/bpf/packet"
	"porin/internal/verdict"
)

// What a story wants to have happened: want, flow, counter and skb.

func verdictName(v uint8) string {
	names := map[uint8]string{
		Drop: "drop", Stack: "stack", Redirect: "redirect", Peer: "peer", Neigh: "neigh", Reply: "reply", Host: "host",
		Tunnel: "tunnel", TooBig: "toobig",
	}
	if n, ok := names[v]; ok {
		return n
	}
	return fmt.Sprintf("verdict %d", v)
}

func (s *story) outcome() string {
	text := verdictName(s.last.Verdict)
	if s.last.Verdict == Drop {
		return text + " " + s.last.Reason.Name()
	}
	if s.last.Ifindex != 0 {
		text += " " + s.k.DeviceName(s.last.Ifindex)
	}
	return text + " '" + packet.Print(s.last.Frame) + "'"
}

func (s *story) want(args []string) error {
	what, rest := args[0], args[1:]
	target := ""
	link := s.link
	ok := verdictName(s.last.Verdict) == what
	if what == "deliver" { // before Linux 6.3 a packet of another family than its tunnel's goes by the device
		what = "peer"
		if s.last.Verdict == Redirect {
			what = "redirect"
		}
		ok = verdictName(s.last.Verdict) == what
	}
	switch what {
	case "drop":
		if len(rest) != 1 {
			return fmt.Errorf("want drop REASON")
		}
		target, rest = rest[0], nil
		ok = ok && s.last.Reason.Name() == target
	case "peer", "redirect", "neigh", "tunnel":
		if len(rest) == 0 {
			return fmt.Errorf("want %s DEVICE", what)
		}
		target, rest = rest[0], rest[1:]
		ok = ok && s.k.DeviceName(s.last.Ifindex) == target
		if pod, is := s.k.node.pods[target]; is {
			link = packet.Link{Src: gatewayMAC(), Dst: pod.MAC}
		} else if what == "redirect" || what == "tunnel" {
			link = packet.Link{Src: uplinkMAC(), Dst: routerMAC()}
		}
	case "reply", "toobig":
		link = packet.Link{Src: s.link.Dst, Dst: s.link.Src}
	}
	if what == "tunnel" && s.settings.TunnelIfindex == 0 && s.port < 49152 {
		return fmt.Errorf("source port of the tunnel is %d, want one from 49152 on", s.port)
	}
	if !ok {
		return fmt.Errorf("sent %s\n got %s", s.sent, s.outcome())
	}
	if len(rest) == 0 {
		return s.code(what)
	}
	frame, err := packet.Parse(rest[0], link)
	if err != nil {
		return err
	}
	if !bytes.Equal(frame, s.last.Frame) {
		return fmt.Errorf("sent %s\n got %s\nwant %s\n got %x\nwant %x", s.sent, packet.Print(s.last.Frame),
			packet.Print(frame), s.last.Frame, frame)
	}
	return s.code(what)
}

// code checks what the kernel is told: TC_ACT_SHOT, TC_ACT_UNSPEC or TC_ACT_REDIRECT.
func (s *story) code(what string) error {
	want := uint32(7)
	switch what {
	case "drop":
		want = 2
	case "stack":
		want = 1<<32 - 1
	}
	if s.last.Code != want {
		return fmt.Errorf("%s returned %d to the kernel, want %d", what, int32(s.last.Code), int32(want))
	}
	return nil
}

func (s *story) describe(e bpf.Event) string {
	kind := map[uint8]string{1: "drop", 4: "trace", 5: "verdict"}[e.Type]
	var text strings.Builder
	text.WriteString(kind)
	for _, f := range []string{"action", "reason", "point", "status", "direction", "src", "dst", "sport", "dport", "src-id", "dst-id", "src-ep", "dst-ep", "out", "in", "dev", "to", "flags", "proto", "len", "snap"} {
		text.WriteString(" " + f + "=" + s.field(e, f))
	}
	return text.String()
}

func (s *story) field(e bpf.Event, name string) string {
	n := func(v uint64) string { return strconv.FormatUint(v, 10) }
	switch name {
	case "action":
		return verdict.Action(e.Action).String()
	case "reason":
		return verdict.Reason(e.Reason).Name()
	case "point":
		return verdict.Point(e.Point).String()
	case "status":
		return verdict.Status(e.Status).String()
	case "direction":
		return verdict.Direction(e.Direction).String()
	case "src":
		return e.Src.Netip().String()
	case "dst":
		return e.Dst.Netip().String()
	case "sport":
		return n(uint64(e.Sport.Host()))
	case "dport":
		return n(uint64(e.Dport.Host()))
	case "src-id":
		return n(uint64(e.SrcIdentity))
	case "dst-id":
		return n(uint64(e.DstIdentity))
	case "src-ep":
		return n(uint64(e.SrcEP))
	case "dst-ep":
		return n(uint64(e.DstEP))
	case "out":
		return n(uint64(e.CookieOut))
	case "in":
		return n(uint64(e.CookieIn))
	case "dev":
		return s.k.DeviceName(e.Ifindex)
	case "to":
		return s.k.DeviceName(e.OutIfindex)
	case "flags":
		return n(uint64(e.TCPFlags))
	case "proto":
		return n(uint64(e.Proto))
	case "len":
		return n(uint64(e.Len))
	case "snap":
		return n(uint64(e.SnapLen))
	}
	return "?"
}

func (s *story) flow(kind string, o options) error {
	if len(s.last.Events) == 0 {
		return fmt.Errorf("no event")
	}
	e := s.last.Events[0]
	s.last.Events = s.last.Events[1:]
	types := map[string]uint8{"drop": 1, "trace": 4, "verdict": 5}
	ok := e.Type == types[kind]
	for name, want := range o {
		ok = ok && s.field(e, name) == want
	}
	if !ok {
		return fmt.Errorf("got %s", s.describe(e))
	}
	return nil
}

func (s *story) counter(t testing.TB, args []string) error {
	for _, r := range verdict.Reasons() {
		if r.Name() != args[0] {
			continue
		}
		for _, d := range []verdict.Direction{verdict.Ingress, verdict.Egress} {
			if d.String() != args[1] {
				continue
			}
			if n, _ := s.k.Counter(t, r, d); strconv.FormatUint(n, 10) != args[2] {
				return fmt.Errorf("got %d packets", n)
			}
			return nil
		}
	}
	return fmt.Errorf("there is no such reason and direction")
}

func (s *story) skb(o options) error {
	mark, err := o.num("mark", s.last.Mark)
	if err != nil {
		return err
	}
	priority, err := o.num("priority", s.last.Priority)
	if err != nil {
		return err
	}
	if mark != s.last.Mark || priority != s.last.Priority {
		return fmt.Errorf("got mark=%d priority=%d", s.last.Mark, s.last.Priority)
	}
	return nil
}
