package cli

import (
	"context"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
	"porin/internal/identity"
	"porin/internal/labels"
)

func (s *shell) identityCommand() *cobra.Command {
	return group("identity", "The numbers that stand for sets of labels", "  porin identity list\n  porin identity get 1",
		s.identityList(), s.identityGet())
}

func (s *shell) identityList() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [LABEL...]",
		Short: "List the identities, or those whose labels are such",
		Long: `Lists the identities that this node knows. Numbers below 256 are reserved, up to 65535 the cluster's, from 16777216 on
this node's own, for CIDRs; between these a mesh has those of its clusters. CLUSTER is the name of the cluster, or its
number. ENDPOINTS counts the endpoints of this node. A LABEL is a condition, as 'porin endpoint list' has them.`,
		Example: "  porin identity list\n  porin identity list k8s:org=empire",
	}
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := agent.ListIdentities(ctx, &agentv1.ListIdentitiesRequest{Labels: args})
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), func() ([]byte, error) { return messages(r.GetIdentities()) }, func(w io.Writer) error {
				var rows [][]string
				for _, id := range r.GetIdentities() {
					rows = append(rows, []string{strconv.Itoa(int(id.GetId())), clusterOf(id), strconv.Itoa(int(id.GetEndpoints())), strings.Join(id.GetLabels(), " ")})
				}
				return table(w, []string{"IDENTITY", "CLUSTER", "ENDPOINTS", "LABELS"}, rows)
			})
		})
	}
	return cmd
}

// clusterOf returns the cluster that gave the number; empty where no cluster did, or there is only one.
func clusterOf(id *agentv1.Identity) string {
	number := identity.ID(id.GetId())
	if number.IsReserved() || number.IsLocal() {
		return ""
	}
	for _, l := range id.GetLabels() {
		if name, ok := strings.CutPrefix(l, labels.SourceK8s+":"+labels.KeyCluster+"="); ok {
			return name
		}
	}
	if number <= identity.MaxCluster {
		return ""
	}
	return strconv.Itoa(int(number >> 16))
}

func (s *shell) identityGet() *cobra.Command {
	var labels []string
	cmd := &cobra.Command{
		Use:     "get NUMBER | get --label LABEL...",
		Short:   "Show what a number stands for, or which number a set of labels has",
		Example: "  porin identity get 16777217\n  porin identity get --label k8s:class=xwing --label k8s:io.kubernetes.pod.namespace=default",
		Args:    between(0, 1, "NUMBER"),
	}
	out := outputFlag(cmd)
	cmd.Flags().StringArrayVar(&labels, "label", nil, "label of the set (may be repeated): all of them must be named")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req := &agentv1.GetIdentityRequest{Labels: labels}
		switch {
		case len(args) == 1 && len(labels) > 0:
			return usage("give a number or labels, not both")
		case len(args) == 0 && len(labels) == 0:
			return usage("NUMBER is missing; or give the labels with --label")
		case len(args) == 1:
			n, err := strconv.ParseUint(args[0], 10, 32)
			if err != nil {
				return usage("identity %q: not a number; 'porin identity list' shows those there are", args[0])
			}
			req.Id = uint32(n)
		}
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			id, err := agent.GetIdentity(ctx, req)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), func() ([]byte, error) { return message(id) }, func(w io.Writer) error {
				return page(w, "Identity:", strconv.Itoa(int(id.GetId())), "Labels:", strings.Join(id.GetLabels(), " "), "CIDR:", id.GetPrefix(),
					"Endpoints:", strconv.Itoa(int(id.GetEndpoints())))
			})
		})
	}
	return cmd
}
