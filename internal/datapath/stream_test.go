package datapath

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stream sends numbered datagrams to an echo server and notes which numbers come back.
type stream struct {
	t       testing.TB
	c       *net.UDPConn
	stop    func() // ends the sender; no number is given after it returned
	ended   chan struct{}
	stopped chan struct{}
	dropped int // by the machine's backlog before the stream began

	mu   sync.Mutex
	sent []bool // by number: has it come back?
	back int
}

// newStream sends a datagram every 200 microseconds, or as often as a busy machine lets it.
func newStream(t testing.TB, from place, addr string, port int) *stream {
	t.Helper()
	c := dial(t, from, "udp", addr, port)
	s := &stream{t: t, c: c.(*net.UDPConn), ended: make(chan struct{}), stopped: make(chan struct{}), dropped: backlogDrops(t)}
	s.stop = sync.OnceFunc(func() { close(s.ended); <-s.stopped })
	t.Cleanup(func() { s.stop(); c.Close() })
	largeBuffer(t, s.c)
	go s.send()
	go s.receive()
	return s
}

func (s *stream) send() {
	defer close(s.stopped)
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	for {
		select {
		case <-s.ended:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		n := len(s.sent)
		s.sent = append(s.sent, false)
		s.mu.Unlock()
		if _, err := s.c.Write(binary.BigEndian.AppendUint32(nil, uint32(n))); err != nil {
			s.t.Errorf("datagram %d: %v", n, err)
			return
		}
	}
}

func (s *stream) receive() {
	buf := make([]byte, 8)
	for {
		n, err := s.c.Read(buf)
		if err != nil {
			return
		}
		s.mu.Lock()
		if i := int(binary.BigEndian.Uint32(buf)); n == 4 && i < len(s.sent) && !s.sent[i] {
			s.sent[i] = true
			s.back++
		}
		s.mu.Unlock()
	}
}

func (s *stream) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%d sent, %d answered", len(s.sent), s.back)
}

func (s *stream) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sent)
}

// end stops the sender, waits for what is still on its way and returns the numbers that never came back. First the sender
// has to be gone: whoever counts while it may still send finds one that had no time to be answered.
func (s *stream) end() (missing []int) {
	s.stop()
	for deadline := time.Now().Add(patience); ; pause() {
		s.mu.Lock()
		missing = missing[:0]
		for n, back := range s.sent {
			if !back {
				missing = append(missing, n)
			}
		}
		s.mu.Unlock()
		if len(missing) == 0 || time.Now().After(deadline) {
			return slices.Clip(missing)
		}
	}
}

// spared is how many packets the machine's receive queues lost since the stream began: they are one per processor for all
// namespaces, so anybody's flood on this machine takes packets from this stream too, and porin cannot know.
func (s *stream) spared() int { return backlogDrops(s.t) - s.dropped }

// backlogDrops is what the processors' receive queues had no room for since the machine started.
func backlogDrops(t testing.TB) (n int) {
	t.Helper()
	text, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			t.Fatalf("softnet_stat: %q", line)
		}
		drops, err := strconv.ParseUint(fields[1], 16, 32)
		if err != nil {
			t.Fatalf("softnet_stat: %v", err)
		}
		n += int(drops)
	}
	return n
}

// emptyBacklogs returns when every packet that was sent before has met its program: a busy processor leaves them in its
// receive queue for a while. One more packet on each processor is behind them.
func emptyBacklogs(t testing.TB) {
	t.Helper()
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for cpu := range len(cpus) * 64 {
		if !cpus.IsSet(cpu) {
			continue
		}
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine
			var one unix.CPUSet
			one.Set(cpu)
			err := unix.SchedSetaffinity(0, &one)
			if err == nil {
				_, err = ask(c, patience, func() error { _, err := c.WriteTo([]byte("x"), c.LocalAddr()); return err },
					func() (int, error) { n, _, err := c.ReadFrom(make([]byte, 1)); return n, err })
			}
			done <- err
		}()
		if err := <-done; err != nil {
			t.Fatalf("packet on processor %d: %v", cpu, err)
		}
	}
}

// socketLosses tells what the UDP sockets of a namespace lost, to tell a test's fault from the datapath's.
func socketLosses(t testing.TB, p place) string {
	t.Helper()
	var text []byte
	if err := p.do(t, func() (err error) { text, err = os.ReadFile("/proc/thread-self/net/snmp"); return err }); err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "Udp: ")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if names == nil {
			names = fields
			continue
		}
		var out []string
		for i, v := range fields {
			if strings.HasSuffix(names[i], "Errors") && v != "0" {
				out = append(out, names[i]+"="+v)
			}
		}
		return strings.Join(out, " ")
	}
	return ""
}
