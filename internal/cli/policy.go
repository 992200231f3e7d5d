package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "porin/api/agent/v1"
	"porin/internal/policy"
)

func (s *shell) policyCommand() *cobra.Command {
	c := group("policy", "Who may talk to whom", "  porin policy apply -f policy.yaml\n  porin policy get\n  porin policy test examples/starwars/lab.yaml",
		s.policyApply(), s.policyConfirm(), s.policyRollback(), s.policyGet(), s.policyDelete(), s.policyWait())
	c.AddCommand(s.offline()...)
	return c
}

func count(n uint32, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// enforced waits until every endpoint enforces revision; 0 means the newest.
func (s *shell) enforced(cmd *cobra.Command, ctx context.Context, agent agentv1.AgentClient, revision uint64, timeout time.Duration) (*agentv1.PolicyRevision, error) {
	what := "the newest revision"
	if revision != 0 {
		what = fmt.Sprintf("revision %d", revision)
	}
	stop := progress(cmd, "waiting until every endpoint enforces "+what)
	defer stop()
	// The agent ends the wait and says who is late; should it hang, the request ends a little later.
	ctx, cancel := context.WithTimeout(ctx, timeout+5*time.Second)
	defer cancel()
	r, err := agent.WaitPolicy(ctx, &agentv1.WaitPolicyRequest{Revision: revision, Timeout: durationpb.New(timeout)})
	if err != nil {
		err = s.answer(err)
		var c coded
		if errors.As(err, &c) && c.code == exitNotYet {
			err = coded{fmt.Errorf("%s is not enforced everywhere after %v; 'porin endpoint list' shows who is not ready: %w", what, timeout, err), exitNotYet}
		}
	}
	return r, err
}

// refName is a policy as people name it, with its kind where it is not the usual one.
func refName(r *agentv1.PolicyRef) string {
	return policy.Ref{Kind: r.GetKind(), Namespace: r.GetNamespace(), Name: r.GetName()}.String()
}

func (s *shell) policyWait() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wait [REVISION]",
		Short: "Wait until every endpoint enforces a revision, or the newest",
		Long: `Returns when every endpoint of this node enforces the revision, or a later one. Exit code 4 when that takes longer than the
timeout; the message says which endpoints are behind, and why.`,
		Example: "  porin policy wait\n  porin policy wait 17 --timeout 1m",
		Args:    between(0, 1, "REVISION"),
	}
	timeout := cmd.Flags().Duration("timeout", 30*time.Second, "how long to wait")
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		revision, err := revisionOf(args)
		if err != nil {
			return err
		}
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := s.enforced(cmd, ctx, agent, revision, *timeout)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), func() ([]byte, error) { return message(r) }, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "revision %d is enforced by %s\n", r.GetRevision(), count(r.GetEndpoints(), "endpoint"))
				return err
			})
		})
	}
	return cmd
}

// revisionOf reads the number of a revision; 0 without one.
func revisionOf(args []string) (uint64, error) {
	if len(args) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil || n == 0 {
		return 0, usage("revision %q: not a number; 'porin status' shows the newest", args[0])
	}
	return n, nil
}

func (s *shell) policyGet() *cobra.Command {
	var named naming
	cmd := &cobra.Command{
		Use:   "get [NAME...]",
		Short: "List the policies in force, or show some",
		Long: `Lists the policies: how many rules they have, how many endpoints of this node they select, with which revision they came
into force and from where: the API, or a watched file. ERROR says why a newer version was refused. With -o manifest the
documents themselves, ready for 'porin policy apply -f -'.

` + nameForms,
		Example: `  porin policy get
  porin policy get default/allow-empire -o manifest`,
		ValidArgsFunction: s.complete(-1, policyNames),
	}
	named.flags(cmd)
	out := outputFlag(cmd, "manifest")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		refs, err := named.refs(args)
		if err != nil {
			return err
		}
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := agent.ListPolicies(ctx, &agentv1.ListPoliciesRequest{Policies: refs})
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if out.format == "manifest" {
				for _, p := range r.GetPolicies() {
					fmt.Fprintf(w, "---\n%s\n", strings.TrimRight(strings.TrimPrefix(p.GetYaml(), "---\n"), "\n"))
				}
				return nil
			}
			return out.print(w, func() ([]byte, error) { return messages(r.GetPolicies()) }, func(w io.Writer) error {
				var rows [][]string
				for _, p := range r.GetPolicies() {
					rows = append(rows, []string{
						p.GetRef().GetNamespace(), p.GetRef().GetName(), p.GetRef().GetKind(), strconv.Itoa(int(p.GetRules())), strconv.Itoa(int(p.GetEndpoints())),
						strconv.FormatUint(p.GetRevision(), 10), p.GetSource(), p.GetError(),
					})
				}
				return table(w, []string{"NAMESPACE", "NAME", "KIND", "RULES", "ENDPOINTS", "REVISION", "SOURCE", "ERROR"}, rows)
			})
		})
	}
	return cmd
}

func (s *shell) policyDelete() *cobra.Command {
	var named naming
	var files []string
	var all bool
	cmd := &cobra.Command{
		Use:   "delete NAME... | -f FILE... | --all",
		Short: "Take policies out of force",
		Long: `Takes the named policies, or those that the files hold, or all of them, out of force as one change.

` + nameForms,
		Example: `  porin policy delete default/allow-empire
  porin policy delete --kind ccnp baseline
  porin policy delete -f policy.yaml
  porin policy delete --all --confirm-within 1m`,
		ValidArgsFunction: s.complete(-1, policyNames),
	}
	named.flags(cmd)
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder, or - for the standard input (may be repeated)")
	cmd.Flags().BoolVar(&all, "all", false, "all policies")
	c := changeFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ways := 0
		for _, given := range []bool{len(args) > 0, len(files) > 0, all} {
			if given {
				ways++
			}
		}
		if ways != 1 {
			return usage("say which policies: names, or -f FILE, or --all, and only one of them")
		}
		refs, err := named.refs(args)
		if err != nil {
			return err
		}
		docs, err := manifests(files, cmd.InOrStdin())
		if err != nil {
			return err
		}
		if err := c.check(cmd); err != nil {
			return err
		}
		req := &agentv1.DeletePolicyRequest{Policies: refs, All: all, Files: docs}
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			if c.within != 0 {
				return s.try(cmd, ctx, agent, "deleted", &agentv1.TryPolicyRequest{Delete: req}, c)
			}
			r, err := agent.DeletePolicy(ctx, req)
			if err != nil {
				return err
			}
			return s.changed(cmd, ctx, agent, "deleted", r, c)
		})
	}
	return cmd
}
