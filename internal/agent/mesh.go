package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"porin/internal/kvstore"
	"porin/internal/node"
)

// meshCheck is how often the folder and the stores are looked at.
const meshCheck = 2 * time.Second

// meshFile is one file of the folder: another cluster and how to read its store.
type meshFile struct {
	Cluster   string         `yaml:"cluster"` // default: the file's name
	ID        uint8          `yaml:"id"`
	Endpoints []string       `yaml:"endpoints"`
	Cert      string         `yaml:"cert"`
	Key       string         `yaml:"key"`
	CA        string         `yaml:"ca"`
	Prefixes  []netip.Prefix `yaml:"prefixes"` // its pod ranges must lie in these; none: anywhere
}

// mesh reads the stores of other clusters.
//
//	folder ──every 2 s──▶ files ──▶ one peer each: client, records, identities
//	store silent ──▶ its state stays ──cluster-mesh-grace──▶ forgotten, tried anew
//	file gone or changed ──▶ forgotten
type mesh struct {
	a   *agent
	log *slog.Logger

	mu     sync.Mutex
	peers  map[string]*meshPeer // mu: by file
	faults map[string]string    // mu: by file
}

type meshPeer struct {
	text   string // of the file
	file   meshFile
	client *kvstore.Client
	since  time.Time
	stop   func()
}

func newMesh(a *agent, log *slog.Logger) *mesh {
	return &mesh{a: a, log: log, peers: map[string]*meshPeer{}, faults: map[string]string{}}
}

// Run follows the folder until ctx ends.
func (m *mesh) Run(ctx context.Context) error {
	tick := time.NewTicker(meshCheck)
	defer tick.Stop()
	defer m.stopAll()
	for {
		m.look(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (m *mesh) stopAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		p.stop()
	}
	clear(m.peers)
}

// look makes the peers equal to the folder.
func (m *mesh) look(ctx context.Context) {
	files, err := filepath.Glob(filepath.Join(m.a.cfg.Cluster.MeshDir, "*.yaml"))
	if err == nil && len(files) == 0 {
		_, err = os.Stat(m.a.cfg.Cluster.MeshDir)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = map[string]string{}
	if err != nil { // what is known stays: a folder that cannot be read is not an empty one
		m.faults[""] = "cluster mesh: " + err.Error()
		return
	}
	there := map[string]bool{}
	for _, path := range files {
		there[path] = true
		m.follow(ctx, path)
	}
	for path, p := range m.peers {
		if !there[path] {
			m.drop(path, p, "its file is gone")
		}
	}
}

// follow starts, restarts or leaves alone the peer of a file. The lock is held.
func (m *mesh) follow(ctx context.Context, path string) {
	text, err := os.ReadFile(path)
	var file meshFile
	if err == nil {
		file, err = m.parse(path, text)
	}
	p := m.peers[path]
	if err != nil { // a file that is being written must not end what works
		m.faults[path] = "cluster mesh: " + err.Error()
		return
	}
	now := time.Now()
	switch {
	case p == nil:
	case p.text != string(text):
		m.drop(path, p, "its file changed")
	case p.client.Silent(p.since, now) > m.a.cfg.Cluster.MeshGrace:
		m.drop(path, p, fmt.Sprintf("its store has not answered for %s", m.a.cfg.Cluster.MeshGrace))
	default:
		return
	}
	if p, err = m.start(ctx, file); err != nil {
		m.faults[path] = "cluster mesh: " + path + ": " + err.Error()
		return
	}
	p.text = string(text)
	m.peers[path] = p
}

func (m *mesh) drop(path string, p *meshPeer, why string) {
	m.log.Warn("another cluster is forgotten", "cluster", p.file.Cluster, "reason", why)
	p.stop()
	delete(m.peers, path)
	m.a.cluster.nodes.Leave(p.file.Cluster)
	m.a.identities.Leave(p.file.ID)
}

// parse reads and checks a file.
func (m *mesh) parse(path string, text []byte) (f meshFile, err error) {
	d := yaml.NewDecoder(strings.NewReader(string(text)))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil {
		return f, fmt.Errorf("%s: %w", path, err)
	}
	if f.Cluster == "" {
		f.Cluster = strings.TrimSuffix(filepath.Base(path), ".yaml")
	}
	cfg := m.a.cfg
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(path+": "+format, args...)) }
	if !clusterPattern.MatchString(f.Cluster) || f.Cluster == cfg.ClusterName {
		fail("cluster: %q: the other cluster's name is wanted, lower-case letters, digits and '-'; this one is %q", f.Cluster, cfg.ClusterName)
	}
	if f.ID == 0 || f.ID == cfg.Cluster.ID {
		fail("id: %d: the other cluster's number is wanted, 1 to 255; this one is %d", f.ID, cfg.Cluster.ID)
	}
	for other, p := range m.peers {
		if other != path && (p.file.Cluster == f.Cluster || p.file.ID == f.ID) {
			fail("cluster %s, id %d: %s has cluster %s, id %d; each cluster needs a name and a number of its own", f.Cluster, f.ID, other, p.file.Cluster, p.file.ID)
		}
	}
	b := builder{map[string]string{"endpoints": strings.Join(f.Endpoints, ",")}, nil}
	f.Endpoints = b.store("endpoints")
	for _, err := range b.errs {
		fail("%w", err)
	}
	for _, p := range f.Prefixes {
		if p != p.Masked() {
			fail("prefixes: %s has bits behind its prefix length", p)
		}
	}
	return f, errors.Join(errs...)
}

// start connects to another cluster's store.
func (m *mesh) start(ctx context.Context, f meshFile) (*meshPeer, error) {
	log := m.log.With("cluster", f.Cluster)
	client, err := kvstore.Dial(log, kvstore.Config{
		Endpoints: f.Endpoints, Cert: f.Cert, Key: f.Key, CA: f.CA, Node: m.a.cfg.NodeName, ReadOnly: true, Cluster: f.Cluster,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	src := node.Source{Cluster: f.Cluster, ID: f.ID, Prefixes: f.Prefixes}
	records := kvstore.NewRecords(log, client, kvstore.RecordsConfig{Cluster: f.Cluster, ClusterID: f.ID})
	numbers := kvstore.NewIdentities(log, client)
	g.Go(func() error { return client.Beat(ctx) })
	g.Go(func() error { return m.a.identities.Follow(ctx, f.Cluster, f.ID, numbers) })
	g.Go(func() error { return records.Watch(ctx, func(b node.Batch) { m.a.cluster.nodes.Heard(src, b) }) })
	log.Info("another cluster is read", "id", f.ID, "endpoints", strings.Join(f.Endpoints, ","))
	return &meshPeer{file: f, client: client, since: time.Now(), stop: func() {
		cancel()
		_ = g.Wait() // it ended because it was told to
		if err := client.Close(); err != nil {
			log.Warn("connection not closed", "err", err)
		}
	}}, nil
}

// Alarms says what is wrong with files and stores.
func (m *mesh) Alarms() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := slices.Collect(maps.Values(m.faults))
	for _, p := range m.peers {
		if d := p.client.Silent(p.since, time.Now()); d > meshCheck {
			_, why := p.client.Healthy()
			out = append(out, fmt.Sprintf("cluster %s: its store has not answered for %s, what was known stays for %s: %s", p.file.Cluster, d.Round(time.Second), m.a.cfg.Cluster.MeshGrace, why))
		}
	}
	return out
}

// Clusters tells which clusters are read, and whether their stores answer.
func (m *mesh) Clusters() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]bool{}
	for _, p := range m.peers {
		out[p.file.Cluster], _ = p.client.Healthy()
	}
	return out
}

// meshed returns the numbers of the clusters that the folder names, with their names.
func (a *agent) meshed() map[uint8]string {
	out := map[uint8]string{}
	if a.cfg.Cluster.MeshDir == "" {
		return out
	}
	files, err := filepath.Glob(filepath.Join(a.cfg.Cluster.MeshDir, "*.yaml"))
	if err != nil {
		return out // a pattern without special characters has no faults
	}
	m := newMesh(a, a.log)
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // Run tells
		}
		if f, err := m.parse(path, text); err == nil {
			out[f.ID] = f.Cluster
		}
	}
	return out
}
