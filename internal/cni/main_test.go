package cni

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// TestMain makes the test binary the plugin too: the tests execute it as a runtime does.
func TestMain(m *testing.M) {
	if os.Getenv("PORIN_CNI_TEST_PLUGIN") == "1" && (os.Getenv("CNI_COMMAND") != "" || len(os.Args) == 1) {
		os.Exit(Main())
	}
	os.Exit(m.Run())
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getenv("PORIN_UNIT") == "1" {
		t.Skip("unit run without root")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run with sudo")
	}
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// node is a run and a state folder, and an agent that remembers what it was asked.
type node struct {
	t          testing.TB
	run, state string

	mu    sync.Mutex
	asked []Request
	reply func(Request) Response // nil: a good answer
}

func newNode(t testing.TB) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, run: filepath.Join(dir, "run"), state: filepath.Join(dir, "state")}
	for _, d := range []string{n.run, n.state} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// agent starts the agent's side and returns what stops it.
func (n *node) agent() (stop func()) {
	n.t.Helper()
	l, err := net.Listen("unix", filepath.Join(n.run, SocketName))
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, quiet, l, n.answer) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("Serve: %v", err)
		}
	})
	n.t.Cleanup(stop)
	return stop
}

func (n *node) answer(_ context.Context, req Request) Response {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, req)
	if n.reply != nil {
		return n.reply(req)
	}
	if req.Command != Add {
		return Response{}
	}
	v4, v6 := netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")
	return Response{
		Endpoint: 1, Host: Interface{Name: "pn0123456789"},
		Workload: Interface{Name: req.IfName, MAC: "02:00:00:00:00:01", MTU: 1500, Sandbox: req.Netns},
		IPs:      []IP{{netip.MustParsePrefix("10.1.0.2/32"), v4}, {netip.MustParsePrefix("fd00::2/128"), v6}},
		Routes:   []Route{{netip.MustParsePrefix("0.0.0.0/0"), v4}, {netip.MustParsePrefix("::/0"), v6}},
	}
}

// commands are those that the agent was asked, in order.
func (n *node) commands() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, r := range n.asked {
		out = append(out, string(r.Command))
	}
	return strings.Join(out, " ")
}

func (n *node) last() Request {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.asked) == 0 {
		n.t.Fatal("the agent was not asked")
	}
	return n.asked[len(n.asked)-1]
}

// invocation is one run of the plugin.
type invocation struct {
	command   string
	container string
	ifname    string
	netns     string
	args      string
	version   string         // of the configuration; empty: 1.1.0
	conf      map[string]any // more keys
	raw       string         // the whole configuration, instead
}

// exec runs the plugin in a process of its own.
func (n *node) exec(c invocation) (stdout string, fail *types.Error) {
	n.t.Helper()
	if c.version == "" {
		c.version = "1.1.0"
	}
	conf := map[string]any{"cniVersion": c.version, "name": "net", "type": Type, "run-dir": n.run, "state-dir": n.state}
	maps.Copy(conf, c.conf)
	stdin, err := json.Marshal(conf)
	if err != nil {
		n.t.Fatal(err)
	}
	if c.raw != "" {
		stdin = []byte(c.raw)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{
		"PORIN_CNI_TEST_PLUGIN=1", "CNI_COMMAND=" + c.command, "CNI_CONTAINERID=" + c.container, "CNI_IFNAME=" + c.ifname,
		"CNI_NETNS=" + c.netns, "CNI_ARGS=" + c.args, "CNI_PATH=/nowhere", "GOCOVERDIR=" + os.Getenv("GOCOVERDIR"),
	}
	cmd.Stdin = strings.NewReader(string(stdin))
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if err == nil {
		return out.String(), nil
	}
	fail = &types.Error{}
	if e := json.Unmarshal([]byte(out.String()), fail); e != nil || fail.Msg == "" {
		n.t.Fatalf("plugin failed (%v) without a CNI error: stdout %q, stderr %q", err, out.String(), errs.String())
	}
	return out.String(), fail
}

// newNetns makes a network namespace that lives as long as the test.
func newNetns(t testing.TB) string {
	t.Helper()
	needRoot(t)
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
	return path
}
