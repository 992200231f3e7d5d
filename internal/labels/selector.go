package labels

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Operator of a requirement, in Kubernetes' words.
type Operator string

// Operators.
const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// Requirement is one condition on the labels with Key, of one source or (Source empty) of any. A set may hold the key
// under several sources: In and Exists want one label that fits, NotIn and DoesNotExist want none that would.
type Requirement struct {
	Source   string
	Key      string
	Operator Operator
	Values   []string // In and NotIn; sorted, distinct
}

// Positive tells whether only a label that is present can satisfy r.
func (r Requirement) Positive() bool { return r.Operator == In || r.Operator == Exists }

// Matches tells whether ls satisfies r.
func (r Requirement) Matches(ls Labels) bool {
	positive := r.Positive()
	for i := range ls {
		l := &ls[i]
		if l.Key != r.Key || (r.Source != "" && l.Source != r.Source) {
			continue
		}
		switch r.Operator {
		case In, NotIn:
			if slices.Contains(r.Values, l.Value) {
				return positive
			}
		default:
			return positive
		}
	}
	return !positive
}

// String returns the requirement as ParseSelector reads it.
func (r Requirement) String() string {
	key := r.Key
	if r.Source != "" {
		key = r.Source + ":" + r.Key
	}
	switch {
	case r.Operator == Exists:
		return key
	case r.Operator == DoesNotExist:
		return "!" + key
	case r.Operator == In && len(r.Values) == 1:
		return key + "=" + r.Values[0]
	case r.Operator == In:
		return key + " in (" + strings.Join(r.Values, ",") + ")"
	}
	return key + " notin (" + strings.Join(r.Values, ",") + ")"
}

// Selector is a conjunction of requirements, as a Kubernetes LabelSelector is. The zero value selects everything.
// Never modified once made.
type Selector struct {
	reqs []Requirement // sorted by text, distinct
	text string
}

// NewSelector makes a selector of reqs. It refuses unknown operators, values where none belong or that are missing
// where some must be, and text that could not be a label.
func NewSelector(reqs ...Requirement) (Selector, error) {
	type entry struct {
		req  Requirement
		text string
	}
	all := make([]entry, 0, len(reqs))
	for _, r := range reqs {
		if r.Source == SourceAny {
			r.Source = ""
		}
		if err := r.check(); err != nil {
			return Selector{}, err
		}
		r.Values = slices.Compact(slices.Sorted(slices.Values(r.Values)))
		all = append(all, entry{r, r.String()})
	}
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.text, b.text) })
	all = slices.CompactFunc(all, func(a, b entry) bool { return a.text == b.text })
	var s Selector
	texts := make([]string, len(all))
	for i, e := range all {
		s.reqs = append(s.reqs, e.req)
		texts[i] = e.text
	}
	s.text = strings.Join(texts, ",")
	return s, nil
}

// ParseSelectorKey splits a selector's key into source and key. A colon ends the source; a key without one means any source.
// A dot does not: k8s.io/name is a key of any source.
func ParseSelectorKey(s string) (source, key string, err error) {
	key = s
	if i := strings.IndexAny(s, ":/"); i >= 0 && s[i] == ':' {
		source, key = s[:i], s[i+1:]
		if source == SourceAny {
			source = ""
		}
	}
	return source, key, Requirement{Source: source, Key: key, Operator: Exists}.check()
}

const (
	maxKey   = 512 // a namespace label's key (253 + 1 + 63) behind our prefix, with room
	maxValue = 253
)

func (r Requirement) check() error {
	switch r.Operator {
	case In, NotIn:
		if len(r.Values) == 0 {
			return fmt.Errorf("key %q: operator %s needs at least one value", r.Key, r.Operator)
		}
	case Exists, DoesNotExist:
		if len(r.Values) != 0 {
			return fmt.Errorf("key %q: operator %s takes no values", r.Key, r.Operator)
		}
	default:
		return fmt.Errorf("key %q: operator %q is unknown; use In, NotIn, Exists or DoesNotExist", r.Key, r.Operator)
	}
	if r.Key == "" {
		return fmt.Errorf("the key is empty; write source:key or key")
	}
	if len(r.Source)+len(r.Key) > maxKey {
		return fmt.Errorf("key %.40q...: longer than %d bytes", r.Key, maxKey)
	}
	if !each(r.Source, isWord) {
		return fmt.Errorf("source %q: only letters, digits, '-', '_' and '.' are allowed", r.Source)
	}
	if !each(r.Key, func(c rune) bool { return isWord(c) || c == '/' }) || !edges(r.Key) {
		return fmt.Errorf("key %q: write letters, digits, '-', '_', '.' and '/', with a letter or digit at both ends", r.Key)
	}
	for _, v := range r.Values {
		if len(v) > maxValue {
			return fmt.Errorf("key %q: a value is longer than %d bytes", r.Key, maxValue)
		}
		if !each(v, isWord) || !edges(v) {
			return fmt.Errorf("key %q: value %q: write letters, digits, '-', '_' and '.', with a letter or digit at both ends", r.Key, v)
		}
	}
	return nil
}

func isWord(c rune) bool {
	return c < unicode.MaxASCII && (unicode.IsLetter(c) || unicode.IsDigit(c) || c == '-' || c == '_' || c == '.')
}

func each(s string, ok func(rune) bool) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return !ok(c) })
}

func edges(s string) bool {
	ok := func(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
	return s == "" || ok(s[0]) && ok(s[len(s)-1])
}

// Matches tells whether ls satisfies every requirement.
func (s Selector) Matches(ls Labels) bool {
	for i := range s.reqs {
		if !s.reqs[i].Matches(ls) {
			return false
		}
	}
	return true
}

// Requirements returns the conditions, in canonical order. They must not be modified.
func (s Selector) Requirements() []Requirement { return s.reqs }

// And returns a selector that wants what s wants and reqs too.
func (s Selector) And(reqs ...Requirement) (Selector, error) {
	if len(reqs) != 1 || len(reqs[0].Values) > 1 || reqs[0].Source == SourceAny {
		return NewSelector(append(slices.Clone(s.reqs), reqs...)...)
	}
	r := reqs[0]
	if err := r.check(); err != nil {
		return Selector{}, err
	}
	r.Values = slices.Clone(r.Values)
	text := r.String()
	if s.text == "" {
		return Selector{[]Requirement{r}, text}, nil
	}
	at, from := 0, 0 // of the first condition that comes later
	for rest, more := s.text, true; more; at++ {
		var one string
		if one, rest, more = cutCondition(rest); one == text {
			return s, nil
		} else if one > text {
			break
		}
		from += len(one) + len(",")
	}
	out := make([]Requirement, 0, len(s.reqs)+1)
	out = append(append(append(out, s.reqs[:at]...), r), s.reqs[at:]...)
	if at == len(s.reqs) {
		return Selector{out, s.text + "," + text}, nil
	}
	return Selector{out, s.text[:from] + text + "," + s.text[from:]}, nil
}

// String returns the canonical text: equal for selectors that were written differently but are the same, and readable
// by ParseSelector. Empty for the selector of everything.
func (s Selector) String() string { return s.text }

// ParseSelector reads conditions separated by commas, as kubectl does: key=value, key==value, key!=value,
// key in (a,b), key notin (a,b), key, !key.
func ParseSelector(text string) (Selector, error) {
	var reqs []Requirement
	for rest, more := text, strings.TrimSpace(text) != ""; more; {
		var one string
		one, rest, more = cutCondition(rest)
		r, err := parseCondition(one)
		if err != nil {
			return Selector{}, fmt.Errorf("selector %q: condition %q: %w", text, one, err)
		}
		reqs = append(reqs, r)
	}
	s, err := NewSelector(reqs...)
	if err != nil {
		return Selector{}, fmt.Errorf("selector %q: %w", text, err)
	}
	return s, nil
}

// cutCondition splits at the first comma outside parentheses; more tells whether there was one.
func cutCondition(s string) (one, rest string, more bool) {
	depth := 0
	for i, c := range s {
		switch {
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == ',' && depth == 0:
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func parseCondition(s string) (Requirement, error) {
	s = strings.TrimSpace(s)
	var r Requirement
	key, values := s, ""
	switch {
	case strings.HasPrefix(s, "!"):
		key, r.Operator = s[1:], DoesNotExist
	case strings.HasSuffix(s, ")"):
		head, list, ok := strings.Cut(strings.TrimSuffix(s, ")"), "(")
		words := strings.Fields(head)
		if !ok || len(words) != 2 || strings.ContainsAny(list, "()") {
			return r, fmt.Errorf("write key in (a,b) or key notin (a,b)")
		}
		switch words[1] {
		case "in":
			r.Operator = In
		case "notin":
			r.Operator = NotIn
		default:
			return r, fmt.Errorf("%q is neither in nor notin", words[1])
		}
		key, values = words[0], list
	case strings.Contains(s, "!="):
		key, values, _ = strings.Cut(s, "!=")
		r.Operator = NotIn
	case strings.Contains(s, "="):
		key, values, _ = strings.Cut(s, "=")
		values = strings.TrimPrefix(values, "=")
		r.Operator = In
	default:
		r.Operator = Exists
	}
	var err error
	if r.Source, r.Key, err = ParseSelectorKey(strings.TrimSpace(key)); err != nil {
		return r, err
	}
	if r.Operator == Exists || r.Operator == DoesNotExist {
		return r, nil
	}
	for v := range strings.SplitSeq(values, ",") {
		r.Values = append(r.Values, strings.TrimSpace(v))
	}
	return r, nil
}
