package cli

import (
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

func (s *shell) policySelectors() *cobra.Command {
	var a asking
	cmd := &cobra.Command{
		Use:   "selectors",
		Short: "List the sets of peers that rules name, and who is in each",
		Long: `Lists every endpoint selector, entity, block, name and set of nodes that rules name as peers, how many rules name it, and
who of the known is in it: workloads, outside hosts, blocks of policies, nodes, reserved identities. Without files the
agent is asked.

` + worldHelp,
		Example: `  sudo porin policy selectors
  porin policy selectors -w examples/starwars/lab.yaml -o json`,
		Args: exactly(),
	}
	a.flags(cmd)
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if a.workloads == "" && len(a.files) == 0 {
			a.live = true
		}
		w, err := s.world(cmd, &a)
		if err != nil {
			return err
		}
		list := w.Selectors()
		return out.print(cmd.OutOrStdout(), asJSON(list), func(w io.Writer) error {
			var rows [][]string
			for _, x := range list {
				rows = append(rows, []string{x.Selector, strconv.Itoa(len(x.Rules)), strconv.Itoa(len(x.Who)), strings.Join(x.Who, ", ")})
			}
			return table(w, []string{"SELECTOR", "RULES", "MEMBERS", "WHO"}, rows)
		})
	}
	return cmd
}
