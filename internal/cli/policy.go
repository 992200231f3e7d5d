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
	"porin/internal/flow"
	"porin/internal/policy"
)

func (s *shell) policyCommand() *cobra.Command {
	c := group("policy", "Who may talk to whom", "  porin policy apply -f policy.yaml\n  porin policy get\n  porin policy test examples/starwars/lab.yaml",
		s.policyApply(), s.policyGet(), s.policyDelete(), s.policyWait())
	c.AddCommand(s.offline()...)
	return c
}

// waiting is what apply, delete and wait have in common.
type waiting struct {
	wait    bool
	timeout time.Duration
}

func waitFlags(cmd *cobra.Command) *waiting {
	w := &waiting{}
	cmd.Flags().BoolVar(&w.wait, "wait", true, "return only when every endpoint enforces the change")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 30*time.Second, "how long to wait")
	return w
}

func (s *shell) policyApply() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "apply -f FILE...",
		Short: "Put policies in force",
		Long: `Gives the documents of the files to the agent, which checks them all and puts them in force as one change: a packet sees
the old rules or the new ones, never a mix. If anything is wrong in any document, every fault is listed with file, line
and field, and nothing changes. A FILE may be a folder (its .yaml, .yml and .json files) or - for the standard input.`,
		Example: `  porin policy apply -f policy.yaml
  porin policy apply -f policies/ -f more.yaml
  kubectl get cnp -A -o yaml | porin policy apply -f -`,
		Args: exactly(),
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder, or - for the standard input (may be repeated)")
	w := waitFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(files) == 0 {
			return usage("no file: say which with -f FILE, or -f - for the standard input")
		}
		docs, err := manifests(files, cmd.InOrStdin())
		if err != nil {
			return err
		}
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := agent.ApplyPolicy(ctx, &agentv1.ApplyPolicyRequest{Files: docs})
			if err != nil {
				return err
			}
			return s.changed(cmd, ctx, agent, "applied", r, w)
		})
	}
	return cmd
}

// changed tells what a change did and waits until it is enforced.
func (s *shell) changed(cmd *cobra.Command, ctx context.Context, agent agentv1.AgentClient, verb string, r *agentv1.PolicyRevision, w *waiting) error {
	out := cmd.OutOrStdout()
	for _, ref := range r.GetChanged() {
		fmt.Fprintf(out, "%s %s\n", verb, flow.Escape(refName(ref)))
	}
	if len(r.GetChanged()) == 0 {
		fmt.Fprintf(out, "nothing changed\n")
	}
	if !w.wait {
		fmt.Fprintf(out, "revision %d\n", r.GetRevision())
		return nil
	}
	r, err := s.enforced(cmd, ctx, agent, r.GetRevision(), w.timeout)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "revision %d is enforced by %s\n", r.GetRevision(), count(r.GetEndpoints(), "endpoint"))
	return nil
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
		Use:     "wait [REVISION]",
		Short:   "Wait until every endpoint enforces a revision, or the newest",
		Example: "  porin policy wait\n  porin policy wait 17 --timeout 1m",
		Args:    between(0, 1, "REVISION"),
	}
	timeout := cmd.Flags().Duration("timeout", 30*time.Second, "how long to wait")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var revision uint64
		if len(args) == 1 {
			n, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return usage("revision %q: not a number; 'porin status' shows the newest", args[0])
			}
			revision = n
		}
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := s.enforced(cmd, ctx, agent, revision, *timeout)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "revision %d is enforced by %s\n", r.GetRevision(), count(r.GetEndpoints(), "endpoint"))
			return nil
		})
	}
	return cmd
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
  porin policy delete --all`,
		ValidArgsFunction: s.complete(-1, policyNames),
	}
	named.flags(cmd)
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder, or - for the standard input (may be repeated)")
	cmd.Flags().BoolVar(&all, "all", false, "all policies")
	w := waitFlags(cmd)
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
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := agent.DeletePolicy(ctx, &agentv1.DeletePolicyRequest{Policies: refs, All: all, Files: docs})
			if err != nil {
				return err
			}
			return s.changed(cmd, ctx, agent, "deleted", r, w)
		})
	}
	return cmd
}
