package advise

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
)

func TestReadRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "f.yaml: the file is empty; it needs workloads"},
		{"not YAML", "workloads: [", "f.yaml:1: "},
		{"a list", "- a", "f.yaml:1: "},
		{"two documents", "name: a\n---\nname: b\n", "is one document"},
		{"a broken second document", "name: a\n---\n[", "is one document"},
		{"unknown field", "workload: []", `f.yaml:1: unknown field "workload" in the file`},
		{"unknown field of a check", "checks:\n  - {form: a}", `f.yaml:2: unknown field "form" in check`},
		{"family", "families: [ipx]", `families: "ipx": write ipv4 or ipv6`},
		{"no name", "workloads:\n  - {}", "f.yaml:2: workloads: name is missing"},
		{"replicas", "workloads: [{name: a, replicas: 100000}]", "replicas: 100000 is not from 1 to 1000"},
		{"merged in", "x: &x {checks: [{}]}\n<<: *x", "unknown field"},
		{"merged check", "workloads: []\n<<: {checks: [{from: a}]}", "f.yaml:1: checks: from and to are needed"},
		{"policy", "objects: [{inline: 'kind: X'}]", "f.yaml:1:inline:1: kind: \"X\" is not supported"},
		{"policy twice", "objects: [{file: p.yaml}, {file: ./p.yaml}]", "is already in p.yaml:1; applied together, one would replace the other"},
		{"file missing", "objects: [{file: q.yaml}]", "f.yaml:1: objects: file q.yaml: no such file; names are relative to this file"},
		{"setting", "agent: {policy-enforcement: sometimes}", `f.yaml: agent: policy enforcement "sometimes" is unknown`},
		{"label filter", `agent: {labels: "a("}`, "f.yaml: agent: label filter"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := Read("f.yaml", []byte(c.text), one)
			if err == nil {
				_, err = f.World(nil)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

// one is a folder with one policy.
func one(path string) ([]byte, error) {
	if path != "p.yaml" {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return []byte("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec: {endpointSelector: {}, ingress: []}\n"), nil
}

// TestSettings: what the file says of the agent decides here too.
func TestSettings(t *testing.T) {
	for _, c := range []struct{ agent, from, to, want string }{
		{"{}", "a", "b", "deny"},
		{"{policy-enforcement: never}", "a", "b", "allow"},
		{"{policy-audit-mode: true}", "a", "b", "audit"},
		{"{}", "host", "b", "allow"},
		{"{allow-localhost: policy}", "host", "b", "deny"},
		{"{}", "b", "a", "deny"}, // the policy selects every workload of the namespace
		{"{}", "b", "x/c", "allow"},
		{"{policy-enforcement: always}", "b", "x/c", "deny"},
		{`{labels: "!app"}`, "app=1", "x/c", "allow"},
	} {
		f, err := Read("f.yaml", []byte("agent: "+c.agent+"\nworkloads: [{name: a}, {name: b}, {name: c, namespace: x}]\nobjects: [{file: p.yaml}]\n"), one)
		if err != nil {
			t.Fatal(err)
		}
		w, err := f.World(nil)
		if err != nil {
			t.Fatal(err)
		}
		from, err := w.Find(c.from, "")
		to, err2 := w.Find(c.to, "")
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if got := w.Ask(from[0], to[0], Port{6, 80}).Word(); got != c.want {
			t.Errorf("%s: %s -> %s: %s, want %s", c.agent, c.from, c.to, got, c.want)
		}
	}
}

// TestNamespaceLabels: selectors see the labels of a workload's namespace and its service account.
func TestNamespaceLabels(t *testing.T) {
	w := world(t, `
namespaces: [{name: a, labels: {team: red}}, {name: b}]
workloads:
  - {name: x, namespace: a, serviceAccount: runner}
  - {name: y, namespace: b}
  - {name: z, namespace: b, serviceAccount: runner}
`, `
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {}
  ingress:
    - fromEndpoints:
        - matchLabels: {"k8s:io.cilium.k8s.namespace.labels.team": red, "k8s:io.cilium.k8s.policy.serviceaccount": runner}
`)
	cells, err := w.Matrix(w.Workloads(), w.Workloads(), []Port{{6, 80}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cells {
		if want := map[bool]string{true: "allow", false: "deny"}[c.From == "a/x"]; c.Verdict != want {
			t.Errorf("%s -> %s: %s, want %s", c.From, c.To, c.Verdict, want)
		}
	}
}

// FuzzRead: no file makes the reader or the questions that follow crash.
func FuzzRead(f *testing.F) {
	f.Add([]byte(people))
	f.Add([]byte("workloads: []\n<<: {checks: [{from: a}]}"))                                         // lists that are not where they seem to be
	f.Add([]byte("x: &a [*a]\nworkloads: *a"))                                                        // a circle
	f.Add([]byte("nodes: {a: b}\nworkloads: [{name: a, replicas: 3}]"))                               // nodes of another shape
	f.Add([]byte("workloads: [{name: a}]\nchecks: [{from: a, to: 10.0.0.1, expect: deny, port: 1}]")) // checks
	for _, name := range []string{"starwars", "cidr-egress", "host-access"} {
		data, err := os.ReadFile("../../../examples/" + name + "/lab.yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Read("f.yaml", data, one)
		if err != nil {
			return
		}
		w, err := file.World(nil)
		if err != nil {
			return
		}
		if _, err := w.Test("f.yaml", file.Checks); err != nil && err.Error() == "" {
			t.Error("an error without text")
		}
		if _, err := w.Lint(); err != nil {
			t.Error(err)
		}
	})
}
