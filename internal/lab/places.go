package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"porin/internal/lab/space"
)

// Place is where something of a running lab is, for programs that build on labs.
type Place struct {
	Where   space.Where // how to start a process there
	Addrs   []netip.Addr
	Agent   space.Process // of a node
	Cgroup  string        // of a node's agent
	BinDir  string        // of the agent and the plugin
	CNIConf []byte        // of a workload: what its runtime gives the plugin
}

// Place returns the node, workload or outside host called name.
func (l *Lab) Place(name string) (Place, error) {
	p, err := l.place(name)
	if err != nil {
		return Place{}, err
	}
	out := Place{Where: l.where(p), Addrs: p.Addrs, BinDir: l.state.BinDir}
	switch p.Kind {
	case kindNode:
		out.Agent, out.Cgroup = p.Agent, agentCgroup(p)
	case kindWorkload:
		out.CNIConf, err = cniConfig(p)
	}
	return out, err
}

// MustHold runs the lab's checks and returns an error that names those that did not hold.
func (l *Lab) MustHold(ctx context.Context) error {
	rows, err := l.Check(ctx, l.spec.Checks)
	if err != nil {
		return err
	}
	var failed []string
	for _, r := range rows {
		if !r.OK {
			failed = append(failed, fmt.Sprintf("%s %s: expected %s, saw %s: %s", r.Check, r.Family, r.Expected, r.Seen, r.Detail))
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("lab %s: %s", l.state.Name, strings.Join(failed, "; "))
	}
	return nil
}
