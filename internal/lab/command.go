package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"porin/internal/lab/load"
	"porin/internal/lab/space"
)

// ExitError ends the program with a code of its own. Its text is empty when everything has been said already.
type ExitError struct {
	Code int
	Text string
}

func (e *ExitError) Error() string { return e.Text }

// ExitCode is the code to end the program with.
func (e *ExitError) ExitCode() int { return e.Code }

// Exit codes of lab run, check and matrix.
const (
	exitDiffers = 1 // a check did not hold
	exitBroken  = 2 // the lab could not be built, or the checks could not be run
)

func broken(err error) error {
	if err == nil {
		return nil
	}
	if ee, ok := errors.AsType[*ExitError](err); ok {
		return ee
	}
	return &ExitError{Code: exitBroken, Text: err.Error()}
}

// differs says that the checks ran and did not all hold; the table has told which.
func differs(ok bool) error {
	if ok {
		return nil
	}
	return &ExitError{Code: exitDiffers}
}

// flags that several commands share.
type flags struct {
	lab    string
	binDir string
	output string
	keep   bool
}

func (f *flags) options(cmd *cobra.Command) Options {
	return Options{BinDir: f.binDir, Stderr: cmd.ErrOrStderr()}
}

// Command returns `porin lab` with everything below it.
func Command() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Build a cluster on this machine from one file, try who may talk to whom, take it down",
		Long: `A lab is a cluster in network namespaces of this machine: nodes with their own agents, workloads attached by the
real CNI plugin, hosts outside, and checks. It needs root, touches nothing of the machine's own, and leaves nothing
behind. The file format is in docs/LAB.md.

Exit codes: 0 all as expected, 1 a check did not hold, 2 the lab could not be built.`,
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE:         func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&f.binDir, "bin-dir", "", "folder of porin-agent and porin-cni (default: beside this program)")
	cmd.AddCommand(
		runCommand(&f), upCommand(&f), downCommand(), execCommand(&f), editCommand(&f, "apply"), editCommand(&f, "delete"),
		checkCommand(&f), matrixCommand(&f), listCommand(&f), faultCommand(&f), nodeCommand(&f), storeCommand(&f),
		pauseCommand(), serveCommand(), gateCommand(), relayCommand(), load.Command(),
	)
	return cmd
}

func outputFlag(cmd *cobra.Command, f *flags) {
	cmd.Flags().StringVarP(&f.output, "output", "o", asTable, "how to print: table or json")
}

func labFlag(cmd *cobra.Command, f *flags) {
	cmd.Flags().StringVar(&f.lab, "lab", "", "name of the lab (default: the only one that runs)")
}

// interruptible returns a context that a signal ends, so that a lab is taken down when its user loses patience.
func interruptible(cmd *cobra.Command) (context.Context, func()) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	return signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
}

// wants asks for the arguments that names name, and for at most most; -1 is any number.
func wants(most int, names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return broken(fmt.Errorf("%s is missing", names[len(args)]))
		}
		if most >= 0 && len(args) > most {
			return broken(fmt.Errorf("unexpected argument %q", args[most]))
		}
		return nil
	}
}

func runCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "run FILE",
		Short:   "Bring a lab up, run its checks, print a table, take it down",
		Example: "  sudo porin lab run examples/starwars/lab.yaml",
		Args:    wants(1, "FILE"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := checkFormat(f.output); err != nil {
				return broken(err)
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			spec, err := Load(args[0])
			if err != nil {
				return broken(err)
			}
			l, err := Up(ctx, spec, f.options(cmd), f.keep)
			if err != nil {
				return broken(err)
			}
			// also when a check panics: the deferred call runs while the panic unwinds
			defer func() {
				if f.keep {
					fmt.Fprintf(cmd.ErrOrStderr(), "kept: 'porin lab down %s' removes it\n", spec.Name)
					return
				}
				t0 := time.Now()
				if downErr := Down(context.WithoutCancel(ctx), spec.Name); downErr != nil {
					err = broken(errors.Join(err, downErr))
					return
				}
				l.tell.done(t0, "lab %s taken down", spec.Name)
			}()
			return l.checkAndPrint(ctx, cmd, f.output, spec.Checks)
		},
	}
	outputFlag(cmd, f)
	cmd.Flags().BoolVar(&f.keep, "keep", false, "leave the lab up afterwards, also when it fails")
	return cmd
}

func (l *Lab) checkAndPrint(ctx context.Context, cmd *cobra.Command, format string, checks []check) error {
	t0 := time.Now()
	rows, err := l.Check(ctx, checks)
	if err != nil {
		l.printLogs(cmd.ErrOrStderr())
		return broken(err)
	}
	l.tell.done(t0, "%d checks made", len(rows))
	if !allOK(rows) {
		l.printLogs(cmd.ErrOrStderr())
	}
	if err := printRows(cmd.OutOrStdout(), format, l.state.Name, rows); err != nil {
		return broken(err)
	}
	return differs(allOK(rows))
}

func upCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "up FILE",
		Short:   "Bring a lab up and leave it running",
		Example: "  sudo porin lab up examples/starwars/lab.yaml\n  sudo porin lab exec xwing -- curl http://deathstar/",
		Args:    wants(1, "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd)
			defer stop()
			spec, err := Load(args[0])
			if err != nil {
				return broken(err)
			}
			_, err = Up(ctx, spec, f.options(cmd), f.keep)
			return broken(err)
		},
	}
	cmd.Flags().BoolVar(&f.keep, "keep", false, "when it fails, leave what was built, to look at it")
	return cmd
}

func downCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "down [NAME]",
		Short:   "Remove every namespace, device, pin, cgroup and process of a lab, also of a crashed one",
		Example: "  sudo porin lab down starwars",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := space.RequireRoot("a lab"); err != nil {
				return broken(err)
			}
			t0 := time.Now()
			name, err := pick(strings.Join(args, ""))
			if err != nil {
				return broken(err)
			}
			if err := Down(context.Background(), name); err != nil {
				return broken(err)
			}
			t := &teller{out: cmd.ErrOrStderr()}
			t.done(t0, "lab %s taken down", name)
			return nil
		},
	}
}

func execCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "exec WHERE -- CMD [ARG...]",
		Short:   "Run a command in a workload, an outside host or a node; its exit code is passed on",
		Example: "  sudo porin lab exec node1 -- porin endpoint list\n  sudo porin lab exec xwing -- curl -m 2 http://deathstar/",
		Args:    wants(-1, "WHERE", "CMD"),
		RunE: func(cmd *cobra.Command, args []string) error {
			words := args[1:]
			if words[0] == "--" { // not taken by the flag parser, which stops at WHERE
				words = words[1:]
			}
			if len(words) == 0 {
				return broken(errors.New("CMD is missing: write 'porin lab exec WHERE -- CMD [ARG...]'"))
			}
			l, err := Open(f.lab, f.options(cmd))
			if err != nil {
				return broken(err)
			}
			// The terminal sends its signals to the command itself; we only wait for it. Caught, not ignored: what is
			// ignored stays so in the command.
			signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGQUIT)
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			code, err := l.Exec(ctx, args[0], words)
			if err != nil {
				return broken(err)
			}
			if code != 0 {
				return &ExitError{Code: code}
			}
			return nil
		},
	}
	labFlag(cmd, f)
	cmd.Flags().SetInterspersed(false) // flags after WHERE are the command's
	return cmd
}

func editCommand(f *flags, verb string) *cobra.Command {
	short, do := "Put the objects of a file in force on a running lab", (*Lab).Apply
	if verb == "delete" {
		short, do = "Take the objects of a file away from a running lab", (*Lab).Delete
	}
	cmd := &cobra.Command{
		Use:     verb + " FILE",
		Short:   short,
		Example: "  sudo porin lab " + verb + " policy.yaml\n  sudo porin lab " + verb + " - < policy.yaml",
		Args:    wants(1, "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd)
			defer stop()
			data, err := readManifest(cmd, args[0])
			if err != nil {
				return broken(err)
			}
			l, err := Open(f.lab, f.options(cmd))
			if err != nil {
				return broken(err)
			}
			return broken(do(l, ctx, args[0], data))
		},
	}
	labFlag(cmd, f)
	return cmd
}

func readManifest(cmd *cobra.Command, file string) ([]byte, error) {
	if file == "-" {
		data, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxFile))
		if err != nil {
			return nil, fmt.Errorf("read manifest from standard input: %w", err)
		}
		return data, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return data, nil
}

func checkCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "check [FILE]",
		Short:   "Run the checks of a running lab again, or those of another file",
		Example: "  sudo porin lab check\n  sudo porin lab check --lab starwars more-checks.yaml",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(f.output); err != nil {
				return broken(err)
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			l, err := Open(f.lab, f.options(cmd))
			if err != nil {
				return broken(err)
			}
			checks := l.spec.Checks
			if len(args) == 1 {
				if checks, err = l.checksOf(args[0]); err != nil {
					return broken(err)
				}
			}
			return l.checkAndPrint(ctx, cmd, f.output, checks)
		},
	}
	outputFlag(cmd, f)
	labFlag(cmd, f)
	return cmd
}

// checksOf reads the checks of a file that may be a whole lab file or have nothing but checks.
func (l *Lab) checksOf(file string) ([]check, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read checks: %w", err)
	}
	return parseChecks(file, data, l.spec)
}

func listCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the labs of this machine",
		Example: "  sudo porin lab list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(f.output); err != nil {
				return broken(err)
			}
			return broken(list(cmd.OutOrStdout(), f.output))
		},
	}
	outputFlag(cmd, f)
	return cmd
}

func list(w io.Writer, format string) error {
	if err := space.RequireRoot("a lab"); err != nil {
		return err
	}
	names, err := labNames()
	if err != nil {
		return err
	}
	type item struct {
		Name    string    `json:"name"`
		State   string    `json:"state"`
		File    string    `json:"file"`
		Created time.Time `json:"created,omitzero"`
		Places  []place   `json:"places,omitempty"`
	}
	items := []item{}
	table := [][]string{{"NAME", "STATE", "NODES", "WORKLOADS", "OUTSIDE", "CREATED", "FILE"}}
	for _, n := range names {
		st, err := readState(n)
		it := item{Name: n, State: labState(st, err), File: st.File, Created: st.Created, Places: st.Places}
		items = append(items, it)
		count := map[string]int{}
		for _, p := range st.Places {
			count[p.Kind]++
		}
		table = append(table, []string{
			n, it.State, fmt.Sprint(count[kindNode]), fmt.Sprint(count[kindWorkload]), fmt.Sprint(count[kindOutside]),
			it.Created.Local().Format(time.DateTime), it.File,
		})
	}
	if format == asJSON {
		return printJSON(w, items)
	}
	return printTable(w, table)
}

func labState(st state, err error) string {
	if err != nil {
		return "broken"
	}
	for _, p := range st.Places {
		switch {
		case p.Kind != kindNode:
		case !p.Pause.Alive():
			return "broken"
		case st.Up && p.Agent.PID != 0 && !p.Agent.Alive():
			return "agent of " + p.Name + " has ended"
		}
	}
	if !st.Up {
		return "building"
	}
	return "up"
}
