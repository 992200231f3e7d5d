package cli

import (
	"testing"

	agentv1 "porin/api/agent/v1"
)

func TestClusterOfAnIdentity(t *testing.T) {
	for _, c := range []struct {
		id     uint32
		labels []string
		want   string
	}{
		{1, []string{"reserved:host"}, ""},
		{300, []string{"k8s:app=a"}, ""},
		{1<<16 + 300, []string{"k8s:app=a", "k8s:io.cilium.k8s.policy.cluster=near"}, "near"},
		{7<<16 + 300, []string{"k8s:app=a"}, "7"},
		{1<<24 + 1, []string{"cidr:192.0.2.0/24"}, ""},
	} {
		if got := clusterOf(&agentv1.Identity{Id: c.id, Labels: c.labels}); got != c.want {
			t.Errorf("identity %d %v: cluster %q, want %q", c.id, c.labels, got, c.want)
		}
	}
}
