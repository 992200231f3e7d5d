// Package probe assembles one try of a client to talk to a server: a real socket in the network namespace of its
// thread, something said, and what came back.
// It reads and writes only that socket. It never retries and never decides what should have happened.
package probe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Outcome of one try.
type Outcome string

// Outcomes.
const (
	Answered Outcome = "allow"   // connected, and the answer was right
	Rejected Outcome = "reject"  // somebody said no: RST or an ICMP error
	Silent   Outcome = "timeout" // nothing came back
	Broken   Outcome = "error"   // the try itself went wrong, or the answer did
)

// What to say after connecting.
const (
	Connect = "connect" // nothing; being connected is enough (TCP only)
	Echo    = "echo"
	HTTP    = "http"
)

// Request is one try. It runs in the network namespace of the calling thread.
type Request struct {
	Protocol string // TCP, UDP or ICMP
	To       netip.Addr
	Port     uint16
	Say      string
	Timeout  time.Duration
	// Started is told the local port before the first packet leaves (0 for ICMP).
	Started func(port uint16)
}

// Result of one try.
type Result struct {
	Outcome Outcome
	Took    time.Duration
	Detail  string // what happened, in words
}

// Run makes the try.
func Run(ctx context.Context, r Request) Result {
	t0 := time.Now()
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	var err error
	switch r.Protocol {
	case "ICMP":
		err = ping(ctx, r)
	case "TCP", "UDP":
		err = talk(ctx, r)
	default:
		err = fmt.Errorf("no such protocol: %s", r.Protocol)
	}
	res := Result{Outcome: classify(err), Took: time.Since(t0)}
	if err != nil {
		res.Detail = err.Error()
	}
	return res
}

var errRejected = errors.New("unreachable") // an ICMP error answered the ping

func classify(err error) Outcome {
	switch {
	case err == nil:
		return Answered
	case errors.Is(err, errRejected), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EACCES):
		return Rejected
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled),
		errors.Is(err, syscall.ETIMEDOUT):
		return Silent
	}
	return Broken
}

func talk(ctx context.Context, r Request) error {
	family, unspec := "4", netip.IPv4Unspecified()
	if r.To.Is6() {
		family, unspec = "6", netip.IPv6Unspecified()
	}
	// Bound before connecting, so that the port is known even if no answer ever comes. A literal address is dialled
	// on the calling goroutine, so on the thread that is in the right namespace.
	d := net.Dialer{FallbackDelay: -1, Control: func(_, _ string, c syscall.RawConn) error {
		var bindErr error
		err := c.Control(func(fd uintptr) {
			port, err := bindAny(int(fd), unspec)
			if err == nil && r.Started != nil {
				r.Started(port)
			}
			bindErr = err
		})
		return errors.Join(err, bindErr)
	}}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, strings.ToLower(r.Protocol)+family, netip.AddrPortFrom(r.To, r.Port).String())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer c.Close()
	// the end of ctx, by time or by cancelling, ends the reads and writes below
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	switch {
	case r.Protocol == "TCP" && r.Say == Connect:
		return nil
	case r.Say == HTTP:
		return get(c, r)
	}
	word := []byte(rand.Text())
	if _, err := c.Write(word); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("wait for the echo: %w", err)
	}
	if !bytes.Equal(got, word) {
		return fmt.Errorf("the echo is %q, not %q", got, word)
	}
	return nil
}

func get(c net.Conn, r Request) error {
	host := netip.AddrPortFrom(r.To, r.Port).String()
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host); err != nil {
		return fmt.Errorf("send the request: %w", err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return fmt.Errorf("wait for the response: %w", err)
	}
	if !strings.HasPrefix(line, "HTTP/1.") {
		return fmt.Errorf("the answer %q is not HTTP", line)
	}
	return nil
}

func bindAny(fd int, addr netip.Addr) (uint16, error) {
	var sa unix.Sockaddr
	if addr.Is4() {
		sa = &unix.SockaddrInet4{Addr: addr.As4()}
	} else {
		sa = &unix.SockaddrInet6{Addr: addr.As16()}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return 0, fmt.Errorf("bind to %s: %w", addr, err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("read the local port: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), nil
	case *unix.SockaddrInet6:
		return uint16(sa.Port), nil
	}
	return 0, fmt.Errorf("read the local port: unexpected address %T", sa)
}
