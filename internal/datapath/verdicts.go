package datapath

import (
	"errors"
	"fmt"
	"math/bits"

	"porin/bpf"
	"porin/internal/policy"
)

// tableRows is a verdict table as rows of policy_ports and policy_ranges.
type tableRows struct {
	ports        []bpf.PolicyPortKey
	portValues   []bpf.PolicyVerdict
	ranges       []bpf.PolicyRangeKey
	rangeVerdict []bpf.PolicyVerdict
}

const (
	rangeFixed = 48 // bits of struct policy_range_key before the port: table, pad, protocol
	portBits   = 16
)

// rowsOf spells t out: single ports and any port are exact rows, ranges become prefixes of the port.
func rowsOf(id uint32, t *policy.Table) (r tableRows, err error) {
	for _, row := range t.Rows {
		v := bpf.PolicyVerdict{
			Action: uint8(row.Verdict.Action), ProxyPort: bpf.PortFrom(row.Verdict.ProxyPort), L7: row.Verdict.L7, Cookie: uint32(row.Verdict.Cookie),
		}
		if row.Verdict.ExplicitDeny {
			v.Flags |= bpf.VerdictExplicitDeny
		}
		if row.Verdict.Auth {
			v.Flags |= bpf.VerdictAuth
		}
		switch {
		case row.AnyPort:
			r.ports = append(r.ports, bpf.PolicyPortKey{Table: id, Proto: row.Proto, Wild: 1})
			r.portValues = append(r.portValues, v)
		case row.Proto == 0:
			return tableRows{}, fmt.Errorf("verdict table %s: ports %d-%d of every protocol: a port needs a protocol", t.Key, row.First, row.Last)
		case row.First > row.Last:
			return tableRows{}, fmt.Errorf("verdict table %s: port range %d-%d runs backwards", t.Key, row.First, row.Last)
		case row.First == row.Last:
			r.ports = append(r.ports, bpf.PolicyPortKey{Table: id, Proto: row.Proto, Port: bpf.PortFrom(row.First)})
			r.portValues = append(r.portValues, v)
		default:
			for _, p := range portPrefixes(row.First, row.Last) {
				r.ranges = append(r.ranges, bpf.PolicyRangeKey{
					PrefixLen: rangeFixed + uint32(p.fixed), Table: id, Proto: row.Proto, Port: bpf.PortFrom(p.first),
				})
				r.rangeVerdict = append(r.rangeVerdict, v)
			}
		}
	}
	return r, nil
}

// write puts all rows, or none: a table that misses rows would allow what a missing deny forbids.
func (r tableRows) write(p *policyMaps) error {
	if err := p.ports.putAll(r.ports, r.portValues); err != nil {
		return err
	}
	if err := p.ranges.putAll(r.ranges, r.rangeVerdict); err != nil {
		return errors.Join(err, p.ports.delAll(r.ports))
	}
	return nil
}

func (r tableRows) remove(p *policyMaps) error {
	return errors.Join(p.ports.delAll(r.ports), p.ranges.delAll(r.ranges))
}

// portPrefix stands for the ports that share their first fixed bits with first.
type portPrefix struct {
	first uint16
	fixed int
}

// portPrefixes covers first..last exactly with the fewest prefixes, at most 30.
func portPrefixes(first, last uint16) []portPrefix {
	var out []portPrefix
	for at, end := uint32(first), uint32(last); at <= end; {
		size := portBits // log2 of the block
		if at != 0 {
			size = min(size, bits.TrailingZeros32(at))
		}
		for at+1<<size-1 > end {
			size--
		}
		out = append(out, portPrefix{uint16(at), portBits - size})
		at += 1 << size
	}
	return out
}
