package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	agentv1 "porin/api/agent/v1"
	flowpb "porin/api/flow"
)

// person is a shell in front of which somebody sits.
func person() *shell {
	s := &shell{isRoot: func() bool { return true }, interactive: func(stream any) bool { _, out := stream.(io.Writer); return !out }}
	return s
}

func policyFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "allow-empire.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConfirmHere: the person in front of the command confirms with Enter, or takes the change back with an interrupt;
// one whose terminal is gone does neither, and the agent's time decides.
func TestConfirmHere(t *testing.T) {
	file := policyFile(t, "a: b")
	for _, c := range []struct {
		name, in string
		hangup   bool
		within   string
		settled  string
		code     int
		out, err string
	}{
		{name: "enter", in: "\n", within: "1h", settled: "confirmed", out: "confirmed revision 8\n"},
		{name: "any line", in: "yes it does\n", within: "1h", settled: "confirmed", out: "confirmed revision 8\n"},
		{name: "interrupt", within: "1h", hangup: true, settled: "rolled back", code: exitFailed, err: "interrupted: the change is taken back\n"},
		{name: "end of the terminal", in: "no line", within: "1s", code: exitFailed, err: "revision 8 was not confirmed in time: the agent takes it back\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &fakeAgent{settled: make(chan string, 1)}
			t.Setenv(envSocket, serve(t, a))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var in io.Reader = strings.NewReader(c.in)
			if c.hangup {
				r, w := io.Pipe()
				defer w.Close()
				in = r
			}
			var out bytes.Buffer
			errs := &waiter{text: "Enter keeps the change", seen: func() {
				if c.hangup {
					cancel()
				}
			}}
			code := run(ctx, person().root(), []string{"policy", "apply", "--confirm-within", c.within, file}, in, &out, errs)
			if code != c.code || !strings.HasSuffix(out.String(), c.out) || !strings.Contains(errs.String(), c.err) {
				t.Errorf("exit %d\n%s%s", code, out.String(), errs.String())
			}
			got := ""
			select {
			case got = <-a.settled:
			default:
			}
			if got != c.settled {
				t.Errorf("%q, want %q", got, c.settled)
			}
		})
	}
}

// dryAgent remembers flows, and must not be asked to change anything.
type dryAgent struct {
	liveAgent
	t *testing.T
}

func (a *dryAgent) ApplyPolicy(context.Context, *agentv1.ApplyPolicyRequest) (*agentv1.PolicyRevision, error) {
	a.t.Error("a dry run applied")
	return &agentv1.PolicyRevision{}, nil
}

func (a *dryAgent) CheckPolicy(context.Context, *agentv1.ApplyPolicyRequest) (*agentv1.PolicyRevision, error) {
	return &agentv1.PolicyRevision{Revision: 7, Changed: []*agentv1.PolicyRef{{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "deathstar"}}}, nil
}

func (a *dryAgent) Monitor(req *agentv1.MonitorRequest, s grpc.ServerStreamingServer[agentv1.MonitorResponse]) error {
	if !req.GetPastOnly() || req.GetLast() != flowRing {
		a.t.Errorf("asked for %v", req)
	}
	side := func(pod string, id uint32) *flowpb.Endpoint {
		return &flowpb.Endpoint{Namespace: "default", PodName: pod, Identity: id, Labels: []string{"k8s:class=" + pod, "k8s:io.kubernetes.pod.namespace=default"}}
	}
	tcp := &flowpb.Layer4{Protocol: &flowpb.Layer4_TCP{TCP: &flowpb.TCP{SourcePort: 40000, DestinationPort: 80}}}
	flow := func(from, to *flowpb.Endpoint, src string, v flowpb.Verdict) *flowpb.Flow {
		return &flowpb.Flow{Time: when("2026-11-21T10:15:04Z"), Verdict: v, Source: from, Destination: to, IP: &flowpb.IP{Source: src, Destination: "10.1.0.5"}, L4: tcp}
	}
	denied := flow(side("xwing", 1002), side("deathstar", 1000), "10.1.0.7", flowpb.Verdict_DROPPED)
	denied.DropReasonDesc = flowpb.DropReason_POLICY_DENIED
	broken := flow(side("xwing", 1002), side("deathstar", 1000), "10.1.0.7", flowpb.Verdict_DROPPED)
	broken.DropReasonDesc = flowpb.DropReason_INVALID_SOURCE_IP
	world := flow(&flowpb.Endpoint{Identity: 9, Labels: []string{"reserved:world-ipv4"}}, side("deathstar", 1000), "203.0.113.9", flowpb.Verdict_DROPPED)
	world.DropReasonDesc = flowpb.DropReason_POLICY_DENIED
	gone := flow(side("gone", 1009), side("deathstar", 1000), "10.1.0.9", flowpb.Verdict_DROPPED)
	gone.DropReasonDesc = flowpb.DropReason_POLICY_DENIED
	for _, f := range []*flowpb.Flow{flow(side("tiefighter", 1001), side("deathstar", 1000), "10.1.0.6", flowpb.Verdict_FORWARDED), denied, denied, broken, world, gone} {
		if err := s.Send(&agentv1.MonitorResponse{Event: &agentv1.MonitorResponse_Flow{Flow: f}}); err != nil {
			return err
		}
	}
	return nil
}

// TestDryRun: nothing changes; the verdicts and the recorded connections that would are told.
func TestDryRun(t *testing.T) {
	t.Setenv(envSocket, serve(t, &dryAgent{t: t}))
	file := policyFile(t, `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: deathstar}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress:
    - fromEndpoints: [{matchLabels: {org: alliance}}]
      toPorts: [{ports: [{port: "80", protocol: TCP}]}]
    - fromCIDR: [203.0.113.0/24]
`)
	code, out, errs := call(t.Context(), New(), "", "policy", "apply", "--dry-run", file)
	for _, want := range []string{
		"would change CiliumNetworkPolicy default/deathstar\n",
		"default/tiefighter  default/deathstar  80/TCP, 1138/TCP  allow  deny   CiliumNetworkPolicy default/deathstar ingress (",
		"default/xwing       default/deathstar  80/TCP            deny   allow  CiliumNetworkPolicy default/deathstar ingress[0]",
		"203.0.113.0/24      default/deathstar  everything        deny   allow",
		"of 4 recorded connections, 3 would be judged otherwise:\n",
		"203.0.113.9         default/deathstar  80/TCP  deny   allow  1     2026-11-21T10:15:04Z  CiliumNetworkPolicy default/deathstar ingress[1]",
		"default/xwing       default/deathstar  80/TCP  deny   allow  2     2026-11-21T10:15:04Z",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if code != 0 || t.Failed() {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	code, out, _ = call(t.Context(), New(), "", "policy", "apply", "--dry-run", "--exit-code", "-o", "json", file)
	var r struct {
		Changed         []struct{ Name string }
		Verdicts, Flows []struct{ From, Old, New string }
		Recorded        int
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitFailed || r.Recorded != 4 || len(r.Flows) != 3 || len(r.Verdicts) != 3 || len(r.Changed) != 1 {
		t.Errorf("exit %d, %v\n%s", code, err, out)
	}
	for args, want := range map[string]string{
		"--dry-run --confirm-within 1m " + file: "leave --confirm-within out",
		"--exit-code " + file:                   "--exit-code belongs to --dry-run",
		"--confirm-within 1ms " + file:          "give whoever confirms a second",
		"--confirm-within 0s " + file:           "give whoever confirms a second",
	} {
		if code, _, errs := call(t.Context(), New(), "", append([]string{"policy", "apply"}, strings.Fields(args)...)...); code != exitUsage || !strings.Contains(errs, want) {
			t.Errorf("%s: exit %d, %s", args, code, errs)
		}
	}
}
