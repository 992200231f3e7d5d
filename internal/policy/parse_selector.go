package policy

import (
	"fmt"
	"slices"
	"strings"

	"porin/internal/labels"
)

// keyReader makes the key of a condition from what is written.
type keyReader func(written string) (source, key string, err error)

// selector reads a Kubernetes label selector.
func (r *reader) selector(v value, read keyReader) (labels.Selector, bool) {
	o, ok := r.object(v)
	if !ok {
		return labels.Selector{}, false
	}
	var reqs []labels.Requirement
	good := true
	if m, ok := o.take("matchLabels"); ok {
		reqs, ok = r.matchLabels(m, read)
		good = good && ok
	} else if _, null := o.fields["matchLabels"]; null {
		good = false
	}
	if m, ok := o.take("matchExpressions"); ok {
		list, isList := r.list(m)
		good = good && isList
		for _, e := range list {
			req, ok := r.expression(e, read)
			good = good && ok
			if ok {
				reqs = append(reqs, req)
			}
		}
	} else if _, null := o.fields["matchExpressions"]; null {
		good = false
	}
	o.done()
	s, err := labels.NewSelector(reqs...)
	if err != nil {
		r.fail(v.Node, v.path, "%s", err)
		return s, false
	}
	return s, good
}

// matchLabels reads key: value pairs, each of which must be there.
func (r *reader) matchLabels(v value, read keyReader) (reqs []labels.Requirement, good bool) {
	o, good := r.object(v)
	if !good {
		return nil, false
	}
	for _, name := range o.order {
		val, ok := o.take(name)
		if !ok {
			good = false
			continue
		}
		text, ok := r.text(val)
		if ok {
			var req labels.Requirement
			if req, ok = r.condition(val, name, read, labels.Requirement{Operator: labels.In, Values: []string{text}}); ok {
				reqs = append(reqs, req)
			}
		}
		good = good && ok
	}
	return reqs, good
}

func (r *reader) expression(v value, read keyReader) (labels.Requirement, bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return labels.Requirement{}, false
	}
	var req labels.Requirement
	var key string
	if k, ok := o.take("key"); ok {
		key, _ = r.text(k)
	}
	if op, ok := o.take("operator"); ok {
		s, _ := r.text(op)
		req.Operator = labels.Operator(s)
	}
	if vs, ok := o.take("values"); ok {
		list, _ := r.list(vs)
		for _, el := range list {
			if s, ok := r.text(el); ok {
				req.Values = append(req.Values, s)
			}
		}
	}
	o.done()
	if len(r.errs) > errs {
		return req, false
	}
	return r.condition(v, key, read, req)
}

// condition completes and checks req.
func (r *reader) condition(v value, key string, read keyReader, req labels.Requirement) (labels.Requirement, bool) {
	var err error
	if req.Source, req.Key, err = read(key); err == nil {
		_, err = labels.NewSelector(req)
	}
	if err != nil {
		r.fail(v.Node, v.path, "%s", err)
		return req, false
	}
	return req, true
}

// endpointKey reads source:key. Keys that say where a workload lives are bound to the source that only porin writes: a
// label of another source with the same key must not be taken for it.
func endpointKey(s string) (source, key string, err error) {
	source, key, err = labels.ParseSelectorKey(s)
	if err == nil && source == "" && labels.IsTrusted(key) {
		source = labels.SourceK8s
	}
	return source, key, err
}

// nodeKey reads a key of a node's labels, all of which have source node here.
func nodeKey(s string) (source, key string, err error) {
	return ownKey(s, labels.SourceNode, labels.SourceNode, labels.SourceK8s)
}

// groupKey reads a key of the labels of a CiliumCIDRGroup.
func groupKey(s string) (source, key string, err error) {
	return ownKey(s, labels.SourceK8s, labels.SourceCIDRGroup, labels.SourceK8s)
}

// serviceKey reads a key of the labels of a Service.
func serviceKey(s string) (source, key string, err error) {
	return ownKey(s, labels.SourceK8s, labels.SourceK8s)
}

// ownKey reads a key whose source can only be one, and may be written as one of some.
func ownKey(s, source string, sources ...string) (string, string, error) {
	written, key, err := labels.ParseSelectorKey(s)
	if err != nil {
		return "", "", err
	}
	if written == "" || slices.Contains(sources, written) {
		return source, key, nil
	}
	return "", "", fmt.Errorf("key %.80q: source %q has no labels here; write the key alone", s, written)
}

// plainKey reads a key of a Kubernetes object that knows no sources.
func plainKey(s string) (source, key string, err error) {
	if strings.Contains(s, ":") {
		return "", "", fmt.Errorf("key %.80q: a Kubernetes label has no ':'", s)
	}
	return labels.SourceK8s, s, nil
}

// podKey reads a key of a pod's labels in a document of Kubernetes.
func podKey(s string) (source, key string, err error) {
	if labels.IsTrusted(s) {
		return "", "", fmt.Errorf("key %.80q: no pod can carry this label; select namespaces with a namespaceSelector", s)
	}
	return plainKey(s)
}

// Every namespace carries its name in this label.
const keyNamespaceName = "kubernetes.io/metadata.name"

// namespaceKey reads a key of a namespace's labels.
func namespaceKey(s string) (source, key string, err error) {
	source, key, err = plainKey(s)
	switch {
	case err != nil || s == "":
		return source, key, err
	case s == keyNamespaceName:
		return source, labels.KeyNamespace, nil
	}
	return source, labels.KeyNamespaceLabels + key, nil
}

// inNamespaces is the condition that a workload lives in a namespace at all.
func inNamespaces() labels.Requirement {
	return labels.Requirement{Source: labels.SourceK8s, Key: labels.KeyNamespace, Operator: labels.Exists}
}

func (r *reader) checkSources(v value, s labels.Selector) {
	for _, q := range s.Requirements() {
		switch q.Source {
		case labels.SourceCIDR, labels.SourceFQDN, labels.SourceCIDRGroup, labels.SourceNode:
			r.fail(v.Node, v.path, "labels of source %s cannot be selected; use the fields for CIDRs, names and nodes, or entities", q.Source)
		}
	}
}

// checkSubject refuses selectors that could reach beyond what the document may govern.
func (r *reader) checkSubject(v value, p *Policy, s labels.Selector) {
	r.checkSources(v, s)
	if p.Namespace == "" {
		return
	}
	for _, q := range s.Requirements() {
		switch {
		case q.Source == labels.SourceReserved:
			r.fail(v.Node, v.path, "%s:%s is in no namespace; use a %s", q.Source, q.Key, KindClusterwideNetworkPolicy)
		case q.Key == labels.KeyNamespace && !q.Matches(labels.Labels{{Source: labels.SourceK8s, Key: labels.KeyNamespace, Value: p.Namespace}}):
			r.fail(v.Node, v.path, "%q excludes the policy's own namespace %q; a %s applies in its namespace only", q, p.Namespace, p.Kind)
		}
	}
}
