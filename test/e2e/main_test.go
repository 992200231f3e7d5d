// Package e2e runs whole labs, as a user would, and breaks them: agents killed, policies changed under load, state
// files cut short. Every test needs root and the binaries of `make build` in bin/.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "probe-") {
		os.Exit(probeMain(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// root fails the test without root, unless this is a run of `make test-unit`.
func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 && os.Getenv("PORIN_UNIT") == "" {
		return
	}
	if os.Getenv("PORIN_UNIT") != "" {
		t.Skip("unit run: needs root")
	}
	t.Fatal("needs root: run with sudo")
}

// bin returns the path of a built binary.
func bin(t *testing.T, name string) string {
	t.Helper()
	p, err := filepath.Abs(filepath.Join("..", "..", "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err != nil {
		t.Fatalf("%s is not built: run 'make build' first (%v)", name, err)
	}
	return p
}

// lab is a running lab.
type lab struct {
	t    *testing.T
	name string
	dir  string
	args []string // of the agent that was killed
}

// up writes the lab file and brings it up; it is taken down when the test ends.
func up(t *testing.T, yaml string) *lab {
	t.Helper()
	root(t)
	l := &lab{t: t, name: fmt.Sprintf("e2e-%d-%s", os.Getpid(), strings.ToLower(strconv.FormatInt(time.Now().UnixNano()%1e9, 36))), dir: t.TempDir()}
	file := filepath.Join(l.dir, "lab.yaml")
	if err := os.WriteFile(file, []byte("name: "+l.name+"\n"+yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command(bin(t, "porin"), "lab", "down", l.name).CombinedOutput(); err != nil {
			t.Errorf("lab down: %v\n%s", err, out)
		}
	})
	if out, err := exec.Command(bin(t, "porin"), "lab", "up", file).CombinedOutput(); err != nil {
		t.Fatalf("lab up: %v\n%s", err, out)
	}
	return l
}

// exec returns a command that runs in a workload, an outside host or a node of the lab.
func (l *lab) exec(where string, args ...string) *exec.Cmd {
	return exec.Command(bin(l.t, "porin"), append([]string{"lab", "exec", "--lab", l.name, where, "--"}, args...)...)
}

// run runs it and returns what it printed.
func (l *lab) run(where string, args ...string) string {
	l.t.Helper()
	out, err := l.exec(where, args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %s: %v\n%s", where, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// porin runs the CLI against the node's agent.
func (l *lab) porin(args ...string) string {
	l.t.Helper()
	return l.run("node1", append([]string{bin(l.t, "porin")}, args...)...)
}

// apply puts a manifest in force and waits for it.
func (l *lab) apply(manifest string) {
	l.t.Helper()
	cmd := l.exec("node1", bin(l.t, "porin"), "policy", "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("policy apply: %v\n%s", err, out)
	}
}

// addr returns a workload's address of the family, 4 or 6.
func (l *lab) addr(pod string, family int) string {
	l.t.Helper()
	var list []map[string]any
	if err := json.Unmarshal([]byte(l.porin("endpoint", "list", "-o", "json")), &list); err != nil {
		l.t.Fatal(err)
	}
	for _, e := range list {
		if e["pod"] == pod {
			return e[fmt.Sprintf("ipv%d", family)].(string)
		}
	}
	l.t.Fatalf("no endpoint of pod %s in %v", pod, list)
	return ""
}

// agentPID returns the process of the node's agent.
func (l *lab) agentPID() int {
	l.t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(l.run("node1", "cat", "/run/porin/agent.pid")))
	if err != nil {
		l.t.Fatal(err)
	}
	return pid
}

// agentArgs returns the command line of a process.
func agentArgs(t *testing.T, pid int) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
}

// startAgent starts an agent in the node with the given command line and waits until it answers.
func (l *lab) startAgent(args []string) *exec.Cmd {
	l.t.Helper()
	cmd := l.exec("node1", args...)
	log, err := os.CreateTemp(l.dir, "agent-*.log") // a file: the agent outlives the command that started it
	if err != nil {
		l.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if b, err := os.ReadFile(log.Name()); err == nil && l.t.Failed() {
			l.t.Logf("agent log:\n%s", b)
		}
		log.Close()
	})
	out, err := l.exec("node1", bin(l.t, "porin"), "status", "--wait").CombinedOutput()
	if err != nil {
		l.t.Fatalf("agent did not come up: %v\n%s", err, out)
	}
	return cmd
}

// prober is a running probe client.
type prober struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
	errs  bytes.Buffer
}

// probe starts a client in a workload and waits until its streams stand.
func (l *lab) probe(where string, o options) *prober {
	l.t.Helper()
	if o.Silence == 0 {
		o.Silence = patience
	}
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		l.t.Fatal(err)
	}
	j, err := json.Marshal(o)
	if err != nil {
		l.t.Fatal(err)
	}
	p := &prober{t: l.t, cmd: l.exec(where, self, "probe-client", string(j))}
	p.stdin, err = p.cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	p.cmd.Stderr = &p.errs
	p.out = bufio.NewReader(stdout)
	if err := p.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	p.cmd.WaitDelay = 5 * time.Second // what it started in the lab may hold its pipes
	l.t.Cleanup(func() { p.stdin.Close(); _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	line, err := p.out.ReadString('\n')
	if err != nil || line != "ready\n" {
		l.t.Fatalf("probe in %s: %v %q %s", where, err, line, p.errs.String())
	}
	return p
}

// stop ends the client and returns its report.
func (p *prober) stop() (s stats) {
	p.t.Helper()
	p.stdin.Close()
	if err := json.NewDecoder(p.out).Decode(&s); err != nil {
		p.t.Fatalf("probe report: %v %s", err, p.errs.String())
	}
	return s
}

// eventually polls cond until it holds or the time is over.
func eventually(t *testing.T, limit time.Duration, what string, cond func() bool, detail ...func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for !cond() {
		select {
		case <-ctx.Done():
			for _, d := range detail {
				what += "\n" + d()
			}
			t.Fatalf("not within %s: %s", limit, what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
