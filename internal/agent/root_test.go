package agent

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "porin/api/agent/v1"
	"porin/internal/cni"
)

// longest is how long anything may take that must work, on a busy machine.
const longest = 30 * time.Second

// port on which test pods serve.
const port = 8080

// webFromA lets app=a, and nobody else, reach app=web.
const webFromA = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web-from-a, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: a}}]
`

func (n *testNode) apply(text string) {
	n.t.Helper()
	rev, err := n.ApplyPolicy(n.t.Context(), &agentv1.ApplyPolicyRequest{Files: []*agentv1.ManifestFile{{Name: "p.yaml", Content: []byte(text)}}})
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.WaitPolicy(n.t.Context(), &agentv1.WaitPolicyRequest{Revision: rev.GetRevision()}); err != nil {
		n.t.Fatal(err)
	}
}

// reaches checks who can talk to whom, over both families.
func reaches(t *testing.T, from, to pod, want bool) {
	t.Helper()
	for _, addr := range []string{to.v4, to.v6} {
		wait := longest
		if !want {
			wait = 700 * time.Millisecond
		}
		conn, err := from.dial(addr, port, wait)
		if err == nil {
			conn.Close()
		}
		if (err == nil) != want {
			t.Errorf("%s to %s (%s): %v, want connected %v", from.name, to.name, addr, err, want)
		}
	}
}

// echoes sends a line over an open connection and waits for it to come back.
func echoes(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(longest))
	if _, err := conn.Write([]byte("ping\n")); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && line != "ping\n" {
		err = errors.New("echo of " + line)
	}
	return err
}

// The life of a node: pods come, policy denies, the agent is killed, is away, comes back; pods go.
func TestRootLife(t *testing.T) {
	n := newTestNode(t)
	n.ready()
	news, err := n.Monitor(t.Context(), &agentv1.MonitorRequest{Types: []string{"agent"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := news.Header(); err != nil {
		t.Fatal(err)
	}
	a, b, web := n.pod("a", "a"), n.pod("b", "b"), n.pod("web", "web")
	for {
		msg, err := news.Recv()
		if err != nil {
			t.Fatalf("no word of the first endpoint: %v", err)
		}
		if ev := msg.GetAgent(); ev.GetType() == "endpoint-ready" && strings.Contains(ev.GetText(), "default/a") {
			break
		}
	}
	web.serve(t, port)
	reaches(t, a, web, true)
	reaches(t, b, web, true)

	monitor, err := n.Monitor(t.Context(), &agentv1.MonitorRequest{Types: []string{"drop"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := monitor.Header(); err != nil {
		t.Fatal(err)
	}
	n.apply(webFromA)
	reaches(t, a, web, true)
	reaches(t, b, web, false)
	// web's last word on the connection that b closed before the policy came may be dropped too; nothing of a's ever is
	for {
		msg, err := monitor.Recv()
		if err != nil {
			t.Fatalf("no word of b's drop: %v", err)
		}
		f := msg.GetFlow()
		if f.GetSource().GetPodName() == "b" && f.GetDestination().GetPodName() == "web" {
			break
		}
		if f.GetSource().GetPodName() != "web" || f.GetDestination().GetPodName() != "b" {
			t.Errorf("dropped: %v", msg)
		}
	}

	held, err := a.dial(web.v4, port, longest)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	eps, err := n.ListEndpoints(t.Context(), &agentv1.ListEndpointsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	before := ids(eps)

	// killed: what was decided goes on
	n.kill()
	reaches(t, a, web, true)
	reaches(t, b, web, false)
	if err := echoes(held); err != nil {
		t.Errorf("connection while the agent is dead: %v", err)
	}

	// back: the same endpoints, identities, policies
	n.ready()
	if eps, err = n.ListEndpoints(t.Context(), &agentv1.ListEndpointsRequest{}); err != nil {
		t.Fatal(err)
	}
	if after := ids(eps); !slices.Equal(before, after) {
		t.Errorf("endpoints before %v, after %v", before, after)
	}
	ps, err := n.ListPolicies(t.Context(), &agentv1.ListPoliciesRequest{})
	if err != nil || len(ps.GetPolicies()) != 1 || ps.GetPolicies()[0].GetSource() != "api" || ps.GetPolicies()[0].GetEndpoints() != 1 {
		t.Errorf("policies after the restart: %v %v", ps, err)
	}
	reaches(t, a, web, true)
	reaches(t, b, web, false)
	if err := echoes(held); err != nil {
		t.Errorf("connection over the restart: %v", err)
	}

	// changed labels change the verdict
	if _, err := n.SetEndpointLabels(t.Context(), &agentv1.SetEndpointLabelsRequest{Id: "pod-name:default/b", Delete: []string{"k8s:app"}, Add: []string{"k8s:app=a"}}); err != nil {
		t.Fatal(err)
	}
	reaches(t, b, web, true)

	// audit mode lets pass and goes back
	if _, err := n.SetEndpointLabels(t.Context(), &agentv1.SetEndpointLabelsRequest{Id: "pod-name:default/b", Add: []string{"k8s:app=b"}}); err != nil {
		t.Fatal(err)
	}
	reaches(t, b, web, false)
	n.set("policy-audit-mode", "true")
	reaches(t, b, web, true)
	n.set("policy-audit-mode", "false")
	reaches(t, b, web, false)

	if _, err := n.DeletePolicy(t.Context(), &agentv1.DeletePolicyRequest{All: true}); err != nil {
		t.Fatal(err)
	}
	reaches(t, b, web, true)
	for _, p := range []pod{a, b, web} {
		if resp := n.call(cni.Request{Command: cni.Del, ContainerID: "c-" + p.name, IfName: "eth0"}); resp.Error != nil {
			t.Errorf("delete %s: %v", p.name, resp.Error)
		}
	}
	if eps, err = n.ListEndpoints(t.Context(), &agentv1.ListEndpointsRequest{}); err != nil || len(eps.GetEndpoints()) != 0 {
		t.Errorf("endpoints left: %v %v", eps, err)
	}
	if err := n.stop(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	for _, name := range []string{apiSocket, cniSocket, pidFile} {
		if _, err := os.Lstat(n.run(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left behind: %v", name, err)
		}
	}
}

func ids(eps *agentv1.ListEndpointsResponse) (out [][3]uint32) {
	for _, ep := range eps.GetEndpoints() {
		out = append(out, [3]uint32{ep.GetId(), ep.GetIdentity(), ep.GetIfindex()})
	}
	return out
}

func (n *testNode) set(key, value string) {
	n.t.Helper()
	if _, err := n.SetConfig(n.t.Context(), &agentv1.SetConfigRequest{Values: map[string]string{key: value}}); err != nil {
		n.t.Fatal(err)
	}
}

// The store is away when the agent starts: known workloads go on, those with known labels come, new label sets are
// told to come again.
func TestRootStoreAwayAtStart(t *testing.T) {
	n := newTestNode(t)
	n.ready()
	a, web := n.pod("a", "a"), n.pod("web", "web")
	web.serve(t, port)
	n.apply(webFromA)
	n.kill()

	n.extra = []string{"--kvstore=unix://" + filepath.Join(n.dir, "nobody.sock")}
	n.answering()
	again := n.pod("again", "a")
	reaches(t, a, web, true)
	reaches(t, again, web, true)
	h := hold(t, "pod")
	resp := n.call(n.request("fresh", h, "never-seen")) // which has a limit: the store is not waited for without end
	if resp.Error == nil || resp.Error.Code != cni.CodeTryAgainLater || !strings.Contains(resp.Error.Details, "nobody.sock") {
		t.Errorf("new label set without a store: %v; want a retryable error that names the store", resp.Error)
	}
	st, err := n.Status(t.Context(), &agentv1.StatusRequest{})
	if err != nil || st.GetHealthy() {
		t.Errorf("status without a store: %v %v", st, err)
	}
	if !slices.ContainsFunc(st.GetComponents(), func(c *agentv1.Component) bool {
		return c.GetName() == "kvstore" && c.GetState() != stateOK && c.GetMessage() != ""
	}) {
		t.Errorf("components: %v", st.GetComponents())
	}

	n.kill()
	n.extra = nil
	n.ready()
	if resp := n.call(n.request("fresh", h, "never-seen")); resp.Error != nil {
		t.Errorf("with the store back: %v", resp.Error)
	}
	reaches(t, again, web, true)
	reaches(t, pod{h, "fresh", "", ""}, web, false)
}

// Deletions that came while the agent was away are honoured.
func TestRootQueuedDeletion(t *testing.T) {
	n := newTestNode(t)
	n.ready()
	n.pod("a", "a")
	n.kill()
	err := cni.Queue(cni.DeletionsDir(n.state("")), cni.Deletion{ContainerID: "c-a", IfName: "eth0", Network: "test", Time: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	n.ready()
	eps, err := n.ListEndpoints(t.Context(), &agentv1.ListEndpointsRequest{})
	if err != nil || len(eps.GetEndpoints()) != 0 {
		t.Errorf("endpoints: %v %v", eps, err)
	}
}

// A user without root can neither talk to the agent nor read what it keeps, also where modes were loosened.
func TestRootOthersStayOut(t *testing.T) {
	n := newTestNode(t)
	n.ready()
	n.pod("a", "a")
	n.apply(webFromA)
	var paths []string
	for _, dir := range []string{n.run(""), n.state("")} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			paths = append(paths, path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{n.run(apiSocket), n.run(cniSocket), n.run(storeSocket), n.state("policies/CiliumNetworkPolicy_default_web-from-a.yaml")} {
		if !slices.Contains(paths, want) {
			t.Errorf("%s is not there: the test would prove nothing", want)
		}
	}
	if err := os.Chmod(n.dir, 0o755); err != nil { // of the test, not of the agent
		t.Fatal(err)
	}
	if got := asUser(t, paths...); got != "done" {
		t.Errorf("user 65534 got at:\n%s", got)
	}

	// somebody opens folder and socket to everyone: the agent still asks the kernel who is there
	for _, f := range []struct {
		path string
		mode os.FileMode
	}{{n.run(""), 0o755}, {n.run(apiSocket), 0o666}, {n.run(cniSocket), 0o666}} {
		if err := os.Chmod(f.path, f.mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []string{apiSocket, cniSocket} {
		got := asUser(t, n.run(s))
		if !strings.Contains(got, "connected, read 0 bytes") || strings.Contains(got, "timeout") {
			t.Errorf("%s opened to everyone: %s; want the connection closed by the agent", s, got)
		}
	}
	if _, err := n.Status(t.Context(), &agentv1.StatusRequest{}); err != nil {
		t.Errorf("root is kept out too: %v", err)
	}
}

func asUser(t *testing.T, paths ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(self, append([]string{"try-paths", "65534"}, paths...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return trimmed(out)
}

func TestRootTwoAgents(t *testing.T) {
	n := newTestNode(t)
	n.ready()
	for name, dirs := range map[string][2]string{
		"same folders":      {n.run(""), n.state("")},
		"same state folder": {filepath.Join(n.dir, "run2"), n.state("")},
		"same run folder":   {n.run(""), filepath.Join(n.dir, "state2")},
	} {
		cmd := n.command("run-agent", "--run-dir", dirs[0], "--state-dir", dirs[1], "--bpf-root", filepath.Join(n.dir, "bpf"), "--node-name", "n1")
		var out strings.Builder
		cmd.Stderr = &out
		err := n.net.in(cmd.Run)
		if err == nil || !strings.Contains(out.String(), "another porin-agent runs") {
			t.Errorf("%s: %v, %s", name, err, out.String())
		}
	}
	if _, err := n.Status(t.Context(), &agentv1.StatusRequest{}); err != nil {
		t.Errorf("the first agent suffered: %v", err)
	}
	pid, err := os.ReadFile(n.run(pidFile))
	if err != nil || trimmed(pid) == "" {
		t.Errorf("process id file: %q %v", pid, err)
	}
}

// Requests that are wrong get an answer that says why, and change nothing.
func TestRootBadRequests(t *testing.T) {
	n := newTestNode(t)
	n.ready()
	ctx := t.Context()
	for name, c := range map[string]struct {
		call func() error
		code codes.Code
		want string
	}{
		"policy with a fault": {func() error {
			_, err := n.ApplyPolicy(ctx, &agentv1.ApplyPolicyRequest{Files: []*agentv1.ManifestFile{
				{Name: "good.yaml", Content: []byte(webFromA)}, {Name: "bad.yaml", Content: []byte(strings.Replace(webFromA, "fromEndpoints", "fromEndpoint", 1))},
			}})
			return err
		}, codes.InvalidArgument, "bad.yaml:"},
		"policy twice": {func() error {
			_, err := n.ApplyPolicy(ctx, &agentv1.ApplyPolicyRequest{Files: []*agentv1.ManifestFile{{Name: "a.yaml", Content: []byte(webFromA)}, {Name: "b.yaml", Content: []byte(webFromA)}}})
			return err
		}, codes.InvalidArgument, "is in a.yaml too"},
		"no policy":      {func() error { _, err := n.ApplyPolicy(ctx, &agentv1.ApplyPolicyRequest{}); return err }, codes.InvalidArgument, "no policy"},
		"delete nothing": {func() error { _, err := n.DeletePolicy(ctx, &agentv1.DeletePolicyRequest{}); return err }, codes.InvalidArgument, "no policy is named"},
		"delete unknown": {func() error {
			_, err := n.DeletePolicy(ctx, &agentv1.DeletePolicyRequest{Policies: []*agentv1.PolicyRef{{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "x"}}})
			return err
		}, codes.NotFound, "default"},
		"endpoint":    {func() error { _, err := n.GetEndpoint(ctx, &agentv1.GetEndpointRequest{Id: "99"}); return err }, codes.NotFound, "99"},
		"endpoint id": {func() error { _, err := n.GetEndpoint(ctx, &agentv1.GetEndpointRequest{Id: "what:ever"}); return err }, codes.InvalidArgument, "what"},
		"identity":    {func() error { _, err := n.GetIdentity(ctx, &agentv1.GetIdentityRequest{Id: 300}); return err }, codes.NotFound, "300"},
		"table":       {func() error { _, err := n.DumpTable(ctx, &agentv1.DumpTableRequest{Table: "x"}); return err }, codes.NotFound, "endpoints"},
		"flush":       {func() error { _, err := n.FlushMap(ctx, &agentv1.FlushMapRequest{Map: "policy"}); return err }, codes.InvalidArgument, "only ct and nat"},
		"revision":    {func() error { _, err := n.WaitPolicy(ctx, &agentv1.WaitPolicyRequest{Revision: 99}); return err }, codes.InvalidArgument, "has not been made"},
		"setting": {func() error {
			_, err := n.SetConfig(ctx, &agentv1.SetConfigRequest{Values: map[string]string{"mtu": "1400"}})
			return err
		}, codes.InvalidArgument, "needs a restart"},
		"map": {func() error {
			s, err := n.ListMap(ctx, &agentv1.ListMapRequest{Map: "secrets"})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}, codes.InvalidArgument, "known are"},
		"too big": {func() error {
			_, err := n.ApplyPolicy(ctx, &agentv1.ApplyPolicyRequest{Files: []*agentv1.ManifestFile{{Name: "x", Content: make([]byte, 100<<20)}}})
			return err
		}, codes.ResourceExhausted, "larger than max"},
	} {
		err := c.call()
		if status.Code(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %s with %q", name, err, c.code, c.want)
		}
	}
	ps, err := n.ListPolicies(ctx, &agentv1.ListPoliciesRequest{})
	if err != nil || len(ps.GetPolicies()) != 0 {
		t.Errorf("policies: %v %v", ps, err)
	}
	for what, call := range map[string]func() error{
		"maps": func() error {
			for _, m := range []string{"endpoints", "policy", "ipcache", "ct", "nat"} {
				s, err := n.ListMap(ctx, &agentv1.ListMapRequest{Map: m})
				if err != nil {
					return err
				}
				first, err := s.Recv()
				if err != nil {
					return err
				}
				if len(first.GetColumns()) == 0 && len(first.GetRows()) > 0 {
					return errors.New(m + " has no columns")
				}
				for err == nil {
					_, err = s.Recv()
				}
				if !errors.Is(err, io.EOF) {
					return err
				}
			}
			return nil
		},
		"metrics": func() error {
			r, err := n.ListMetrics(ctx, &agentv1.ListMetricsRequest{Pattern: "bootstrap"})
			if err == nil && len(r.GetRows()) == 0 {
				err = errors.New("none")
			}
			return err
		},
		"nodes": func() error { _, err := n.ListNodes(ctx, &agentv1.ListNodesRequest{}); return err },
		"ips":   func() error { _, err := n.ListIPs(ctx, &agentv1.ListIPsRequest{}); return err },
		"flush": func() error { _, err := n.FlushMap(ctx, &agentv1.FlushMapRequest{Map: "ct"}); return err },
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A watched folder, a log level that changes, and no secret in any log.
func TestRootFolderAndLogs(t *testing.T) {
	n := newTestNode(t)
	folder := filepath.Join(n.dir, "policies")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	n.extra = []string{"--policy-dir", folder}
	n.ready()
	a, web := n.pod("a", "b"), n.pod("web", "web")
	web.serve(t, port)
	reaches(t, a, web, true)
	if err := os.WriteFile(filepath.Join(folder, "web.yaml"), []byte(webFromA), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file is in force", func() bool {
		ps, err := n.ListPolicies(t.Context(), &agentv1.ListPoliciesRequest{})
		return err == nil && len(ps.GetPolicies()) == 1
	})
	reaches(t, a, web, false)
	n.set("log-level", "debug")
	const canary = "canary-5ecret"
	if err := os.WriteFile(filepath.Join(folder, "web.yaml"), []byte("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: "+canary+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bad file is reported", func() bool {
		st, err := n.Status(t.Context(), &agentv1.StatusRequest{})
		return err == nil && len(st.GetAlarms()) == 1 && strings.Contains(st.GetAlarms()[0], "web.yaml")
	})
	reaches(t, a, web, false)
	n.kill()
	n.answering()
	reaches(t, a, web, false)
	log, err := os.ReadFile(n.log)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), canary) {
		t.Error("the log repeats the secret of a file")
	}
}

// answering starts the agent and waits until it answers, well or not.
func (n *testNode) answering() {
	n.t.Helper()
	n.start()
	// the first call may still go out on the connection to the agent that was killed
	eventually(n.t, "the agent answers", func() bool {
		ctx, cancel := context.WithTimeout(n.t.Context(), longest)
		defer cancel()
		_, err := n.Status(ctx, &agentv1.StatusRequest{})
		return err == nil
	})
}
