package policy

import (
	"strings"

	"porin/internal/labels"
)

// ciliumPolicy reads a CiliumNetworkPolicy or a CiliumClusterwideNetworkPolicy.
func (r *reader) ciliumPolicy(o *object, p *Policy) {
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
	_, hasSpec := o.fields["spec"]
	_, hasSpecs := o.fields["specs"]
	if !hasSpec && !hasSpecs {
		r.fail(o.Node, o.at("spec"), "missing; write spec or specs")
	}
}

// rule reads one spec.
func (r *reader) rule(v value, p *Policy, spec int) {
	o, ok := r.object(v)
	if !ok {
		return
	}
	rule := &Rule{Spec: spec, Line: r.line(v.Node), Tier: TierNormal}
	r.subject(o, p, rule)
	sections := 0
	for _, part := range []struct {
		name string
		site site
		list *[]*Entry
	}{
		{"ingress", site{ingress: true}, &rule.Ingress.Allow},
		{"ingressDeny", site{ingress: true, deny: true}, &rule.Ingress.Deny},
		{"egress", site{}, &rule.Egress.Allow},
		{"egressDeny", site{deny: true}, &rule.Egress.Deny},
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
		part.site.policy, part.site.host = p, rule.Nodes
		*part.list = make([]*Entry, 0, len(list))
		for i, e := range list {
			entry := r.entry(e, part.site)
			entry.Index = i
			*part.list = append(*part.list, entry)
		}
	}
	if sections == 0 {
		r.fail(v.Node, v.path, "says nothing; write at least one of ingress, egress, ingressDeny and egressDeny ([] denies all)")
	}
	r.defaultDeny(o, rule)
	r.describe(o, rule)
	r.place(o, rule)
	o.done()
	p.Rules = append(p.Rules, rule)
}

// subject reads whom the rule selects: workloads, or nodes.
func (r *reader) subject(o *object, p *Policy, rule *Rule) {
	_, endpoints := o.fields["endpointSelector"]
	_, nodes := o.fields["nodeSelector"]
	if nodes {
		rule.Nodes = true
		s, ok := o.take("nodeSelector")
		switch {
		case !ok:
		case p.Namespace != "":
			r.fail(s.Node, s.path, "a %s cannot select nodes; use a %s", p.Kind, KindClusterwideNetworkPolicy)
		case endpoints:
			r.fail(s.Node, s.path, "cannot stand beside endpointSelector in one spec; write two")
		default:
			rule.Subject, _ = r.selector(s, nodeKey)
		}
	}
	if s, ok := o.take("endpointSelector"); ok {
		if rule.Subject, ok = r.selector(s, endpointKey); ok {
			r.checkSubject(s, p, rule.Subject)
		}
	}
	if !endpoints && !nodes {
		r.fail(o.Node, o.at("endpointSelector"), "missing; write {} to select every pod%s", map[bool]string{true: " of the namespace"}[p.Namespace != ""])
	}
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

// tierNames are the words of spec.porin.tier.
func tierNames() map[string]Tier {
	return map[string]Tier{"Admin": TierAdmin, "Normal": TierNormal, "Baseline": TierBaseline}
}

// place reads porin's own field: where the rule stands among others.
func (r *reader) place(o *object, rule *Rule) {
	v, ok := o.take("porin")
	if !ok {
		return
	}
	po, ok := r.object(v)
	if !ok {
		return
	}
	if t, ok := po.take("tier"); ok {
		if s, ok := r.text(t); ok {
			if rule.Tier, ok = tierNames()[s]; !ok {
				r.fail(t.Node, t.path, "tier %.40q is unknown; use Admin, Normal or Baseline", s)
			}
		}
	}
	if n, ok := po.take("priority"); ok {
		i, _ := r.number(n, maxPriority)
		rule.Priority = uint32(i)
	}
	if b, ok := po.take("audit"); ok {
		rule.Audit, _ = r.boolean(b)
	}
	po.done()
}
