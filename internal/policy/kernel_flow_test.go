package policy_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"porin/bpf"
	"porin/bpf/packet"
	"porin/internal/identity"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// side is one end of a flow: a pod or the node by its name, everybody else by address.
type side struct {
	name string
	addr netip.Addr
}

func (s side) String() string {
	if s.name != "" {
		return s.name
	}
	return s.addr.String()
}

type flow struct {
	from, to side
	six      bool
	proto    uint8
	port     uint16
	sport    uint16
	stack    bool // packets from outside come through the node's stack
}

func (f flow) String() string {
	return fmt.Sprintf("%s > %s, IPv6 %t, proto %d port %d from port %d", f.from, f.to, f.six, f.proto, f.port, f.sport)
}

func (f flow) icmp() bool { return f.proto == policy.ProtoICMP || f.proto == policy.ProtoICMPv6 }

func (f flow) echo() bool {
	return f.proto == policy.ProtoICMP && f.port == 8 || f.proto == policy.ProtoICMPv6 && f.port == 128
}

// probe makes a random flow of which at least one end is a pod.
func (w *world) probe() flow {
	o := w.oracle
	f := flow{six: w.node.dual && o.IntN(2) == 0, stack: o.IntN(5) == 0}
	names := slices.Sorted(maps.Keys(w.pods))
	pod := side{name: names[o.IntN(len(names))]}
	other := pod
	for other == pod {
		switch o.IntN(6) {
		case 0, 1:
			other = side{name: names[o.IntN(len(names))]}
			if len(names) == 1 {
				other = side{name: "host"}
			}
		case 2:
			other = side{name: "host"}
		case 3:
			other = side{addr: remoteAddr(remoteAt(o.IntN(remotes)), f.six)}
		default:
			other = side{addr: w.outside(f.six)}
		}
	}
	f.from, f.to = pod, other
	if o.IntN(2) == 0 {
		f.from, f.to = other, pod
	}
	for {
		f.proto, f.port = o.Ports()
		switch {
		case f.proto == policy.ProtoICMP || f.proto == policy.ProtoICMPv6:
			f.proto, f.port = policy.ProtoICMP, []uint16{8, 8, 128, 255}[o.IntN(4)]
			if f.six {
				f.proto, f.port = policy.ProtoICMPv6, []uint16{128, 128, 255, 140}[o.IntN(4)]
			}
		case f.proto == 47:
			continue
		}
		return f
	}
}

// outside is an address near the edge of a block that policies speak of, or anywhere.
func (w *world) outside(six bool) netip.Addr {
	o := w.oracle
	for {
		blocks := o.Blocks()
		b := blocks[o.IntN(len(blocks))]
		raw := b.Addr().AsSlice()
		for bit := b.Bits(); bit < len(raw)*8; bit++ {
			raw[bit/8] |= byte(o.IntN(2)) << (7 - bit%8)
		}
		a, _ := netip.AddrFromSlice(raw)
		switch o.IntN(6) {
		case 0:
			a = b.Addr()
		case 1:
			a = b.Addr().Prev()
		case 2:
			a = a.Next()
		}
		if !a.IsValid() || a.Is6() != six {
			continue
		}
		raw = a.AsSlice()
		switch {
		case !six && (raw[0] == 0 || raw[0] == 127 || raw[0] >= 224):
		case six && (raw[0] == 0xff || raw[0] == 0xfe || raw[0] == 0):
		case slices.ContainsFunc([]string{"10.7.0.0/24", "192.0.2.0/24", "fd07::/112", "2001:db8:1::/64"}, func(p string) bool {
			return netip.MustParsePrefix(p).Contains(a)
		}):
		default:
			return a
		}
	}
}

func (w *world) addr(s side, six bool) netip.Addr {
	p := w.pods[s.name]
	switch {
	case p != nil && six:
		return p.row.IPv6
	case p != nil:
		return p.row.IPv4
	case s.name == "host" && six:
		return netip.MustParseAddr("2001:db8:1::1")
	case s.name == "host":
		return netip.MustParseAddr("10.7.0.1")
	}
	return s.addr
}

// who is behind a side, for the oracle and for the engine.
func (w *world) who(s side) (policy.Peer, identity.Identity) {
	peer, id := w.whom(s)
	for _, p := range w.pods {
		if p.row.Identity == id.ID {
			peer.All = append(peer.All, p.ports...)
		}
	}
	for _, r := range w.remotes {
		if r.id == id.ID {
			peer.All = append(peer.All, r.ports...)
		}
	}
	return peer, id
}

func (w *world) whom(s side) (policy.Peer, identity.Identity) {
	if p := w.pods[s.name]; p != nil {
		id := p.peer.Identity()
		id.ID = p.row.Identity
		peer := p.peer
		peer.Own = p.ports
		return peer, id
	}
	if s.name == "host" {
		host := policy.Reserved(identity.Host)
		return host, host.Identity()
	}
	for name, r := range w.remotes {
		if remoteAddr(name, s.addr.Is6()) == s.addr {
			id := r.peer.Identity()
			id.ID = r.id
			return r.peer, id
		}
	}
	out := w.oracle.Outside(s.addr)
	return out, out.Identity()
}

// expect asks the oracle and the engine, which must agree, and returns the outcome with the cookies.
func (w *world) expect(f flow) (want policy.Outcome, out, in policy.Cookie) {
	w.t.Helper()
	from, fromID := w.who(f.from)
	to, toID := w.who(f.to)
	fromPod, toPod := w.pods[f.from.name] != nil, w.pods[f.to.name] != nil
	want = w.oracle.Judge(policy.Sorted(w.docs), from, to, fromPod, toPod, f.proto, f.port)
	d := w.engine.DecideAt(fromID, toID, to.Own, f.proto, f.port)
	if fromPod {
		out = d.Egress.Cookie
	}
	if toPod && want.Action == verdict.Deny && want.Ingress == "" {
		toPod = false // the sender's rules said no: nobody asks the receiver
	}
	if toPod {
		in = d.Ingress.Cookie
	}
	if e, i := policy.Explained(w.engine, out), policy.Explained(w.engine, in); e != want.Egress || i != want.Ingress {
		w.fail(f, "the engine decides by %q, %q; the oracle by %q, %q", e, i, want.Egress, want.Ingress)
	}
	return want, out, in
}

func (w *world) fail(f flow, format string, args ...any) {
	w.t.Helper()
	var text strings.Builder
	for _, d := range policy.Sorted(w.docs) {
		text.WriteString(d.Text() + "\n")
	}
	from, fromID := w.who(f.from)
	to, toID := w.who(f.to)
	w.t.Fatalf("%s\n%s\nfrom %v (%d)\nto %v (%d)\nconfig %+v\n%s", f, fmt.Sprintf(format, args...), from, fromID.ID, to, toID.ID, w.oracle.Config(), text.String())
}

// send sends a packet of a flow: its first, a later one, or an answer.
func (w *world) send(f flow, first, reply bool) (forwarded bool, e bpf.Event) {
	w.t.Helper()
	from, to := f.from, f.to
	sport, dport := f.sport, f.port
	if reply {
		from, to, sport, dport = to, from, dport, sport
	}
	program, ifindex, link := "uplink_ingress", w.node.uplink.Attrs().Index, packet.Link{Src: routerMAC(), Dst: packet.MAC(w.node.uplink.Attrs().HardwareAddr)}
	switch p := w.pods[from.name]; {
	case p != nil:
		program, ifindex, link = "pod_egress", p.row.Ifindex, packet.Link{Src: packet.MAC(p.row.MAC), Dst: w.node.gateway}
	case from.name == "host" || f.stack:
		program, ifindex, link = "host_egress", w.node.host, packet.Link{Src: w.node.gateway, Dst: w.node.gateway}
	}
	src, dst := w.addr(from, f.six), w.addr(to, f.six)
	text := fmt.Sprintf("ip %s > %s ", src, dst)
	switch f.proto {
	case policy.ProtoTCP:
		flags := "A"
		if first {
			flags = "S"
		}
		text += fmt.Sprintf("tcp %d > %d %s", sport, dport, flags)
	case policy.ProtoUDP:
		text += fmt.Sprintf("udp %d > %d", sport, dport)
	case policy.ProtoSCTP:
		text += fmt.Sprintf("sctp %d > %d", sport, dport)
	default:
		kind := f.port
		if reply {
			kind = map[uint16]uint16{8: 0, 128: 129}[f.port]
		}
		text += fmt.Sprintf("icmp %d/0 rest 0x%04x0001", kind, f.sport)
	}
	frame, err := packet.Parse(text, link)
	if err != nil {
		w.t.Fatal(err)
	}
	forwarded, events, err := w.node.send(program, ifindex, frame)
	if err != nil {
		w.fail(f, "%s: %v", text, err)
	}
	w.stats.by[program]++
	for _, ev := range events {
		if ev.Src.Netip() == src && ev.Dst.Netip() == dst && ev.Proto == f.proto {
			return forwarded, ev
		}
	}
	return forwarded, bpf.Event{}
}

// first sends the first packet of a flow and compares. It returns what happened in words, and remembers a live flow.
func (w *world) first(f flow) string {
	w.t.Helper()
	if w.sport++; w.sport > 60000 {
		w.sport = 20001
	}
	f.sport = w.sport
	w.forget(f)
	want, out, in := w.expect(f)
	forwarded, e := w.send(f, true, false)
	w.stats.first++
	w.compare(f, "first packet", want, out, in, forwarded, e)
	kind := uint8(5)
	if !forwarded {
		kind = 1
	}
	if e.Type != kind || verdict.Action(e.Action) != want.Action || policy.Cookie(e.CookieOut) != out || policy.Cookie(e.CookieIn) != in {
		w.fail(f, "event type %d action %d cookies %x %x, want %d %d %x %x", e.Type, e.Action, e.CookieOut, e.CookieIn, kind, want.Action, out, in)
	}
	switch {
	case want.Action == verdict.Audit:
		w.stats.audited++
	case want.Reason == verdict.ProxyDown:
		w.stats.proxied++
	case want.Reason == verdict.AuthRequired:
		w.stats.unproven++
	case want.Reason == verdict.PolicyDenyRule:
		w.stats.denied++
	case want.Reason == verdict.PolicyDenied:
		w.stats.refused++
	default:
		w.stats.allowed++
	}
	if forwarded && len(w.flows) < 40 && (!f.icmp() || f.echo()) {
		w.flows = append(w.flows, f)
	}
	return fmt.Sprintf("%d %d out %08x in %08x", want.Action, e.Reason, e.CookieOut, e.CookieIn)
}

func (w *world) compare(f flow, what string, want policy.Outcome, out, in policy.Cookie, forwarded bool, e bpf.Event) {
	w.t.Helper()
	if forwarded != (want.Action != verdict.Deny) || verdict.Reason(e.Reason) != want.Reason {
		w.fail(f, "%s: forwarded %t reason %s by %q, %q; want %d %s by %q, %q", what, forwarded, verdict.Reason(e.Reason).Name(),
			policy.Explained(w.engine, policy.Cookie(e.CookieOut)), policy.Explained(w.engine, policy.Cookie(e.CookieIn)),
			want.Action, want.Reason.Name(), want.Egress, want.Ingress)
	}
}

// again sends packets of the live flows in both directions. Each must be judged by the rules of now, and its row says so.
func (w *world) again() {
	w.t.Helper()
	var epoch uint32
	if err := w.node.epoch.Lookup(uint32(0), &epoch); err != nil {
		w.t.Fatal(err)
	}
	for _, f := range w.flows {
		want, out, in := w.expect(f)
		for _, reply := range []bool{w.oracle.IntN(2) == 0, true, false} {
			forwarded, e := w.send(f, false, reply)
			w.compare(f, fmt.Sprintf("packet of a live flow, answer %t", reply), want, out, in, forwarded, e)
			w.stats.again++
		}
		row := w.row(f)
		if row.Epoch < epoch || verdict.Action(row.Action) != want.Action || policy.Cookie(row.CookieOut) != out || policy.Cookie(row.CookieIn) != in {
			w.fail(f, "conntrack row of epoch %d (now %d) action %d cookies %x %x, want %d %x %x", row.Epoch, epoch, row.Action, row.CookieOut, row.CookieIn, want.Action, out, in)
		}
		if want.Action == verdict.Deny {
			w.stats.against++
		}
		w.stats.rejudged++
	}
	if len(w.flows) > 20 { // make room for others
		w.flows = w.flows[10:]
	}
}

// keys are the conntrack keys that a flow can have, with the lower address first. For ICMP the role tells apart who asks and
// what; at most one of them is there.
func (w *world) keys(f flow) (out []bpf.CTKey) {
	src, dst := bpf.AddrFrom(w.addr(f.from, f.six)), bpf.AddrFrom(w.addr(f.to, f.six))
	k := bpf.CTKey{Lo: src, Hi: dst, LoPort: bpf.PortFrom(f.sport), HiPort: bpf.PortFrom(f.port), Proto: f.proto}
	if f.icmp() {
		if !f.echo() { // has no number of its own
			k.LoPort = bpf.PortFrom(f.port)
		}
		k.HiPort = k.LoPort
	}
	if slices.Compare(src[:], dst[:]) > 0 {
		k.Lo, k.Hi, k.LoPort, k.HiPort = k.Hi, k.Lo, k.HiPort, k.LoPort
	}
	for k.Role = range uint8(8) {
		out = append(out, k)
	}
	return out
}

// forget takes away what conntrack knows of a flow.
func (w *world) forget(f flow) {
	w.t.Helper()
	for _, k := range w.keys(f) {
		if err := w.node.ct.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			w.t.Fatal(err)
		}
	}
}

// row is what conntrack knows of a flow.
func (w *world) row(f flow) (row bpf.CTEntry) {
	w.t.Helper()
	n := 0
	for _, k := range w.keys(f) {
		switch err := w.node.ct.Lookup(k, &row); {
		case err == nil:
			n++
		case !errors.Is(err, ebpf.ErrKeyNotExist):
			w.t.Fatal(err)
		}
	}
	if n != 1 {
		w.fail(f, "it has %d conntrack rows", n)
	}
	return row
}
