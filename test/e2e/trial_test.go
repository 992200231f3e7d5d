package e2e

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A change on trial whose agent is killed while it waits: packets go on under the new rules as long as nobody is there
// to take it back, and the next agent does so, at once when the time is over, otherwise when it is.
func TestRootTrialOfAKilledAgent(t *testing.T) {
	l := scene(t)
	server := l.addr("server", 4)
	before := l.porin("policy", "get", "default/server", "-o", "manifest")
	can := func(from string, must bool) bool { return l.tcp(from, server, 80, must) }
	if !can("friend", true) || can("foe", false) {
		t.Fatal("the policy is not in force")
	}
	for _, late := range []bool{true, false} {
		until := l.killedOnTrial(allowApps("foe"))
		if late {
			if !can("foe", true) || can("friend", false) {
				t.Error("with the agent dead, packets are not judged by the rules on trial")
			}
			time.Sleep(time.Until(until)) // the time that passes without an agent is the test
		}
		l.startAgent(l.args)
		eventually(t, 2*time.Minute, "what was before is in force again", func() bool { return can("friend", false) && !can("foe", false) },
			func() string { return l.porin("status") })
		if now := time.Now(); now.Before(until) {
			t.Errorf("taken back %s before its time", until.Sub(now))
		}
		if after := l.porin("policy", "get", "default/server", "-o", "manifest"); after != before {
			t.Errorf("the policy was\n%s\nand is\n%s", before, after)
		}
		eventually(t, time.Minute, "nothing waits any more", func() bool {
			out, err := l.exec("node1", bin(t, "porin"), "policy", "confirm").CombinedOutput()
			return err != nil && strings.Contains(string(out), "no change of policies waits")
		})
	}
}

// killedOnTrial puts a manifest on trial and kills the agent while it waits. It returns when the trial ends. On a machine
// that is too busy to get that far in time, the window grows.
func (l *lab) killedOnTrial(manifest string) time.Time {
	l.t.Helper()
	for window := 15 * time.Second; window < 10*time.Minute; window *= 4 {
		cmd := l.exec("node1", bin(l.t, "porin"), "policy", "apply", "--confirm-within", window.String(), "-o", "json", "-f", "-")
		cmd.Stdin = strings.NewReader(manifest)
		out, err := cmd.Output()
		var trial struct {
			Until time.Time `json:"until"`
		}
		if err == nil {
			err = json.Unmarshal(out, &trial)
		}
		if err != nil {
			l.t.Fatalf("put on trial for %s: %v\n%s", window, err, out)
		}
		pid := l.agentPID()
		l.args = agentArgs(l.t, pid)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			l.t.Fatal(err)
		}
		eventually(l.t, time.Minute, "agent gone", func() bool { return syscall.Kill(pid, 0) != nil || zombie(pid) })
		if time.Now().Before(trial.Until) {
			return trial.Until
		}
		l.startAgent(l.args)
	}
	l.t.Fatal("the agent could not be killed before the time of a trial was over")
	return time.Time{}
}
