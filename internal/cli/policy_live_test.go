package cli

import (
	"context"
	"strings"
	"testing"

	agentv1 "porin/api/agent/v1"
)

// liveAgent has the star wars in force.
type liveAgent struct {
	fakeAgent
	broken string // instead of the policy
}

func (a *liveAgent) GetConfig(context.Context, *agentv1.GetConfigRequest) (*agentv1.Config, error) {
	return &agentv1.Config{Values: map[string]string{"policy-enforcement": "default", "allow-localhost": "policy", "enable-ipv4": "true", "enable-ipv6": "true"}}, nil
}

func (a *liveAgent) ListEndpoints(context.Context, *agentv1.ListEndpointsRequest) (*agentv1.ListEndpointsResponse, error) {
	r := &agentv1.ListEndpointsResponse{}
	for i, pod := range []string{"deathstar", "tiefighter", "xwing"} {
		org := map[bool]string{true: "alliance", false: "empire"}[pod == "xwing"]
		r.Endpoints = append(r.Endpoints, &agentv1.Endpoint{
			Id: uint32(11 + i), Namespace: "default", Pod: pod, Identity: uint32(1000 + i), Ipv4: "10.1.0." + string(rune('5'+i)),
			SecurityLabels: []string{"k8s:class=" + pod, "k8s:org=" + org, "k8s:io.kubernetes.pod.namespace=default"},
			Labels:         []string{"k8s:org=none"},
		})
	}
	r.Endpoints[0].NamedPorts = []*agentv1.NamedPort{{Name: "exhaust", Protocol: "TCP", Port: 1138}}
	return r, nil
}

func (a *liveAgent) ListIdentities(context.Context, *agentv1.ListIdentitiesRequest) (*agentv1.ListIdentitiesResponse, error) {
	return &agentv1.ListIdentitiesResponse{Identities: []*agentv1.Identity{
		{Id: 1000, NamedPorts: []*agentv1.NamedPort{{Name: "exhaust", Protocol: "TCP", Port: 1138}}},
		{Id: 2000, Labels: []string{"k8s:class=yavin"}, NamedPorts: []*agentv1.NamedPort{{Name: "base", Protocol: "UDP", Port: 4}}},
	}}, nil
}

func (a *liveAgent) ListNodes(context.Context, *agentv1.ListNodesRequest) (*agentv1.Table, error) {
	return &agentv1.Table{Columns: []string{"NAME", "ADDRESSES"}, Rows: []*agentv1.Row{
		{Cells: []string{"here", "127.0.0.1,192.0.2.1"}}, {Cells: []string{"there", "192.0.2.2,2001:db8::2"}},
	}}, nil
}

func (a *liveAgent) ListPolicies(context.Context, *agentv1.ListPoliciesRequest) (*agentv1.ListPoliciesResponse, error) {
	text := `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: deathstar}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress:
    - fromEndpoints: [{matchLabels: {org: empire}}]
      toPorts: [{ports: [{port: "80", protocol: TCP}, {port: exhaust, protocol: TCP}]}]
`
	if a.broken != "" {
		text = a.broken
	}
	return &agentv1.ListPoliciesResponse{Policies: []*agentv1.Policy{{Ref: &agentv1.PolicyRef{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "deathstar"}, Yaml: text}}}, nil
}

// TestPolicyLive: with --live the questions are about the agent's endpoints, policies and settings.
func TestPolicyLive(t *testing.T) {
	t.Setenv(envSocket, serve(t, &liveAgent{}))
	for _, c := range []struct{ args, out string }{
		{"trace --from xwing --to default/deathstar --port 80", "DENY: default/xwing -> default/deathstar 80/TCP"},
		{"trace --from 10.1.0.6 --to 10.1.0.5 --port 80", "ALLOW: default/tiefighter -> default/deathstar 80/TCP"},        // an endpoint's address is that endpoint
		{"trace --from host --to deathstar --port 80", "DENY: reserved:host"},                                             // the agent's allow-localhost
		{"trace --from tiefighter --to deathstar --port 1138", "ALLOW: default/tiefighter -> default/deathstar 1138/TCP"}, // by its name
		{"trace --from tiefighter --to deathstar --port exhaust", "ALLOW: default/tiefighter -> default/deathstar 1138/TCP"},
		{"trace --from there --to deathstar --port 80", "DENY: there"},
		{"trace --from 192.0.2.2 --to deathstar --port 80", "DENY: there"}, // a node's address is that node
		{"trace --from here --to deathstar --port 80", "DENY: here"},
		{"explain --from xwing --to deathstar --port 80", "-> give default/xwing the label org=empire"},
		{"explain --from xwing --to deathstar --port 80", "(agent:CiliumNetworkPolicy:default/deathstar:8)"},
		{"matrix --port 80 -o list", "default/tiefighter  default/deathstar   80/TCP  allow"},
		{"reach --to deathstar", "default/tiefighter  default/deathstar  80/TCP"},
		{"lint", "nothing found"},
	} {
		code, out, errs := call(t.Context(), New(), "", append([]string{"policy"}, strings.Fields(c.args+" --live")...)...)
		if code != 0 || !strings.Contains(out, c.out) {
			t.Errorf("%s: exit %d\n%s%swant %s", c.args, code, out, errs, c.out)
		}
	}
	t.Setenv(envSocket, serve(t, &liveAgent{broken: "kind: X"}))
	if code, _, errs := call(t.Context(), New(), "", "policy", "matrix", "--live"); code != exitFailed || !strings.Contains(errs, "policy CiliumNetworkPolicy default/deathstar of the agent: ") {
		t.Errorf("a policy that cannot be read: exit %d, %s", code, errs)
	}
	t.Setenv(envSocket, t.TempDir()+"/none")
	if code, _, _ := call(t.Context(), New(), "", "policy", "reach", "--live", "--to", "x"); code != exitUnreachable {
		t.Errorf("no agent: exit %d", code)
	}
}

// TestPolicyOfflineIsSafe: names that somebody else chose reach the terminal escaped.
func TestPolicyOfflineIsSafe(t *testing.T) {
	for _, h := range hostile() {
		a := &liveAgent{fakeAgent: fakeAgent{hostile: h}, broken: "kind: \"" + strings.NewReplacer("\x1b", `\e`, "\n", `\n`, "\r", `\r`, "\x07", `\a`, "\t", `\t`).Replace(h) + "\""}
		t.Setenv(envSocket, serve(t, a))
		for _, args := range []string{"matrix --live", "trace --live --from \x1b[2J --to x", "reach --live --to " + strings.ReplaceAll(strings.ReplaceAll(h, "\n", ""), "\t", "")} {
			_, out, errs := call(t.Context(), New(), "", append([]string{"policy"}, strings.Fields(args)...)...)
			for _, r := range out + errs {
				if r != '\n' && (r < 0x20 || r >= 0x7f && r < 0xa0 || r == 0x202e || r == 0x2028) {
					t.Errorf("%q printed %U", args, r)
				}
			}
			if out+errs == "" {
				t.Errorf("%q printed nothing", args)
			}
		}
	}
}
