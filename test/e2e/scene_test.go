package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// scene is a lab with one server and a friend and a foe of it, each running nothing but what the test starts.
func scene(t *testing.T) *lab {
	t.Helper()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	return up(t, fmt.Sprintf(`
nodes: 1
workloads:
  - {name: server, labels: {app: server}, run: [%q, probe-server, "80"]}
  - {name: friend, labels: {app: friend}}
  - {name: other, labels: {app: other}}
  - {name: foe, labels: {app: foe}}
objects:
  - inline: |
%s
`, self, indent(allowApps("friend", "other"), "      ")))
}

func indent(s, by string) string {
	return by + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n"+by)
}

// allowApps is a policy that lets only these apps reach the server.
func allowApps(apps ...string) string {
	return fmt.Sprintf(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
    - fromEndpoints:
        - matchExpressions: [{key: app, operator: In, values: [%s]}]
      toPorts:
        - ports: [{port: "80", protocol: ANY}]
`, strings.Join(apps, ", "))
}

func hostPort(addr string) string { return net.JoinHostPort(addr, "80") }

// A permission that is taken away ends live connections within a second; others go on; given back, new ones work.
func TestRootRevokedPermissionCutsLiveConnections(t *testing.T) {
	l := scene(t)
	for _, family := range []int{4, 6} {
		addr := hostPort(l.addr("server", family))
		l.apply(allowApps("friend", "other"))
		friend := l.probe("friend", options{Addr: addr, Streams: 10, Silence: time.Second})
		other := l.probe("other", options{Addr: addr, Streams: 10})
		l.apply(allowApps("other"))
		time.Sleep(time.Second) // the promise: no beat that begins later is answered
		f, o := friend.stop(), other.stop()
		if f.StreamDead != 10 {
			t.Errorf("IPv%d: %d of 10 streams were cut: %+v", family, f.StreamDead, f)
		}
		if o.StreamDead != 0 || o.Streams != 10 {
			t.Errorf("IPv%d: other's streams suffered: %+v", family, o)
		}
		l.apply(allowApps("friend", "other"))
		again := l.probe("friend", options{Addr: addr, Streams: 2}).stop()
		if again.Streams != 2 {
			t.Errorf("IPv%d: after the permission came back: %+v", family, again)
		}
	}
}

// Many policy changes under load: what old and new rules both allow never fails, what both deny never passes.
func TestRootPolicyChangesAreAtomic(t *testing.T) {
	l := scene(t)
	changes := 100
	if os.Getenv("PORIN_SOAK") != "" {
		changes = 1000
	}
	a4, a6 := hostPort(l.addr("server", 4)), hostPort(l.addr("server", 6))
	p4 := l.probe("friend", options{Addr: a4, Streams: 10, NewPerSec: 50, UDPPerSec: 500})
	p6 := l.probe("friend", options{Addr: a6, Streams: 10, NewPerSec: 50, UDPPerSec: 500})
	foe := l.probe("foe", options{Addr: a4, Denied: []string{a4, a6}, DenyEvery: 5 * time.Millisecond})
	for i := range changes {
		// other rules each time, new CIDRs too; friend is allowed and foe denied in all of them
		l.apply(allowApps("friend", "other") + fmt.Sprintf(`    - fromCIDR: ["198.51.%d.0/24", "10.%d.0.0/16"]
`, i%250, i%250))
	}
	s4, s6, d := p4.stop(), p6.stop(), foe.stop()
	for _, s := range []stats{s4, s6} {
		if s.StreamDead != 0 || s.NewFailed != 0 || s.UDPLost > s.Overflowed {
			t.Errorf("allowed traffic suffered: %+v", s)
		}
		if s.StreamBeats == 0 || s.NewOK == 0 || s.UDPReceived == 0 {
			t.Errorf("the probe probed nothing: %+v", s)
		}
	}
	if d.Leaked != 0 || d.Denied == 0 {
		t.Errorf("denied traffic: %+v", d)
	}
	t.Logf("%d changes: v4 %+v, v6 %+v, foe %+v", changes, s4, s6, d)
}

// kill -9 of the agent under load, again and again: nobody notices.
func TestRootAgentKilledUnderLoad(t *testing.T) {
	l := scene(t)
	rounds, down, pps := 5, time.Second, 2000
	if os.Getenv("PORIN_SOAK") != "" {
		rounds, down, pps = 20, 60*time.Second, 10000
	}
	a4, a6 := hostPort(l.addr("server", 4)), hostPort(l.addr("server", 6))
	p4 := l.probe("friend", options{Addr: a4, Streams: 25, NewPerSec: 100, UDPPerSec: pps})
	p6 := l.probe("friend", options{Addr: a6, Streams: 25, NewPerSec: 100})
	foe := l.probe("foe", options{Addr: a4, Denied: []string{a4, a6}, DenyEvery: 2 * time.Millisecond})
	before := l.porin("endpoint", "list", "-o", "json")
	args := agentArgs(t, l.agentPID())
	for range rounds {
		pid := l.agentPID()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "agent gone", func() bool { return syscall.Kill(pid, 0) != nil || zombie(pid) })
		time.Sleep(down) // the time it stays down is the test
		l.startAgent(args)
	}
	s4, s6, d := p4.stop(), p6.stop(), foe.stop()
	for _, s := range []stats{s4, s6} {
		if s.StreamDead != 0 || s.NewFailed != 0 || s.UDPLost > s.Overflowed || s.Streams != 25 {
			t.Errorf("allowed traffic suffered: %+v", s)
		}
	}
	if d.Leaked != 0 || d.Denied == 0 {
		t.Errorf("denied traffic: %+v", d)
	}
	if after := l.porin("endpoint", "list", "-o", "json"); len(after) == 0 || strings.Count(after, `"ready"`) != strings.Count(before, `"ready"`) {
		t.Errorf("endpoints before:\n%s\nafter:\n%s", before, after)
	}
	l.apply(allowApps("other")) // the restored agent still decides
	if s := l.probe("foe", options{Addr: a4, Denied: []string{a4, a6}, DenyEvery: 10 * time.Millisecond}).stop(); s.Leaked != 0 {
		t.Errorf("after restart: %+v", s)
	}
	t.Logf("%d kills, %s down each: v4 %+v, v6 %+v, foe %+v", rounds, down, s4, s6, d)
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

// A new binary replaces the programs under load without losing a packet.
func TestRootUpgradeLosesNothing(t *testing.T) {
	l := scene(t)
	a4 := hostPort(l.addr("server", 4))
	p := l.probe("friend", options{Addr: a4, Streams: 10, UDPPerSec: 10000})
	pid := l.agentPID()
	args := agentArgs(t, pid)
	b, err := os.ReadFile(bin(t, "porin-agent"))
	if err != nil {
		t.Fatal(err)
	}
	args[0] = filepath.Join(t.TempDir(), "porin-agent-next")
	if err := os.WriteFile(args[0], b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "agent stopped", func() bool { return syscall.Kill(pid, 0) != nil || zombie(pid) })
	l.startAgent(args)
	s := p.stop()
	if s.UDPLost > s.Overflowed || s.StreamDead != 0 {
		t.Errorf("lost packets: %+v", s)
	}
	t.Logf("%+v", s)
}
