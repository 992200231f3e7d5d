package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"porin/internal/durable"
	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/node"
)

// clusterFile is where the agent keeps what it knows of the cluster, so that a restart while the store is away changes
// nothing: the rows of other nodes' addresses stay in the kernel, and the rules must go on knowing whose they are.
const clusterFile = "cluster.json"

// keepCheck is how often the agent looks whether the file is behind. An agent that is killed within that time of learning a
// new identity denies it after a restart until the store answers.
const keepCheck = 100 * time.Millisecond

// kept is the content of the file.
type kept struct {
	Nodes      []node.Node            `json:"nodes"`
	Identities map[identity.ID]string `json:"identities"` // number -> label set
}

// recall makes known what an earlier run knew, before anything is decided. A file that cannot be read costs what it held:
// rows of which nobody knows the labels go.
func (a *agent) recall() error {
	rows, err := a.datapath.RestoredRemotes()
	if err != nil {
		return err
	}
	path := filepath.Join(a.cfg.StateDir, clusterFile)
	var k kept
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			a.cluster.log.Warn("what was known of the cluster is lost; other nodes are unreachable until the store answers", "file", path, "err", err)
		}
		k = kept{}
	}
	m := node.Memory{}
	for id, key := range k.Identities {
		ls, err := labels.ParseKey(key)
		if err == nil {
			err = a.identities.Recall(id, ls)
		}
		if err != nil {
			a.cluster.log.Warn("identity not recalled", "id", uint32(id), "err", err)
			continue
		}
		m.Identities = append(m.Identities, id)
	}
	for _, n := range k.Nodes {
		switch own := n.Cluster == a.cfg.ClusterName; {
		case own && n.Name == a.cfg.NodeName:
			self := a.self(n.Addresses) // its addresses are asked for anew before others hear of it
			a.cluster.nodes.SetSelf(self)
			m.Nodes = append(m.Nodes, self)
		case own && n.ClusterID == a.cfg.Cluster.ID, !own && a.cfg.Cluster.MeshDir != "" && n.ClusterID != a.cfg.Cluster.ID:
			m.Nodes = append(m.Nodes, n)
		}
	}
	heard := map[uint8]bool{} // clusters whose stores will say what is true
	if a.cfg.Cluster.Shared {
		heard[a.cfg.Cluster.ID] = true
		for id := range a.meshed() {
			heard[id] = true
		}
	}
	m.Nodes = slices.DeleteFunc(m.Nodes, func(n node.Node) bool { return !heard[n.ClusterID] })
	a.cluster.nodes.Recall(m, rows)
	a.cluster.nodes.Settle(heard)
	for _, id := range m.Identities { // those without a row are not needed
		if _, ok := a.identities.Hold(id); ok {
			a.identities.LetGo(id)
		}
	}
	if len(rows) > 0 {
		a.cluster.log.Info("other nodes recalled", "nodes", len(m.Nodes), "identities", len(m.Identities), "addresses", len(rows))
	}
	return nil
}

// keep writes the file when what it holds has changed.
func (a *agent) keep(ctx context.Context) error {
	path := filepath.Join(a.cfg.StateDir, clusterFile)
	tick := time.NewTicker(keepCheck)
	defer tick.Stop()
	last, told := ^uint64(0), false
	for {
		if rev := a.cluster.nodes.MemoryRevision(); rev != last {
			text, err := a.kept()
			if err == nil {
				err = durable.Replace(path, []byte(text))
			}
			switch {
			case err == nil:
				last, told = rev, false
			case !told:
				told = true
				a.cluster.log.Warn("what is known of the cluster is not saved; a restart without the store would cut this node off", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (a *agent) kept() (string, error) {
	m := a.cluster.nodes.Memory()
	k := kept{Nodes: m.Nodes, Identities: make(map[identity.ID]string, len(m.Identities))}
	for _, id := range m.Identities {
		if row, ok := a.identities.Get(id); ok {
			k.Identities[id] = row.Labels.Key()
		}
	}
	b, err := json.Marshal(k)
	if err != nil {
		return "", fmt.Errorf("what is known of the cluster: %w", err)
	}
	return string(b), nil
}
