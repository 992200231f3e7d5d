package metrics

import (
	"slices"
	"testing"
)

func TestClusterFigures(t *testing.T) {
	m := New(node{}, "v")
	m.Cluster(func() ClusterFigures {
		return ClusterFigures{
			Nodes: map[string]int{"live": 3}, Addresses: map[string]int{"programmed": 7}, Refused: 2, Listings: 4, Lost: 1, Published: 5, Unpublished: 6,
			Clusters: map[string]bool{"far": true},
		}
	})
	for _, want := range [][]string{
		{"porin_nodes", `state="live"`, "3"},
		{"porin_remote_addresses", `state="programmed"`, "7"},
		{"porin_kvstore_records_refused_total", "", "2"},
		{"porin_kvstore_listings_total", "", "4"},
		{"porin_kvstore_lost_total", "", "1"},
		{"porin_kvstore_own_records", `state="pending"`, "6"},
		{"porin_clustermesh_remote_clusters", "", "1"},
		{"porin_clustermesh_remote_cluster_readiness_status", `target_cluster="far"`, "1"},
	} {
		_, rows, err := m.Rows(want[0])
		if err != nil || !slices.ContainsFunc(rows, func(r []string) bool { return slices.Equal(r, want) }) {
			t.Errorf("no row %q in %q (%v)", want, rows, err)
		}
	}
}
