package flow

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	flowpb "porin/api/flow"
	"porin/bpf"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// teller turns records into messages for one reader. It remembers for a moment what names it found: a reader of 50,000
// flows a second must not ask as often for the same few names. What was not found is asked for again each time.
type teller struct {
	o     *Observer
	until time.Time // forget everything then

	labels   map[uint32]*flowpb.Endpoint // by identity: what its labels say
	sides    map[sideKey]*known
	rules    map[uint32][]*flowpb.Policy
	devices  map[uint32]*flowpb.NetworkInterface
	texts    map[netip.Addr]string
	subjects map[summaryKey]string
}

type sideKey struct {
	addr     netip.Addr
	id       uint16
	identity uint32
}

type known struct {
	side    *flowpb.Endpoint
	created time.Time
}

type summaryKey struct {
	proto, flags uint8
	typ, code    uint16
}

// Bounds of what a teller remembers.
const (
	rememberFor  = 100 * time.Millisecond
	rememberMost = 4096
)

func newTeller(o *Observer) *teller {
	t := &teller{o: o}
	t.forget(time.Time{})
	return t
}

func (t *teller) forget(until time.Time) {
	*t = teller{
		o: t.o, until: until, labels: make(map[uint32]*flowpb.Endpoint), sides: make(map[sideKey]*known), rules: make(map[uint32][]*flowpb.Policy),
		devices: make(map[uint32]*flowpb.NetworkInterface), texts: make(map[netip.Addr]string), subjects: make(map[summaryKey]string),
	}
}

// fresh forgets what is old, or too much.
func (t *teller) fresh() {
	now, _ := t.o.clock()
	if now.After(t.until) || len(t.texts)+len(t.sides) > rememberMost {
		t.forget(now.Add(rememberFor))
	}
}

func (t *teller) ip(src, dst netip.Addr) *flowpb.IP {
	if !src.IsValid() && !dst.IsValid() {
		return nil
	}
	if src.Is4() || dst.Is4() {
		return &flowpb.IP{IpVersion: flowpb.IPVersion_IPv4, Source: t.text(src), Destination: t.text(dst)}
	}
	// The kernel's zero address means none, but beside an IPv6 address it is the unspecified one: "::".
	for _, a := range []*netip.Addr{&src, &dst} {
		if !a.IsValid() {
			*a = netip.IPv6Unspecified()
		}
	}
	return &flowpb.IP{IpVersion: flowpb.IPVersion_IPv6, Source: t.text(src), Destination: t.text(dst)}
}

func (t *teller) text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	s, ok := t.texts[a]
	if !ok {
		s = a.String()
		t.texts[a] = s
	}
	return s
}

// names says what else the owner of an address is called, where no pod's name says it.
func (t *teller) names(a netip.Addr, side *flowpb.Endpoint) []string {
	if !a.IsValid() || side.GetPodName() != "" {
		return nil
	}
	if n := t.o.resolver.NameByAddr(a); n != "" {
		return []string{n}
	}
	return nil
}

func (t *teller) device(ev *bpf.Event) *flowpb.NetworkInterface {
	index := ev.Ifindex
	if index == 0 {
		index = ev.OutIfindex
	}
	if index == 0 {
		return nil
	}
	d, ok := t.devices[index]
	if !ok {
		d = &flowpb.NetworkInterface{Index: index, Name: t.o.resolver.DeviceName(index)}
		if d.GetName() != "" {
			t.devices[index] = d
		}
	}
	return d
}

func (t *teller) summary(ev *bpf.Event) string {
	key := summaryKey{proto: ev.Proto}
	switch ev.Proto {
	case protoTCP:
		key.flags = ev.TCPFlags
	case protoICMP, protoICMPv6:
		key.typ, key.code = ev.Sport.Host(), ev.Dport.Host()
	}
	s, ok := t.subjects[key]
	if !ok {
		s = summary(ev)
		t.subjects[key] = s
	}
	return s
}

// side says who is behind an address. The labels are those of the identity that the kernel judged, so they explain the
// verdict even if the workload has others by now; the name is taken only from an endpoint that had this address when
// the packet came by.
func (t *teller) side(addr netip.Addr, id uint16, num uint32, at time.Time) *flowpb.Endpoint {
	key := sideKey{addr, id, num}
	if k, ok := t.sides[key]; ok && !k.created.After(at) {
		return k.side
	}
	base, ok := t.labels[num]
	if !ok {
		ls := t.o.resolver.IdentityLabels(identity.ID(num))
		base = &flowpb.Endpoint{Identity: num, Labels: ls.Strings()}
		base.Namespace, _ = ls.Get(labels.SourceK8s, labels.KeyNamespace)
		base.ClusterName, _ = ls.Get(labels.SourceK8s, labels.KeyCluster)
		if len(ls) > 0 {
			t.labels[num] = base
		}
	}
	var ep endpoint.Endpoint
	if id != 0 {
		ep, ok = t.o.resolver.EndpointByID(id)
	} else if ok = addr.IsValid(); ok {
		ep, ok = t.o.resolver.EndpointByAddr(addr)
	}
	if !ok || ep.Created.After(at) {
		if id == 0 {
			return base
		}
		return &flowpb.Endpoint{ID: uint32(id), Identity: num, Labels: base.GetLabels(), Namespace: base.GetNamespace(), ClusterName: base.GetClusterName()}
	}
	out := &flowpb.Endpoint{ID: uint32(ep.ID), Identity: num, Labels: base.GetLabels(), Namespace: ep.Namespace, PodName: ep.Pod, ClusterName: base.GetClusterName()}
	if out.GetPodName() == "" {
		out.PodName = ep.ContainerID
	}
	t.sides[key] = &known{out, ep.Created}
	return out
}

// explain fills in the rules. The cookies say which rules decided; whether they allowed or denied follows from the
// event: the direction that denied is the event's, a direction judged before it had allowed.
func (t *teller) explain(f *flowpb.Flow, ev *bpf.Event) {
	denied := isPolicyReason(ev.Reason)
	if ev.Type == eventPolicyVerdict {
		a := verdict.Action(ev.Action)
		denied = denied || a == verdict.Deny || a == verdict.Audit
	}
	out, in := t.policies(ev.CookieOut), t.policies(ev.CookieIn)
	if denied && verdict.Direction(ev.Direction) == verdict.Egress {
		f.EgressDeniedBy, f.IngressAllowedBy = out, in
		return
	}
	f.EgressAllowedBy = out
	if denied && verdict.Direction(ev.Direction) == verdict.Ingress {
		f.IngressDeniedBy = in
		return
	}
	f.IngressAllowedBy = in
}

func isPolicyReason(reason uint8) bool {
	r := verdict.Reason(reason)
	return r == verdict.PolicyDenied || r == verdict.PolicyDenyRule || r == verdict.AuthRequired
}

// Labels under which a flow's policies carry what Hubble's message has no field for.
const (
	labelRule        = "porin:rule="
	labelFile        = "porin:file="
	labelDeny        = "porin:deny"
	labelDescription = "porin:description="
)

// policies names the rules behind a cookie.
func (t *teller) policies(c uint32) []*flowpb.Policy {
	if c == 0 {
		return nil
	}
	if ps, ok := t.rules[c]; ok {
		return ps
	}
	refs := t.o.resolver.Explain(policy.Cookie(c))
	if len(refs) == 0 {
		return []*flowpb.Policy{{Kind: policy.KindPorin, Name: fmt.Sprintf("rules that are gone by now, cookie %#x", c)}}
	}
	out := make([]*flowpb.Policy, 0, len(refs))
	for _, r := range refs {
		p := &flowpb.Policy{Name: r.Policy.Name, Namespace: r.Policy.Namespace, Kind: r.Policy.Kind}
		if r.Policy.Kind != policy.KindPorin && r.Index >= 0 {
			p.Labels = append(p.Labels, labelRule+strings.TrimPrefix(r.String(), r.Policy.String()+" "))
		}
		if r.Deny {
			p.Labels = append(p.Labels, labelDeny)
		}
		if r.File != "" {
			p.Labels = append(p.Labels, fmt.Sprintf("%s%s:%d", labelFile, r.File, r.Line))
		}
		if r.Description != "" {
			p.Labels = append(p.Labels, labelDescription+r.Description)
		}
		out = append(out, p)
	}
	t.rules[c] = out
	return out
}
