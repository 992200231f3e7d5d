package lab

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"porin/internal/lab/space"
)

func clusterLab(t *testing.T, suffix, text string) *Lab {
	t.Helper()
	bin := binaries(t)
	file := filepath.Join(t.TempDir(), "lab.yaml")
	write(t, file, "name: "+labName(t, suffix)+"\n"+text)
	s, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	var progress strings.Builder
	l, err := Up(t.Context(), s, Options{BinDir: bin, Stderr: &progress}, false)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	l.tell = &teller{out: io.Discard}
	return l
}

// grants reads what the store says nodes were given, past its gate.
func (l *Lab) grants(t *testing.T) string {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + l.storeSocket()}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	resp, err := c.Get(ctx, "porin/ranges/v1/default/given/", clientv3.WithPrefix())
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, kv := range resp.Kvs {
		out = append(out, string(kv.Value))
	}
	return strings.Join(out, "\n")
}

// The operator gives nodes their ranges; kill -9 of the leader and a wiped store change nothing of that.
func TestRootLabOperator(t *testing.T) {
	l := clusterLab(t, "operator", `
nodes: 2
routing: native
families: [ipv4]
operator: {cluster-pool-ipv4-cidr: 10.40.0.0/23, cluster-pool-ipv6-cidr: ""}
workloads: [{name: one, node: node1}, {name: two, node: node2}]
`)
	ctx := t.Context()
	before := l.grants(t)
	for _, want := range []string{`"node":"node1","ranges":["10.40.`, `"node":"node2","ranges":["10.40.`} {
		if !strings.Contains(before, want) {
			t.Fatalf("grants:\n%s\nwant ...%s...", before, want)
		}
	}
	for _, w := range []string{"one", "two"} {
		p, err := l.place(w)
		if err != nil {
			t.Fatal(err)
		}
		n, err := l.place(p.Node)
		if err != nil {
			t.Fatal(err)
		}
		if len(n.PodCIDRs) != 1 || !n.PodCIDRs[0].Contains(p.Addrs[0]) {
			t.Errorf("%s on %s: %v is not in %v", w, n.Name, p.Addrs, n.PodCIDRs)
		}
	}
	if _, err := l.StartOperator(ctx, "second"); err != nil {
		t.Fatal(err)
	}
	if err := l.KillOperator(ctx, operatorName); err != nil {
		t.Fatal(err)
	}
	if err := l.WipeStore(ctx); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 2*time.Minute, func() bool { return l.grants(t) == before }, stringer(func() string {
		return "before:\n" + before + "\nnow:\n" + l.grants(t) + "\n" + lastLines(l.path("log", "second.log"), 20)
	}))
	if err := l.KillOperator(ctx, "third"); err == nil || !strings.Contains(err.Error(), "no operator") {
		t.Errorf("an operator that is not there: %v", err)
	}
}

type stringer func() string

func (s stringer) String() string { return s() }

// Faults of cables, between whom they are said to be; agents and the store end and come back; nothing of it stays.
func TestRootLabFaults(t *testing.T) {
	l := clusterLab(t, "faults", `
nodes: 2
routing: native
outside: [{name: internet, addresses: [203.0.113.10]}]
`)
	ctx := t.Context()
	reach := func(from string, to netip.Addr, want bool) {
		t.Helper()
		p, err := l.place(from)
		if err != nil {
			t.Fatal(err)
		}
		ok := func() bool {
			var out strings.Builder
			cmd, err := l.command([]string{"bash", "-c", fmt.Sprintf("timeout 1 bash -c 'exec 3<>/dev/tcp/%s/2379' 2>&1", to)})
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdout, cmd.Stderr = &out, &out
			code, err := l.wait(ctx, cmd, p)
			if err != nil {
				t.Fatal(err)
			}
			return code == 0 || strings.Contains(out.String(), "refused")
		}
		if !want {
			if ok() {
				t.Errorf("%s reaches %s", from, to)
			}
			return
		}
		waitFor(t, 2*time.Minute, ok, stringer(func() string { return from + " does not reach " + to.String() }))
	}
	store4, store6, node2 := storeAddr(false), storeAddr(true), nodeAddr(1, false)
	for _, c := range []struct {
		what  string
		do    func() error
		store bool // node1 reaches it
		node2 bool
	}{
		{"nothing", func() error { return nil }, true, true},
		{"cut from the store", func() error { return l.Cut(ctx, true, "node1", storeName) }, false, true},
		{"the same, said the other way round, healed", func() error { return l.Heal(ctx, true, storeName, "node1") }, true, true},
		{"cut from node2", func() error { return l.Cut(ctx, true, "node2", "node1") }, true, false},
		{"slow too", func() error { return l.Delay(ctx, 10*time.Millisecond, false, "node1") }, true, false},
		{"node2 healed", func() error { return l.Heal(ctx, false, "node2") }, true, true},
		{"cut from all", func() error { return l.Cut(ctx, false, "node1") }, false, false},
		{"loses little", func() error { return l.Lose(ctx, 0.01, false, "node1") }, true, true},
		{"all healed", func() error { return l.Heal(ctx, false) }, true, true},
	} {
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		t.Log(c.what)
		reach("node1", store4, c.store)
		reach("node1", store6, c.store)
		reach("node1", node2, c.node2)
		reach("node2", store4, true)
	}
	for _, p := range l.cabled() {
		if len(p.Faults) > 0 || p.Relay.PID != 0 {
			t.Errorf("healed, but %s has %v, relay %v", p.Name, p.Faults, p.Relay)
		}
	}
	for what, err := range map[string]error{
		"faults are for": l.Cut(ctx, true, "internet", "node1"), "for two places": l.Cut(ctx, true, "node1"), "cannot be lost": l.Lose(ctx, 1.5, false, "node1"),
		"nothing in lab": l.Cut(ctx, false, "node3"), "is no node": l.StopNode(ctx, "internet", true), "runs already": l.StartNode(ctx, "node1", true),
	} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("want an error with %q: %v", what, err)
		}
	}

	if err := l.KillStore(ctx); err != nil {
		t.Fatal(err)
	}
	if state, err := l.storeState(); err != nil || state != "down" {
		t.Errorf("a killed store is %s, %v", state, err)
	}
	if err := l.StopNode(ctx, "node2", true); err != nil {
		t.Fatal(err)
	}
	if err := l.StopNode(ctx, "node2", true); err == nil {
		t.Error("an agent was killed twice")
	}
	if err := l.StartStore(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.SlowStore(time.Second); err != nil {
		t.Fatal(err)
	}
	if state, _ := l.storeState(); !strings.Contains(state, "1s") {
		t.Errorf("a slow store is %s", state)
	}
	if err := l.SlowStore(0); err != nil {
		t.Fatal(err)
	}
	if err := l.StartNode(ctx, "node2", true); err != nil {
		t.Fatal(err)
	}
	p, err := l.place("node2")
	if err != nil || !p.Agent.Alive() {
		t.Errorf("the agent of node2: %+v %v", p.Agent, err)
	}
	if again := (space.Process{PID: p.Agent.PID, Start: p.Agent.Start + 1}).Signal(ctx, 9); again != nil || !p.Agent.Alive() {
		t.Errorf("a process of the same number was ended for another: %v", again)
	}
}
