package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// running opens the lab that the flags mean and runs do on it.
func running(f *flags, do func(ctx context.Context, cmd *cobra.Command, l *Lab, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, stop := interruptible(cmd)
		defer stop()
		l, err := Open(f.lab, f.options(cmd))
		if err != nil {
			return broken(err)
		}
		return broken(do(ctx, cmd, l, args))
	}
}

// parent makes a command that only has commands below it.
func parent(use, short, long, example string, sub ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				var names []string
				for _, s := range sub {
					names = append(names, s.Name())
				}
				return broken(fmt.Errorf("lab %s: no such command: %q%s", use, args[0], suggest(args[0], names)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(sub...)
	return cmd
}

func faultCommand(f *flags) *cobra.Command {
	var between bool
	verb := func(use, short, example string, args cobra.PositionalArgs, do func(context.Context, *Lab, []string) error) *cobra.Command {
		cmd := &cobra.Command{
			Use: use, Short: short, Example: example, Args: args,
			RunE: running(f, func(ctx context.Context, cmd *cobra.Command, l *Lab, args []string) error {
				t0 := time.Now()
				if err := do(ctx, l, args); err != nil {
					return err
				}
				l.tell.done(t0, "%s %s", cmd.Name(), strings.Join(args, " "))
				return nil
			}),
		}
		labFlag(cmd, f)
		cmd.Flags().BoolVar(&between, "between", false, "only what passes between the two places that are named")
		return cmd
	}
	list := &cobra.Command{
		Use: "list", Short: "List what is wrong with which cable", Example: "  sudo porin lab fault list", Args: cobra.NoArgs,
		RunE: running(f, func(_ context.Context, cmd *cobra.Command, l *Lab, _ []string) error {
			return l.printFaults(cmd.OutOrStdout(), f.output)
		}),
	}
	labFlag(list, f)
	outputFlag(list, f)
	return parent("fault", "Break the cables of a running lab and mend them",
		`Breaks the cables that join nodes, the store and outside hosts. Devices stay up and routes stay: what is lost is lost
without a word, as behind a switch. With --between only what passes between two places suffers. A new fault takes the
place of what was wrong between the same two. The lab's own store is called store.`,
		"  sudo porin lab fault cut node2\n  sudo porin lab fault cut --between node2 store\n  sudo porin lab fault heal",
		verb("cut PLACE...", "Let nothing pass", "  sudo porin lab fault cut node2\n  sudo porin lab fault cut --between node1 node2", wants(-1, "PLACE"),
			func(ctx context.Context, l *Lab, args []string) error { return l.Cut(ctx, between, args...) }),
		verb("heal [PLACE...]", "Mend cables; without a place, all of them", "  sudo porin lab fault heal\n  sudo porin lab fault heal node2", wants(-1),
			func(ctx context.Context, l *Lab, args []string) error { return l.Heal(ctx, between, args...) }),
		verb("loss PERCENT PLACE...", "Lose a share of the frames, each way", "  sudo porin lab fault loss 5 node2", wants(-1, "PERCENT", "PLACE"),
			func(ctx context.Context, l *Lab, args []string) error {
				percent, err := strconv.ParseFloat(strings.TrimSuffix(args[0], "%"), 64)
				if err != nil {
					return fmt.Errorf("loss %q: a percentage is wanted, such as 5", args[0])
				}
				return l.Lose(ctx, percent/100, between, args[1:]...)
			}),
		verb("delay TIME PLACE...", "Make every frame take longer, each way", "  sudo porin lab fault delay 50ms --between node1 node2", wants(-1, "TIME", "PLACE"),
			func(ctx context.Context, l *Lab, args []string) error {
				d, err := time.ParseDuration(args[0])
				if err != nil {
					return fmt.Errorf("delay %q: a time is wanted, such as 50ms", args[0])
				}
				return l.Delay(ctx, d, between, args[1:]...)
			}),
		list,
	)
}

func (l *Lab) printFaults(w io.Writer, format string) error {
	if err := checkFormat(format); err != nil {
		return err
	}
	type item struct {
		Place string `json:"place"`
		fault
	}
	items := []item{}
	table := [][]string{{"PLACE", "FAULT"}}
	for _, p := range l.cabled() {
		for _, f := range p.Faults {
			items = append(items, item{p.Name, f})
			table = append(table, []string{p.Name, f.String()})
		}
	}
	if format == asJSON {
		return printJSON(w, items)
	}
	return printTable(w, table)
}

func nodeCommand(f *flags) *cobra.Command {
	var noWait bool
	verb := func(name, short string, do func(context.Context, *Lab, string) error) *cobra.Command {
		cmd := &cobra.Command{
			Use: name + " NODE...", Short: short, Example: "  sudo porin lab node " + name + " node2", Args: wants(-1, "NODE"),
			RunE: running(f, func(ctx context.Context, _ *cobra.Command, l *Lab, args []string) error {
				var errs []error
				for _, n := range args {
					t0 := time.Now()
					if err := do(ctx, l, n); err != nil {
						errs = append(errs, err)
						continue
					}
					l.tell.done(t0, "%s: %s done", n, name)
				}
				return errors.Join(errs...)
			}),
		}
		labFlag(cmd, f)
		return cmd
	}
	start := verb("start", "Start the agent of nodes and wait until it is healthy",
		func(ctx context.Context, l *Lab, n string) error { return l.StartNode(ctx, n, !noWait) })
	restart := verb("restart", "Stop the agent of nodes and start it again",
		func(ctx context.Context, l *Lab, n string) error {
			return errors.Join(l.StopNode(ctx, n, false), l.StartNode(ctx, n, !noWait))
		})
	for _, cmd := range []*cobra.Command{start, restart} {
		cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until the agent is healthy")
	}
	return parent("node", "Kill, stop and start the agents of a running lab",
		`Ends and starts porin-agent on a node. Its workloads, its kernel state and its files stay, as on a machine where only
the agent dies: traffic and policy go on.`,
		"  sudo porin lab node kill node2\n  sudo porin lab node start node2",
		verb("kill", "End the agent of nodes at once (SIGKILL)", func(ctx context.Context, l *Lab, n string) error { return l.StopNode(ctx, n, true) }),
		verb("stop", "Ask the agent of nodes to end, and wait", func(ctx context.Context, l *Lab, n string) error { return l.StopNode(ctx, n, false) }),
		start, restart)
}

func storeCommand(f *flags) *cobra.Command {
	verb := func(use, short, example string, args cobra.PositionalArgs, do func(context.Context, *Lab, []string) error) *cobra.Command {
		cmd := &cobra.Command{
			Use: use, Short: short, Example: example, Args: args,
			RunE: running(f, func(ctx context.Context, cmd *cobra.Command, l *Lab, args []string) error {
				t0 := time.Now()
				if err := do(ctx, l, args); err != nil {
					return err
				}
				state, err := l.storeState()
				if err != nil {
					return err
				}
				l.tell.done(t0, "store %s: it is %s", strings.Join(append([]string{cmd.Name()}, args...), " "), state)
				return nil
			}),
		}
		labFlag(cmd, f)
		return cmd
	}
	status := &cobra.Command{
		Use: "status", Short: "Say how the store is", Example: "  sudo porin lab store status", Args: cobra.NoArgs,
		RunE: running(f, func(_ context.Context, cmd *cobra.Command, l *Lab, _ []string) error {
			state, err := l.storeState()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), state)
			return err
		}),
	}
	labFlag(status, f)
	return parent("store", "Kill, start, wipe and slow down the store of a running lab",
		`A lab of several nodes has an etcd of its own, on a place called store, unless the file names another one.`,
		"  sudo porin lab store kill\n  sudo porin lab store start\n  sudo porin lab store slow 5s",
		verb("kill", "End the store at once (SIGKILL)", "  sudo porin lab store kill", wants(0),
			func(ctx context.Context, l *Lab, _ []string) error { return l.KillStore(ctx) }),
		verb("start", "Start the store with what it knew", "  sudo porin lab store start", wants(0),
			func(ctx context.Context, l *Lab, _ []string) error { return l.StartStore(ctx) }),
		verb("wipe", "Kill the store, delete what it knew, start it empty", "  sudo porin lab store wipe", wants(0),
			func(ctx context.Context, l *Lab, _ []string) error { return l.WipeStore(ctx) }),
		verb("slow TIME", "Make every write take so long; 0 makes it fast again", "  sudo porin lab store slow 5s\n  sudo porin lab store slow 0", wants(1, "TIME"),
			func(_ context.Context, l *Lab, args []string) error {
				d, err := time.ParseDuration(args[0])
				if err != nil {
					return fmt.Errorf("slow %q: a time is wanted, such as 5s", args[0])
				}
				return l.SlowStore(d)
			}),
		status)
}
