// Command porin-operator does what a cluster needs done once: it gives nodes their ranges of addresses and collects
// identities that nobody uses. Several may run; one of them leads.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"porin/internal/operator"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) == 1 && (args[0] == "version" || args[0] == "--version") {
		fmt.Println(operator.Version)
		return 0
	}
	cfg, err := operator.Load(args, os.Environ(), os.Stdout)
	switch {
	case errors.Is(err, operator.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "porin-operator: settings:", err)
		return 2
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	log.Info("operator starts", "version", operator.Version, "name", cfg.Name, "cluster", cfg.Cluster)
	if err := operator.New(log, cfg).Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "porin-operator:", err)
		return 1
	}
	return 0
}
