package load

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// client has at most one connection at a time: the server answers one after the other.
type client struct {
	to netip.AddrPort
	fd int // the connection of a measurement that uses one throughout
}

// open makes the connection that mode needs for the whole measurement.
func (c *client) open(mode string) (err error) {
	c.fd = -1
	switch mode {
	case RR:
		c.fd, err = c.greet(sayRR)
	case Stream:
		c.fd, err = c.greet(sayStream)
	case UDP:
		if c.fd, err = connect(c.to, unix.SOCK_DGRAM); err == nil {
			err = unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000})
		}
	}
	return err
}

func (c *client) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
	}
}

func (c *client) greet(what byte) (int, error) {
	fd, err := connect(c.to, unix.SOCK_STREAM)
	if err != nil {
		return -1, err
	}
	hello := make([]byte, 1+size)
	hello[0] = what
	err = writeFull(fd, hello)
	if err == nil && what == sayRR {
		err = readFull(fd, hello[1:])
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// run measures ops operations of mode.
func (c *client) run(mode string, ops int) (Result, error) {
	if err := c.open(mode); err != nil {
		return Result{}, err
	}
	defer c.close()
	r := Result{Mode: mode, Ops: ops}
	var times []time.Duration
	if mode == RR || mode == CRR {
		times = make([]time.Duration, 0, ops)
	}
	start := time.Now()
	before, err := cpu()
	if err != nil {
		return r, err
	}
	switch mode {
	case RR:
		times, err = c.requests(ops, times)
	case CRR:
		times, err = c.connections(ops, times)
	case Stream:
		err = c.stream(ops)
	case UDP:
		r.Lost, err = c.datagrams(ops)
	default:
		err = fmt.Errorf("no such measurement: %q", mode)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w", mode, err)
	}
	after, err := cpu()
	if err != nil {
		return r, err
	}
	r.CPU, r.Wall = after-before, time.Since(start)
	if len(times) > 0 {
		slices.Sort(times)
		r.P50, r.P99 = times[len(times)/2], times[len(times)*99/100]
	}
	return r, nil
}

func (c *client) requests(ops int, times []time.Duration) ([]time.Duration, error) {
	b := make([]byte, size)
	for range ops {
		t := time.Now()
		if err := writeFull(c.fd, b); err != nil {
			return times, err
		}
		if err := readFull(c.fd, b); err != nil {
			return times, err
		}
		times = append(times, time.Since(t))
	}
	return times, nil
}

func (c *client) connections(ops int, times []time.Duration) ([]time.Duration, error) {
	// reset instead of TIME_WAIT: thousands of connections a second would run out of ports
	linger := &unix.Linger{Onoff: 1}
	for range ops {
		t := time.Now()
		fd, err := c.greet(sayRR)
		if err != nil {
			return times, err
		}
		err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, linger)
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			return times, fmt.Errorf("close: %w", err)
		}
		times = append(times, time.Since(t))
	}
	return times, nil
}

// stream keeps a few chunks under way, so that neither side waits for the other's confirmation.
func (c *client) stream(ops int) error {
	const ahead = 8
	buf := make([]byte, chunk)
	for i := range ops + ahead {
		if i < ops {
			if err := writeFull(c.fd, buf); err != nil {
				return err
			}
		}
		if i >= ahead && i-ahead < ops {
			if err := readFull(c.fd, buf[:1]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *client) datagrams(ops int) (lost int, err error) {
	b := make([]byte, size)
	for sent := 0; sent < ops; {
		n := min(window, ops-sent)
		for i := range n {
			b[0] = 0
			if i == n-1 {
				b[0] = 1
			}
			if err := writeFull(c.fd, b); err != nil {
				return lost, err
			}
		}
		sent += n
		if err := readFull(c.fd, b); errors.Is(err, unix.EAGAIN) {
			lost++ // the marked one or its confirmation; go on
		} else if err != nil {
			return lost, err
		}
	}
	return lost, nil
}
