package cli

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestColoursOnlyOnATerminal: and there only if nobody said otherwise.
func TestColoursOnlyOnATerminal(t *testing.T) {
	t.Setenv(envSocket, serve(t, &liveAgent{}))
	for _, c := range []struct {
		name, noColor, term string
		terminal            bool
		args                []string
		colours             bool
	}{
		{name: "pipe"},
		{name: "terminal", terminal: true, colours: true},
		{name: "NO_COLOR", terminal: true, noColor: "1"},
		{name: "dumb terminal", terminal: true, term: "dumb"},
		{name: "never", terminal: true, args: []string{"--color", "never"}},
		{name: "always", args: []string{"--color=always"}, noColor: "1", colours: true},
		{name: "json", terminal: true, args: []string{"-o", "json"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("NO_COLOR", c.noColor)
			t.Setenv("TERM", c.term)
			s := &shell{isRoot: func() bool { return true }, interactive: func(any) bool { return c.terminal }}
			var out, errs bytes.Buffer
			code := run(t.Context(), s.root(), append([]string{"policy", "matrix", "--live", "--port", "80"}, c.args...), strings.NewReader(""), &out, &errs)
			if code != 0 || strings.Contains(out.String(), "\x1b[32mallow\x1b[0m") != c.colours || strings.Contains(out.String(), "\x1b") != c.colours {
				t.Errorf("exit %d %s%q", code, errs.String(), out.String())
			}
			if strings.ContainsFunc(out.String(), func(r rune) bool { return r >= markEnd && r < markLast }) {
				t.Errorf("a mark came out: %q", out.String())
			}
		})
	}
	if code, _, errs := call(t.Context(), New(), "", "--color", "pink", "version"); code != exitUsage || !strings.Contains(errs, "write auto, always or never") {
		t.Errorf("exit %d, %s", code, errs)
	}
}

// TestColoursKeepTheColumns: with colours the columns stand where they do without.
func TestColoursKeepTheColumns(t *testing.T) {
	columns, rows := []string{"A", "VERDICT", "C"}, [][]string{{"x", "allow", "1"}, {"long name", "deny", ""}, {"y", "something", "3"}}
	var plain, painted bytes.Buffer
	if err := table(&guard{to: &plain}, columns, rows); err != nil {
		t.Fatal(err)
	}
	if err := paintedTable(&guard{to: &painted, colour: true}, columns, rows, 1); err != nil {
		t.Fatal(err)
	}
	bare := painted.String()
	for m := markEnd; m < markLast; m++ {
		if code(m) != "" {
			bare = strings.ReplaceAll(bare, code(m), "")
		}
	}
	// the marks are of two columns, which the column with colours is wider
	for line := range strings.Lines(plain.String()) {
		if f := strings.Fields(line); !strings.Contains(bare, strings.Join(f[len(f)-2:len(f)-1], " ")) {
			t.Errorf("%q is not in %q", line, bare)
		}
	}
	at := map[int]bool{}
	for line := range strings.Lines(bare) {
		at[strings.LastIndexAny(strings.TrimRight(line, "\n"), " ")] = true
	}
	if len(at) != 1 {
		t.Errorf("the last column is crooked:\n%s", bare)
	}
}

// TestHostileTextHasNoColour: text that others chose cannot hold a mark.
func TestHostileTextHasNoColour(t *testing.T) {
	var out bytes.Buffer
	g := &guard{to: &out, colour: true}
	if err := paintedTable(g, []string{"A"}, [][]string{{string(rune(markStop)) + "x\x1b[31m"}}, 0); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "\x1b[31m") {
		t.Errorf("%q", out.String())
	}
}

// TestEveryLeafSpeaksPlainText: every command of the tree has an example of itself, explains itself, and whatever it
// answers, wrong arguments and no agent included, has no escape byte where nobody sits in front.
func TestEveryLeafSpeaksPlainText(t *testing.T) {
	t.Setenv(envSocket, serve(t, &liveAgent{}))
	t.Chdir(t.TempDir())
	if err := os.WriteFile(filepath.Join(".", "policy.yaml"), []byte("\x1b[31m"), 0o600); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, c := range commands(New()) {
		if !c.HasSubCommands() {
			seen++
			if !strings.Contains(c.Example, c.CommandPath()) {
				t.Errorf("%s: its example does not show it: %q", c.CommandPath(), c.Example)
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s: not explained", c.CommandPath(), f.Name)
			}
		})
		path := strings.Fields(c.CommandPath())[1:]
		for _, more := range [][]string{{"--help"}, {"--no-such-\x1b[31mflag"}, {"\x1b[31m", "b", "c", "d", "e"}} {
			text := printed(t, New(), append(path, more...))
			if strings.Contains(text, "\x1b") || text == "" {
				t.Errorf("%v %q: %q", path, more, text)
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d commands: is the walk right?", seen)
	}
}

// printed is what a command prints, on both streams.
func printed(t *testing.T, root *cobra.Command, args []string) string {
	t.Helper()
	var all bytes.Buffer
	run(t.Context(), root, args, strings.NewReader(""), &all, io.Writer(&all))
	return all.String()
}
