package metrics

import (
	"context"
	"net"
	"time"

	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/policy"
)

// timed is a datapath whose slow methods are measured. It answers everything else as the one below does.
type timed struct {
	endpoint.Datapath
	m *Metrics
}

// whole also has what a datapath may have.
type whole struct {
	timed
	survivors endpoint.Survivors
	endpoint.Checker
}

func (w whole) Survivors() ([]endpoint.Endpoint, error) { return w.survivors.Survivors() }
func (w whole) Devices() ([]string, error)              { return w.survivors.Devices() }

// Datapath returns next, measured: what an endpoint's regeneration costs in the kernel.
func (m *Metrics) Datapath(next endpoint.Datapath) endpoint.Datapath {
	t := timed{next, m}
	s, survives := next.(endpoint.Survivors)
	c, checks := next.(endpoint.Checker)
	if survives && checks {
		return whole{t, s, c}
	}
	return t
}

func (t timed) took(scope string, began time.Time, err error) {
	status := "success"
	if err != nil {
		status = "failure"
	}
	t.m.regeneration.WithLabelValues(scope, status).Observe(time.Since(began).Seconds())
}

func (t timed) CreateDevice(ep endpoint.Endpoint) (int, net.HardwareAddr, error) {
	began := time.Now()
	index, mac, err := t.Datapath.CreateDevice(ep)
	t.took("device", began, err)
	return index, mac, err
}

func (t timed) PutSubject(s *policy.Subject) error {
	began := time.Now()
	err := t.Datapath.PutSubject(s)
	t.took("subject", began, err)
	return err
}

func (t timed) WriteEndpoint(ep endpoint.Endpoint) error {
	began := time.Now()
	err := t.Datapath.WriteEndpoint(ep)
	t.took("endpoint", began, err)
	t.m.regenerations.WithLabelValues(outcome(err)).Inc()
	return err
}

func (t timed) Commit() error {
	began := time.Now()
	err := t.Datapath.Commit()
	t.took("commit", began, err)
	return err
}

// StoreDid counts an operation of the key-value store; scope says what it was about.
func (m *Metrics) StoreDid(scope string, took time.Duration, err error) {
	kind := "write"
	if scope == "heartbeat" {
		kind = "read"
	}
	m.kvstore.WithLabelValues(scope, kind, "transact", outcome(err)).Observe(took.Seconds())
}

// stored is a store whose transactions are measured.
type stored struct {
	identity.Store
	m *Metrics
}

// Store returns next, measured.
func (m *Metrics) Store(next identity.Store) identity.Store { return stored{next, m} }

func (s stored) took(action string, began time.Time, err error) {
	s.m.kvstore.WithLabelValues("identities", "write", action, outcome(err)).Observe(time.Since(began).Seconds())
}

func (s stored) Allocate(ctx context.Context, key string) (identity.ID, error) {
	began := time.Now()
	id, err := s.Store.Allocate(ctx, key)
	s.took("allocate", began, err)
	return id, err
}

func (s stored) Release(ctx context.Context, key string, id identity.ID) error {
	began := time.Now()
	err := s.Store.Release(ctx, key, id)
	s.took("release", began, err)
	return err
}
