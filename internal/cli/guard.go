package cli

import (
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"
)

// guard is the last door before the terminal: whatever a command writes, no control character, no character that
// hides or reverses text, no broken UTF-8 passes; only line breaks and tabs do. What is escaped further up is escaped
// in the form that fits there; here is the promise that nothing was forgotten.
type guard struct {
	to     io.Writer
	colour bool   // marks become colours; else they are escaped like any character that nobody can see
	rest   []byte // the beginning of a character that the next write may complete
}

func (g *guard) Write(p []byte) (int, error) {
	b := append(g.rest, p...)
	g.rest = nil
	out := make([]byte, 0, len(b)+len(b)/8)
	for len(b) > 0 {
		if !utf8.FullRune(b) {
			g.rest = append([]byte(nil), b...)
			break
		}
		r, n := utf8.DecodeRune(b)
		switch {
		case g.colour && r >= markEnd && r < markLast:
			out = append(out, code(r)...)
		case r == utf8.RuneError && n <= 1:
			out = fmt.Appendf(out, `\x%02x`, b[0])
		case r == '\n' || r == '\t' || unicode.IsPrint(r):
			out = append(out, b[:n]...)
		case r < 0x10000:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			out = fmt.Appendf(out, `\U%08x`, r)
		}
		b = b[n:]
	}
	if _, err := g.to.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes what is left of a broken last character.
func (g *guard) Flush() error {
	if len(g.rest) == 0 {
		return nil
	}
	var out []byte
	for _, c := range g.rest {
		out = fmt.Appendf(out, `\x%02x`, c)
	}
	g.rest = nil
	_, err := g.to.Write(out)
	return err
}
