package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
)

func (s *shell) dbCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "db [TABLE]",
		Short: "Look into the agent's tables",
		Long:  "Lists the agent's tables, or the rows of one: what every decision is made from.",
		Example: `  porin db
  porin db endpoints -o json | jq '.[].identity'`,
		Args: between(0, 1, "TABLE"),

		ValidArgsFunction: s.complete(1, tableNames),
	}
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req := &agentv1.DumpTableRequest{}
		if len(args) == 1 {
			req.Table = args[0]
		}
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := agent.DumpTable(ctx, req)
			if err != nil {
				return err
			}
			if req.GetTable() == "" {
				return out.print(cmd.OutOrStdout(), func() ([]byte, error) { return json.Marshal(r.GetTables()) }, func(w io.Writer) error {
					var rows [][]string
					for _, t := range r.GetTables() {
						rows = append(rows, []string{t})
					}
					return table(w, []string{"TABLE"}, rows)
				})
			}
			parts := make([][]byte, len(r.GetRows()))
			for i, row := range r.GetRows() {
				parts[i] = []byte(row)
			}
			return out.print(cmd.OutOrStdout(), func() ([]byte, error) { return array(parts), nil }, func(w io.Writer) error {
				columns, rows, err := spread(parts)
				if err != nil {
					return err
				}
				return table(w, columns, rows)
			})
		})
	}
	return cmd
}

// spread turns JSON objects into columns, in the order in which their fields first appear, and rows.
func spread(objects [][]byte) (columns []string, rows [][]string, err error) {
	for _, o := range objects {
		dec := json.NewDecoder(bytes.NewReader(o))
		if t, err := dec.Token(); err != nil || t != json.Delim('{') {
			return nil, nil, fmt.Errorf("the agent's row %.60q is not a JSON object", o)
		}
		var row []string
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return nil, nil, fmt.Errorf("read the agent's row %.60q: %w", o, err)
			}
			var value json.RawMessage
			if err := dec.Decode(&value); err != nil {
				return nil, nil, fmt.Errorf("read the agent's row %.60q: %w", o, err)
			}
			name := fmt.Sprint(key)
			at := slices.Index(columns, name)
			if at < 0 {
				at = len(columns)
				columns = append(columns, name)
			}
			for len(row) <= at {
				row = append(row, "")
			}
			row[at] = plain(value)
		}
		rows = append(rows, row)
	}
	return columns, rows, nil
}

// plain is a string without its quotes, anything else as compact JSON.
func plain(value json.RawMessage) string {
	var s string
	if json.Unmarshal(value, &s) == nil {
		return s
	}
	var b bytes.Buffer
	if json.Compact(&b, value) != nil {
		return string(value)
	}
	return b.String()
}
