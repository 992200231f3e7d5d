package health

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// figures is a collector: the state of the table at the moment somebody asks, and how long answers took.
type figures struct {
	rows    func() []Row
	status  *prometheus.Desc
	latency *prometheus.HistogramVec
}

func newFigures(rows func() []Row) *figures {
	return &figures{
		rows:   rows,
		status: prometheus.NewDesc("porin_node_health_connectivity_status", "Addresses of other nodes (type node) and of their health endpoints (type endpoint), by whether the last try reached them (status reachable, unreachable).", []string{"type", "status"}, nil),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "porin", Name: "node_health_connectivity_latency_seconds",
			Help:    "How long answers of nodes and health endpoints took, by type and protocol.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}, []string{"type", "protocol"}),
	}
}

func (f *figures) answered(kind, protocol string, took time.Duration) {
	f.latency.WithLabelValues(kind, protocol).Observe(took.Seconds())
}

// Collector returns the figures for Prometheus.
func (m *Mesh) Collector() prometheus.Collector { return m.figures }

// Describe implements prometheus.Collector.
func (f *figures) Describe(ch chan<- *prometheus.Desc) {
	ch <- f.status
	f.latency.Describe(ch)
}

// Collect implements prometheus.Collector.
func (f *figures) Collect(ch chan<- prometheus.Metric) {
	count := map[[2]string]int{
		{KindNode, "reachable"}: 0, {KindNode, "unreachable"}: 0, {KindEndpoint, "reachable"}: 0, {KindEndpoint, "unreachable"}: 0,
	}
	for _, r := range f.rows() {
		if r.Local {
			continue
		}
		status := "unreachable"
		if r.ICMP.OK && r.HTTP.OK {
			status = "reachable"
		}
		count[[2]string{r.Kind, status}]++
	}
	for k, n := range count {
		ch <- prometheus.MustNewConstMetric(f.status, prometheus.GaugeValue, float64(n), k[0], k[1])
	}
	f.latency.Collect(ch)
}
