package endpoint

import (
	"errors"
	"testing"

	"porin/internal/identity"
	"porin/internal/verdict"
)

// The node's own health endpoint has the reserved identity, also after a restart; a workload cannot have it.
func TestHealthEndpoint(t *testing.T) {
	a := newAgent(t, allowWeb)
	req := Request{ContainerID: "porin-health", IfName: "eth0", Netns: "/run/porin/health.netns", Health: true}
	ep, err := a.Create(t.Context(), req)
	if err != nil || ep.Identity != identity.Health || ep.Security.String() != "reserved:health" {
		t.Fatalf("%+v, %v", ep, err)
	}
	client := a.create("client", "k8s:app=client")
	if !a.can(ep, verdict.Ingress, client.IPv4, 4240) {
		t.Error("nobody isolates it, but it is isolated")
	}
	web := a.create("web", "k8s:app=web")
	if a.can(web, verdict.Ingress, ep.IPv4, 80) {
		t.Error("the health endpoint passes for a client")
	}
	if _, err := a.Create(t.Context(), request("liar", "reserved:health")); !errors.Is(err, ErrRefused) {
		t.Errorf("a workload with the label: %v", err)
	}
	a = a.restart()
	a.apply(allowWeb)
	again, err := a.Create(t.Context(), req)
	if err != nil || again.ID != ep.ID || again.Identity != identity.Health || again.Phase != Ready {
		t.Errorf("after a restart: %+v, %v", again, err)
	}
}
