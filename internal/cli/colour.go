package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"porin/internal/flow"
)

// Marks stand for colours on the way to the guard, which alone writes what commands a terminal. They are of a private
// use area: text that others wrote cannot hold one that was not escaped before.
const (
	markEnd  = '\uf8a0' + iota // the usual colour again
	markPass                   // green
	markStop                   // red
	markMind                   // yellow
	markLook                   // cyan
	markNone                   // nothing: it only takes the place of a mark
	markLast
)

// code is what a mark does to a terminal (ECMA-48, select graphic rendition).
func code(mark rune) string {
	return map[rune]string{markEnd: "\x1b[0m", markPass: "\x1b[32m", markStop: "\x1b[31m", markMind: "\x1b[33m", markLook: "\x1b[36m"}[mark]
}

// markOf chooses the colour of a word: verdicts, states and results have one each.
func markOf(word string) rune {
	switch strings.ToLower(word) {
	case "allow", "ok", "ready", "held":
		return markPass
	case "deny", "fail", "failed", "not healthy":
		return markStop
	case "audit", "degraded", "skip", "not-ready":
		return markMind
	case "redirect", "pass":
		return markLook
	}
	return markNone
}

// paint gives a word its colour where the output is to have colours. The word must be escaped already.
func paint(w io.Writer, word string) string {
	if g, ok := w.(*guard); ok && g.colour && markOf(word) != markNone {
		return string(markOf(word)) + word + string(markEnd)
	}
	return word
}

// paintedTable is table with the cells of some columns in colour. Every cell of such a column has marks, the head too, so
// that all are of one width.
func paintedTable(w io.Writer, columns []string, rows [][]string, painted ...int) error {
	g, ok := w.(*guard)
	if !ok || !g.colour {
		return table(w, columns, rows)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(cells []string) {
		out := make([]string, len(cells))
		for i, c := range cells {
			if out[i] = flow.Escape(c); out[i] == "" {
				out[i] = "-"
			}
		}
		for _, i := range painted {
			if i < len(out) {
				out[i] = string(markOf(out[i])) + out[i] + string(markEnd)
			}
		}
		fmt.Fprintln(tw, strings.Join(out, "\t"))
	}
	line(columns)
	for _, r := range rows {
		line(r)
	}
	return tw.Flush()
}

// setColours decides, once the flags are known, whether the output has colours: on a terminal, unless somebody said
// otherwise (NO_COLOR as on no-color.org).
func (s *shell) setColours(cmd *cobra.Command) error {
	g, ok := cmd.OutOrStdout().(*guard)
	switch s.colour {
	case "always":
	case "never":
		ok = false
	case "auto", "":
		ok = ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && s.interactive(g.to)
	default:
		return usage("--color %q: write auto, always or never", s.colour)
	}
	if ok {
		g.colour = true
	}
	return nil
}
