package policy

import (
	"bytes"
	"fmt"
	"strings"

	"porin/internal/labels"
)

// Parse reads the policies of a file: YAML or JSON, any number of documents. It is strict: an unknown field, a field
// that porin does not support yet, or a value that makes no sense refuses the whole file, since a policy of which a
// part is ignored would allow what its author forbade. Mistakes are FieldErrors, joined.
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
	for i, text := range docs {
		r.first = before[i]
		v, ok := r.document(text)
		if !ok {
			continue
		}
		p := r.policy(v)
		if p == nil {
			continue
		}
		p.YAML = strings.TrimSpace(string(bytes.TrimPrefix(text, []byte("---")))) + "\n"
		if line, twice := seen[p.Ref]; twice {
			r.fail(v.Node, "metadata.name", "%s is already in line %d of this file", p.Ref, line)
		}
		seen[p.Ref] = p.Line
		out = append(out, p)
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

// policy reads one document.
func (r *reader) policy(v value) *Policy {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return nil
	}
	p := &Policy{File: r.file, Line: r.line(v.Node)}
	if version, ok := o.take("apiVersion"); !ok {
		r.fail(v.Node, "apiVersion", "missing; write cilium.io/v2")
	} else if s, ok := r.text(version); ok && s != "cilium.io/v2" {
		r.fail(version.Node, "apiVersion", "%q is not supported; use cilium.io/v2", s)
		return nil
	}
	kind, ok := o.take("kind")
	if !ok {
		r.fail(v.Node, "kind", "missing; write %s or %s", KindNetworkPolicy, KindClusterwideNetworkPolicy)
		return nil
	}
	if p.Kind, ok = r.text(kind); !ok {
		return nil
	}
	if p.Kind != KindNetworkPolicy && p.Kind != KindClusterwideNetworkPolicy {
		r.fail(kind.Node, "kind", "%q is not supported; use %s or %s", p.Kind, KindNetworkPolicy, KindClusterwideNetworkPolicy)
		return nil
	}
	if meta, ok := o.take("metadata"); !ok {
		r.fail(v.Node, "metadata", "missing; a policy needs a name")
	} else {
		r.metadata(meta, p)
	}
	o.skip("status")
	spec, one := o.take("spec")
	specs, many := o.take("specs")
	if one {
		r.rule(spec, p, -1)
	}
	if many {
		list, ok := r.list(specs)
		if ok && len(list) == 0 && !one {
			r.fail(specs.Node, specs.path, "the list is empty; a policy needs at least one spec")
		}
		for i, s := range list {
			r.rule(s, p, i)
		}
	}
	if !one && !many {
		r.fail(v.Node, "spec", "missing; write spec or specs")
	}
	o.done()
	if len(r.errs) > errs {
		return nil
	}
	return p
}

// metadata reads the name. What else Kubernetes keeps there says nothing about verdicts.
func (r *reader) metadata(v value, p *Policy) {
	o, ok := r.object(v)
	if !ok {
		return
	}
	if name, ok := o.take("name"); !ok {
		r.fail(v.Node, v.at("name"), "missing; a policy needs a name")
	} else if s, ok := r.text(name); ok {
		p.Name = s
		if !isName(s) {
			r.fail(name.Node, name.path, "%.80q is no RFC 1123 name; use lower-case letters, digits, '-' and '.', at most 253", s)
		}
	}
	namespace, given := o.take("namespace")
	switch {
	case given && p.Kind == KindClusterwideNetworkPolicy:
		r.fail(namespace.Node, namespace.path, "a %s has no namespace; take it out or use %s", p.Kind, KindNetworkPolicy)
	case given:
		s, ok := r.text(namespace)
		p.Namespace = s
		if ok && (len(s) > 63 || !isLabel(s)) {
			r.fail(namespace.Node, namespace.path, "%.80q is no RFC 1123 label; use lower-case letters, digits and '-', at most 63", s)
		}
	case p.Kind == KindNetworkPolicy:
		p.Namespace = "default"
	}
	o.skip("labels", "annotations", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields",
		"ownerReferences", "finalizers", "selfLink", "generateName", "deletionTimestamp", "deletionGracePeriodSeconds")
	o.done()
}

// rule reads one spec.
func (r *reader) rule(v value, p *Policy, spec int) {
	o, ok := r.object(v)
	if !ok {
		return
	}
	rule := &Rule{Spec: spec, Line: r.line(v.Node), Tier: TierNormal}
	o.refuse("nodeSelector")
	if s, ok := o.take("endpointSelector"); ok {
		rule.Subject, _ = r.selector(s)
		r.checkSubject(s, p, rule.Subject)
	} else if _, bad := o.fields["endpointSelector"]; !bad {
		r.fail(v.Node, v.at("endpointSelector"), "missing; write {} to select every pod%s", map[bool]string{true: " of the namespace"}[p.Namespace != ""])
	}
	sections := 0
	for _, part := range []struct {
		name   string
		prefix string
		deny   bool
		list   *[]*Entry
	}{
		{"ingress", "from", false, &rule.Ingress.Allow},
		{"ingressDeny", "from", true, &rule.Ingress.Deny},
		{"egress", "to", false, &rule.Egress.Allow},
		{"egressDeny", "to", true, &rule.Egress.Deny},
	} {
		s, ok := o.take(part.name)
		if !ok {
			continue
		}
		sections++
		list, ok := r.list(s)
		if !ok {
			continue
		}
		*part.list = make([]*Entry, 0, len(list))
		for _, e := range list {
			*part.list = append(*part.list, r.entry(e, part.prefix, part.deny, p))
		}
	}
	if sections == 0 {
		r.fail(v.Node, v.path, "says nothing; write at least one of ingress, egress, ingressDeny and egressDeny ([] denies all)")
	}
	r.defaultDeny(o, rule)
	r.describe(o, rule)
	o.done()
	p.Rules = append(p.Rules, rule)
}

func (r *reader) defaultDeny(o *object, rule *Rule) {
	v, ok := o.take("enableDefaultDeny")
	if !ok {
		return
	}
	d, ok := r.object(v)
	if !ok {
		return
	}
	for i, section := range []*Section{&rule.Ingress, &rule.Egress} {
		if b, ok := d.take([]string{"ingress", "egress"}[i]); ok {
			if on, ok := r.boolean(b); ok {
				section.DefaultDeny = &on
			}
		}
	}
	d.done()
}

// describe reads what a rule says about itself.
func (r *reader) describe(o *object, rule *Rule) {
	if v, ok := o.take("description"); ok {
		one := *v.Node // a description may have several lines; it is kept as one
		one.Value = strings.Join(strings.Fields(one.Value), " ")
		rule.Description, _ = r.text(value{&one, v.path})
	}
	if v, ok := o.take("log"); ok {
		if l, ok := r.object(v); ok {
			if s, ok := l.take("value"); ok {
				if rule.Log, _ = r.text(s); len(rule.Log) > 32 {
					r.fail(s.Node, s.path, "longer than 32 bytes")
				}
			}
			l.done()
		}
	}
	v, ok := o.take("labels")
	if !ok {
		return
	}
	list, _ := r.list(v)
	var ls []labels.Label
	for _, e := range list {
		lo, ok := r.object(e)
		if !ok {
			continue
		}
		l := labels.Label{Source: labels.SourceUnspec}
		for i, to := range []*string{&l.Key, &l.Value, &l.Source} {
			if s, ok := lo.take([]string{"key", "value", "source"}[i]); ok {
				*to, _ = r.text(s)
			}
		}
		if l.Key == "" {
			r.fail(e.Node, e.at("key"), "missing")
		}
		lo.done()
		ls = append(ls, l)
	}
	rule.Labels = labels.New(ls...)
}
