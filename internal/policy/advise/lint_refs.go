package advise

import (
	"slices"
	"strings"

	"porin/internal/policy"
	"porin/internal/verdict"
)

// references finds what entries refer to that is not there: groups, services, and names of ports. What is not there is
// nobody, so such an entry allows, or denies, less than it seems to.
func (l *linter) references() {
	for _, p := range l.w.Policies {
		for _, r := range p.Rules {
			for _, d := range []verdict.Direction{verdict.Ingress, verdict.Egress} {
				sec := r.Section(d)
				for i, list := range [][]*policy.Entry{sec.Allow, sec.Deny, sec.Pass} {
					for _, e := range list {
						ref := policy.RuleRef{Policy: p.Ref, Spec: r.Spec, Index: e.Index, Direction: d, Deny: i == 1, File: p.File, Line: e.Line, Description: r.Description}
						l.groups(ref, e)
						l.services(ref, e)
						l.portNames(ref, e)
					}
				}
			}
		}
	}
}

func (l *linter) unresolved(ref policy.RuleRef, format string, args ...any) {
	l.lost[ref] = true
	l.add(Unresolved, ref, format, args...)
}

func (l *linter) groups(ref policy.RuleRef, e *policy.Entry) {
	for _, c := range e.Peers.CIDRs {
		if c.Group == "" && c.GroupSelector == nil {
			continue
		}
		blocks, there := 0, false
		var names []string
		for _, p := range l.w.Policies {
			if p.Group == nil {
				continue
			}
			names = append(names, p.Name)
			if c.Group == p.Name || c.GroupSelector != nil && c.GroupSelector.Matches(p.Labels) {
				there, blocks = true, blocks+len(p.Group.CIDRs)
			}
		}
		what := policy.KindCIDRGroup + " " + c.Group
		if c.GroupSelector != nil {
			what = policy.KindCIDRGroup + " with {" + c.GroupSelector.String() + "}"
		}
		switch near := nearest(c.Group, names); {
		case there && blocks == 0:
			l.unresolved(ref, "%s is empty, which is nobody", what)
		case there:
		case near != "" && c.Group != "":
			l.unresolved(ref, "there is no %s, which is nobody; did you mean %s?", what, near)
		default:
			l.unresolved(ref, "there is no %s, which is nobody", what)
		}
	}
}

func (l *linter) services(ref policy.RuleRef, e *policy.Entry) {
	for _, s := range e.Peers.Services {
		found := false
		for _, p := range l.w.Policies {
			named := p.Name == s.Name && p.Namespace == s.Namespace
			if s.Selector != nil {
				named = (s.Namespace == "" || p.Namespace == s.Namespace) && s.Selector.Matches(p.Labels)
			}
			if p.Service == nil || !named {
				continue
			}
			if found = true; !l.backends(p) {
				l.unresolved(ref, "the service %s/%s has nobody behind it", p.Namespace, p.Name)
			}
		}
		name := s.Namespace + "/" + s.Name
		if s.Selector != nil {
			name = "with {" + s.Selector.String() + "}"
		}
		if !found {
			l.unresolved(ref, "there is no service %s, which is nobody", name)
		}
	}
}

// backends tells whether anybody is behind a service: workloads that it selects, or addresses in its slices.
func (l *linter) backends(service *policy.Policy) bool {
	for _, p := range l.w.Policies {
		if p.Slice != nil && p.Namespace == service.Namespace && p.Slice.Service == service.Name && len(p.Slice.Addresses) > 0 {
			return true
		}
	}
	return service.Service.Selects && slices.ContainsFunc(l.known, func(e End) bool {
		ns, _ := e.Identity.Labels.Get("k8s", "io.kubernetes.pod.namespace")
		return e.Kind == Workload && ns == service.Namespace && service.Service.Selector.Matches(e.Identity.Labels)
	})
}

// portNames finds names that nobody's port has. It needs workloads that say what their ports are called.
func (l *linter) portNames(ref policy.RuleRef, e *policy.Entry) {
	var names []string
	for _, k := range l.known {
		for _, p := range k.Ports {
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return
	}
	for _, p := range e.Ports {
		if p.Name == "" || slices.Contains(names, p.Name) {
			continue
		}
		if near := nearest(p.Name, names); near != "" {
			l.unresolved(ref, "no workload has a port that is called %s, which is no port; did you mean %s?", p.Name, near)
		} else {
			l.unresolved(ref, "no workload has a port that is called %s, which is no port; there are %s", p.Name, strings.Join(slices.Compact(slices.Sorted(slices.Values(names))), ", "))
		}
	}
}
