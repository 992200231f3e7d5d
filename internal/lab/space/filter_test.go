package space

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// street is three namespaces on a bridge in a fourth.
func street(t *testing.T) (bridge string, ends [3]string) {
	t.Helper()
	d := dir(t)
	bridge = filepath.Join(d, "bridge")
	if err := NewNetns(bridge); err != nil {
		t.Fatal(err)
	}
	if err := NewBridge(bridge, "br0", nil); err != nil {
		t.Fatal(err)
	}
	for i := range ends {
		ends[i] = filepath.Join(d, fmt.Sprint("end", i))
		if err := NewNetns(ends[i]); err != nil {
			t.Fatal(err)
		}
		err := Connect(End{Netns: bridge, Name: fmt.Sprint("p", i), Master: "br0"},
			End{Netns: ends[i], Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.7.7.%d/24", i+1))}})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, end := range ends { // nobody needs to ask for anybody: what is lost is what was sent
		for j, other := range ends {
			if i == j {
				continue
			}
			hw, err := HardwareAddr(other, "eth0")
			if err != nil {
				t.Fatal(err)
			}
			err = InNetns(end, func() error {
				l, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.NeighSet(&netlink.Neigh{
					LinkIndex: l.Attrs().Index, IP: net.IPv4(10, 7, 7, byte(j+1)).To4(), State: netlink.NUD_PERMANENT, HardwareAddr: hw,
				})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return bridge, ends
}

// send sends n datagrams from one end to another and returns how many arrive. It waits long for the least that must, and
// then until nothing has come for a while: a bridge and veth pairs hold nothing back.
func send(t *testing.T, ends [3]string, from, to, n, least int) (got int) {
	t.Helper()
	var server *net.UDPConn
	err := InNetns(ends[to], func() (err error) {
		server, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 7, 7, byte(to+1)), Port: 9})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	raw, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
	if err != nil {
		t.Fatal(err)
	}
	err = InNetns(ends[from], func() error {
		c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 7, 7, byte(to+1)), Port: 9})
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 8)
	for {
		patience := 300 * time.Millisecond
		if got < least {
			patience = 20 * time.Second
		}
		_ = server.SetReadDeadline(time.Now().Add(patience))
		if _, err := server.Read(buf); err != nil {
			return got
		}
		got++
	}
}

// A cut lets nothing pass, a cut between two nothing between those two; a loss about its share; healed is healed.
func TestRootFilter(t *testing.T) {
	bridge, ends := street(t)
	hw1, err := HardwareAddr(ends[1], "eth0")
	if err != nil {
		t.Fatal(err)
	}
	hw2, err := HardwareAddr(ends[2], "eth0")
	if err != nil {
		t.Fatal(err)
	}
	const n = 400
	for i, to := range []int{1, 2, 0} {
		if got := send(t, ends, i, to, n, n); got != n {
			t.Fatalf("%d of %d from %d to %d over whole cables", got, n, i, to)
		}
	}
	for _, c := range []struct {
		what   string
		losses []Loss
		want   map[[2]int][2]int // from, to: least and most
	}{
		{"cut", []Loss{{Share: 1}}, map[[2]int][2]int{{0, 1}: {0, 0}, {2, 0}: {0, 0}, {1, 2}: {n, n}}},
		{"cut from one", []Loss{{hw1, 1}}, map[[2]int][2]int{{0, 1}: {0, 0}, {1, 0}: {0, 0}, {2, 0}: {n, n}, {0, 2}: {n, n}}},
		{"cut from one, loss to the other", []Loss{{hw1, 1}, {hw2, 0.5}}, map[[2]int][2]int{{0, 1}: {0, 0}, {0, 2}: {n / 4, 3 * n / 4}, {2, 0}: {n / 4, 3 * n / 4}}},
		{"loss for all", []Loss{{Share: 0.5}}, map[[2]int][2]int{{0, 1}: {n / 4, 3 * n / 4}, {1, 0}: {n / 4, 3 * n / 4}}},
		{"cut from two", []Loss{{hw2, 1}, {hw1, 1}}, map[[2]int][2]int{{0, 1}: {0, 0}, {2, 0}: {0, 0}}},
		{"healed", nil, map[[2]int][2]int{{0, 1}: {n, n}, {2, 0}: {n, n}}},
		{"healed again", nil, map[[2]int][2]int{{1, 0}: {n, n}}},
	} {
		if err := Filter(bridge, "p0", c.losses); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		for way, want := range c.want {
			if got := send(t, ends, way[0], way[1], n, want[0]); got < want[0] || got > want[1] {
				t.Errorf("%s: %d of %d from %d to %d, want %d to %d", c.what, got, n, way[0], way[1], want[0], want[1])
			}
		}
	}
}
