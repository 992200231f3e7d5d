package flow

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	agentv1 "porin/api/agent/v1"
	flowpb "porin/api/flow"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// Line is a flow for people: when, what happened, who to whom, over what, and why. Verbose adds all labels, the
// numbers, devices and where the rules are written. Every byte that came from others is escaped.
//
//	10:15:04.123 DENIED ingress default/xwing{class=xwing} 10.0.0.5:41234 -> default/deathstar 10.0.0.7:80 TCP SYN: ingress denied: no rule of default/allow-empire allows it
func Line(f *flowpb.Flow, verbose bool) string {
	w := []string{f.GetTime().AsTime().Local().Format("15:04:05.000000"), word(f)}
	if d := direction(f.GetTrafficDirection()); d != "" {
		w = append(w, d)
	}
	w = append(w, side(f.GetSource(), f.GetSourceNames(), f.GetIP().GetSource(), sourcePort(f), verbose), "->",
		side(f.GetDestination(), f.GetDestinationNames(), f.GetIP().GetDestination(), destinationPort(f), verbose))
	if p := protocol(f); p != "" {
		w = append(w, p)
	}
	if f.GetIsReply().GetValue() {
		w = append(w, "reply")
	}
	if verbose {
		w = append(w, details(f)...)
	}
	line := strings.Join(w, " ")
	if why := Why(f, verbose); why != "" {
		line += ": " + why
	}
	return line
}

// word is the event and its outcome in one word.
func word(f *flowpb.Flow) string {
	switch f.GetVerdict() {
	case flowpb.Verdict_DROPPED:
		if f.GetEventType().GetType() == eventPolicyVerdict || isPolicyReason(uint8(f.GetDropReason())) {
			return "DENIED"
		}
		return "DROPPED"
	case flowpb.Verdict_AUDIT:
		return "AUDIT"
	case flowpb.Verdict_REDIRECTED:
		return "REDIRECTED"
	}
	if f.GetEventType().GetType() == eventPolicyVerdict {
		return "ALLOWED"
	}
	if f.GetTraceObservationPoint() != 0 {
		return strings.ReplaceAll(strings.ToLower(f.GetTraceObservationPoint().String()), "_", "-")
	}
	return f.GetVerdict().String()
}

func direction(d flowpb.TrafficDirection) string {
	if d == flowpb.TrafficDirection_TRAFFIC_DIRECTION_UNKNOWN {
		return ""
	}
	return strings.ToLower(d.String())
}

// side is one end of a flow: its name, the labels that policies see, its address.
func side(e *flowpb.Endpoint, names []string, addr, port string, verbose bool) string {
	name := ""
	shown := e.GetLabels()
	if !verbose {
		shown = OwnLabels(shown)
	}
	if i := slices.IndexFunc(e.GetLabels(), func(l string) bool { return strings.HasPrefix(l, labels.SourceReserved+":") }); i >= 0 {
		name = e.GetLabels()[i]
	}
	switch {
	case e.GetPodName() != "" && e.GetNamespace() != "":
		name = e.GetNamespace() + "/" + e.GetPodName()
	case e.GetPodName() != "":
		name = e.GetPodName()
	case name != "":
	case len(e.GetLabels()) > 0 && e.GetNamespace() != "":
		name = e.GetNamespace() + "/?"
	case e.GetIdentity() != 0:
		name = "identity " + strconv.Itoa(int(e.GetIdentity()))
	default:
		name = "unknown"
	}
	if cidr := longest(e.GetLabels()); cidr != "" && e.GetPodName() == "" {
		name = cidr
	}
	var b strings.Builder
	b.WriteString(Escape(name))
	if len(shown) > 0 {
		b.WriteString("{" + Escape(strings.Join(shown, ",")) + "}")
	}
	if len(names) > 0 {
		b.WriteString("(" + Escape(strings.Join(names, ",")) + ")")
	}
	if verbose {
		fmt.Fprintf(&b, "[ep %d, identity %d]", e.GetID(), e.GetIdentity())
	}
	if addr != "" {
		if port != "" {
			addr = net.JoinHostPort(addr, port)
		}
		b.WriteString(" " + Escape(addr))
	}
	return b.String()
}

// OwnLabels leaves out the labels that porin adds (namespace, cluster, service account, CIDRs) and the source k8s: what
// is left is what the owner of a workload gave it.
func OwnLabels(ls []string) []string {
	var out []string
	for _, l := range ls {
		source, rest, _ := strings.Cut(l, ":")
		switch {
		case source == labels.SourceCIDR || source == labels.SourceReserved:
		case strings.HasPrefix(rest, "io.cilium.k8s.") || strings.HasPrefix(rest, "io.kubernetes.pod."):
		case source == labels.SourceK8s || source == labels.SourceUnspec:
			out = append(out, rest)
		default:
			out = append(out, l)
		}
	}
	return out
}

// longest returns the most specific cidr label, which is the CIDR that policy named.
func longest(ls []string) string {
	best, bits := "", -1
	for _, l := range ls {
		rest, ok := strings.CutPrefix(l, labels.SourceCIDR+":")
		if !ok {
			continue
		}
		_, n, _ := strings.Cut(rest, "/")
		if b, err := strconv.Atoi(n); err == nil && b > bits {
			best, bits = l, b
		}
	}
	return best
}

func sourcePort(f *flowpb.Flow) string {
	switch p := f.GetL4().GetProtocol().(type) {
	case *flowpb.Layer4_TCP:
		return strconv.Itoa(int(p.TCP.GetSourcePort()))
	case *flowpb.Layer4_UDP:
		return strconv.Itoa(int(p.UDP.GetSourcePort()))
	case *flowpb.Layer4_SCTP:
		return strconv.Itoa(int(p.SCTP.GetSourcePort()))
	}
	return ""
}

func destinationPort(f *flowpb.Flow) string {
	switch p := f.GetL4().GetProtocol().(type) {
	case *flowpb.Layer4_TCP:
		return strconv.Itoa(int(p.TCP.GetDestinationPort()))
	case *flowpb.Layer4_UDP:
		return strconv.Itoa(int(p.UDP.GetDestinationPort()))
	case *flowpb.Layer4_SCTP:
		return strconv.Itoa(int(p.SCTP.GetDestinationPort()))
	}
	return ""
}

func protocol(f *flowpb.Flow) string {
	switch p := f.GetL4().GetProtocol().(type) {
	case *flowpb.Layer4_TCP:
		return strings.TrimSpace("TCP " + flagNames(p.TCP.GetFlags()))
	case *flowpb.Layer4_ICMPv4:
		return "ICMPv4 " + icmpName(false, p.ICMPv4.GetType(), p.ICMPv4.GetCode())
	case *flowpb.Layer4_ICMPv6:
		return "ICMPv6 " + icmpName(true, p.ICMPv6.GetType(), p.ICMPv6.GetCode())
	}
	return Escape(f.GetSummary())
}

func details(f *flowpb.Flow) []string {
	var out []string
	if r := f.GetTraceReason(); r != 0 {
		out = append(out, "conntrack="+strings.ToLower(r.String()))
	}
	if i := f.GetInterface(); i != nil {
		out = append(out, fmt.Sprintf("device=%s(%d)", Escape(i.GetName()), i.GetIndex()))
	}
	if e := f.GetEthernet(); e != nil {
		out = append(out, fmt.Sprintf("mac=%s>%s", Escape(e.GetSource()), Escape(e.GetDestination())))
	}
	if n := f.GetPorinLength(); n != 0 {
		out = append(out, fmt.Sprintf("length=%d", n))
	}
	if n := f.GetNodeName(); n != "" {
		out = append(out, "node="+Escape(n))
	}
	return out
}

// Why says what made the verdict of a flow: the rules, or the reason for the drop.
func Why(f *flowpb.Flow, verbose bool) string {
	var out []string
	reason := f.GetDropReasonDesc()
	if reason != 0 && !isPolicyReason(uint8(reason)) {
		out = append(out, fmt.Sprintf("%s (%s, %d)", verdict.Reason(reason), Escape(reason.String()), f.GetDropReason()))
	}
	audit := f.GetVerdict() == flowpb.Verdict_AUDIT
	for _, d := range []struct {
		name            string
		denied, allowed []*flowpb.Policy
		here            bool
	}{
		{"egress", f.GetEgressDeniedBy(), f.GetEgressAllowedBy(), f.GetTrafficDirection() == flowpb.TrafficDirection_EGRESS},
		{"ingress", f.GetIngressDeniedBy(), f.GetIngressAllowedBy(), f.GetTrafficDirection() == flowpb.TrafficDirection_INGRESS},
	} {
		switch {
		case len(d.denied) > 0 || d.here && isPolicyReason(uint8(reason)):
			out = append(out, d.name+" "+deniedBy(d.denied, reason, audit, verbose))
		case len(d.allowed) > 0:
			out = append(out, d.name+" "+allowedBy(d.allowed, verbose))
		}
	}
	return strings.Join(out, "; ")
}

func deniedBy(ps []*flowpb.Policy, reason flowpb.DropReason, audit, verbose bool) string {
	how := "denied"
	if audit {
		how = "would be denied, forwarded in audit mode"
	}
	deny := reason == flowpb.DropReason_POLICY_DENY
	for _, p := range ps {
		_, d := label(p, labelDeny)
		deny = deny || d
	}
	switch {
	case reason == flowpb.DropReason_AUTH_REQUIRED:
		return how + ": nobody gave the authentication demanded by " + policyNames(ps, false, verbose)
	case deny:
		return how + " by " + policyNames(ps, true, verbose)
	case len(ps) == 0:
		return how + ": no rule allows it"
	case implicit(ps):
		return how + ": " + policyNames(ps, false, verbose)
	}
	return how + ": no rule of " + policyNames(ps, false, verbose) + " allows it"
}

func allowedBy(ps []*flowpb.Policy, verbose bool) string {
	if implicit(ps) {
		return "allowed: " + policyNames(ps, true, verbose)
	}
	return "allowed by " + policyNames(ps, true, verbose)
}

// implicit tells whether porin itself decided, not a policy.
func implicit(ps []*flowpb.Policy) bool {
	return len(ps) > 0 && !slices.ContainsFunc(ps, func(p *flowpb.Policy) bool { return p.GetKind() != policy.KindPorin })
}

// policyNames names rules, each policy once unless its rules matter.
func policyNames(ps []*flowpb.Policy, rules, verbose bool) string {
	var out []string
	seen := make(map[string]bool)
	for _, p := range ps {
		n := p.GetName()
		if p.GetNamespace() != "" {
			n = p.GetNamespace() + "/" + n
		}
		description, _ := label(p, labelDescription)
		if p.GetKind() == policy.KindPorin {
			if description != "" {
				n = description
			}
		} else if rule, ok := label(p, labelRule); ok && rules {
			n += " " + rule
		}
		if verbose && p.GetKind() != policy.KindPorin {
			if at, ok := label(p, labelFile); ok {
				n += " at " + at
			}
			if description != "" {
				n += " \"" + description + "\""
			}
		}
		if !seen[n] {
			seen[n] = true
			out = append(out, Escape(n))
		}
	}
	return strings.Join(out, ", ")
}

func label(p *flowpb.Policy, prefix string) (string, bool) {
	for _, l := range p.GetLabels() {
		if v, ok := strings.CutPrefix(l, prefix); ok {
			return v, true
		}
	}
	return "", false
}

// AgentLine is an agent event for people.
func AgentLine(ev *agentv1.AgentEvent) string {
	return fmt.Sprintf("%s agent %s: %s", ev.GetTime().AsTime().Local().Format("15:04:05.000000"), Escape(ev.GetType()), Escape(ev.GetText()))
}

// LostLine tells of a gap.
func LostLine(n uint64) string {
	if n == 1 {
		return "--- 1 event lost here: this reader or the kernel's ring was too slow ---"
	}
	return fmt.Sprintf("--- %d events lost here: this reader or the kernel's ring was too slow ---", n)
}

// Dump is the packet's first bytes as hexadecimal and ASCII; empty when the flow has none.
func Dump(f *flowpb.Flow) string {
	if len(f.GetPorinSnap()) == 0 {
		return ""
	}
	return hex.Dump(f.GetPorinSnap())
}

// JSON is a message as one line of protobuf JSON with the names of the .proto file.
func JSON(m proto.Message) (string, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("write a message as JSON: %w", err)
	}
	var tight bytes.Buffer // protojson adds spaces at random
	if err := json.Compact(&tight, b); err != nil {
		return "", fmt.Errorf("compact the JSON of a message: %w", err)
	}
	return string(EscapeJSON(tight.Bytes())), nil
}
