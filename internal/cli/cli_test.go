package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write what the commands print into the scripts and into docs/CLI.md")

// TestMain lets the scripts call the test binary as porin.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"porin": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}})
}

func TestScripts(t *testing.T) {
	well, sick := serve(t, &fakeAgent{}), serve(t, &fakeAgent{sick: true})
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PORIN_SOCKET", well)
			e.Setenv("SICK", sick)
			e.Setenv("TZ", "UTC")
			return nil
		},
	})
}

// call runs a command in this process.
func call(ctx context.Context, root *cobra.Command, in string, args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = run(ctx, root, args, strings.NewReader(in), &o, &e)
	return code, o.String(), e.String()
}

// commands lists every command that can be run, the deepest first.
func commands(root *cobra.Command) (out []*cobra.Command) {
	for _, c := range root.Commands() {
		if c.Name() == "help" || c.Hidden {
			continue
		}
		out = append(out, commands(c)...)
	}
	return append(out, root)
}

func TestEveryCommandExplainsItself(t *testing.T) {
	all := commands(New())
	if len(all) < 40 {
		t.Errorf("only %d commands: is the walk right?", len(all))
	}
	for _, c := range all {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short help is %q; want one phrase without a period", c.CommandPath(), c.Short)
		}
		if !strings.Contains(c.Example, "porin") {
			t.Errorf("%s has no example in its help", c.CommandPath())
		}
		if strings.HasPrefix(c.Use, "list") && !strings.Contains(c.CommandPath(), " lab ") && c.Flags().Lookup("output") == nil {
			t.Errorf("%s has no -o", c.CommandPath())
		}
	}
}

// hostile is text as somebody who may choose a pod's name or label would write it.
func hostile() []string {
	return []string{"\x1b[2J\x1b]0;owned\x07\n\r\t", "\u009b31m\u202egnp.exe\u2028\U000e0041\x7f"}
}

func TestNoControlCharacterReachesTheTerminal(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.yaml")
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := errors.Join(os.WriteFile(file, []byte("a: b"), 0o600), os.WriteFile(bad, []byte("wrong: b"), 0o600)); err != nil {
		t.Fatal(err)
	}
	lists := []string{
		"status", "endpoint list", "endpoint get 11", "endpoint labels 11 -a k8s:x=y", "endpoint log 11", "endpoint health 11",
		"endpoint disconnect 11", "identity list", "identity get 1", "policy get", "ip list", "node list", "config", "config get", "config set a=b",
		"metrics list", "bpf endpoint list", "bpf policy list", "bpf ipcache get 10.1.0.6", "bpf ct list", "bpf nat list", "db", "db endpoints", "version",
	}
	var calls []string
	for _, l := range lists {
		calls = append(calls, l, l+" -o json", l+" -o yaml")
	}
	calls = append(calls, "policy get -o manifest", "policy apply -f "+file, "policy apply -f "+bad, "policy delete a", "endpoint get 99",
		"policy apply --confirm-within 1m "+file, "policy delete a --confirm-within 1m -o json", "policy confirm", "policy rollback -o yaml", "policy wait -o json", "config get \x1b[2J",
		"monitor -v --hex", "monitor -o json", "monitor", "\x1b[2J", "status --\x1b[2J")
	for _, h := range hostile() {
		t.Setenv(envSocket, serve(t, &fakeAgent{hostile: h, sick: true}))
		for _, c := range calls {
			code, out, errs := call(t.Context(), New(), "", strings.Split(c, " ")...)
			if out+errs == "" {
				t.Errorf("%q printed nothing (exit %d)", c, code)
			}
			for _, r := range out + errs {
				if r != '\n' && !unicode.IsPrint(r) && !(r == '\t' && strings.Contains(c, "manifest")) {
					t.Errorf("%q printed %U: %.200q", c, r, out+errs)
					break
				}
			}
		}
	}
}

func TestMonitorEndsWithTheUser(t *testing.T) {
	t.Setenv(envSocket, serve(t, &fakeAgent{}))
	ctx, cancel := context.WithCancel(t.Context())
	pipe := &waiter{text: "policy-updated", seen: cancel}
	var errs bytes.Buffer
	if code := run(ctx, New(), []string{"monitor"}, strings.NewReader(""), pipe, &errs); code != 0 || errs.Len() > 0 {
		t.Errorf("exit %d, %s after an interrupt", code, errs.String())
	}
	if !strings.Contains(pipe.String(), "5 events lost here") {
		t.Errorf("printed %s", pipe.String())
	}
}

// waiter calls seen once text was written.
type waiter struct {
	bytes.Buffer
	text string
	seen func()
}

func (w *waiter) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if strings.Contains(w.String(), w.text) {
		w.seen()
	}
	return n, err
}

func TestStatusWaitsForTheAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	t.Setenv(envSocket, path)
	code, _, errs := call(t.Context(), New(), "", "status", "--wait", "--timeout", "1ms")
	if code != exitNotYet || !strings.Contains(errs, "not healthy after 1ms: connect to "+path+": no such file") {
		t.Errorf("nobody there: exit %d, %s", code, errs)
	}
	done := make(chan int, 1)
	go func() {
		code, _, _ := call(t.Context(), New(), "", "status", "--wait", "--timeout", "1m")
		done <- code
	}()
	real := serve(t, &fakeAgent{})
	if err := os.Symlink(real, path); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 0 {
		t.Errorf("agent came: exit %d", code)
	}
}

func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close() // the file stays, as after a crash
	code, _, errs := call(t.Context(), New(), "", "--socket", path, "ip", "list")
	if code != exitUnreachable || !strings.Contains(errs, "nobody listens: porin-agent has stopped") {
		t.Errorf("dead socket: exit %d, %s", code, errs)
	}
	code, _, errs = call(t.Context(), New(), "", "--socket", dir+"/none", "ip", "list")
	if want := "porin ip list: connect to " + dir + "/none: no such file: is porin-agent running? start it with 'sudo porin-agent', or name its socket with --socket\n"; code != exitUnreachable || errs != want {
		t.Errorf("no agent: exit %d, %s", code, errs)
	}
}

func TestDefaultSocket(t *testing.T) {
	for _, c := range []struct{ socket, dir, want string }{
		{"", "", "/run/porin/agent.sock"}, {"", "/tmp/x", "/tmp/x/agent.sock"}, {"/tmp/y.sock", "/tmp/x", "/tmp/y.sock"},
	} {
		t.Setenv(envSocket, c.socket)
		t.Setenv(envRunDir, c.dir)
		if got := (&shell{}).path(); got != c.want {
			t.Errorf("%s=%q %s=%q: %s, want %s", envSocket, c.socket, envRunDir, c.dir, got, c.want)
		}
	}
	if got := (&shell{socket: "/z"}).path(); got != "/z" {
		t.Errorf("flag: %s", got)
	}
}

func TestCleanup(t *testing.T) {
	base := filepath.Join(t.TempDir(), "porin")
	runDir, stateDir := filepath.Join(base, "run"), filepath.Join(base, "state")
	t.Setenv(envSocket, "")
	t.Setenv(envRunDir, runDir)
	for _, c := range []struct {
		name, in, errs string
		args           []string
		root, agent    bool
		locked         bool
		broken         error
		code           int
		cleaned        bool
	}{
		{name: "not root", errs: "needs root: run with sudo", code: exitUnreachable},
		{name: "asked and refused", in: "no\n", root: true, errs: "nothing was removed", code: exitFailed},
		{name: "asked and no answer", root: true, errs: "nothing was removed", code: exitFailed},
		{name: "asked and agreed", in: "yes\n", root: true, cleaned: true},
		{name: "forced", args: []string{"--force"}, root: true, cleaned: true},
		{name: "agent runs", args: []string{"--force"}, root: true, agent: true, errs: "the agent runs", code: exitFailed},
		{name: "agent starts", args: []string{"--force"}, root: true, locked: true, errs: "it holds the lock of " + stateDir + "; stop it first\n", code: exitFailed},
		{name: "someone else's folder", args: []string{"--force", "--state-dir", "/var/lib/x"}, root: true, errs: `no part of its name is porin`, code: exitUsage},
		{name: "relative folder", args: []string{"--force", "--state-dir", "porin"}, root: true, errs: "write it from the root", code: exitUsage},
		{name: "kernel refuses", args: []string{"--force"}, root: true, broken: errors.New("delete device porin_host: busy"), errs: "porin_host: busy", code: exitFailed, cleaned: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, d := range []string{runDir, stateDir} {
				if err := os.MkdirAll(filepath.Join(d, "endpoints"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if c.agent {
				l, err := net.Listen("unix", filepath.Join(runDir, "agent.sock"))
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
			}
			if c.locked {
				f, err := os.Create(filepath.Join(stateDir, "agent.lock"))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
					t.Fatal(err)
				}
			}
			cleaned := ""
			s := &shell{interactive: func(any) bool { return false }, isRoot: func() bool { return c.root }, clean: func(root string) error { cleaned = root; return c.broken }}
			args := append([]string{"cleanup", "--bpf-root", "/bpf", "--state-dir", stateDir}, c.args...)
			code, out, errs := call(t.Context(), s.root(), c.in, args...)
			if code != c.code || !strings.Contains(errs, c.errs) {
				t.Errorf("exit %d, want %d\n%s%s", code, c.code, out, errs)
			}
			if (cleaned == "/bpf") != c.cleaned {
				t.Errorf("datapath cleaned below %q", cleaned)
			}
			for _, d := range []string{runDir, stateDir} {
				if _, err := os.Stat(d); errors.Is(err, os.ErrNotExist) != c.cleaned {
					t.Errorf("%s: %v", d, err)
				}
			}
		})
	}
}

func TestGuardJoinsSplitCharacters(t *testing.T) {
	var b bytes.Buffer
	g := &guard{to: &b}
	for _, c := range []byte("grün\x1b \u009b日\U000e0041\xc3") {
		if n, err := g.Write([]byte{c}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := g.Flush(); err != nil {
		t.Fatal(err)
	}
	if want := `grün\u001b \u009b日\U000e0041\xc3`; b.String() != want {
		t.Errorf("got  %s\nwant %s", b.String(), want)
	}
}

func FuzzGuard(f *testing.F) {
	for _, h := range hostile() {
		f.Add([]byte(h), 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		var b bytes.Buffer
		g := &guard{to: &b}
		cut = max(0, min(cut, len(in)))
		for _, part := range [][]byte{in[:cut], in[cut:]} {
			if _, err := g.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.Flush(); err != nil {
			t.Fatal(err)
		}
		for _, r := range b.String() {
			if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
				t.Fatalf("%q passed %U", in, r)
			}
		}
	})
}
