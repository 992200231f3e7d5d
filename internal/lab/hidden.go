package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"porin/internal/lab/gate"
	"porin/internal/lab/relay"
	"porin/internal/lab/serve"
	"porin/internal/lab/space"
)

// The commands here are those that the lab starts itself: what holds a node, serves, relays.

func pauseCommand() *cobra.Command {
	var hostname, hosts string
	cmd := &cobra.Command{
		Use:    "pause DIR...",
		Short:  "Hold a node's namespaces (started by the lab itself)",
		Hidden: true,
		RunE: func(_ *cobra.Command, args []string) error {
			// refuse to mount over the machine's own directories when called by hand
			if os.Getppid() != 0 && sameMounts() {
				return errors.New("lab pause is started by the lab itself, in a mount namespace of its own")
			}
			return space.Pause(hostname, hosts, args)
		},
	}
	cmd.Flags().StringVar(&hostname, "hostname", "", "host name")
	cmd.Flags().StringVar(&hosts, "hosts", "", "file to use as /etc/hosts")
	return cmd
}

// sameMounts tells whether this process shares its mounts with its parent.
func sameMounts() bool {
	mine, err1 := os.Readlink("/proc/self/ns/mnt")
	parent, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", os.Getppid()))
	return err1 == nil && err2 == nil && mine == parent
}

func serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "serve CONFIG",
		Short:  "Run built-in servers (started by the lab itself)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var cfg serve.Config
			if err := json.Unmarshal([]byte(args[0]), &cfg); err != nil {
				return fmt.Errorf("read the servers' configuration: %w", err)
			}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			defer stop()
			return serve.Run(ctx, cfg, announce)
		},
	}
}

// announce tells the lab that a process of its own is ready.
func announce() error {
	if _, err := os.Stdout.WriteString("ready\n"); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	return os.Stdout.Close()
}

func gateCommand() *cobra.Command {
	return configured("gate", "Be the door of the lab's store (started by the lab itself)", gate.Run)
}

func relayCommand() *cobra.Command {
	return configured("relay", "Be a slow cable (started by the lab itself)", relay.Run)
}

// configured makes a hidden command that runs until it is told to end, as its one argument says.
func configured[C any](use, short string, run func(context.Context, C, func() error) error) *cobra.Command {
	return &cobra.Command{
		Use:    use + " CONFIG",
		Short:  short,
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var cfg C
			if err := json.Unmarshal([]byte(args[0]), &cfg); err != nil {
				return fmt.Errorf("read the configuration: %w", err)
			}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			defer stop()
			if err := run(ctx, cfg, announce); err != nil && !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		},
	}
}
