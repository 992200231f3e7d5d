package labels

import (
	"slices"
	"strings"
	"testing"
)

func TestDefaultFilter(t *testing.T) {
	kept := []string{
		"k8s:app=web", "k8s:io.kubernetes.pod.namespace=default", "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=x",
		"k8s:io.cilium.k8s.namespace.labels.pod-template-hash=1", "k8s:io.cilium.k8s.policy.serviceaccount=sa",
		"k8s:io.cilium.k8s.policy.cluster=c", "k8s:app.kubernetes.io/name=x", "reserved:host", "container:com.example/x=1", "k8s:version=v1",
	}
	dropped := []string{
		"k8s:io.kubernetes.container.name=x", "k8s:io.kubernetes.pod.namespace-not=x", "k8s:kubernetes.io/arch=x",
		"k8s:node.beta.kubernetes.io/x=1", "k8s:beta.kubernetes.io/os=linux", "k8s:k8s.io/x=1", "k8s:pod-template-hash=abc",
		"k8s:pod-template-generation=1", "k8s:controller-revision-hash=x", "k8s:annotation.sealed=1", "k8s:statefulset.kubernetes.io/pod-name=web-0",
		"k8s:apps.kubernetes.io/pod-index=0", "k8s:batch.kubernetes.io/job-completion-index=1", "k8s:batch.kubernetes.io/controller-uid=u",
		"k8s:controller-uid=u", "k8s:topology.kubernetes.io/zone=z",
	}
	standard, err := ParseFilter("")
	if err != nil {
		t.Fatal(err)
	}
	got := standard.Security(set(t, append(slices.Clone(kept), dropped...)...))
	if want := set(t, kept...); got.Key() != want.Key() {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestFilterSpec(t *testing.T) {
	all := []string{
		"k8s:app=web", "k8s:tier=1", "container:app=x", "k8s:io.kubernetes.pod.namespace=default", "k8s:io.kubernetes.x=1", "reserved:host",
		"k8s:app.kubernetes.io/name=n",
	}
	for _, c := range []struct {
		spec string
		want []string
	}{
		{"", []string{"k8s:app=web", "k8s:tier=1", "container:app=x", "k8s:io.kubernetes.pod.namespace=default", "reserved:host", "k8s:app.kubernetes.io/name=n"}},
		// words that keep: nothing else is kept, but for what the default names
		{"k8s:app$", []string{"k8s:app=web", "k8s:io.kubernetes.pod.namespace=default", "reserved:host", "k8s:app.kubernetes.io/name=n"}},
		{"app$ any:tier", []string{"k8s:app=web", "container:app=x", "k8s:tier=1", "k8s:io.kubernetes.pod.namespace=default", "reserved:host", "k8s:app.kubernetes.io/name=n"}},
		// words that drop, in both spellings
		{"!k8s:tier", []string{"k8s:app=web", "container:app=x", "k8s:io.kubernetes.pod.namespace=default", "reserved:host", "k8s:app.kubernetes.io/name=n"}},
		{"k8s:!tier !container:.*", []string{"k8s:app=web", "k8s:io.kubernetes.pod.namespace=default", "reserved:host", "k8s:app.kubernetes.io/name=n"}},
		// the longer match wins
		{`io\.kubernetes\.x`, []string{"k8s:io.kubernetes.x=1", "k8s:io.kubernetes.pod.namespace=default", "reserved:host", "k8s:app.kubernetes.io/name=n"}},
	} {
		f, err := ParseFilter(c.spec)
		if err != nil {
			t.Errorf("%q: %v", c.spec, err)
			continue
		}
		if got, want := f.Security(set(t, all...)), set(t, c.want...); got.Key() != want.Key() {
			t.Errorf("%q\ngot  %s\nwant %s", c.spec, got, want)
		}
	}
	for _, spec := range []string{"k8s:", "!", "k8s:!", "a(", "k8s:[", "ok x("} {
		if _, err := ParseFilter(spec); err == nil || !strings.Contains(err.Error(), "label filter") {
			t.Errorf("%q: error %v, want one that names the filter", spec, err)
		}
	}
}

// TestPodCannotClaimNamespaceLabels is A05: a pod's own label must not imitate what says where it lives.
func TestPodCannotClaimNamespaceLabels(t *testing.T) {
	ls, refused := Pod{
		Namespace: "red", NamespaceLabels: map[string]string{"team": "x"}, ServiceAccount: "sa", Cluster: "one",
		Labels: map[string]string{
			"app": "web", KeyNamespace: "blue", KeyNamespaceLabels + "team": "y", KeyNamespaceLabels + "admin": "yes",
			KeyServiceAccount: "root", KeyCluster: "two", "io.cilium.k8s.policy.name": "p",
		},
	}.All()
	want := set(t, "k8s:app=web", "k8s:io.kubernetes.pod.namespace=red", "k8s:io.cilium.k8s.namespace.labels.team=x",
		"k8s:io.cilium.k8s.policy.serviceaccount=sa", "k8s:io.cilium.k8s.policy.cluster=one")
	if ls.Key() != want.Key() {
		t.Errorf("got  %s\nwant %s", ls, want)
	}
	if len(refused) != 6 {
		t.Errorf("refused %v, want the six claims", refused)
	}
}
