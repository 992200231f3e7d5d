package policy

import (
	"regexp"
	"regexp/syntax"
	"strings"
)

// httpRule reads one element of rules.http.
func (r *reader) httpRule(v value) (h HTTPRule, ok bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return h, false
	}
	for i, to := range []**regexp.Regexp{&h.Path, &h.Method, &h.Host} {
		if s, ok := o.take([]string{"path", "method", "host"}[i]); ok {
			*to = r.regexField(s)
		}
	}
	if l, ok := o.take("headers"); ok {
		h.Headers = append([]HeaderRule(nil), each(r, l, r.headerRule)...) // nil if there is none
	}
	if l, ok := o.take("headerMatches"); ok {
		h.HeaderMatches = append([]HeaderMatch(nil), each(r, l, r.headerMatch)...)
	}
	o.done()
	return h, len(r.errs) == errs
}

// regexField reads a regular expression; empty means any value, as if the field were not there.
func (r *reader) regexField(v value) *regexp.Regexp {
	s, ok := r.text(v)
	if !ok || s == "" {
		return nil
	}
	if len(s) > maxRegex {
		r.fail(v.Node, v.path, "a regular expression of %d bytes; at most %d", len(s), maxRegex)
		return nil
	}
	re, err := r.regexp(v, s)
	if err != nil {
		r.fail(v.Node, v.path, "%.80q is no regular expression: %v", s, err)
	}
	return re
}

// regexp compiles s so that it fits whole values only. nil without an error: it was too large, and that is reported.
func (r *reader) regexp(v value, s string) (*regexp.Regexp, error) {
	tree, err := syntax.Parse(s, syntax.Perl) // alone first: "a)|(b" must not end the group that is put around it
	if err != nil {
		return nil, err
	}
	size := regexSize(tree)
	if r.regex += size; size > maxRegexSize || r.regex > maxRegexSizes {
		r.fail(v.Node, v.path, "%.80q: regular expressions are too large (this one %d instructions of at most %d, all so far in this file %d of at most %d); use smaller repetitions",
			s, size, maxRegexSize, r.regex, maxRegexSizes)
		return nil, nil
	}
	return regexp.Compile("^(?:" + s + ")$")
}

// regexText returns the regular expression as it was written.
func regexText(re *regexp.Regexp) string {
	return strings.TrimSuffix(strings.TrimPrefix(re.String(), "^(?:"), ")$")
}

// regexSize estimates how many instructions a regular expression compiles to, before repetitions are written out.
func regexSize(t *syntax.Regexp) int {
	n := 1 + len(t.Rune)/2 // letters, or pairs that are ranges
	for _, sub := range t.Sub {
		n += 1 + regexSize(sub)
	}
	if t.Op == syntax.OpRepeat {
		n *= max(t.Min, t.Max, 1) // Parse bounds the product of nested ones to 1,000
	}
	return n
}

// headerRule reads "Name", "Name: value" or "Name value".
func (r *reader) headerRule(v value) (h HeaderRule, ok bool) {
	s, ok := r.text(v)
	if !ok {
		return h, false
	}
	if len(s) > maxRegex {
		r.fail(v.Node, v.path, "%d bytes; at most %d", len(s), maxRegex)
		return h, false
	}
	h.Name, h.Value, h.HasValue = strings.Cut(s, " ")
	h.Name = strings.TrimSuffix(h.Name, ":")
	if !isToken(h.Name) {
		r.fail(v.Node, v.path, "%.80q is no name of a header; write \"Name: value\", with a space behind the colon, or \"Name\" alone", h.Name)
		return h, false
	}
	if h.HasValue {
		errs := len(r.errs)
		h.Pattern, _ = r.regexp(v, h.Value) // what is no regular expression is compared literally only
		return h, len(r.errs) == errs
	}
	return h, true
}

// isToken tells whether s can be the name of a header (RFC 9110 5.6.2).
func isToken(s string) bool {
	return s != "" && len(s) <= maxText && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~") == ""
}

// headerMatch reads one element of headerMatches.
func (r *reader) headerMatch(v value) (h HeaderMatch, ok bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return h, false
	}
	if n, ok := o.take("name"); !ok {
		if _, null := o.fields["name"]; !null {
			r.fail(v.Node, v.at("name"), "missing")
		}
	} else if h.Name, ok = r.text(n); ok && !isToken(h.Name) {
		r.fail(n.Node, n.path, "%.80q is no name of a header", h.Name)
	}
	if s, ok := o.take("value"); ok {
		h.Value, _ = r.text(s)
		if len(h.Value) > maxRegex {
			r.fail(s.Node, s.path, "%d bytes; at most %d", len(h.Value), maxRegex)
		}
	}
	if s, ok := o.take("secret"); ok {
		if ref, ok := r.secret(s, &Policy{Ref: Ref{Namespace: "default"}}); ok {
			h.Secret = &ref
		}
	}
	if s, ok := o.take("mismatch"); ok {
		switch h.Mismatch, _ = r.text(s); h.Mismatch {
		case "", "LOG", "ADD", "DELETE", "REPLACE":
		default:
			r.fail(s.Node, s.path, "%.40q is unknown; use LOG, ADD, DELETE or REPLACE, or take it out to deny", h.Mismatch)
		}
	}
	o.done()
	return h, len(r.errs) == errs
}
