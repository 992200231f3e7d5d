package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTraceWithOldFlags: ends and ports in the words of 'cilium policy trace'.
func TestTraceWithOldFlags(t *testing.T) {
	t.Setenv(envSocket, serve(t, &liveAgent{}))
	pod := filepath.Join(t.TempDir(), "pod.yaml")
	deployment := filepath.Join(t.TempDir(), "deployment.yaml")
	for path, text := range map[string]string{
		pod:        "kind: Pod\nmetadata: {name: x, labels: {org: empire, class: shuttle}}\n",
		deployment: "kind: Deployment\nmetadata: {name: x, namespace: default, labels: {org: none}}\nspec: {template: {metadata: {labels: {org: alliance}}}}\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"-s k8s:org=empire -d k8s:class=deathstar --dport 80/tcp", 0, "ALLOW: default/org=empire -> default/class=deathstar 80/TCP"},
		{"-s org=empire,any:class=x -d any:org=empire,class=deathstar --dport 80/tcp", 0, "ALLOW"},
		{"--src-k8s-pod default:tiefighter --dst-k8s-pod default:deathstar --dport 80", 0, "ALLOW: default/tiefighter -> default/deathstar 80/TCP"},
		{"--src-identity 1002 --dst-identity 1000 --dport 80/tcp", 0, "DENY: default/xwing -> default/deathstar 80/TCP"},
		{"--src-identity 2 --dst-identity 1000", exitUsage, "ask about one of them"},
		{"--src-identity 1 --dst-identity 1000", 0, "DENY: reserved:host -> default/deathstar 80/TCP"},
		{"-s reserved:host --dst-identity 1000 --dport 80,81", 0, "DENY: reserved:host -> default/deathstar 81/TCP"},
		{"--src-endpoint 12 --dst-endpoint 11", 0, "-> default/deathstar 80/TCP"},
		{"--src-k8s-yaml " + pod + " --dst-k8s-pod default:deathstar", 0, "ALLOW: default/class=shuttle,org=empire -> default/deathstar 80/TCP"},
		{"--src-k8s-yaml " + deployment + " --dst-k8s-pod default:deathstar", 0, "DENY: default/org=alliance -> default/deathstar 80/TCP"},
		{"-s org=empire --from xwing --to deathstar", exitUsage, "named by --from already"},
		{"-s org=empire --src-identity 1002 --to deathstar", exitUsage, "name the end in one way"},
		{"--src-k8s-pod deathstar --to deathstar", exitUsage, "write namespace:name"},
		{"--src-endpoint x --to deathstar", exitUsage, "not a number"},
		{"--dport 80 --port 81 --live --from xwing --to deathstar", exitUsage, "named by --port already"},
		{"-s org=empire --to deathstar -v", 0, "ALLOW"},
	} {
		code, out, errs := call(t.Context(), New(), "", append([]string{"policy", "trace"}, strings.Fields(c.args)...)...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%s: exit %d, want %d with %q\n%s%s", c.args, code, c.code, c.want, out, errs)
		}
	}
}

func TestSelectors(t *testing.T) {
	t.Setenv(envSocket, serve(t, &liveAgent{}))
	code, out, errs := call(t.Context(), New(), "", "policy", "selectors")
	if code != 0 || !strings.Contains(out, "org=empire}  1      2        default/deathstar, default/tiefighter") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}
