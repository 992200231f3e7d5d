package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ICMP types that matter to a ping, both families.
const (
	echoReply4, unreachable4, echo4 = 0, 3, 8
	unreachable6, echo6, echoReply6 = 1, 128, 129
)

const ipv6Header = 40

// ping sends one echo request over a raw socket (ping sockets need a group that root is not in by default) and waits
// for its reply or for an ICMP error that quotes it.
func ping(ctx context.Context, r Request) error {
	family, proto, request := unix.AF_INET, unix.IPPROTO_ICMP, byte(echo4)
	var to unix.Sockaddr
	if r.To.Is6() {
		family, proto, request = unix.AF_INET6, unix.IPPROTO_ICMPV6, echo6
		to = &unix.SockaddrInet6{Addr: r.To.As16()}
	} else {
		to = &unix.SockaddrInet4{Addr: r.To.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return fmt.Errorf("open ICMP socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, to); err != nil {
		return fmt.Errorf("connect ICMP socket: %w", err)
	}
	msg := make([]byte, 8, 40)
	msg[0] = request
	if _, err := rand.Read(msg[4:6]); err != nil {
		return fmt.Errorf("choose an echo id: %w", err)
	}
	binary.BigEndian.PutUint16(msg[6:], 1)
	msg = append(msg, rand.Text()...)
	if family == unix.AF_INET { // the kernel fills in ICMPv6 checksums only
		binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	}
	if r.Started != nil {
		r.Started(0)
	}
	if _, err := unix.Write(fd, msg); err != nil {
		return fmt.Errorf("send echo request: %w", err)
	}
	return awaitPong(ctx, fd, r.To.Is6(), msg)
}

func awaitPong(ctx context.Context, fd int, v6 bool, sent []byte) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		return errors.New("a ping needs a deadline")
	}
	buf := make([]byte, 2048)
	for {
		left := time.Until(deadline)
		if left <= 0 || ctx.Err() != nil {
			return fmt.Errorf("wait for the echo reply: %w", os.ErrDeadlineExceeded)
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(min(left, 20*time.Millisecond).Milliseconds())+1); n == 0 || errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return fmt.Errorf("wait for the echo reply: %w", err)
		}
		n, err := unix.Read(fd, buf)
		if err != nil {
			return fmt.Errorf("read the echo reply: %w", err)
		}
		if done, err := pong(buf[:n], v6, sent); done {
			return err
		}
	}
}

// pong tells whether packet p ends the wait for the answer to sent. A raw IPv4 socket delivers the IP header too.
func pong(p []byte, v6 bool, sent []byte) (bool, error) {
	reply, unreachable := byte(echoReply4), byte(unreachable4)
	if v6 {
		reply, unreachable = echoReply6, unreachable6
	} else {
		if len(p) < 20 || len(p) < int(p[0]&15)*4 {
			return false, nil
		}
		p = p[int(p[0]&15)*4:]
	}
	if len(p) < 8 {
		return false, nil
	}
	switch p[0] {
	case reply:
		return bytes.Equal(p[4:], sent[4:]), nil
	case unreachable:
		quoted := p[8:]
		skip := ipv6Header
		if !v6 {
			if len(quoted) < 20 {
				return false, nil
			}
			skip = int(quoted[0]&15) * 4
		}
		if len(quoted) < skip+8 || !bytes.Equal(quoted[skip+4:skip+8], sent[4:8]) || quoted[skip] != sent[0] {
			return false, nil
		}
		return true, fmt.Errorf("%w: ICMP type %d code %d", errRejected, p[0], p[1])
	}
	return false, nil
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
