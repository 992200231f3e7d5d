package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "porin/api/agent/v1"
	"porin/internal/cni"
	"porin/internal/kvstore"
	"porin/internal/node"
)

func TestClusterSettings(t *testing.T) {
	load := func(args ...string) (Config, error) {
		return Load(append([]string{"--node-name=n1"}, args...), nil, os.Stderr)
	}
	c, err := load("--kvstore-endpoints=https://10.0.0.1:2379", "--routing-mode=tunnel", "--tunnel-protocol=vxlan", "--cluster-id=7",
		"--node-labels=zone=a,rack=1", "--node-address=192.0.2.1,2001:db8::1", "--underlay=ipv6")
	if err != nil {
		t.Fatal(err)
	}
	k := c.Cluster
	if !k.Shared || k.Routing != "vxlan" || k.TunnelPort != 8472 || k.ID != 7 || len(k.NodeAddresses) != 2 || k.Underlay != node.IPv6 ||
		k.NodeLabels.String() != "node:rack=1,node:zone=a" || c.Endpoints[0] != "https://10.0.0.1:2379" {
		t.Errorf("%+v", k)
	}
	if s := c.storeClient(nil); s.First != 7<<16+256 || s.Last != 7<<16+65535 {
		t.Errorf("numbers %d to %d", s.First, s.Last)
	}
	if c, err = load(); err != nil || c.Cluster.Shared || c.Cluster.Routing != "geneve" || c.Cluster.TunnelPort != 6081 {
		t.Errorf("alone: %+v %v", c.Cluster, err)
	}
	if c, err = load("--kvstore-listen=10.0.0.1:2379", "--kvstore-insecure"); err != nil || !c.Cluster.Shared {
		t.Errorf("serving others: %+v %v", c.Cluster, err)
	}
	for _, bad := range []struct {
		want string
		args []string
	}{
		{"whoever reaches the store rules the cluster", []string{"--kvstore-listen=10.0.0.1:2379"}},
		{"all three of", []string{"--kvstore-listen=10.0.0.1:2379", "--kvstore-listen-cert=/x"}},
		{"only an embedded store", []string{"--kvstore-listen=10.0.0.1:2379", "--kvstore-insecure", "--kvstore=http://10.0.0.2:2379"}},
		{"HOST:PORT", []string{"--kvstore-listen=nowhere", "--kvstore-insecure"}},
		{"kvstore is set too", []string{"--kvstore=http://10.0.0.2:2379", "--kvstore-endpoints=http://10.0.0.3:2379"}},
		{"geneve, vxlan or native", []string{"--routing=ipip"}},
		{"native without a protocol", []string{"--routing-mode=native", "--tunnel-protocol=vxlan"}},
		{"only native routing needs routes", []string{"--auto-direct-node-routes"}},
		{"auto, ipv4 or ipv6", []string{"--underlay=both"}},
		{"at most one address of each family", []string{"--node-address=192.0.2.1,192.0.2.2"}},
		{"no address that other nodes could reach", []string{"--node-address=127.0.0.1"}},
		{"key=value", []string{"--node-labels=reserved:host"}},
		{"at most 30m", []string{"--node-grace=2h"}},
		{"set cluster-id", []string{"--cluster-mesh-config=/etc/porin/mesh"}},
		{"an absolute path", []string{"--cluster-mesh-config=mesh", "--cluster-id=1"}},
		{"is no CIDR", []string{"--native-routing-cidr=10.0.0.1/8"}},
	} {
		if _, err := load(bad.args...); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%q: got %v, want %q", bad.args, err, bad.want)
		}
	}
}

func TestMeshFiles(t *testing.T) {
	dir := t.TempDir()
	a := &agent{cfg: Config{ClusterName: "here", Cluster: ClusterConfig{ID: 1, MeshDir: dir}}}
	m := newMesh(a, slog.New(slog.DiscardHandler))
	m.peers["/etc/other.yaml"] = &meshPeer{file: meshFile{Cluster: "other", ID: 9}}
	f, err := m.parse("/etc/far.yaml", []byte("id: 7\nendpoints: ['https://10.0.0.1:2379']\nprefixes: [10.7.0.0/16]\n"))
	if err != nil || f.Cluster != "far" || f.ID != 7 || len(f.Prefixes) != 1 {
		t.Errorf("%+v %v", f, err)
	}
	for text, want := range map[string]string{
		"id: 1\nendpoints: [http://x:1]":                          "this one is 1",
		"endpoints: [http://x:1]":                                 "1 to 255",
		"id: 7\ncluster: here\nendpoints: [http://x:1]":           "this one is",
		"id: 7\ncluster: Far\nendpoints: [http://x:1]":            "lower-case",
		"id: 9\nendpoints: [http://x:1]":                          "a number of its own",
		"id: 7":                                                   "any endpoint",
		"id: 7\nendpoints: [ftp://x]":                             "URLs such as",
		"id: 7\nendpoints: [http://x:1]\nprefixes: [10.7.0.1/16]": "behind its prefix length",
		"id: 7\nendpoints: [http://x:1]\nprefix: [10.7.0.0/16]":   "prefix not found",
		"id: 300\nendpoints: [http://x:1]":                        "300",
		"id: 7\nendpoints: [http://x:1]\nprefixes: [everything]":  "everything",
		"id: 7\nendpoints: ['https://me:secret@10.0.0.1:2379']":   "client certificates",
	} {
		if _, err := m.parse("/etc/far.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// rows reads a table of the agent.
func (n *testNode) rows(table string) (out []string) {
	n.t.Helper()
	resp, err := n.DumpTable(n.t.Context(), &agentv1.DumpTableRequest{Table: table})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.GetRows()
}

// sharedStore is an etcd that agents of several namespaces reach: a unix socket knows no namespaces.
type sharedStore struct {
	kvstore.ServerConfig
	cancel func()
	done   chan error
}

func newSharedStore(t *testing.T) *sharedStore {
	t.Helper()
	dir, err := os.MkdirTemp("", "ptstore")
	if err != nil {
		t.Fatal(err)
	}
	s := &sharedStore{ServerConfig: kvstore.ServerConfig{Dir: filepath.Join(dir, "etcd"), Socket: filepath.Join(dir, "run", "s")}}
	s.start()
	t.Cleanup(func() {
		s.stop()
		os.RemoveAll(dir)
	})
	return s
}

func (s *sharedStore) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan error, 1)
	go func() { s.done <- kvstore.Serve(ctx, slog.New(slog.DiscardHandler), s.ServerConfig) }()
}

func (s *sharedStore) stop() {
	if s.cancel != nil {
		s.cancel()
		<-s.done
		s.cancel = nil
	}
}

func (n *testNode) nodeRow(name string) (row node.Row) {
	for _, text := range n.rows("nodes") {
		var r node.Row
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			n.t.Fatal(err)
		}
		if r.Name == name {
			return r
		}
	}
	return row
}

func (n *testNode) addressRows() (out []node.AddressRow) {
	for _, text := range n.rows("addresses") {
		var r node.AddressRow
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			n.t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

// Two agents share a store: each learns of the other, of its workloads as they come and go, and of what their numbers
// mean. An agent that is killed and started again finds everything as it was.
func TestRootTwoNodes(t *testing.T) {
	store := newSharedStore(t)
	one := newTestNode(t, "--kvstore="+store.Endpoint(), "--node-labels=zone=a")
	two := newTestNode(t, "--kvstore="+store.Endpoint(), "--node-name=n2", "--ipv4-range=10.2.0.0/24", "--ipv6-range=fd00:2::/64", "--node-address=192.0.2.9")
	one.ready()
	two.ready()
	eventually(t, "each knows the other", func() bool { return one.nodeRow("n2").State == node.Live && two.nodeRow("n1").State == node.Live })
	if r := two.nodeRow("n1"); r.Addresses[0].String() != "192.0.2.1" || len(r.Accepted) != 2 || r.Labels.String() != "node:zone=a" {
		t.Errorf("n2 knows n1 as %+v", r)
	}
	web := one.pod("web", "web")
	known := func(at *testNode, addr string) bool {
		return slices.ContainsFunc(at.addressRows(), func(r node.AddressRow) bool {
			return r.Addr.String() == addr && r.Message == "" && r.Pod == "web" && r.Node == "n1" && r.Identity >= 256
		})
	}
	eventually(t, "n2 knows the pod of n1", func() bool { return known(two, web.v4) && known(two, web.v6) })

	// without the store, over a restart: the kernel knows what it knew, and so do the rules
	eventually(t, "n2 has noted what the number means", func() bool {
		b, err := os.ReadFile(two.state(clusterFile))
		return err == nil && strings.Contains(string(b), "k8s:app=web;") && strings.Contains(string(b), `"name":"n1"`)
	})
	store.stop()
	two.kill()
	two.start()
	inKernel := func(at *testNode, addr string) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		resp, err := at.ListIPs(ctx, &agentv1.ListIPsRequest{})
		return err == nil && slices.ContainsFunc(resp.GetRows(), func(r *agentv1.Row) bool {
			return strings.HasPrefix(r.GetCells()[0], addr+"/") && strings.Contains(strings.Join(r.GetCells(), " "), "k8s:app=web")
		})
	}
	eventually(t, "n2 serves without the store", func() bool { return inKernel(two, web.v4) && inKernel(two, web.v6) })
	if r := two.nodeRow("n1"); r.State != node.Live || len(r.Accepted) != 2 {
		t.Errorf("without the store n2 knows n1 as %+v", r)
	}

	// everything the store held is lost
	if err := os.RemoveAll(store.Dir); err != nil {
		t.Fatal(err)
	}
	store.start()
	eventually(t, "n2 knows it again", func() bool { return known(two, web.v4) && two.nodeRow("n1").State == node.Live })
	if !inKernel(two, web.v4) || !inKernel(two, web.v6) {
		t.Error("the kernel of n2 has lost the pod of n1")
	}
	if resp := one.call(cni.Request{Command: cni.Del, ContainerID: "c-web", IfName: "eth0"}); resp.Error != nil {
		t.Fatal(resp.Error)
	}
	eventually(t, "n2 forgets it", func() bool { return !known(two, web.v4) && !inKernel(two, web.v4) && !inKernel(two, web.v6) })
}
