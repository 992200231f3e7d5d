package load

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Modes of a measurement.
const (
	RR     = "rr"     // one request and its response, again and again over one connection
	CRR    = "crr"    // connect, one request and response, close
	Stream = "stream" // as much as fits in one direction; an operation is one MiB
	UDP    = "udp"    // datagrams in one direction, with a window so that none is lost to a full buffer
)

// size of requests, responses and datagrams.
const size = 64

// chunk is what a stream writes at once.
const chunk = 1 << 20

// Result of one measurement at the client.
type Result struct {
	Mode   string        `json:"mode"`
	Ops    int           `json:"ops"`
	Wall   time.Duration `json:"wall-ns"`
	CPU    time.Duration `json:"cpu-ns"` // of this process, user and system
	P50    time.Duration `json:"p50-ns,omitempty"`
	P99    time.Duration `json:"p99-ns,omitempty"`
	Lost   int           `json:"lost,omitempty"` // datagrams
	Server time.Duration `json:"server-cpu-ns"`  // filled in by whoever drives both
}

// PerOp is the CPU time of both processes for one operation.
func (r Result) PerOp() time.Duration { return (r.CPU + r.Server) / time.Duration(max(1, r.Ops)) }

// cpu is the CPU time of this process so far.
func cpu() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("read own CPU time: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// Plain blocking sockets: with Go's poller between, half of the time measured would be the poller's.

func sockaddr(a netip.AddrPort) (int, unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// socket opens a TCP (never MPTCP) or UDP socket. Congestion control is cubic: the machine's default may pace with
// timers, which costs CPU time that has nothing to do with the path.
func socket(family, kind int) (int, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	if kind == unix.SOCK_STREAM {
		err = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
		if errors.Is(err, unix.EPERM) {
			err = nil // without root the machine's own; figures that count are made as root
		}
		if err := errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("set up TCP socket: %w", err)
		}
	}
	return fd, nil
}

func connect(to netip.AddrPort, kind int) (int, error) {
	family, sa := sockaddr(to)
	fd, err := socket(family, kind)
	if err != nil {
		return -1, err
	}
	for {
		err = unix.Connect(fd, sa)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", to, err)
	}
	return fd, nil
}

var errClosed = errors.New("the other side closed the connection")

func readFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("read: %w", err)
		case n == 0:
			return errClosed
		}
		b = b[n:]
	}
	return nil
}

func writeFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("write: %w", err)
		}
		b = b[n:]
	}
	return nil
}
