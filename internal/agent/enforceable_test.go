package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"porin/internal/policy"
)

func ciliumDoc(kind, name, body string) string {
	return "apiVersion: cilium.io/v2\nkind: " + kind + "\nmetadata: {name: " + name + "}\nspec:\n  " + body + "\n"
}

// TestHostPolicyIsRefused: a document that would only look like protection does not come in, by neither way.
func TestHostPolicyIsRefused(t *testing.T) {
	doc := ciliumDoc(policy.KindClusterwideNetworkPolicy, "nodes", "{nodeSelector: {}, ingress: []}")
	want := "host.yaml:5: spec.nodeSelector: this agent cannot protect nodes yet"
	_, err := parse("host.yaml", []byte(doc))
	var at *policy.FieldError
	if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &at) {
		t.Errorf("%v, want %s", err, want)
	}
	if _, err := parse("host.yaml", []byte("a: ["+doc)); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is no policy: %v", err)
	}
	h := newHouse(t, true)
	path := filepath.Join(h.folder, "host.yaml")
	if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.scan(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(h.kernel.inForce) != 0 {
		t.Errorf("in force: %v", h.kernel.inForce)
	}
	if alarms := strings.Join(h.Alarms(), "\n"); !strings.Contains(alarms, "cannot protect nodes yet") {
		t.Errorf("alarms %q", alarms)
	}
}

// TestNodeLabelsAreRefusedWhereTheyWouldWiden: nodes are not told apart here, so a deny would miss them, and an allow of
// those without a label would mean all.
func TestNodeLabelsAreRefusedWhereTheyWouldWiden(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{"ingress: [{fromNodes: [{}]}]", ""},
		{"ingress: [{fromNodes: [{matchLabels: {zone: a}}]}]", ""}, // denied; see TestLacking
		{"ingress: [{fromNodes: [{matchLabels: {zone: a}, matchExpressions: [{key: b, operator: DoesNotExist}]}]}]", ""},
		{"ingressDeny: [{fromNodes: [{}]}]", ""},
		{"ingressDeny: [{fromNodes: [{matchLabels: {zone: a}}]}]", "p.yaml:5: nodes: this agent does not tell nodes apart"},
		{"egress: [{toNodes: [{matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}]}]", "would allow every node"},
		{"egress: [{toNodes: [{matchExpressions: [{key: zone, operator: DoesNotExist}]}]}]", "would allow every node"},
	} {
		_, err := parse("p.yaml", []byte(ciliumDoc(policy.KindNetworkPolicy, "p", "{endpointSelector: {}, "+c.body+"}")))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.body, err, c.want)
		}
	}
}

// TestLacking: what only denies because a part of porin is missing is taken, and an alarm names the policy and why.
func TestLacking(t *testing.T) {
	h := newHouse(t, false)
	h.begin(context.Background())
	for _, c := range []struct{ name, entry, want string }{
		{"a-plain", "{toEndpoints: [{}], toPorts: [{ports: [{port: 80}]}]}", ""},
		{"b-names", "{toFQDNs: [{matchName: example.com}]}", "CiliumNetworkPolicy default/b-names: DNS names: nothing looks them up yet"},
		{"c-auth", "{toEntities: [all], authentication: {mode: required}}", "CiliumNetworkPolicy default/c-auth: authentication: nobody proves"},
		{"c-nodes", "{toNodes: [{matchLabels: {zone: a}}]}", "CiliumNetworkPolicy default/c-nodes: labels of nodes: nodes are not told apart"},
		{"d-free", "{toEntities: [all], authentication: {mode: disabled}}", ""},
		{"e-http", "{toPorts: [{ports: [{port: 80, protocol: TCP}, {port: 81, protocol: TCP}], rules: {http: [{method: GET}]}}]}", "CiliumNetworkPolicy default/e-http: layer 7: there is no proxy yet"},
		{"f-sni", "{toPorts: [{ports: [{port: 443, protocol: TCP}], serverNames: [example.com]}]}", "CiliumNetworkPolicy default/f-sni: layer 7: there is no proxy yet"},
	} {
		ps, err := parse("p.yaml", []byte(ciliumDoc(policy.KindNetworkPolicy, c.name, "{endpointSelector: {}, egress: ["+c.entry+"]}")))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := h.Apply(context.Background(), ps); err != nil {
			t.Fatal(err)
		}
		got := h.Alarms()
		if c.want == "" && len(got) != 0 || c.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], c.want)) {
			t.Errorf("%s: alarms %q, want %q", c.name, got, c.want)
		}
		if _, _, err := h.Delete(context.Background(), []policy.Ref{ps[0].Ref}); err != nil {
			t.Fatal(err)
		}
	}
	if got := h.Alarms(); len(got) != 0 {
		t.Errorf("alarms stay: %q", got)
	}
}
