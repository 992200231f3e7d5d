package datapath

import (
	"fmt"

	"porin/bpf"
	"porin/internal/identity"
	"porin/internal/node"
)

// Uplinks returns the names of the devices by which pods leave the node, the preferred one first.
func (d *Datapath) Uplinks() []string { return d.host.uplinkNames() }

// RestoredRemotes returns the addresses of other nodes' workloads that a former agent left in the kernel.
func (d *Datapath) RestoredRemotes() ([]node.Remote, error) {
	var out []node.Remote
	err := d.peers.each(func(keys []bpf.Addr, values []bpf.Peer) error {
		for i, p := range values {
			id := identity.ID(p.Identity)
			if p.Flags&bpf.PeerRemote == 0 || id.IsReserved() && id != identity.Health {
				continue
			}
			out = append(out, node.Remote{Addr: keys[i].Netip(), Identity: id, Node: p.Node.Netip()})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read back the addresses of other nodes: %w", err)
	}
	return out, nil
}
