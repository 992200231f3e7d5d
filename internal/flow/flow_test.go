package flow

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"

	agentv1 "porin/api/agent/v1"
	flowpb "porin/api/flow"
	"porin/bpf"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// names is a resolver with fixed contents.
type names struct {
	endpoints []endpoint.Endpoint
	ids       map[identity.ID]labels.Labels
	rules     map[policy.Cookie][]policy.RuleRef
}

func (n names) EndpointByID(id uint16) (endpoint.Endpoint, bool) {
	for _, e := range n.endpoints {
		if e.ID == id {
			return e, true
		}
	}
	return endpoint.Endpoint{}, false
}

func (n names) EndpointByAddr(a netip.Addr) (endpoint.Endpoint, bool) {
	for _, e := range n.endpoints {
		if a == e.IPv4 || a == e.IPv6 {
			return e, true
		}
	}
	return endpoint.Endpoint{}, false
}
func (n names) IdentityLabels(id identity.ID) labels.Labels { return n.ids[id] }
func (n names) NameByAddr(a netip.Addr) string {
	if a == netip.MustParseAddr("203.0.113.9") {
		return "www.example.org"
	}
	if e, ok := n.EndpointByAddr(a); ok {
		return e.Name()
	}
	return ""
}
func (n names) Explain(c policy.Cookie) []policy.RuleRef { return n.rules[c] }
func (n names) DeviceName(i uint32) string               { return "pn" + strconv.Itoa(int(i)) }
func (n names) NodeName() string                         { return "node1" }

func pod(t testing.TB, key string, more ...string) labels.Labels {
	t.Helper()
	ls, err := labels.ParseAll(append([]string{"k8s:io.kubernetes.pod.namespace=default", "k8s:io.cilium.k8s.policy.cluster=default", "k8s:class=" + key}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	return ls
}

func starwars(t testing.TB) names {
	allow := policy.Ref{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "allow-empire"}
	return names{
		endpoints: []endpoint.Endpoint{
			{ID: 11, Namespace: "default", Pod: "tiefighter", IPv4: netip.MustParseAddr("10.0.0.5"), IPv6: netip.MustParseAddr("fd00::5"), Identity: 1001},
			{ID: 12, Namespace: "default", Pod: "xwing", IPv4: netip.MustParseAddr("10.0.0.6"), Identity: 1002},
			{ID: 13, Namespace: "default", Pod: "deathstar", IPv4: netip.MustParseAddr("10.0.0.7"), IPv6: netip.MustParseAddr("fd00::7"), Identity: 1003},
		},
		ids: map[identity.ID]labels.Labels{
			1: labels.New(labels.Label{Source: "reserved", Key: "host"}), 1001: pod(t, "tiefighter"), 1002: pod(t, "xwing"), 1003: pod(t, "deathstar"),
			1<<24 + 1: labels.New(labels.Label{Source: "cidr", Key: "203.0.113.0/24"}, labels.Label{Source: "cidr", Key: "0.0.0.0/0"}, labels.Label{Source: "reserved", Key: "world-ipv4"}),
		},
		rules: map[policy.Cookie][]policy.RuleRef{
			1: {{Policy: policy.Ref{Kind: policy.KindPorin, Name: "default"}, Direction: verdict.Egress, Description: "no policy isolates it"}},
			2: {{Policy: allow, Spec: -1, Index: 0, Direction: verdict.Ingress, File: "policy.yaml", Line: 12, Description: "the empire only"}},
			3: {{Policy: allow, Spec: -1, Index: 1, Direction: verdict.Ingress, Deny: true, File: "policy.yaml", Line: 20}},
		},
	}
}

func observer(t testing.TB, r Resolver) *Observer {
	t.Helper()
	o := New(slog.New(slog.NewTextHandler(io.Discard, nil)), r, 0)
	start := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	o.clock = func() (time.Time, uint64) { return start, 1e9 }
	return o
}

// story is an event from the words of a test: src > dst, with defaults for the rest.
func story(src, dst string, change func(*bpf.Event)) *bpf.Event {
	ev := &bpf.Event{
		Time: 1e9 - 5e8, Src: bpf.AddrFrom(netip.MustParseAddr(src)), Dst: bpf.AddrFrom(netip.MustParseAddr(dst)),
		SrcIdentity: 1002, DstIdentity: 1003, SrcEP: 12, DstEP: 13, Ifindex: 4, Len: 74,
		Sport: bpf.PortFrom(41234), Dport: bpf.PortFrom(80), Proto: 6, TCPFlags: 2, CookieOut: 1, CookieIn: 2,
		Type: eventPolicyVerdict, Action: uint8(verdict.Allow), Status: 1, Direction: uint8(verdict.Ingress),
	}
	if change != nil {
		change(ev)
	}
	return ev
}

func TestLine(t *testing.T) {
	for _, c := range []struct {
		name, want, verbose string
		ev                  *bpf.Event
	}{
		{
			name: "allowed", ev: story("10.0.0.6", "10.0.0.7", nil),
			want: "ALLOWED ingress default/xwing{class=xwing} 10.0.0.6:41234 -> default/deathstar{class=deathstar} 10.0.0.7:80 TCP SYN: egress allowed: no policy isolates it; ingress allowed by default/allow-empire ingress[0]",
			verbose: "ALLOWED ingress default/xwing{k8s:class=xwing,k8s:io.cilium.k8s.policy.cluster=default,k8s:io.kubernetes.pod.namespace=default}[ep 12, identity 1002] 10.0.0.6:41234 -> " +
				"default/deathstar{k8s:class=deathstar,k8s:io.cilium.k8s.policy.cluster=default,k8s:io.kubernetes.pod.namespace=default}[ep 13, identity 1003] 10.0.0.7:80 TCP SYN conntrack=new device=pn4(4) length=74 node=node1: " +
				"egress allowed: no policy isolates it; ingress allowed by default/allow-empire ingress[0] at policy.yaml:12 \"the empire only\"",
		},
		{
			name: "denied for want of a rule", ev: story("10.0.0.6", "10.0.0.7", func(ev *bpf.Event) { ev.Type, ev.Action, ev.Reason = eventDrop, 0, 133 }),
			want: "DENIED ingress default/xwing{class=xwing} 10.0.0.6:41234 -> default/deathstar{class=deathstar} 10.0.0.7:80 TCP SYN: egress allowed: no policy isolates it; ingress denied: no rule of default/allow-empire allows it",
		},
		{
			name: "denied by a rule", ev: story("10.0.0.6", "10.0.0.7", func(ev *bpf.Event) { ev.Type, ev.Action, ev.Reason, ev.CookieIn = eventDrop, 0, 181, 3 }),
			want: "DENIED ingress default/xwing{class=xwing} 10.0.0.6:41234 -> default/deathstar{class=deathstar} 10.0.0.7:80 TCP SYN: egress allowed: no policy isolates it; ingress denied by default/allow-empire ingressDeny[1]",
		},
		{
			name: "denied at the sender", ev: story("10.0.0.6", "203.0.113.9", func(ev *bpf.Event) {
				ev.Type, ev.Action, ev.Reason, ev.CookieOut, ev.CookieIn, ev.Direction = eventPolicyVerdict, 0, 133, 2, 0, 2
				ev.DstEP, ev.DstIdentity, ev.Proto = 0, 1<<24+1, 17
			}),
			want: "DENIED egress default/xwing{class=xwing} 10.0.0.6:41234 -> cidr:203.0.113.0/24(www.example.org) 203.0.113.9:80 UDP: egress denied: no rule of default/allow-empire allows it",
		},
		{
			name: "audit", ev: story("10.0.0.6", "10.0.0.7", func(ev *bpf.Event) { ev.Action, ev.Reason = uint8(verdict.Audit), 133 }),
			want: "AUDIT ingress default/xwing{class=xwing} 10.0.0.6:41234 -> default/deathstar{class=deathstar} 10.0.0.7:80 TCP SYN: egress allowed: no policy isolates it; ingress would be denied, forwarded in audit mode: no rule of default/allow-empire allows it",
		},
		{
			name: "spoofed", ev: story("10.9.9.9", "10.0.0.7", func(ev *bpf.Event) {
				ev.Type, ev.Action, ev.Reason, ev.CookieOut, ev.CookieIn, ev.Status, ev.Direction = eventDrop, 0, 132, 0, 0, 0, 2
			}),
			want: "DROPPED egress default/xwing{class=xwing} 10.9.9.9:41234 -> default/deathstar{class=deathstar} 10.0.0.7:80 TCP SYN: Invalid source ip (INVALID_SOURCE_IP, 132)",
		},
		{
			name: "trace of a reply over IPv6", ev: story("fd00::7", "fd00::5", func(ev *bpf.Event) {
				ev.Type, ev.Point, ev.Status, ev.Direction, ev.TCPFlags = eventTrace, 101, 3, 0, 0x12
				ev.Sport, ev.Dport, ev.SrcEP, ev.DstEP, ev.SrcIdentity, ev.DstIdentity = bpf.PortFrom(80), bpf.PortFrom(5), 13, 11, 1003, 1001
				ev.CookieOut, ev.CookieIn = 0, 0
			}),
			want: "to-endpoint default/deathstar{class=deathstar} [fd00::7]:80 -> default/tiefighter{class=tiefighter} [fd00::5]:5 TCP SYN, ACK reply",
		},
		{
			name: "ping from the host", ev: story("10.0.0.1", "10.0.0.7", func(ev *bpf.Event) {
				ev.SrcIdentity, ev.SrcEP, ev.Proto, ev.Sport, ev.Dport, ev.TCPFlags, ev.CookieOut = 1, 0, 1, bpf.PortFrom(8), bpf.PortFrom(0), 0, 0
			}),
			want: "ALLOWED ingress reserved:host 10.0.0.1 -> default/deathstar{class=deathstar} 10.0.0.7 ICMPv4 EchoRequest: ingress allowed by default/allow-empire ingress[0]",
		},
		{
			name: "from the unspecified address", ev: story("::", "ff02::16", func(ev *bpf.Event) {
				*ev = bpf.Event{Time: ev.Time, Type: eventDrop, Reason: 132, SrcEP: 12, SrcIdentity: 1002, Direction: 2, Src: ev.Src, Dst: ev.Dst, Proto: 58, Sport: bpf.PortFrom(143)}
			}),
			want: "DROPPED egress default/xwing{class=xwing} :: -> unknown ff02::16 ICMPv6 MulticastListenerReport: Invalid source ip (INVALID_SOURCE_IP, 132)",
		},
		{
			name: "ICMP of which no header was read", ev: story("10.0.0.6", "10.0.0.7", func(ev *bpf.Event) {
				*ev = bpf.Event{Time: ev.Time, Type: eventDrop, Reason: 135, SrcEP: 12, SrcIdentity: 1002, Direction: 2, Src: ev.Src, Dst: ev.Dst, Proto: 1, Sport: bpf.PortFrom(0xffff), Dport: bpf.PortFrom(0xffff)}
			}),
			want: "DROPPED egress default/xwing{class=xwing} 10.0.0.6 -> default/deathstar 10.0.0.7 ICMPv4: CT: Truncated or invalid header (CT_TRUNCATED_OR_INVALID_HEADER, 135)",
		},
		{
			name: "forged ARP has no IP header", ev: story("10.0.0.6", "10.0.0.7", func(ev *bpf.Event) {
				*ev = bpf.Event{Time: ev.Time, Type: eventDrop, Reason: 220, SrcEP: 12, SrcIdentity: 1002, Direction: 2}
			}),
			want: "DROPPED egress default/xwing{class=xwing} -> unknown: ARP spoofing (ARP_SPOOF, 220)",
		},
		{
			name: "rules that are gone", ev: story("10.0.0.6", "10.0.0.7", func(ev *bpf.Event) { ev.CookieIn = 0xbeef }),
			want: "ALLOWED ingress default/xwing{class=xwing} 10.0.0.6:41234 -> default/deathstar{class=deathstar} 10.0.0.7:80 TCP SYN: egress allowed: no policy isolates it; ingress allowed: rules that are gone by now, cookie 0xbeef",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := newTeller(observer(t, starwars(t)))
			f := o.flow(&record{event: *c.ev}, false)
			_, line, _ := strings.Cut(Line(f, false), " ")
			if line != c.want {
				t.Errorf("got  %s\nwant %s", line, c.want)
			}
			if _, line, _ := strings.Cut(Line(f, true), " "); c.verbose != "" && line != c.verbose {
				t.Errorf("verbose\ngot  %s\nwant %s", line, c.verbose)
			}
		})
	}
}

func TestFlowFields(t *testing.T) {
	o := newTeller(observer(t, starwars(t)))
	ev := story("10.0.0.6", "10.0.0.7", func(ev *bpf.Event) {
		ev.Type, ev.Action, ev.Reason, ev.SnapLen = eventDrop, 0, 133, 20
		copy(ev.Snap[:], "\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x08\x00rest..")
	})
	f := o.flow(&record{seq: 7, event: *ev}, true)
	if got, want := f.GetTime().AsTime(), time.Date(2026, 11, 21, 9, 59, 59, 5e8, time.UTC); !got.Equal(want) {
		t.Errorf("time = %v, want %v: half a second before now", got, want)
	}
	for _, c := range []struct{ name, got, want string }{
		{"verdict", f.GetVerdict().String(), "DROPPED"},
		{"reason", f.GetDropReasonDesc().String(), "POLICY_DENIED"},
		{"ethernet", f.GetEthernet().GetSource() + " " + f.GetEthernet().GetDestination(), "02:00:00:00:00:02 02:00:00:00:00:01"},
		{"source", f.GetSource().GetNamespace() + "/" + f.GetSource().GetPodName(), "default/xwing"},
		{"cluster", f.GetSource().GetClusterName(), "default"},
		{"denied by", f.GetIngressDeniedBy()[0].GetName(), "allow-empire"},
		{"event type", f.GetEventType().String(), (&flowpb.CiliumEventType{Type: 1, SubType: 133}).String()},
		{"direction", f.GetTrafficDirection().String(), "INGRESS"},
		{"summary", f.GetSummary(), "TCP Flags: SYN"},
		{"snap", string(f.GetPorinSnap()[14:]), "rest.."},
		{"ip version", f.GetIP().GetIpVersion().String(), "IPv4"},
	} {
		if c.got != c.want {
			t.Errorf("%s = %q, want %q", c.name, c.got, c.want)
		}
	}
	if f.GetIsReply() == nil || f.GetIsReply().GetValue() {
		t.Errorf("is_reply = %v, want false and known", f.GetIsReply())
	}
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(f.GetUuid()) {
		t.Errorf("uuid = %q", f.GetUuid())
	}
	if !strings.Contains(Dump(f), "|st..|") {
		t.Errorf("dump = %q", Dump(f))
	}
	if g := o.flow(&record{seq: 7, event: *ev}, false); len(g.GetPorinSnap()) != 0 {
		t.Error("the packet's bytes are given to a reader that did not ask for them")
	}
}

// A number or address may have got a new owner by the time that somebody reads of a packet.
func TestNewOwnerIsNotBlamed(t *testing.T) {
	r := starwars(t)
	for i := range r.endpoints {
		r.endpoints[i].Created = time.Date(2026, 11, 21, 9, 59, 59, 9e8, time.UTC) // after the packet
	}
	f := newTeller(observer(t, r)).flow(&record{event: *story("10.0.0.6", "10.0.0.7", nil)}, false)
	if f.GetSource().GetPodName() != "" || f.GetSource().GetIdentity() != 1002 || f.GetSource().GetNamespace() != "default" {
		t.Errorf("source = %v, want only what the event and its identity say", f.GetSource())
	}
}

// docs/MONITOR.md lists every reason by its number, name and words.
func TestReasonsAreInTheDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/MONITOR.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range verdict.Reasons() {
		row := fmt.Sprintf("| %d | `%s` | %s | ", r, flowpb.DropReason(r), r)
		if r != verdict.None && !strings.Contains(string(doc), row) {
			t.Errorf("docs/MONITOR.md has no row %s", row)
		}
	}
}

// Every reason has its number in the API, and people get its words.
func TestReasonsAreInTheAPI(t *testing.T) {
	for _, r := range verdict.Reasons() {
		if r == verdict.None {
			continue
		}
		if _, ok := flowpb.DropReason_name[int32(r)]; !ok {
			t.Errorf("%s (%d) is not in flow.proto", r.Name(), r)
		}
		ev := story("10.0.0.6", "10.0.0.7", func(ev *bpf.Event) { ev.Type, ev.Action, ev.Reason = eventDrop, 0, uint8(r) })
		line := Line(newTeller(observer(t, starwars(t))).flow(&record{event: *ev}, false), false)
		if !isPolicyReason(uint8(r)) && !strings.Contains(line, r.String()) || !strings.Contains(line, " D") {
			t.Errorf("%s: %s", r.Name(), line)
		}
	}
}

// hostile holds what would move the cursor, set a title, reverse the writing or forge a line on a terminal.
func hostile() []string {
	return []string{"\x1b[2J\x1b]0;owned\x07", "a\nb\rc\td", "\x00\x08\x7f", "\u009b31m", "\u202egnp.exe", "\u2028", "bad\xff\xfeutf8", "\U000e0041"}
}

func printable(t *testing.T, what, s string) {
	t.Helper()
	for _, r := range s {
		if !unicode.IsPrint(r) {
			t.Errorf("%s: %q holds %U", what, s, r)
			return
		}
	}
}

func TestHostileTextIsEscaped(t *testing.T) {
	for _, h := range hostile() {
		f := &flowpb.Flow{
			Source:          &flowpb.Endpoint{PodName: h, Namespace: h, Labels: []string{"k8s:" + h, "reserved:" + h, "cidr:" + h}},
			Destination:     &flowpb.Endpoint{Labels: []string{"reserved:" + h}},
			SourceNames:     []string{h},
			IP:              &flowpb.IP{Source: h, Destination: h},
			L4:              &flowpb.Layer4{Protocol: &flowpb.Layer4_UDP{UDP: &flowpb.UDP{SourcePort: 1, DestinationPort: 2}}},
			NodeName:        h,
			Interface:       &flowpb.NetworkInterface{Name: h},
			Ethernet:        &flowpb.Ethernet{Source: h, Destination: h},
			Summary:         h,
			DropReasonDesc:  133,
			IngressDeniedBy: []*flowpb.Policy{{Name: h, Namespace: h, Labels: []string{labelDescription + h, labelFile + h}}, {Kind: policy.KindPorin, Name: h}},
		}
		printable(t, "line", Line(f, false))
		printable(t, "verbose line", Line(f, true))
		printable(t, "agent line", AgentLine(&agentv1.AgentEvent{Type: h, Text: h}))
		printable(t, "escape", Escape(h))
		for r := range strings.SplitSeq(strings.TrimSpace(Dump(&flowpb.Flow{PorinSnap: []byte(h)})), "\n") {
			printable(t, "dump", r)
		}
		if !strings.Contains(h, "\xff") { // protobuf refuses text that is not UTF-8
			s, err := JSON(f)
			if err != nil {
				t.Fatal(err)
			}
			printable(t, "json", s)
			var back struct {
				NodeName string `json:"node_name"`
			}
			if err := json.Unmarshal([]byte(s), &back); err != nil || back.NodeName != h {
				t.Errorf("JSON of %q reads back as %q, %v", h, back.NodeName, err)
			}
		}
	}
	if got := Escape("grün 日本 \\x"); got != "grün 日本 \\x" {
		t.Errorf("printable text was changed to %q", got)
	}
}

func TestJSONIsOneStableLine(t *testing.T) {
	m := &agentv1.MonitorResponse{Event: &agentv1.MonitorResponse_Flow{Flow: &flowpb.Flow{NodeName: "a b", Verdict: flowpb.Verdict_DROPPED, DropReason: 133}}}
	s, err := JSON(m)
	if err != nil || s != `{"flow":{"verdict":"DROPPED","drop_reason":133,"node_name":"a b"}}` {
		t.Errorf("JSON = %s, %v", s, err)
	}
	if !proto.Equal(m, proto.Clone(m)) {
		t.Error("message changed by being printed")
	}
}
