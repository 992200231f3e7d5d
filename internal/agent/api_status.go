package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "porin/api/agent/v1"
	"porin/internal/endpoint"
)

// States of a component.
const (
	stateOK       = "ok"
	stateDegraded = "degraded" // works on, with less
	stateFailed   = "failed"   // does not do its job
)

func (a *api) Status(context.Context, *agentv1.StatusRequest) (*agentv1.StatusResponse, error) {
	resp := &agentv1.StatusResponse{
		Version: Version, NodeName: a.cfg.NodeName, Started: timestamppb.New(a.started),
		PolicyRevision: a.endpoints.Revision(), Healthy: true, Fallbacks: a.datapath.Fallbacks(),
		EndpointPhases: map[string]uint32{},
	}
	notReady := 0
	for _, ep := range a.endpoints.List() {
		resp.EndpointPhases[string(ep.Phase)]++
		if ep.Phase == endpoint.NotReady {
			notReady++
		}
	}
	add := func(name, state, message string) {
		resp.Components = append(resp.Components, &agentv1.Component{Name: name, State: state, Message: message})
		resp.Healthy = resp.Healthy && state == stateOK
	}

	kernel := a.datapath.Alarms()
	add("datapath", worse(stateDegraded, len(kernel) > 0), strings.Join(kernel, "; "))
	ok, message := a.store.Healthy()
	if !ok {
		message += "; known identities stay, new label sets wait"
	}
	add("kvstore", worse(stateDegraded, !ok), message)
	remote := a.cluster.alarms()
	add("cluster", worse(stateDegraded, len(remote) > 0), a.cluster.summary())
	var pools []string
	full := false
	for _, p := range a.addresses.Pools() {
		pools = append(pools, fmt.Sprintf("%d of %d in %s", p.Used, p.Size, p.Prefix))
		full = full || p.Used >= p.Size
	}
	add("ipam", worse(stateDegraded, full), strings.Join(pools, ", "))
	rules := a.policies.Alarms()
	waiting := ""
	if t := a.policies.Trial(); t != nil {
		resp.Trial = trialMessage(t)
		waiting = fmt.Sprintf("; revision %d is on trial", t.Revision)
	}
	held := a.policies.Held()
	switch {
	case held:
		add("policy", stateFailed, "no policy is in force yet; endpoints keep the rules they have")
	case len(rules) > 0:
		add("policy", stateDegraded, fmt.Sprintf("revision %d, %d alarms%s", a.endpoints.Revision(), len(rules), waiting))
	default:
		add("policy", stateOK, fmt.Sprintf("revision %d%s", a.endpoints.Revision(), waiting))
	}
	own := a.endpoints.Alarms()
	add("endpoints", worse(stateDegraded, notReady > 0), fmt.Sprintf("%d, %d of them not ready", len(a.endpoints.List()), notReady))
	counts := a.observer.Counts()
	add("events", stateOK, fmt.Sprintf("%d seen, %d lost in the kernel, %d lost by slow readers", counts.Seen, counts.LostKernel, counts.LostReaders))

	resp.Alarms = slices.Concat(kernel, rules, own, remote)
	if alarm := a.ranges.Alarm(); alarm != "" {
		resp.Alarms = append(resp.Alarms, alarm)
	}
	for name, share := range a.datapath.MapPressure() {
		if share >= 0.9 {
			resp.Alarms = append(resp.Alarms, fmt.Sprintf("map %s is %.0f %% full", name, share*100))
		}
	}
	slices.Sort(resp.Alarms)
	resp.Alarms = slices.Compact(resp.Alarms)
	return resp, nil
}

func worse(state string, bad bool) string {
	if bad {
		return state
	}
	return stateOK
}

func (a *api) GetConfig(context.Context, *agentv1.GetConfigRequest) (*agentv1.Config, error) {
	return &agentv1.Config{Values: a.live.all(), Changeable: changeable}, nil
}

// SetConfig changes what may change at run time, all of the values or none.
func (a *api) SetConfig(_ context.Context, req *agentv1.SetConfigRequest) (*agentv1.Config, error) {
	if len(req.GetValues()) == 0 {
		return nil, invalid("no setting is given")
	}
	if err := a.live.check(req.GetValues()); err != nil {
		return nil, invalid("%v", err)
	}
	for _, key := range slices.Sorted(maps.Keys(req.GetValues())) {
		value := req.GetValues()[key]
		on, _ := strconv.ParseBool(value) // checked
		switch key {
		case "policy-audit-mode":
			if err := a.datapath.SetAudit(on); err != nil {
				return nil, fmt.Errorf("%s: %w", key, err)
			}
		case "monitor-trace-all":
			if err := a.datapath.SetTraceAll(on); err != nil {
				return nil, fmt.Errorf("%s: %w", key, err)
			}
		}
		a.live.set(key, value)
		a.log.Info("setting changed", "setting", key, "value", value)
		a.observer.Announce(&agentv1.AgentEvent{Type: "setting-changed", Text: key + "=" + value})
	}
	return a.GetConfig(context.Background(), nil)
}
