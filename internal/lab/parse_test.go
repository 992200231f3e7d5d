package lab

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const whole = `
name: starwars
nodes: 1
routing: native
families: [ipv4, ipv6]
agent: {policy-enforcement: default, ct-max: 4096}
store: embedded
namespaces:
  - {name: default}
workloads:
  - name: deathstar
    labels: {org: empire, class: deathstar}
    replicas: 2
    serves:
      - {port: 80, kind: http}
      - {port: 53, protocol: udp}
  - name: fighter
    run: ["python3", "-m", "http.server", "80"]
  - {name: shell, run: "sleep 1; true"}
outside:
  - {name: internet, addresses: [203.0.113.10, "2001:db8:ffff::10"], serves: [{port: 443}]}
objects:
  - inline: |
      kind: CiliumNetworkPolicy
checks:
  - {from: fighter, to: deathstar, port: 80, expect: allow}
  - {from: fighter, to: deathstar-2, protocol: ICMP, expect: deny}
  - {from: internet, to: deathstar, port: 80, family: ipv4, expect: deny, reason: POLICY_DENIED}
  - {from: fighter, to: 203.0.113.10, port: 443, expect: reject, times: 3}
  - {run: "porin status", on: node1}
  - {run: ["false"], on: fighter, expect: 1}
`

func TestParse(t *testing.T) {
	s, err := Parse("x/lab.yaml", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "starwars" || len(s.Nodes) != 1 || s.Nodes[0].Name != "node1" {
		t.Errorf("name and nodes: %q %+v", s.Name, s.Nodes)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")}
	if !reflect.DeepEqual(s.Nodes[0].PodCIDRs, want) {
		t.Errorf("pod ranges: %v, want %v", s.Nodes[0].PodCIDRs, want)
	}
	var names []string
	for _, p := range s.pods() {
		names = append(names, p.name+"@"+p.node+"/"+p.Namespace)
	}
	if got := strings.Join(names, " "); got != "deathstar-1@node1/default deathstar-2@node1/default fighter@node1/default shell@node1/default" {
		t.Errorf("pods: %s", got)
	}
	if d := s.Workloads[0].Serves; d[0].Kind != "http" || d[0].Protocol != "TCP" || d[1].Kind != "echo" || d[1].Protocol != "UDP" {
		t.Errorf("servers: %+v", d)
	}
	if got := s.Workloads[2].Run; !reflect.DeepEqual([]string(got), []string{"/bin/sh", "-c", "sleep 1; true"}) {
		t.Errorf("a program as one text: %q", got)
	}
	if c := s.Checks[4]; c.Expect != "0" || c.Times != 1 || c.line != 30 {
		t.Errorf("defaults of a command: %+v", c)
	}
	if c := s.Checks[0]; c.Protocol != "TCP" || c.line != 26 {
		t.Errorf("defaults of a check: %+v", c)
	}
}

func TestParseNames(t *testing.T) {
	for file, want := range map[string]string{"a/starwars/lab.yaml": "starwars", "a/one.yaml": "one", "two.yml": "two"} {
		s, err := Parse(file, []byte("nodes: 1"))
		if err != nil || s.Name != want {
			t.Errorf("%s: %v, %v", file, s, err)
		}
	}
}

// Every mistake is told with its line; a word that is nearly right gets the right one.
func TestParseErrors(t *testing.T) {
	server := "\nworkloads: [{name: a, serves: [{port: 80}]}, {name: b}]\n"
	for name, c := range map[string]struct{ text, want string }{
		"not a mapping":     {"[1, 2]", "a lab file is a mapping"},
		"two documents":     {"name: a\n---\nname: b", "one document"},
		"broken YAML":       {"name: [", "lab.yaml:1"},
		"unknown field":     {"name: x\nworklods: []", `lab.yaml:2: unknown field "worklods"; did you mean "workloads"?`},
		"unknown below":     {"workloads:\n  - name: a\n    label: {a: b}", `lab.yaml:3: workloads: unknown field "label"; did you mean "labels"?`},
		"far from all":      {"zebra: 1", "known: agent, checks"},
		"wrong type":        {"workloads:\n  - name: a\n    replicas: many", "lab.yaml:3: cannot unmarshal"},
		"twice":             {"name: a\nname: b", "lab.yaml:2: mapping key"},
		"alias":             {"workloads: &x []\nchecks: *x", "anchors and aliases"},
		"bad nodes":         {"nodes: none", `lab.yaml:1: nodes: "none" is not a number`},
		"too many nodes":    {"nodes: 65", "not a number of nodes from 1 to 64"},
		"underlay":          {"underlay: ipv7", `underlay: unknown family "ipv7"; did you mean "ipv4"?`},
		"store":             {"store: [\"ftp://x\"]", "neither embedded nor an endpoint"},
		"name of the store": {"nodes: 2\nworkloads: [{name: store}]", `lab.yaml:2: workload: the name "store" is already taken by the lab's own store`},
		"operator's ranges": {"operator: {}\nnodes: [{name: n, podCIDRs: [10.1.0.0/24]}]", "lab.yaml:2: node n: podCIDRs: the operator gives"},
		"family":            {"families: [ipv5]", `unknown family "ipv5"; did you mean "ipv4"?`},
		"routing":           {"routing: genev", `did you mean "geneve"?`},
		"names clash":       {"workloads:\n  - {name: a}\n  - {name: a}", `lab.yaml:3: workload: the name "a" is already taken by the workload of line 2`},
		"clash by replica":  {"workloads:\n  - {name: a-1}\n  - {name: a, replicas: 2}", `the name "a-1" is already taken`},
		"bad name":          {"workloads: [{name: ../x}]", "use up to 40 lower-case letters"},
		"bad lab name":      {"name: ../../etc", "use up to 40 lower-case letters"},
		"unknown node":      {"workloads: [{name: a, node: node2}]", `unknown node "node2"; did you mean "node1"?`},
		"kind later":        {"workloads: [{name: a, serves: [{port: 1, kind: grpc}]}]", "kind grpc needs the L7 issue"},
		"kind unknown":      {"workloads: [{name: a, serves: [{port: 1, kind: ecko}]}]", `did you mean "echo"?`},
		"sctp server":       {"workloads: [{name: a, serves: [{port: 1, protocol: SCTP}]}]", "no SCTP"},
		"no port served":    {"workloads: [{name: a, serves: [{}]}]", "port is missing"},
		"port too large":    {"workloads: [{name: a, serves: [{port: 70000}]}]", "lab.yaml:1: cannot unmarshal"},
		"served twice":      {"workloads: [{name: a, serves: [{port: 1}, {port: 1, kind: http}]}]", "port 1/TCP is there twice"},
		"serves and run":    {"workloads: [{name: a, run: x, serves: [{port: 1}]}]", "either serves"},
		"replicas":          {"workloads: [{name: a, replicas: 100}]", "not from 1 to 64"},
		"outside address":   {"outside: [{name: a, addresses: [127.0.0.1]}]", "not a unicast address that can be routed"},
		"outside in pods":   {"outside: [{name: a, addresses: [10.1.0.9]}]", "is in the pod range"},
		"outside in nodes":  {"outside: [{name: a, addresses: [172.31.5.5]}]", "is in the nodes' own network"},
		"outside taken":     {"outside: [{name: a, addresses: [192.0.2.1]}, {name: b, addresses: [192.0.2.1]}]", "is already the address of a"},
		"pod range":         {"nodes: [{name: n, podCIDRs: [10.1.0.1/24, 'fd00:1::/64']}]", "write 10.1.0.0/24"},
		"family without":    {"nodes: [{name: n, podCIDRs: [10.1.0.0/24]}]", "no ipv6 range"},
		"object":            {"objects: [{}]", "either file or inline"},
		"nobody":            {server + "checks: [{from: c, to: a, port: 80, expect: allow}]", `from: nothing is called "c"`},
		"no destination":    {server + "checks: [{from: b, port: 80, expect: allow}]", "to is missing"},
		"no port":           {server + "checks: [{from: b, to: a, expect: allow}]", "port is missing"},
		"icmp port":         {server + "checks: [{from: b, to: a, protocol: icmp, port: 8, expect: allow}]", "ICMP has no port"},
		"no expectation":    {server + "checks: [{from: b, to: a, port: 80}]", `expect: unknown ""`},
		"http later":        {server + "checks: [{from: b, to: a, port: 80, expect: 403}]", "need the L7 issue"},
		"service later":     {server + "checks: [{from: b, to: service default/a, port: 80, expect: allow}]", "need the services issue"},
		"sctp":              {server + "checks: [{from: b, to: a, protocol: SCTP, port: 80, expect: allow}]", "no SCTP client"},
		"foreign source":    {server + "checks: [{from: 8.8.8.8, to: a, port: 80, expect: allow}]", "address of no outside host"},
		"run nowhere":       {server + "checks: [{run: 'true'}]", "on is missing"},
		"run and from":      {server + "checks: [{run: 'true', on: a, from: b}]", "a command has only"},
		"exit code":         {server + "checks: [{run: 'true', on: a, expect: allow}]", "not an exit code"},
		"reason of allowed": {server + "checks: [{from: b, to: a, port: 80, expect: allow, reason: X}]", "reason goes with expect: deny"},
		"namespace labels":  {"namespaces: [{name: a, labels: {x: y}}]", "need the Kubernetes issue"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Parse("lab.yaml", []byte(c.text))
			if err == nil {
				t.Fatalf("accepted as %+v", s)
			}
			if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "lab.yaml") {
				t.Errorf("got  %v\nwant ...%s...", err, c.want)
			}
		})
	}
}

// All mistakes of a file are told at once.
func TestParseTellsAll(t *testing.T) {
	_, err := Parse("f", []byte("routing: x\nworkloads: [{name: A}, {name: b, node: c}]"))
	if got := strings.Count(err.Error(), "\n") + 1; got != 3 {
		t.Errorf("%d mistakes told, want 3:\n%v", got, err)
	}
}

func TestLoadReadsManifests(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "lab.yaml")
	write(t, file, "name: a\nobjects:\n  - file: p.yaml\n  - inline: 'x: y'\n")
	if _, err := Load(file); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "lab.yaml:3") {
		t.Errorf("a manifest that is not there: %v", err)
	}
	write(t, filepath.Join(dir, "p.yaml"), "a: b")
	s, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(s.Objects[0].content) != "a: b" || string(s.Objects[1].content) != "x: y" {
		t.Errorf("objects: %q %q", s.Objects[0].content, s.Objects[1].content)
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestParseChecksOfRunningLab(t *testing.T) {
	running, err := Parse("lab.yaml", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseChecks("more.yaml", []byte("checks:\n  - {from: fighter, to: deathstar-1, port: 53, protocol: udp, expect: allow}"), running)
	if err != nil || len(got) != 1 || got[0].Protocol != "UDP" || got[0].Times != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	for text, want := range map[string]string{
		"checks: [{from: fightr, to: deathstar, port: 1, expect: allow}]": `more.yaml:1: check: from: nothing is called "fightr"; did you mean "fighter"?`,
		"workloads: []": "there are no checks",
		"cheks: []":     `did you mean "checks"?`,
		"":              "there are no checks",
	} {
		if _, err := parseChecks("more.yaml", []byte(text), running); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// Whatever the text, Parse returns; what it accepts can be built: names are unique and fit for files and devices.
func FuzzParse(f *testing.F) {
	f.Add(whole)                             // everything at once
	f.Add("nodes: [{name: n}]")              // nodes as a list
	f.Add("a: &a [*a]")                      // an alias to itself
	f.Add("workloads: [{name: a, run: {}}]") // a mapping where words are due
	f.Add("nodes: 99999999999999999999")     // a number that fits nowhere
	f.Add("checks: [{expect: 0x10, run: x, on: node1}]")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse("f.yaml", []byte(text))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f.yaml") {
				t.Errorf("error without the file's name: %v", err)
			}
			return
		}
		seen := map[string]bool{}
		for _, p := range s.pods() {
			if !validName(p.name) && len(p.name) <= 40 || seen[p.name] {
				t.Errorf("pod name %q", p.name)
			}
			seen[p.name] = true
		}
		if !validName(s.Name) {
			t.Errorf("lab name %q", s.Name)
		}
	})
}
