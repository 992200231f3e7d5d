package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"porin/bpf"
	"porin/internal/node"
)

// Kinds of routing between nodes, as Config.Routing says them.
const (
	RoutingNative = "native" // also "": the network, or the host's routes, know where pods are
	RoutingGeneve = "geneve"
	RoutingVXLAN  = "vxlan"
)

// What a frame in a frame costs: outer IP, UDP, the tunnel's header, inner Ethernet (bpf/include/overlay.h).
const (
	overhead4 = 20 + 8 + 8 + 14
	overhead6 = 40 + 8 + 8 + 14
)

// tunnelDevice is the kernel's own VXLAN device, where it is asked for.
const tunnelDevice = "porin_vxlan"

func (c Config) tunnelled() bool { return c.Routing == RoutingGeneve || c.Routing == RoutingVXLAN }

func (c Config) kernelTunnel() bool { return c.tunnelled() && c.TunnelDevice == TunnelByKernel }

// Who frames, as Config.TunnelDevice says it.
const (
	TunnelByPrograms = "bpf" // also ""
	TunnelByKernel   = "kernel"
)

// tunnelPort is where nodes hear each other.
func (c Config) tunnelPort() uint16 {
	switch {
	case c.TunnelPort != 0:
		return c.TunnelPort
	case c.Routing == RoutingVXLAN:
		return 8472
	}
	return 6081
}

func (c Config) checkTunnel() error {
	switch c.Routing {
	case "", RoutingNative, RoutingGeneve, RoutingVXLAN:
	default:
		return fmt.Errorf("routing %q: must be geneve, vxlan or native", c.Routing)
	}
	switch c.TunnelDevice {
	case "", TunnelByPrograms:
	case TunnelByKernel:
		if c.Routing == RoutingGeneve {
			return fmt.Errorf("tunnel device kernel: only with routing vxlan")
		}
	default:
		return fmt.Errorf("tunnel device %q: must be bpf or kernel", c.TunnelDevice)
	}
	switch c.Underlay {
	case "", node.Auto, node.IPv4, node.IPv6:
	default:
		return fmt.Errorf("underlay %q: must be ipv4, ipv6 or auto", c.Underlay)
	}
	return nil
}

// Underlay returns the addresses by which other nodes know this one: as configured, else those of the uplinks.
func (d *Datapath) Underlay() (v4, v6 netip.Addr, err error) { return d.host.underlay() }

func (h *host) underlay() (v4, v6 netip.Addr, err error) {
	for _, a := range h.cfg.NodeAddresses {
		if a = a.Unmap(); a.Is4() {
			v4 = a
		} else {
			v6 = a
		}
	}
	if len(h.cfg.NodeAddresses) == 0 {
		if v4, v6, err = h.sources(); err != nil {
			return v4, v6, err
		}
	}
	if h.cfg.Underlay == node.IPv4 {
		v6 = netip.Addr{}
	}
	if h.cfg.Underlay == node.IPv6 {
		v4 = netip.Addr{}
	}
	return v4, v6, nil
}

// overhead is what the tunnel takes of the uplinks' MTU. Where both families are at hand nodes use IPv4 with each other.
func (h *host) overhead() int {
	if !h.cfg.tunnelled() {
		return 0
	}
	if v4, v6, err := h.underlay(); err == nil && !v4.IsValid() && v6.IsValid() {
		return overhead6
	}
	return overhead4
}

// tunnelSettings tells the programs how to frame.
func (d *Datapath) tunnelSettings(want *bpf.Settings) error {
	want.Router4, want.Router6 = bpf.AddrFrom(d.cfg.RouterIPv4), bpf.AddrFrom(d.cfg.RouterIPv6)
	if !d.cfg.tunnelled() {
		return nil
	}
	v4, v6, err := d.host.underlay()
	if err != nil {
		return err
	}
	want.Tunnel, want.TunnelPort = bpf.TunnelGeneve, bpf.PortFrom(d.cfg.tunnelPort())
	if d.cfg.Routing == RoutingVXLAN {
		want.Tunnel = bpf.TunnelVXLAN
	}
	want.Underlay4, want.Underlay6 = bpf.AddrFrom(v4), bpf.AddrFrom(v6)
	want.TunnelIfindex = uint32(d.host.tunnelIndex())
	return nil
}

func (h *host) tunnelIndex() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tunnel
}

// ensureTunnel makes the kernel's device if it is asked for, and removes it if it is not.
func (h *host) ensureTunnel() error {
	index := 0
	var err error
	if h.cfg.kernelTunnel() {
		index, err = h.makeTunnel()
	} else {
		err = deleteLink(tunnelDevice)
	}
	if err != nil {
		return fmt.Errorf("device %s: %w", tunnelDevice, err)
	}
	h.mu.Lock()
	h.tunnel = index
	h.mu.Unlock()
	return nil
}

func (h *host) makeTunnel() (index int, err error) {
	mtu := h.mtu()
	dev, err := netlink.LinkByName(tunnelDevice)
	var missing netlink.LinkNotFoundError
	if err == nil {
		if vx, ok := dev.(*netlink.Vxlan); !ok || !vx.FlowBased || vx.Port != int(h.cfg.tunnelPort()) {
			if err := netlink.LinkDel(dev); err != nil {
				return 0, fmt.Errorf("remove what is there instead: %w", err)
			}
			err = netlink.LinkNotFoundError{}
			dev = nil
		}
	} else if !errors.As(err, &missing) {
		return 0, err
	}
	if err != nil || dev == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = tunnelDevice, mtu
		if err := netlink.LinkAdd(&netlink.Vxlan{
			LinkAttrs: attrs, FlowBased: true, Port: int(h.cfg.tunnelPort()), UDP6ZeroCSumTx: true, UDP6ZeroCSumRx: true,
		}); err != nil {
			return 0, fmt.Errorf("create: %w", err)
		}
		if dev, err = netlink.LinkByName(tunnelDevice); err != nil {
			return 0, err
		}
	}
	if dev.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(dev, mtu); err != nil {
			return 0, fmt.Errorf("mtu %d: %w", mtu, err)
		}
	}
	if err := setSysctlV6(tunnelDevice, "disable_ipv6", "1"); err != nil {
		return 0, err
	}
	if dev.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(dev); err != nil {
			return 0, fmt.Errorf("bring up: %w", err)
		}
	}
	return dev.Attrs().Index, nil
}
