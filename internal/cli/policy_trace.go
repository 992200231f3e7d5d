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
	cmd.Flags().StringVar(&c.port, "port", "80/TCP", "port as 80/TCP, 53/UDP, 8/ICMP (a type), ICMP (ping), or a name that the receiver gives to one")
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
	ps, err := to.Port(c.port, families)
	if err == nil && len(ps) > 1 && !strings.EqualFold(c.port, "ICMP") {
		err = fmt.Errorf("port %q of %s means %v: add the protocol", c.port, to.Name, ps)
	}
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
	var dports []string
	src, dst := endFlags{side: "src"}, endFlags{side: "dst"}
	cmd := &cobra.Command{
		Use:   "trace --from X --to Y --port 80/TCP",
		Short: "Tell step by step what policy makes of a connection",
		Long: `Shows both ends, the sender's egress and the receiver's ingress, which must both allow: what isolates the end, and every
entry of the rules that select it in the order in which they are asked, tier by tier, with what fits and what does not
and why. --all (-v) adds the rules that do not select the end.

The flags of 'cilium policy trace' name ends and ports as well: -s and -d by labels, --src-identity, --src-endpoint,
--src-k8s-pod, --src-k8s-yaml and the same with dst, --dport. With them and without files the agent is asked.

` + worldHelp + "\n\n" + endHelp,
		Example: `  porin policy trace -w examples/starwars/lab.yaml --from xwing --to deathstar --port 80/TCP
  porin policy trace -f policy.yaml --from app=web --to app=db --port 5432
  sudo porin policy trace --live --from default/xwing --to 203.0.113.10 --port 443 --all
  sudo porin policy trace -s k8s:app=web -d k8s:app=db --dport 5432/tcp -v`,
		Args: exactly(),
	}
	a.flags(cmd)
	c.flags(cmd)
	cmd.Flags().BoolVarP(&all, "all", "v", false, "also the rules that do not select the end, and why not")
	cmd.Flags().StringSliceVar(&dports, "dport", nil, "port as 80/tcp, as --port (may be repeated: a trace for each)")
	src.flags(cmd, "s", "who opens the connection")
	dst.flags(cmd, "d", "who is asked")
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if (src.given() || dst.given()) && a.workloads == "" && len(a.files) == 0 {
			a.live = true
		}
		w, err := s.world(cmd, &a)
		if err != nil {
			return err
		}
		for _, e := range []struct {
			*endFlags
			text *string
		}{{&src, &c.from}, {&dst, &c.to}} {
			if !e.given() {
				continue
			}
			if *e.text != "" {
				return usage("--%s: the end is named by --%s already", e.side, e.other())
			}
			if *e.text, err = e.endFlags.text(s, cmd, w, a.live); err != nil {
				return err
			}
		}
		if len(dports) > 0 && cmd.Flags().Changed("port") {
			return usage("--dport: the port is named by --port already")
		}
		if len(dports) == 0 {
			dports = []string{c.port}
		}
		reports := make([]advise.Report, len(dports))
		for i, text := range dports {
			c.port = text
			from, to, port, err := c.read(w)
			if err != nil {
				return err
			}
			reports[i] = w.Trace(from, to, port)
		}
		data := asJSON(reports[0])
		if len(reports) > 1 {
			data = asJSON(reports)
		}
		return out.print(cmd.OutOrStdout(), data, func(w io.Writer) error {
			for i, r := range reports {
				if i > 0 {
					fmt.Fprintln(w)
				}
				printTrace(w, r, all)
			}
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
			if st.Audit {
				mark += "; it only reports"
			}
			say(1, "%s%s: %s, %s%s", st.Rule, at, st.Effect, mark, placed(st))
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
			for _, t := range st.Requires {
				if t.Fits {
					say(2, "required yes: %s", t.Peers)
				} else {
					say(2, "required no:  %s: %s", t.Peers, t.Why)
				}
			}
			if len(st.L7) > 0 {
				say(2, "the proxy looks at what is said: %s", strings.Join(st.L7, ", "))
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

// placed says where in the order an entry is asked, unless that is the usual place.
func placed(st advise.Step) string {
	tier := advise.TierName(st.Tier)
	switch {
	case tier == "Normal" && st.Priority == 0:
		return ""
	case st.Priority == 0:
		return " (tier " + tier + ")"
	}
	return fmt.Sprintf(" (tier %s, priority %d)", tier, st.Priority)
}

func orEvery(ports []string) string {
	if len(ports) == 0 {
		return "every protocol and port"
	}
	return strings.Join(ports, ", ")
}
