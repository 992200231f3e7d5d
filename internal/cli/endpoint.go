package cli

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
	"porin/internal/flow"
)

const idForms = `ENDPOINT is its number, NAMESPACE/POD, an address, or one of the forms endpoint-id:12, cni-attachment-id:CONTAINER:IFNAME,
container-id:CONTAINER, pod-name:NAMESPACE/POD, ipv4:ADDRESS, ipv6:ADDRESS.`

// endpointID puts what people type into the agent's form.
func endpointID(arg string) string {
	if a, err := netip.ParseAddr(arg); err == nil {
		if a.Is4() {
			return "ipv4:" + arg
		}
		return "ipv6:" + arg
	}
	if strings.Contains(arg, "/") && !strings.Contains(arg, ":") {
		return "pod-name:" + arg
	}
	return arg
}

func (s *shell) endpointCommand() *cobra.Command {
	return group("endpoint", "The workloads' attachments on this node", "  porin endpoint list\n  porin endpoint get default/xwing",
		s.endpointList(), s.endpointGet(), s.endpointLabels(), s.endpointLog(), s.endpointHealth(), s.endpointDisconnect())
}

func (s *shell) endpointList() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [LABEL...]",
		Short: "List the endpoints, or those whose labels are such",
		Long: `Lists the endpoints of this node. INGRESS and EGRESS say whether a policy isolates the endpoint in that direction.
A LABEL is a condition: source:key=value, key=value of any source, key, !key, key!=value, 'key in (a,b)', 'key notin (a,b)'.`,
		Example: `  porin endpoint list
  porin endpoint list k8s:org=empire
  porin endpoint list 'app in (web,db)' '!canary'
  porin endpoint list -o json | jq '.[] | select(.phase != "ready")'`,
	}
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := agent.ListEndpoints(ctx, &agentv1.ListEndpointsRequest{Labels: args})
			if err != nil {
				return err
			}
			text := func() ([]byte, error) { return messages(r.GetEndpoints()) }
			return out.print(cmd.OutOrStdout(), text, func(w io.Writer) error {
				var rows [][]string
				for _, ep := range r.GetEndpoints() {
					rows = append(rows, []string{
						strconv.Itoa(int(ep.GetId())), endpointName(ep), ep.GetPhase(), enforced(ep.GetIngressEnforced()), enforced(ep.GetEgressEnforced()),
						strconv.Itoa(int(ep.GetIdentity())), ep.GetIpv4(), ep.GetIpv6(), strings.Join(flow.OwnLabels(ep.GetSecurityLabels()), ","), ep.GetMessage(),
					})
				}
				return table(w, []string{"ENDPOINT", "NAME", "STATE", "INGRESS", "EGRESS", "IDENTITY", "IPV4", "IPV6", "LABELS", "MESSAGE"}, rows)
			})
		})
	}
	return cmd
}

func endpointName(ep *agentv1.Endpoint) string {
	if ep.GetPod() != "" {
		return ep.GetNamespace() + "/" + ep.GetPod()
	}
	return ep.GetContainerId()
}

func enforced(on bool) string {
	if on {
		return "isolated"
	}
	return "open"
}

// endpointPage asks for one endpoint and prints it.
func (s *shell) endpointPage(use, short, example string, get func(ctx context.Context, agent agentv1.AgentClient, id string) (*agentv1.Endpoint, error)) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: short + ".\n\n" + idForms, Example: example, Args: exactly("ENDPOINT"), ValidArgsFunction: s.complete(1, endpointNames)}
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			ep, err := get(ctx, agent, endpointID(args[0]))
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), func() ([]byte, error) { return message(ep) }, func(w io.Writer) error { return showEndpoint(w, ep) })
		})
	}
	return cmd
}

func portNames(ports []*agentv1.NamedPort) string {
	var out []string
	for _, p := range ports {
		out = append(out, fmt.Sprintf("%s=%d/%s", p.GetName(), p.GetPort(), p.GetProtocol()))
	}
	return strings.Join(out, " ")
}

func showEndpoint(w io.Writer, ep *agentv1.Endpoint) error {
	created := ""
	if ep.GetCreated() != nil {
		created = ep.GetCreated().AsTime().Format(time.RFC3339)
	}
	return page(w, "Endpoint:", strconv.Itoa(int(ep.GetId())), "Name:", endpointName(ep), "State:", ep.GetPhase(), "Message:", ep.GetMessage(),
		"Identity:", strconv.Itoa(int(ep.GetIdentity())), "Security labels:", strings.Join(ep.GetSecurityLabels(), " "), "All labels:", strings.Join(ep.GetLabels(), " "),
		"Ingress:", enforced(ep.GetIngressEnforced()), "Egress:", enforced(ep.GetEgressEnforced()), "Policy revision:", strconv.FormatUint(ep.GetPolicyRevision(), 10),
		"IPv4:", ep.GetIpv4(), "IPv6:", ep.GetIpv6(), "MAC:", ep.GetMac(), "Device:", fmt.Sprintf("%s (%d)", ep.GetDevice(), ep.GetIfindex()),
		"Named ports:", portNames(ep.GetNamedPorts()), "In the workload:", strings.TrimSpace(ep.GetIfname()+" in "+ep.GetNetns()), "Container:", ep.GetContainerId(), "Created:", created)
}

func (s *shell) endpointGet() *cobra.Command {
	return s.endpointPage("get ENDPOINT", "Show one endpoint",
		"  porin endpoint get 12\n  porin endpoint get default/xwing -o yaml\n  porin endpoint get ipv4:10.1.0.5",
		func(ctx context.Context, agent agentv1.AgentClient, id string) (*agentv1.Endpoint, error) {
			return agent.GetEndpoint(ctx, &agentv1.GetEndpointRequest{Id: id})
		})
}

func (s *shell) endpointDisconnect() *cobra.Command {
	return s.endpointPage("disconnect ENDPOINT", "Take an endpoint off the network; its workload keeps running without it",
		"  porin endpoint disconnect default/xwing",
		func(ctx context.Context, agent agentv1.AgentClient, id string) (*agentv1.Endpoint, error) {
			return agent.DisconnectEndpoint(ctx, &agentv1.GetEndpointRequest{Id: id})
		})
}

func (s *shell) endpointLabels() *cobra.Command {
	var add, del []string
	cmd := s.endpointPage("labels ENDPOINT", "Show an endpoint, or add labels to it and take labels away",
		"  porin endpoint labels 12\n  porin endpoint labels default/xwing --add k8s:org=empire --delete k8s:org=alliance",
		func(ctx context.Context, agent agentv1.AgentClient, id string) (*agentv1.Endpoint, error) {
			if len(add) == 0 && len(del) == 0 {
				return agent.GetEndpoint(ctx, &agentv1.GetEndpointRequest{Id: id})
			}
			return agent.SetEndpointLabels(ctx, &agentv1.SetEndpointLabelsRequest{Id: id, Add: add, Delete: del})
		})
	cmd.Long = `Without flags: shows the endpoint. With flags: changes its labels and returns when the policy of its new identity is in force.
A label is source:key=value; one without a source is added as unspec:key=value. A CiliumNetworkPolicy whose selector names no
source finds it all the same, a NetworkPolicy only one of source k8s. A label to take away needs its source, and no value.

` + idForms
	cmd.Flags().StringArrayVarP(&add, "add", "a", nil, "label to add or change (may be repeated)")
	cmd.Flags().StringArrayVarP(&del, "delete", "d", nil, "label to take away (may be repeated)")
	return cmd
}

func (s *shell) endpointLog() *cobra.Command {
	cmd := &cobra.Command{
		Use: "log ENDPOINT", Short: "Show what happened to an endpoint", Long: "Shows the states that an endpoint went through, the oldest first.\n\n" + idForms,
		Example: "  porin endpoint log default/xwing", Args: exactly("ENDPOINT"), ValidArgsFunction: s.complete(1, endpointNames),
	}
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := agent.EndpointLog(ctx, &agentv1.GetEndpointRequest{Id: endpointID(args[0])})
			if err != nil {
				return err
			}
			text := func() ([]byte, error) { return messages(r.GetEntries()) }
			return out.print(cmd.OutOrStdout(), text, func(w io.Writer) error {
				var rows [][]string
				for _, e := range r.GetEntries() {
					rows = append(rows, []string{e.GetTime().AsTime().Format("2006-01-02T15:04:05.000Z07:00"), e.GetPhase(), e.GetMessage()})
				}
				return table(w, []string{"TIME", "STATE", "MESSAGE"}, rows)
			})
		})
	}
	return cmd
}

func (s *shell) endpointHealth() *cobra.Command {
	cmd := &cobra.Command{
		Use: "health ENDPOINT", Short: "Is an endpoint well?", Long: "Says whether an endpoint is attached, and its policy in force.\n\n" + idForms,
		Example: "  porin endpoint health 12", Args: exactly("ENDPOINT"), ValidArgsFunction: s.complete(1, endpointNames),
	}
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := agent.EndpointHealth(ctx, &agentv1.GetEndpointRequest{Id: endpointID(args[0])})
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), func() ([]byte, error) { return message(r) }, func(w io.Writer) error {
				return page(w, "Overall:", r.GetOverall(), "Endpoint:", r.GetEndpoint(), "Policy:", r.GetPolicy(), "Connected:", strconv.FormatBool(r.GetConnected()), "Message:", r.GetMessage())
			})
		})
	}
	return cmd
}
