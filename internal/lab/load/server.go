package load

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"
)

// A connection begins with one byte that says what follows.
const (
	sayRR     = 'r' // answer every size bytes with size bytes until the client closes
	sayStream = 's' // read everything, answer each chunk with one byte
)

// listen opens the server's TCP and UDP sockets.
func listen(at netip.AddrPort) (tcp, udp int, err error) {
	family, sa := sockaddr(at)
	if tcp, err = socket(family, unix.SOCK_STREAM); err != nil {
		return -1, -1, err
	}
	if udp, err = socket(family, unix.SOCK_DGRAM); err != nil {
		unix.Close(tcp)
		return -1, -1, err
	}
	for _, step := range []func() error{
		func() error { return unix.SetsockoptInt(tcp, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) },
		func() error { return unix.SetsockoptInt(udp, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20) },
		func() error { return unix.Bind(tcp, sa) },
		func() error { return unix.Bind(udp, sa) },
		func() error { return unix.Listen(tcp, 1024) },
	} {
		if err = step(); err != nil {
			break
		}
	}
	if err != nil {
		unix.Close(tcp)
		unix.Close(udp)
		return -1, -1, fmt.Errorf("listen on %s: %w", at, err)
	}
	return tcp, udp, nil
}

// serveTCP handles one connection after the other: a measurement uses one at a time.
func serveTCP(fd int, fail chan<- error) {
	runtime.LockOSThread()
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			fail <- fmt.Errorf("accept: %w", err)
			return
		}
		// the end of a connection is the client's affair, however it comes
		_ = serveOne(c)
		unix.Close(c)
	}
}

func serveOne(c int) error {
	_ = unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	first := make([]byte, 1+size)
	// a request comes in one segment, its first byte included: no read more than a real server would make
	if err := readFull(c, first[:1+size]); err != nil {
		return err
	}
	if first[0] == sayStream {
		return swallow(c)
	}
	b := first[1:]
	for {
		if err := writeFull(c, b); err != nil {
			return err
		}
		if err := readFull(c, b); err != nil {
			return err
		}
	}
}

// swallow reads a stream and confirms each chunk, so that the client knows when all has arrived.
func swallow(c int) error {
	buf := make([]byte, chunk)
	for {
		if err := readFull(c, buf); err != nil {
			return err
		}
		if err := writeFull(c, buf[:1]); err != nil {
			return err
		}
	}
}

// window is how many datagrams a client sends before it waits for word of their arrival.
const window = 64

// serveUDP counts datagrams and confirms the last of each window, which carries a mark in its first byte.
func serveUDP(fd int, fail chan<- error) {
	runtime.LockOSThread()
	buf := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		if err != nil {
			fail <- fmt.Errorf("receive: %w", err)
			return
		}
		if n > 0 && buf[0] == 1 {
			if err := unix.Sendto(fd, buf[:n], 0, from); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				fail <- fmt.Errorf("send: %w", err)
				return
			}
		}
	}
}
