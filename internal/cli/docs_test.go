package cli

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const docsFile = "../../docs/CLI.md"

// docs/CLI.md is what the commands say of themselves; go test ./internal/cli -update writes it.
func TestDocs(t *testing.T) {
	t.Setenv(envSocket, "")
	t.Setenv(envRunDir, "")
	got := docs(New())
	if *update {
		if err := os.WriteFile(docsFile, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("docs/CLI.md is not what the commands say; write it with 'go test ./internal/cli -update' (-file +commands):\n%s", diff)
	}
}

func docs(root *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# The porin command\n\n<!-- Written by 'go test ./internal/cli -update' from the commands' own help. -->\n\n%s\n\n", indented(root.Long))
	fmt.Fprintf(&b, "`-o json` and `-o yaml` give every field with the names of `api/agent/v1/agent.proto`; numbers of 64 bits are strings, as protobuf's\nJSON has them. Text that others chose (names, labels, file contents) is escaped: no control character reaches the terminal.\n\n")
	fmt.Fprintf(&b, "```sh\n%s\n```\n\nEvery command takes:\n\n```\n%s```\n\n## Commands\n\n| command | does |\n|---|---|\n", flush(root.Example), flagUsages(root.PersistentFlags()))
	each(root, func(c *cobra.Command) {
		if c.Runnable() && !c.HasSubCommands() || c.Name() == "config" {
			fmt.Fprintf(&b, "| [`%s`](#%s) | %s |\n", c.CommandPath(), strings.ReplaceAll(c.CommandPath(), " ", "-"), strings.ReplaceAll(c.Short, "|", "\\|"))
		}
	})
	each(root, func(c *cobra.Command) {
		if c.HasSubCommands() && c.Name() != "config" {
			return
		}
		short := c.Short
		if !strings.HasSuffix(short, "?") {
			short += "."
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", c.CommandPath(), short)
		if c.Long != "" {
			fmt.Fprintf(&b, "\n%s\n", indented(c.Long))
		}
		fmt.Fprintf(&b, "\n```\n%s\n```\n", c.UseLine())
		if f := flagUsages(c.NonInheritedFlags()); f != "" {
			fmt.Fprintf(&b, "\n```\n%s```\n", f)
		}
		fmt.Fprintf(&b, "\n```sh\n%s\n```\n", flush(c.Example))
	})
	return b.String()
}

// each visits the commands below root in order, parents first.
func each(root *cobra.Command, f func(*cobra.Command)) {
	for _, c := range root.Commands() {
		if c.Name() == "help" || c.Hidden {
			continue
		}
		f(c)
		each(c, f)
	}
}

// flagUsages leaves out --help, which cobra adds only to commands that ran.
func flagUsages(f *pflag.FlagSet) string {
	shown := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.VisitAll(func(x *pflag.Flag) {
		if x.Name != "help" {
			shown.AddFlag(x)
		}
	})
	return shown.FlagUsages()
}

// indented puts the lines of a long help that are tables into code, so that Markdown keeps them.
func indented(long string) string {
	var out []string
	code := false
	for line := range strings.Lines(long) {
		line = strings.TrimRight(line, "\n")
		if table := strings.HasPrefix(line, "  "); table != code {
			out = append(out, "```")
			code = table
		}
		out = append(out, line)
	}
	if code {
		out = append(out, "```")
	}
	return strings.Join(out, "\n")
}

// flush takes the indent of a help text away.
func flush(example string) string {
	return strings.ReplaceAll(strings.TrimPrefix(example, "  "), "\n  ", "\n")
}
