package labels

import "strings"

// trustedPrefix starts every key that only porin gives; together with KeyNamespace these decide whose rules apply.
const trustedPrefix = "io.cilium.k8s."

// IsTrusted tells whether key is one that policies rely on to say where a workload lives. Whoever takes labels from a
// pod, a container or a user must not accept such a key from there: it could imitate another namespace.
func IsTrusted(key string) bool {
	return key == KeyNamespace || strings.HasPrefix(key, trustedPrefix)
}

// Pod is what an orchestrator says about a workload.
type Pod struct {
	Namespace       string
	NamespaceLabels map[string]string
	ServiceAccount  string
	Cluster         string
	Labels          map[string]string // the pod's own: not trusted
}

// All returns the pod's labels, and the keys of its own that were refused because only porin may give them.
func (p Pod) All() (ls Labels, refused []string) {
	var all []Label
	for k, v := range p.Labels {
		if IsTrusted(k) {
			refused = append(refused, k)
			continue
		}
		all = append(all, Label{SourceK8s, k, v})
	}
	for k, v := range p.NamespaceLabels {
		all = append(all, Label{SourceK8s, KeyNamespaceLabels + k, v})
	}
	for _, l := range []Label{
		{SourceK8s, KeyNamespace, p.Namespace},
		{SourceK8s, KeyServiceAccount, p.ServiceAccount},
		{SourceK8s, KeyCluster, p.Cluster},
	} {
		if l.Value != "" {
			all = append(all, l)
		}
	}
	return New(all...), refused
}
