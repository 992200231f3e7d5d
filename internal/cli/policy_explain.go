package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"porin/internal/flow"
	"porin/internal/policy/advise"
)

func (s *shell) policyExplain() *cobra.Command {
	var a asking
	var c connection
	cmd := &cobra.Command{
		Use:   "explain --from X --to Y --port 80/TCP",
		Short: "Say which rule decides about a connection, and what would change the verdict",
		Long: `Names the deciding rules with file and line, and the nearest miss: the smallest edit of a label, a port or a rule that
flips the verdict. Each proposal was tried out with the engine before it is shown; if up to three edits together do not
flip the verdict, it says so. Whether the edit is wise is for you to say.

` + worldHelp + "\n\n" + endHelp,
		Example: `  porin policy explain -w examples/starwars/lab.yaml --from xwing --to deathstar --port 80/TCP
  porin policy explain -f policy.yaml --from app=web --to app=db --port 5432
  sudo porin policy explain --live --from default/xwing --to default/deathstar --port 80/TCP`,
		Args: exactly(),
	}
	a.flags(cmd)
	c.flags(cmd)
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		w, err := s.world(cmd, &a)
		if err != nil {
			return err
		}
		from, to, port, err := c.read(w)
		if err != nil {
			return err
		}
		e := w.Explain(from, to, port)
		return out.print(cmd.OutOrStdout(), asJSON(e), func(w io.Writer) error {
			printExplanation(w, e)
			return nil
		})
	}
	return cmd
}

func printExplanation(w io.Writer, e advise.Explanation) {
	say := func(format string, args ...any) { fmt.Fprintln(w, flow.Escape(fmt.Sprintf(format, args...))) }
	fmt.Fprintf(w, "%s: ", paint(w, strings.ToUpper(e.Verdict)))
	say("%s -> %s %s, decided at %s by", e.From, e.To, e.Port, ends(e.Side))
	for _, r := range e.Rules {
		text := r.String()
		if at := r.Place(); at != "" {
			text += " (" + at + ")"
		}
		if r.Description != "" {
			text += fmt.Sprintf(" %q", r.Description)
		}
		say("  %s: %s", r.Direction, text)
	}
	if e.Nearest == nil {
		say("nothing near: %s", e.None)
		return
	}
	say("nearest %s:", e.Nearest.Gives)
	for _, x := range e.Nearest.Edits {
		if x.Why != "" {
			say("  %s", x.Why)
		}
		say("  -> %s", x.Text)
	}
}

func (s *shell) policyReach() *cobra.Command {
	var a asking
	var from, to string
	cmd := &cobra.Command{
		Use:   "reach --to X | --from X",
		Short: "Tell who can reach an end, or whom it can reach, and on which ports",
		Long: `Lists every workload, outside host, block of a policy and reserved identity that policy lets through, with all its ports:
they are read from the verdict tables that the kernel would hold, so none is missed.

` + worldHelp + "\n\n" + endHelp,
		Example: `  porin policy reach -w examples/starwars/lab.yaml --to deathstar
  porin policy reach -w workloads.yaml -f policies/ --from web -o json
  sudo porin policy reach --live --to default/deathstar`,
		Args: exactly(),
	}
	a.flags(cmd)
	cmd.Flags().StringVar(&to, "to", "", "who is asked: list who can reach it")
	cmd.Flags().StringVar(&from, "from", "", "who opens connections: list whom it can reach")
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if (from == "") == (to == "") {
			return usage("say either --to X (who can reach X) or --from X (whom X can reach)")
		}
		w, err := s.world(cmd, &a)
		if err != nil {
			return err
		}
		flag, text := "to", to
		if from != "" {
			flag, text = "from", from
		}
		end, err := one(w, flag, text, "")
		if err != nil {
			return err
		}
		list, err := w.Reach(end, from != "", w.Known())
		if err != nil {
			return err
		}
		return out.print(cmd.OutOrStdout(), asJSON(list), func(w io.Writer) error {
			var rows [][]string
			for _, r := range list {
				rows = append(rows, []string{r.From, r.To, advise.SpanNames(r.Spans), deciders(r.Rules)})
			}
			return table(w, []string{"FROM", "TO", "PORTS", "ALLOWED BY"}, rows)
		})
	}
	return cmd
}
