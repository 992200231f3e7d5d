package packettest

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/bpf/packet"
	"porin/internal/verdict"
)

// Identities and subjects of the node that Reset makes.
const (
	HostIdentity  = 1
	WorldIdentity = 2
	PodIdentity   = 1001 // of a; b and c follow
	OpenSubject   = 1    // allows everything, cookie OpenCookie
	OpenCookie    = 77
)

// Settings are those of the node that Reset makes.
func (k *Kernel) Settings() bpf.Settings {
	return bpf.Settings{
		Masq4: bpf.AddrFrom(netip.MustParseAddr("192.0.2.1")), Masq6: bpf.AddrFrom(netip.MustParseAddr("2001:db8::1")),
		HostIfindex: k.node.host, World4: WorldIdentity, World6: WorldIdentity,
		Flags: bpf.SettingMasq4 | bpf.SettingMasq6, NatMin: 60000, NatMax: 60000, GatewayMAC: gatewayMAC(),
	}
}

// Reset empties all maps and fills them with the plain node: pods a, b and c may talk to everybody.
func (k *Kernel) Reset(t testing.TB) {
	t.Helper()
	for name, m := range k.maps {
		switch m.Type() {
		case ebpf.Array, ebpf.PerCPUArray, ebpf.RingBuf:
			if name == "counters" {
				k.zeroCounters(t)
			}
		default:
			clearMap(t, name, m)
		}
	}
	if _, err := k.drain(); err != nil {
		t.Fatal(err)
	}
	k.Put(t, "settings", uint32(0), k.Settings())
	k.SetEpoch(t, 1)
	k.Put(t, "policy_peers", bpf.PolicyPeerKey{Subject: OpenSubject}, bpf.PolicyPeer{Table: OpenSubject})
	k.Put(t, "policy_ports", bpf.PolicyPortKey{Table: OpenSubject, Wild: 1},
		bpf.PolicyVerdict{Action: uint8(verdict.Allow), Cookie: OpenCookie})
	for _, p := range k.node.pods {
		k.PutPod(t, p, PodIdentity+uint32(p.ID)-1, OpenSubject, OpenSubject, 0)
	}
	for _, a := range []string{"10.0.0.1", "fd00::1", "192.0.2.1", "2001:db8::1"} {
		k.PutPeer(t, netip.MustParseAddr(a), bpf.Peer{Identity: HostIdentity, Flags: bpf.PeerHost})
	}
	for _, c := range []string{"10.0.0.0/24", "fd00::/64"} {
		k.PutPrefix(t, netip.MustParsePrefix(c), bpf.Peer{Identity: WorldIdentity, Flags: bpf.PeerNoOwner})
	}
}

func (k *Kernel) zeroCounters(t testing.TB) {
	t.Helper()
	m := k.maps["counters"]
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	zero := make([]bpf.Counter, cpus)
	for i := range m.MaxEntries() {
		if err := m.Put(i, zero); err != nil {
			t.Fatalf("zero counter %d: %v", i, err)
		}
	}
}

func clearMap(t testing.TB, name string, m *ebpf.Map) {
	t.Helper()
	key := make([]byte, m.KeySize())
	for {
		err := m.NextKey(nil, &key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return
		}
		if err == nil {
			err = m.Delete(key)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatalf("empty map %s: %v", name, err)
		}
	}
}

// PutPod writes the endpoints row of a pod and the peers rows of its addresses.
func (k *Kernel) PutPod(t testing.TB, p Pod, identity, in, out uint32, flags uint16) {
	t.Helper()
	k.Put(t, "endpoints", p.Ifindex, bpf.Endpoint{
		Identity: identity, SubjectIn: in, SubjectOut: out, ID: p.ID, Flags: flags, V4: bpf.AddrFrom(p.V4),
		V6: bpf.AddrFrom(p.V6), MAC: p.MAC,
	})
	for _, a := range []netip.Addr{p.V4, p.V6} {
		if a.IsValid() {
			k.PutPeer(t, a, bpf.Peer{Identity: identity, Ifindex: p.Ifindex, Flags: bpf.PeerLocal})
		}
	}
}

// PutPeer says who has an address.
func (k *Kernel) PutPeer(t testing.TB, a netip.Addr, p bpf.Peer) {
	t.Helper()
	k.Put(t, "peers", bpf.AddrFrom(a), p)
}

// PutPrefix says who is behind a CIDR.
func (k *Kernel) PutPrefix(t testing.TB, c netip.Prefix, p bpf.Peer) {
	t.Helper()
	k.Put(t, "prefixes", bpf.PrefixKeyFrom(c), p)
}

// SetEpoch makes the cached verdicts of other epochs stale.
func (k *Kernel) SetEpoch(t testing.TB, n uint32) {
	t.Helper()
	k.Put(t, "epoch", uint32(0), n)
}

// PutRow writes a row of a verdict table: ports first..last of proto, or any port with wild.
func (k *Kernel) PutRow(t testing.TB, table uint32, proto uint8, first, last uint16, wild bool, v bpf.PolicyVerdict) {
	t.Helper()
	if wild {
		k.Put(t, "policy_ports", bpf.PolicyPortKey{Table: table, Proto: proto, Wild: 1}, v)
		return
	}
	if first == last {
		k.Put(t, "policy_ports", bpf.PolicyPortKey{Table: table, Proto: proto, Port: bpf.PortFrom(first)}, v)
		return
	}
	for _, r := range portPrefixes(first, last) {
		key := bpf.PolicyRangeKey{PrefixLen: 48 + uint32(r.bits), Table: table, Proto: proto, Port: bpf.PortFrom(r.port)}
		k.Put(t, "policy_ranges", key, v)
	}
}

type portPrefix struct {
	port uint16
	bits int
}

// portPrefixes splits a range into aligned blocks.
func portPrefixes(first, last uint16) (ps []portPrefix) {
	for p, end := uint32(first), uint32(last)+1; p < end; {
		size := 16
		if p != 0 {
			size = bits.TrailingZeros32(p)
		}
		for p+1<<size > end {
			size--
		}
		ps = append(ps, portPrefix{uint16(p), 16 - size})
		p += 1 << size
	}
	return ps
}

// Advance lets time pass for the flows: clocks cannot be set, so everything in the maps grows older.
func (k *Kernel) Advance(t testing.TB, d time.Duration) {
	t.Helper()
	age := func(at *uint64) {
		*at -= min(*at, uint64(d))
	}
	each(t, k.maps["conntrack"], func(e *bpf.CTEntry) { age(&e.Expires); age(&e.Created); e.Reported -= uint32(d >> 20) })
	each(t, k.maps["nat"], func(e *bpf.NatEntry) { age(&e.Used) })
	each(t, k.maps["nodes"], func(n *bpf.Node) { age(&n.MTUUntil); age(&n.Resolved) })
	each(t, k.maps["fragments"], func(e *bpf.FragEntry) { age(&e.Expires) })
}

// each changes every row of a map in place.
func each[V any](t testing.TB, m *ebpf.Map, change func(*V)) {
	t.Helper()
	rows := map[string]V{}
	key := make([]byte, m.KeySize())
	var v V
	it := m.Iterate()
	for it.Next(&key, &v) {
		rows[string(key)] = v
	}
	if err := it.Err(); err != nil {
		t.Fatalf("walk %s: %v", m, err)
	}
	for key, v := range rows {
		change(&v)
		if err := m.Put([]byte(key), v); err != nil {
			t.Fatalf("write %s: %v", m, err)
		}
	}
}

// Len counts the rows of a map.
func (k *Kernel) Len(t testing.TB, mapName string) int {
	t.Helper()
	n := 0
	m := k.maps[mapName]
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	it := m.Iterate()
	for it.Next(&key, &value) {
		n++
	}
	if err := it.Err(); err != nil {
		t.Fatalf("walk %s: %v", mapName, err)
	}
	return n
}

// Counter sums a counter over the CPUs.
func (k *Kernel) Counter(t testing.TB, r verdict.Reason, d verdict.Direction) (packets, bytes uint64) {
	t.Helper()
	var per []bpf.Counter
	if err := k.maps["counters"].Lookup(uint32(r)*4+uint32(d), &per); err != nil {
		t.Fatalf("read counter %s: %v", r.Name(), err)
	}
	for _, c := range per {
		packets += c.Packets
		bytes += c.Bytes
	}
	return packets, bytes
}

// Verdict sends the first packet of a flow through the program that would see it and forgets the flow again: from a
// pod of the node (by its address), else as coming in by the uplink. Action and reason are those of the program, after both sides'
// policies; cookies are those of the event.
func (k *Kernel) Verdict(t testing.TB, src, dst netip.Addr, proto uint8, port uint16) (verdict.Action, verdict.Reason) {
	t.Helper()
	in := Input{Program: "uplink_ingress", Ifindex: k.node.uplink}
	link := packet.Link{Src: routerMAC(), Dst: uplinkMAC()}
	for _, p := range k.node.pods {
		if src == p.V4 || src == p.V6 {
			in.Program, in.Ifindex = "pod_egress", p.Ifindex
			link = packet.Link{Src: p.MAC, Dst: gatewayMAC()}
		}
	}
	text := fmt.Sprintf("ip %s > %s ", src, dst)
	switch proto {
	case unix.IPPROTO_TCP:
		text += fmt.Sprintf("tcp 40000 > %d S", port)
	case unix.IPPROTO_UDP:
		text += fmt.Sprintf("udp 40000 > %d", port)
	case unix.IPPROTO_SCTP:
		text += fmt.Sprintf("sctp 40000 > %d", port)
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		text += fmt.Sprintf("icmp %d/0 rest 0x10001", port)
	default:
		text += fmt.Sprintf("proto %d data 8", proto)
	}
	frame, err := packet.Parse(text, link)
	if err != nil {
		t.Fatal(err)
	}
	in.Frame = frame
	clearMap(t, "conntrack", k.maps["conntrack"])
	r := k.Send(t, in)
	if r.Verdict == Drop {
		return verdict.Deny, r.Reason
	}
	for _, e := range r.Events {
		return verdict.Action(e.Action), verdict.None
	}
	t.Fatalf("%q of a new flow made no event", text)
	return verdict.Deny, verdict.Internal
}
