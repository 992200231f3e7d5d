package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// stack runs what was started, and stops it in the opposite order, one after the other.
type stack struct {
	ctx    context.Context // ends when the agent is to stop; what runs ends later, in its turn
	log    *slog.Logger
	failed chan error // the first failure

	mu      sync.Mutex
	running []*running // mu
}

type running struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

// patience is how long a part may take to stop before the next one is stopped all the same.
const patience = 10 * time.Second

func newStack(ctx context.Context, log *slog.Logger) *stack {
	return &stack{ctx: ctx, log: log, failed: make(chan error, 1)}
}

// start runs f. If f returns an error before it is told to stop, the agent stops.
func (s *stack) start(name string, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx))
	r := &running{name, cancel, make(chan struct{})}
	s.mu.Lock()
	s.running = append(s.running, r)
	s.mu.Unlock()
	go func() {
		defer close(r.done)
		err := f(ctx)
		if err != nil && ctx.Err() == nil {
			select {
			case s.failed <- fmt.Errorf("%s: %w", name, err):
			default:
				s.log.Error("part of the agent failed", "part", name, "err", err)
			}
		}
	}()
}

// atEnd calls f when everything that was started later has stopped.
func (s *stack) atEnd(name string, f func() error) {
	r := &running{name, nil, make(chan struct{})}
	r.cancel = func() {
		defer close(r.done)
		if err := f(); err != nil {
			s.log.Warn("closing", "part", name, "err", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = append(s.running, r)
}

// wait returns when the agent is to stop, or with the first failure.
func (s *stack) wait() error {
	select {
	case <-s.ctx.Done():
		s.log.Info("agent stops; traffic and policy go on")
		return nil
	case err := <-s.failed:
		return err
	}
}

// stop ends what runs, the last started first.
func (s *stack) stop() error {
	s.mu.Lock()
	list := s.running
	s.running = nil
	s.mu.Unlock()
	var errs []error
	for i := len(list) - 1; i >= 0; i-- {
		r := list[i]
		r.cancel()
		select {
		case <-r.done:
		case <-time.After(patience):
			errs = append(errs, fmt.Errorf("stop %s: still running after %s", r.name, patience))
		}
	}
	return errors.Join(errs...)
}
