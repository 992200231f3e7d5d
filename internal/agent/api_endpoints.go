package agent

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "porin/api/agent/v1"
	"porin/internal/endpoint"
	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
)

func (a *api) ListEndpoints(_ context.Context, req *agentv1.ListEndpointsRequest) (*agentv1.ListEndpointsResponse, error) {
	holds, err := wanted(req.GetLabels())
	if err != nil {
		return nil, err
	}
	resp := &agentv1.ListEndpointsResponse{}
	for _, ep := range a.endpoints.List() {
		if holds(ep.Labels) {
			resp.Endpoints = append(resp.Endpoints, a.endpointMessage(ep))
		}
	}
	return resp, nil
}

func (a *api) GetEndpoint(_ context.Context, req *agentv1.GetEndpointRequest) (*agentv1.Endpoint, error) {
	ep, err := a.endpoints.Get(req.GetId())
	if err != nil {
		return nil, err
	}
	return a.endpointMessage(ep), nil
}

func (a *api) SetEndpointLabels(ctx context.Context, req *agentv1.SetEndpointLabelsRequest) (*agentv1.Endpoint, error) {
	ep, err := a.endpoints.Get(req.GetId())
	if err != nil {
		return nil, err
	}
	add, err := labels.ParseAll(req.GetAdd()...)
	if err != nil {
		return nil, invalid("labels to add: %v", err)
	}
	remove, err := labels.ParseAll(req.GetDelete()...)
	if err != nil {
		return nil, invalid("labels to delete: %v", err)
	}
	if ep, err = a.endpoints.SetLabels(ctx, ep.ID, add, remove); err != nil {
		return nil, err
	}
	return a.endpointMessage(ep), nil
}

func (a *api) EndpointLog(_ context.Context, req *agentv1.GetEndpointRequest) (*agentv1.EndpointLogResponse, error) {
	ep, err := a.endpoints.Get(req.GetId())
	if err != nil {
		return nil, err
	}
	resp := &agentv1.EndpointLogResponse{}
	for _, l := range a.endpoints.Log(ep.ID) {
		resp.Entries = append(resp.Entries, &agentv1.LogEntry{Time: timestamppb.New(l.Time), Phase: string(l.Phase), Message: l.Message})
	}
	return resp, nil
}

func (a *api) EndpointHealth(ctx context.Context, req *agentv1.GetEndpointRequest) (*agentv1.EndpointHealthResponse, error) {
	ep, err := a.endpoints.Get(req.GetId())
	if err != nil {
		return nil, err
	}
	h := &agentv1.EndpointHealthResponse{Endpoint: "ok", Policy: "ok", Overall: "ok", Connected: true, Message: ep.Message}
	if ep.Phase != endpoint.Ready {
		h.Endpoint, h.Overall = string(ep.Phase), "not ready"
	}
	if rev := a.endpoints.Revision(); ep.Revision < rev {
		h.Policy = fmt.Sprintf("behind: enforces revision %d of %d", ep.Revision, rev)
		h.Overall = "not ready"
	}
	if at := ep.Attachment(); at.ContainerID != "" {
		if err := a.endpoints.Check(ctx, at, endpoint.Expect{}); err != nil {
			h.Connected, h.Overall = false, "not ready"
			if h.Message == "" {
				h.Message = err.Error()
			}
		}
	}
	return h, nil
}

func (a *api) DisconnectEndpoint(ctx context.Context, req *agentv1.GetEndpointRequest) (*agentv1.Endpoint, error) {
	ep, err := a.endpoints.Get(req.GetId())
	if err != nil {
		return nil, err
	}
	if ep, err = a.endpoints.Disconnect(ctx, ep.ID); err != nil {
		return nil, err
	}
	a.log.Info("endpoint disconnected on request", "ep", ep.ID, "name", ep.Name())
	return a.endpointMessage(ep), nil
}

func (a *api) endpointMessage(ep endpoint.Endpoint) *agentv1.Endpoint {
	ingress, egress := a.engine.enforced(ep)
	m := &agentv1.Endpoint{
		Id: uint32(ep.ID), ContainerId: ep.ContainerID, Ifname: ep.IfName, Netns: ep.Netns, Namespace: ep.Namespace, Pod: ep.Pod,
		Labels: ep.Labels.Strings(), SecurityLabels: ep.Security.Strings(), Identity: uint32(ep.Identity),
		Device: ep.Device, Ifindex: uint32(ep.Ifindex), Mac: ep.MAC.String(), Phase: string(ep.Phase), Message: ep.Message,
		IngressEnforced: ingress, EgressEnforced: egress, PolicyRevision: ep.Revision, Created: timestamppb.New(ep.Created),
	}
	m.NamedPorts = portMessages(ep.NamedPorts)
	if ep.IPv4.IsValid() {
		m.Ipv4 = ep.IPv4.String()
	}
	if ep.IPv6.IsValid() {
		m.Ipv6 = ep.IPv6.String()
	}
	return m
}

func portMessages(ports []policy.NamedPort) (out []*agentv1.NamedPort) {
	for _, p := range ports {
		out = append(out, &agentv1.NamedPort{Name: p.Name, Protocol: portProtocols()[p.Proto], Port: uint32(p.Port)})
	}
	return out
}

func (a *api) ListIdentities(ctx context.Context, req *agentv1.ListIdentitiesRequest) (*agentv1.ListIdentitiesResponse, error) {
	holds, err := wanted(req.GetLabels())
	if err != nil {
		return nil, err
	}
	about, err := a.aboutIdentities(ctx)
	if err != nil {
		return nil, err
	}
	resp := &agentv1.ListIdentitiesResponse{}
	for _, id := range a.identities.List() {
		if holds(id.Labels) {
			resp.Identities = append(resp.Identities, about.message(id))
		}
	}
	return resp, nil
}

func (a *api) GetIdentity(ctx context.Context, req *agentv1.GetIdentityRequest) (*agentv1.Identity, error) {
	about, err := a.aboutIdentities(ctx)
	if err != nil {
		return nil, err
	}
	if len(req.GetLabels()) == 0 {
		id, ok := a.identities.Get(identity.ID(req.GetId()))
		if !ok {
			return nil, status.Errorf(codes.NotFound, "identity %d: not known on this node", req.GetId())
		}
		return about.message(id), nil
	}
	ls, err := labels.ParseAll(req.GetLabels()...)
	if err != nil {
		return nil, invalid("%v", err)
	}
	for _, id := range a.identities.List() {
		if id.Labels.Key() == ls.Key() {
			return about.message(id), nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "identity of exactly %s: not known on this node; 'porin identity list' takes some of the labels", ls)
}

// aboutIdentities is what this node knows of who has an identity.
type aboutIdentities struct {
	endpoints map[identity.ID]uint32 // of this node
	ports     map[identity.ID][]policy.NamedPort
}

func (a *api) aboutIdentities(ctx context.Context) (about aboutIdentities, err error) {
	about.endpoints = map[identity.ID]uint32{}
	for _, ep := range a.endpoints.List() {
		about.endpoints[ep.Identity]++
	}
	about.ports, err = a.endpoints.NamedPorts(ctx)
	return about, err
}

func (about aboutIdentities) message(id identity.Identity) *agentv1.Identity {
	m := &agentv1.Identity{Id: uint32(id.ID), Labels: id.Labels.Strings(), Endpoints: about.endpoints[id.ID], NamedPorts: portMessages(about.ports[id.ID])}
	if id.Prefix.IsValid() {
		m.Prefix = id.Prefix.String()
	}
	return m
}

// wanted reads the conditions of a query: labels, or selectors as policies have them. One without a source means any
// source.
func wanted(ss []string) (func(labels.Labels) bool, error) {
	var all []func(labels.Labels) bool
	for _, s := range ss {
		if l, err := labels.Parse(s); err == nil && l.Source == labels.SourceCIDR { // its key may have colons
			all = append(all, func(ls labels.Labels) bool { return ls.Has(l) })
			continue
		}
		sel, err := labels.ParseSelector(s)
		if err != nil {
			return nil, invalid("%v", err)
		}
		all = append(all, sel.Matches)
	}
	return func(ls labels.Labels) bool {
		for _, holds := range all {
			if !holds(ls) {
				return false
			}
		}
		return true
	}, nil
}
