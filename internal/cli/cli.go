// Package cli assembles the porin command: what people type into what the agent is asked, and its answers into text.
// It reads arguments, manifests and the agent's socket and writes to its output and error streams, with every character
// escaped that could command a terminal. It never decides anything about policy; it asks the agent, or without one the
// same engine, so that they cannot differ.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"porin/internal/datapath"
	"porin/internal/flow"
	"porin/internal/lab"
)

// Version is set by the linker.
var Version = "unknown"

// Exit codes, documented in the long help of the root command.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitNotYet      = 4
)

const (
	defaultRunDir = "/run/porin"
	envSocket     = "PORIN_SOCKET"
	envRunDir     = "PORIN_RUN_DIR"
)

// coded is an error with an exit code of its own. Package lab's errors have one too.
type coded struct {
	error
	code int
}

func (c coded) ExitCode() int { return c.code }
func (c coded) Unwrap() error { return c.error }

// usage makes an error about how a command was called.
func usage(format string, args ...any) error {
	return coded{fmt.Errorf(format, args...), exitUsage}
}

// Run runs the command that args name and returns the exit code.
func Run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	return run(ctx, New(), args, in, out, errs)
}

func run(ctx context.Context, root *cobra.Command, args []string, in io.Reader, out, errs io.Writer) int {
	safeOut, safeErr := &guard{to: out}, &guard{to: errs}
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(safeOut)
	root.SetErr(safeErr)
	cmd, err := root.ExecuteContextC(ctx)
	flushErr := errors.Join(safeOut.Flush(), safeErr.Flush())
	if err == nil {
		err = flushErr
	}
	if err == nil {
		return 0
	}
	code := exitFailed
	var c interface{ ExitCode() int }
	if errors.As(err, &c) {
		code = c.ExitCode()
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(safeErr, "%s: %s\n", cmd.CommandPath(), lines(text))
		if errors.As(err, &coded{}) && code == exitUsage { // a lab's codes mean something else
			fmt.Fprintf(safeErr, "see '%s --help'\n", cmd.CommandPath())
		}
		_ = safeErr.Flush()
	}
	return code
}

// lines escapes a text that may have several lines, as an error about several documents has.
func lines(text string) string {
	parts := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := range parts {
		parts[i] = flow.Escape(strings.ReplaceAll(parts[i], "\t", "  "))
	}
	return strings.Join(parts, "\n")
}

// shell is what the commands share.
type shell struct {
	socket      string
	colour      string // --color
	isRoot      func() bool
	clean       func(bpfRoot string) error // removes what the datapath made
	interactive func(stream any) bool      // somebody sits in front of it
}

// New returns the tree of commands.
func New() *cobra.Command {
	s := &shell{isRoot: func() bool { return os.Geteuid() == 0 }, clean: datapath.Clean, interactive: isTerminal}
	return s.root()
}

func (s *shell) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "porin",
		Short: "Look at and command the porin agent of this node",
		Long: `porin asks the porin agent of this node through its socket, which only root can open.

Exit codes:
  0  done
  1  asked, and refused or failed
  2  wrong flags or arguments: nothing was asked
  3  the agent cannot be reached: it does not run, or you are not root
  4  not yet: 'status' of a node that is not healthy, a wait that ended at its timeout

Commands of 'porin lab' have their own meaning for 1 and 2, see there.

Environment:
  PORIN_SOCKET   the agent's socket, as --socket
  PORIN_RUN_DIR  the folder that has agent.sock, as the agent's --run-dir`,
		Example: `  sudo porin status
  sudo porin policy apply -f policy.yaml
  sudo porin monitor --type drop`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              noSuchCommand,
		RunE:              help,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return s.setColours(cmd) },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return coded{err, exitUsage} })
	root.PersistentFlags().StringVar(&s.socket, "socket", "", "the agent's socket (default "+defaultSocket()+")")
	root.PersistentFlags().StringVar(&s.colour, "color", "auto", "colours: auto (on a terminal, unless NO_COLOR is set), always, never")
	root.AddCommand(
		s.statusCommand(), s.endpointCommand(), s.identityCommand(), s.policyCommand(), s.ipCommand(), s.nodeCommand(), s.healthCommand(),
		s.configCommand(), s.metricsCommand(), s.bpfCommand(), s.monitorCommand(), s.dbCommand(), s.kvstoreCommand(), s.cleanupCommand(),
		completionCommand(), s.versionCommand(), labCommand(),
	)
	refuse(root)
	return root
}

func labCommand() *cobra.Command {
	c := lab.Command()
	c.Example = "  sudo porin lab run examples/starwars/lab.yaml"
	return c
}

// refuse makes wrong arguments of every command below c an error of usage, whoever checks them.
func refuse(c *cobra.Command) {
	for _, sub := range c.Commands() {
		refuse(sub)
	}
	check := c.Args
	if check == nil {
		return
	}
	c.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if _, ok := errors.AsType[coded](err); err == nil || ok {
			return err
		}
		return coded{err, exitUsage}
	}
}

func defaultSocket() string {
	if p := os.Getenv(envSocket); p != "" {
		return p
	}
	dir := os.Getenv(envRunDir)
	if dir == "" {
		dir = defaultRunDir
	}
	return filepath.Join(dir, "agent.sock")
}

// group makes a command that only holds others.
func group(use, short, example string, sub ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Example: example, Args: noSuchCommand, RunE: help}
	c.AddCommand(sub...)
	return c
}

func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return usage("no such command: %q; did you mean %q?", args[0], near[0])
	}
	return usage("no such command: %q", args[0])
}

// exactly wants these arguments, named as in the command's Use.
func exactly(names ...string) cobra.PositionalArgs {
	return between(len(names), len(names), names...)
}

func between(least, most int, names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < least {
			return usage("%s is missing", names[len(args)])
		}
		if most >= 0 && len(args) > most {
			return usage("unexpected argument %q", args[most])
		}
		return nil
	}
}
