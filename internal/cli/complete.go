package cli

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
)

// complete makes a function that offers what the agent knows when the user presses the tab key: nothing if it cannot be
// asked, and never for long.
func (s *shell) complete(most int, names func(ctx context.Context, agent agentv1.AgentClient) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), time.Second)
		defer cancel()
		agent, done, err := s.connect(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer done()
		out, err := names(ctx, agent)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

func endpointNames(ctx context.Context, agent agentv1.AgentClient) ([]string, error) {
	r, err := agent.ListEndpoints(ctx, &agentv1.ListEndpointsRequest{})
	var out []string
	for _, ep := range r.GetEndpoints() {
		if ep.GetPod() != "" {
			out = append(out, endpointName(ep))
		}
	}
	return out, err
}

func policyNames(ctx context.Context, agent agentv1.AgentClient) ([]string, error) {
	r, err := agent.ListPolicies(ctx, &agentv1.ListPoliciesRequest{})
	var out []string
	for _, p := range r.GetPolicies() {
		if ns := p.GetRef().GetNamespace(); ns != "" {
			out = append(out, ns+"/"+p.GetRef().GetName())
		} else {
			out = append(out, p.GetRef().GetName())
		}
	}
	return out, err
}

func settingNames(ctx context.Context, agent agentv1.AgentClient) ([]string, error) {
	c, err := agent.GetConfig(ctx, &agentv1.GetConfigRequest{})
	return slices.Sorted(maps.Keys(c.GetValues())), err
}

func tableNames(ctx context.Context, agent agentv1.AgentClient) ([]string, error) {
	r, err := agent.DumpTable(ctx, &agentv1.DumpTableRequest{})
	return r.GetTables(), err
}
