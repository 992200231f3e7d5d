package cli

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"porin/internal/flow"
	"porin/internal/policy/advise"
)

func (s *shell) policyMatrix() *cobra.Command {
	var a asking
	var texts, with []string
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "Every workload to every workload on every port: allowed or not",
		Long: `Prints a table for each port, the rows who opens the connection, the columns who is asked. -o list gives a line for each
connection, with the rules that decided. Without --port, every port that a workload serves. --with adds outside ends.

` + worldHelp + "\n\n" + endHelp,
		Example: `  porin policy matrix -w examples/starwars/lab.yaml
  porin policy matrix -w workloads.yaml -f policies/ --port 80/TCP --port ICMP --with host --with 203.0.113.10 -o list
  sudo porin policy matrix --live -o json`,
		Args: exactly(),
	}
	a.flags(cmd)
	cmd.Flags().StringSliceVar(&texts, "port", nil, "port as 80/TCP, 53/UDP, 8/ICMP (a type), ICMP, or a name (default: every port that a workload serves)")
	cmd.Flags().StringArrayVar(&with, "with", nil, "another end: an address, host, world-ipv4, labels (may be repeated)")
	out := outputFlag(cmd, "list")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		w, err := s.world(cmd, &a)
		if err != nil {
			return err
		}
		ps, names, err := ports(w, texts)
		if err != nil {
			return err
		}
		if len(texts) == 0 {
			ps = w.Served()
		}
		who := w.Workloads()
		for _, text := range with {
			more, err := w.Find(text, "")
			if err != nil {
				return coded{fmt.Errorf("--with: %w", err), exitUsage}
			}
			who = append(who, more...)
		}
		if len(who) == 0 {
			return usage("no workloads: say --workloads FILE, or name ends with --with")
		}
		cells, err := w.Matrix(who, who, ps)
		if err != nil {
			return err
		}
		for _, name := range names {
			more, err := w.MatrixNamed(who, who, name)
			if err != nil {
				return coded{fmt.Errorf("--port: %w", err), exitUsage}
			}
			cells = append(cells, more...)
		}
		if out.format == "list" {
			return paintedTable(cmd.OutOrStdout(), []string{"FROM", "TO", "PORT", "VERDICT", "SIDE", "DECIDED BY"}, cellRows(cells), 3)
		}
		return out.print(cmd.OutOrStdout(), asJSON(cells), func(w io.Writer) error { return printMatrix(w, cells) })
	}
	return cmd
}

func cellRows(cells []advise.Cell) (rows [][]string) {
	for _, c := range cells {
		rows = append(rows, []string{c.From, c.To, c.Port, c.Verdict, c.Side, deciders(c.Rules)})
	}
	return rows
}

// printMatrix prints one table for each port.
func printMatrix(w io.Writer, cells []advise.Cell) error {
	for len(cells) > 0 {
		n := slices.IndexFunc(cells, func(c advise.Cell) bool { return portTitle(c) != portTitle(cells[0]) })
		if n < 0 {
			n = len(cells)
		}
		if err := printPort(w, cells[:n]); err != nil {
			return err
		}
		if cells = cells[n:]; len(cells) > 0 {
			fmt.Fprintln(w)
		}
	}
	return nil
}

// portTitle is the port as it was asked about: a name has another number at each receiver.
func portTitle(c advise.Cell) string { return cmp.Or(c.Named, c.Port) }

func printPort(w io.Writer, cells []advise.Cell) error {
	at, rowNames, columnNames := map[[2]string]string{}, map[string]bool{}, map[string]bool{}
	for _, c := range cells {
		rowNames[c.From], columnNames[c.To] = true, true
		at[[2]string{c.From, c.To}] = c.Verdict
	}
	froms, tos := slices.Sorted(maps.Keys(rowNames)), slices.Sorted(maps.Keys(columnNames))
	columns := []string{flow.Escape(portTitle(cells[0]))}
	for _, to := range tos {
		columns = append(columns, flow.Escape(to))
	}
	var rows [][]string
	var painted []int
	for i := range tos {
		painted = append(painted, i+1)
	}
	for _, from := range froms {
		row := []string{from}
		for _, to := range tos {
			row = append(row, at[[2]string{from, to}])
		}
		rows = append(rows, row)
	}
	return paintedTable(w, columns, rows, painted...)
}
