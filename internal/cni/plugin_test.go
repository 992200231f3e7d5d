package cni

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"porin/internal/labels"
)

func TestVersion(t *testing.T) {
	out, fail := newNode(t).exec(invocation{command: "VERSION"})
	if fail != nil {
		t.Fatal(fail)
	}
	for _, v := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		if !strings.Contains(out, v) {
			t.Errorf("VERSION says %s, without %s", out, v)
		}
	}
}

func TestRootAddReturnsTheResult(t *testing.T) {
	n := newNode(t)
	n.agent()
	ns := newNetns(t)
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		out, fail := n.exec(invocation{
			command: "ADD", container: "c1", ifname: "eth0", netns: ns, version: v,
			args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=abc",
			conf: map[string]any{
				"mtu": 1400, "dns": map[string]any{"nameservers": []string{"10.0.0.10"}},
				"args": map[string]any{
					"cni":              map[string]any{"labels": []any{map[string]string{"key": "app", "value": "web"}}, "namedPorts": []any{map[string]any{"name": "http", "port": 80}}},
					"org.apache.mesos": map[string]any{"network_info": map[string]any{"labels": map[string]any{"labels": []any{map[string]string{"key": "task", "value": "x"}}}}},
				},
			},
		})
		if fail != nil {
			t.Fatalf("%s: %v", v, fail)
		}
		var got struct {
			CNIVersion string
			Interfaces []types100.Interface
			IPs        []struct {
				Address   string
				Gateway   string
				Interface *int
			}
			Routes []struct{ Dst, GW string }
			DNS    struct{ Nameservers []string }
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatal(err)
		}
		if got.CNIVersion != v || len(got.Interfaces) != 2 || got.Interfaces[1].Sandbox != ns || got.Interfaces[1].Name != "eth0" || got.Interfaces[0].Sandbox != "" ||
			len(got.IPs) != 2 || got.IPs[0].Address != "10.1.0.2/32" || got.IPs[0].Gateway != "169.254.1.1" || got.IPs[1].Address != "fd00::2/128" || *got.IPs[0].Interface != 1 ||
			len(got.Routes) != 2 || got.Routes[1].Dst != "::/0" || got.DNS.Nameservers[0] != "10.0.0.10" {
			t.Errorf("%s: result %s", v, out)
		}
	}
	want := Request{
		Version: WireVersion, Command: Add, Network: "net", ContainerID: "c1", IfName: "eth0", Netns: ns, Namespace: "default", Pod: "web-0", UID: "abc", MTU: 1400,
		Args:   map[string]string{"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "web-0", "K8S_POD_UID": "abc"},
		Labels: labels.Labels{{Source: "k8s", Key: "app", Value: "web"}, {Source: "mesos", Key: "task", Value: "x"}}, NamedPorts: []NamedPort{{Name: "http", Port: 80}},
	}
	if got := n.last(); !reflect.DeepEqual(got, want) {
		t.Errorf("asked\n%+v\nwant\n%+v", got, want)
	}
}

// TestRootRuntime drives the plugin as runtimes do, by libcni: conflist, cached result, CHECK, GC.
func TestRootRuntime(t *testing.T) {
	n := newNode(t)
	n.agent()
	ns := newNetns(t)
	bin := t.TempDir()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(bin, Type)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PORIN_CNI_TEST_PLUGIN", "1")
	list, err := libcni.NetworkConfFromBytes([]byte(strings.NewReplacer("RUN", n.run, "STATE", n.state).Replace(
		`{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"porin-cni","run-dir":"RUN","state-dir":"STATE"}]}`)))
	if err != nil {
		t.Fatal(err)
	}
	rt := &libcni.RuntimeConf{ContainerID: "c1", NetNS: ns, IfName: "eth0", Args: [][2]string{{"K8S_POD_NAMESPACE", "ns"}, {"K8S_POD_NAME", "pod"}}}
	c := libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := c.AddNetworkList(ctx, list, rt); err != nil {
		t.Fatal(err)
	}
	if err := c.CheckNetworkList(ctx, list, rt); err != nil {
		t.Fatal(err)
	}
	if prev := n.last().Prev; prev == nil || prev.Workload.MAC != "02:00:00:00:00:01" || len(prev.IPs) != 2 || prev.IPs[1].Address.String() != "fd00::2/128" || prev.Host.Name != "pn0123456789" {
		t.Errorf("CHECK brought %+v", prev)
	}
	if err := c.GetStatusNetworkList(ctx, list); err != nil {
		t.Fatal(err)
	}
	if err := c.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: nil}); err != nil {
		t.Fatal(err)
	}
	if got, want := n.commands(), "ADD CHECK STATUS DEL GC"; got != want {
		t.Errorf("the agent was asked %q, want %q", got, want)
	}
	if got := n.last(); got.Attachments != nil || got.Network != "net" {
		t.Errorf("GC: %+v", got)
	}
}

func TestAgentAway(t *testing.T) {
	n := newNode(t)
	if _, fail := n.exec(invocation{command: "STATUS"}); fail == nil || fail.Code != uint(CodeNotAvailable) || !strings.Contains(fail.Details, "porin-agent running?") {
		t.Errorf("STATUS: %+v, want code 50", fail)
	}
	if _, fail := n.exec(invocation{command: "DEL", container: "c1", ifname: "eth0"}); fail != nil {
		t.Errorf("DEL: %v", fail)
	}
	if _, fail := n.exec(invocation{command: "DEL", container: "c1", ifname: "eth0"}); fail != nil {
		t.Errorf("DEL again: %v", fail)
	}
	var seen []Deletion
	done, err := Replay(DeletionsDir(n.state), func(d Deletion) error { seen = append(seen, d); return nil })
	if err != nil || done != 1 || seen[0].ContainerID != "c1" || seen[0].IfName != "eth0" || seen[0].Network != "net" || time.Since(seen[0].Time) > time.Hour {
		t.Errorf("queue: %d, %v, %+v", done, err, seen)
	}
	if done, err := Replay(DeletionsDir(n.state), nil); done != 0 || err != nil {
		t.Errorf("queue after it was honoured: %d, %v", done, err)
	}
}

func TestRootAddWhileAgentIsAway(t *testing.T) {
	n := newNode(t)
	ns := newNetns(t)
	start := time.Now()
	_, fail := n.exec(invocation{command: "ADD", container: "c1", ifname: "eth0", netns: ns})
	if took := time.Since(start); fail == nil || fail.Code != uint(CodeTryAgainLater) || took < time.Second {
		t.Errorf("after %s: %+v, want code 11 after about 3 s", took, fail)
	}
	// An agent that comes while the plugin waits is asked.
	result := make(chan bool, 1)
	go func() {
		_, fail := n.exec(invocation{command: "ADD", container: "c1", ifname: "eth0", netns: ns})
		result <- fail == nil
	}()
	n.agent()
	if !<-result {
		t.Error("ADD failed although the agent came back")
	}
}

// TestRootAddBehindQueuedDel: the deletion of an earlier container of the same name comes first.
func TestRootAddBehindQueuedDel(t *testing.T) {
	n := newNode(t)
	if _, fail := n.exec(invocation{command: "DEL", container: "c1", ifname: "eth0"}); fail != nil {
		t.Fatal(fail)
	}
	n.agent()
	if _, fail := n.exec(invocation{command: "ADD", container: "c1", ifname: "eth0", netns: newNetns(t)}); fail != nil {
		t.Fatal(fail)
	}
	if got := n.commands(); got != "DEL ADD" {
		t.Errorf("the agent was asked %q, want DEL ADD", got)
	}
	if Queued(DeletionsDir(n.state), "c1", "eth0") {
		t.Error("the deletion still waits: it would take the new container away")
	}
}

func TestDelBeforeAddIsFine(t *testing.T) {
	n := newNode(t)
	n.agent()
	if _, fail := n.exec(invocation{command: "DEL", container: "never", ifname: "eth0", netns: "/run/netns/gone"}); fail != nil {
		t.Error(fail)
	}
	if Queued(DeletionsDir(n.state), "never", "eth0") {
		t.Error("queued although the agent answered")
	}
}

// TestDelThatMustComeLater: an agent that says "try again" has not deleted.
func TestDelThatMustComeLater(t *testing.T) {
	n := newNode(t)
	n.reply = func(Request) Response { return Response{Error: Errorf(CodeTryAgainLater, "x", "starting")} }
	n.agent()
	if _, fail := n.exec(invocation{command: "DEL", container: "c1", ifname: "eth0"}); fail != nil || !Queued(DeletionsDir(n.state), "c1", "eth0") {
		t.Errorf("%v; it must be queued", fail)
	}
	n.mu.Lock()
	n.reply = func(Request) Response { return Response{Error: Errorf(CodeKernel, "x", "busy")} }
	n.mu.Unlock()
	if _, fail := n.exec(invocation{command: "DEL", container: "c2", ifname: "eth0"}); fail == nil || fail.Code != uint(CodeKernel) || Queued(DeletionsDir(n.state), "c2", "eth0") {
		t.Errorf("%+v; the runtime must hear of it and ask again", fail)
	}
}

func TestGC(t *testing.T) {
	n := newNode(t)
	n.agent()
	if _, fail := n.exec(invocation{command: "GC"}); fail == nil || fail.Code != uint(CodeInvalidConfig) {
		t.Errorf("GC without a list: %+v, want code 7: it must not remove everything", fail)
	}
	list := []any{map[string]string{"containerID": "c1", "ifname": "eth0"}}
	if _, fail := n.exec(invocation{command: "GC", conf: map[string]any{"cni.dev/valid-attachments": list}}); fail != nil {
		t.Fatal(fail)
	}
	if got := n.last().Attachments; !reflect.DeepEqual(got, []Attachment{{"c1", "eth0"}}) {
		t.Errorf("attachments: %+v", got)
	}
}

// TestHostileInput: what a broken or hostile runtime or configuration brings ends in a CNI error, and the agent is not
// asked.
func TestHostileInput(t *testing.T) {
	n := newNode(t)
	n.agent()
	conf := func(kv ...any) map[string]any {
		m := map[string]any{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i].(string)] = kv[i+1]
		}
		return m
	}
	add := func(c invocation) invocation {
		c.command = "ADD"
		if c.container == "" {
			c.container = "c1"
		}
		if c.ifname == "" {
			c.ifname = "eth0"
		}
		if c.netns == "" {
			c.netns = "/run/netns/none"
		}
		return c
	}
	label := func(key, value string) map[string]any {
		return conf("args", map[string]any{"cni": map[string]any{"labels": []any{map[string]string{"key": key, "value": value}}}})
	}
	for name, tc := range map[string]struct {
		c    invocation
		code Code
	}{
		"type traversal":      {add(invocation{conf: conf("type", "../../x")}), CodeInvalidConfig},
		"type absolute":       {add(invocation{conf: conf("type", "/bin/sh")}), CodeInvalidConfig},
		"type nul":            {add(invocation{conf: conf("type", "porin-cni\x00")}), CodeInvalidConfig},
		"type newline":        {add(invocation{conf: conf("type", "porin-cni\n")}), CodeInvalidConfig},
		"ipam traversal":      {add(invocation{conf: conf("ipam", map[string]string{"type": "../../x"})}), CodeInvalidConfig},
		"mtu 1":               {add(invocation{conf: conf("mtu", 1)}), CodeInvalidConfig},
		"mtu text":            {add(invocation{conf: conf("mtu", "big")}), CodeDecoding},
		"run-dir relative":    {add(invocation{conf: conf("run-dir", "run")}), CodeInvalidConfig},
		"run-dir traversal":   {add(invocation{conf: conf("run-dir", "/run/../etc")}), CodeInvalidConfig},
		"log-file traversal":  {add(invocation{conf: conf("log-file", "../log")}), CodeInvalidConfig},
		"prevResult forged":   {add(invocation{conf: conf("prevResult", map[string]any{"cniVersion": "1.1.0", "ips": []any{map[string]string{"address": "10.1.0.9/32"}}})}), CodeInvalidConfig},
		"container traversal": {add(invocation{container: "../x"}), CodeInvalidEnvironment},
		"ifname long":         {add(invocation{ifname: "abcdefghijklmnop"}), CodeInvalidEnvironment},
		"ifname slash":        {add(invocation{ifname: "a/b"}), CodeInvalidEnvironment},
		"netns is the host's": {add(invocation{netns: "/proc/self/ns/net"}), CodeInvalidNetns},
		"netns is a file":     {add(invocation{netns: "/etc/passwd"}), CodeInvalidNetns},
		"netns other kind":    {add(invocation{netns: "/proc/self/ns/mnt"}), CodeInvalidNetns},
		"netns relative":      {add(invocation{netns: "x"}), CodeInvalidNetns},
		"netns traversal":     {add(invocation{netns: "/run/netns/../../proc/self/ns/net"}), CodeInvalidNetns},
		"netns is not there":  {add(invocation{}), CodeInvalidNetns},
		"args no pair":        {add(invocation{args: "K8S_POD_NAME"}), CodeInvalidEnvironment},
		"args twice":          {add(invocation{args: "K8S_POD_NAMESPACE=a;K8S_POD_NAMESPACE=b"}), CodeInvalidEnvironment},
		"args escape":         {add(invocation{args: "K8S_POD_NAMESPACE=a\x1b[2J"}), CodeInvalidEnvironment},
		"pod alone":           {add(invocation{args: "K8S_POD_NAME=a"}), CodeInvalidEnvironment},
		"label namespace":     {add(invocation{conf: label("io.kubernetes.pod.namespace", "kube-system")}), CodeRefused},
		"label ns labels":     {add(invocation{conf: label("io.cilium.k8s.namespace.labels.team", "a")}), CodeRefused},
		"label control":       {add(invocation{conf: label("a", "b\nc")}), CodeInvalidConfig},
		"label empty":         {add(invocation{conf: label("", "b")}), CodeInvalidConfig},
		"no json":             {add(invocation{raw: "{"}), CodeDecoding},
		"name traversal":      {add(invocation{conf: conf("name", "../x")}), CodeInvalidConfig},
		"version unknown":     {add(invocation{version: "9.9.9"}), CodeIncompatibleVersion},
		"check without prev":  {invocation{command: "CHECK", container: "c1", ifname: "eth0", netns: "/run/netns/none"}, CodeInvalidConfig},
		"check other prev": {invocation{
			command: "CHECK", container: "c1", ifname: "eth0", netns: "/run/netns/none",
			conf: conf("prevResult", map[string]any{"cniVersion": "1.1.0", "interfaces": []any{map[string]string{"name": "eth9", "sandbox": "/x"}}}),
		}, CodeInvalidConfig},
	} {
		if _, fail := n.exec(tc.c); fail == nil || fail.Code != uint(tc.code) {
			t.Errorf("%s: got %+v, want code %d", name, fail, tc.code)
		}
	}
	if got := n.commands(); got != "" {
		t.Errorf("the agent was asked %q", got)
	}
}

func TestLogFile(t *testing.T) {
	n := newNode(t)
	n.agent()
	file := filepath.Join(t.TempDir(), "log")
	n.exec(invocation{command: "DEL", container: "c1", ifname: "eth0", args: "A=b", conf: map[string]any{"log-file": file}})
	n.exec(invocation{command: "ADD", container: "c1", ifname: "eth0", netns: "/x", conf: map[string]any{"log-file": file}})
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `DEL network="net" container="c1"`) || !strings.Contains(lines[0], `result="ok"`) || !strings.Contains(lines[1], "/x") {
		t.Errorf("log:\n%s", data)
	}
}

func TestExampleConflist(t *testing.T) {
	data, err := os.ReadFile("../../examples/cni/05-porin.conflist")
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil || len(list.Plugins) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	var one map[string]any
	if err := json.Unmarshal(list.Plugins[0].Bytes, &one); err != nil {
		t.Fatal(err)
	}
	one["name"] = list.Name
	plain, err := json.Marshal(one)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseConfig(plain)
	if err != nil || c.Socket() != "/run/porin/cni.sock" || c.StateDir != "/var/lib/porin" {
		t.Errorf("%+v, %v", c, err)
	}
}
