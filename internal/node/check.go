package node

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"porin/internal/identity"
	"porin/internal/labels"
)

// Source is a cluster whose records are taken in, and what its nodes may say.
type Source struct {
	Cluster  string
	ID       uint8          // in the numbers of its identities
	Prefixes []netip.Prefix // its pod ranges must lie in these; empty: anywhere
}

// Limits of one record; far above what nodes need.
const (
	maxRanges = 64
	maxHealth = 8
	maxLabels = 256
	maxPorts  = 256
	minBits4  = 8  // no node has a wider range
	minBits6  = 16 // for IPv6
)

var (
	namePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
	textPattern = regexp.MustCompile(`^[a-z0-9]?([-a-z0-9.]{0,251}[a-z0-9])?$`)
	portPattern = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)
)

// check tells what is wrong with a record of a node by itself, whatever other nodes say.
func (s Source) check(n Node) error {
	switch {
	case n.Cluster != s.Cluster || n.ClusterID != s.ID:
		return fmt.Errorf("it says that it is of cluster %q, id %d; the store is that of %q, id %d", n.Cluster, n.ClusterID, s.Cluster, s.ID)
	case !namePattern.MatchString(n.Name):
		return fmt.Errorf("name %q: only lower-case letters, digits, '-' and '.'", n.Name)
	case n.Generation == 0:
		return fmt.Errorf("it has no generation")
	case len(n.PodCIDRs) > maxRanges || len(n.Health) > maxHealth || len(n.Labels) > maxLabels:
		return fmt.Errorf("%d pod ranges, %d health addresses, %d labels are too many", len(n.PodCIDRs), len(n.Health), len(n.Labels))
	}
	for i, a := range n.Addresses {
		if !usable(a) {
			return fmt.Errorf("underlay address %s cannot be one", a)
		}
		if slices.ContainsFunc(n.Addresses[:i], func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			return fmt.Errorf("underlay addresses %v: at most one of each family", n.Addresses)
		}
	}
	for _, p := range n.PodCIDRs {
		if err := s.checkRange(p); err != nil {
			return err
		}
		if slices.ContainsFunc(n.Addresses, p.Contains) {
			return fmt.Errorf("pod range %s holds the node's own address", p)
		}
	}
	for _, h := range n.Health {
		if !within(n.PodCIDRs, h) {
			return fmt.Errorf("health address %s is in none of its pod ranges", h)
		}
	}
	for _, l := range n.Labels {
		if l.Source != labels.SourceNode {
			return fmt.Errorf("label %s: a node has labels of source %s only", l, labels.SourceNode)
		}
	}
	return nil
}

func (s Source) checkRange(p netip.Prefix) error {
	switch {
	case !p.IsValid() || p != p.Masked() || p.Addr().Is4In6():
		return fmt.Errorf("pod range %v is no CIDR", p)
	case p.Addr().Is4() && p.Bits() < minBits4 || p.Addr().Is6() && p.Bits() < minBits6:
		return fmt.Errorf("pod range %s is wider than any node's can be", p)
	case !usable(p.Addr()) || !usable(last(p)):
		return fmt.Errorf("pod range %s is not for unicast", p)
	}
	if len(s.Prefixes) > 0 && !slices.ContainsFunc(s.Prefixes, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }) {
		return fmt.Errorf("pod range %s is outside what cluster %s may use", p, s.Cluster)
	}
	return nil
}

// usable tells whether a can be a workload's or a node's.
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() &&
		!a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func within(ranges []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// reason why a record of an address is not in the kernel. The order is that of severity.
type reason uint8

const (
	accepted  reason = iota
	waiting          // the labels of its identity are not known here yet, or mean something else
	orphan           // its node has no record
	outvoted         // a newer owner has the address
	outside          // in no range that is its node's
	badNumber        // its identity cannot be one of its cluster
	badText          // names or ports that cannot be
	reasons
)

var reasonText = [reasons]string{
	accepted: "", waiting: "identity not known", orphan: "its node is not known", outvoted: "another node owns it",
	outside: "outside its node's ranges", badNumber: "identity out of range", badText: "malformed",
}

func (r reason) refused() bool { return r >= outside }

// checkAddress tells what is wrong with a record of an address by itself.
func (s Source) checkAddress(a Address) reason {
	if !usable(a.Addr) || a.Cluster != s.Cluster || !textPattern.MatchString(a.Namespace) || !textPattern.MatchString(a.Pod) || len(a.Ports) > maxPorts {
		return badText
	}
	for _, p := range a.Ports {
		if !portPattern.MatchString(p.Name) || p.Port == 0 {
			return badText
		}
	}
	if a.Identity == identity.Health {
		return accepted // where its node says so; see book.judge
	}
	if a.Identity>>16 != identity.ID(s.ID) || a.Identity&0xffff < identity.MinCluster {
		return badNumber
	}
	return accepted
}
