package policy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"porin/internal/labels"
)

// Parse reads the documents of a file: YAML or JSON, any number of documents, lists of them too. It is strict: an
// unknown field, a field that porin cannot make sense of, or a value that makes no sense refuses the whole file, since
// a policy of which a part is ignored would allow what its author forbade. Mistakes are FieldErrors, joined.
func Parse(file string, data []byte) ([]*Policy, error) {
	r := &reader{file: file}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes; at most %d are read, split the file", file, len(data), maxFile)
	}
	docs, before := split(data)
	if len(docs) > maxDocs {
		return nil, fmt.Errorf("%s: %d documents; at most %d are read, split the file", file, len(docs), maxDocs)
	}
	var out []*Policy
	seen := map[Ref]int{}
	add := func(v value, p *Policy) {
		if line, twice := seen[p.Ref]; twice {
			r.fail(v.Node, v.at("metadata.name"), "%s is already in line %d of this file", p.Ref, line)
		}
		seen[p.Ref] = p.Line
		out = append(out, p)
	}
	for i, text := range docs {
		r.first = before[i]
		v, ok := r.document(text)
		if !ok {
			continue
		}
		if items, list := r.items(v); list {
			for _, item := range items {
				if p := r.policy(item); p != nil {
					p.YAML = r.print(item)
					add(item, p)
				}
			}
			continue
		}
		if p := r.policy(v); p != nil {
			p.YAML = strings.TrimSpace(string(bytes.TrimPrefix(text, []byte("---")))) + "\n"
			add(v, p)
		}
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return out, nil
}

// isName tells whether s is an RFC 1123 subdomain.
func isName(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		if !isLabel(part) {
			return false
		}
	}
	return len(s) <= 253
}

// isLabel tells whether s is made as an RFC 1123 label; its length is checked where it matters.
func isLabel(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-' && s[len(s)-1] != '-'
}

// docKind is a kind of documents.
type docKind struct {
	name       string
	versions   []string // the first one is the one to write
	namespaced bool
	labeled    bool // the rules of others go by its labels
	read       func(*reader, *object, *Policy)
}

func docKinds() []docKind {
	return []docKind{
		{KindNetworkPolicy, []string{"cilium.io/v2"}, true, false, (*reader).ciliumPolicy},
		{KindClusterwideNetworkPolicy, []string{"cilium.io/v2"}, false, false, (*reader).ciliumPolicy},
		{KindKubernetesNetworkPolicy, []string{"networking.k8s.io/v1"}, true, false, (*reader).kubernetesPolicy},
		{KindClusterNetworkPolicy, []string{"policy.networking.k8s.io/v1alpha2"}, false, false, (*reader).clusterPolicy},
		{KindCIDRGroup, []string{"cilium.io/v2", "cilium.io/v2alpha1"}, false, true, (*reader).cidrGroup},
		{KindService, []string{"v1"}, true, true, (*reader).service},
		{KindEndpointSlice, []string{"discovery.k8s.io/v1"}, true, true, (*reader).slice},
	}
}

func kindOf(name string) (docKind, bool) {
	list := docKinds()
	i := slices.IndexFunc(list, func(k docKind) bool { return k.name == name })
	if i < 0 {
		return docKind{}, false
	}
	return list[i], true
}

// policy reads one document.
func (r *reader) policy(v value) *Policy {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return nil
	}
	p := &Policy{File: r.file, Line: r.line(v.Node)}
	version, versioned := o.take("apiVersion")
	kind, ok := o.take("kind")
	if !ok {
		r.fail(v.Node, v.at("kind"), "missing; write %s, for instance", KindNetworkPolicy)
		return nil
	}
	if p.Kind, ok = r.text(kind); !ok {
		return nil
	}
	k, known := kindOf(p.Kind)
	if !known {
		r.unknownKind(kind, p.Kind)
		return nil
	}
	if !versioned {
		r.fail(v.Node, v.at("apiVersion"), "missing; write %s", k.versions[0])
	} else if s, ok := r.text(version); ok && !slices.Contains(k.versions, s) {
		r.fail(version.Node, version.path, "%.60q is not supported for a %s; use %s", s, p.Kind, strings.Join(k.versions, " or "))
		return nil
	}
	if meta, ok := o.take("metadata"); ok {
		r.metadata(meta, p, k)
	} else if _, null := o.fields["metadata"]; !null {
		r.fail(v.Node, v.at("metadata"), "missing; a document needs a name")
	}
	k.read(r, o, p)
	o.done()
	if len(r.errs) > errs {
		return nil
	}
	return p
}

// unknownKind tells what to write instead.
func (r *reader) unknownKind(v value, kind string) {
	switch kind {
	case "AdminNetworkPolicy", "BaselineAdminNetworkPolicy":
		r.fail(v.Node, v.path, "%q is not supported; write a %s (policy.networking.k8s.io/v1alpha2) of tier Admin or Baseline", kind, "ClusterNetworkPolicy")
		return
	}
	var names []string
	for _, k := range docKinds() {
		names = append(names, k.name)
	}
	r.fail(v.Node, v.path, "%.60q is not supported; use one of %s", kind, strings.Join(names, ", "))
}

// metadata reads the name. What else Kubernetes keeps there says nothing about verdicts.
func (r *reader) metadata(v value, p *Policy, k docKind) {
	o, ok := r.object(v)
	if !ok {
		return
	}
	if name, ok := o.take("name"); !ok {
		r.fail(v.Node, v.at("name"), "missing; a document needs a name")
	} else if s, ok := r.text(name); ok {
		p.Name = s
		if !isName(s) {
			r.fail(name.Node, name.path, "%.80q is no RFC 1123 name; use lower-case letters, digits, '-' and '.', at most 253", s)
		}
	}
	namespace, given := o.take("namespace")
	switch {
	case given && !k.namespaced:
		instead := ""
		if p.Kind == KindClusterwideNetworkPolicy {
			instead = " or use " + KindNetworkPolicy
		}
		r.fail(namespace.Node, namespace.path, "a %s has no namespace; take it out%s", p.Kind, instead)
	case given:
		p.Namespace, _ = r.namespace(namespace)
	case k.namespaced:
		p.Namespace = "default"
	}
	if k.labeled {
		r.documentLabels(o, p)
	}
	o.skip("labels", "annotations", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields",
		"ownerReferences", "finalizers", "selfLink", "generateName", "deletionTimestamp", "deletionGracePeriodSeconds")
	o.done()
}

// namespace reads the name of a namespace.
func (r *reader) namespace(v value) (string, bool) {
	s, ok := r.text(v)
	if ok && (len(s) > 63 || !isLabel(s)) {
		r.fail(v.Node, v.path, "%.80q is no RFC 1123 label; use lower-case letters, digits and '-', at most 63", s)
		return "", false
	}
	return s, ok
}

// documentLabels reads metadata.labels.
func (r *reader) documentLabels(meta *object, p *Policy) {
	v, ok := meta.take("labels")
	if !ok {
		return
	}
	reqs, ok := r.matchLabels(v, plainKey)
	if !ok {
		return
	}
	if len(reqs) > maxLabels {
		r.fail(v.Node, v.path, "%d labels; at most %d are read", len(reqs), maxLabels)
		return
	}
	var ls []labels.Label
	for _, q := range reqs {
		ls = append(ls, labels.Label{Source: labels.SourceK8s, Key: q.Key, Value: q.Values[0]})
	}
	if ls != nil {
		p.Labels = labels.New(ls...)
	}
}
