package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	agentv1 "porin/api/agent/v1"
	"porin/internal/cni"
	"porin/internal/datapath"
	"porin/internal/kvstore"
	"porin/internal/labels"
)

// TestMain lets the test binary be an agent, its store, a network namespace's holder, or somebody without root.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 {
		os.Exit(m.Run())
	}
	switch os.Args[1] {
	case "run-agent":
		cfg, err := Load(os.Args[2:], os.Environ(), os.Stdout)
		if err == nil {
			ctx, cancel := context.WithCancel(context.Background())
			go func() { // the test closes our input to stop us as a signal would
				io.Copy(io.Discard, os.Stdin)
				cancel()
			}()
			err = Run(ctx, cfg)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "porin-agent:", err)
			os.Exit(1)
		}
	case StoreCommand:
		cfg, err := kvstore.ParseServer(os.Args[2:])
		if err == nil {
			err = kvstore.Serve(context.Background(), slog.New(slog.NewTextHandler(os.Stderr, nil)), cfg)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	case "hold-netns":
		if err := setUp(os.Args[2] == "node"); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready")
		io.Copy(io.Discard, os.Stdin)
	case "try-paths":
		tryPaths(os.Args[2:])
	default:
		os.Exit(m.Run())
	}
}

// setUp brings lo up, and gives a node an uplink with a default route.
func setUp(node bool) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil || !node {
		return err
	}
	up := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "up1"}
	if err := netlink.LinkAdd(up); err != nil {
		return err
	}
	for _, name := range []string{"up0", "up1"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	addr, err := netlink.ParseAddr("192.0.2.1/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(up, addr); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 0, 2, 254)})
}

// needRoot ends a test that cannot run as the user is.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("PORIN_UNIT") == "1" {
		t.Skip("unit run without root")
	}
	t.Fatal("needs root: run with sudo")
}

// holder keeps a network namespace alive.
type holder struct {
	pid int
}

func hold(t testing.TB, what string) holder {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "hold-netns", what)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("make a network namespace: %q %v", line, err)
	}
	return holder{cmd.Process.Pid}
}

func (h holder) path() string { return fmt.Sprintf("/proc/%d/ns/net", h.pid) }

// in calls f on a thread that is in the namespace; the thread ends with it.
func (h holder) in(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the runtime ends the thread
		fd, err := unix.Open(h.path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// dial opens a TCP connection from the namespace.
func (h holder) dial(addr string, port int, wait time.Duration) (conn net.Conn, err error) {
	d := net.Dialer{Timeout: wait, FallbackDelay: -1}
	err = h.in(func() (err error) {
		conn, err = d.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port)).String())
		return err
	})
	return conn, err
}

// serve answers TCP connections in the namespace: it echoes.
func (h holder) serve(t testing.TB, port int) {
	t.Helper()
	var l net.Listener
	err := h.in(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
}

// testNode is a node whose agent tests start, kill and start again.
type testNode struct {
	t     *testing.T
	net   holder
	dir   string
	extra []string
	log   string
	agent *exec.Cmd
	stdin io.Closer
	conn  *grpc.ClientConn
	agentv1.AgentClient
}

func newTestNode(t *testing.T, extra ...string) *testNode {
	needRoot(t)
	return newTestNodeIn(t, hold(t, "node"), extra...)
}

// newTestNodeIn is a node in a namespace that is there already.
func newTestNodeIn(t *testing.T, h holder, extra ...string) *testNode {
	dir, err := os.MkdirTemp("", "ptagent")
	if err != nil {
		t.Fatal(err)
	}
	n := &testNode{t: t, net: h, dir: dir, extra: extra, log: filepath.Join(dir, "log")}
	t.Cleanup(n.clean)
	conn, err := grpc.NewClient("unix://"+n.run(apiSocket), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n.conn, n.AgentClient = conn, agentv1.NewAgentClient(conn)
	return n
}

func (n *testNode) run(name string) string   { return filepath.Join(n.dir, "run", name) }
func (n *testNode) state(name string) string { return filepath.Join(n.dir, "state", name) }

func (n *testNode) args() []string {
	return append([]string{
		"run-agent", "--run-dir", n.run(""), "--state-dir", n.state(""), "--bpf-root", filepath.Join(n.dir, "bpf"), "--node-name", "n1",
		"--ipv4-range", "10.1.0.0/24", "--ipv6-range", "fd00:1::/64", "--metrics-address=",
	}, n.extra...)
}

// command is an agent in the node's namespace, not yet started.
func (n *testNode) command(args ...string) *exec.Cmd {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { log.Close() })
	cmd := exec.Command(self, args...)
	cmd.Stderr = log
	return cmd
}

func (n *testNode) start() {
	n.t.Helper()
	cmd := n.command(n.args()...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.net.in(cmd.Start); err != nil {
		n.t.Fatal(err)
	}
	n.agent, n.stdin = cmd, stdin
}

// ready starts the agent and waits until it is healthy.
func (n *testNode) ready() {
	n.t.Helper()
	n.start()
	eventually(n.t, "the agent is healthy", func() bool {
		ctx, cancel := context.WithTimeout(n.t.Context(), 10*time.Second)
		defer cancel()
		st, err := n.Status(ctx, &agentv1.StatusRequest{})
		return err == nil && st.GetHealthy()
	})
}

func (n *testNode) kill() {
	n.t.Helper()
	if err := n.agent.Process.Kill(); err != nil {
		n.t.Fatal(err)
	}
	n.agent.Wait()
	n.agent = nil
}

// stop ends the agent as a signal does, and returns how it ended.
func (n *testNode) stop() error {
	n.stdin.Close()
	err := n.agent.Wait()
	n.agent = nil
	return err
}

func (n *testNode) clean() {
	if n.agent != nil {
		n.agent.Process.Kill()
		n.agent.Wait()
	}
	bpf := filepath.Join(n.dir, "bpf")
	if err := n.net.in(func() error { return datapath.Clean(bpf) }); err != nil {
		n.t.Errorf("clean the datapath: %v", err)
	}
	if err := unix.Unmount(n.run("health.netns"), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		n.t.Errorf("unmount the health endpoint's namespace: %v", err)
	}
	if err := unix.Unmount(bpf, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		n.t.Errorf("unmount %s: %v", bpf, err)
	}
	if n.t.Failed() {
		if b, err := os.ReadFile(n.log); err == nil {
			n.t.Logf("the agent's log:\n%s", b)
		}
	}
	if err := os.RemoveAll(n.dir); err != nil {
		n.t.Error(err)
	}
}

// call is a request of porin-cni.
func (n *testNode) call(req cni.Request) cni.Response {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 2*time.Minute)
	defer cancel()
	c, err := cni.Dial(ctx, n.run(cniSocket))
	if err != nil {
		n.t.Fatal(err)
	}
	resp, err := c.Call(ctx, req)
	if err != nil {
		n.t.Fatal(err)
	}
	return resp
}

// pod is a workload with an endpoint.
type pod struct {
	holder
	name   string
	v4, v6 string
}

func (n *testNode) request(name string, h holder, app string) cni.Request {
	return cni.Request{
		Command: cni.Add, Network: "test", ContainerID: "c-" + name, IfName: "eth0", Netns: h.path(), Namespace: "default", Pod: name,
		Labels: labels.New(labels.Label{Source: labels.SourceK8s, Key: "app", Value: app}),
	}
}

func (n *testNode) pod(name, app string) pod {
	n.t.Helper()
	h := hold(n.t, "pod")
	resp := n.call(n.request(name, h, app))
	if resp.Error != nil {
		n.t.Fatalf("add %s: %v", name, resp.Error)
	}
	return pod{h, name, resp.IPs[0].Address.Addr().String(), resp.IPs[1].Address.Addr().String()}
}

// tryPaths opens each path as a user without root would: connects to sockets, reads the rest. It prints what worked.
func tryPaths(args []string) {
	uid, err := strconv.Atoi(args[0])
	if err == nil {
		err = errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid))
	}
	if err != nil {
		fmt.Println("cannot become another user:", err)
		return
	}
	for _, path := range args[1:] {
		conn, err := net.Dial("unix", path)
		if err == nil {
			// the kernel let us in; does the agent?
			conn.SetDeadline(time.Now().Add(longest))
			n, err := conn.Read(make([]byte, 1))
			fmt.Printf("%s: connected, read %d bytes, %v\n", path, n, err)
			conn.Close()
			continue
		}
		if f, err := os.Open(path); err == nil {
			fmt.Printf("%s: opened\n", path)
			f.Close()
		} else if !errors.Is(err, os.ErrPermission) {
			fmt.Printf("%s: %v\n", path, err)
		}
	}
	fmt.Println("done")
}

func trimmed(b []byte) string { return strings.TrimSpace(string(b)) }
