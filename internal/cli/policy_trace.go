package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"porin/internal/flow"
	"porin/internal/policy/advise"
)

// connection is the flags that name one connection.
type connection struct {
	from, to, port, family string
}

func (c *connection) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.from, "from", "", "who opens the connection")
	cmd.Flags().StringVar(&c.to, "to", "", "who is asked")
	cmd.Flags().StringVar(&c.port, "port", "80/TCP", "port as 80/TCP, 53/UDP, 8/ICMP (a type) or ICMP (ping)")
	cmd.Flags().StringVar(&c.family, "family", "", "ipv4 or ipv6, where it matters: ping, and outside hosts with several addresses")
}

func (c *connection) read(w *advise.World) (from, to advise.End, p advise.Port, err error) {
	if c.family != "" && c.family != "ipv4" && c.family != "ipv6" {
		return from, to, p, usage("--family %q: write ipv4 or ipv6", c.family)
	}
	if from, err = one(w, "from", c.from, c.family); err != nil {
		return from, to, p, err
	}
	if to, err = one(w, "to", c.to, c.family); err != nil {
		return from, to, p, err
	}
	families := w.Config.Families
	for _, e := range []advise.End{from, to} {
		if len(e.Addrs) == 1 {
			families = []string{advise.Family(e.Addrs[0])}
		}
	}
	if c.family != "" {
		families = []string{c.family}
	}
	ps, err := advise.ParsePort(c.port, families)
	if err == nil && len(ps) == 0 {
		err = fmt.Errorf("port %q: not of the family %s", c.port, strings.Join(families, " and "))
	}
	if err != nil {
		return from, to, p, coded{fmt.Errorf("--port: %w", err), exitUsage}
	}
	return from, to, ps[0], nil
}

func (s *shell) policyTrace() *cobra.Command {
	var a asking
	var c connection
	var all bool
	cmd := &cobra.Command{
		Use:   "trace --from X --to Y --port 80/TCP",
		Short: "Tell step by step what policy makes of a connection",
		Long: `Shows both ends, the sender's egress and the receiver's ingress, which must both allow: what isolates the end, and every
entry of the rules that select it in the order in which they are asked, with what fits and what does not and why.
--all adds the rules that do not select the end.

` + worldHelp + "\n\n" + endHelp,
		Example: `  porin policy trace -w examples/starwars/lab.yaml --from xwing --to deathstar --port 80/TCP
  porin policy trace -f policy.yaml --from app=web --to app=db --port 5432
  sudo porin policy trace --live --from default/xwing --to 203.0.113.10 --port 443 --all`,
		Args: exactly(),
	}
	a.flags(cmd)
	c.flags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "also the rules that do not select the end, and why not")
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
		r := w.Trace(from, to, port)
		return out.print(cmd.OutOrStdout(), asJSON(r), func(w io.Writer) error {
			printTrace(w, r, all)
			return nil
		})
	}
	return cmd
}

func printTrace(w io.Writer, r advise.Report, all bool) {
	say := func(indent int, format string, args ...any) {
		fmt.Fprintf(w, "%s%s\n", strings.Repeat("  ", indent), flow.Escape(fmt.Sprintf(format, args...)))
	}
	for _, s := range r.Sides {
		say(0, "%s of %s: %s, %s", s.Direction, s.Of, s.Verdict, s.Because)
		say(1, "labels %s", strings.Join(s.Labels, ","))
		if len(s.Isolated) > 0 {
			say(1, "isolated by %s", ruleNames(s.Isolated))
		}
		for _, st := range s.Steps {
			mark := "does not fit"
			switch {
			case st.Decides:
				mark = "decides"
			case st.Fits:
				mark = "fits, too late"
			}
			at := st.Rule.Place()
			if at != "" {
				at = " (" + at + ")"
			}
			say(1, "%s%s: %s, %s", st.Rule, at, st.Effect, mark)
			if st.Rule.Description != "" {
				say(2, "%q", st.Rule.Description)
			}
			for _, t := range st.Peers {
				if t.Fits {
					say(2, "peer yes: %s", t.Peers)
				} else {
					say(2, "peer no:  %s: %s", t.Peers, t.Why)
				}
			}
			if len(st.Peers) == 0 {
				say(2, "peer no:  the list is empty, so it is nobody")
			}
			say(2, "port %s %s", map[bool]string{true: "yes:", false: "no: "}[st.PortFits], orEvery(st.Ports))
		}
		if all {
			for _, o := range s.Others {
				say(1, "%s (%s): does not select: %s", o.Rule, o.Rule.Place(), o.Why)
			}
		} else if n := len(s.Others); n > 0 {
			say(1, "%s %s not select it; --all says why", counted(n, "rule", "rules"), map[bool]string{true: "does", false: "do"}[n == 1])
		}
	}
	fmt.Fprintf(w, "%s: ", paint(w, strings.ToUpper(r.Verdict)))
	say(0, "%s -> %s %s", r.From, r.To, r.Port)
}

func orEvery(ports []string) string {
	if len(ports) == 0 {
		return "every protocol and port"
	}
	return strings.Join(ports, ", ")
}
