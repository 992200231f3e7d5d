package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	agentv1 "porin/api/agent/v1"
	flowpb "porin/api/flow"
)

// fakeAgent answers as an agent with two endpoints and one policy would.
type fakeAgent struct {
	agentv1.UnimplementedAgentServer
	sick    bool   // not healthy, and policy is never enforced
	hostile string // stands in every text field of every answer
	settled chan string
}

// serve starts an agent on a socket of its own and returns the socket.
func serve(t testing.TB, a agentv1.AgentServer) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ptcli") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	agentv1.RegisterAgentServer(srv, a)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
			t.Errorf("fake agent: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return path
}

// poison puts the hostile text into every string of m.
func poison[M proto.Message](a *fakeAgent, m M) (M, error) {
	if a.hostile != "" {
		fill(m.ProtoReflect(), a.hostile)
	}
	return m, nil
}

func fill(m protoreflect.Message, text string) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapKey().Kind() == protoreflect.StringKind && f.MapValue().Kind() == protoreflect.StringKind {
				v.Map().Set(protoreflect.ValueOfString(text).MapKey(), protoreflect.ValueOfString(text))
			}
		case f.IsList():
			for i := range v.List().Len() {
				if f.Kind() == protoreflect.StringKind {
					v.List().Set(i, protoreflect.ValueOfString(text))
				} else if f.Message() != nil {
					fill(v.List().Get(i).Message(), text)
				}
			}
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString(text))
		case f.Message() != nil:
			fill(v.Message(), text)
		}
		return true
	})
}

func when(s string) *timestamppb.Timestamp {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return timestamppb.New(t)
}

func (a *fakeAgent) Status(context.Context, *agentv1.StatusRequest) (*agentv1.StatusResponse, error) {
	st := &agentv1.StatusResponse{
		Version: "v0.1.0", NodeName: "node1", Started: when("2026-11-21T10:00:00Z"), PolicyRevision: 7, Healthy: true,
		Components: []*agentv1.Component{
			{Name: "datapath", State: "ok", Message: "4 programs on 3 devices"}, {Name: "kvstore", State: "ok", Message: "embedded etcd"},
		},
		EndpointPhases: map[string]uint32{"ready": 2, "not-ready": 0},
	}
	if a.sick {
		st.Healthy = false
		st.EndpointPhases = map[string]uint32{"ready": 1, "not-ready": 1}
		st.Fallbacks = []string{"TCX links need kernel 6.6: clsact filters are used"}
		st.Trial = &agentv1.PolicyTrial{
			Revision: 8, Until: when("2026-11-21T10:20:00Z"), Left: durationpb.New(42 * time.Second),
			Changed: []*agentv1.PolicyRef{{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "allow-empire"}},
		}
		st.Alarms = []string{"map policy_peers is full: endpoint 12 is locked down"}
	}
	return poison(a, st)
}

func endpoints() []*agentv1.Endpoint {
	return []*agentv1.Endpoint{
		{
			Id: 11, ContainerId: "c0ffee", Ifname: "eth0", Netns: "/run/netns/deathstar", Namespace: "default", Pod: "deathstar",
			Labels:         []string{"k8s:class=deathstar", "k8s:org=empire", "k8s:io.kubernetes.pod.namespace=default", "k8s:pod-template-hash=1"},
			SecurityLabels: []string{"k8s:class=deathstar", "k8s:org=empire", "k8s:io.kubernetes.pod.namespace=default"},
			Identity:       1003, Ipv4: "10.1.0.7", Ipv6: "fd00:1::7", Device: "pn1a2b", Ifindex: 12, Mac: "02:00:00:00:00:07", Phase: "ready",
			IngressEnforced: true, PolicyRevision: 7, Created: when("2026-11-21T10:01:00Z"),
		},
		{
			Id: 12, ContainerId: "facade", Ifname: "eth0", Netns: "/run/netns/xwing", Namespace: "default", Pod: "xwing",
			Labels: []string{"k8s:class=xwing"}, SecurityLabels: []string{"k8s:class=xwing"}, Identity: 1002, Ipv4: "10.1.0.6", Device: "pn3c4d", Ifindex: 14,
			Mac: "02:00:00:00:00:06", Phase: "not-ready", Message: "identity: the store does not answer", Created: when("2026-11-21T10:02:00Z"),
		},
	}
}

func (a *fakeAgent) ListEndpoints(_ context.Context, req *agentv1.ListEndpointsRequest) (*agentv1.ListEndpointsResponse, error) {
	r := &agentv1.ListEndpointsResponse{}
	for _, ep := range endpoints() {
		if !slices.ContainsFunc(req.GetLabels(), func(l string) bool { return !slices.Contains(ep.GetLabels(), l) }) {
			r.Endpoints = append(r.Endpoints, ep)
		}
	}
	return poison(a, r)
}

func (a *fakeAgent) GetEndpoint(_ context.Context, req *agentv1.GetEndpointRequest) (*agentv1.Endpoint, error) {
	for _, ep := range endpoints() {
		if slices.Contains([]string{fmt.Sprint(ep.GetId()), "pod-name:" + ep.GetNamespace() + "/" + ep.GetPod(), "ipv4:" + ep.GetIpv4(), "ipv6:" + ep.GetIpv6()}, req.GetId()) {
			return poison(a, ep)
		}
	}
	return nil, status.Errorf(codes.NotFound, "endpoint %s%s: not found on this node; 'porin endpoint list' shows those there are", req.GetId(), a.hostile)
}

func (a *fakeAgent) SetEndpointLabels(ctx context.Context, req *agentv1.SetEndpointLabelsRequest) (*agentv1.Endpoint, error) {
	ep, err := a.GetEndpoint(ctx, &agentv1.GetEndpointRequest{Id: req.GetId()})
	if err != nil {
		return nil, err
	}
	ep.Labels = slices.DeleteFunc(append(ep.Labels, req.GetAdd()...), func(l string) bool { return slices.Contains(req.GetDelete(), l) })
	ep.SecurityLabels = ep.Labels
	return ep, nil
}

func (a *fakeAgent) EndpointLog(context.Context, *agentv1.GetEndpointRequest) (*agentv1.EndpointLogResponse, error) {
	return poison(a, &agentv1.EndpointLogResponse{Entries: []*agentv1.LogEntry{
		{Time: when("2026-11-21T10:01:00Z"), Phase: "creating", Message: "requested"}, {Time: when("2026-11-21T10:01:00.004Z"), Phase: "ready", Message: "policy revision 7"},
	}})
}

func (a *fakeAgent) EndpointHealth(context.Context, *agentv1.GetEndpointRequest) (*agentv1.EndpointHealthResponse, error) {
	return poison(a, &agentv1.EndpointHealthResponse{Endpoint: "ok", Policy: "ok", Overall: "ok", Connected: true, Message: "m"})
}

func (a *fakeAgent) DisconnectEndpoint(ctx context.Context, req *agentv1.GetEndpointRequest) (*agentv1.Endpoint, error) {
	ep, err := a.GetEndpoint(ctx, req)
	if err == nil {
		ep.Phase = "disconnecting"
	}
	return ep, err
}

func (a *fakeAgent) ListIdentities(context.Context, *agentv1.ListIdentitiesRequest) (*agentv1.ListIdentitiesResponse, error) {
	return poison(a, &agentv1.ListIdentitiesResponse{Identities: []*agentv1.Identity{
		{Id: 1, Labels: []string{"reserved:host"}},
		{Id: 1002, Labels: []string{"k8s:class=xwing"}, Endpoints: 1},
		{Id: 16777217, Labels: []string{"cidr:203.0.113.0/24", "reserved:world-ipv4"}, Prefix: "203.0.113.0/24"},
	}})
}

func (a *fakeAgent) GetIdentity(ctx context.Context, req *agentv1.GetIdentityRequest) (*agentv1.Identity, error) {
	r, err := a.ListIdentities(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, id := range r.GetIdentities() {
		if id.GetId() == req.GetId() || len(req.GetLabels()) > 0 && slices.Equal(req.GetLabels(), id.GetLabels()) {
			return id, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "identity %d: not known on this node", req.GetId())
}

// baseName is the file's name without its end; it stands for the name of the policy in it.
func baseName(file string) string {
	return strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
}

func (a *fakeAgent) ApplyPolicy(_ context.Context, req *agentv1.ApplyPolicyRequest) (*agentv1.PolicyRevision, error) {
	r := &agentv1.PolicyRevision{Revision: 8, Endpoints: 2}
	for _, f := range req.GetFiles() {
		if strings.Contains(string(f.GetContent()), "wrong") {
			return nil, status.Errorf(codes.InvalidArgument, "%s:3: spec.wrong: no such field%s\n%s:9: spec.ingress[0].toPorts[0].ports[0].port: \"x\" is not a port", f.GetName(), a.hostile, f.GetName())
		}
		r.Changed = append(r.Changed, &agentv1.PolicyRef{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: baseName(f.GetName())})
	}
	return poison(a, r)
}

func (a *fakeAgent) DeletePolicy(_ context.Context, req *agentv1.DeletePolicyRequest) (*agentv1.PolicyRevision, error) {
	r := &agentv1.PolicyRevision{Revision: 9, Endpoints: 1, Changed: req.GetPolicies()}
	for _, f := range req.GetFiles() {
		r.Changed = append(r.Changed, &agentv1.PolicyRef{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: baseName(f.GetName())})
	}
	for _, p := range req.GetPolicies() {
		if p.GetName() == "missing" {
			return nil, status.Errorf(codes.NotFound, "policy %s/%s: not in force", p.GetNamespace(), p.GetName())
		}
	}
	return poison(a, r)
}

func (a *fakeAgent) WaitPolicy(_ context.Context, req *agentv1.WaitPolicyRequest) (*agentv1.PolicyRevision, error) {
	if a.sick {
		return nil, status.Errorf(codes.DeadlineExceeded, "endpoint 12 (default/xwing) still enforces revision 6")
	}
	return &agentv1.PolicyRevision{Revision: max(req.GetRevision(), 7), Endpoints: 2}, nil
}

func (a *fakeAgent) CheckPolicy(ctx context.Context, req *agentv1.ApplyPolicyRequest) (*agentv1.PolicyRevision, error) {
	r, err := a.ApplyPolicy(ctx, req)
	if err == nil {
		r.Revision = 7
	}
	return r, err
}

func (a *fakeAgent) TryPolicy(ctx context.Context, req *agentv1.TryPolicyRequest) (*agentv1.PolicyTrial, error) {
	r, err := a.ApplyPolicy(ctx, req.GetApply())
	if req.GetDelete() != nil {
		r, err = a.DeletePolicy(ctx, req.GetDelete())
	}
	if err != nil {
		return nil, err
	}
	return poison(a, &agentv1.PolicyTrial{Revision: r.GetRevision(), Changed: r.GetChanged(), Until: when("2026-11-21T10:20:00Z"), Left: req.GetConfirmWithin()})
}

func (a *fakeAgent) ConfirmPolicy(_ context.Context, req *agentv1.SettlePolicyRequest) (*agentv1.PolicyRevision, error) {
	if a.settled != nil {
		a.settled <- "confirmed"
	}
	return a.settle("confirm", req)
}

func (a *fakeAgent) RollbackPolicy(_ context.Context, req *agentv1.SettlePolicyRequest) (*agentv1.PolicyRevision, error) {
	if a.settled != nil {
		a.settled <- "rolled back"
	}
	return a.settle("roll back", req)
}

func (a *fakeAgent) settle(verb string, req *agentv1.SettlePolicyRequest) (*agentv1.PolicyRevision, error) {
	if n := req.GetRevision(); n != 0 && n != 8 {
		return nil, status.Errorf(codes.NotFound, "%s revision %d: the change that waits is revision 8: it is not on trial", verb, n)
	}
	return poison(a, &agentv1.PolicyRevision{Revision: 8, Endpoints: 2, Changed: []*agentv1.PolicyRef{{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "allow-empire"}}})
}

func (a *fakeAgent) ListPolicies(context.Context, *agentv1.ListPoliciesRequest) (*agentv1.ListPoliciesResponse, error) {
	return poison(a, &agentv1.ListPoliciesResponse{Revision: 7, Policies: []*agentv1.Policy{{
		Ref: &agentv1.PolicyRef{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "allow-empire"}, Source: "api", Revision: 7, Rules: 1, Endpoints: 1,
		Yaml: "kind: CiliumNetworkPolicy\nmetadata: {name: allow-empire}\n",
	}}})
}

func (a *fakeAgent) ListIPs(context.Context, *agentv1.ListIPsRequest) (*agentv1.Table, error) {
	return poison(a, &agentv1.Table{Columns: []string{"PREFIX", "IDENTITY", "NAME"}, Rows: []*agentv1.Row{{Cells: []string{"10.1.0.6/32", "1002", "default/xwing"}}, {Cells: []string{"0.0.0.0/0", "9", ""}}}})
}

func (a *fakeAgent) ListNodes(context.Context, *agentv1.ListNodesRequest) (*agentv1.Table, error) {
	return poison(a, &agentv1.Table{Columns: []string{"NODE", "IPV4 RANGE"}, Rows: []*agentv1.Row{{Cells: []string{"node1", "10.1.0.0/24"}}}})
}

func (a *fakeAgent) ListMetrics(_ context.Context, req *agentv1.ListMetricsRequest) (*agentv1.Table, error) {
	return poison(a, &agentv1.Table{Columns: []string{"METRIC", "LABELS", "VALUE"}, Rows: []*agentv1.Row{{Cells: []string{"porin_" + req.GetPattern(), `reason="Policy denied"`, "3"}}}})
}

func (a *fakeAgent) GetConfig(context.Context, *agentv1.GetConfigRequest) (*agentv1.Config, error) {
	return poison(a, &agentv1.Config{Values: map[string]string{"mtu": "1500", "policy-audit-mode": "false"}, Changeable: []string{"policy-audit-mode"}})
}

func (a *fakeAgent) SetConfig(_ context.Context, req *agentv1.SetConfigRequest) (*agentv1.Config, error) {
	if _, ok := req.GetValues()["mtu"]; ok {
		return nil, status.Error(codes.FailedPrecondition, "setting mtu: changed only at the agent's start")
	}
	return &agentv1.Config{Values: req.GetValues(), Changeable: []string{"policy-audit-mode"}}, nil
}

// ListMap sends one row a message, as an agent with a large map sends many.
func (a *fakeAgent) ListMap(req *agentv1.ListMapRequest, s agentv1.Agent_ListMapServer) error {
	for i, addr := range []string{"10.1.0.6", "10.1.0.7"} {
		if req.GetKey() != "" && req.GetKey() != addr {
			continue
		}
		t := &agentv1.Table{Rows: []*agentv1.Row{{Cells: []string{req.GetMap(), addr, fmt.Sprint(i)}}}}
		if i == 0 || req.GetKey() != "" {
			t.Columns = []string{"MAP", "ADDRESS", "ROW"}
		}
		t, _ = poison(a, t)
		if err := s.Send(t); err != nil {
			return err
		}
	}
	return nil
}

func (a *fakeAgent) FlushMap(context.Context, *agentv1.FlushMapRequest) (*agentv1.FlushMapResponse, error) {
	return &agentv1.FlushMapResponse{Deleted: 42}, nil
}

func (a *fakeAgent) DumpTable(_ context.Context, req *agentv1.DumpTableRequest) (*agentv1.DumpTableResponse, error) {
	switch req.GetTable() {
	case "":
		return poison(a, &agentv1.DumpTableResponse{Tables: []string{"endpoints", "identities"}})
	case "endpoints":
		row := fmt.Sprintf(`{"id":11,"pod":"deathstar%s","labels":[{"source":"k8s","key":"org"}]}`, strings.NewReplacer("\x1b", `\u001b`, "\n", `\n`, "\x00", "").Replace(a.hostile))
		return &agentv1.DumpTableResponse{Rows: []string{row, `{"id":12,"phase":"ready","pod":"xwing"}`}}, nil
	case "health":
		if a.sick {
			break // asks nobody
		}
		return &agentv1.DumpTableResponse{Rows: []string{
			`{"node":"node1","kind":"node","address":"172.31.0.11","local":true,"icmp":{"ok":true,"rtt":20000,"since":"2026-11-21T10:00:00Z"},"http":{"ok":true,"rtt":150000,"since":"2026-11-21T10:00:00Z"}}`,
			fmt.Sprintf(`{"node":"node2","kind":"endpoint","address":"10.2.0.9","icmp":{"ok":true,"rtt":310000,"since":"2026-11-21T10:00:00Z"},"http":{"ok":false,"rtt":0,"error":"ask 10.2.0.9: no answer%s","since":"2026-11-21T10:00:00Z"}}`, strings.NewReplacer("\x1b", `\u001b`, "\n", `\n`, "\x00", "").Replace(a.hostile)),
		}}, nil
	}
	return nil, status.Errorf(codes.NotFound, "table %q: no such table; 'porin db' lists them", req.GetTable())
}

func (a *fakeAgent) Monitor(req *agentv1.MonitorRequest, s agentv1.Agent_MonitorServer) error {
	f := &flowpb.Flow{
		Time: when("2026-11-21T10:15:04.000123Z"), Verdict: flowpb.Verdict_DROPPED, DropReason: 133, DropReasonDesc: flowpb.DropReason_POLICY_DENIED,
		IP:          &flowpb.IP{Source: "10.1.0.6", Destination: "10.1.0.7", IpVersion: flowpb.IPVersion_IPv4},
		L4:          &flowpb.Layer4{Protocol: &flowpb.Layer4_TCP{TCP: &flowpb.TCP{SourcePort: 41234, DestinationPort: 80, Flags: &flowpb.TCPFlags{SYN: true}}}},
		Source:      &flowpb.Endpoint{ID: 12, Identity: 1002, Namespace: "default", PodName: "xwing", Labels: []string{"k8s:class=xwing"}},
		Destination: &flowpb.Endpoint{ID: 11, Identity: 1003, Namespace: "default", PodName: "deathstar", Labels: []string{"k8s:class=deathstar"}},
		Type:        flowpb.FlowType_L3_L4, EventType: &flowpb.CiliumEventType{Type: 1, SubType: 133}, TrafficDirection: flowpb.TrafficDirection_INGRESS,
		IsReply: wrapperspb.Bool(false), Summary: "TCP Flags: SYN",
		IngressDeniedBy: []*flowpb.Policy{{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "allow-empire"}},
	}
	if req.GetSnap() {
		f.PorinSnap = []byte("\x02\x00\x00\x00\x00\x07\x02\x00\x00\x00\x00\x06\x08\x00\x1b[2J")
	}
	if len(req.GetFrom()) > 0 {
		f.Summary = fmt.Sprint("from ", req.GetFrom(), " to ", req.GetTo(), " related to ", req.GetRelatedTo(), " types ", req.GetTypes(), " last ", req.GetLast())
	}
	for _, m := range []*agentv1.MonitorResponse{
		{Event: &agentv1.MonitorResponse_Flow{Flow: f}},
		{Event: &agentv1.MonitorResponse_Lost{Lost: 5}},
		{Event: &agentv1.MonitorResponse_Agent{Agent: &agentv1.AgentEvent{Time: when("2026-11-21T10:15:05Z"), Type: "policy-updated", Text: "revision 8"}}},
	} {
		m, _ = poison(a, m)
		if err := s.Send(m); err != nil {
			return err
		}
	}
	if a.sick || req.GetPastOnly() {
		return nil // it stops
	}
	<-s.Context().Done()
	return nil
}
