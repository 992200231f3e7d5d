package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"porin/internal/lab/space"
)

// binaries is where `make build` puts the agent and the plugin.
func binaries(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dir, err := findBinaries("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// labName is unique to this test run.
func labName(t *testing.T, suffix string) string {
	t.Helper()
	needRoot(t)
	name := fmt.Sprintf("pt-%d-%s", os.Getpid(), suffix)
	t.Cleanup(func() {
		if err := Down(context.Background(), name); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return name
}

// left lists what of the lab called name is still on the machine.
func left(t *testing.T, name string) []string {
	t.Helper()
	var out []string
	root, err := space.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{labDir(name), filepath.Join(root, "porin-lab-"+name)} {
		if _, err := os.Stat(p); err == nil {
			out = append(out, p)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, labDir(name)) {
			out = append(out, "mount "+line)
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), "porin-lab-"+name) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			if _, dead := space.ProcessOf(pid); err == nil && errors.Is(dead, os.ErrProcessDone) {
				continue // ended; its parent has not asked yet
			}
			cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
			out = append(out, fmt.Sprintf("process %s %q", p, cmd))
		}
	}
	return out
}

func links(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

const tiny = `
workloads:
  - {name: server, labels: {app: server}, serves: [{port: 80, kind: http}, {port: 7, protocol: UDP}]}
  - {name: friend, labels: {app: friend}}
  - {name: foe, labels: {app: foe}}
  - {name: prog, run: ["true"]}
outside:
  - {name: internet, addresses: [203.0.113.10, "2001:db8:ffff::10"], serves: [{port: 443}]}
objects:
  - inline: |
      apiVersion: cilium.io/v2
      kind: CiliumNetworkPolicy
      metadata: {name: server, namespace: default}
      spec:
        endpointSelector: {matchLabels: {app: server}}
        ingress:
          - fromEndpoints: [{matchLabels: {app: friend}}]
            toPorts: [{ports: [{port: "80", protocol: TCP}, {port: "81", protocol: TCP}]}]
`

func tinySpec(t *testing.T, name, extra string) *Spec {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lab.yaml")
	write(t, file, "name: "+name+tiny+extra)
	s, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A whole life: up, checks that hold and checks that must be found wrong, commands, matrix, down, nothing left.
func TestRootLab(t *testing.T) {
	bin := binaries(t)
	before := links(t)
	name := labName(t, "life")
	ctx := t.Context()
	l, err := Up(ctx, tinySpec(t, name, ""), Options{BinDir: bin, Stderr: io.Discard}, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Up(ctx, tinySpec(t, name, ""), Options{BinDir: bin, Stderr: io.Discard}, false); err == nil || !strings.Contains(err.Error(), "lab down "+name) {
		t.Fatalf("a second lab of the same name: %v", err)
	}
	// as another process would see it
	if l, err = Open(name, Options{Stderr: io.Discard}); err != nil {
		t.Fatal(err)
	}
	t.Run("checks", func(t *testing.T) { checkRows(t, l) })
	t.Run("matrix", func(t *testing.T) {
		cells, err := l.Matrix(ctx, []portProto{{80, "TCP"}, {protocol: "ICMP"}})
		if err != nil {
			t.Fatal(err)
		}
		if len(cells) != 4*3*2*2 {
			t.Errorf("%d cells, want 48", len(cells))
		}
		seen := map[string]int{}
		for _, c := range cells {
			seen[c.Seen]++
			if !c.Same {
				t.Errorf("prediction and wire differ: %+v", c)
			}
		}
		if seen["allow"] == 0 || seen["deny"] == 0 {
			t.Errorf("the matrix proves nothing: %v", seen)
		}
	})
	t.Run("exec", func(t *testing.T) { execEverywhere(t, l) })
	t.Run("policy changes", func(t *testing.T) { editPolicy(t, l) })
	if got := left(t, name); len(got) < 6 {
		t.Errorf("a running lab shows only %q: the look for leftovers is blind", got)
	}
	if err := Down(ctx, name); err != nil {
		t.Fatal(err)
	}
	if got := left(t, name); len(got) > 0 {
		t.Errorf("left behind: %q", got)
	}
	var more []string
	waitFor(t, time.Minute, func() bool { // what runs beside this test may make devices too
		more = slices.DeleteFunc(links(t), func(d string) bool { return slices.Contains(before, d) })
		return len(more) == 0
	}, lazy(func() string { return fmt.Sprintf("devices left: %q", more) }))
	if err := Down(ctx, name); err != nil {
		t.Errorf("taking down again: %v", err)
	}
}

// checkRows: right expectations hold, wrong ones are found out, each for its reason.
func checkRows(t *testing.T, l *Lab) {
	for _, c := range []struct {
		check
		ok           bool
		seen, detail string
	}{
		{check{From: "friend", To: "server", Port: 80, Expect: expectAllow, Times: 3}, true, "allow", ""},
		{check{From: "foe", To: "server", Port: 80, Expect: expectDeny, Times: 2}, true, "deny", ""},
		{check{From: "foe", To: "server", Port: 80, Expect: expectDeny, Reason: "policy_denied"}, true, "deny", ""},
		{check{From: "friend", To: "server", Port: 81, Expect: expectReject}, true, "reject", ""}, // allowed, and nobody serves it
		{check{From: "friend", To: "internet", Port: 443, Expect: expectAllow}, true, "allow", ""},
		{check{From: "friend", To: "foe", Protocol: "ICMP", Expect: expectAllow}, true, "allow", ""},

		{check{From: "friend", To: "server", Port: 80, Expect: expectDeny}, false, "allow", "it was answered"},
		{check{From: "foe", To: "server", Port: 80, Expect: expectAllow}, false, "deny", ""},
		{check{From: "foe", To: "server", Port: 80, Expect: expectReject}, false, "timeout", "nobody said no"},
		{check{From: "friend", To: "server", Port: 81, Expect: expectDeny}, false, "reject", "no node reported a drop"},
		{check{From: "foe", To: "server", Port: 80, Expect: expectDeny, Reason: "INVALID_SOURCE_IP"}, false, "timeout", "but not for"},
		{check{From: "friend", To: "internet", Port: 444, Expect: expectAllow}, false, "reject", "refused"},
		{check{From: "friend", To: "server", Port: 7, Protocol: "UDP", Expect: expectAllow}, false, "deny", ""},
		{check{From: "internet", To: "server", Port: 80, Expect: expectAllow}, false, "deny", ""},
		{check{Run: command{"false"}, On: "foe", Expect: "0"}, false, "exit 1", ""},
		{check{Run: command{"no-such-program"}, On: "foe", Expect: "0"}, false, "error", "not found"},
		{check{Run: command{"/bin/sh", "-c", "kill -9 $$"}, On: "node1", Expect: "137"}, true, "exit 137", ""},
	} {
		if c.Protocol == "" {
			c.Protocol = "TCP"
		}
		c.Times = max(1, c.Times)
		rows, err := l.Check(t.Context(), []check{c.check})
		if err != nil {
			t.Fatal(err)
		}
		want := 2 // families
		if c.Run != nil {
			want = 1
		}
		if len(rows) != want {
			t.Errorf("%+v: %d rows", c.check, len(rows))
		}
		for _, r := range rows {
			if r.OK != c.ok || r.Seen != c.seen || !strings.Contains(r.Detail, c.detail) {
				t.Errorf("%+v:\ngot  %+v\nwant ok %v, seen %s, detail ...%s...", c.check, r, c.ok, c.seen, c.detail)
			}
			if c.Run == nil && r.Seen == "deny" && !strings.Contains(r.Rule, "server") {
				t.Errorf("%+v: a denial without the policy that denied: %+v", c.check, r)
			}
		}
	}
}

func execEverywhere(t *testing.T, l *Lab) {
	for where, want := range map[string]string{"node1": "node1", "friend": "friend", "internet": "internet"} {
		cmd, err := l.command([]string{"sh", "-c", "cat /proc/sys/kernel/hostname; grep -c server /etc/hosts; exit 7"})
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		cmd.Stdout = &out
		p, err := l.place(where)
		if err != nil {
			t.Fatal(err)
		}
		code, err := l.wait(t.Context(), cmd, p)
		if err != nil || code != 7 || out.String() != want+"\n2\n" {
			t.Errorf("in %s: code %d, %q, %v", where, code, out.String(), err)
		}
	}
	ctx, end := context.WithCancel(t.Context())
	end()
	if code, err := l.Exec(ctx, "friend", []string{"sleep", "60"}); err != nil || code != 128+15 {
		t.Errorf("sleep whose caller has ended: code %d, %v; want it terminated", code, err)
	}
	if _, err := l.Exec(t.Context(), "fiend", []string{"true"}); err == nil || !strings.Contains(err.Error(), `did you mean "friend"?`) {
		t.Errorf("a place that is not there: %v", err)
	}
}

func editPolicy(t *testing.T, l *Lab) {
	more := []byte(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: more, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress: [{fromEndpoints: [{matchLabels: {app: foe}}]}]
`)
	expect := func(want string) {
		t.Helper()
		rows, err := l.Check(t.Context(), []check{{From: "foe", To: "server", Port: 80, Protocol: "TCP", Times: 1, Expect: want}})
		if err != nil || !allOK(rows) {
			t.Errorf("foe -> server should be %s: %+v %v", want, rows, err)
		}
	}
	expect(expectDeny)
	if err := l.Apply(t.Context(), "more.yaml", more); err != nil {
		t.Fatal(err)
	}
	expect(expectAllow)
	if err := l.Delete(t.Context(), "more.yaml", more); err != nil {
		t.Fatal(err)
	}
	expect(expectDeny)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Apply(over, "more.yaml", more); err == nil || !strings.HasPrefix(err.Error(), "node1: interrupted: ") {
		t.Errorf("an interrupted change: %v", err)
	}
	if err := l.Apply(t.Context(), "bad.yaml", []byte("kind: Nonsense")); err == nil || !strings.Contains(err.Error(), "bad.yaml:1") {
		t.Errorf("a broken manifest: %v", err)
	}
}

// What cannot be built says why, and leaves nothing.
func TestRootLabThatCannotBeBuilt(t *testing.T) {
	bin := binaries(t)
	for want, extra := range map[string]string{
		"inline-line":        "  - inline: 'kind: Nonsense'\n",
		"no-such-program":    "checks: []\n",
		"no-such-setting":    "agent: {no-such-setting: 1}\n",
		"exit status 3\nwhy": "checks: []\n",
	} {
		name := labName(t, fmt.Sprintf("bad%d", len(want)))
		s := tinySpec(t, name, extra)
		switch want {
		case "no-such-program":
			s.Workloads[3].Run = command{want}
		case "exit status 3\nwhy":
			s.Workloads[3].Run = command{"/bin/sh", "-c", "echo why; exit 3"}
		}
		var progress strings.Builder
		_, err := Up(t.Context(), s, Options{BinDir: bin, Stderr: &progress}, false)
		if err == nil || !strings.Contains(err.Error()+progress.String(), want) {
			t.Errorf("%q: %v\n%s", want, err, progress.String())
		}
		if got := left(t, name); len(got) > 0 {
			t.Errorf("%q: left behind: %q", want, got)
		}
	}
	if _, err := Up(t.Context(), tinySpec(t, "x", ""), Options{BinDir: t.TempDir()}, false); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "make build") {
		t.Errorf("without binaries: %v", err)
	}
}

// labCommand runs `porin lab` in a process of its own.
func labCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"lab", "--bin-dir", binaries(t)}, args...)...)
	cmd.Path = os.Args[0]
	return cmd
}

// The process that builds or runs a lab is killed at any moment; `lab down` clears up whatever there is.
func TestRootCrashedLabIsRemoved(t *testing.T) {
	for i, moment := range []string{"ns/underlay", "ns/node1", "log/node1-agent.log", "ns/server", "log/prog.log"} {
		t.Run(moment, func(t *testing.T) {
			name := labName(t, fmt.Sprintf("crash%d", i))
			file := tinySpec(t, name, "checks: [{run: sleep 1000, on: node1}]").file
			cmd := labCommand(t, "run", file)
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, 2*time.Minute, func() bool {
				_, err := os.Stat(filepath.Join(labDir(name), moment))
				return err == nil
			}, &out)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if len(left(t, name)) == 0 {
				t.Fatal("nothing to clear up")
			}
			if out, err := labCommand(t, "down", name).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if got := left(t, name); len(got) > 0 {
				t.Errorf("left behind: %q", got)
			}
		})
	}
}

type lazy func() string

func (l lazy) String() string { return l() }

func waitFor(t *testing.T, limit time.Duration, cond func() bool, out fmt.Stringer) {
	t.Helper()
	deadline := time.After(limit)
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("not within %s:\n%s", limit, out)
		case <-time.After(time.Millisecond):
		}
	}
}

// Exit codes, and an interrupted run that tidies up after itself.
func TestRootLabRunEnds(t *testing.T) {
	for i, c := range []struct {
		checks string
		code   int
		signal syscall.Signal
	}{
		{"checks: [{from: friend, to: server, port: 80, expect: allow}]", 0, 0},
		{"checks: [{from: foe, to: server, port: 80, expect: allow}]", exitDiffers, 0},
		{"checks: [{from: foe, to: serve, port: 80, expect: allow}]", exitBroken, 0},
		{"checks: [{run: sleep 1000, on: foe}]", exitBroken, syscall.SIGINT},
		{"checks: [{run: sleep 1000, on: foe}]", exitBroken, syscall.SIGTERM},
	} {
		name := labName(t, fmt.Sprintf("run%d", i))
		file := filepath.Join(t.TempDir(), "lab.yaml")
		write(t, file, "name: "+name+tiny+c.checks)
		cmd := labCommand(t, "run", file, "-o", "json")
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if c.signal != 0 {
			waitFor(t, 2*time.Minute, func() bool {
				st, err := readState(name)
				return err == nil && st.Up
			}, &errs)
			if err := cmd.Process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != c.code {
			t.Errorf("%s: exit code %d, want %d\n%s%s", c.checks, got, c.code, &out, &errs)
		}
		if got := left(t, name); len(got) > 0 {
			t.Errorf("%s: left behind: %q", c.checks, got)
		}
		if c.code == exitBroken {
			continue
		}
		var r report
		if err := json.Unmarshal([]byte(out.String()), &r); err != nil || r.OK != (c.code == 0) || r.Lab != name || len(r.Checks) != 2 {
			t.Errorf("%s: report %+v, %v: %s", c.checks, r, err, &out)
		}
	}
}

// Labs of different names do not meet: same addresses, same node names, side by side.
func TestRootLabsSideBySide(t *testing.T) {
	bin := binaries(t)
	var labs []*Lab
	for _, suffix := range []string{"one", "two"} {
		l, err := Up(t.Context(), tinySpec(t, labName(t, suffix), ""), Options{BinDir: bin, Stderr: io.Discard}, false)
		if err != nil {
			t.Fatal(err)
		}
		labs = append(labs, l)
	}
	check := []check{{From: "friend", To: "server", Port: 80, Protocol: "TCP", Times: 1, Expect: expectAllow}}
	for range 2 {
		for _, l := range labs {
			rows, err := l.Check(t.Context(), check)
			if err != nil || !allOK(rows) {
				t.Errorf("%s: %+v %v", l.state.Name, rows, err)
			}
		}
	}
	if err := Down(t.Context(), labs[0].state.Name); err != nil {
		t.Fatal(err)
	}
	rows, err := labs[1].Check(t.Context(), check)
	if err != nil || !allOK(rows) {
		t.Errorf("after the other lab has gone: %+v %v", rows, err)
	}
}
