package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"porin/internal/lab/space"
)

// Pair is a running client and server, each in its place.
type Pair struct {
	server, client *process
}

type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err strings.Builder
}

// StartPair starts this program's own `lab load` in both places. Stop must be called.
func StartPair(ctx context.Context, server, client space.Where, addr netip.AddrPort) (*Pair, error) {
	s, err := spawn(ctx, server, "server", addr)
	if err != nil {
		return nil, err
	}
	p := &Pair{server: s}
	if line, err := s.out.ReadString('\n'); line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("start load server on %s: %w: %s", addr, err, s.end()))
	}
	if p.client, err = spawn(ctx, client, "client", addr); err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

func spawn(ctx context.Context, w space.Where, role string, addr netip.AddrPort) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, "/proc/self/exe", "lab", "load", role, addr.String())}
	p.cmd.Stderr = &p.err
	// one processor: its garbage collector and pollers must not run on the other side's core
	p.cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "GOGC=off", "GOMEMLIMIT=256MiB")
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start load %s: %w", role, err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start load %s: %w", role, err)
	}
	p.out = bufio.NewReader(out)
	if err := space.Start(p.cmd, w); err != nil {
		return nil, fmt.Errorf("start load %s: %w", role, err)
	}
	return p, nil
}

// end stops the process and returns what it complained about.
func (p *process) end() string {
	p.in.Close()
	timer := time.AfterFunc(2*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	_ = p.cmd.Wait() // how it ended is in its complaint
	return strings.TrimSpace(p.err.String())
}

func (p *process) ask(line string) (string, error) {
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		return "", fmt.Errorf("%w: %s", err, p.end())
	}
	answer, err := p.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, p.end())
	}
	return strings.TrimSpace(answer), nil
}

// Measure runs ops operations of mode and returns the CPU time of both sides.
func (p *Pair) Measure(mode string, ops int) (Result, error) {
	if _, err := p.server.ask("mark"); err != nil {
		return Result{}, fmt.Errorf("measure %s: server: %w", mode, err)
	}
	line, err := p.client.ask(mode + " " + strconv.Itoa(ops))
	if err != nil {
		return Result{}, fmt.Errorf("measure %s: client: %w", mode, err)
	}
	var r Result
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return Result{}, fmt.Errorf("measure %s: read the client's answer: %w", mode, err)
	}
	if line, err = p.server.ask("cpu"); err != nil {
		return Result{}, fmt.Errorf("measure %s: server: %w", mode, err)
	}
	ns, err := strconv.ParseInt(line, 10, 64)
	if err != nil {
		return Result{}, fmt.Errorf("measure %s: read the server's answer: %w", mode, err)
	}
	r.Server = time.Duration(ns)
	return r, nil
}

// Stop ends both processes.
func (p *Pair) Stop() {
	for _, x := range []*process{p.client, p.server} {
		if x != nil {
			x.end()
		}
	}
}
