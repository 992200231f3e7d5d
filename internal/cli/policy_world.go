package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
	"porin/internal/policy/advise"
)

// offline is the commands that ask the engine in this process: of files, or of what the agent has in force.
func (s *shell) offline() []*cobra.Command {
	return []*cobra.Command{policyValidate(), policyTest(), s.policyTrace(), s.policyExplain(), s.policyMatrix(), policyDiff(), s.policyReach(), s.policyLint(), s.policySelectors()}
}

const worldHelp = `The engine is the agent's own, in this process: no agent, no root. --workloads FILE has the workloads, in the shape of a lab
file (namespaces, workloads, outside, agent), so that every lab file will do; the policies are those under its objects
and those of -f. With --live, the endpoints, policies and settings of the agent.`

const endHelp = `An end is a workload (name or namespace/name), an outside host or a node of the file, an address, a reserved name (host,
world-ipv4, remote-node, kube-apiserver ...), or labels as app=web,tier=db or namespace/app=web.`

// asking is the flags that say what world is asked about.
type asking struct {
	workloads string
	files     []string
	live      bool
}

func (a *asking) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.workloads, "workloads", "w", "", "file with the workloads, or a lab file")
	cmd.Flags().StringArrayVarP(&a.files, "filename", "f", nil, "policies: file, folder, or - for the standard input (may be repeated)")
	cmd.Flags().BoolVar(&a.live, "live", false, "ask about the agent's endpoints and policies (needs root)")
}

// world reads what the flags name.
func (s *shell) world(cmd *cobra.Command, a *asking) (*advise.World, error) {
	if a.live && (a.workloads != "" || len(a.files) > 0) {
		return nil, usage("--live asks about what the agent has: leave --workloads and -f out")
	}
	if a.live {
		var w *advise.World
		err := s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) (err error) {
			w, err = liveWorld(ctx, agent)
			return err
		})
		return w, err
	}
	if a.workloads == "" && len(a.files) == 0 {
		return nil, usage("nothing to ask about: say --workloads FILE and -f POLICIES, or --live for the agent's own")
	}
	more, err := policies(cmd, a.files)
	if err != nil {
		return nil, err
	}
	f := &advise.File{Path: "no file"}
	if a.workloads != "" {
		if f, err = workloadFile(a.workloads); err != nil {
			return nil, err
		}
	}
	return f.World(more)
}

func workloadFile(path string) (*advise.File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read workloads: %w", err)
	}
	return advise.Read(path, data, os.ReadFile)
}

// policies reads the policies of files, folders and the standard input.
func policies(cmd *cobra.Command, paths []string) ([]*policy.Policy, error) {
	docs, err := manifests(paths, cmd.InOrStdin())
	if err != nil {
		return nil, err
	}
	var out []*policy.Policy
	var errs []error
	for _, d := range docs {
		ps, err := policy.Parse(d.GetName(), d.GetContent())
		errs = append(errs, err)
		out = append(out, ps...)
	}
	errs = append(errs, advise.Twice(out))
	return out, errors.Join(errs...)
}

// liveWorld is the agent's endpoints under its policies and settings.
func liveWorld(ctx context.Context, agent agentv1.AgentClient) (*advise.World, error) {
	settings, err := agent.GetConfig(ctx, &agentv1.GetConfigRequest{})
	if err != nil {
		return nil, err
	}
	v := settings.GetValues()
	cfg := advise.Config{Config: policy.Config{Enforcement: v["policy-enforcement"], AllowLocalhost: v["allow-localhost"], Audit: v["policy-audit-mode"] == "true"}}
	for _, family := range []string{"ipv4", "ipv6"} {
		if v["enable-"+family] == "true" {
			cfg.Families = append(cfg.Families, family)
		}
	}
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("settings of the agent: %w", err)
	}
	eps, err := agent.ListEndpoints(ctx, &agentv1.ListEndpointsRequest{})
	if err != nil {
		return nil, err
	}
	var ends []advise.End
	for _, ep := range eps.GetEndpoints() {
		ls, err := labels.ParseAll(ep.GetSecurityLabels()...)
		if err != nil {
			return nil, fmt.Errorf("labels of endpoint %d: %w", ep.GetId(), err)
		}
		e := advise.End{Kind: advise.Workload, Name: ep.GetNamespace() + "/" + ep.GetPod(), Identity: identity.Identity{ID: identity.ID(ep.GetIdentity()), Labels: ls}, Ports: livePorts(ep.GetNamedPorts())}
		if ep.GetPod() == "" {
			e.Name = fmt.Sprint(ep.GetId())
		}
		for _, text := range []string{ep.GetIpv4(), ep.GetIpv6()} {
			if a, err := netip.ParseAddr(text); err == nil {
				e.Addrs = append(e.Addrs, a)
			}
		}
		ends = append(ends, e)
	}
	nodes, err := liveNodes(ctx, agent)
	if err != nil {
		return nil, err
	}
	ends = append(ends, nodes...)
	ids, err := agent.ListIdentities(ctx, &agentv1.ListIdentitiesRequest{})
	if err != nil {
		return nil, err
	}
	cfg.Ports = map[identity.ID][]policy.NamedPort{}
	for _, id := range ids.GetIdentities() {
		if ports := livePorts(id.GetNamedPorts()); len(ports) > 0 {
			cfg.Ports[identity.ID(id.GetId())] = ports
		}
	}
	list, err := agent.ListPolicies(ctx, &agentv1.ListPoliciesRequest{})
	if err != nil {
		return nil, err
	}
	var all []*policy.Policy
	for _, p := range list.GetPolicies() {
		ps, err := policy.Parse("agent:"+strings.ReplaceAll(refName(p.GetRef()), " ", ":"), []byte(p.GetYaml()))
		if err != nil {
			return nil, fmt.Errorf("policy %s of the agent: %w", refName(p.GetRef()), err)
		}
		all = append(all, ps...)
	}
	return advise.New(cfg, ends, all), nil
}

// liveNodes is the nodes that the agent knows, itself first, as the kernel knows them: it does not tell remote nodes apart.
func liveNodes(ctx context.Context, agent agentv1.AgentClient) ([]advise.End, error) {
	t, err := agent.ListNodes(ctx, &agentv1.ListNodesRequest{})
	if err != nil {
		return nil, err
	}
	name, addresses := slices.Index(t.GetColumns(), "NAME"), slices.Index(t.GetColumns(), "ADDRESSES")
	var out []advise.End
	for i, row := range t.GetRows() {
		if name < 0 || len(row.GetCells()) != len(t.GetColumns()) {
			continue
		}
		id := identity.RemoteNode
		if i == 0 {
			id = identity.Host
		}
		e := advise.End{Kind: advise.Node, Name: row.GetCells()[name], Identity: reservedIdentity(id)}
		if addresses >= 0 {
			for text := range strings.SplitSeq(row.GetCells()[addresses], ",") {
				if a, err := netip.ParseAddr(text); err == nil && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
					e.Addrs = append(e.Addrs, a)
				}
			}
		}
		out = append(out, e)
	}
	return out, nil
}

func livePorts(list []*agentv1.NamedPort) (out []policy.NamedPort) {
	for _, p := range list {
		if ps, err := advise.ParsePort(fmt.Sprintf("%d/%s", p.GetPort(), p.GetProtocol()), nil); err == nil {
			out = append(out, policy.NamedPort{Name: p.GetName(), Proto: ps[0].Proto, Port: ps[0].Number})
		}
	}
	return out
}

// one returns the end that text means; of several replicas the first, since all are judged alike.
func one(w *advise.World, flag, text, family string) (advise.End, error) {
	if text == "" {
		return advise.End{}, usage("--%s is missing: name a workload, an address, a reserved name or labels", flag)
	}
	list, err := w.Find(text, family)
	if err != nil {
		return advise.End{}, coded{fmt.Errorf("--%s: %w", flag, err), exitUsage}
	}
	if len(list) == 0 {
		return advise.End{}, usage("--%s: %s has no %s address", flag, text, family)
	}
	return list[0], nil
}

// ports reads --port: numbers, and names that mean another number at each workload.
func ports(w *advise.World, texts []string) (numbers []advise.Port, names []string, err error) {
	for _, text := range texts {
		if advise.IsPortName(text) {
			names = append(names, text)
			continue
		}
		ps, err := advise.ParsePort(text, w.Config.Families)
		if err != nil {
			return nil, nil, coded{err, exitUsage}
		}
		numbers = append(numbers, ps...)
	}
	return numbers, names, nil
}

// ruleNames is rules with their places, one after the other.
func ruleNames(rs []advise.Rule) string {
	var out []string
	for _, r := range rs {
		text := r.String()
		if at := r.Place(); at != "" {
			text += " (" + at + ")"
		}
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return strings.Join(out, ", ")
}

// deciders is the names of the rules that people wrote; of what porin itself decides if there are none.
func deciders(rs []advise.Rule) string {
	written := slices.DeleteFunc(slices.Clone(rs), advise.Rule.Own)
	if len(written) == 0 {
		written = rs
	}
	return ruleNames(written)
}

// asJSON writes an answer of the engine. Unlike json.Marshal it leaves < and > alone.
func asJSON(v any) func() ([]byte, error) {
	return func() ([]byte, error) {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			return nil, fmt.Errorf("write the answer as JSON: %w", err)
		}
		return bytes.TrimSpace(b.Bytes()), nil
	}
}
