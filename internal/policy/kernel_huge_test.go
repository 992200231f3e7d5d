package policy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"porin/bpf/packet"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// The huge policy of F20: so many rules, each with as many blocks, ports and kinds of verdicts as make these numbers.
const hugeRules, hugeBlocks, hugePorts = 10_000, 50_000, 5_000

// hugeBlock is outside of the ranges of pods and nodes.
func hugeBlock(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 12), byte(i >> 4), byte(i << 4)}), 28)
}

func hugeDocument() string {
	const each = hugeBlocks / hugeRules
	var b strings.Builder
	b.WriteString("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: huge, namespace: default}\nspecs:\n")
	for r := range hugeRules {
		var blocks []string
		for i := range each {
			blocks = append(blocks, hugeBlock(r*each+i).String())
		}
		list := "egress"
		if r%10 == 9 {
			list = "egressDeny"
		}
		fmt.Fprintf(&b, "- {endpointSelector: {}, %s: [{toCIDR: [%s], toPorts: [{ports: [{port: %d, protocol: TCP}]}]}]}\n", list, strings.Join(blocks, ","), 1+r%hugePorts)
	}
	return b.String()
}

func spent(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// huge is what it took to put the huge policy in force for one endpoint.
type huge struct {
	read  time.Duration // the document: CPU
	cpu   time.Duration // all the rest, from the documents to the last write to a map
	clock time.Duration // the same by the clock
}

// putHuge puts the huge policy in force on a real kernel and asks the programs, and the engine, for verdicts.
func putHuge(t testing.TB, n *kernelNode, samples int) (h huge) {
	t.Helper()
	engine := policy.NewEngine(policy.Config{DualStack: n.dual})
	endpoints, _ := newRooms(t, n, engine)
	row, err := endpoints.Create(t.Context(), endpoint.Request{
		ContainerID: "huge", IfName: "eth0", Netns: n.netns[0], Namespace: "default", MTU: 1500,
		Labels: labels.New(labels.Label{Source: labels.SourceK8s, Key: "app", Value: "huge"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	text := []byte(hugeDocument())
	began := spent(t)
	docs, err := policy.Parse("huge.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	h.read = spent(t) - began
	began = spent(t)
	clock := time.Now()
	rev, err := endpoints.ApplyPolicies(t.Context(), docs, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := endpoints.WaitRevision(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	h.clock, h.cpu = time.Since(clock), spent(t)-began

	self := identity.Identity{ID: row.Identity, Labels: row.Security}
	link := packet.Link{Src: packet.MAC(row.MAC), Dst: n.gateway}
	allowed := 0
	for i := range samples {
		k := int(uint64(i) * 2654435761 % hugeBlocks) // all over the place
		rule := k / (hugeBlocks / hugeRules)
		port := 1 + (rule+i%2)%hugePorts // the rule's own, or the next rule's
		want := i%2 == 0 && rule%10 != 9
		if i%100 < 2 { // each time it looks at all rules anew
			to := identity.Identity{ID: identity.ScopeLocal + 1, Prefix: hugeBlock(k)}
			if got := engine.Decide(self, to, policy.ProtoTCP, uint16(port)).Egress.Action == verdict.Allow; got != want {
				t.Fatalf("the engine to %s port %d: allowed %t, want %t", hugeBlock(k), port, got, want)
			}
		}
		frame, err := packet.Parse(fmt.Sprintf("ip %s > %s tcp %d > %d S", row.IPv4, hugeBlock(k).Addr().Next(), 20000+i%40000, port), link)
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := n.send("pod_egress", row.Ifindex, frame)
		if err != nil || got != want {
			t.Fatalf("the kernel to %s port %d: forwarded %t, %v, want %t", hugeBlock(k), port, got, err, want)
		}
		if got {
			allowed++
		}
	}
	if samples > 10 && (allowed == 0 || allowed == samples) {
		t.Fatalf("%d of %d allowed", allowed, samples)
	}
	if a := append(endpoints.Alarms(), n.datapath.Alarms()...); len(a) > 0 {
		t.Fatalf("alarms: %q", a)
	}
	return h
}

// TestRootHugePolicyInForce is F20 in the kernel: 10,000 rules with 50,000 blocks and 5,000 ports for one endpoint, and
// verdicts of packets sampled all over them.
func TestRootHugePolicyInForce(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := putHuge(t, newKernelNode(t, true), 2000)
	t.Logf("read in %s CPU; in force in %s CPU, %s by the clock", h.read, h.cpu, h.clock)
}

// BenchmarkRootHugePolicyInForce: from the documents to the last write to a map, by the clock (s) and in CPU (cpu-s).
func BenchmarkRootHugePolicyInForce(b *testing.B) {
	if !inNamespaces(b) {
		return
	}
	h := putHuge(b, newKernelNode(b, true), 100)
	b.ReportMetric(h.clock.Seconds(), "s")
	b.ReportMetric(h.cpu.Seconds(), "cpu-s")
	b.ReportMetric(h.read.Seconds(), "parse-cpu-s")
	b.ReportMetric(0, "ns/op")
}
