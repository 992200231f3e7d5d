// Package relay assembles a slow cable: what comes out of one device goes into another after a while, in order, both ways.
// It reads and writes whole Ethernet frames of two devices of its network namespace. It never changes a frame and never
// decides which devices to join.
package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Rule says how long frames to and from a peer take.
type Rule struct {
	Peer  net.HardwareAddr `json:"peer,omitempty"` // none: everybody
	Delay time.Duration    `json:"delay"`
}

// Config of a relay.
type Config struct {
	Node   string `json:"node"`   // device whose frames come from the node
	Bridge string `json:"bridge"` // device that leads to everybody else
	Rules  []Rule `json:"rules"`
}

// Bounds of what a relay holds back, each way: like a router's queue, what comes beyond is lost.
const (
	queueFrames = 20_000
	maxFrame    = 64 << 10
	buffer      = 8 << 20
)

// Run opens both devices, calls ready, and relays until ctx ends.
func Run(ctx context.Context, cfg Config, ready func() error) error {
	node, err := open(cfg.Node)
	if err != nil {
		return err
	}
	defer unix.Close(node)
	bridge, err := open(cfg.Bridge)
	if err != nil {
		return err
	}
	defer unix.Close(bridge)
	if err := ready(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return carry(ctx, node, bridge, func(f []byte) time.Duration { return cfg.delay(f[:6]) })
	})
	g.Go(func() error {
		return carry(ctx, bridge, node, func(f []byte) time.Duration { return cfg.delay(f[6:12]) })
	})
	return g.Wait()
}

// delay of a frame whose other end has this address: the longest of the rules that speak of it.
func (c Config) delay(peer net.HardwareAddr) time.Duration {
	var d time.Duration
	for _, r := range c.Rules {
		if len(r.Peer) == 0 || string(r.Peer) == string(peer) {
			d = max(d, r.Delay)
		}
	}
	return d
}

// open returns a packet socket that sees what the device receives, and nothing that it sends.
func open(name string) (int, error) {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return -1, fmt.Errorf("relay: find %s: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // protocol 0: nothing until it is bound
	if err != nil {
		return -1, fmt.Errorf("relay: packet socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, buffer),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: dev.Index}),
	)
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("relay: listen on %s: %w", name, err)
	}
	return fd, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

type held struct {
	frame []byte
	due   time.Time
}

// carry moves frames from one socket to the other, each when it is due. Frames of one direction stay in order.
func carry(ctx context.Context, from, to int, delay func([]byte) time.Duration) error {
	queue := make(chan held, queueFrames)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(queue)
	wg.Go(func() {
		for h := range queue {
			if wait := time.Until(h.due); wait > 0 {
				t := time.NewTimer(wait)
				select {
				case <-t.C:
				case <-ctx.Done():
					t.Stop()
				}
			}
			_, _ = unix.Write(to, h.frame) // a frame that does not get through is lost, as on a cable
		}
	})
	buf := make([]byte, maxFrame)
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(from), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 50); n == 0 || errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return fmt.Errorf("relay: wait for frames: %w", err)
		}
		n, err := unix.Read(from, buf)
		switch {
		case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("relay: read a frame: %w", err)
		case n < 14:
			continue
		}
		h := held{frame: append([]byte(nil), buf[:n]...), due: time.Now().Add(delay(buf[:n]))}
		select {
		case queue <- h:
		default: // full: lost
		}
	}
	return ctx.Err()
}
