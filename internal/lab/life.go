package lab

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// StartNode starts the agent of a node if it does not run; with wait it returns when the agent is healthy.
func (l *Lab) StartNode(ctx context.Context, name string, wait bool) error {
	p, err := l.node(name)
	if err != nil {
		return err
	}
	if p.Agent.Alive() {
		return fmt.Errorf("%s: the agent runs already", name)
	}
	return l.startAgent(ctx, name, wait)
}

// StopNode asks the agent of a node to end and waits until it has; with kill it is ended at once, as by a crash. Traffic
// and policy go on.
func (l *Lab) StopNode(ctx context.Context, name string, kill bool) error {
	p, err := l.node(name)
	if err != nil {
		return err
	}
	if !p.Agent.Alive() {
		return fmt.Errorf("%s: the agent does not run", name)
	}
	signal := syscall.SIGTERM
	if kill {
		signal = syscall.SIGKILL
	}
	return p.Agent.Signal(ctx, signal)
}

func (l *Lab) node(name string) (place, error) {
	p, err := l.place(name)
	if err == nil && p.Kind != kindNode {
		err = errors.New(name + " is no node")
	}
	return p, err
}
