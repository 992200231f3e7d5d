package agent

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "porin/api/agent/v1"
	"porin/internal/policy"
)

// CheckPolicy says what ApplyPolicy would change.
func (a *api) CheckPolicy(_ context.Context, req *agentv1.ApplyPolicyRequest) (*agentv1.PolicyRevision, error) {
	ps, err := parseFiles(req.GetFiles())
	if err != nil {
		return nil, err
	}
	if len(ps) == 0 {
		return nil, invalid("the files hold no policy")
	}
	changed, err := a.policies.Check(ps)
	if err != nil {
		return nil, err
	}
	return a.revision(a.endpoints.Revision(), changed), nil
}

func (a *api) TryPolicy(ctx context.Context, req *agentv1.TryPolicyRequest) (*agentv1.PolicyTrial, error) {
	window := req.GetConfirmWithin().AsDuration()
	if window < minTrial || window > maxTrial {
		return nil, invalid("confirm within %s: the time must be from %s to %s", window, minTrial, maxTrial)
	}
	var put []*policy.Policy
	var del []policy.Ref
	var err error
	switch {
	case (req.GetApply() == nil) == (req.GetDelete() == nil):
		return nil, invalid("try to apply, or to delete: one of them")
	case req.GetApply() != nil:
		if put, err = parseFiles(req.GetApply().GetFiles()); err == nil && len(put) == 0 {
			err = invalid("the files hold no policy")
		}
	case req.GetDelete().GetAll():
		if _, err = namedPolicies(req.GetDelete()); err == nil {
			del = a.policies.ofAPI()
		}
	default:
		if del, err = namedPolicies(req.GetDelete()); err == nil {
			err = a.policies.thereAre(del)
		}
	}
	if err != nil {
		return nil, err
	}
	t, err := a.policies.Try(ctx, put, del, window)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return &agentv1.PolicyTrial{}, nil
	}
	return trialMessage(t), nil
}

func (a *api) ConfirmPolicy(_ context.Context, req *agentv1.SettlePolicyRequest) (*agentv1.PolicyRevision, error) {
	t, err := a.policies.Confirm(req.GetRevision())
	if err != nil {
		return nil, err
	}
	return a.revision(t.Revision, t.refs()), nil
}

func (a *api) RollbackPolicy(ctx context.Context, req *agentv1.SettlePolicyRequest) (*agentv1.PolicyRevision, error) {
	t, err := a.policies.Rollback(ctx, req.GetRevision())
	if err != nil {
		return nil, err
	}
	return a.revision(a.endpoints.Revision(), t.refs()), nil
}

func trialMessage(t *trial) *agentv1.PolicyTrial {
	m := &agentv1.PolicyTrial{Revision: t.Revision, Until: timestamppb.New(t.Until), Left: durationpb.New(t.left(time.Now())), Ending: t.Ending}
	for _, r := range t.refs() {
		m.Changed = append(m.Changed, refMessage(r))
	}
	return m
}
