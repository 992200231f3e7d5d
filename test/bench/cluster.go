package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"porin/internal/identity"
	"porin/internal/kvstore"
	"porin/internal/lab"
	"porin/internal/lab/space"
	"porin/internal/labels"
	cluster "porin/internal/node"
)

// Size of the cluster whose agent is weighed.
const (
	ownPods    = 1000
	otherNodes = 400
	otherPods  = 100_000
	labelSets  = 20_000
	trials     = 40
	theirOwn   = 4 // node2's workload and its health endpoint, of both families
	echoPort   = 9000
)

// cluster measures what an agent of a large cluster needs, and how long a new pod of another node waits to be reachable.
func (b *bench) cluster(ctx context.Context) (err error) {
	dir := filepath.Join(b.dir, "store")
	server := kvstore.ServerConfig{Dir: filepath.Join(dir, "etcd"), Socket: filepath.Join(dir, "s", "etcd.sock")}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- kvstore.Serve(serving, slog.New(slog.DiscardHandler), server) }()
	defer func() {
		stop()
		if e := <-ended; !errors.Is(e, context.Canceled) {
			err = errors.Join(err, e)
		}
	}()
	client, err := kvstore.Dial(slog.New(slog.DiscardHandler), kvstore.Config{Endpoints: []string{server.Endpoint()}, Node: "bench"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	l, down, err := b.lab(ctx, fmt.Sprintf(`
store: ["%s"]
routing: geneve
nodes:
  - {name: node1, podCIDRs: [10.80.0.0/20, "fd00:80::/64"]}
  - {name: node2, podCIDRs: [10.81.0.0/24, "fd00:81::/64"]}
workloads:
  - {name: asks, node: node1, labels: {app: asks}}
  - {name: answers, node: node2, labels: {app: answers}, serves: [{port: %d, protocol: UDP}]}
`, server.Endpoint(), echoPort), "cluster", b.binDir)
	defer func() { err = errors.Join(err, down()) }()
	if err != nil {
		return err
	}
	if err := b.remotePods(ctx, l, client); err != nil {
		return err
	}
	return b.weight(ctx, l, client, server.Endpoint())
}

// remotePods measures from the moment at which the store has the record of a pod until it answers a pod of another node.
func (b *bench) remotePods(ctx context.Context, l *lab.Lab, client *kvstore.Client) error {
	asks, err := l.Place("asks")
	if err != nil {
		return err
	}
	answers, err := l.Place("answers")
	if err != nil {
		return err
	}
	if err := l.StopNode(ctx, "node2", true); err != nil { // its pods go on; nobody writes its records but we
		return err
	}
	addr := answers.Addrs[0]
	key := kvstore.AddressKey("default", "node2", addr)
	found, _, err := client.Look(ctx, key, false, 1)
	if err != nil {
		return err
	}
	var took []float64
	for range trials {
		if err := client.Remove(ctx, key, true); err != nil {
			return err
		}
		conn, err := dialUDP(asks.Where.Netns, netip.AddrPortFrom(addr, echoPort))
		if err != nil {
			return err
		}
		if err := silence(ctx, conn); err != nil {
			return errors.Join(err, conn.Close())
		}
		replies := make(chan time.Time, 1)
		asking, done := context.WithTimeout(ctx, 30*time.Second)
		go func() { replies <- firstReply(asking, conn) }()
		err = client.Set(ctx, key, found[0].Value, true)
		written := time.Now()
		var at time.Time
		if err == nil {
			at = <-replies
		}
		done()
		if err = errors.Join(err, conn.Close()); err != nil {
			return err
		}
		if at.IsZero() {
			return fmt.Errorf("no answer from %s within 30 s of its record", addr)
		}
		took = append(took, float64(max(at.Sub(written), 0).Microseconds())/1000)
	}
	b.metrics.median("remote_pod_reachable_ms", "ms", "the store has the record", took)
	progress("a new remote pod answers %.1f ms after its record is written", b.metrics["remote_pod_reachable_ms"].Value)
	return l.StartNode(ctx, "node2", true)
}

func dialUDP(netns string, to netip.AddrPort) (conn *net.UDPConn, err error) {
	err = space.InNetns(netns, func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	return conn, err
}

// ask sends a datagram and waits a millisecond for an answer.
func ask(conn *net.UDPConn) bool {
	var answer [64]byte
	deadline := time.Now().Add(time.Millisecond)
	if conn.SetDeadline(deadline) != nil {
		return false
	}
	if _, err := conn.Write([]byte("?")); err == nil {
		if n, err := conn.Read(answer[:]); err == nil && n > 0 {
			return true
		}
	}
	time.Sleep(time.Until(deadline)) // refused at once
	return false
}

// silence waits until nobody answers any more.
func silence(ctx context.Context, conn *net.UDPConn) error {
	for quiet, tries := 0, 0; quiet < 100; tries++ {
		quiet++
		if ask(conn) {
			quiet = 0
		}
		if tries > 30_000 || ctx.Err() != nil {
			return fmt.Errorf("%s still answers, though its record is gone", conn.RemoteAddr())
		}
	}
	return nil
}

func firstReply(ctx context.Context, conn *net.UDPConn) time.Time {
	for ctx.Err() == nil {
		if ask(conn) {
			return time.Now()
		}
	}
	return time.Time{}
}

// weight fills the cluster and measures the memory of node1's agent.
func (b *bench) weight(ctx context.Context, l *lab.Lab, client *kvstore.Client, endpoint string) error {
	one, err := l.Place("node1")
	if err != nil {
		return err
	}
	asks, err := l.Place("asks")
	if err != nil {
		return err
	}
	before, err := resident(one.Agent.PID)
	if err != nil {
		return err
	}
	t0 := time.Now()
	var g errgroup.Group
	g.SetLimit(16)
	for i := range labelSets {
		g.Go(func() error {
			return client.Set(ctx, fmt.Sprintf("porin/identities/v1/id/%d", 1000+i), setOf(i).Key(), true)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i := range otherNodes {
		g.Go(func() error { return publishNode(ctx, endpoint, i) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	progress("store filled in %s", time.Since(t0).Round(time.Second))
	for i := range ownPods {
		ns, err := b.netns(fmt.Sprintf("own-%d", i))
		if err != nil {
			return err
		}
		if _, err := add(ctx, one, asks.CNIConf, fmt.Sprintf("own-%d", i), ns); err != nil {
			return err
		}
	}
	for {
		cmd := exec.CommandContext(ctx, filepath.Join(one.BinDir, "porin"), "status", "--socket", fmt.Sprintf("/proc/%d/root/run/porin/agent.sock", one.Agent.PID))
		out, err := cmd.CombinedOutput() // its exit code tells whether the node is healthy
		if err == nil && strings.Contains(string(out), fmt.Sprintf("%d addresses of theirs, 0 wait", otherPods+theirOwn)) {
			break
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return fmt.Errorf("%w: the agent has not learned all addresses: %s", ctx.Err(), out)
		}
	}
	after, err := resident(one.Agent.PID)
	if err != nil {
		return err
	}
	b.metrics["agent_rss_mib"] = metric{Value: after, Unit: "MiB", Runs: 1, Min: after, Max: after}
	progress("agent of %d endpoints, %d other addresses, %d identities: %.0f MiB resident, empty %.0f", ownPods, otherPods, labelSets, after, before)
	return nil
}

func setOf(i int) labels.Labels {
	l := func(k, v string) labels.Label { return labels.Label{Source: labels.SourceK8s, Key: k, Value: v} }
	return labels.New(l("app.kubernetes.io/name", fmt.Sprintf("app-%d", i)), l("app.kubernetes.io/part-of", fmt.Sprintf("shop-%d", i%100)),
		l(labels.KeyNamespace, fmt.Sprintf("team-%d", i%200)), l("tier", "backend"))
}

// publishNode writes the records of another node and its pods.
func publishNode(ctx context.Context, endpoint string, i int) error {
	log, name := slog.New(slog.DiscardHandler), fmt.Sprintf("other-%d", i)
	client, err := kvstore.Dial(log, kvstore.Config{Endpoints: []string{endpoint}, Node: name})
	if err != nil {
		return err
	}
	records := kvstore.NewRecords(log, client, kvstore.RecordsConfig{Cluster: "default", Node: name, Save: func(kvstore.Claim) error { return nil }})
	pods := netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0})
	var list []cluster.Address
	addr := pods
	for j := range otherPods / otherNodes {
		addr = addr.Next()
		n := (i*otherPods/otherNodes + j) % labelSets
		list = append(list, cluster.Address{
			Addr: addr, Identity: identity.ID(1000 + n), Meaning: cluster.MeaningOf(setOf(n)), Cluster: "default", Node: name,
			Namespace: fmt.Sprintf("team-%d", n%200), Pod: fmt.Sprintf("app-%d-7d4b9c6f5-%04d", n, j), Generation: 1,
		})
	}
	records.PublishAddresses(list, nil)
	records.PublishNode(cluster.Node{
		Cluster: "default", Name: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}).Next()},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(pods, 24)},
	})
	running, stop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return records.Run(running) })
	for there, wanted := records.Published(); there < wanted && ctx.Err() == nil; there, wanted = records.Published() {
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return errors.Join(err, client.Close())
	}
	return errors.Join(ctx.Err(), client.Close())
}

// resident returns a process's resident memory in MiB.
func resident(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("memory of process %d: the kernel does not tell", pid)
}
