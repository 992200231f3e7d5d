package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
)

func (s *shell) configCommand() *cobra.Command {
	cmd := s.configGet()
	cmd.Use, cmd.Short = "config [get | set]", "The agent's settings"
	cmd.Example = "  porin config\n  porin config get policy-enforcement\n  porin config set policy-audit-mode=true"
	cmd.Args = noSuchCommand
	cmd.AddCommand(s.configGet(), s.configSet())
	return cmd
}

func (s *shell) configGet() *cobra.Command {
	cmd := &cobra.Command{
		Use: "get [KEY...]", Short: "Show all settings, or some",
		Long:    "Shows the agent's settings, which have the names of its flags. CHANGEABLE are those that 'porin config set' changes while the agent runs.",
		Example: "  porin config get\n  porin config get mtu -o json",

		ValidArgsFunction: s.complete(-1, settingNames),
	}
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			c, err := agent.GetConfig(ctx, &agentv1.GetConfigRequest{})
			if err != nil {
				return err
			}
			return showConfig(cmd, out, c, args)
		})
	}
	return cmd
}

func showConfig(cmd *cobra.Command, out *output, c *agentv1.Config, keys []string) error {
	values := c.GetValues()
	if len(keys) > 0 {
		some := make(map[string]string)
		for _, k := range keys {
			v, ok := values[k]
			if !ok {
				return fmt.Errorf("setting %q: no such setting; 'porin config' shows those there are", k)
			}
			some[k] = v
		}
		values = some
	}
	text := func() ([]byte, error) { return json.Marshal(values) }
	return out.print(cmd.OutOrStdout(), text, func(w io.Writer) error {
		var rows [][]string
		for _, k := range slices.Sorted(maps.Keys(values)) {
			changeable := "at start"
			if slices.Contains(c.GetChangeable(), k) {
				changeable = "now"
			}
			rows = append(rows, []string{k, values[k], changeable})
		}
		return table(w, []string{"SETTING", "VALUE", "CHANGEABLE"}, rows)
	})
}

func (s *shell) configSet() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set KEY=VALUE...", Short: "Change settings of the running agent",
		Long:    "Changes settings until the agent's next start; what must stay belongs into its config file or flags.",
		Example: "  porin config set policy-audit-mode=true",
		Args:    between(1, -1, "KEY=VALUE"),
	}
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		values := make(map[string]string)
		var keys []string
		for _, a := range args {
			k, v, ok := strings.Cut(a, "=")
			if !ok || k == "" {
				return usage("%q: not KEY=VALUE", a)
			}
			values[k] = v
			keys = append(keys, k)
		}
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			c, err := agent.SetConfig(ctx, &agentv1.SetConfigRequest{Values: values})
			if err != nil {
				return err
			}
			return showConfig(cmd, out, c, keys)
		})
	}
	return cmd
}
