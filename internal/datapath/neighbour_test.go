package datapath

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"porin/internal/node"
)

// neighbours gives every neighbour entry of a device another state; NUD_NONE removes it.
func neighbours(t testing.TB, p place, dev string, state int) {
	t.Helper()
	err := p.do(t, func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		entries, err := listAll(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Attrs().Index, netlink.FAMILY_ALL) })
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.State&(netlink.NUD_NOARP|netlink.NUD_PERMANENT) != 0 {
				continue
			}
			if state == netlink.NUD_NONE || e.HardwareAddr == nil {
				err = netlink.NeighDel(&e)
			} else {
				e.State = state
				err = netlink.NeighSet(&e)
			}
			if err != nil {
				return fmt.Errorf("neighbour %s: %w", e.IP, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRootTunnelFirstPacket: a tunnel waits for its neighbour's MAC and not the sender: the first datagram arrives, and
// each of many at once, whatever either node's kernel knows of the other.
func TestRootTunnelFirstPacket(t *testing.T) {
	const together = 20
	for _, family := range []node.Family{node.IPv4, node.IPv6} {
		t.Run(string(family), func(t *testing.T) {
			w := twoNodes(t, 1500, func(c *Config) { c.Routing, c.Underlay = RoutingVXLAN, family })
			serve(t, place(w.far.pod.Netns), 80)
			for _, to := range []string{"10.8.0.20", "fd08::14"} {
				var conns []net.Conn
				for range together {
					c := dial(t, place(w.pod.Netns), "udp", to, 80)
					defer c.Close()
					conns = append(conns, c)
				}
				for _, state := range []struct {
					name string
					nud  int
				}{{"absent", netlink.NUD_NONE}, {"failed", netlink.NUD_FAILED}, {"stale", netlink.NUD_STALE}} {
					for round := range 3 {
						neighbours(t, "", "ptup0", state.nud)
						neighbours(t, w.far.ns, "ptout0", state.nud)
						var errs []string
						results := make(chan error, together)
						for _, c := range conns {
							go func() { results <- exchange(c, 100) }()
						}
						for range conns {
							if err := <-results; err != nil {
								errs = append(errs, err.Error())
							}
						}
						if len(errs) > 0 {
							t.Fatalf("to %s, neighbour entries %s, round %d: %d of %d first datagrams got lost: %s\n near %v\n far %v",
								to, state.name, round, len(errs), together, strings.Join(errs, "; "), drops(w.near), drops(w.far.d))
						}
					}
				}
			}
		})
	}
}
