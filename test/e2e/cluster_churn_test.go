package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"porin/internal/lab/space"
)

// netnsOf makes a network namespace for a workload that the lab's file does not have; it goes with the lab.
func (l *lab) netnsOf(name string) string {
	l.t.Helper()
	file := filepath.Join("/run/porin-lab", l.name, "ns", name)
	if err := space.NewNetns(file); err != nil {
		l.t.Fatal(err)
	}
	return file
}

// cni runs the plugin on a node as its container runtime would, and returns the address it gave.
func (l *lab) cni(node, command, container, netns, app string) (netip.Addr, error) {
	cmd := l.exec(node, "env", "CNI_COMMAND="+command, "CNI_CONTAINERID="+container, "CNI_NETNS="+netns, "CNI_IFNAME=eth0", "CNI_PATH=/nowhere",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME="+container, bin(l.t, "porin-cni"))
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion":"1.1.0","name":"porin","type":"porin-cni","args":{"cni":{"labels":[{"key":"app","value":%q}]}}}`, app))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%s %s on %s: %w: %s", command, container, node, err, out)
	}
	if command != "ADD" {
		return netip.Addr{}, nil
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(out, &result); err != nil || len(result.IPs) == 0 {
		return netip.Addr{}, fmt.Errorf("%s %s on %s: %w: %s", command, container, node, err, out)
	}
	return result.IPs[0].Address.Addr(), nil
}

// A node is cut off from the store while an address gets another owner elsewhere: what the old owner was allowed the new
// one is not, neither before nor after the cut-off node hears of it: its tunnel packets carry who it is. With native
// routing nothing but the address tells who sent a packet, so a node that is cut off knows no better until it hears.
func TestRootAddressReusedBehindAPartition(t *testing.T) {
	for _, r := range routings() {
		t.Run(routingName(r), func(t *testing.T) {
			l := up(t, fmt.Sprintf(`
nodes:
  - {name: node1, podCIDRs: [10.1.0.0/29]}
  - {name: node2, podCIDRs: [10.2.0.0/24]}
%s
families: [ipv4]
workloads:
  - {name: server, node: node2, labels: {app: server}, serves: [{port: 80}]}
  - {name: friend, node: node1, labels: {app: friend}}
objects:
  - inline: |
%s
`, r, indent(allowApps("friend"), "      ")))
			l.logsOnFailure()
			server, friend := l.at("server", 4), netip.MustParseAddr(l.at("friend", 4))
			eventually(t, time.Minute, "friend reaches the server", func() bool { return l.tcp("friend", server, 80, true) })

			l.lab("fault", "cut", "--between", "node2", "store")
			if _, err := l.cni("node1", "DEL", l.name+"-friend", l.place("friend").Netns, "friend"); err != nil {
				t.Fatal(err)
			}
			netns := ""
			for i := range 6 {
				name := fmt.Sprint("foe-", i)
				file := l.netnsOf(name)
				got, err := l.cni("node1", "ADD", name, file, "foe")
				if err != nil {
					t.Fatalf("nobody got the address %s: %v", friend, err)
				}
				if got == friend {
					netns = file
					break
				}
			}
			passes := func() bool {
				cmd := exec.Command("timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/"+server+"/80")
				return space.Run(cmd, space.Where{Netns: netns}) == nil
			}
			tunnel := routingName(r) != "native"
			for range 5 {
				if tunnel && passes() {
					t.Fatalf("the new owner of %s passes for the old one while node2 is cut off", friend)
				}
			}
			l.lab("fault", "heal")
			eventually(t, 2*time.Minute, "node2 drops it by policy", func() bool {
				if passed := passes(); passed && tunnel {
					t.Fatalf("the new owner of %s passes for the old one", friend)
				} else if passed {
					return false
				}
				out := l.on("node2", "monitor", "--no-follow", "--type", "drop", "--last", "4095", "-o", "json")
				return strings.Contains(out, `"POLICY_DENIED"`) && strings.Contains(out, friend.String())
			})
		})
	}
}

// counts are what a node has that endpoints could leave behind.
func (l *lab) counts(node string) map[string]int {
	l.t.Helper()
	lines := func(text string) int { return strings.Count(text, "\n") }
	out := map[string]int{
		"endpoints": lines(l.on(node, "endpoint", "list")), "kernel's endpoints": lines(l.on(node, "bpf", "endpoint", "list")),
		"addresses": lines(l.on(node, "ip", "list")), "devices": lines(l.run(node, "cat", "/proc/net/dev")),
		"subjects": lines(l.on(node, "bpf", "policy", "list")), "identities": lines(l.on(node, "identity", "list")),
	}
	for line := range strings.Lines(l.on(node, "metrics", "list")) {
		f := strings.Fields(line)
		if len(f) < 2 || !slices.Contains([]string{"go_goroutines", "porin_process_open_fds"}, f[0]) {
			continue
		}
		n, err := strconv.ParseFloat(f[len(f)-1], 64)
		if err != nil {
			l.t.Fatalf("metric %q: %v", line, err)
		}
		out[f[0]] = int(n)
	}
	return out
}

// Endpoints come and go, a thousand a minute in the long form, and leave nothing behind on their node or on another one.
func TestRootChurnLeavesNothing(t *testing.T) {
	l := up(t, "nodes: 2\nrouting: geneve\nworkloads: [{name: one, node: node1}, {name: two, node: node2}]\n")
	l.logsOnFailure()
	l.sees("node2", "node1", "live")
	const workers = 4
	rounds := 25 // of each worker
	if os.Getenv("PORIN_SOAK") != "" {
		rounds = 2500 // 10 min at 1,000 a minute
	}
	var files [workers]string
	for i := range files {
		files[i] = l.netnsOf(fmt.Sprint("churn-", i))
	}
	churn := func(rounds int) (took []time.Duration) {
		t.Helper()
		times := make(chan time.Duration, workers*rounds)
		var g errgroup.Group
		for i := range workers {
			g.Go(func() error {
				for n := range rounds {
					name := fmt.Sprintf("churn-%d-%d", i, n)
					t0 := time.Now()
					if _, err := l.cni("node1", "ADD", name, files[i], "churn"); err != nil {
						return err
					}
					times <- time.Since(t0)
					if _, err := l.cni("node1", "DEL", name, files[i], "churn"); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		close(times)
		for d := range times {
			took = append(took, d)
		}
		slices.Sort(took)
		return took
	}
	churn(2) // what is there once stays: an identity, pools of the runtime
	before := map[string]map[string]int{"node1": l.counts("node1"), "node2": l.counts("node2")}
	took := churn(rounds)
	for node, want := range before {
		var last string
		eventually(t, 2*time.Minute, node+" is as it was", func() bool {
			now := l.counts(node)
			last = fmt.Sprintf("before %v\nnow    %v", want, now)
			for what, n := range now {
				slack := 0
				if strings.HasPrefix(what, "go_") || strings.HasPrefix(what, "porin_process") {
					slack = 20 // calls that are being answered
				}
				if n > want[what]+slack {
					return false
				}
			}
			return len(now) == 8
		}, func() string { return last })
	}
	t.Logf("%d ADDs, through the lab's command: median %s, p99 %s, longest %s", len(took), took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
}
