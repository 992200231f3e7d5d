package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
	"porin/internal/flow"
)

// change is what the commands that change policies have in common.
type change struct {
	wait    bool
	timeout time.Duration
	within  time.Duration // 0: for good
	out     *output
}

func changeFlags(cmd *cobra.Command) *change {
	c := &change{}
	cmd.Flags().BoolVar(&c.wait, "wait", true, "return only when every endpoint enforces the change")
	cmd.Flags().DurationVar(&c.timeout, "timeout", 30*time.Second, "how long to wait")
	cmd.Flags().DurationVar(&c.within, "confirm-within", 0, "take the change back by itself unless it is confirmed in this time")
	c.out = outputFlag(cmd)
	return c
}

func (c *change) check(cmd *cobra.Command) error {
	if cmd.Flags().Changed("confirm-within") && c.within < time.Second {
		return usage("--confirm-within %v: give whoever confirms a second at least, as in --confirm-within 60s", c.within)
	}
	return nil
}

func (s *shell) policyApply() *cobra.Command {
	var files []string
	var dry, exit bool
	cmd := &cobra.Command{
		Use:     "apply FILE... | -f FILE...",
		Aliases: []string{"import"},
		Short:   "Put policies in force",
		Long: `Gives the documents of the files to the agent, which checks them all and puts them in force as one change: a packet sees
the old rules or the new ones, never a mix. If anything is wrong in any document, every fault is listed with file, line
and field, and nothing changes. A FILE may be a folder (its .yaml, .yml and .json files) or - for the standard input.

--confirm-within 60s guards the change: unless 'porin policy confirm' comes in time, the agent puts back what was there
before, by itself, also if it was restarted or killed meanwhile. On a terminal the command waits, and Enter confirms; an
interrupt takes the change back at once. Until then other changes are refused; 'porin status' shows the time left.

--dry-run changes nothing: it lists the verdicts that would change among the endpoints, the blocks and the reserved
identities that the agent knows, on all ports, and which of the connections that the agent has recorded (the last 4,095
flows) would be judged otherwise. With --exit-code it exits with 1 if any verdict would change.`,
		Example: `  porin policy apply -f policy.yaml
  porin policy apply -f policies/ -f more.yaml
  porin policy apply --dry-run policies/
  porin policy apply --confirm-within 60s policies/
  kubectl get cnp -A -o yaml | porin policy apply -f -`,
		Args: between(0, -1),
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder, or - for the standard input (may be repeated)")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "change nothing: tell which verdicts, and which recorded connections, would change")
	cmd.Flags().BoolVar(&exit, "exit-code", false, "with --dry-run, exit with 1 if any verdict would change")
	c := changeFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		all := append(append([]string(nil), files...), args...)
		switch {
		case len(all) == 0:
			return usage("no file: say which with -f FILE, or -f - for the standard input")
		case dry && c.within != 0:
			return usage("--dry-run changes nothing, so there is nothing to confirm: leave --confirm-within out")
		case exit && !dry:
			return usage("--exit-code belongs to --dry-run")
		}
		if err := c.check(cmd); err != nil {
			return err
		}
		docs, err := manifests(all, cmd.InOrStdin())
		if err != nil {
			return err
		}
		req := &agentv1.ApplyPolicyRequest{Files: docs}
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			switch {
			case dry:
				return s.dryRun(cmd, ctx, agent, req, c.out, exit)
			case c.within != 0:
				return s.try(cmd, ctx, agent, "applied", &agentv1.TryPolicyRequest{Apply: req}, c)
			}
			r, err := agent.ApplyPolicy(ctx, req)
			if err != nil {
				return err
			}
			return s.changed(cmd, ctx, agent, "applied", r, c)
		})
	}
	return cmd
}

// changed tells what a change did and waits until it is enforced.
func (s *shell) changed(cmd *cobra.Command, ctx context.Context, agent agentv1.AgentClient, verb string, r *agentv1.PolicyRevision, c *change) error {
	out := cmd.OutOrStdout()
	if c.out.format == "table" {
		sayChanged(out, verb, r.GetChanged())
	}
	if c.wait {
		now, err := s.enforced(cmd, ctx, agent, r.GetRevision(), c.timeout)
		if err != nil {
			return err
		}
		r.Revision, r.Endpoints = now.GetRevision(), now.GetEndpoints()
	}
	return c.out.print(out, func() ([]byte, error) { return message(r) }, func(w io.Writer) error {
		if c.wait {
			_, err := fmt.Fprintf(w, "revision %d is enforced by %s\n", r.GetRevision(), count(r.GetEndpoints(), "endpoint"))
			return err
		}
		_, err := fmt.Fprintf(w, "revision %d\n", r.GetRevision())
		return err
	})
}

func sayChanged(w io.Writer, verb string, refs []*agentv1.PolicyRef) {
	for _, ref := range refs {
		fmt.Fprintf(w, "%s %s\n", verb, flow.Escape(refName(ref)))
	}
	if len(refs) == 0 {
		fmt.Fprintf(w, "nothing changed\n")
	}
}
