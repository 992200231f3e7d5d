package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the probe: run with probe-server or probe-client as its first argument inside a workload.
// A client keeps E established streams with sequenced heartbeats, opens N new connections per second, sends U
// sequenced UDP packets per second and tries D connections per second that policy must deny, until its standard
// input closes; then it prints one report.

// stats is what a client reports.
type stats struct {
	Streams     int    // still alive at the end
	StreamBeats uint64 // heartbeats answered
	StreamDead  uint64 // streams reset, refused or silent for longer than the limit
	MaxSilence  string // longest time a stream waited for an answer
	NewOK       uint64
	NewFailed   uint64
	UDPSent     uint64
	UDPReceived uint64
	UDPLost     uint64 // sent and not answered
	Overflowed  uint64 // packets that the machine's receive queues had no room for meanwhile, of whatever namespace
	Denied      uint64 // connections that policy refused, as it must
	Leaked      uint64 // connections that got through although policy denies them
	Errors      []string
}

// options of a client, as JSON in its second argument.
type options struct {
	Addr      string // host:port of the server
	Streams   int
	NewPerSec int
	UDPPerSec int
	Denied    []string      // addresses that must not answer
	DenyEvery time.Duration // per address
	Silence   time.Duration // a stream silent for longer is dead
}

func probeMain(args []string) int {
	switch args[0] {
	case "probe-server":
		return probeServer(args[1])
	case "probe-dial":
		return probeDial(args[1], args[2])
	case "probe-client":
		var o options
		if err := json.Unmarshal([]byte(args[1]), &o); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		return probeClient(o)
	}
	fmt.Fprintln(os.Stderr, "unknown probe", args[0])
	return 2
}

// probeDial tries a connection for as long as limit says: 0 it stood, 1 it did not.
func probeDial(addr, limit string) int {
	d, err := time.ParseDuration(limit)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	conn, err := net.DialTimeout("tcp", addr, d)
	if err != nil {
		return 1
	}
	conn.Close()
	return 0
}

// probeServer echoes TCP and UDP on the port, both families.
func probeServer(port string) int {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	u, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := deepBuffers(u.(*net.UDPConn)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		b := make([]byte, 2048)
		for {
			n, a, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(b[:n], a)
		}
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			return 1
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

type client struct {
	o    options
	stop atomic.Bool
	mu   sync.Mutex
	s    stats
	max  time.Duration
}

func (c *client) fail(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.s.Errors) < 20 {
		c.s.Errors = append(c.s.Errors, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

func probeClient(o options) int {
	c, before := &client{o: o}, overflows()
	var wg sync.WaitGroup
	ready := make(chan error, o.Streams)
	for i := range o.Streams {
		wg.Go(func() { c.stream(i, ready) })
	}
	for range o.Streams {
		if err := <-ready; err != nil {
			fmt.Fprintln(os.Stderr, "stream:", err)
			return 1
		}
	}
	if o.NewPerSec > 0 {
		wg.Go(c.connect)
	}
	if o.UDPPerSec > 0 {
		wg.Go(c.udp)
	}
	for _, d := range o.Denied {
		wg.Go(func() { c.deny(d) })
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	c.stop.Store(true)
	wg.Wait()
	c.s.Overflowed = overflows() - before
	c.s.MaxSilence = c.max.String()
	_ = json.NewEncoder(os.Stdout).Encode(c.s)
	return 0
}

// overflows is what the processors' receive queues, which all namespaces share, had no room for since the machine started.
func overflows() (n uint64) {
	text, _ := os.ReadFile("/proc/net/softnet_stat")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 {
			drops, _ := strconv.ParseUint(f[1], 16, 64)
			n += drops
		}
	}
	return n
}

// stream sends a sequence number every 10 ms and waits for its echo. Its last beat begins after the end of the test: a
// stream that was cut is found however little CPU it got.
func (c *client) stream(i int, ready chan<- error) {
	conn, err := net.DialTimeout("tcp", c.o.Addr, patience)
	ready <- err
	if err != nil {
		return
	}
	defer conn.Close()
	var seq uint64
	buf := make([]byte, 8)
	for last := false; !last; {
		last = c.stop.Load()
		seq++
		binary.BigEndian.PutUint64(buf, seq)
		t := time.Now()
		_ = conn.SetDeadline(t.Add(c.o.Silence))
		_, err := conn.Write(buf)
		if err == nil {
			_, err = io.ReadFull(conn, buf)
		}
		if d := time.Since(t); err == nil {
			c.mu.Lock()
			c.max = max(c.max, d)
			c.mu.Unlock()
		}
		if err != nil || binary.BigEndian.Uint64(buf) != seq {
			atomic.AddUint64(&c.s.StreamDead, 1)
			c.fail("stream %d beat %d after %s: %v", i, seq, time.Since(t).Round(time.Millisecond), err)
			return
		}
		atomic.AddUint64(&c.s.StreamBeats, 1)
		time.Sleep(10 * time.Millisecond)
	}
	c.mu.Lock()
	c.s.Streams++
	c.mu.Unlock()
}

// connect opens, uses and closes connections.
func (c *client) connect() {
	tick := time.NewTicker(time.Second / time.Duration(c.o.NewPerSec))
	defer tick.Stop()
	var wg sync.WaitGroup
	for range tick.C {
		if c.stop.Load() {
			break
		}
		wg.Go(func() {
			if err := roundTrip(c.o.Addr, patience); err != nil {
				atomic.AddUint64(&c.s.NewFailed, 1)
				c.fail("new connection: %v", err)
				return
			}
			atomic.AddUint64(&c.s.NewOK, 1)
		})
	}
	wg.Wait()
}

func roundTrip(addr string, limit time.Duration) error {
	conn, err := net.DialTimeout("tcp", addr, limit)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(limit))
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}

// deepBuffers makes the socket's buffers hold seconds of packets, so that a packet counted as lost was lost on its way and
// not by a process that waited for a CPU.
func deepBuffers(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20))
	})
	return errors.Join(err, failed)
}

// window is how many packets may be without answer: fewer than a receive queue of the kernel holds (1000), so that a probe
// that catches up with its rate after a while without CPU does not lose its own packets there.
const window = 400

// patience is how long anything may take that must work, on a busy machine.
const patience = 30 * time.Second

// udp sends sequenced packets at the rate and counts the echoes.
func (c *client) udp() {
	conn, err := net.Dial("udp", c.o.Addr)
	if err != nil {
		c.fail("udp: %v", err)
		return
	}
	defer conn.Close()
	uc := conn.(*net.UDPConn)
	if err := deepBuffers(uc); err != nil {
		c.fail("udp: %v", err)
	}
	done := make(chan struct{})
	var got atomic.Uint64
	go func() {
		defer close(done)
		b := make([]byte, 64)
		for {
			if _, err := conn.Read(b); err != nil {
				if errors.Is(err, syscall.ECONNREFUSED) {
					c.fail("udp: %v", err)
					continue
				}
				return
			}
			got.Add(1)
		}
	}()
	var sent, given uint64 // given up: counted as lost, but no longer waited for
	b := make([]byte, 8)
	start, moved := time.Now(), time.Now()
	for !c.stop.Load() {
		for due := uint64(time.Since(start).Seconds() * float64(c.o.UDPPerSec)); sent < due && !c.stop.Load(); {
			if sent-got.Load() >= given+window {
				if time.Since(moved) < patience {
					break
				}
				given = sent - got.Load()
			}
			sent++
			moved = time.Now()
			binary.BigEndian.PutUint64(b, sent)
			if _, err := conn.Write(b); err != nil {
				c.fail("udp send: %v", err)
			}
		}
		time.Sleep(time.Millisecond)
	}
	for deadline := time.Now().Add(patience); got.Load() < sent && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	_ = conn.SetReadDeadline(time.Now())
	<-done
	c.s.UDPSent, c.s.UDPReceived, c.s.UDPLost = sent, got.Load(), sent-got.Load()
}

// deny tries an address that must not answer: a handshake that completes is a leak.
func (c *client) deny(addr string) {
	tick := time.NewTicker(c.o.DenyEvery)
	defer tick.Stop()
	var wg sync.WaitGroup
	for range tick.C {
		if c.stop.Load() {
			break
		}
		wg.Go(func() {
			conn, err := net.DialTimeout("tcp", addr, 300*time.Millisecond)
			if err == nil {
				conn.Close()
				atomic.AddUint64(&c.s.Leaked, 1)
				c.fail("leak: %s answered", addr)
				return
			}
			if errors.Is(err, syscall.ECONNREFUSED) { // a RST came back: packets pass
				atomic.AddUint64(&c.s.Leaked, 1)
				c.fail("leak: %s refused: %v", addr, err)
				return
			}
			atomic.AddUint64(&c.s.Denied, 1)
		})
	}
	wg.Wait()
}
