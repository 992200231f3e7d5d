package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	agentv1 "porin/api/agent/v1"
	flowpb "porin/api/flow"
)

// watcher is a running `porin monitor` on the lab's node.
type watcher struct {
	t   *testing.T
	cmd *exec.Cmd
	out *bufio.Reader
}

// monitor starts `porin monitor` with these flags.
func (l *lab) monitor(args ...string) *watcher {
	l.t.Helper()
	w := &watcher{t: l.t, cmd: l.exec("node1", append([]string{bin(l.t, "porin"), "monitor"}, args...)...)}
	stdout, err := w.cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that the command inside the lab ends with it
	w.out = bufio.NewReader(stdout)
	if err := w.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = syscall.Kill(-w.cmd.Process.Pid, syscall.SIGKILL)
		_ = w.cmd.Wait()
	})
	return w
}

// next reads one message; the test's own time limit ends a wait for one that never comes.
func (w *watcher) next() *agentv1.MonitorResponse {
	w.t.Helper()
	line, err := w.out.ReadString('\n')
	if err != nil {
		w.t.Fatalf("monitor ended: %v", err)
	}
	m := &agentv1.MonitorResponse{}
	if err := protojson.Unmarshal([]byte(line), m); err != nil {
		w.t.Fatalf("monitor printed %q: %v", line, err)
	}
	return m
}

// flow reads until a flow as described has come.
func (w *watcher) flow(what string, ok func(*flowpb.Flow) bool) *flowpb.Flow {
	w.t.Helper()
	var seen []string
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); {
		m := w.next()
		if f := m.GetFlow(); f != nil && ok(f) {
			return f
		}
		seen = append(seen, m.String())
	}
	w.t.Fatalf("no flow: %s; seen:\n%s", what, strings.Join(seen, "\n"))
	return nil
}

// past returns the flows that the agent has kept.
func (l *lab) past(args ...string) (out []*flowpb.Flow) {
	l.t.Helper()
	for line := range strings.Lines(l.porin(append([]string{"monitor", "--no-follow", "-o", "json"}, args...)...)) {
		m := &agentv1.MonitorResponse{}
		if err := protojson.Unmarshal([]byte(line), m); err != nil {
			l.t.Fatalf("monitor printed %q: %v", line, err)
		}
		if m.GetFlow() != nil {
			out = append(out, m.GetFlow())
		}
	}
	return out
}

// tcp says whether a connection stands, which one that must gets time for.
func (l *lab) tcp(from, addr string, port int, must bool) bool {
	l.t.Helper()
	limit := time.Second
	if must {
		limit = patience
	}
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		l.t.Fatal(err)
	}
	return l.exec(from, self, "probe-dial", net.JoinHostPort(addr, strconv.Itoa(port)), limit.String()).Run() == nil
}

func fromTo(src, dst string) func(*flowpb.Flow) bool {
	return func(f *flowpb.Flow) bool {
		return f.GetSource().GetPodName() == src && f.GetDestination().GetPodName() == dst
	}
}

func policyNames(ps []*flowpb.Policy) (out []string) {
	for _, p := range ps {
		out = append(out, p.GetKind()+" "+p.GetNamespace()+"/"+p.GetName())
	}
	return out
}

// The monitor tells who was allowed and who was not, by which rule, over both families, while it happens.
func TestRootMonitorExplains(t *testing.T) {
	l := scene(t)
	w := l.monitor("-o", "json", "--last", "1000") // with the past, so that it does not matter when it begins to listen
	w.agentStarted()
	const server = "CiliumNetworkPolicy default/server"
	for _, family := range []int{4, 6} {
		addr := l.addr("server", family)
		if !l.tcp("friend", addr, 80, true) {
			t.Fatalf("IPv%d: friend cannot connect", family)
		}
		f := w.flow("friend is allowed", func(f *flowpb.Flow) bool {
			return fromTo("friend", "server")(f) && f.GetEventType().GetType() == 5 && f.GetIP().GetDestination() == addr
		})
		if f.GetVerdict() != flowpb.Verdict_FORWARDED || !slices.Equal(policyNames(f.GetIngressAllowedBy()), []string{server}) {
			t.Errorf("IPv%d: friend: %v by %v", family, f.GetVerdict(), policyNames(f.GetIngressAllowedBy()))
		}
		if !slices.Contains(f.GetSource().GetLabels(), "k8s:app=friend") || !slices.Contains(f.GetDestination().GetLabels(), "k8s:app=server") || f.GetNodeName() != "node1" {
			t.Errorf("IPv%d: friend: %v", family, f)
		}
		if tcp := f.GetL4().GetTCP(); tcp.GetDestinationPort() != 80 || !tcp.GetFlags().GetSYN() {
			t.Errorf("IPv%d: friend: %v", family, f.GetL4())
		}
		age := time.Since(f.GetTime().AsTime())
		if age < 0 || age > time.Hour {
			t.Errorf("IPv%d: the flow is %v old", family, age)
		}

		if l.tcp("foe", addr, 80, false) {
			t.Errorf("IPv%d: foe can connect", family)
		}
		f = w.flow("foe is denied", func(f *flowpb.Flow) bool { return fromTo("foe", "server")(f) && f.GetIP().GetDestination() == addr })
		if f.GetVerdict() != flowpb.Verdict_DROPPED || f.GetDropReasonDesc() != flowpb.DropReason_POLICY_DENIED || f.GetTrafficDirection() != flowpb.TrafficDirection_INGRESS {
			t.Errorf("IPv%d: foe: %v", family, f)
		}
		if !slices.Equal(policyNames(f.GetIngressDeniedBy()), []string{server}) || len(f.GetIngressAllowedBy()) != 0 {
			t.Errorf("IPv%d: foe is denied by %v", family, f.GetIngressDeniedBy())
		}
	}

	// the same for people
	lines := l.porin("monitor", "--no-follow", "--type", "drop", "--from", "default/foe", "-v", "--hex")
	for _, want := range []string{
		"DENIED ingress default/foe{k8s:app=foe", " -> default/server{", " TCP SYN ", "ingress denied: no rule of default/server at inline-line-", " allows it\n00000000  ",
	} {
		if !strings.Contains(lines, want) {
			t.Errorf("monitor -v --hex lacks %q:\n%s", want, lines)
		}
	}
}

// agentStarted reads up to the announcement that the agent started.
func (w *watcher) agentStarted() {
	w.t.Helper()
	for {
		if w.next().GetAgent().GetType() == "agent-started" {
			return
		}
	}
}

func TestRootMonitorFilters(t *testing.T) {
	l := scene(t)
	addr := l.addr("server", 4)
	if !l.tcp("friend", addr, 80, true) || !l.tcp("other", addr, 80, true) || l.tcp("foe", addr, 80, false) {
		t.Fatal("the scene is not as it should be")
	}
	for _, c := range []struct {
		args []string
		ok   func(*flowpb.Flow) bool
		some string // who must be seen
	}{
		{[]string{"--type", "drop", "--to", "default/server"}, func(f *flowpb.Flow) bool { return f.GetVerdict() == flowpb.Verdict_DROPPED }, "foe"},
		{[]string{"--type", "policy-verdict"}, func(f *flowpb.Flow) bool { return f.GetEventType().GetType() == 5 }, "friend"},
		{[]string{"--from", "default/friend"}, func(f *flowpb.Flow) bool { return f.GetSource().GetPodName() == "friend" }, "friend"},
		{[]string{"--from", l.addr("other", 4), "--to", "default/server"}, fromTo("other", "server"), "other"},
		{[]string{"--related-to", "default/friend", "--type", "trace"}, func(f *flowpb.Flow) bool {
			return f.GetSource().GetPodName() == "friend" || f.GetDestination().GetPodName() == "friend"
		}, "server"},
	} {
		seen := map[string]bool{}
		// the kernel's events reach the agent a little after the packets reach the pods
		eventually(t, time.Minute, fmt.Sprintf("%v shows something from %s", c.args, c.some), func() bool {
			for _, f := range l.past(c.args...) {
				seen[f.GetSource().GetPodName()] = true
				if !c.ok(f) {
					t.Fatalf("%v shows %v", c.args, f)
				}
			}
			return seen[c.some]
		}, func() string { return fmt.Sprint(seen) })
	}
	if n := len(l.past("--last", "2")); n > 2 {
		t.Errorf("--last 2 shows %d flows", n)
	}
	out, err := l.exec("node1", bin(t, "porin"), "monitor", "--from", "default/nobody").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "default/nobody") {
		t.Errorf("monitor of nobody: %v %s", err, out)
	}
}

// A reader that stops reading while packets are dropped in masses learns exactly how many events it did not see: what it
// received and what it was told that it lost are together all that was sent.
func TestRootMonitorCountsWhatItLost(t *testing.T) {
	l := scene(t)
	addr := l.addr("server", 4)
	w := l.monitor("-o", "json", "--type", "drop", "--from", "default/foe", "--to", "default/server") // not its multicast reports

	const floodPort, firstMark = 9, 1000
	mark := firstMark // each mark is one packet to a port of its own
	send := func() {
		l.run("foe", "bash", "-c", fmt.Sprintf("echo x >/dev/udp/%s/%d", addr, mark))
		mark++
	}
	type count struct{ port, received, lost int } // when the mark with this port came
	read := make(chan count)
	resume := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		counting, received, lost := false, 0, 0
		for {
			m := &agentv1.MonitorResponse{}
			line, err := w.out.ReadString('\n')
			if err == nil {
				err = protojson.Unmarshal([]byte(line), m)
			}
			if err != nil {
				failed <- fmt.Errorf("monitor printed %q: %w", line, err)
				return
			}
			port := int(m.GetFlow().GetL4().GetUDP().GetDestinationPort())
			if counting && (port == floodPort || port >= firstMark) {
				received++
			}
			lost += int(m.GetLost())
			if port < firstMark {
				continue
			}
			read <- count{port, received, lost}
			if !counting {
				<-resume // nobody reads the pipe: it fills, the command hangs, then the socket, then its queue in the agent
				counting = true
			}
		}
	}()
	// marked sends marks until one comes, and returns it.
	marked := func() (c count) {
		eventually(t, 2*time.Minute, "a mark comes", func() bool {
			send()
			select {
			case err := <-failed:
				t.Fatal(err)
			case c = <-read:
				return true
			case <-time.After(200 * time.Millisecond):
			}
			return false
		})
		return c
	}
	first, before := marked(), overflows()
	const flood = 100000
	l.run("foe", "bash", "-c", fmt.Sprintf("exec 3>/dev/udp/%s/%d; for ((i = 0; i < %d; i++)); do echo x >&3; done", addr, floodPort, flood))
	close(resume)
	// Marks that were on their way already come first; the one that counts was sent after the flood.
	afterFlood := mark
	last := marked()
	for last.port < afterFlood {
		select {
		case last = <-read:
		case err := <-failed:
			t.Fatal(err)
		case <-time.After(2 * time.Minute):
			t.Fatal("no mark comes after the flood")
		}
	}
	sent := flood + last.port - first.port // the marks between the two are sent too
	never := int(overflows() - before)     // at most: packets of any namespace that met no program, for want of room on the way
	t.Logf("sent %d: received %d, lost %d", sent, last.received, last.lost)
	if known := last.received + last.lost; known > sent || known < sent-never {
		t.Errorf("received %d + lost %d = %d, sent %d, of which at most %d met no program", last.received, last.lost, known, sent, never)
	}
	if last.lost == 0 {
		t.Error("nothing was lost: the flood was too small to prove anything")
	}
}
