package cli

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	agentv1 "porin/api/agent/v1"
	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy/advise"
)

// endFlags are the ways to name one end that 'cilium policy trace' had.
type endFlags struct {
	side      string // src or dst
	labels    []string
	identity  int64
	endpoint  string
	pod, yaml string
}

func (e *endFlags) flags(cmd *cobra.Command, short, what string) {
	f := cmd.Flags()
	f.StringSliceVarP(&e.labels, e.side, short, nil, what+", by labels: k8s:app=web,... (as --"+e.other()+")")
	f.Int64Var(&e.identity, e.side+"-identity", -1, what+", by the number of the identity")
	f.StringVar(&e.endpoint, e.side+"-endpoint", "", what+", by the number of the agent's endpoint")
	f.StringVar(&e.pod, e.side+"-k8s-pod", "", what+", by pod: namespace:name")
	f.StringVar(&e.yaml, e.side+"-k8s-yaml", "", what+", by the manifest of a pod, or of what makes pods: FILE")
}

func (e *endFlags) other() string {
	if e.side == "src" {
		return "from"
	}
	return "to"
}

// given tells whether any of them is used.
func (e *endFlags) given() bool {
	return len(e.labels) > 0 || e.identity >= 0 || e.endpoint != "" || e.pod != "" || e.yaml != ""
}

// text says the same as --from or --to would, and ends that only the agent knows.
func (e *endFlags) text(s *shell, cmd *cobra.Command, w *advise.World, live bool) (string, error) {
	ways := 0
	for _, used := range []bool{len(e.labels) > 0, e.identity >= 0, e.endpoint != "", e.pod != "", e.yaml != ""} {
		if used {
			ways++
		}
	}
	switch {
	case ways > 1:
		return "", usage("--%s: name the end in one way, not in %d", e.side, ways)
	case len(e.labels) > 0:
		return labelText(e.labels)
	case e.pod != "":
		namespace, name, ok := strings.Cut(e.pod, ":")
		if !ok {
			return "", usage("--%s-k8s-pod %q: write namespace:name", e.side, e.pod)
		}
		return namespace + "/" + name, nil
	case e.yaml != "":
		return podText(e.yaml)
	case e.endpoint != "":
		if !live {
			return "", usage("--%s-endpoint: only the agent has endpoints: add --live, or leave --workloads and -f out", e.side)
		}
		return s.endpointText(cmd, e.endpoint)
	}
	id := identity.ID(e.identity)
	for _, end := range w.Ends {
		if end.Kind != advise.Node && end.Identity.ID == id {
			return end.Name, nil
		}
	}
	if id.IsReserved() {
		return id.String(), nil
	}
	if !live {
		return "", usage("--%s-identity %d: nobody in the files has this number: add --live for the agent's", e.side, e.identity)
	}
	return s.identityText(cmd, id)
}

// labelText writes labels as an end: the namespace first, since only porin gives it as a label. A source any, or none,
// stands for k8s, as it did for pods.
func labelText(words []string) (string, error) {
	namespace, list := "", []string{}
	for _, word := range words {
		l, err := labels.Parse(strings.TrimSpace(word))
		if err != nil {
			return "", coded{err, exitUsage}
		}
		switch {
		case l.Source == labels.SourceReserved:
			if len(words) > 1 {
				return "", usage("label %q: a reserved identity has no other labels", word)
			}
			return "reserved:" + l.Key, nil
		case l.Key == labels.KeyNamespace:
			namespace = l.Value + "/"
		case l.Source == "any" || l.Source == labels.SourceUnspec || l.Source == labels.SourceK8s:
			list = append(list, l.Key+"="+l.Value)
		default:
			list = append(list, l.String())
		}
	}
	slices.Sort(list)
	return namespace + strings.Join(list, ","), nil
}

// podText reads the namespace and labels of a pod's manifest, or of the pods that another object makes.
func podText(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the manifest: %w", err)
	}
	type meta struct {
		Namespace string            `yaml:"namespace"`
		Labels    map[string]string `yaml:"labels"`
	}
	var doc struct {
		Kind     string `yaml:"kind"`
		Metadata meta   `yaml:"metadata"`
		Spec     struct {
			Template struct {
				Metadata meta `yaml:"metadata"`
			} `yaml:"template"`
		} `yaml:"spec"`
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	own := doc.Metadata.Labels
	if doc.Kind != "Pod" {
		own = doc.Spec.Template.Metadata.Labels
	}
	if len(own) == 0 {
		return "", fmt.Errorf("%s: the %s has no labels for pods; name a Pod, or what has a template of pods", path, doc.Kind)
	}
	var list []string
	for _, k := range slices.Sorted(maps.Keys(own)) {
		list = append(list, k+"="+own[k])
	}
	namespace := doc.Metadata.Namespace
	if namespace == "" {
		namespace = "default"
	}
	return namespace + "/" + strings.Join(list, ","), nil
}

// endpointText names the agent's endpoint with this number.
func (s *shell) endpointText(cmd *cobra.Command, id string) (name string, err error) {
	if _, err := strconv.ParseUint(id, 10, 16); err != nil {
		return "", usage("endpoint %q: not a number; 'porin endpoint list' shows them", id)
	}
	err = s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
		ep, err := agent.GetEndpoint(ctx, &agentv1.GetEndpointRequest{Id: id})
		if name = ep.GetNamespace() + "/" + ep.GetPod(); ep.GetPod() == "" {
			name = id
		}
		return err
	})
	return name, err
}

// identityText names an identity of the agent by its labels.
func (s *shell) identityText(cmd *cobra.Command, id identity.ID) (text string, err error) {
	err = s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
		m, err := agent.GetIdentity(ctx, &agentv1.GetIdentityRequest{Id: uint32(id)})
		if err != nil {
			return err
		}
		if text = m.GetPrefix(); text != "" {
			return nil
		}
		text, err = labelText(m.GetLabels())
		return err
	})
	return text, err
}
