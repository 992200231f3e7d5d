// Command porin is anyone's shell to the porin agent of this node, and the lab.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"porin/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends a command that does not end by itself
	code := cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
