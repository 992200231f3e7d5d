package agent

import (
	"errors"
	"fmt"
	"slices"

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
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return ps, nil
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
