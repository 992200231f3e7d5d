package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
	"porin/internal/policy"
)

// maxManifest is the largest file that is sent to the agent.
const maxManifest = 16 << 20

// manifests reads files, folders and the standard input, in the order given.
func manifests(paths []string, in io.Reader) ([]*agentv1.ManifestFile, error) {
	var out []*agentv1.ManifestFile
	add := func(name string, r io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if len(b) > maxManifest {
			return fmt.Errorf("read %s: larger than %d MiB; split it", name, maxManifest>>20)
		}
		out = append(out, &agentv1.ManifestFile{Name: name, Content: b})
		return nil
	}
	for _, p := range paths {
		if p == "-" {
			if err := add("<stdin>", in); err != nil {
				return nil, err
			}
			continue
		}
		found, err := expand(p)
		if err != nil {
			return nil, err
		}
		for _, name := range found {
			f, err := os.Open(name)
			if err != nil {
				return nil, fmt.Errorf("read policies: %w", err)
			}
			err = add(name, f)
			f.Close()
			if err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// expand returns the manifests of a folder, in order of their names, or the file itself.
func expand(path string) ([]string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	if !st.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	var out []string
	for _, e := range entries {
		if !e.IsDir() && !strings.HasPrefix(e.Name(), ".") && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			out = append(out, filepath.Join(path, e.Name()))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("read policies: folder %s has no .yaml, .yml or .json file", path)
	}
	return out, nil
}

const nameForms = `NAME is NAMESPACE/NAME, or a name in the namespace given by --namespace. The kind is CiliumNetworkPolicy (cnp) unless --kind
says another: CiliumClusterwideNetworkPolicy (ccnp), NetworkPolicy (netpol), ClusterNetworkPolicy (kcnp), CiliumCIDRGroup (ccg),
Service (svc), EndpointSlice (eps). ccnp, kcnp and ccg have no namespace.`

// kind is one that documents have.
type kind struct {
	short, full string
	namespaced  bool
}

func kinds() []kind {
	return []kind{
		{"cnp", policy.KindNetworkPolicy, true},
		{"ccnp", policy.KindClusterwideNetworkPolicy, false},
		{"netpol", policy.KindKubernetesNetworkPolicy, true},
		{"kcnp", policy.KindClusterNetworkPolicy, false},
		{"ccg", policy.KindCIDRGroup, false},
		{"svc", policy.KindService, true},
		{"eps", policy.KindEndpointSlice, true},
	}
}

// naming reads names of policies.
type naming struct {
	namespace, kind string
}

func (n *naming) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&n.namespace, "namespace", "n", "default", "namespace of names that do not have one")
	cmd.Flags().StringVar(&n.kind, "kind", "cnp", "kind of the named policies: cnp, ccnp, netpol, kcnp, ccg, svc or eps, or the full word")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kindNames(), cobra.ShellCompDirectiveNoFileComp)) // fails only without the flag
}

func (n *naming) refs(args []string) ([]*agentv1.PolicyRef, error) {
	kind, err := kindOf(n.kind)
	if err != nil {
		return nil, err
	}
	var out []*agentv1.PolicyRef
	for _, a := range args {
		namespace, name, ok := strings.Cut(a, "/")
		if !ok {
			namespace, name = n.namespace, a
		}
		if !kind.namespaced {
			if ok {
				return nil, usage("policy %q: a %s has no namespace", a, kind.full)
			}
			namespace = ""
		} else if err := validName("namespace", namespace, maxNamespace); err != nil {
			return nil, err
		}
		if err := validName("policy", name, maxName); err != nil {
			return nil, err
		}
		out = append(out, &agentv1.PolicyRef{Kind: kind.full, Namespace: namespace, Name: name})
	}
	return out, nil
}

func kindNames() (out []string) {
	for _, k := range kinds() {
		out = append(out, k.short)
	}
	return out
}

func kindOf(s string) (kind, error) {
	var known []string
	for _, k := range kinds() {
		if strings.EqualFold(s, k.short) || strings.EqualFold(s, k.full) {
			return k, nil
		}
		known = append(known, fmt.Sprintf("%s (%s)", k.short, k.full))
	}
	return kind{}, usage("kind %q: no such kind of policy; the kinds are %s", s, strings.Join(known, ", "))
}

// Lengths that Kubernetes allows for names (RFC 1123).
const (
	maxName      = 253
	maxNamespace = 63
)

// validName refuses what no object can be called, before anything is asked.
func validName(what, s string, most int) error {
	if len(s) > most || !regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`).MatchString(s) {
		return usage("%s %q: not a name: lower case letters, digits, '-' and '.', at most %d, beginning and ending with a letter or digit", what, s, most)
	}
	return nil
}
