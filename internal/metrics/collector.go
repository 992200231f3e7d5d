package metrics

import (
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/verdict"
)

// collector reads the sources at each scrape.
type collector struct {
	src Sources

	endpoints, endpointState, enforcement          *prometheus.Desc
	policies, revision, identities                 *prometheus.Desc
	addresses, capacity                            *prometheus.Desc
	dropCount, dropBytes, forwardCount, forwardLen *prometheus.Desc
	pressure, mapCapacity, lost, flows             *prometheus.Desc
}

func newCollector(src Sources) *collector {
	d := func(name, help string, ls ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, ls, nil)
	}
	return &collector{
		src:           src,
		endpoints:     d("endpoint", "Endpoints of this node."),
		endpointState: d("endpoint_state", "Endpoints of this node by state.", "endpoint_state"),
		enforcement:   d("policy_endpoint_enforcement_status", "Endpoints by the directions in which policy isolates them.", "enforcement"),
		policies:      d("policy", "Policies in force."),
		revision:      d("policy_max_revision", "Newest revision of the policies."),
		identities:    d("identity", "Identities known on this node, by type.", "type"),
		addresses:     d("ip_addresses", "Addresses in use by workloads, by family.", "family"),
		capacity:      d("ipam_capacity", "Addresses that workloads of this node can get, by family.", "family"),
		dropCount:     d("drop_count_total", "Dropped packets by reason and direction.", "reason", "direction"),
		dropBytes:     d("drop_bytes_total", "Dropped bytes by reason and direction.", "reason", "direction"),
		forwardCount:  d("forward_count_total", "Forwarded packets by direction.", "direction"),
		forwardLen:    d("forward_bytes_total", "Forwarded bytes by direction.", "direction"),
		pressure:      d("bpf_map_pressure", "How full a BPF map is: 1 is full.", "map_name"),
		mapCapacity:   d("bpf_map_capacity", "Entries that a BPF map can hold.", "map_name"),
		lost:          d("lost_events_total", "Flow events that did not arrive, by where they were lost.", "source"),
		flows:         d("flows_processed_total", "Flow events by type and verdict.", "type", "verdict"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.endpoints, c.endpointState, c.enforcement, c.policies, c.revision, c.identities, c.addresses, c.capacity,
		c.dropCount, c.dropBytes, c.forwardCount, c.forwardLen, c.pressure, c.mapCapacity, c.lost, c.flows,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, ls ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, ls...)
	}
	count := func(d *prometheus.Desc, v uint64, ls ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), ls...)
	}
	c.collectEndpoints(gauge)
	gauge(c.policies, float64(c.src.PolicyCount()))
	gauge(c.revision, float64(c.src.PolicyRevision()))
	types := map[string]int{"reserved": 0, "cluster_local": 0, "node_local": 0}
	for _, id := range c.src.Identities() {
		types[identityType(id.ID)]++
	}
	for t, n := range types {
		gauge(c.identities, float64(n), t)
	}
	for _, p := range c.src.Pools() {
		family := "ipv6"
		if p.Prefix.Addr().Is4() {
			family = "ipv4"
		}
		gauge(c.addresses, float64(p.Used), family)
		gauge(c.capacity, float64(p.Size), family)
	}
	for k, n := range c.src.Counters() {
		direction := strings.ToUpper(verdict.Direction(k[1]).String())
		if k[0] == 0 {
			count(c.forwardCount, n.Packets, direction)
			count(c.forwardLen, n.Bytes, direction)
			continue
		}
		count(c.dropCount, n.Packets, verdict.Reason(k[0]).String(), direction)
		count(c.dropBytes, n.Bytes, verdict.Reason(k[0]).String(), direction)
	}
	for name, v := range c.src.MapPressure() {
		gauge(c.pressure, v, name)
	}
	for name, n := range c.src.MapCapacity() {
		gauge(c.mapCapacity, float64(n), name)
	}
	for source, n := range c.src.LostEvents() {
		count(c.lost, n, source)
	}
	for k, n := range c.src.FlowEvents() {
		count(c.flows, n, eventType(k[0]), verdict.Action(k[1]).String())
	}
}

func (c *collector) collectEndpoints(gauge func(*prometheus.Desc, float64, ...string)) {
	states := make(map[endpoint.Phase]int)
	for _, p := range []endpoint.Phase{endpoint.Creating, endpoint.WaitingForIdentity, endpoint.NotReady, endpoint.Restoring, endpoint.Ready, endpoint.Disconnecting} {
		states[p] = 0
	}
	enforced := map[string]int{"none": 0, "ingress": 0, "egress": 0, "both": 0}
	eps := c.src.Endpoints()
	for _, ep := range eps {
		states[ep.Phase]++
		in, eg := c.src.Enforced(ep)
		switch {
		case in && eg:
			enforced["both"]++
		case in:
			enforced["ingress"]++
		case eg:
			enforced["egress"]++
		default:
			enforced["none"]++
		}
	}
	gauge(c.endpoints, float64(len(eps)))
	for p, n := range states {
		gauge(c.endpointState, float64(n), string(p))
	}
	for e, n := range enforced {
		gauge(c.enforcement, float64(n), e)
	}
}

func identityType(id identity.ID) string {
	switch {
	case id.IsReserved():
		return "reserved"
	case id.IsLocal():
		return "node_local"
	}
	return "cluster_local"
}

// eventType names a kernel event as monitor does.
func eventType(t uint8) string {
	switch t {
	case 1:
		return "drop"
	case 4:
		return "trace"
	case 5:
		return "policy-verdict"
	}
	return fmt.Sprintf("type(%d)", t)
}
