package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// Client is a connection to the agent for one request. It is a plain blocking socket: Go's poller, with its threads and
// timers, would cost a plugin that asks one question a third of its CPU time.
type Client struct{ fd int }

// Dial connects to the agent's socket at path.
func Dial(ctx context.Context, path string) (*Client, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		// Without blocking: a full backlog is EAGAIN, an agent that is away.
		if err = ctx.Err(); err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}
		if err == nil {
			return &Client{fd}, nil
		}
		unix.Close(fd)
	}
	return nil, fmt.Errorf("reach the agent at %s: %w", path, err)
}

// Call sends req and waits for the answer until ctx ends, then closes the connection. An error of the agent's own is
// in Response.Error; err says that there was no answer.
func (c *Client) Call(ctx context.Context, req Request) (Response, error) {
	defer unix.Close(c.fd)
	req.Version = WireVersion
	var resp Response
	stream := &stream{ctx, c.fd}
	if err := WriteMessage(stream, req); err != nil {
		return resp, fmt.Errorf("send %s to the agent: %w", req.Command, err)
	}
	if err := ReadMessage(stream, &resp); err != nil {
		return resp, fmt.Errorf("wait for the agent's answer to %s: %w", req.Command, err)
	}
	return resp, nil
}

// stream is a socket whose reads and writes end with ctx.
type stream struct {
	ctx context.Context
	fd  int
}

func (s *stream) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(s.fd, b)
		switch {
		case err == nil && n == 0 && len(b) > 0:
			return 0, io.EOF
		case err == nil:
			return n, nil
		}
		if err := s.wait(unix.POLLIN, err); err != nil {
			return 0, err
		}
	}
}

func (s *stream) Write(b []byte) (done int, err error) {
	for done < len(b) {
		// MSG_NOSIGNAL: an agent that is gone is an error, not the end of this process
		n, err := unix.SendmsgN(s.fd, b[done:], nil, nil, unix.MSG_NOSIGNAL)
		if err == nil {
			done += n
			continue
		}
		if err := s.wait(unix.POLLOUT, err); err != nil {
			return done, err
		}
	}
	return done, nil
}

// look is how often a wait asks whether its context was cancelled: nothing else tells it before the deadline.
const look = 100 * time.Millisecond

// wait waits for what err, of a read or a write, says is not there yet.
func (s *stream) wait(events int16, err error) error {
	if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
		return err
	}
	for {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		timeout := look
		if at, ok := s.ctx.Deadline(); ok {
			timeout = min(timeout, time.Until(at))
		}
		// a millisecond more than the rest: at the deadline, not just before it
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: events}}, int(max(timeout, 0)/time.Millisecond)+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
}

// deadline is a context that ends at a time and costs no timer.
type deadline time.Time

func (d deadline) Deadline() (time.Time, bool) { return time.Time(d), true }
func (d deadline) Done() <-chan struct{}       { return nil }
func (d deadline) Value(any) any               { return nil }

func (d deadline) Err() error {
	if time.Now().Before(time.Time(d)) {
		return nil
	}
	return context.DeadlineExceeded
}
