package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
	"porin/internal/flow"
)

func (s *shell) monitorCommand() *cobra.Command {
	var types, from, to, related []string
	var asJSON, verbose, hex, past bool
	var last uint32
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Watch what happens to packets, and why",
		Long: `Prints a line for each flow event, until interrupted: when, what happened, who to whom with labels and addresses, over
which protocol, and the rules that allowed or denied it, or the reason for the drop. Not every packet makes an event:
the first of each direction of a flow does, a change of TCP flags, a policy verdict, every drop, and a live flow now and
then.

Types: drop, trace (a packet seen at a point), policy-verdict (a packet that was judged), agent (what the agent did);
capture means all flows with the packet's first bytes, as --hex. Filters of one kind are alternatives, filters of
different kinds must all hold. Events that came too fast for this reader are counted, and told where they are missing;
drops and verdicts are kept longest.`,
		Example: `  porin monitor
  porin monitor --type drop --type policy-verdict
  porin monitor --related-to default/xwing -v
  porin monitor --from 12 --to 13 --hex
  porin monitor --no-follow --type drop              # what was dropped lately
  porin monitor --last 20 -o json | jq .flow.drop_reason_desc`,
		Args: exactly(),
	}
	formats := &output{format: "table", known: []string{"table", "json"}}
	f := cmd.Flags()
	f.StringSliceVarP(&types, "type", "t", nil, "only events of this type (may be repeated, or a list with commas): "+strings.Join(flow.Types(), ", "))
	f.StringSliceVar(&from, "from", nil, "only flows from this endpoint: number, NAMESPACE/POD or address (may be repeated)")
	f.StringSliceVar(&to, "to", nil, "only flows to this endpoint (may be repeated)")
	f.StringSliceVar(&related, "related-to", nil, "only flows from or to this endpoint (may be repeated)")
	f.VarP(formats, "output", "o", "format: table (a line for people), json (an object a line)")
	f.BoolVarP(&asJSON, "json", "j", false, "same as -o json")
	f.BoolVarP(&verbose, "verbose", "v", false, "all labels, numbers, device, MAC addresses, and where the rules are written")
	f.BoolVar(&hex, "hex", false, "also the packet's first bytes")
	f.Uint32Var(&last, "last", 0, "first show this many events of the past")
	f.BoolVar(&past, "no-follow", false, "end after the events of the past; without --last, all that the agent has kept")
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(flow.Types(), cobra.ShellCompDirectiveNoFileComp)) // fails only without the flag
	for _, name := range []string{"from", "to", "related-to"} {
		_ = cmd.RegisterFlagCompletionFunc(name, s.complete(-1, endpointNames)) // fails only without the flag
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for _, t := range types {
			if !slices.Contains(flow.Types(), t) {
				return usage("type %q: no such type; the types are %s", t, strings.Join(flow.Types(), ", "))
			}
		}
		asJSON = asJSON || formats.format == "json"
		if past && last == 0 {
			last = math.MaxUint32
		}
		hex = hex || slices.Contains(types, flow.TypeCapture)
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			req := &agentv1.MonitorRequest{Types: types, Snap: hex, Last: last, PastOnly: past}
			for _, l := range []struct {
				names []string
				ids   *[]uint32
			}{{from, &req.From}, {to, &req.To}, {related, &req.RelatedTo}} {
				for _, name := range l.names {
					id, err := resolve(ctx, agent, name)
					if err != nil {
						return err
					}
					*l.ids = append(*l.ids, id)
				}
			}
			return watch(ctx, agent, req, func(m *agentv1.MonitorResponse) error { return show(cmd.OutOrStdout(), m, asJSON, verbose, hex) })
		})
	}
	return cmd
}

// resolve returns the number of an endpoint.
func resolve(ctx context.Context, agent agentv1.AgentClient, name string) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	ep, err := agent.GetEndpoint(ctx, &agentv1.GetEndpointRequest{Id: endpointID(name)})
	if err != nil {
		return 0, err
	}
	return ep.GetId(), nil
}

// watch receives until the user has seen enough.
func watch(ctx context.Context, agent agentv1.AgentClient, req *agentv1.MonitorRequest, each func(*agentv1.MonitorResponse) error) error {
	stream, err := agent.Monitor(ctx, req)
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, io.EOF) && req.GetPastOnly() {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return coded{errors.New("the agent ended the monitor: it is stopping"), exitUnreachable}
		}
		if err != nil {
			return err
		}
		if err := each(m); err != nil {
			return err
		}
	}
}

func show(w io.Writer, m *agentv1.MonitorResponse, asJSON, verbose, hex bool) error {
	if asJSON {
		line, err := flow.JSON(m)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, line)
		return err
	}
	var text string
	switch ev := m.GetEvent().(type) {
	case *agentv1.MonitorResponse_Flow:
		text = flow.Line(ev.Flow, verbose)
		if hex {
			text = strings.TrimRight(text+"\n"+flow.Dump(ev.Flow), "\n")
		}
	case *agentv1.MonitorResponse_Lost:
		text = flow.LostLine(ev.Lost)
	case *agentv1.MonitorResponse_Agent:
		text = flow.AgentLine(ev.Agent)
	default:
		return nil // a kind of event that a newer agent knows
	}
	_, err := fmt.Fprintln(w, text)
	return err
}
