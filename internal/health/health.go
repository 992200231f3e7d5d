// Package health observes whether this node reaches the others: it asks every node, and the health endpoint behind it,
// again and again for an ICMP echo and an HTTP answer.
// It reads the list of nodes from a function that it is given, and writes the table health, figures for Prometheus, and
// small answers to those who ask this node. It never decides anything: who is not reached is only told.
package health

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"porin/internal/state"
)

// Port is where nodes and health endpoints answer HTTP.
const Port = 4240

// Kinds of rows.
const (
	KindNode     = "node"     // the node's own address
	KindEndpoint = "endpoint" // the address of its health endpoint, reached as any pod's
)

// Node is whom to ask.
type Node struct {
	Name   string
	Addrs  []netip.Addr
	Health []netip.Addr
}

// Probe is how one address answers to one protocol.
type Probe struct {
	OK    bool          `json:"ok"`
	RTT   time.Duration `json:"rtt"`                  // ns, of the last answer
	Error string        `json:"error,omitempty"`      // of the last try, if there was no answer
	Last  time.Time     `json:"last-answer,omitzero"` // when the last answer came
	Since time.Time     `json:"since"`                // since when it is as it is
}

// Row of the table health.
type Row struct {
	Node  string     `json:"node"`
	Kind  string     `json:"kind"`
	Addr  netip.Addr `json:"address"`
	Local bool       `json:"local,omitempty"` // this node itself
	ICMP  Probe      `json:"icmp"`
	HTTP  Probe      `json:"http"`
}

// Key of the row.
func (r Row) Key() string { return r.Node + "/" + r.Kind + "/" + r.Addr.String() }

// NewTable makes the table.
func NewTable(db *state.DB) *state.Table[Row] { return state.NewTable(db, "health", Row.Key) }

// Config of a Mesh. The zero value of a duration means its default.
type Config struct {
	Node     string        // this one
	Nodes    func() []Node // whom to ask, this node too
	Interval time.Duration // time between two rounds (default 10 s)
	Timeout  time.Duration // of one try (default 3 s)
}

// Mesh asks the nodes.
type Mesh struct {
	log     *slog.Logger
	cfg     Config
	table   *state.Table[Row]
	figures *figures
}

// loud is how many changes of one round are told one by one.
const loud = 10

// parallel is how many addresses are asked at once: what a round costs is spread over its time.
const parallel = 16

// New returns a mesh that Run starts.
func New(log *slog.Logger, cfg Config, table *state.Table[Row]) *Mesh {
	cfg.Interval = cmp.Or(cfg.Interval, 10*time.Second)
	cfg.Timeout = cmp.Or(cfg.Timeout, 3*time.Second)
	m := &Mesh{log: log, cfg: cfg, table: table}
	m.figures = newFigures(m.Rows)
	return m
}

// Rows returns what is known, by node.
func (m *Mesh) Rows() []Row { return m.table.List() }

// Run asks everybody once per interval until ctx ends. Rounds of many nodes do not keep step with each other.
func (m *Mesh) Run(ctx context.Context) error {
	for {
		began := time.Now()
		m.round(ctx)
		// at least a tenth of the interval between two rounds, however long one took
		wait := max(m.cfg.Interval-time.Since(began), m.cfg.Interval/10)
		t := time.NewTimer(wait - m.cfg.Interval/20 + rand.N(m.cfg.Interval/10+1))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// round asks everybody once, spread over a part of the interval.
func (m *Mesh) round(ctx context.Context) {
	rows := m.targets()
	known := map[string]bool{}
	for _, r := range rows {
		known[r.Key()] = true
	}
	for _, r := range m.table.List() {
		if !known[r.Key()] {
			m.table.Delete(r.Key())
		}
	}
	rand.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	limit := make(chan struct{}, parallel)
	var said atomic.Int64
	var wg sync.WaitGroup
	for _, r := range rows {
		select {
		case limit <- struct{}{}:
		case <-ctx.Done():
			wg.Wait()
			return
		}
		wg.Go(func() {
			defer func() { <-limit }()
			m.ask(ctx, r, &said)
		})
	}
	wg.Wait()
	if n := said.Load() - loud; n > 0 {
		m.log.Warn("more changed than is told here; porin health shows all", "more", n)
	}
}

// targets returns the rows to ask for, with what is known of them.
func (m *Mesh) targets() []Row {
	var out []Row
	add := func(n Node, kind string, addrs []netip.Addr) {
		for _, a := range addrs {
			r := Row{Node: n.Name, Kind: kind, Addr: a, Local: n.Name == m.cfg.Node}
			if old, ok := m.table.Get(r.Key()); ok {
				r = old
			}
			out = append(out, r)
		}
	}
	for _, n := range m.cfg.Nodes() {
		add(n, KindNode, n.Addrs)
		add(n, KindEndpoint, n.Health)
	}
	slices.SortFunc(out, func(a, b Row) int { return cmp.Compare(a.Key(), b.Key()) })
	return out
}

// ask tries both protocols and puts the row. A change is told once, not every try; that a node answers the first time it
// is asked is no news.
func (m *Mesh) ask(ctx context.Context, r Row, said *atomic.Int64) {
	var wg sync.WaitGroup
	old := r
	wg.Go(func() { r.ICMP = m.try(ctx, r, r.ICMP, "icmp", ping) })
	wg.Go(func() { r.HTTP = m.try(ctx, old, old.HTTP, "http", get) })
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	m.table.Put(r)
	for _, c := range []struct {
		protocol string
		was, now Probe
	}{{"icmp", old.ICMP, r.ICMP}, {"http", old.HTTP, r.HTTP}} {
		switch {
		case c.was.OK == c.now.OK && !c.was.Since.IsZero(), c.now.OK && c.was.Since.IsZero(), r.Local:
		case said.Add(1) > loud:
		case c.now.OK:
			m.log.Info("node reached", "node", r.Node, "kind", r.Kind, "addr", r.Addr, "protocol", c.protocol)
		default:
			m.log.Warn("node not reached", "node", r.Node, "kind", r.Kind, "addr", r.Addr, "protocol", c.protocol, "err", c.now.Error)
		}
	}
}

func (m *Mesh) try(ctx context.Context, r Row, old Probe, protocol string, how func(context.Context, netip.Addr) error) Probe {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
	defer cancel()
	t0 := time.Now()
	err := how(ctx, r.Addr)
	took := time.Since(t0)
	p := Probe{OK: err == nil, RTT: old.RTT, Last: old.Last, Since: old.Since}
	if err != nil {
		p.Error = err.Error()
	} else {
		p.RTT, p.Last = took, t0.Add(took)
		m.figures.answered(r.Kind, protocol, took)
	}
	if old.Since.IsZero() || old.OK != p.OK {
		p.Since = t0
	}
	return p
}
