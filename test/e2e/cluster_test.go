package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// routings are the ways between nodes, each over another underlay so that all of them are there.
func routings() []string {
	return []string{"routing: geneve\nunderlay: ipv4", "routing: vxlan\nunderlay: ipv6", "routing: native"}
}

func routingName(r string) string { return strings.Fields(r)[1] }

// lab runs a command of porin lab on the running lab and returns what it printed to its standard output.
func (l *lab) lab(args ...string) string {
	l.t.Helper()
	cmd := l.labCommand(args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatalf("porin lab %s: %v\n%s%s", strings.Join(args, " "), err, out, &errs)
	}
	return string(out)
}

func (l *lab) labCommand(args ...string) *exec.Cmd {
	return exec.Command(bin(l.t, "porin"), append(append([]string{"lab"}, args...), "--lab", l.name)...)
}

// logsOnFailure shows the ends of the lab's logs when the test has failed. Call it after up: it comes before the lab's end.
func (l *lab) logsOnFailure() {
	l.t.Cleanup(func() {
		if !l.t.Failed() {
			return
		}
		files, _ := filepath.Glob("/run/porin-lab/" + l.name + "/log/*.log")
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil || len(b) == 0 {
				continue
			}
			if len(b) > 8000 {
				b = b[len(b)-8000:]
			}
			l.t.Logf("--- end of %s:\n%s", filepath.Base(f), b)
		}
	})
}

type labPlace struct {
	Name   string   `json:"name"`
	Kind   string   `json:"kind"`
	Node   string   `json:"node"`
	Netns  string   `json:"netns"`
	Cgroup string   `json:"cgroup"`
	Addrs  []string `json:"addrs"`
	Pause  struct {
		PID int `json:"pid"`
	} `json:"pause"`
}

// place returns a node, workload or outside host of the lab.
func (l *lab) place(name string) labPlace {
	l.t.Helper()
	out, err := exec.Command(bin(l.t, "porin"), "lab", "list", "-o", "json").Output()
	if err != nil {
		l.t.Fatal(err)
	}
	var labs []struct {
		Name   string     `json:"name"`
		Places []labPlace `json:"places"`
	}
	if err := json.Unmarshal(out, &labs); err != nil {
		l.t.Fatal(err)
	}
	for _, x := range labs {
		for _, p := range x.Places {
			if x.Name == l.name && p.Name == name {
				return p
			}
		}
	}
	l.t.Fatalf("nothing in lab %s is called %s", l.name, name)
	return labPlace{}
}

// at returns the address of a place, of the family 4 or 6.
func (l *lab) at(name string, family int) string {
	l.t.Helper()
	for _, a := range l.place(name).Addrs {
		if strings.Contains(a, ":") == (family == 6) {
			return a
		}
	}
	l.t.Fatalf("%s has no IPv%d address", name, family)
	return ""
}

// on runs the CLI against a node's agent.
func (l *lab) on(node string, args ...string) string {
	l.t.Helper()
	return l.run(node, append([]string{bin(l.t, "porin")}, args...)...)
}

type cell struct{ From, To, Port, Family string }

// matrix returns what the wire shows for every pair; prediction and wire must agree.
func (l *lab) matrix() map[cell]string {
	l.t.Helper()
	out, err := l.labCommand("matrix", "-o", "json").Output()
	var cells []struct {
		cell
		Predicted, Seen string
		Same            bool
	}
	if jsonErr := json.Unmarshal(out, &cells); jsonErr != nil {
		l.t.Fatalf("porin lab matrix: %v %v\n%s", err, jsonErr, out)
	}
	seen := map[cell]string{}
	for _, c := range cells {
		if !c.Same {
			l.t.Errorf("%+v: predicted %s, the wire shows %s", c.cell, c.Predicted, c.Seen)
		}
		seen[c.cell] = c.Seen
	}
	return seen
}

// The examples of one node give the same matrix on two, and their checks hold there.
func TestRootExamplesAcrossNodes(t *testing.T) {
	root(t)
	for _, example := range []string{"starwars", "deny-by-default", "port-ranges", "icmp", "cidr-egress"} {
		dir := filepath.Join("..", "..", "examples", example)
		b, err := os.ReadFile(filepath.Join(dir, "lab.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		abs, err := filepath.Abs(dir)
		if err != nil {
			t.Fatal(err)
		}
		var text []string
		for line := range strings.Lines(string(b)) {
			switch {
			case strings.HasPrefix(line, "name:"), strings.HasPrefix(line, "nodes:"), strings.HasPrefix(line, "routing:"):
			default:
				text = append(text, strings.Replace(line, "file: ", "file: "+abs+"/", 1))
			}
		}
		t.Run(example, func(t *testing.T) {
			want := up(t, "nodes: 1\n"+strings.Join(text, "")).matrix()
			if len(want) == 0 {
				t.Fatal("the matrix on one node is empty")
			}
			for _, r := range routings() {
				t.Run(routingName(r), func(t *testing.T) {
					l := up(t, "nodes: 2\n"+r+"\n"+strings.Join(text, ""))
					l.logsOnFailure()
					got := l.matrix()
					for c, seen := range want {
						if got[c] != seen {
							t.Errorf("%+v: %s on one node, %s on two", c, seen, got[c])
						}
					}
					l.lab("check")
				})
			}
		})
	}
}

// scene2 is a server on each of two nodes, a friend and a foe of them on each.
func scene2(t *testing.T, routing string) *lab {
	t.Helper()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	l := up(t, fmt.Sprintf(`
nodes: 2
%s
workloads:
  - {name: server, node: node2, labels: {app: server}, run: [%q, probe-server, "80"]}
  - {name: near, node: node1, labels: {app: server}, run: [%q, probe-server, "80"]}
  - {name: friend, node: node1, labels: {app: friend}}
  - {name: other, node: node2, labels: {app: other}}
  - {name: foe, node: node1, labels: {app: foe}}
outside:
  - {name: internet, addresses: [203.0.113.10, "2001:db8:ffff::10"]}
objects:
  - inline: |
%s
`, routing, self, self, indent(allowApps("friend", "other"), "      ")))
	l.logsOnFailure()
	return l
}

// load is traffic of every kind between the nodes while something happens to them.
type load struct {
	t          *testing.T
	far4, far6 *prober // friend on node1 to the server on node2
	near       *prober // and to the one beside it
	foe        *prober
	streams    int
}

func (l *lab) load() *load {
	l.t.Helper()
	far4, far6 := hostPort(l.at("server", 4)), hostPort(l.at("server", 6))
	near4, near6 := hostPort(l.at("near", 4)), hostPort(l.at("near", 6))
	return &load{
		t: l.t, streams: 10,
		far4: l.probe("friend", options{Addr: far4, Streams: 10, NewPerSec: 20, UDPPerSec: 500}),
		far6: l.probe("friend", options{Addr: far6, Streams: 10, NewPerSec: 20, UDPPerSec: 500}),
		near: l.probe("friend", options{Addr: near4, Streams: 5, NewPerSec: 10}),
		foe:  l.probe("foe", options{Addr: far4, Denied: []string{far4, far6, near4, near6}, DenyEvery: 10 * time.Millisecond}),
	}
}

// stop ends the load: nothing of what is allowed may have suffered, nothing of what is denied have passed.
func (x *load) stop(what string) {
	x.t.Helper()
	for name, p := range map[string]*prober{"far, IPv4": x.far4, "far, IPv6": x.far6, "near": x.near} {
		s := p.stop()
		if s.StreamDead != 0 || s.NewFailed != 0 || s.UDPLost > s.Overflowed {
			x.t.Errorf("%s: allowed traffic suffered (%s): %+v", what, name, s)
		}
		if s.StreamBeats == 0 || s.NewOK == 0 {
			x.t.Errorf("%s: the probe probed nothing (%s): %+v", what, name, s)
		}
	}
	if s := x.foe.stop(); s.Leaked != 0 || s.Denied == 0 {
		x.t.Errorf("%s: denied traffic: %+v", what, s)
	}
}

// healthy waits until the agents of nodes say that they are.
func (l *lab) healthy(what string, nodes ...string) {
	l.t.Helper()
	for _, n := range nodes {
		eventually(l.t, 2*time.Minute, what+": "+n+" is healthy", func() bool {
			return l.exec(n, bin(l.t, "porin"), "status").Run() == nil
		}, func() string {
			out, _ := l.exec(n, bin(l.t, "porin"), "status").CombinedOutput()
			return string(out)
		})
	}
}

// sees waits until a node's list of nodes has another one in this state.
func (l *lab) sees(node, other, state string) {
	l.t.Helper()
	var last string
	eventually(l.t, 2*time.Minute, fmt.Sprintf("%s sees %s as %s", node, other, state), func() bool {
		var rows []map[string]string
		out, err := l.exec(node, bin(l.t, "porin"), "node", "list", "-o", "json").Output()
		last = string(out)
		if err != nil || json.Unmarshal(out, &rows) != nil {
			return false
		}
		return slices.ContainsFunc(rows, func(r map[string]string) bool { return r["name"] == other && r["state"] == state })
	}, func() string { return last })
}
