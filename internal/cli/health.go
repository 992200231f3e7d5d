package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "porin/api/agent/v1"
	"porin/internal/health"
)

func (s *shell) healthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Which nodes, and the health endpoints behind them, does this node reach?",
		Long: `Shows for every node of the cluster whether it, and the health endpoint behind it, answered the last ICMP echo and the
last HTTP request on port 4240, how fast, when the last answer came, and since when it is as it is. A health endpoint is
reached as any workload of its node is. The exit code is 1 when something of another node was not reached.`,
		Example: "  porin health\n  porin health -o json | jq '.[] | select(.icmp.ok | not)'",
		Args:    exactly(),
	}
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := agent.DumpTable(ctx, &agentv1.DumpTableRequest{Table: "health"})
			if status.Code(err) == codes.NotFound {
				return errors.New("this agent asks no other nodes: it is alone, or health-interval is 0")
			}
			if err != nil {
				return err
			}
			rows, parts, err := healthRows(r.GetRows())
			if err != nil {
				return err
			}
			now := time.Now()
			if err := out.print(cmd.OutOrStdout(), func() ([]byte, error) { return array(parts), nil }, func(w io.Writer) error {
				return healthTable(w, rows, now)
			}); err != nil {
				return err
			}
			missing := 0
			for _, row := range rows {
				if !row.Local && !(row.ICMP.OK && row.HTTP.OK) {
					missing++
				}
			}
			if missing > 0 {
				return fmt.Errorf("%d of %d addresses were not reached", missing, len(rows))
			}
			return nil
		})
	}
	return cmd
}

func healthRows(texts []string) (rows []health.Row, parts [][]byte, err error) {
	for _, text := range texts {
		var row health.Row
		if err := json.Unmarshal([]byte(text), &row); err != nil {
			return nil, nil, fmt.Errorf("read the agent's row %.60q: %w", text, err)
		}
		rows = append(rows, row)
		parts = append(parts, []byte(text))
	}
	return rows, parts, nil
}

func healthTable(w io.Writer, rows []health.Row, now time.Time) error {
	var cells [][]string
	for _, r := range rows {
		node := r.Node
		if r.Local {
			node += " (this node)"
		}
		last := r.ICMP.Last
		if r.HTTP.Last.After(last) {
			last = r.HTTP.Last
		}
		since := r.ICMP.Since
		if r.HTTP.Since.After(since) {
			since = r.HTTP.Since
		}
		problem := r.ICMP.Error
		if problem == "" {
			problem = r.HTTP.Error
		}
		cells = append(cells, []string{node, r.Kind, r.Addr.String(), rtt(r.ICMP), rtt(r.HTTP), ago(last, now), ago(since, now), problem})
	}
	return table(w, []string{"NODE", "KIND", "ADDRESS", "ICMP", "HTTP", "LAST ANSWER", "SINCE", "PROBLEM"}, cells)
}

func rtt(p health.Probe) string {
	if !p.OK {
		return "FAILED"
	}
	return p.RTT.Round(10 * time.Microsecond).String()
}

func ago(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return max(0, now.Sub(t)).Round(time.Second).String() + " ago"
}
