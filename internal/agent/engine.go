package agent

import (
	"sync"

	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/policy"
)

// engine is the policy engine, remembering of each subject in use whether it isolates: what status and metrics want to
// know, and the endpoints table does not hold.
type engine struct {
	*policy.Engine

	mu       sync.Mutex
	isolated map[policy.SubjectKey]bool // mu
}

func newEngine(cfg policy.Config) *engine {
	return &engine{Engine: policy.NewEngine(cfg), isolated: make(map[policy.SubjectKey]bool)}
}

// Resolve is the engine's.
func (e *engine) Resolve(id identity.Identity, own []policy.NamedPort) (ingress, egress *policy.Subject, err error) {
	ingress, egress, err = e.Engine.Resolve(id, own)
	if err == nil {
		e.mu.Lock()
		e.isolated[ingress.Key], e.isolated[egress.Key] = ingress.Isolated, egress.Isolated
		e.mu.Unlock()
	}
	return ingress, egress, err
}

// Forget is the engine's.
func (e *engine) Forget(key policy.SubjectKey) {
	e.Engine.Forget(key)
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.isolated, key)
}

// enforced tells in which directions a policy isolates ep. An endpoint that is not ready is denied everything.
func (e *engine) enforced(ep endpoint.Endpoint) (ingress, egress bool) {
	if ep.Phase != endpoint.Ready {
		return true, true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.isolated[ep.Ingress], e.isolated[ep.Egress]
}
