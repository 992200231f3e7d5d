package agent

import (
	"errors"
	"slices"
	"testing"

	"porin/internal/cni"
	"porin/internal/endpoint"
	"porin/internal/policy"
)

// TestNamedPortsOfAWorkload: what the configuration says of ports is what rules may name.
func TestNamedPortsOfAWorkload(t *testing.T) {
	got, err := namedPorts([]cni.NamedPort{{Name: "http", Port: 80}, {Name: "dns", Protocol: "udp", Port: 53}, {Name: "s", Protocol: "SCTP", Port: 9}})
	want := []policy.NamedPort{{Name: "http", Proto: 6, Port: 80}, {Name: "dns", Proto: 17, Port: 53}, {Name: "s", Proto: 132, Port: 9}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := namedPorts([]cni.NamedPort{{Name: "x", Protocol: "GRE", Port: 1}}); !errors.Is(err, endpoint.ErrInvalid) {
		t.Errorf("a protocol without ports: %v", err)
	}
}
