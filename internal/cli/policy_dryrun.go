package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
	flowpb "porin/api/flow"
	"porin/internal/flow"
	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/policy/advise"
)

// flowRing is how many flows the agent remembers.
const flowRing = 4095

// mostShown is how many lines of each kind a person is shown; JSON has all.
const mostShown = 200

// dryRunReport is what would change.
type dryRunReport struct {
	Changed  []policy.Ref      `json:"changed"`  // policies
	Verdicts []advise.Change   `json:"verdicts"` // among all that are known
	Recorded int               `json:"recorded"` // connections, each counted once
	Flows    []advise.Replayed `json:"flows"`    // those of them that would be judged otherwise
}

// dryRun asks the agent what it would refuse, and the engine in this process what would change.
func (s *shell) dryRun(cmd *cobra.Command, ctx context.Context, agent agentv1.AgentClient, req *agentv1.ApplyPolicyRequest, out *output, exit bool) error {
	checked, err := agent.CheckPolicy(ctx, req)
	if err != nil {
		return err
	}
	old, err := liveWorld(ctx, agent)
	if err != nil {
		return err
	}
	next := old.Policies
	var errs []error
	for _, f := range req.GetFiles() {
		ps, err := policy.Parse(f.GetName(), f.GetContent())
		errs = append(errs, err)
		for _, p := range ps {
			next = append(slices.DeleteFunc(slices.Clone(next), func(o *policy.Policy) bool { return o.Ref == p.Ref }), p)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	world := advise.New(old.Config, old.Ends, next)
	r := dryRunReport{Changed: []policy.Ref{}}
	for _, c := range checked.GetChanged() {
		r.Changed = append(r.Changed, policy.Ref{Kind: c.GetKind(), Namespace: c.GetNamespace(), Name: c.GetName()})
	}
	if r.Verdicts, err = old.Diff(world); err != nil {
		return err
	}
	seen, err := recorded(ctx, agent, old)
	if err != nil {
		return err
	}
	r.Recorded, r.Flows = len(seen), old.Replay(world, seen)
	err = out.print(cmd.OutOrStdout(), asJSON(r), func(w io.Writer) error { return printDryRun(w, r) })
	if err == nil && exit && len(r.Verdicts)+len(r.Flows) > 0 {
		err = fmt.Errorf("%s", counted(len(r.Verdicts), "verdict would change", "verdicts would change"))
	}
	return err
}

func printDryRun(w io.Writer, r dryRunReport) error {
	for _, c := range r.Changed {
		fmt.Fprintf(w, "would change %s\n", flow.Escape(c.String()))
	}
	if len(r.Changed) == 0 {
		fmt.Fprintln(w, "would change no policy")
	}
	fmt.Fprintln(w)
	if err := printChanges(w, r.Verdicts[:min(len(r.Verdicts), mostShown)]); err != nil {
		return err
	}
	more(w, len(r.Verdicts)-mostShown)
	fmt.Fprintln(w)
	if len(r.Flows) == 0 {
		_, err := fmt.Fprintf(w, "of %s none would be judged otherwise\n", counted(r.Recorded, "recorded connection", "recorded connections"))
		return err
	}
	fmt.Fprintf(w, "of %s, %d would be judged otherwise:\n", counted(r.Recorded, "recorded connection", "recorded connections"), len(r.Flows))
	var rows [][]string
	for _, f := range r.Flows[:min(len(r.Flows), mostShown)] {
		rows = append(rows, []string{
			f.From, f.To, f.Port, f.Old, f.New, fmt.Sprint(f.Count), f.Last.UTC().Format(time.RFC3339), deciders(changedBy(f.OldRules, f.NewRules)),
		})
	}
	if err := paintedTable(w, []string{"FROM", "TO", "PORT", "OLD", "NEW", "SEEN", "LAST", "BY"}, rows, 3, 4); err != nil {
		return err
	}
	more(w, len(r.Flows)-mostShown)
	return nil
}

// more says that there are lines that are not shown.
func more(w io.Writer, n int) {
	if n > 0 {
		fmt.Fprintf(w, "... and %d more; -o json has all\n", n)
	}
}

// recorded returns the connections that the agent remembers, as far as policy judged them.
func recorded(ctx context.Context, agent agentv1.AgentClient, w *advise.World) ([]advise.Connection, error) {
	stream, err := agent.Monitor(ctx, &agentv1.MonitorRequest{Types: []string{flow.TypePolicyVerdict, flow.TypeDrop}, Last: flowRing, PastOnly: true})
	if err != nil {
		return nil, err
	}
	var out []advise.Connection
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return advise.Gather(out), nil
		}
		if err != nil {
			return nil, err
		}
		if c, ok := connectionOf(w, m.GetFlow()); ok {
			out = append(out, c)
		}
	}
}

// connectionOf reads a flow; not ok for replies, and for what policy had no say in.
func connectionOf(w *advise.World, f *flowpb.Flow) (advise.Connection, bool) {
	c := advise.Connection{Verdict: "allow", Count: 1, Last: f.GetTime().AsTime()}
	if f == nil || f.GetIsReply().GetValue() {
		return c, false
	}
	switch f.GetVerdict() {
	case flowpb.Verdict_DROPPED:
		c.Verdict = "deny"
		if r := f.GetDropReasonDesc(); r != flowpb.DropReason_POLICY_DENIED && r != flowpb.DropReason_POLICY_DENY {
			return c, false
		}
	case flowpb.Verdict_AUDIT:
		c.Verdict = "audit"
	case flowpb.Verdict_REDIRECTED:
		c.Verdict = "redirect"
	}
	switch l := f.GetL4(); {
	case l.GetTCP() != nil:
		c.Port = advise.Port{Proto: policy.ProtoTCP, Number: uint16(l.GetTCP().GetDestinationPort())}
	case l.GetUDP() != nil:
		c.Port = advise.Port{Proto: policy.ProtoUDP, Number: uint16(l.GetUDP().GetDestinationPort())}
	case l.GetSCTP() != nil:
		c.Port = advise.Port{Proto: policy.ProtoSCTP, Number: uint16(l.GetSCTP().GetDestinationPort())}
	case l.GetICMPv4() != nil:
		c.Port = advise.Port{Proto: policy.ProtoICMP, Number: uint16(l.GetICMPv4().GetType())}
	case l.GetICMPv6() != nil:
		c.Port = advise.Port{Proto: policy.ProtoICMPv6, Number: uint16(l.GetICMPv6().GetType())}
	default:
		return c, false
	}
	var ok [2]bool
	c.From, ok[0] = endOf(w, f.GetSource(), f.GetIP().GetSource())
	c.To, ok[1] = endOf(w, f.GetDestination(), f.GetIP().GetDestination())
	return c, ok[0] && ok[1]
}

// endOf says who one side of a flow is now: an endpoint, a workload of elsewhere by its labels, or an address outside.
func endOf(w *advise.World, side *flowpb.Endpoint, addr string) (advise.End, bool) {
	if side.GetPodName() != "" {
		name := side.GetNamespace() + "/" + side.GetPodName()
		if i := slices.IndexFunc(w.Ends, func(e advise.End) bool { return e.Name == name }); i >= 0 {
			return w.Ends[i], true
		}
	}
	id := identity.ID(side.GetIdentity())
	a, err := netip.ParseAddr(addr)
	world := id == identity.World || id == identity.WorldIPv4 || id == identity.WorldIPv6
	switch {
	case id == identity.Unknown || err != nil:
		return advise.End{}, false
	case world || id.IsLocal():
		return advise.End{Kind: advise.Address, Name: a.String(), Addrs: []netip.Addr{a}}, true
	case id < identity.MinCluster:
		return advise.End{Kind: advise.Reserved, Name: id.String(), Identity: reservedIdentity(id)}, true
	}
	ls, err := labels.ParseAll(side.GetLabels()...)
	if err != nil || len(ls) == 0 {
		return advise.End{}, false
	}
	name := side.GetNamespace() + "/" + side.GetPodName()
	if side.GetPodName() == "" {
		name = side.GetNamespace() + "/" + strings.Join(flow.OwnLabels(side.GetLabels()), ",")
	}
	return advise.End{Kind: advise.Ad, Name: name, Identity: identity.Identity{ID: id, Labels: ls}}, true
}

func reservedIdentity(id identity.ID) identity.Identity {
	for _, r := range identity.Reserved() {
		if r.ID == id {
			return r
		}
	}
	return identity.Identity{ID: id}
}

// changedBy is the rules that made a verdict change: the new ones, or where nothing allows or denies any more, the old.
func changedBy(old, now []advise.Rule) []advise.Rule {
	if len(now) > 0 && now[0].Own() && deciders(now) == ruleNames(now) {
		return old
	}
	return now
}
