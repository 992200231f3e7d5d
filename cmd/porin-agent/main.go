// Command porin-agent runs porin on a node: it keeps the kernel's maps equal to what endpoints, identities and
// policies say, and serves the local API.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"porin/internal/agent"
	"porin/internal/kvstore"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) > 0 && args[0] == agent.StoreCommand { // the agent calls itself; see kvstore.Process
		cfg, err := kvstore.ParseServer(args[1:])
		if err == nil {
			err = kvstore.Serve(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)).With("subsystem", "store"), cfg)
		}
		return exit(err)
	}
	if len(args) == 1 && (args[0] == "version" || args[0] == "--version") {
		fmt.Println(agent.Version)
		return 0
	}
	cfg, err := agent.Load(args, os.Environ(), os.Stdout)
	switch {
	case errors.Is(err, agent.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "porin-agent: settings:", err)
		return 2
	case os.Geteuid() != 0:
		fmt.Fprintln(os.Stderr, "porin-agent: needs root: run with sudo")
		return 1
	}
	return exit(agent.Run(ctx, cfg))
}

func exit(err error) int {
	if err == nil || errors.Is(err, context.Canceled) {
		return 0
	}
	fmt.Fprintln(os.Stderr, "porin-agent:", err)
	return 1
}
