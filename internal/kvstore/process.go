package kvstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Process keeps an embedded server running in a process of its own: the agent's own binary, called with Args. Etcd ends
// its process when a write to disk does not go well; the agent must outlive that and start the server again.
//
//	agent ──fork──▶ server ──dies──▶ wait 0.5 s .. 30 s ──▶ again
//	agent dies ──PR_SET_PDEATHSIG──▶ server dies with it
type Process struct {
	Log  *slog.Logger
	Path string   // binary
	Args []string // that make it call Serve
}

const (
	restartMin  = 500 * time.Millisecond
	restartMax  = 30 * time.Second
	steadyAfter = time.Minute // a server that lived that long starts the waiting anew
	stopTimeout = 10 * time.Second
)

// Run starts the server, again whenever it dies, and stops it when ctx ends.
func (p *Process) Run(ctx context.Context) error {
	wait := restartMin
	for {
		began := time.Now()
		err := p.once(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(began) > steadyAfter {
			wait = restartMin
		}
		p.Log.Error("embedded store died", "err", err, "again-in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		wait = min(2*wait, restartMax)
	}
}

// once runs one server process to its end. The kernel sends the parent-death signal when the thread that forked ends,
// so that thread is kept until the child is gone.
func (p *Process) once(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.CommandContext(ctx, p.Path, p.Args...)
		cmd.Stderr = os.Stderr
		cmd.Env = []string{} // nothing of the agent's environment is the store's business
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = stopTimeout
		done <- cmd.Run()
	}()
	err := <-done
	if err == nil {
		err = errors.New("it ended without an error")
	}
	return fmt.Errorf("store process %s: %w", p.Path, err)
}
