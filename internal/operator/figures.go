package operator

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"porin/internal/ipam"
)

// figures are what Prometheus gets.
type figures struct {
	registry   *prometheus.Registry
	leader     prometheus.Gauge
	grants     prometheus.Gauge
	identities prometheus.Gauge
	refused    prometheus.Counter
	returned   prometheus.Counter
	size, used *prometheus.GaugeVec
}

func newFigures() *figures {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "porin", Subsystem: "operator", Name: name, Help: help}
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts(opts(name, help)))
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	f := &figures{
		registry:   prometheus.NewRegistry(),
		leader:     gauge("leader", "1 while this operator leads."),
		grants:     gauge("range_grants", "Nodes that were given ranges of addresses."),
		identities: gauge("identities", "Identities of the cluster, as the leader knows them."),
		refused:    counter("range_problems_total", "Times that a node could not have the ranges it asked for."),
		returned:   counter("ranges_returned_total", "Nodes whose ranges were taken back because they were gone for long."),
		size:       prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("pool_ranges", "Ranges of a cluster pool.")), []string{"pool"}),
		used:       prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("pool_ranges_used", "Ranges of a cluster pool that are not free.")), []string{"pool"}),
	}
	f.registry.MustRegister(f.leader, f.grants, f.identities, f.refused, f.returned, f.size, f.used,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return f
}

func (f *figures) leading(yes bool) {
	f.leader.Set(map[bool]float64{true: 1}[yes])
}

func (f *figures) pools(list []ipam.Pool) {
	for _, p := range list {
		f.size.WithLabelValues(p.Prefix.String()).Set(float64(p.Size))
		f.used.WithLabelValues(p.Prefix.String()).Set(float64(p.Used))
	}
}
