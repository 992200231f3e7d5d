package agent

import (
	"context"
	"fmt"

	agentv1 "porin/api/agent/v1"
	"porin/internal/endpoint"
)

// announce tells those who monitor of endpoints that come, go and change their state, as the endpoints table has it. What
// changes twice between two looks is told once.
func (a *agent) announce(ctx context.Context) error {
	known := map[uint16]endpoint.Endpoint{}
	for {
		rows, _, changed := a.endpoints.Table().Watch()
		now := make(map[uint16]endpoint.Endpoint, len(rows))
		for _, ep := range rows {
			now[ep.ID] = ep
			if old, ok := known[ep.ID]; !ok || old.Phase != ep.Phase || old.Identity != ep.Identity {
				a.tell("endpoint-"+string(ep.Phase), ep)
			}
		}
		for id, ep := range known {
			if _, ok := now[id]; !ok {
				a.tell("endpoint-gone", ep)
			}
		}
		known = now
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (a *agent) tell(what string, ep endpoint.Endpoint) {
	text := fmt.Sprintf("endpoint %d (%s) identity %d", ep.ID, ep.Name(), uint32(ep.Identity))
	if ep.Message != "" {
		text += ": " + ep.Message
	}
	a.observer.Announce(&agentv1.AgentEvent{Type: what, Text: text})
}
