package agent

import (
	"errors"
	"fmt"
	"slices"

	"porin/internal/labels"
	"porin/internal/policy"
)

// What the language has and this agent cannot enforce. Where nothing would close what a document closes, the document
// is refused; where the lack denies more than is meant, it is taken and an alarm tells of it.

// parse reads documents and refuses those that this agent would not enforce.
func parse(file string, data []byte) ([]*policy.Policy, error) {
	ps, err := policy.Parse(file, data)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range ps {
		for _, r := range p.Rules {
			if r.Nodes {
				errs = append(errs, &policy.FieldError{
					File: p.File, Line: r.Line, Field: specField(r) + ".nodeSelector",
					Text: fmt.Sprintf("this agent cannot protect nodes yet, so %s would look in force and change nothing; take it out, and protect the nodes by other means (porin policy test judges it without an agent)", p.Ref),
				})
			}
			errs = append(errs, nodeLabels(p, r)...)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return ps, nil
}

// nodeLabels refuses what would be wider than written because this agent does not tell nodes apart by their labels: a
// deny that misses its nodes, and an allow that means the nodes without a label.
func nodeLabels(p *policy.Policy, r *policy.Rule) (errs []error) {
	say := func(e *policy.Entry, text string) {
		errs = append(errs, &policy.FieldError{
			File: p.File, Line: e.Line, Field: "nodes",
			Text: fmt.Sprintf("this agent does not tell nodes apart by their labels yet, so %s of %s %s; use CIDRs, or {} for every node", specField(r), p.Ref, text),
		})
	}
	for _, section := range []*policy.Section{&r.Ingress, &r.Egress} {
		for _, e := range slices.Concat(section.Deny, section.Pass) {
			if slices.ContainsFunc(e.Peers.Nodes, func(s labels.Selector) bool { return len(s.Requirements()) > 0 }) {
				say(e, "would look in force and decide nothing")
			}
		}
		for _, e := range section.Allow {
			if slices.ContainsFunc(e.Peers.Nodes, meansUnlabelled) {
				say(e, "would allow every node")
			}
		}
	}
	return errs
}

// meansUnlabelled tells whether a selector asks only for what a node does not have.
func meansUnlabelled(s labels.Selector) bool {
	qs := s.Requirements()
	return len(qs) > 0 && !slices.ContainsFunc(qs, func(q labels.Requirement) bool {
		return q.Operator != labels.NotIn && q.Operator != labels.DoesNotExist
	})
}

func specField(r *policy.Rule) string {
	if r.Spec < 0 {
		return "spec"
	}
	return fmt.Sprintf("specs[%d]", r.Spec)
}

// lacking says of a policy in force what of it only denies, because nothing here can tell who or what it allows.
func lacking(p *policy.Policy) (out []string) {
	say := func(what, so string) {
		if text := fmt.Sprintf("%s: %s: %s", p.Ref, what, so); !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	for _, r := range p.Rules {
		for _, e := range slices.Concat(r.Ingress.Allow, r.Egress.Allow) {
			if e.Peers.Kind == policy.PeersFQDNs {
				say("DNS names", "nothing looks them up yet, so what they allow is denied")
			}
			if slices.ContainsFunc(e.Peers.Nodes, func(s labels.Selector) bool { return len(s.Requirements()) > 0 }) {
				say("labels of nodes", "nodes are not told apart yet, so what they allow is denied")
			}
			if e.Auth == policy.AuthRequired || e.Auth == policy.AuthTestAlwaysFail {
				say("authentication", "nobody proves who he is yet, so what demands it is denied")
			}
			for _, q := range e.Ports {
				if q.L7 != nil {
					say("layer 7", "there is no proxy yet, so connections that it should look into are denied")
					break
				}
			}
		}
	}
	return out
}
