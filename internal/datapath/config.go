// Package datapath applies what the deciders want to the kernel: devices, routes, map rows, programs and their links.
// It reads the kernel's own news (addresses, devices, conntrack, events) and writes the maps of bpf/include/maps.h, the
// pod veths, porin_host and the pins below its folder in bpffs. It never decides who may talk to whom, and it works in the
// network namespace of its process.
package datapath

import (
	"fmt"
	"maps"
	"net/netip"
	"time"

	"porin/internal/identity"
	"porin/internal/node"
)

// Config is what a node's datapath is made of. Never changed once given to Open.
type Config struct {
	BPFRoot string // bpffs mount point, or the folder where one is to be mounted

	IPv4Range, IPv6Range   netip.Prefix // addresses of this node's pods; the zero Prefix switches the family off
	RouterIPv4, RouterIPv6 netip.Addr   // addresses of porin_host inside the ranges

	Devices           []string // uplinks; none: the devices with a default route
	MTU               int      // of pods and porin_host; 0: the smallest of the uplinks
	Masquerade        bool     // pods leave the node with its address
	MasqueradeExclude []netip.Prefix
	NATMin, NATMax    uint16 // source ports of the masquerade; 0: what the node's own sockets do not use

	Routing       string // between nodes: geneve, vxlan, or native (also "")
	TunnelPort    uint16 // 0: 6081, VXLAN 8472
	TunnelDevice  string // who frames: bpf (also ""), or kernel: its own VXLAN device
	Underlay      node.Family
	NodeAddresses []netip.Addr   // of this node on the underlay, one per family; none: those of the uplinks
	DirectRoutes  bool           // native: routes to the pod ranges of nodes that are neighbours
	NativeCIDRs   []netip.Prefix // the network reaches pods there under their own addresses

	Audit    bool // denials are reported and forwarded
	TraceAll bool // an event per packet

	CTMax, NATEntries, PolicyMax uint32 // map sizes; 0: as in bpf/include/maps.h
	EventsBytes                  uint32
	MapSizes                     map[string]uint32 // sizes by map name; wins over the fields above

	MonitorInterval time.Duration // between events of a live flow; 0: none
	Grace           time.Duration // between a change and the freeing of what it replaced; 0: 100 ms
	CheckInterval   time.Duration // between looks at links, pins and devices; 0: 2 s
	SweepInterval   time.Duration // between sweeps of expired flows; 0: 10 s

	ForceClsact bool // use clsact filters where TCX links would do
}

// Defaults that nobody needs to set.
const (
	defaultGrace  = 100 * time.Millisecond
	defaultCheck  = 2 * time.Second
	defaultSweep  = 10 * time.Second
	freshSubject  = 10 * time.Second // a subject that was put is kept this long without a user
	minEventBytes = 64 << 10
)

func (c Config) withDefaults() Config {
	c.MapSizes = maps.Clone(c.MapSizes)
	if c.MapSizes == nil {
		c.MapSizes = map[string]uint32{}
	}
	size := func(n uint32, names ...string) {
		for _, name := range names {
			if _, set := c.MapSizes[name]; !set && n > 0 {
				c.MapSizes[name] = n
			}
		}
	}
	size(c.CTMax, mapConntrack)
	size(c.NATEntries, mapNat)
	size(c.PolicyMax, mapPolicyPeers, mapPolicyPorts, mapPolicyRanges)
	size(c.EventsBytes, mapEvents)
	if n, set := c.MapSizes[mapEvents]; set {
		c.MapSizes[mapEvents] = powerOfTwo(max(n, minEventBytes))
	}
	if c.Grace <= 0 {
		c.Grace = defaultGrace
	}
	if c.CheckInterval <= 0 {
		c.CheckInterval = defaultCheck
	}
	if c.SweepInterval <= 0 {
		c.SweepInterval = defaultSweep
	}
	return c
}

// powerOfTwo rounds up, as the kernel wants it of a ring buffer.
func powerOfTwo(n uint32) uint32 {
	p := uint32(1)
	for p < n && p < 1<<30 {
		p <<= 1
	}
	return p
}

func (c Config) check() error {
	if c.BPFRoot == "" {
		return fmt.Errorf("bpf root: the path is empty; give --bpf-root")
	}
	if !c.IPv4Range.IsValid() && !c.IPv6Range.IsValid() {
		return fmt.Errorf("pod ranges: neither an IPv4 nor an IPv6 range is given")
	}
	for _, f := range []struct {
		pods   netip.Prefix
		router netip.Addr
	}{{c.IPv4Range, c.RouterIPv4}, {c.IPv6Range, c.RouterIPv6}} {
		if f.pods.IsValid() && !f.pods.Contains(f.router) {
			return fmt.Errorf("router address %s: not inside the pod range %s", f.router, f.pods)
		}
	}
	if c.MTU != 0 && (c.MTU < minMTU(c.IPv6Range.IsValid()) || c.MTU > maxMTU) {
		return fmt.Errorf("mtu %d: must be %d to %d", c.MTU, minMTU(c.IPv6Range.IsValid()), maxMTU)
	}
	if err := c.checkTunnel(); err != nil {
		return err
	}
	if c.NATMin > c.NATMax {
		return fmt.Errorf("masquerade ports %d-%d: the first is above the last", c.NATMin, c.NATMax)
	}
	return nil
}

// world returns the identities of addresses that nobody knows: one per family on a dual-stack node.
func (c Config) world() (v4, v6 identity.ID) {
	if c.IPv4Range.IsValid() && c.IPv6Range.IsValid() {
		return identity.WorldIPv4, identity.WorldIPv6
	}
	return identity.World, identity.World
}
