package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "porin/api/agent/v1"
)

// takeBackTime bounds the request that takes a change back after the user's interrupt.
const takeBackTime = 30 * time.Second

// isTerminal tells whether a stream is somebody's terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// try makes a change that is taken back unless it is confirmed: here, if somebody sits in front, or by another command.
func (s *shell) try(cmd *cobra.Command, ctx context.Context, agent agentv1.AgentClient, verb string, req *agentv1.TryPolicyRequest, c *change) error {
	began := time.Now()
	req.ConfirmWithin = durationpb.New(c.within)
	t, err := agent.TryPolicy(ctx, req)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	asked := c.out.format == "table" && s.interactive(cmd.InOrStdin())
	if c.out.format == "table" {
		sayChanged(out, verb, t.GetChanged())
	}
	if t.GetRevision() == 0 { // there was no difference
		return c.out.print(out, func() ([]byte, error) { return message(t) }, func(io.Writer) error { return nil })
	}
	ends := began.Add(c.within)
	if c.wait {
		r, err := s.enforced(cmd, ctx, agent, t.GetRevision(), min(c.timeout, time.Until(ends)))
		switch {
		case ctx.Err() != nil && asked:
			return s.takeBack(ctx, agent, t)
		case err != nil:
			return fmt.Errorf("%w; it is taken back in %v", err, time.Until(ends).Round(time.Second))
		case c.out.format == "table":
			fmt.Fprintf(out, "revision %d is enforced by %s\n", r.GetRevision(), count(r.GetEndpoints(), "endpoint"))
		}
	}
	if asked {
		return s.askToConfirm(cmd, ctx, agent, t, ends)
	}
	t.Left = durationpb.New(max(0, time.Until(ends)).Round(time.Second))
	return c.out.print(out, func() ([]byte, error) { return message(t) }, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "it is taken back in %v unless 'porin policy confirm %d' comes before; 'porin policy rollback %d' takes it back now\n",
			t.GetLeft().AsDuration(), t.GetRevision(), t.GetRevision())
		return err
	})
}

// askToConfirm waits for Enter. The agent keeps the time: without an answer it takes the change back by itself, also if
// the change has cut the user's own connection.
func (s *shell) askToConfirm(cmd *cobra.Command, ctx context.Context, agent agentv1.AgentClient, t *agentv1.PolicyTrial, ends time.Time) error {
	errs := cmd.ErrOrStderr()
	fmt.Fprintf(errs, "does everything work? Enter keeps the change; without it, it is taken back in %v\n", time.Until(ends).Round(time.Second))
	enter := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		enter <- err
	}()
	over := time.NewTimer(time.Until(ends))
	defer over.Stop()
	for {
		select {
		case err := <-enter:
			if err != nil { // the terminal is gone: nobody has agreed
				enter = nil
				continue
			}
			if _, err := agent.ConfirmPolicy(ctx, &agentv1.SettlePolicyRequest{Revision: t.GetRevision()}); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "confirmed revision %d\n", t.GetRevision())
			return err
		case <-ctx.Done():
			return s.takeBack(ctx, agent, t)
		case <-over.C:
			return fmt.Errorf("revision %d was not confirmed in time: the agent takes it back", t.GetRevision())
		}
	}
}

// takeBack takes a change back because the user interrupted the command.
func (s *shell) takeBack(ctx context.Context, agent agentv1.AgentClient, t *agentv1.PolicyTrial) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTime)
	defer cancel()
	if _, err := agent.RollbackPolicy(ctx, &agentv1.SettlePolicyRequest{Revision: t.GetRevision()}); err != nil {
		return fmt.Errorf("interrupted; the agent takes revision %d back when its time is over: %w", t.GetRevision(), s.answer(err))
	}
	return errors.New("interrupted: the change is taken back")
}

func (s *shell) policyConfirm() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "confirm [REVISION]",
		Short: "Keep a change that was made with --confirm-within",
		Long: `Makes the change that waits to be confirmed last. With REVISION only that one, so that a late answer cannot confirm a change
that somebody else made. Exit code 1 if nothing waits: its time is over, and it has been taken back.`,
		Example: "  porin policy confirm\n  porin policy confirm 17",
		Args:    between(0, 1, "REVISION"),
	}
	return s.settle(cmd, "confirmed", func(ctx context.Context, agent agentv1.AgentClient, req *agentv1.SettlePolicyRequest) (*agentv1.PolicyRevision, error) {
		return agent.ConfirmPolicy(ctx, req)
	})
}

func (s *shell) policyRollback() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollback [REVISION]",
		Short: "Take a change back now that was made with --confirm-within",
		Long: `Puts in force what was there before the change that waits to be confirmed, as one change. With REVISION only that one. It
does not undo changes that were made for good, or confirmed: apply the older documents again.`,
		Example: "  porin policy rollback\n  porin policy rollback 17",
		Args:    between(0, 1, "REVISION"),
	}
	return s.settle(cmd, "rolled back", func(ctx context.Context, agent agentv1.AgentClient, req *agentv1.SettlePolicyRequest) (*agentv1.PolicyRevision, error) {
		return agent.RollbackPolicy(ctx, req)
	})
}

// settle makes a command that ends a trial.
func (s *shell) settle(cmd *cobra.Command, verb string, call func(context.Context, agentv1.AgentClient, *agentv1.SettlePolicyRequest) (*agentv1.PolicyRevision, error)) *cobra.Command {
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		revision, err := revisionOf(args)
		if err != nil {
			return err
		}
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := call(ctx, agent, &agentv1.SettlePolicyRequest{Revision: revision})
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), func() ([]byte, error) { return message(r) }, func(w io.Writer) error {
				sayChanged(w, verb, r.GetChanged())
				_, err := fmt.Fprintf(w, "revision %d is in force\n", r.GetRevision())
				return err
			})
		})
	}
	return cmd
}
