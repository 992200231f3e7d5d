package advise

import (
	"encoding/json"
	"fmt"

	"porin/internal/policy"
)

// Rule is a policy.RuleRef for people and scripts: with its name, and words for numbers.
type Rule struct{ policy.RuleRef }

// rulesOf wraps rules; never nil, so that JSON has a list.
func rulesOf(refs []policy.RuleRef) []Rule {
	out := make([]Rule, len(refs))
	for i, r := range refs {
		out[i] = Rule{r}
	}
	return out
}

// Own tells whether porin itself decides this, not a rule that somebody wrote.
func (r Rule) Own() bool { return r.Policy.Kind == policy.KindPorin }

// Place is where the rule is written, as file:line; empty for porin's own.
func (r Rule) Place() string {
	if r.File == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", r.File, r.Line)
}

// MarshalJSON writes the rule's name beside its parts.
func (r Rule) MarshalJSON() ([]byte, error) {
	out := struct {
		Rule        string `json:"rule"`
		Kind        string `json:"kind"`
		Namespace   string `json:"namespace,omitempty"`
		Name        string `json:"name"`
		Spec        *int   `json:"spec,omitempty"`  // index in specs
		Index       *int   `json:"index,omitempty"` // of the entry; none: the whole section
		Direction   string `json:"direction"`
		Deny        bool   `json:"deny"`
		File        string `json:"file,omitempty"`
		Line        int    `json:"line,omitempty"`
		Description string `json:"description,omitempty"`
	}{
		Rule: r.String(), Kind: r.Policy.Kind, Namespace: r.Policy.Namespace, Name: r.Policy.Name,
		Direction: r.Direction.String(), Deny: r.Deny, File: r.File, Line: r.Line, Description: r.Description,
	}
	if r.Spec >= 0 {
		out.Spec = &r.Spec
	}
	if r.Index >= 0 {
		out.Index = &r.Index
	}
	return json.Marshal(out)
}
