package packettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"porin/bpf"
	"porin/bpf/packet"
	"porin/internal/verdict"
)

// story plays a text of commands, one a line, on the plain node that Reset makes. Lines that begin with # are told to
// people only.
//
//	endpoint NAME [identity=N] [in=SUBJECT] [out=SUBJECT] [mac=MAC] [lockdown] [audit] [no4] [no6]
//	peer ADDR identity=N [local=NAME] [host] [cluster] [node=ADDR]
//	prefix CIDR identity=N [cluster] [noowner] [node=ADDR]
//	node ADDR [id=N] [mtu=N] [stale]   another node; stale: the kernel was not asked for a while how to reach it
//	subject N [cookie=C]               nothing allowed, denied under cookie C
//	rule N IDENTITY|* PROTO|any PORT|FIRST-LAST|* allow|deny|refuse|redirect|audit|NUMBER [cookie=C]
//	settings [tunnel=geneve|vxlan | notunnel] [nounderlay] [device=NAME] [audit] [trace] [snap] [nomasq] [nomasqaddr]
//	         [nat=FIRST-LAST] [report=DURATION]
//	epoch                              every cached verdict is stale
//	advance DURATION                   flows grow older
//	forget endpoint NAME | forget peer ADDR | forget MAP | forget ways-back
//	socket tcp|udp ADDR:PORT           a socket of this host
//	send PROGRAM [DEVICE] [mark=N] [priority=N] [gso=N] [forwarded] [complete] 'PACKET'
//	want drop REASON | want peer|redirect|deliver|neigh|tunnel DEVICE ['PACKET'] | want stack|host|reply|toobig ['PACKET']
//	flow drop|trace|verdict [FIELD=VALUE ...]      the next event of the last packet
//	noflow                                         there is none left
//	counter REASON DIRECTION PACKETS | rows MAP N | skb [mark=N] [priority=N]
type story struct {
	k        *Kernel
	settings bpf.Settings
	epoch    uint32
	tables   map[bpf.PolicyPeerKey]bpf.PolicyPeer
	link     packet.Link // of the last packet sent
	sent     string
	last     Result
	port     uint16 // source port of the tunnel, as it was: in the last frame it is 49152
	ended    []func()
}

// Play runs a story and reports the first line that does not hold.
func (k *Kernel) Play(t testing.TB, text string) {
	t.Helper()
	k.Reset(t)
	s := &story{k: k, settings: k.Settings(), epoch: 1, tables: map[bpf.PolicyPeerKey]bpf.PolicyPeer{}}
	defer func() {
		for _, f := range s.ended {
			f()
		}
	}()
	for i, line := range strings.Split(text, "\n") {
		words, err := split(line)
		if err == nil && len(words) > 0 {
			err = s.command(t, words)
		}
		if err != nil {
			t.Fatalf("line %d: %s\n%v", i+1, strings.TrimSpace(line), err)
		}
	}
}

// split cuts a line into words; a pair of single quotes makes one word.
func split(line string) ([]string, error) {
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "#") {
		return nil, nil
	}
	parts := strings.Split(line, "'")
	if len(parts)%2 == 0 {
		return nil, fmt.Errorf("a quote is not closed")
	}
	var words []string
	for i, p := range parts {
		if i%2 == 1 {
			words = append(words, p)
		} else {
			words = append(words, strings.Fields(p)...)
		}
	}
	return words, nil
}

// options are words of the form key=value, or key alone.
type options map[string]string

func parseOptions(words []string) options {
	o := options{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		o[k] = v
	}
	return o
}

func (o options) has(key string) bool {
	_, ok := o[key]
	return ok
}

func (o options) num(key string, or uint32) (uint32, error) {
	if !o.has(key) {
		return or, nil
	}
	n, err := strconv.ParseUint(o[key], 0, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is no number", key, o[key])
	}
	return uint32(n), nil
}

func (s *story) command(t testing.TB, words []string) error {
	t.Helper()
	verb, args := words[0], words[1:]
	need := map[string]int{
		"endpoint": 1, "peer": 2, "prefix": 2, "node": 1, "subject": 1, "rule": 5, "settings": 1, "advance": 1, "forget": 1,
		"socket": 2, "send": 2, "want": 1, "flow": 1, "counter": 3, "rows": 2, "skb": 1,
	}
	if len(args) < need[verb] {
		return fmt.Errorf("%s needs %d words behind it", verb, need[verb])
	}
	switch verb {
	case "endpoint":
		return s.endpoint(t, args[0], parseOptions(args[1:]))
	case "peer", "prefix":
		return s.peer(t, verb, args[0], parseOptions(args[1:]))
	case "node":
		return s.node(t, args[0], parseOptions(args[1:]))
	case "subject":
		return s.subject(t, args[0], parseOptions(args[1:]))
	case "rule":
		return s.rule(t, args, parseOptions(args[5:]))
	case "settings":
		return s.set(t, parseOptions(args))
	case "epoch":
		s.epoch++
		s.k.SetEpoch(t, s.epoch)
		return nil
	case "advance":
		d, err := time.ParseDuration(args[0])
		if err == nil {
			s.k.Advance(t, d)
		}
		return err
	case "forget":
		return s.forget(t, args)
	case "socket":
		return s.socket(args[0], args[1])
	case "send":
		return s.send(t, args)
	case "want":
		return s.want(args)
	case "flow":
		return s.flow(args[0], parseOptions(args[1:]))
	case "noflow":
		if len(s.last.Events) > 0 {
			return fmt.Errorf("there is an event: %s", s.describe(s.last.Events[0]))
		}
		return nil
	case "counter":
		return s.counter(t, args)
	case "rows":
		if n := s.k.Len(t, args[0]); strconv.Itoa(n) != args[1] {
			return fmt.Errorf("got %d rows", n)
		}
		return nil
	case "skb":
		return s.skb(parseOptions(args))
	}
	return fmt.Errorf("%q is no command", verb)
}

func (s *story) endpoint(t testing.TB, name string, o options) error {
	p, ok := s.k.node.pods[name]
	if !ok {
		return fmt.Errorf("there is no pod %q", name)
	}
	identity, err1 := o.num("identity", PodIdentity+uint32(p.ID)-1)
	in, err2 := o.num("in", OpenSubject)
	out, err3 := o.num("out", OpenSubject)
	for _, err := range []error{err1, err2, err3} {
		if err != nil {
			return err
		}
	}
	var flags uint16
	if o.has("lockdown") {
		flags |= bpf.EndpointLockdown
	}
	if o.has("audit") {
		flags |= bpf.EndpointAudit
	}
	if o.has("mac") {
		mac, err := packet.ParseMAC(o["mac"])
		if err != nil {
			return err
		}
		p.MAC = mac
	}
	if o.has("no4") {
		p.V4 = netip.Addr{}
	}
	if o.has("no6") {
		p.V6 = netip.Addr{}
	}
	s.k.PutPod(t, p, identity, in, out, flags)
	return nil
}

func (s *story) peer(t testing.TB, verb, where string, o options) error {
	identity, err := o.num("identity", 0)
	if err != nil {
		return err
	}
	row := bpf.Peer{Identity: identity}
	for name, flag := range map[string]uint32{
		"local": bpf.PeerLocal, "host": bpf.PeerHost, "cluster": bpf.PeerCluster, "noowner": bpf.PeerNoOwner,
	} {
		if o.has(name) {
			row.Flags |= flag
		}
	}
	row.Ifindex = s.k.node.pods[o["local"]].Ifindex
	if o.has("node") {
		a, err := netip.ParseAddr(o["node"])
		if err != nil {
			return err
		}
		row.Node = bpf.AddrFrom(a)
		row.Flags |= bpf.PeerRemote | bpf.PeerCluster
	}
	if verb == "prefix" {
		c, err := netip.ParsePrefix(where)
		if err == nil {
			s.k.PutPrefix(t, c, row)
		}
		return err
	}
	a, err := netip.ParseAddr(where)
	if err == nil {
		s.k.PutPeer(t, a, row)
	}
	return err
}

func (s *story) node(t testing.TB, where string, o options) error {
	a, err := netip.ParseAddr(where)
	if err != nil {
		return err
	}
	id, err1 := o.num("id", 2)
	mtu, err2 := o.num("mtu", 0)
	var now unix.Timespec
	if err := errors.Join(err1, err2, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)); err != nil {
		return err
	}
	row := bpf.Node{ID: uint64(id), MTU: mtu, Resolved: uint64(now.Nano())}
	if mtu != 0 {
		row.MTUUntil = uint64(now.Nano()) + uint64(time.Minute)
	}
	if o.has("stale") {
		row.Resolved = 0
	}
	s.k.Put(t, "nodes", bpf.AddrFrom(a), row)
	return nil
}

func (s *story) subject(t testing.TB, id string, o options) error {
	n, err := number(id)
	if err != nil {
		return err
	}
	cookie, err := o.num("cookie", 0)
	key := bpf.PolicyPeerKey{Subject: n}
	s.tables[key] = bpf.PolicyPeer{Cookie: cookie}
	s.k.Put(t, "policy_peers", key, s.tables[key])
	return err
}

func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", s)
	}
	return uint32(n), nil
}

func protocol(s string) (uint8, error) {
	known := map[string]uint8{"any": 0, "icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58, "sctp": 132}
	if p, ok := known[s]; ok {
		return p, nil
	}
	n, err := strconv.ParseUint(s, 0, 8)
	return uint8(n), err
}

func action(s string) (v bpf.PolicyVerdict, err error) {
	switch s {
	case "allow":
		v.Action = uint8(verdict.Allow)
	case "deny":
		v.Flags = bpf.VerdictExplicitDeny
	case "authenticate":
		v.Flags = bpf.VerdictAuth
	case "refuse":
	case "redirect":
		v.Action = uint8(verdict.Redirect)
	case "audit":
		v.Action = uint8(verdict.Audit)
	default:
		n, err := strconv.ParseUint(s, 0, 8)
		v.Action = uint8(n)
		return v, err
	}
	return v, nil
}

// rule adds a row to the table that subject args[0] applies to identity args[1]. The tables of a story are numbered
// by subject and identity, so they are never shared.
func (s *story) rule(t testing.TB, args []string, o options) error {
	subject, err := number(args[0])
	if err != nil {
		return err
	}
	key := bpf.PolicyPeerKey{Subject: subject}
	if args[1] != "*" {
		if key.Identity, err = number(args[1]); err != nil {
			return err
		}
	}
	proto, err := protocol(args[2])
	if err != nil {
		return err
	}
	v, err := action(args[4])
	if err != nil {
		return err
	}
	if v.Cookie, err = o.num("cookie", 0); err != nil {
		return err
	}
	row := s.tables[key]
	if row.Table == 0 {
		row.Flags = bpf.TableNoPorts | bpf.TableNoProtos
		row.Cookie = s.tables[bpf.PolicyPeerKey{Subject: subject}].Cookie
	}
	row.Table = subject<<16 + key.Identity
	var first, last uint64
	if args[3] == "*" {
		if proto != 0 {
			row.Flags &^= bpf.TableNoProtos
		}
	} else {
		a, b, ranged := strings.Cut(args[3], "-")
		if first, err = strconv.ParseUint(a, 0, 16); err != nil {
			return err
		}
		last = first
		if ranged {
			row.Flags |= bpf.TableRanges
			if last, err = strconv.ParseUint(b, 0, 16); err != nil {
				return err
			}
		}
		if first == last {
			row.Flags &^= bpf.TableNoPorts
		}
	}
	s.k.PutRow(t, row.Table, proto, uint16(first), uint16(last), args[3] == "*", v)
	s.tables[key] = row
	s.k.Put(t, "policy_peers", key, row)
	return nil
}

func (s *story) set(t testing.TB, o options) error {
	for name, flag := range map[string]uint32{"audit": bpf.SettingAudit, "trace": bpf.SettingTraceAll, "snap": bpf.SettingSnap} {
		if o.has(name) {
			s.settings.Flags |= flag
		}
	}
	switch o["tunnel"] {
	case "geneve":
		s.settings.Tunnel, s.settings.TunnelPort = bpf.TunnelGeneve, bpf.PortFrom(6081)
	case "vxlan":
		s.settings.Tunnel, s.settings.TunnelPort = bpf.TunnelVXLAN, bpf.PortFrom(8472)
	}
	if o.has("tunnel") {
		s.settings.Underlay4, s.settings.Underlay6 = s.settings.Masq4, s.settings.Masq6
		s.settings.Router4, s.settings.Router6 = bpf.AddrFrom(netip.MustParseAddr("10.0.0.1")), bpf.AddrFrom(netip.MustParseAddr("fd00::1"))
	}
	if o.has("notunnel") {
		s.settings.Tunnel = bpf.TunnelNone
	}
	if o.has("nounderlay") {
		s.settings.Underlay4, s.settings.Underlay6 = bpf.Addr{}, bpf.Addr{}
	}
	if o.has("device") {
		i, ok := s.k.Device(o["device"])
		if !ok {
			return fmt.Errorf("there is no device %q", o["device"])
		}
		s.settings.TunnelIfindex = i
	}
	if o.has("nomasq") {
		s.settings.Flags &^= bpf.SettingMasq4 | bpf.SettingMasq6
	}
	if o.has("nomasqaddr") {
		s.settings.Masq4, s.settings.Masq6 = bpf.Addr{}, bpf.Addr{}
	}
	if o.has("nat") {
		if _, err := fmt.Sscanf(o["nat"], "%d-%d", &s.settings.NatMin, &s.settings.NatMax); err != nil {
			return fmt.Errorf("nat: %w", err)
		}
	}
	if o.has("report") {
		d, err := time.ParseDuration(o["report"])
		if err != nil {
			return err
		}
		s.settings.ReportInterval = uint64(d)
	}
	s.k.Put(t, "settings", uint32(0), s.settings)
	return nil
}

func (s *story) forget(t testing.TB, args []string) error {
	var err error
	switch args[0] {
	case "endpoint":
		err = s.k.maps["endpoints"].Delete(s.k.node.pods[args[1]].Ifindex)
	case "peer":
		err = s.k.maps["peers"].Delete(bpf.AddrFrom(netip.MustParseAddr(args[1])))
	case "ways-back":
		return s.forgetWaysBack()
	default:
		m := s.k.maps[args[0]]
		if m == nil {
			return fmt.Errorf("there is no map %q", args[0])
		}
		clearMap(t, args[0], m)
	}
	return err
}

// forgetWaysBack loses one half of every translation, as an LRU map may.
func (s *story) forgetWaysBack() error {
	m := s.k.maps["nat"]
	var key bpf.NatKey
	var back []bpf.NatKey
	var row bpf.NatEntry
	it := m.Iterate()
	for it.Next(&key, &row) {
		if key.Dir == 1 {
			back = append(back, key)
		}
	}
	if err := it.Err(); err != nil {
		return err
	}
	for _, key := range back {
		if err := m.Delete(key); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) socket(proto, at string) error {
	var err error
	var c interface{ Close() error }
	s.k.do(func() {
		if proto == "tcp" {
			c, err = net.Listen("tcp", at)
		} else {
			c, err = net.ListenPacket("udp", at)
		}
	})
	if err == nil {
		s.ended = append(s.ended, func() { _ = c.Close() })
	}
	return err
}

// link is how a frame arrives at a program by a device when its text does not say.
func (s *story) linkOf(program, device string) packet.Link {
	switch program {
	case "pod_egress":
		return packet.Link{Src: s.k.node.pods[device].MAC, Dst: gatewayMAC()}
	case "uplink_ingress":
		return packet.Link{Src: routerMAC(), Dst: uplinkMAC()}
	case "uplink_egress":
		return packet.Link{Src: uplinkMAC(), Dst: routerMAC()}
	}
	return packet.Link{Src: gatewayMAC(), Dst: gatewayMAC()}
}

func (s *story) send(t testing.TB, args []string) error {
	program, text := args[0], args[len(args)-1]
	device := map[string]string{
		"host_egress": hostDevice, "uplink_ingress": uplinkDevice, "uplink_egress": uplinkDevice,
	}[program]
	rest := args[1 : len(args)-1]
	if len(rest) > 0 && !strings.Contains(rest[0], "=") && rest[0] != "complete" && rest[0] != "forwarded" {
		device, rest = rest[0], rest[1:]
	}
	ifindex, ok := s.k.Device(device)
	if !ok {
		return fmt.Errorf("there is no device %q", device)
	}
	o := parseOptions(rest)
	mark, err1 := o.num("mark", 0)
	priority, err2 := o.num("priority", 0)
	gso, err3 := o.num("gso", 0)
	for _, err := range []error{err1, err2, err3} {
		if err != nil {
			return err
		}
	}
	s.link = s.linkOf(program, device)
	frame, err := packet.Parse(text, s.link)
	if err != nil {
		return err
	}
	s.sent = packet.Print(frame)
	in := Input{Program: program, Ifindex: ifindex, Frame: frame, Mark: mark, Priority: priority, GSOSize: gso, Complete: o.has("complete")}
	if o.has("forwarded") {
		in.From, _ = s.k.Device(uplinkDevice)
	}
	s.last, err = s.k.send(in)
	if err == nil && s.last.Verdict == Tunnel && s.settings.TunnelIfindex == 0 {
		s.port = plainTunnelPort(s.last.Frame)
	}
	if err == nil && os.Getenv("PORIN_STORY") != "" {
		t.Logf("%s\n  -> %s", s.sent, s.outcome())
	}
	return err
}
