package policy

import (
	"net/netip"
	"strings"

	"porin/internal/identity"
	"porin/internal/labels"
)

// EntityNames returns the words of fromEntities and toEntities.
func EntityNames() []string {
	return []string{
		"all", "world", "world-ipv4", "world-ipv6", "cluster", "cluster-mesh", "host", "remote-node",
		"kube-apiserver", "ingress", "health", "init", "unmanaged", "none",
	}
}

// isWorkload tells whether i stands for pods, containers or processes: what endpoint selectors select unless they ask
// for a reserved label. Reserved identities and addresses outside the cluster are not workloads.
func isWorkload(i *identity.Identity) bool {
	if i.ID < identity.MinCluster || i.ID >= identity.ScopeLocal || i.Prefix.IsValid() {
		return false
	}
	for _, l := range i.Labels {
		if l.Source == labels.SourceReserved {
			return false
		}
	}
	return true
}

// remoteNodes is the top byte of the numbers that stand for other nodes.
const remoteNodes = 2

// isNode tells whether i stands for this node or another.
func isNode(i *identity.Identity) bool { return is(i, identity.Host) || is(i, identity.RemoteNode) }

// is tells whether i is the reserved identity, by number or by label.
func is(i *identity.Identity, id identity.ID) bool {
	if i.ID == id || id == identity.RemoteNode && i.ID>>24 == remoteNodes {
		return true
	}
	for k := range i.Labels {
		if l := &i.Labels[k]; l.Source == labels.SourceReserved && "reserved:"+l.Key == id.String() {
			return true
		}
	}
	return false
}

// inEntity tells whether i belongs to the entity. The entity "all" never gets here: it is everyone, known or not.
func inEntity(i *identity.Identity, name string, cfg *Config) bool {
	switch name {
	case "none":
		return false
	case "world":
		return i.Prefix.IsValid() || is(i, identity.World) || is(i, identity.WorldIPv4) || is(i, identity.WorldIPv6)
	case "world-ipv4":
		return i.Prefix.IsValid() && i.Prefix.Addr().Is4() || !i.Prefix.IsValid() && (is(i, identity.WorldIPv4) || cfg.onlyIPv4() && is(i, identity.World))
	case "world-ipv6":
		return i.Prefix.IsValid() && i.Prefix.Addr().Is6() || !i.Prefix.IsValid() && (is(i, identity.WorldIPv6) || cfg.onlyIPv6() && is(i, identity.World))
	case "cluster":
		if isWorkload(i) {
			own, named := i.Labels.Get(labels.SourceK8s, labels.KeyCluster)
			return !named || cfg.Cluster == "" || own == cfg.Cluster
		}
		return inCluster(i)
	case "cluster-mesh":
		return isWorkload(i) || inCluster(i)
	}
	for id := identity.Host; id <= identity.WorldIPv6; id++ {
		if strings.TrimPrefix(id.String(), "reserved:") == name {
			return is(i, id)
		}
	}
	return false
}

// inCluster: the reserved identities that are part of the cluster.
func inCluster(i *identity.Identity) bool {
	for _, id := range []identity.ID{
		identity.Host, identity.Init, identity.Unmanaged, identity.RemoteNode,
		identity.Ingress, identity.Health, identity.KubeAPIServer,
	} {
		if is(i, id) {
			return true
		}
	}
	return false
}

// outside returns the block of addresses that i stands for, if i is outside of the cluster: its own, or all addresses
// of a family for the identities of the rest of the world. With one family in use "world" is that family and no other: its
// addresses are in no CIDR of the family that is off, whether or not another rule names a CIDR around them.
func outside(i *identity.Identity, cfg *Config) []netip.Prefix {
	v4, v6 := netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	switch {
	case i.Prefix.IsValid():
		return []netip.Prefix{i.Prefix.Masked()}
	case i.ID == identity.WorldIPv4 || i.ID == identity.World && cfg.onlyIPv4():
		return []netip.Prefix{v4}
	case i.ID == identity.WorldIPv6 || i.ID == identity.World && cfg.onlyIPv6():
		return []netip.Prefix{v6}
	}
	return nil
}

func (c *Config) onlyIPv4() bool { return !c.DualStack && !c.OnlyIPv6 }

func (c *Config) onlyIPv6() bool { return !c.DualStack && c.OnlyIPv6 }

func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// matches tells whether addresses of block are inside of c and of none of its excepts.
func (c CIDR) matches(block netip.Prefix) bool {
	if !covers(c.Prefix, block) {
		return false
	}
	for _, e := range c.Except {
		if covers(e, block) {
			return false
		}
	}
	return true
}
