package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
	"porin/internal/flow"
)

// poll is how often a waiting command looks again.
const poll = 200 * time.Millisecond

func (s *shell) statusCommand() *cobra.Command {
	var wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Is this node well? Components, endpoints, alarms",
		Long: `Shows the agent's components, how many endpoints are in which state, which kernel features are missing and what is
used instead, and the alarms: what a person must see. The exit code is 4 when the node is not healthy, also with --wait
when it is still not healthy at the timeout.`,
		Example: `  porin status
  porin status --wait --timeout 1m     # after the start: until the agent answers and is healthy
  porin status -o json | jq .alarms`,
		Args: exactly(),
	}
	out := outputFlag(cmd)
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the agent runs and is healthy")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait with --wait")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var st *agentv1.StatusResponse
		get := func(ctx context.Context, agent agentv1.AgentClient) (err error) {
			st, err = agent.Status(ctx, &agentv1.StatusRequest{})
			return err
		}
		err := error(nil)
		if wait {
			err = s.untilHealthy(cmd, timeout, get, func() bool { return st.GetHealthy() })
		} else {
			err = s.ask(cmd, get)
		}
		if st == nil {
			return err
		}
		text := func() ([]byte, error) { return message(st) }
		if err := out.print(cmd.OutOrStdout(), text, func(w io.Writer) error { return statusPage(w, st) }); err != nil {
			return err
		}
		if err == nil && !st.GetHealthy() {
			err = coded{errors.New("the node is not healthy: see the components and alarms"), exitNotYet}
		}
		return err
	}
	return cmd
}

// untilHealthy asks again and again until the answer is well or the time is over; then the last answer says why.
func (s *shell) untilHealthy(cmd *cobra.Command, timeout time.Duration, get func(context.Context, agentv1.AgentClient) error, well func() bool) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	stop := progress(cmd, fmt.Sprintf("waiting until the agent at %s is healthy", s.path()))
	defer stop()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		err := s.ask(cmd, get)
		if err == nil && well() {
			return nil
		}
		var c coded
		if err != nil && (!errors.As(err, &c) || c.code != exitUnreachable) {
			return err
		}
		if err != nil && strings.Contains(err.Error(), "needs root") {
			return err // waiting does not help
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err == nil {
				err = errors.New("the agent answers, but is not healthy: see the components and alarms")
			}
			return coded{fmt.Errorf("not healthy after %v: %w", timeout, err), exitNotYet}
		}
	}
}

// progress says on the error stream that a command still waits, after two seconds and then every ten.
func progress(cmd *cobra.Command, what string) (stop func()) {
	ctx, cancel := context.WithCancel(cmd.Context())
	done := make(chan struct{})
	started := time.Now()
	go func() {
		defer close(done)
		t := time.NewTimer(2 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				fmt.Fprintf(cmd.ErrOrStderr(), "%s (%v)\n", flow.Escape(what), time.Since(started).Round(time.Second))
				t.Reset(10 * time.Second)
			}
		}
	}()
	return func() { cancel(); <-done }
}

func statusPage(w io.Writer, st *agentv1.StatusResponse) error {
	health := "ok"
	if !st.GetHealthy() {
		health = "NOT HEALTHY"
	}
	var eps []string
	for _, phase := range slices.Sorted(maps.Keys(st.GetEndpointPhases())) {
		if n := st.GetEndpointPhases()[phase]; n > 0 {
			eps = append(eps, fmt.Sprintf("%d %s", n, phase))
		}
	}
	if len(eps) == 0 {
		eps = []string{"none"}
	}
	started := ""
	if st.GetStarted() != nil {
		started = st.GetStarted().AsTime().Format(time.RFC3339)
	}
	err := page(w, "Node:", st.GetNodeName(), "Health:", health, "Version:", st.GetVersion(), "Started:", started,
		"Policy revision:", fmt.Sprint(st.GetPolicyRevision()), "Waits to be confirmed:", trialLine(st.GetTrial()), "Endpoints:", strings.Join(eps, ", "))
	if err != nil {
		return err
	}
	var rows [][]string
	for _, c := range st.GetComponents() {
		rows = append(rows, []string{c.GetName(), c.GetState(), c.GetMessage()})
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		if err := paintedTable(w, []string{"COMPONENT", "STATE", "MESSAGE"}, rows, 1); err != nil {
			return err
		}
	}
	for _, l := range []struct {
		title string
		lines []string
	}{{"Missing kernel features and what is used instead:", st.GetFallbacks()}, {"ALARMS:", st.GetAlarms()}} {
		if len(l.lines) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s\n", l.title)
		for _, line := range l.lines {
			fmt.Fprintf(w, "  %s\n", flow.Escape(line))
		}
	}
	return nil
}

// trialLine says which change of policies waits, and how long; empty if none does.
func trialLine(t *agentv1.PolicyTrial) string {
	if t == nil {
		return ""
	}
	var names []string
	for _, r := range t.GetChanged() {
		names = append(names, refName(r))
	}
	text := fmt.Sprintf("revision %d, %v left (until %s): ", t.GetRevision(), t.GetLeft().AsDuration().Round(time.Second), t.GetUntil().AsTime().Local().Format(time.TimeOnly))
	if t.GetEnding() {
		text = fmt.Sprintf("revision %d is being taken back: ", t.GetRevision())
	}
	if more := len(names) - 5; more > 0 {
		names = append(names[:5], fmt.Sprintf("and %d more", more))
	}
	return text + strings.Join(names, ", ")
}
