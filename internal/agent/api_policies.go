package agent

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "porin/api/agent/v1"
	"porin/internal/policy"
)

func (a *api) ApplyPolicy(ctx context.Context, req *agentv1.ApplyPolicyRequest) (*agentv1.PolicyRevision, error) {
	ps, err := parseFiles(req.GetFiles())
	if err != nil {
		return nil, err
	}
	if len(ps) == 0 {
		return nil, invalid("the files hold no policy")
	}
	rev, changed, err := a.policies.Apply(ctx, ps)
	if err != nil {
		return nil, err
	}
	return a.revision(rev, changed), nil
}

func (a *api) DeletePolicy(ctx context.Context, req *agentv1.DeletePolicyRequest) (*agentv1.PolicyRevision, error) {
	refs, err := namedPolicies(req)
	if err != nil {
		return nil, err
	}
	var rev uint64
	var changed []policy.Ref
	if req.GetAll() {
		rev, changed, err = a.policies.DeleteAll(ctx)
	} else {
		rev, changed, err = a.policies.Delete(ctx, refs)
	}
	if err != nil {
		return nil, err
	}
	return a.revision(rev, changed), nil
}

// namedPolicies returns the policies that are to be deleted; none for all of them.
func namedPolicies(req *agentv1.DeletePolicyRequest) ([]policy.Ref, error) {
	var refs []policy.Ref
	for _, r := range req.GetPolicies() {
		refs = append(refs, policy.Ref{Kind: r.GetKind(), Namespace: r.GetNamespace(), Name: r.GetName()})
	}
	ps, err := parseFiles(req.GetFiles())
	if err != nil {
		return nil, err
	}
	for _, p := range ps {
		refs = append(refs, p.Ref)
	}
	switch {
	case req.GetAll() && len(refs) > 0:
		return nil, invalid("delete all policies, or some: not both")
	case !req.GetAll() && len(refs) == 0:
		return nil, invalid("no policy is named")
	}
	return refs, nil
}

func (a *api) ListPolicies(_ context.Context, req *agentv1.ListPoliciesRequest) (*agentv1.ListPoliciesResponse, error) {
	want := map[policy.Ref]bool{}
	for _, r := range req.GetPolicies() {
		want[policy.Ref{Kind: r.GetKind(), Namespace: r.GetNamespace(), Name: r.GetName()}] = true
	}
	type inForce struct {
		revision  uint64
		endpoints int
	}
	rows := map[policy.Ref]inForce{}
	for _, row := range a.endpoints.PolicyTable().List() {
		rows[row.Ref] = inForce{row.Revision, row.Endpoints}
	}
	resp := &agentv1.ListPoliciesResponse{Revision: a.endpoints.Revision()}
	for _, v := range a.policies.List() {
		m := &agentv1.Policy{Source: v.Source, Error: v.Error}
		if v.Policy != nil {
			if len(want) > 0 && !want[v.Ref] {
				continue
			}
			delete(want, v.Ref)
			row := rows[v.Ref]
			m.Ref, m.Revision, m.Rules = refMessage(v.Ref), row.revision, uint32(len(v.Rules))
			m.Endpoints, m.Yaml = uint32(row.endpoints), v.YAML
		} else if len(req.GetPolicies()) > 0 {
			continue
		}
		resp.Policies = append(resp.Policies, m)
	}
	for r := range want {
		return nil, status.Errorf(codes.NotFound, "policy %s: there is no such policy", r)
	}
	return resp, nil
}

func (a *api) WaitPolicy(ctx context.Context, req *agentv1.WaitPolicyRequest) (*agentv1.PolicyRevision, error) {
	if t := req.GetTimeout().AsDuration(); req.GetTimeout() != nil && t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t)
		defer cancel()
	}
	rev := req.GetRevision()
	if rev > a.endpoints.Revision() {
		return nil, invalid("revision %d has not been made; the newest is %d", rev, a.endpoints.Revision())
	}
	if rev == 0 {
		rev = a.endpoints.Revision()
	}
	if err := a.endpoints.WaitRevision(ctx, rev); err != nil {
		return nil, err
	}
	return a.revision(rev, nil), nil
}

// revision tells of a revision in force, and on how many endpoints.
func (a *api) revision(rev uint64, changed []policy.Ref) *agentv1.PolicyRevision {
	m := &agentv1.PolicyRevision{Revision: rev}
	for _, r := range changed {
		m.Changed = append(m.Changed, refMessage(r))
	}
	for _, ep := range a.endpoints.List() {
		if ep.Revision >= rev {
			m.Endpoints++
		}
	}
	return m
}

func refMessage(r policy.Ref) *agentv1.PolicyRef {
	return &agentv1.PolicyRef{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}
}

// parseFiles reads all documents of all files, or tells every fault of all of them.
func parseFiles(files []*agentv1.ManifestFile) ([]*policy.Policy, error) {
	var out []*policy.Policy
	var errs []error
	where := map[policy.Ref]string{}
	for _, f := range files {
		ps, err := parse(f.GetName(), f.GetContent())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, p := range ps {
			if other, dup := where[p.Ref]; dup {
				errs = append(errs, fmt.Errorf("%s:%d: %s is in %s too", p.File, p.Line, p.Ref, other))
			}
			where[p.Ref] = p.File
		}
		out = append(out, ps...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, invalid("%v", err)
	}
	return out, nil
}
