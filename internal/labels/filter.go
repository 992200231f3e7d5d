package labels

import (
	"fmt"
	"regexp"
	"strings"
)

// Filter decides which of a workload's labels make its identity. The others describe it and no policy sees them: a
// label whose value differs from pod to pod would give every pod an identity of its own.
type Filter struct {
	rules   []filterRule
	include bool // the user named labels to keep: what no rule keeps is dropped
}

type filterRule struct {
	drop   bool
	source string // empty: any
	key    *regexp.Regexp
}

// What the field keeps and drops unless told otherwise; patterns match from the start of the key.
func defaultFilter() []string {
	return []string{
		`reserved:.*`,
		`io\.kubernetes\.pod\.namespace$`,
		`io\.cilium\.k8s\.namespace\.labels\.`,
		`io\.cilium\.k8s\.policy\.`,
		`app\.kubernetes\.io`,
		`!io\.kubernetes`,
		`!kubernetes\.io`,
		`!.*beta\.kubernetes\.io`,
		`!k8s\.io`,
		`!statefulset\.kubernetes\.io/pod-name`,
		`!apps\.kubernetes\.io/pod-index`,
		`!batch\.kubernetes\.io/job-completion-index`,
		`!batch\.kubernetes\.io/controller-uid`,
		`!topology\.kubernetes\.io`,
		`!controller-uid`,
		`!pod-template-generation`,
		`!pod-template-hash`,
		`!controller-revision-hash`,
		`!annotation.*`,
	}
}

// ParseFilter reads the --labels option: words "[!][source:]pattern" that are added to the default filter. The pattern
// is a regular expression that matches from the start of the key; "!" drops what matches. As soon as one word keeps
// something, labels that nothing keeps are dropped. Where a word that keeps and one that drops both match, the longer
// match wins, and dropping wins at the same length.
func ParseFilter(spec string) (*Filter, error) {
	f := &Filter{}
	for _, word := range defaultFilter() {
		r, err := parseFilterRule(word)
		if err != nil {
			return nil, err
		}
		f.rules = append(f.rules, r)
	}
	for word := range strings.FieldsSeq(spec) {
		r, err := parseFilterRule(word)
		if err != nil {
			return nil, fmt.Errorf("label filter %q: %w", spec, err)
		}
		f.include = f.include || !r.drop
		f.rules = append(f.rules, r)
	}
	return f, nil
}

func parseFilterRule(word string) (filterRule, error) {
	var r filterRule
	pattern := word
	pattern, r.drop = strings.CutPrefix(pattern, "!")
	if source, rest, ok := strings.Cut(pattern, ":"); ok && each(source, isWord) {
		pattern = rest
		if r.source = source; source == SourceAny {
			r.source = ""
		}
		if !r.drop { // both "!k8s:x" and "k8s:!x" are in use
			pattern, r.drop = strings.CutPrefix(pattern, "!")
		}
	}
	if pattern == "" {
		return r, fmt.Errorf("word %q names no label; write [!][source:]pattern", word)
	}
	var err error
	if r.key, err = regexp.Compile(`^(?:` + pattern + `)`); err != nil {
		return r, fmt.Errorf("word %q: %w", word, err)
	}
	return r, nil
}

// Security returns the labels of all that make the identity.
func (f *Filter) Security(all Labels) Labels {
	out := make(Labels, 0, len(all))
	for _, l := range all {
		if f.keeps(l) {
			out = append(out, l)
		}
	}
	return out
}

func (f *Filter) keeps(l Label) bool {
	kept, dropped := -1, -1 // length of the longest match of each kind
	for _, r := range f.rules {
		if r.source != "" && r.source != l.Source {
			continue
		}
		m := r.key.FindStringIndex(l.Key)
		if m == nil {
			continue
		}
		if r.drop {
			dropped = max(dropped, m[1])
		} else {
			kept = max(kept, m[1])
		}
	}
	switch {
	case kept > dropped:
		return true
	case dropped >= 0:
		return false
	}
	return !f.include
}
