package metrics

import "github.com/prometheus/client_golang/prometheus"

// ClusterFigures are what is known of other nodes at one moment.
type ClusterFigures struct {
	Nodes       map[string]int  // by state
	Addresses   map[string]int  // of other nodes' workloads, by why they are in the kernel or not
	Refused     uint64          // records that were not believed
	Listings    uint64          // times that all records were read
	Lost        uint64          // times that the store was not the one it was
	Published   int             // own records that the store has
	Unpublished int             // and that it should have
	Clusters    map[string]bool // other clusters, and whether their stores answer
}

// clusterCollector reads them at each scrape.
type clusterCollector struct {
	read func() ClusterFigures

	nodes, addresses, refused, listings, lost, records *prometheus.Desc
	clusters, ready                                    *prometheus.Desc
}

// Cluster adds the figures that read returns.
func (m *Metrics) Cluster(read func() ClusterFigures) {
	d := func(name, help string, ls ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, ls, nil)
	}
	m.registry.MustRegister(&clusterCollector{
		read:      read,
		nodes:     d("nodes", "Nodes that this one knows, itself included, by state.", "state"),
		addresses: d("remote_addresses", "Addresses of other nodes' workloads, by state (programmed, or why not).", "state"),
		refused:   d("kvstore_records_refused_total", "Records of other nodes that were not believed."),
		listings:  d("kvstore_listings_total", "Times that all records of the cluster were read."),
		lost:      d("kvstore_lost_total", "Times that the store turned out to have lost what it held."),
		records:   d("kvstore_own_records", "Records of this node, by whether the store has them.", "state"),
		clusters:  d("clustermesh_remote_clusters", "Other clusters whose stores are read."),
		ready:     d("clustermesh_remote_cluster_readiness_status", "1 while the store of another cluster answers.", "target_cluster"),
	})
}

// Describe implements prometheus.Collector.
func (c *clusterCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.nodes, c.addresses, c.refused, c.listings, c.lost, c.records, c.clusters, c.ready} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *clusterCollector) Collect(out chan<- prometheus.Metric) {
	f := c.read()
	gauge := func(d *prometheus.Desc, v float64, ls ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, ls...)
	}
	count := func(d *prometheus.Desc, v uint64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	for state, n := range f.Nodes {
		gauge(c.nodes, float64(n), state)
	}
	for state, n := range f.Addresses {
		gauge(c.addresses, float64(n), state)
	}
	count(c.refused, f.Refused)
	count(c.listings, f.Listings)
	count(c.lost, f.Lost)
	gauge(c.records, float64(f.Published), "published")
	gauge(c.records, float64(f.Unpublished), "pending")
	gauge(c.clusters, float64(len(f.Clusters)))
	for name, ok := range f.Clusters {
		v := 0.0
		if ok {
			v = 1
		}
		gauge(c.ready, v, name)
	}
}
