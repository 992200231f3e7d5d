// Package labels defines what workloads are called: labels, sets of them, selectors over them.
// It reads and writes nothing outside its arguments. It never decides who may talk to whom.
package labels

import (
	"fmt"
	"slices"
	"strings"
)

// Sources of labels. A selector without a source means any source.
const (
	SourceK8s       = "k8s"
	SourceContainer = "container"
	SourceMesos     = "mesos"
	SourceCIDR      = "cidr"
	SourceReserved  = "reserved"
	SourceUnspec    = "unspec"
	SourceAny       = "any"
	SourceCNI       = "cni"
	SourceGen       = "gen"
	SourceFQDN      = "fqdn"
	SourceNode      = "node"
	SourceCIDRGroup = "cidrgroup"
)

// Label keys that porin itself gives to workloads (source k8s), as users of the field know them.
const (
	KeyNamespace       = "io.kubernetes.pod.namespace"
	KeyNamespaceLabels = "io.cilium.k8s.namespace.labels." // prefix, followed by the namespace's label key
	KeyServiceAccount  = "io.cilium.k8s.policy.serviceaccount"
	KeyCluster         = "io.cilium.k8s.policy.cluster"
)

// Label is source:key=value.
type Label struct {
	Source string `json:"source"`
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
}

// String returns source:key=value; without "=" when the value is empty.
func (l Label) String() string {
	s := l.Source + ":" + l.Key
	if l.Value != "" {
		s += "=" + l.Value
	}
	return s
}

// Parse reads source:key=value; a missing source becomes unspec. It fails on an empty key and on control
// characters, which must never reach logs or terminals.
func Parse(s string) (Label, error) {
	l := Label{Source: SourceUnspec}
	rest := s
	// a ':' counts as the end of the source only before the first '=' and before any '/'
	if i := strings.IndexAny(rest, ":=/"); i >= 0 && rest[i] == ':' {
		if i > 0 {
			l.Source = rest[:i]
		}
		rest = rest[i+1:]
	}
	l.Key, l.Value, _ = strings.Cut(rest, "=")
	if l.Key == "" {
		return Label{}, fmt.Errorf("label %q: the key is empty; write source:key=value", s)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return Label{}, fmt.Errorf("label %q: control characters are not allowed", s)
	}
	return l, nil
}

// Compare orders labels by source, key, value.
func Compare(a, b Label) int {
	if c := strings.Compare(a.Source, b.Source); c != 0 {
		return c
	}
	if c := strings.Compare(a.Key, b.Key); c != 0 {
		return c
	}
	return strings.Compare(a.Value, b.Value)
}

// Labels is a set, sorted by Compare, at most one value per source and key. Never modified once made.
type Labels []Label

// New returns the set of ls. Of two with the same source and key the later one stays.
func New(ls ...Label) Labels {
	m := make(map[[2]string]Label, len(ls))
	for _, l := range ls {
		m[[2]string{l.Source, l.Key}] = l
	}
	out := make(Labels, 0, len(m))
	for _, l := range m {
		out = append(out, l)
	}
	slices.SortFunc(out, Compare)
	return out
}

// ParseAll is New over Parse.
func ParseAll(ss ...string) (Labels, error) {
	ls := make([]Label, 0, len(ss))
	for _, s := range ss {
		l, err := Parse(s)
		if err != nil {
			return nil, err
		}
		ls = append(ls, l)
	}
	return New(ls...), nil
}

// Key is the canonical text of the set, "source:key=value;" for each in order: the same text for the same set
// everywhere, and the form that the key-value store holds. Separators inside a part are escaped (see key.go), so two
// different sets never have the same text.
func (ls Labels) Key() string {
	var b strings.Builder
	for _, l := range ls {
		b.WriteString(escape(l.Source, inSource))
		b.WriteByte(':')
		b.WriteString(escape(l.Key, inKey))
		b.WriteByte('=')
		b.WriteString(escape(l.Value, inValue))
		b.WriteByte(';')
	}
	return b.String()
}

// Strings returns each label's String.
func (ls Labels) Strings() []string {
	out := make([]string, len(ls))
	for i, l := range ls {
		out[i] = l.String()
	}
	return out
}

func (ls Labels) String() string { return strings.Join(ls.Strings(), ",") }

// Get returns the value of key under source; source "any" or "" takes the first source that has the key.
func (ls Labels) Get(source, key string) (string, bool) {
	for _, l := range ls {
		if l.Key == key && (source == "" || source == SourceAny || l.Source == source) {
			return l.Value, true
		}
	}
	return "", false
}

// Has tells whether the set holds l.
func (ls Labels) Has(l Label) bool {
	v, ok := ls.Get(l.Source, l.Key)
	return ok && v == l.Value
}
