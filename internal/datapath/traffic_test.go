package datapath

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of the live node's uplink and of the host outside.
const (
	nodeV4, nodeV6       = "192.0.2.1", "2001:db8:1::1"
	outsideV4, outsideV6 = "192.0.2.2", "2001:db8:1::2"
)

// liveNode is a node with the real programs, an uplink, and a host outside.
func liveNode(t testing.TB) (n *scene, outside string) {
	t.Helper()
	n, outside = uplinkNode(t)
	n.sets = func() []*ebpf.CollectionSpec {
		sets, err := compiled()
		if err != nil {
			t.Fatal(err)
		}
		return sets
	}
	return n, outside
}

// uplinkNode is a node with an uplink and a host outside.
func uplinkNode(t testing.TB) (n *scene, outside string) {
	t.Helper()
	n = newNode(t)
	n.cfg.MTU, n.cfg.Masquerade = 0, true
	outside = newNS(t)
	ns, err := openNetns(outside)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "ptup0", 1480
	up := &netlink.Veth{LinkAttrs: attrs, PeerName: "ptout0", PeerNamespace: netlink.NsFd(ns.fd()), PeerMTU: 1480}
	if err := netlink.LinkAdd(up); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := deleteLink("ptup0"); err != nil {
			t.Error(err)
		}
	})
	address(t, "ptup0", nodeV4+"/24", nodeV6+"/64")
	inNS(t, outside, func() error { address(t, "ptout0", outsideV4+"/24", outsideV6+"/64"); return nil })
	route(t, "ptup0", "0.0.0.0/0", outsideV4)
	route(t, "ptup0", "::/0", outsideV6)
	return n, outside
}

func address(t testing.TB, dev string, addrs ...string) {
	t.Helper()
	l, err := netlink.LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		p := netip.MustParsePrefix(a)
		na := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			na.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, na); err != nil {
			t.Fatal(err)
		}
	}
	// no duplicate detection: for its second a device has no link-local address to ask neighbours with
	if err := sysctlV6(dev, "accept_dad", "0"); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		wait(t, "address "+a, func() bool {
			r, err := netlink.RouteGet(netip.MustParsePrefix(a).Addr().AsSlice())
			return err == nil && len(r) > 0 && r[0].Type == unix.RTN_LOCAL
		})
	}
}

func route(t testing.TB, dev, dst, via string) {
	t.Helper()
	l, err := netlink.LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(dst)), Gw: net.ParseIP(via)}); err != nil {
		t.Fatal(err)
	}
}

// place is where a socket is opened: a namespace, or this node when empty.
type place string

func (p place) do(t testing.TB, f func() error) error {
	t.Helper()
	if p == "" {
		return f()
	}
	ns, err := openNetns(string(p))
	if err != nil {
		return err
	}
	defer ns.close()
	return ns.do(f)
}

// serve answers TCP with "<remote address>\n" and echoes until the client closes, and echoes UDP. A host with several
// addresses names them: a UDP socket of the wildcard answers by whatever address the route to the client prefers.
func serve(t testing.TB, p place, port int, addrs ...string) {
	t.Helper()
	var ln net.Listener
	if len(addrs) == 0 {
		addrs = []string{""}
	}
	for _, a := range addrs {
		var pc net.PacketConn
		if err := p.do(t, func() (err error) {
			pc, err = net.ListenPacket("udp", net.JoinHostPort(a, fmt.Sprint(port)))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pc.Close() })
		largeBuffer(t, pc.(*net.UDPConn))
		go func() {
			buf := make([]byte, 64<<10)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo(buf[:n], from)
			}
		}()
	}
	if err := p.do(t, func() (err error) { ln, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s\n", c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// largeBuffer keeps a socket from losing packets while its reader waits for a busy processor.
func largeBuffer(t testing.TB, c syscall.Conn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// How long an attempt may take. What must work has all the time that a busy machine needs; what must not work is believed
// after a while of silence.
const (
	patience = 30 * time.Second
	silence  = 400 * time.Millisecond
	resend   = time.Second // between datagrams of one attempt: any queue on the way may be full for an instant
)

// within is the time for an attempt of which it is known whether it must work.
func within(works bool) time.Duration {
	if works {
		return patience
	}
	return silence
}

// tcp connects and returns the address under which the server sees the client.
func tcp(t testing.TB, limit time.Duration, p place, addr string, port int) (seen string, err error) {
	t.Helper()
	var c net.Conn
	err = p.do(t, func() (err error) {
		c, err = net.DialTimeout("tcp", net.JoinHostPort(addr, fmt.Sprint(port)), limit)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	_, err = fmt.Fscanln(c, &seen)
	return seen, err
}

// dial opens a socket in a place; nothing of it may fail.
func dial(t testing.TB, p place, network, addr string, port int) (c net.Conn) {
	t.Helper()
	if err := p.do(t, func() (err error) {
		c, err = net.DialTimeout(network, net.JoinHostPort(addr, fmt.Sprint(port)), patience)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return c
}

// udp sends a datagram of a size, and again until its answer comes.
func udp(t testing.TB, limit time.Duration, p place, addr string, port, size int) error {
	t.Helper()
	c := dial(t, p, "udp", addr, port)
	defer c.Close()
	out, in := make([]byte, size), make([]byte, size+1)
	out[0] = 'x'
	n, err := ask(c, limit, func() error { _, err := c.Write(out); return err }, func() (int, error) { return c.Read(in) })
	if err == nil && (n != size || in[0] != 'x') {
		err = fmt.Errorf("answer of %d bytes, want %d", n, size)
	}
	return err
}

// ask sends, and again every now and then, until an answer is read or the time is up.
func ask(c interface{ SetReadDeadline(time.Time) error }, limit time.Duration, send func() error, read func() (int, error)) (int, error) {
	for deadline := time.Now().Add(limit); ; {
		if err := send(); err != nil {
			return 0, err
		}
		until := time.Now().Add(resend)
		if until.After(deadline) {
			until = deadline
		}
		_ = c.SetReadDeadline(until)
		n, err := read()
		if !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(deadline) {
			return n, err
		}
	}
}

// ping sends an echo request, and again until its reply comes.
func ping(t testing.TB, limit time.Duration, p place, addr string) error {
	t.Helper()
	ip := netip.MustParseAddr(addr)
	network, local, request, reply := "ip4:icmp", "0.0.0.0", byte(8), byte(0)
	if ip.Is6() {
		network, local, request, reply = "ip6:ipv6-icmp", "::", 128, 129
	}
	var pc net.PacketConn
	if err := p.do(t, func() (err error) { pc, err = net.ListenPacket(network, local); return err }); err != nil {
		return err
	}
	defer pc.Close()
	msg := []byte{request, 0, 0, 0, 0x42, 0x17, 0, 1, 'p', 'o', 'r', 'i', 'n', '!'}
	if ip.Is4() {
		var sum uint32
		for i := 0; i < len(msg); i += 2 {
			sum += uint32(msg[i])<<8 | uint32(msg[i+1])
		}
		sum = sum>>16 + sum&0xffff
		msg[2], msg[3] = byte(^sum>>8), byte(^sum)
	}
	buf := make([]byte, 256)
	_, err := ask(pc, limit, func() error { _, err := pc.WriteTo(msg, &net.IPAddr{IP: ip.AsSlice()}); return err }, func() (int, error) {
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return 0, err
			}
			got, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
			if n == len(msg) && buf[0] == reply && got.Unmap() == ip {
				return n, nil
			}
		}
	})
	return err
}
