package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"porin/internal/flow"
)

func (s *shell) policyLint() *cobra.Command {
	var a asking
	var exit bool
	cmd := &cobra.Command{
		Use:   "lint",
		Short: "Find rules that do nothing, or more than is probably meant",
		Long: `Looks at the policies together with the workloads that there are:

  selects-nothing  a rule or a selector that fits no workload; a near label is proposed
  says-nothing     an entry that opens nothing, whoever there is
  shadowed         other rules decide wherever the entry fits
  redundant        others say the same wherever it fits
  wide             allows everyone, every workload of every namespace, or every address outside
  unserved         a port that none of the workloads concerned serves (where all say what they serve)
  unresolved       a CIDR group, a service or the name of a port that is not there, and so is nobody
  cancelled        layer 7 rules that mean nothing, since another rule allows everything wherever they fit

Redundant and shadowed are told from the verdict tables that the kernel would hold: without these entries no verdict
among the known workloads changes.

` + worldHelp,
		Example: `  porin policy lint -w examples/starwars/lab.yaml
  porin policy lint -w workloads.yaml -f policies/ --exit-code
  sudo porin policy lint --live`,
		Args: exactly(),
	}
	a.flags(cmd)
	cmd.Flags().BoolVar(&exit, "exit-code", false, "exit with 1 if anything is found")
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		w, err := s.world(cmd, &a)
		if err != nil {
			return err
		}
		if len(w.Workloads()) == 0 {
			return usage("no workloads: say --workloads FILE; without them every rule would seem to select nothing")
		}
		list, err := w.Lint()
		if err != nil {
			return err
		}
		err = out.print(cmd.OutOrStdout(), asJSON(list), func(w io.Writer) error {
			for _, f := range list {
				text := fmt.Sprintf("%s: %s: %s: %s", f.Rule.Place(), f.Kind, f.Rule, f.Text)
				if len(f.By) > 0 {
					text += ": " + ruleNames(f.By)
				}
				fmt.Fprintln(w, flow.Escape(text))
			}
			if len(list) == 0 {
				fmt.Fprintln(w, "nothing found")
			}
			return nil
		})
		if err == nil && exit && len(list) > 0 {
			err = fmt.Errorf("%s", counted(len(list), "finding", "findings"))
		}
		return err
	}
	return cmd
}
