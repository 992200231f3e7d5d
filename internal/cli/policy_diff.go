package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"porin/internal/policy"
	"porin/internal/policy/advise"
)

func policyDiff() *cobra.Command {
	var workloads string
	var exit bool
	cmd := &cobra.Command{
		Use:   "diff OLD NEW --workloads FILE",
		Short: "Tell which verdicts change between two sets of policies",
		Long: `OLD and NEW are files or folders of policies; - is the standard input. Every pair of workloads, and of a workload and what
lies outside (hosts of the file, blocks that either set names, host, remote-node, kube-apiserver, world), is compared on
all ports of all protocols: the ports come from the verdict tables that the kernel would hold, so none is missed.
Policies under the file's objects are left out.`,
		Example: `  porin policy diff old/ new/ -w workloads.yaml
  git show HEAD:policy.yaml | porin policy diff - policy.yaml -w workloads.yaml --exit-code`,
		Args: exactly("OLD", "NEW"),
	}
	cmd.Flags().StringVarP(&workloads, "workloads", "w", "", "file with the workloads, or a lab file")
	cmd.Flags().BoolVar(&exit, "exit-code", false, "exit with 1 if any verdict changes")
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if workloads == "" {
			return usage("whose verdicts? say --workloads FILE")
		}
		f, err := workloadFile(workloads)
		if err != nil {
			return err
		}
		f.Policies = nil
		var worlds [2]*advise.World
		for i, path := range args {
			var ps []*policy.Policy
			if ps, err = policies(cmd, []string{path}); err != nil {
				return err
			}
			if worlds[i], err = f.World(ps); err != nil {
				return err
			}
		}
		list, err := worlds[0].Diff(worlds[1])
		if err != nil {
			return err
		}
		err = out.print(cmd.OutOrStdout(), asJSON(list), func(w io.Writer) error {
			return printChanges(w, list)
		})
		if err == nil && exit && len(list) > 0 {
			err = fmt.Errorf("%s", counted(len(list), "verdict changes", "verdicts change"))
		}
		return err
	}
	return cmd
}

func printChanges(w io.Writer, list []advise.Change) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "no verdict changes")
		return err
	}
	var rows [][]string
	for _, c := range list {
		rows = append(rows, []string{c.From, c.To, advise.SpanNames(c.Spans), c.Old, c.New, deciders(changedBy(c.OldRules, c.NewRules))})
	}
	return paintedTable(w, []string{"FROM", "TO", "PORTS", "OLD", "NEW", "BY"}, rows, 3, 4)
}
