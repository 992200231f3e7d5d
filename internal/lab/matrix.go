package lab

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
	"porin/internal/identity"
	"porin/internal/lab/probe"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/verdict"
)

// Cell of the matrix: what the engine predicts for a pair of workloads, and what the wire shows.
type Cell struct {
	From      string `json:"from"`
	To        string `json:"to"`
	Port      string `json:"port"`
	Family    string `json:"family"`
	Predicted string `json:"predicted"`
	Seen      string `json:"seen"`
	Same      bool   `json:"same"`
	Rule      string `json:"rule,omitempty"`
	Node      string `json:"node,omitempty"` // that reported it
}

type portProto struct {
	port     uint16
	protocol string
}

func (p portProto) String() string {
	if p.protocol == "ICMP" {
		return p.protocol
	}
	return fmt.Sprintf("%d/%s", p.port, p.protocol)
}

func parsePort(s string) (portProto, error) {
	number, protocol, ok := strings.Cut(strings.ToUpper(s), "/")
	if number == "ICMP" {
		return portProto{protocol: number}, nil
	}
	if !ok {
		protocol = "TCP"
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || protocol != "TCP" && protocol != "UDP" {
		return portProto{}, fmt.Errorf("port %q: write it as 80/TCP, 53/UDP or ICMP", s)
	}
	return portProto{uint16(n), protocol}, nil
}

// Matrix tries every workload to every workload on the ports and sets it beside the engine's prediction.
func (l *Lab) Matrix(ctx context.Context, ports []portProto) ([]Cell, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	predict, err := l.predictor(ctx)
	if err != nil {
		return nil, err
	}
	events, err := l.listen(ctx)
	if err != nil {
		return nil, err
	}
	pods := l.places(kindWorkload)
	if len(ports) == 0 {
		ports = servedPorts(pods)
	}
	var cells []*Cell
	var work []func()
	for _, from := range pods {
		for _, to := range pods {
			if from.Name == to.Name {
				continue
			}
			for _, p := range ports {
				for _, family := range l.spec.Families {
					addr, ok := to.addr(family)
					if !ok {
						continue
					}
					predicted, err := predict(from, to, p, family)
					if err != nil {
						return nil, err
					}
					c := &Cell{From: from.Name, To: to.Name, Port: p.String(), Family: family, Predicted: predicted}
					cells = append(cells, c)
					t := try{
						check: &check{Protocol: p.protocol, Port: p.port}, from: from, to: to.Name, target: to, addr: addr,
						say: say(to, p.protocol, p.port), family: family,
					}
					work = append(work, func() { l.see(ctx, events, t, c) })
				}
			}
		}
	}
	together(work)
	out := make([]Cell, len(cells))
	for i, c := range cells {
		out[i] = *c
	}
	return out, ctx.Err()
}

// see fills in what the wire shows. A port that nobody serves still tells: its refusal has crossed both ways.
func (l *Lab) see(ctx context.Context, events *flows, t try, c *Cell) {
	r := l.probe(ctx, events, t, deniedWait, true)
	switch {
	case r.Outcome == probe.Answered, r.Outcome == probe.Rejected && len(r.drops) == 0:
		c.Seen = expectAllow
		c.Rule, c.Node = why(r.verdicts), nodesOf(r.verdicts)
	case anyByPolicy(r.drops):
		c.Seen = expectDeny
		c.Rule, c.Node = why(r.drops), nodesOf(r.drops)
	case len(r.drops) > 0:
		c.Seen = "dropped: " + reasons(r.drops)
	case r.astray != "":
		c.Seen = r.astray
	default:
		c.Seen = string(r.Outcome) + ": " + r.Detail
	}
	c.Same = c.Seen == c.Predicted
}

func servedPorts(pods []place) []portProto {
	var out []portProto
	for _, p := range pods {
		for _, s := range p.Serves {
			if x := (portProto{s.Port, s.Protocol}); !slices.Contains(out, x) {
				out = append(out, x)
			}
		}
	}
	if len(out) == 0 {
		out = []portProto{{80, "TCP"}}
	}
	return out
}

// predictor asks every node's agent for what its engine decides from, and decides with an engine of our own: the same
// code, but none of the agent's state and nothing of the kernel.
func (l *Lab) predictor(ctx context.Context) (func(from, to place, p portProto, family string) (string, error), error) {
	var engine *policy.Engine
	of, ports := map[netip.Addr]identity.Identity{}, map[identity.ID][]policy.NamedPort{}
	for _, n := range l.places(kindNode) {
		err := withAgent(n, func(c agentv1.AgentClient) error {
			var err error
			engine, err = engineOf(ctx, c)
			if err != nil {
				return err
			}
			return identitiesOf(ctx, c, of, ports)
		})
		if err != nil {
			return nil, err
		}
	}
	engine.UpdatePorts(ports)
	return func(from, to place, p portProto, family string) (string, error) {
		src, _ := from.addr(family)
		dst, _ := to.addr(family)
		a, okA := of[src]
		b, okB := of[dst]
		if !okA || !okB {
			return "", fmt.Errorf("the agents know no endpoint with address %s or %s", src, dst)
		}
		proto, port := number(p, family)
		if engine.Decide(a, b, proto, port).Action == verdict.Deny {
			return expectDeny, nil
		}
		return expectAllow, nil
	}, nil
}

// number gives the protocol number and the port as policies see them: for ICMP the echo request's type.
func number(p portProto, family string) (uint8, uint16) {
	switch p.protocol {
	case "UDP":
		return 17, p.port
	case "ICMP":
		if family == ipv6 {
			return 58, 128
		}
		return 1, 8
	}
	return 6, p.port
}

func engineOf(ctx context.Context, c agentv1.AgentClient) (*policy.Engine, error) {
	cfg, err := c.GetConfig(ctx, &agentv1.GetConfigRequest{})
	if err != nil {
		return nil, err
	}
	v := cfg.GetValues()
	engine := policy.NewEngine(policy.Config{
		Enforcement: v["policy-enforcement"], AllowLocalhost: v["allow-localhost"], Audit: v["policy-audit-mode"] == "true",
		Cluster:   v["cluster-name"],
		DualStack: v["enable-ipv4"] == "true" && v["enable-ipv6"] == "true", OnlyIPv6: v["enable-ipv4"] != "true",
	})
	list, err := c.ListPolicies(ctx, &agentv1.ListPoliciesRequest{})
	if err != nil {
		return nil, err
	}
	var all []*policy.Policy
	for _, p := range list.GetPolicies() {
		parsed, err := policy.Parse(p.GetRef().GetName(), []byte(p.GetYaml()))
		if err != nil {
			return nil, fmt.Errorf("read policy %s from the agent: %w", p.GetRef().GetName(), err)
		}
		all = append(all, parsed...)
	}
	engine.UpdatePolicies(all, nil)
	return engine, nil
}

func identitiesOf(ctx context.Context, c agentv1.AgentClient, into map[netip.Addr]identity.Identity, ports map[identity.ID][]policy.NamedPort) error {
	list, err := c.ListEndpoints(ctx, &agentv1.ListEndpointsRequest{})
	if err != nil {
		return err
	}
	for _, ep := range list.GetEndpoints() {
		ls, err := labels.ParseAll(ep.GetSecurityLabels()...)
		if err != nil {
			return fmt.Errorf("read the labels of endpoint %d: %w", ep.GetId(), err)
		}
		id := identity.ID(ep.GetIdentity())
		for _, p := range ep.GetNamedPorts() {
			proto, _ := number(portProto{protocol: p.GetProtocol()}, ipv4)
			ports[id] = append(ports[id], policy.NamedPort{Name: p.GetName(), Proto: proto, Port: uint16(p.GetPort())})
		}
		for _, a := range []string{ep.GetIpv4(), ep.GetIpv6()} {
			if addr, err := netip.ParseAddr(a); err == nil {
				into[addr] = identity.Identity{ID: id, Labels: ls}
			}
		}
	}
	return nil
}

func matrixCommand(f *flags) *cobra.Command {
	var ports []string
	cmd := &cobra.Command{
		Use:     "matrix [NAME]",
		Short:   "Every workload to every workload: what the engine predicts beside what the wire shows",
		Example: "  sudo porin lab matrix --port 80/TCP --port ICMP",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(f.output); err != nil {
				return broken(err)
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			var wanted []portProto
			for _, s := range ports {
				p, err := parsePort(s)
				if err != nil {
					return broken(err)
				}
				wanted = append(wanted, p)
			}
			if len(args) == 1 {
				f.lab = args[0]
			}
			l, err := Open(f.lab, f.options(cmd))
			if err != nil {
				return broken(err)
			}
			cells, err := l.Matrix(ctx, wanted)
			if err != nil {
				return broken(err)
			}
			if err := printMatrix(cmd.OutOrStdout(), f.output, cells); err != nil {
				return broken(err)
			}
			return differs(!slices.ContainsFunc(cells, func(c Cell) bool { return !c.Same }))
		},
	}
	outputFlag(cmd, f)
	labFlag(cmd, f)
	cmd.Flags().StringSliceVar(&ports, "port", nil, "port to try, as 80/TCP, 53/UDP or ICMP (default: every port that a workload serves)")
	return cmd
}

func printMatrix(w io.Writer, format string, cells []Cell) error {
	if format == asJSON {
		if cells == nil {
			cells = []Cell{}
		}
		return printJSON(w, cells)
	}
	table := [][]string{{"FROM", "TO", "PORT", "FAMILY", "PREDICTED", "SEEN", "SAME", "RULE"}}
	for _, c := range cells {
		same := "yes"
		if !c.Same {
			same = "NO"
		}
		table = append(table, []string{c.From, c.To, c.Port, c.Family, c.Predicted, c.Seen, same, dash(c.Rule)})
	}
	return printTable(w, table)
}
