package metrics

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"porin/bpf"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/ipam"
	"porin/internal/policy"
)

// node is a node with one isolated and one open endpoint, some drops and a nearly full map.
type node struct{}

func (node) Endpoints() []endpoint.Endpoint {
	return []endpoint.Endpoint{{ID: 1, Phase: endpoint.Ready}, {ID: 2, Phase: endpoint.Ready}, {ID: 3, Phase: endpoint.NotReady}}
}
func (node) PolicyCount() int                             { return 2 }
func (node) PolicyRevision() uint64                       { return 7 }
func (node) Enforced(ep endpoint.Endpoint) (in, out bool) { return ep.ID == 1, false }
func (node) Identities() []identity.Identity {
	return append(identity.Reserved(), identity.Identity{ID: 256}, identity.Identity{ID: identity.ScopeLocal + 1})
}

func (node) Pools() []ipam.Pool {
	return []ipam.Pool{
		{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Size: 253, Used: 3},
		{Prefix: netip.MustParsePrefix("fd00::/64"), Size: 1 << 63, Used: 3},
	}
}

func (node) Counters() map[[2]uint8]bpf.Counter {
	return map[[2]uint8]bpf.Counter{{0, 1}: {Packets: 10, Bytes: 1000}, {0, 2}: {Packets: 20, Bytes: 2000}, {133, 1}: {Packets: 3, Bytes: 180}, {132, 0}: {Packets: 1, Bytes: 60}}
}
func (node) MapPressure() map[string]float64 { return map[string]float64{"conntrack": .9} }
func (node) MapCapacity() map[string]uint32  { return map[string]uint32{"conntrack": 1000} }
func (node) LostEvents() map[string]uint64   { return map[string]uint64{"kernel": 4, "reader": 5} }

func (node) FlowEvents() map[[2]uint8]uint64 {
	return map[[2]uint8]uint64{{5, 0}: 3, {4, 1}: 9, {77, 1}: 1}
}

// kernel is a datapath that takes everything but endpoint 2; devices it cannot look at.
type kernel struct{ endpoint.Datapath }

func (kernel) CreateDevice(endpoint.Endpoint) (int, net.HardwareAddr, error) { return 7, nil, nil }
func (kernel) PutSubject(*policy.Subject) error                              { return nil }
func (kernel) Commit() error                                                 { return nil }
func (kernel) WriteEndpoint(ep endpoint.Endpoint) error {
	if ep.ID == 2 {
		return errors.New("map is full")
	}
	return nil
}

// survivor is one that has everything that a datapath may have.
type survivor struct{ kernel }

func (survivor) Survivors() ([]endpoint.Endpoint, error) { return make([]endpoint.Endpoint, 3), nil }
func (survivor) Devices() ([]string, error)              { return nil, nil }
func (survivor) CheckDevice(endpoint.Endpoint) error     { return errors.New("no such device") }

// store gives out one number and takes none back.
type store struct{ identity.Store }

func (store) Allocate(context.Context, string) (identity.ID, error) { return 300, nil }
func (store) Release(context.Context, string, identity.ID) error    { return errors.New("no answer") }

// work does a little of everything that is measured.
func work(t *testing.T, m *Metrics) {
	t.Helper()
	d := m.Datapath(survivor{})
	if i, _, err := d.CreateDevice(endpoint.Endpoint{ID: 1}); i != 7 || err != nil {
		t.Errorf("device = %d, %v", i, err)
	}
	for _, err := range []error{d.PutSubject(nil), d.WriteEndpoint(endpoint.Endpoint{ID: 1}), d.Commit()} {
		if err != nil {
			t.Error(err)
		}
	}
	if err := d.WriteEndpoint(endpoint.Endpoint{ID: 2}); err == nil {
		t.Error("the error of the datapath is lost")
	}
	s := m.Store(store{})
	if id, err := s.Allocate(t.Context(), "k8s:a=b;"); id != 300 || err != nil {
		t.Errorf("identity = %d, %v", id, err)
	}
	if err := s.Release(t.Context(), "k8s:a=b;", 300); err == nil {
		t.Error("the error of the store is lost")
	}
}

// What a datapath can do besides must not be hidden by measuring it, nor be pretended.
func TestMeasuringHidesNothing(t *testing.T) {
	m := New(node{}, "1.2.3")
	d := m.Datapath(survivor{})
	if s, ok := d.(endpoint.Survivors); !ok {
		t.Error("survivors are hidden")
	} else if eps, err := s.Survivors(); len(eps) != 3 || err != nil {
		t.Errorf("survivors = %v, %v", eps, err)
	}
	if c, ok := d.(endpoint.Checker); !ok || c.CheckDevice(endpoint.Endpoint{}) == nil {
		t.Error("the check of a device is hidden")
	}
	if _, ok := m.Datapath(kernel{}).(endpoint.Checker); ok {
		t.Error("pretends that it can check a device")
	}
}

func TestFigures(t *testing.T) {
	m := New(node{}, "1.2.3")
	m.PolicyChanged("api", time.Millisecond, nil)
	m.PolicyChanged("api", time.Millisecond, errors.New("line 3: no such field"))
	work(t, m)
	_, rows, err := m.Rows("porin_")
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, r := range rows {
		got[strings.TrimSpace(r[0]+" "+r[1])] = r[2]
	}
	for key, want := range map[string]string{
		`porin_endpoint`: "3",
		`porin_endpoint_state endpoint_state="ready"`:                    "2",
		`porin_endpoint_state endpoint_state="not-ready"`:                "1",
		`porin_endpoint_state endpoint_state="creating"`:                 "0",
		`porin_policy_endpoint_enforcement_status enforcement="ingress"`: "1",
		`porin_policy_endpoint_enforcement_status enforcement="none"`:    "2",
		`porin_policy`:                                                                                                        "2",
		`porin_policy_max_revision`:                                                                                           "7",
		`porin_identity type="reserved"`:                                                                                      "10",
		`porin_identity type="cluster_local"`:                                                                                 "1",
		`porin_identity type="node_local"`:                                                                                    "1",
		`porin_ip_addresses family="ipv4"`:                                                                                    "3",
		`porin_ipam_capacity family="ipv4"`:                                                                                   "253",
		`porin_forward_count_total direction="INGRESS"`:                                                                       "10",
		`porin_forward_bytes_total direction="EGRESS"`:                                                                        "2000",
		`porin_drop_count_total direction="INGRESS" reason="Policy denied"`:                                                   "3",
		`porin_drop_bytes_total direction="NONE" reason="Invalid source ip"`:                                                  "60",
		`porin_bpf_map_pressure map_name="conntrack"`:                                                                         "0.9",
		`porin_bpf_map_capacity map_name="conntrack"`:                                                                         "1000",
		`porin_lost_events_total source="kernel"`:                                                                             "4",
		`porin_flows_processed_total type="policy-verdict" verdict="deny"`:                                                    "3",
		`porin_flows_processed_total type="type(77)" verdict="allow"`:                                                         "1",
		`porin_policy_change_total outcome="success"`:                                                                         "1",
		`porin_policy_change_total outcome="fail"`:                                                                            "1",
		`porin_endpoint_regenerations_total outcome="success"`:                                                                "1",
		`porin_policy_implementation_delay_seconds_count source="api"`:                                                        "1",
		`porin_endpoint_regenerations_total outcome="fail"`:                                                                   "1",
		`porin_endpoint_regeneration_time_stats_seconds_count scope="endpoint" status="success"`:                              "1",
		`porin_endpoint_regeneration_time_stats_seconds_count scope="endpoint" status="failure"`:                              "1",
		`porin_endpoint_regeneration_time_stats_seconds_count scope="device" status="success"`:                                "1",
		`porin_endpoint_regeneration_time_stats_seconds_count scope="subject" status="success"`:                               "1",
		`porin_endpoint_regeneration_time_stats_seconds_count scope="commit" status="success"`:                                "1",
		`porin_kvstore_operations_duration_seconds_count action="allocate" kind="write" outcome="success" scope="identities"`: "1",
		`porin_kvstore_operations_duration_seconds_count action="release" kind="write" outcome="fail" scope="identities"`:     "1",
		`porin_version version="1.2.3"`:                                                                                       "1",
	} {
		if got[key] != want {
			t.Errorf("%s = %q, want %s", key, got[key], want)
		}
	}
	if t.Failed() {
		t.Logf("all rows: %v", rows)
	}
}

// Dashboards of the field find their metrics under these names, with porin_ for cilium_.
func TestNames(t *testing.T) {
	m := New(node{}, "1.2.3")
	m.Bootstrapped("overall", time.Second, nil)
	work(t, m)
	slog.New(m.Count(slog.DiscardHandler)).Error("not counted: discarded")
	slog.New(m.Count(slog.NewTextHandler(io.Discard, nil))).With(SubsystemKey, "datapath").Warn("map is full")
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	for _, want := range []string{
		"endpoint", "endpoint_state", "endpoint_regenerations_total", "endpoint_regeneration_time_stats_seconds",
		"policy", "policy_max_revision", "policy_change_total", "policy_endpoint_enforcement_status", "identity",
		"drop_count_total", "drop_bytes_total", "forward_count_total", "forward_bytes_total", "bpf_map_pressure",
		"bpf_map_capacity", "lost_events_total", "flows_processed_total", "ipam_capacity", "ip_addresses",
		"agent_bootstrap_seconds", "version", "errors_warnings_total", "kvstore_operations_duration_seconds",
		"process_resident_memory_bytes",
	} {
		if !slices.Contains(names, "porin_"+want) {
			t.Errorf("no metric porin_%s; have %v", want, names)
		}
	}
	_, rows, err := m.Rows("errors_warnings")
	if err != nil || len(rows) != 1 || rows[0][1] != `level="warning" subsystem="datapath"` {
		t.Errorf("errors and warnings = %v, %v; want one warning of the datapath", rows, err)
	}
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(node{}, "1.2.3").serve(ctx, l) }()
	get := func(method, path, body string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+l.Addr().String()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", "http://evil.example")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	resp, body := get("GET", "/metrics", "")
	if resp.StatusCode != 200 || !strings.Contains(body, "porin_endpoint 3") {
		t.Errorf("GET /metrics = %s:\n%.300s", resp.Status, body)
	}
	for h := range resp.Header {
		if strings.HasPrefix(h, "Access-Control") {
			t.Errorf("answer carries %s: a web page could read the metrics", h)
		}
	}
	if resp, _ := get("POST", "/metrics", "x"); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST /metrics = %s, want 405", resp.Status)
	}
	if resp, _ := get("GET", "/debug/pprof/", ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("GET /debug/pprof/ = %s, want 404", resp.Status)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("serve = %v after the end of its context", err)
	}
}

func TestServeAddress(t *testing.T) {
	m := New(node{}, "1.2.3")
	if err := m.Serve(t.Context(), ""); err != nil {
		t.Errorf("no address: %v", err)
	}
	err := m.Serve(t.Context(), "127.0.0.1:nonsense")
	if err == nil || !strings.Contains(err.Error(), "--metrics-address") {
		t.Errorf("bad address: %v; want an error that names the flag", err)
	}
}
