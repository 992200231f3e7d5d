package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
)

// tableCommand makes a command that shows a table which comes with its columns.
func (s *shell) tableCommand(cmd *cobra.Command, get func(ctx context.Context, agent agentv1.AgentClient, args []string, each func(*agentv1.Table) error) error) *cobra.Command {
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			var columns []string
			var rows [][]string
			err := get(ctx, agent, args, func(t *agentv1.Table) error {
				if len(t.GetColumns()) > 0 {
					columns = t.GetColumns()
				}
				for _, r := range t.GetRows() {
					rows = append(rows, r.GetCells())
				}
				return nil
			})
			if err != nil {
				return err
			}
			text := func() ([]byte, error) {
				parts := make([][]byte, len(rows))
				for i, r := range rows {
					if parts[i], err = object(columns, r); err != nil {
						return nil, err
					}
				}
				return array(parts), nil
			}
			return out.print(cmd.OutOrStdout(), text, func(w io.Writer) error { return table(w, columns, rows) })
		})
	}
	return cmd
}

func (s *shell) ipCommand() *cobra.Command {
	return group("ip", "Addresses and who has them", "  porin ip list", s.tableCommand(&cobra.Command{
		Use: "list", Short: "List every address and CIDR that this node knows, with its identity",
		Example: "  porin ip list\n  porin ip list -o json", Args: exactly(),
	}, func(ctx context.Context, agent agentv1.AgentClient, _ []string, each func(*agentv1.Table) error) error {
		t, err := agent.ListIPs(ctx, &agentv1.ListIPsRequest{})
		if err != nil {
			return err
		}
		return each(t)
	}))
}

func (s *shell) nodeCommand() *cobra.Command {
	return group("node", "The nodes of the cluster", "  porin node list", s.tableCommand(&cobra.Command{
		Use: "list", Short: "List the nodes that this node knows",
		Example: "  porin node list", Args: exactly(),
	}, func(ctx context.Context, agent agentv1.AgentClient, _ []string, each func(*agentv1.Table) error) error {
		t, err := agent.ListNodes(ctx, &agentv1.ListNodesRequest{})
		if err != nil {
			return err
		}
		return each(t)
	}))
}

func (s *shell) metricsCommand() *cobra.Command {
	return group("metrics", "The agent's figures", "  porin metrics list drop", s.tableCommand(&cobra.Command{
		Use: "list [PART]", Short: "List the metrics, or those with PART in their name",
		Long: "Lists the agent's metrics, the same that its Prometheus listener gives. A histogram shows its sum and its count.",
		Example: `  porin metrics list
  porin metrics list drop_count`, Args: between(0, 1, "PART"),
	}, func(ctx context.Context, agent agentv1.AgentClient, args []string, each func(*agentv1.Table) error) error {
		req := &agentv1.ListMetricsRequest{}
		if len(args) == 1 {
			req.Pattern = args[0]
		}
		t, err := agent.ListMetrics(ctx, req)
		if err != nil {
			return err
		}
		return each(t)
	}))
}

// bpfMap is one map as the CLI shows it.
type bpfMap struct {
	command, name, what, key, example string
	flush                             bool
}

func (s *shell) bpfCommand() *cobra.Command {
	bpf := group("bpf", "What the kernel's maps hold", "  porin bpf policy list\n  porin bpf ct list -o json")
	for _, m := range []bpfMap{
		{"endpoint", "endpoints", "the endpoints as the programs know them", "ENDPOINT", "12", false},
		{"policy", "policy", "the verdicts, by subject and peer identity", "SUBJECT", "3", false},
		{"ipcache", "ipcache", "addresses and CIDRs with the identity behind them", "ADDRESS", "10.1.0.5", false},
		{"ct", "ct", "the flows that conntrack knows", "ADDRESS", "10.1.0.5", true},
		{"nat", "nat", "the source translations", "ADDRESS", "10.1.0.5", true},
	} {
		sub := group(m.command, "Show "+m.what, fmt.Sprintf("  porin bpf %s list", m.command), s.mapList(m), s.mapGet(m))
		if m.flush {
			sub.AddCommand(s.mapFlush(m))
		}
		bpf.AddCommand(sub)
	}
	return bpf
}

func (s *shell) mapRows(name, key string) func(ctx context.Context, agent agentv1.AgentClient, each func(*agentv1.Table) error) error {
	return func(ctx context.Context, agent agentv1.AgentClient, each func(*agentv1.Table) error) error {
		stream, err := agent.ListMap(ctx, &agentv1.ListMapRequest{Map: name, Key: key})
		if err != nil {
			return err
		}
		for {
			t, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := each(t); err != nil {
				return err
			}
		}
	}
}

func (s *shell) mapList(m bpfMap) *cobra.Command {
	return s.tableCommand(&cobra.Command{
		Use: "list", Short: "List " + m.what, Example: fmt.Sprintf("  porin bpf %s list\n  porin bpf %s list -o json", m.command, m.command), Args: exactly(),
	}, func(ctx context.Context, agent agentv1.AgentClient, _ []string, each func(*agentv1.Table) error) error {
		return s.mapRows(m.name, "")(ctx, agent, each)
	})
}

func (s *shell) mapGet(m bpfMap) *cobra.Command {
	short := "Show the rows of one " + m.key
	if m.name == "ipcache" {
		short = "Show who the programs take one ADDRESS for, or the row of a CIDR"
	}
	return s.tableCommand(&cobra.Command{
		Use: "get " + m.key, Short: short, Example: fmt.Sprintf("  porin bpf %s get %s", m.command, m.example), Args: exactly(m.key),
	}, func(ctx context.Context, agent agentv1.AgentClient, args []string, each func(*agentv1.Table) error) error {
		return s.mapRows(m.name, args[0])(ctx, agent, each)
	})
}

func (s *shell) mapFlush(m bpfMap) *cobra.Command {
	long := `Forgets all flows. The next packet of each is judged anew, as if it began the flow.`
	if m.name == "nat" {
		long = `Forgets all source translations. Connections to the outside that live on get another source port and break.`
	}
	return &cobra.Command{
		Use: "flush", Short: "Empty the map", Long: long, Example: fmt.Sprintf("  porin bpf %s flush", m.command), Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
				r, err := agent.FlushMap(ctx, &agentv1.FlushMapRequest{Map: m.name})
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "deleted %d rows\n", r.GetDeleted())
				return nil
			})
		},
	}
}
