package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"porin/bpf"
	"porin/internal/identity"
	"porin/internal/verdict"
)

// ErrKey is returned for a key that no row of the map can have.
var ErrKey = errors.New("not a key of this map")

// MapColumns returns the columns of a map that ListMap lists; nil if there is no such map.
func MapColumns(name string) []string {
	switch name {
	case "endpoints":
		return []string{"ENDPOINT", "IFINDEX", "IPV4", "IPV6", "IDENTITY", "INGRESS", "EGRESS", "MAC", "FLAGS"}
	case "policy":
		return []string{"SUBJECT", "PEER", "TABLE", "PORT", "ACTION", "COOKIE", "PROXY"}
	case "ipcache":
		return []string{"PREFIX", "IDENTITY", "IFINDEX", "NODE", "FLAGS"}
	case "ct":
		return []string{"SOURCE", "DESTINATION", "PROTO", "ACTION", "FLAGS", "EXPIRES", "FROM", "TO", "SENT", "RECEIVED", "COOKIE-OUT", "COOKIE-IN"}
	case "nat":
		return []string{"SOURCE", "DESTINATION", "PROTO", "DIRECTION", "TRANSLATED", "IDLE"}
	}
	return nil
}

// ListMap emits the rows of a map as text: endpoints, policy, ipcache, ct or nat. With a key, only the rows that are about
// it: an endpoint's number, ifindex or address; a subject or a peer; an address, for which the programs look as they do for a
// packet's, or a CIDR; one end of a flow, with or without the port.
func (d *Datapath) ListMap(name, key string, emit func(columns []string, row []string) error) error {
	list, ok := map[string]func(emitter) error{
		"endpoints": d.listEndpoints, "policy": d.listPolicy, "ipcache": d.listPeers, "ct": d.listConntrack, "nat": d.listNat,
	}[name]
	if !ok {
		return fmt.Errorf("list map %q: known are endpoints, policy, ipcache, ct, nat", name)
	}
	if ip, err := netip.ParseAddr(key); err == nil && name == "ipcache" {
		return d.findPeer(ip.Unmap().WithZone(""), emit)
	}
	key, err := mapKey(name, key)
	if err != nil {
		return err
	}
	return list(emitter{key, MapColumns(name), emit})
}

// mapKey writes key as the rows of the map do.
func mapKey(name, key string) (string, error) {
	if key == "" {
		return "", nil
	}
	switch name {
	case "ipcache":
		p, err := netip.ParsePrefix(key)
		if err != nil {
			return "", fmt.Errorf("%q: an address or a CIDR is wanted: %w", key, ErrKey)
		}
		return p.Masked().String(), nil
	case "ct", "nat":
		if a, err := netip.ParseAddr(key); err == nil {
			return a.Unmap().String(), nil
		}
		ap, err := netip.ParseAddrPort(key)
		if err != nil {
			return "", fmt.Errorf("%q: ADDRESS or ADDRESS:PORT is wanted: %w", key, ErrKey)
		}
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String(), nil
	}
	return key, nil
}

type emitter struct {
	key     string
	columns []string
	emit    func(columns []string, row []string) error
}

// rows emits sorted rows. keys is how many leading columns a key may match.
func (e emitter) rows(keys int, rows [][]string) error {
	slices.SortFunc(rows, slices.Compare)
	for _, r := range rows {
		if e.key != "" && !slices.ContainsFunc(r[:keys], func(cell string) bool { return cell == e.key || hostOf(cell) == e.key }) {
			continue
		}
		if err := e.emit(e.columns, r); err != nil {
			return err
		}
	}
	return nil
}

// hostOf is the address of ADDRESS:PORT; empty for anything else.
func hostOf(cell string) string {
	ap, err := netip.ParseAddrPort(cell)
	if err != nil {
		return ""
	}
	return ap.Addr().String()
}

func (d *Datapath) listEndpoints(e emitter) error {
	all, err := d.endpoints.all()
	if err != nil {
		return err
	}
	var rows [][]string
	for ifindex, r := range all {
		var flags []string
		if r.Flags&bpf.EndpointLockdown != 0 {
			flags = append(flags, "lockdown")
		}
		if r.Flags&bpf.EndpointAudit != 0 {
			flags = append(flags, "audit")
		}
		rows = append(rows, []string{
			num(uint32(r.ID)), num(ifindex), addr(r.V4), addr(r.V6), identity.ID(r.Identity).String(), num(r.SubjectIn), num(r.SubjectOut),
			macText(r.MAC), dash(strings.Join(flags, ",")),
		})
	}
	return e.rows(4, rows)
}

// listPolicy joins the three policy maps: a line per subject, peer and port.
func (d *Datapath) listPolicy(e emitter) error {
	peers, err := d.policy.peers.all()
	if err != nil {
		return err
	}
	ports, err := d.policy.ports.all()
	if err != nil {
		return err
	}
	ranges, err := d.policy.ranges.all()
	if err != nil {
		return err
	}
	type line struct {
		what string
		v    bpf.PolicyVerdict
	}
	tables := map[uint32][]line{}
	for k, v := range ports {
		port := strconv.Itoa(int(k.Port.Host()))
		if k.Wild != 0 {
			port = "any"
		}
		tables[k.Table] = append(tables[k.Table], line{proto(k.Proto) + "/" + port, v})
	}
	for k, v := range ranges {
		first := int(k.Port.Host())
		last := first + 1<<(portBits+rangeFixed-int(k.PrefixLen)) - 1
		tables[k.Table] = append(tables[k.Table], line{fmt.Sprintf("%s/%d-%d", proto(k.Proto), first, last), v})
	}
	var rows [][]string
	for k, p := range peers {
		peer := "else"
		if k.Identity != 0 {
			peer = identity.ID(k.Identity).String()
		}
		if len(tables[p.Table]) == 0 {
			rows = append(rows, []string{num(k.Subject), peer, num(p.Table), "-", "deny", hex32(p.Cookie), "-"})
		}
		for _, l := range tables[p.Table] {
			action := verdict.Action(l.v.Action).String()
			if l.v.Flags&bpf.VerdictExplicitDeny != 0 {
				action += " (rule)"
			}
			if l.v.Flags&bpf.VerdictAuth != 0 {
				action += " (authentication)"
			}
			proxy := "-"
			if l.v.ProxyPort.Host() != 0 {
				proxy = num(uint32(l.v.ProxyPort.Host()))
			}
			rows = append(rows, []string{num(k.Subject), peer, num(p.Table), l.what, action, hex32(l.v.Cookie), proxy})
		}
	}
	return e.rows(2, rows)
}

func (d *Datapath) listPeers(e emitter) error {
	exact, err := d.peers.all()
	if err != nil {
		return err
	}
	tries, err := d.prefixes.rows.all()
	if err != nil {
		return err
	}
	var rows [][]string
	for a, p := range exact {
		ip := a.Netip()
		rows = append(rows, peerRow(netip.PrefixFrom(ip, ip.BitLen()).String(), p))
	}
	for k, p := range tries {
		rows = append(rows, peerRow(k.Prefix().String(), p))
	}
	return e.rows(1, rows)
}

// findPeer emits what the programs take ip for: its own row, else that of the longest prefix, else the world.
func (d *Datapath) findPeer(ip netip.Addr, emit func(columns []string, row []string) error) error {
	columns := MapColumns("ipcache")
	own := netip.PrefixFrom(ip, ip.BitLen())
	p, ok, err := d.peers.get(bpf.AddrFrom(ip))
	if err != nil {
		return err
	}
	if ok {
		return emit(columns, peerRow(own.String(), p))
	}
	if p, ok, err = d.prefixes.rows.get(bpf.PrefixKeyFrom(own)); err != nil {
		return err
	}
	if !ok {
		s, _, err := d.settings.get(0)
		if err != nil {
			return err
		}
		p.Identity = s.World6
		if ip.Is4() {
			p.Identity = s.World4
		}
		return emit(columns, peerRow("-", p))
	}
	// the kernel tells the row and not its key
	tries, err := d.prefixes.rows.all()
	if err != nil {
		return err
	}
	name, longest := "-", -1
	for k := range tries {
		if pre := k.Prefix(); pre.Contains(ip) && pre.Bits() > longest {
			name, longest = pre.String(), pre.Bits()
		}
	}
	return emit(columns, peerRow(name, p))
}

func peerRow(prefix string, p bpf.Peer) []string {
	var flags []string
	for _, f := range []struct {
		bit  uint32
		name string
	}{{bpf.PeerLocal, "local"}, {bpf.PeerHost, "host"}, {bpf.PeerCluster, "cluster"}, {bpf.PeerNoOwner, "no-owner"}, {bpf.PeerRemote, "remote"}} {
		if p.Flags&f.bit != 0 {
			flags = append(flags, f.name)
		}
	}
	return []string{prefix, identity.ID(p.Identity).String(), num(p.Ifindex), addr(p.Node), dash(strings.Join(flags, ","))}
}

// listConntrack emits batch by batch: half a million rows must not stand in memory as text.
func (d *Datapath) listConntrack(e emitter) error {
	now := monotonic()
	return d.conntrack.each(func(keys []bpf.CTKey, values []bpf.CTEntry) error {
		rows := make([][]string, 0, len(keys))
		for i, k := range keys {
			c := values[i]
			n := natKeyOf(k, c)
			from, to, sent, received := c.LoIdentity, c.HiIdentity, c.LoToHi, c.HiToLo
			if c.Initiator == 1 {
				from, to, sent, received = to, from, received, sent
			}
			rows = append(rows, []string{
				hostPort(n.Src, n.Sport), hostPort(n.Dst, n.Dport), proto(k.Proto), verdict.Action(c.Action).String(), ctFlags(c.Flags), left(c.Expires, now),
				identity.ID(from).String(), identity.ID(to).String(), count(sent), count(received), hex32(c.CookieOut), hex32(c.CookieIn),
			})
		}
		return e.rows(2, rows)
	})
}

func (d *Datapath) listNat(e emitter) error {
	now := monotonic()
	return d.nat.each(func(keys []bpf.NatKey, values []bpf.NatEntry) error {
		rows := make([][]string, 0, len(keys))
		for i, k := range keys {
			dir := "out"
			if k.Dir == 1 {
				dir = "back"
			}
			rows = append(rows, []string{
				hostPort(k.Src, k.Sport), hostPort(k.Dst, k.Dport), proto(k.Proto), dir, hostPort(values[i].Addr, values[i].Port), left(now, values[i].Used),
			})
		}
		return e.rows(2, rows)
	})
}

func ctFlags(f uint8) string {
	var out []string
	for _, b := range []struct {
		bit  uint8
		name string
	}{{bpf.CTSeenReply, "reply"}, {bpf.CTLoFin, "fin-lo"}, {bpf.CTHiFin, "fin-hi"}, {bpf.CTRst, "rst"}, {bpf.CTNat, "nat"}} {
		if f&b.bit != 0 {
			out = append(out, b.name)
		}
	}
	return dash(strings.Join(out, ","))
}

// left is the time from now to then; "expired" when it is over.
func left(then, now uint64) string {
	if then < now {
		return "expired"
	}
	return time.Duration(then - now).Round(time.Second).String()
}

func count(c bpf.CTCount) string { return fmt.Sprintf("%d/%dB", c.Packets, c.Bytes) }

func hostPort(a bpf.Addr, p bpf.Port) string { return netip.AddrPortFrom(a.Netip(), p.Host()).String() }

func addr(a bpf.Addr) string {
	if ip := a.Netip(); ip.IsValid() {
		return ip.String()
	}
	return "-"
}

func num(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func hex32(n uint32) string { return fmt.Sprintf("%08x", n) }

func macText(m [6]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func proto(p uint8) string {
	switch p {
	case 0:
		return "any"
	case 1:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 58:
		return "icmpv6"
	case 132:
		return "sctp"
	}
	return num(uint32(p))
}
