package labels

import (
	"fmt"
	"strconv"
	"strings"
)

// The bytes that end each part of a label in the text of Key, and '%' itself. They are written as %XX: container
// labels may hold any text, and without this {a: "1;k8s:role=admin"} would read like two labels, one of them stolen.
const (
	inSource = "%:=;/" // '/' too: a store path goes on after the last label
	inKey    = "%=;"
	inValue  = "%;"
)

func escape(s, special string) string {
	if !strings.ContainsAny(s, special) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(special, s[i]) >= 0 {
			fmt.Fprintf(&b, "%%%02X", s[i])
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func unescape(s string) (string, error) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", fmt.Errorf("%q ends within an escape", s)
		}
		n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", fmt.Errorf("%q: bad escape %q", s, s[i:i+3])
		}
		b.WriteByte(byte(n))
		i += 2
	}
	return b.String(), nil
}

// ParseKey reads what Key wrote. It refuses text that Key cannot have written, so that one set never comes in under two
// texts.
func ParseKey(text string) (Labels, error) {
	var ls []Label
	for rest := text; rest != ""; {
		one, after, ok := strings.Cut(rest, ";")
		if !ok {
			return nil, fmt.Errorf("label set %q: the last label does not end in ';'", text)
		}
		rest = after
		source, one, _ := strings.Cut(one, ":")
		key, value, _ := strings.Cut(one, "=")
		var l Label
		for _, part := range []struct {
			to   *string
			text string
		}{{&l.Source, source}, {&l.Key, key}, {&l.Value, value}} {
			s, err := unescape(part.text)
			if err != nil {
				return nil, fmt.Errorf("label set %q: %w", text, err)
			}
			*part.to = s
		}
		if strings.ContainsFunc(l.Source+l.Key+l.Value, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			return nil, fmt.Errorf("label set %q: control characters are not allowed", text)
		}
		ls = append(ls, l)
	}
	set := New(ls...)
	if set.Key() != text {
		return nil, fmt.Errorf("label set %q: not in canonical form, which is %q", text, set.Key())
	}
	return set, nil
}
