package datapath

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/internal/identity"
)

const hostIdentity = uint32(identity.Host)

// SetAudit switches between denying and only reporting what policy denies. Conntrack holds what audit mode made of a
// verdict, so live flows are judged anew.
func (d *Datapath) SetAudit(on bool) error {
	d.audit.Store(on)
	if err := d.writeSettings(); err != nil {
		return err
	}
	return d.Commit()
}

// SetTraceAll switches between an event per connection and one per packet.
func (d *Datapath) SetTraceAll(on bool) error {
	d.traceAll.Store(on)
	return d.writeSettings()
}

// WithSnap runs fn. Until it returns, events carry the first bytes of packets that pass too; those of drops always do.
func (d *Datapath) WithSnap(fn func() error) (err error) {
	d.snaps.Add(1)
	defer func() {
		d.snaps.Add(-1)
		if e := d.writeSettings(); err == nil {
			err = e
		}
	}()
	if err := d.writeSettings(); err != nil {
		return err
	}
	return fn()
}

// writeSettings tells the programs about this node, if anything of it changed.
func (d *Datapath) writeSettings() error {
	d.settingsTurn.Lock()
	defer d.settingsTurn.Unlock()
	w4, w6 := d.cfg.world()
	first, last := d.cfg.natPorts()
	want := bpf.Settings{
		HostIfindex: uint32(d.host.index()), World4: uint32(w4), World6: uint32(w6),
		NatMin: first, NatMax: last, ReportInterval: uint64(max(d.cfg.MonitorInterval, 0)),
	}
	copy(want.GatewayMAC[:], d.host.mac)
	if d.audit.Load() {
		want.Flags |= bpf.SettingAudit
	}
	if d.traceAll.Load() {
		want.Flags |= bpf.SettingTraceAll
	}
	if d.snaps.Load() > 0 {
		want.Flags |= bpf.SettingSnap
	}
	if d.cfg.Masquerade {
		v4, v6, err := d.host.sources()
		if err != nil {
			return err
		}
		if v4.IsValid() && d.cfg.IPv4Range.IsValid() {
			want.Masq4, want.Flags = bpf.AddrFrom(v4), want.Flags|bpf.SettingMasq4
		}
		if v6.IsValid() && d.cfg.IPv6Range.IsValid() {
			want.Masq6, want.Flags = bpf.AddrFrom(v6), want.Flags|bpf.SettingMasq6
		}
	}
	if err := d.tunnelSettings(&want); err != nil {
		return err
	}
	have, ok, err := d.settings.get(0)
	if err != nil {
		return err
	}
	if ok && have == want {
		return nil
	}
	return d.settings.put(0, want)
}

// sources returns the addresses by which the node is known outside: of the first uplink that has one of the family.
func (h *host) sources() (v4, v6 netip.Addr, err error) {
	for _, i := range h.uplinkIndexes() {
		dev := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: i}}
		list, err := listAll(func() ([]netlink.Addr, error) { return netlink.AddrList(dev, netlink.FAMILY_ALL) })
		if err != nil {
			return v4, v6, fmt.Errorf("list addresses of device %d: %w", i, err)
		}
		// permanent addresses first: a temporary one (RFC 8981) goes away under live flows
		slices.SortStableFunc(list, func(a, b netlink.Addr) int { return a.Flags&unix.IFA_F_TEMPORARY - b.Flags&unix.IFA_F_TEMPORARY })
		for _, a := range list {
			ip, ok := netip.AddrFromSlice(a.IP)
			if ip = ip.Unmap(); !ok || a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DEPRECATED) != 0 {
				continue
			}
			if ip.Is4() && !v4.IsValid() {
				v4 = ip
			}
			if ip.Is6() && !v6.IsValid() && ip.IsGlobalUnicast() {
				v6 = ip
			}
		}
	}
	return v4, v6, nil
}
