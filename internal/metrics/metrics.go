// Package metrics observes the agent and gives what it sees to Prometheus, under the names that users of the field
// know with the prefix porin_.
// It reads the tables and the datapath's counters through the Sources interface that it declares, at the moment somebody
// asks, and what the rooms above it report; it writes only to who asks. It never keeps a second copy of a state.
package metrics

import (
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"porin/bpf"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/ipam"
)

const namespace = "porin"

// Sources is where the figures come from. The methods are called at each scrape, from several goroutines.
type Sources interface {
	Endpoints() []endpoint.Endpoint
	PolicyCount() int
	PolicyRevision() uint64
	// Enforced tells in which directions a policy isolates ep.
	Enforced(ep endpoint.Endpoint) (ingress, egress bool)
	Identities() []identity.Identity
	Pools() []ipam.Pool
	// Counters of the datapath by drop reason (0: forwarded) and direction.
	Counters() map[[2]uint8]bpf.Counter
	MapPressure() map[string]float64 // 0 to 1, by map
	MapCapacity() map[string]uint32
	// LostEvents counts flow events that did not arrive, by where they were lost: kernel, reader.
	LostEvents() map[string]uint64
	// FlowEvents counts flow events by type and action, as in bpf/include/verdict.h.
	FlowEvents() map[[2]uint8]uint64
}

// Metrics is what the agent's listener serves. The methods with a past tense name are called by the agent when
// something happened; all are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	policyChanges  *prometheus.CounterVec
	regenerations  *prometheus.CounterVec
	regeneration   *prometheus.HistogramVec
	bootstrap      *prometheus.GaugeVec
	logged         *prometheus.CounterVec
	kvstore        *prometheus.HistogramVec
	implementation *prometheus.HistogramVec
}

// New returns the metrics of a running agent of that version.
func New(src Sources, version string) *Metrics {
	seconds := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		policyChanges: counter("policy_change_total", "Changes of policy that were asked for, by outcome (success, fail).",
			"outcome"),
		regenerations: counter("endpoint_regenerations_total", "Times that an endpoint was made equal to the rules in the kernel, by outcome (success, fail).",
			"outcome"),
		regeneration: histogram("endpoint_regeneration_time_stats_seconds", "How long parts of an endpoint's regeneration took in the kernel, by part (scope: device, subject, endpoint, commit) and status (success, failure).",
			seconds, "scope", "status"),
		bootstrap: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Name: "agent_bootstrap_seconds",
			Help: "How long parts of the agent's last start took, by part (scope) and outcome (success, fail).",
		}, []string{"scope", "outcome"}),
		logged: counter("errors_warnings_total", "Errors and warnings in the agent's log, by level and subsystem.",
			"level", "subsystem"),
		kvstore: histogram("kvstore_operations_duration_seconds", "How long operations of the key-value store took, by scope (identities, addresses, node, heartbeat), kind (read, write), action (allocate, release, transact) and outcome (success, fail).",
			seconds, "scope", "kind", "action", "outcome"),
		implementation: histogram("policy_implementation_delay_seconds", "Time from asking for a change of policy until every endpoint enforced it, by source of the policy.",
			seconds, "source"),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: namespace, Name: "version", Help: "1, with the agent's version as a label.",
	}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	m.registry.MustRegister(
		m.policyChanges, m.regenerations, m.regeneration, m.bootstrap, m.logged, m.kvstore, m.implementation,
		build, newCollector(src),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{Namespace: namespace}),
	)
	// Series that alerts compute rates of exist from the start, so that the first event is a step from zero.
	for _, o := range []string{"success", "fail"} {
		m.policyChanges.WithLabelValues(o)
		m.regenerations.WithLabelValues(o)
	}
	return m
}

func counter(name, help string, names ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, names)
}

func histogram(name, help string, buckets []float64, names ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets}, names)
}

func outcome(err error) string {
	if err != nil {
		return "fail"
	}
	return "success"
}

// PolicyChanged counts a change of policy from source (api, or files) that took d until every endpoint enforced it.
func (m *Metrics) PolicyChanged(source string, d time.Duration, err error) {
	m.policyChanges.WithLabelValues(outcome(err)).Inc()
	if err == nil {
		m.implementation.WithLabelValues(source).Observe(d.Seconds())
	}
}

// Bootstrapped says how long a part of the agent's start took; scope overall is the whole of it.
func (m *Metrics) Bootstrapped(scope string, d time.Duration, err error) {
	m.bootstrap.WithLabelValues(scope, outcome(err)).Set(d.Seconds())
}

// Add lets another room's figures be shown beside these.
func (m *Metrics) Add(c prometheus.Collector) { m.registry.MustRegister(c) }

// Rows returns every sample whose name contains pattern: name, labels, value. A histogram gives its sum and count.
func (m *Metrics) Rows(pattern string) (columns []string, rows [][]string, err error) {
	columns = []string{"METRIC", "LABELS", "VALUE"}
	families, err := m.registry.Gather()
	if err != nil {
		return columns, nil, fmt.Errorf("gather metrics: %w", err)
	}
	for _, f := range families {
		if !strings.Contains(f.GetName(), pattern) {
			continue
		}
		for _, s := range f.GetMetric() {
			var ls []string
			for _, l := range s.GetLabel() {
				ls = append(ls, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			add := func(name string, v float64) {
				rows = append(rows, []string{name, strings.Join(ls, " "), fmt.Sprintf("%g", v)})
			}
			switch {
			case s.GetCounter() != nil:
				add(f.GetName(), s.GetCounter().GetValue())
			case s.GetGauge() != nil:
				add(f.GetName(), s.GetGauge().GetValue())
			case s.GetUntyped() != nil:
				add(f.GetName(), s.GetUntyped().GetValue())
			case s.GetHistogram() != nil:
				add(f.GetName()+"_sum", s.GetHistogram().GetSampleSum())
				add(f.GetName()+"_count", float64(s.GetHistogram().GetSampleCount()))
			case s.GetSummary() != nil:
				add(f.GetName()+"_sum", s.GetSummary().GetSampleSum())
				add(f.GetName()+"_count", float64(s.GetSummary().GetSampleCount()))
			}
		}
	}
	return columns, rows, nil
}
