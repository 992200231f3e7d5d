package advise

import (
	"cmp"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"porin/internal/labels"
	"porin/internal/policy"
)

// named returns the addresses of outside hosts that policies mean by a name, except those that are blocks already: each
// is somebody of its own, as it is once a DNS proxy has seen the answer with the address.
func (w *World) named(blocks []netip.Prefix) (out []netip.Prefix) {
	for _, e := range w.Ends {
		for _, a := range e.Addrs {
			p := netip.PrefixFrom(a, a.BitLen())
			if len(e.Names) > 0 && len(w.nameLabels(a)) > 0 && !slices.Contains(blocks, p) && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// nameLabels says which names and patterns of the policies mean an address.
func (w *World) nameLabels(a netip.Addr) (out []labels.Label) {
	for _, f := range w.names {
		for _, e := range w.Ends {
			if slices.Contains(e.Addrs, a) && slices.ContainsFunc(e.Names, func(name string) bool { return meansName(f, name) }) {
				out = append(out, labels.Label{Source: labels.SourceFQDN, Key: cmp.Or(f.Name, f.Pattern)})
				break
			}
		}
	}
	return out
}

// meansName tells whether a rule's name or pattern means a DNS name. "**." stands for one label or more, "*" alone for
// every name, any other "*" for part of one label.
func meansName(f policy.FQDN, name string) bool {
	if f.Pattern == "" {
		return f.Name == name
	}
	if f.Pattern == "*" || f.Pattern == "*." {
		return true
	}
	var b strings.Builder
	rest := f.Pattern
	if after, ok := strings.CutPrefix(rest, "**."); ok {
		b.WriteString(`([-a-z0-9_]+\.)+`)
		rest = after
	}
	for i, part := range strings.Split(rest, "*") {
		if i > 0 {
			b.WriteString(`[-a-z0-9_]*`)
		}
		b.WriteString(regexp.QuoteMeta(part))
	}
	fits, err := regexp.MatchString("^"+b.String()+"$", name)
	return err == nil && fits
}

// dnsName writes a name as policies have it.
func dnsName(s string) string { return strings.TrimSuffix(strings.ToLower(s), ".") + "." }
