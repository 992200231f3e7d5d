package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"go.yaml.in/yaml/v3"

	agentv1 "porin/api/agent/v1"
	"porin/internal/lab/space"
)

// operatorName is the process that gives nodes their ranges; it runs where the store is.
const operatorName = "operator"

// StartOperator starts another porin-operator beside the store, and returns its process. With several, one leads.
func (l *Lab) StartOperator(_ context.Context, name string) (space.Process, error) {
	p, err := l.store()
	if err != nil {
		return space.Process{}, err
	}
	settings := map[string]any{
		"name": name, "kvstore": l.storeEndpoint(), "settle": "1s", "leader-ttl": "2s", "metrics-address": "",
	}
	maps.Copy(settings, l.spec.Operator)
	b, err := yaml.Marshal(settings)
	if err != nil {
		return space.Process{}, fmt.Errorf("%s: write its configuration: %w", name, err)
	}
	file := l.path("log", name+".yaml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return space.Process{}, fmt.Errorf("%s: write its configuration: %w", name, err)
	}
	path := filepath.Join(l.state.BinDir, "porin-operator")
	if _, err := os.Stat(path); err != nil {
		return space.Process{}, fmt.Errorf("find porin-operator: %w: build it with 'make build', or say where it is with --bin-dir", err)
	}
	cmd := &exec.Cmd{Path: path, Args: []string{path, "--config", file}}
	proc, err := l.start(cmd, space.Where{Netns: p.Netns, Cgroup: p.Cgroup}, name)
	if err != nil {
		return space.Process{}, err
	}
	go func() { _ = cmd.Wait() }() // no zombie if it ends while we run; why is in its log
	return proc, l.update(storeName, func(p *place) {
		if p.Operators == nil {
			p.Operators = map[string]space.Process{}
		}
		p.Operators[name] = proc
	})
}

// KillOperator ends an operator at once.
func (l *Lab) KillOperator(ctx context.Context, name string) error {
	p, err := l.store()
	if err != nil {
		return err
	}
	proc, ok := p.Operators[name]
	if !ok {
		return fmt.Errorf("no operator of lab %s is called %q%s", l.state.Name, name, suggest(name, keys(p.Operators)))
	}
	return proc.Signal(ctx, syscall.SIGKILL)
}

// learnRanges asks the agents which ranges they were given, and tells the underlay's router.
func (l *Lab) learnRanges(ctx context.Context) error {
	var all []netip.Prefix
	for _, n := range l.places(kindNode) {
		var values map[string]string
		err := withAgent(n, func(c agentv1.AgentClient) error {
			cfg, err := c.GetConfig(ctx, &agentv1.GetConfigRequest{})
			values = cfg.GetValues()
			return err
		})
		if err != nil {
			return err
		}
		var own []netip.Prefix
		for _, f := range []struct{ family, key string }{{ipv4, "ipv4-range"}, {ipv6, "ipv6-range"}} {
			if !l.spec.has(f.family) {
				continue
			}
			r, err := netip.ParsePrefix(values[f.key])
			if err != nil {
				return fmt.Errorf("%s: its agent tells no %s range: %w", n.Name, f.family, err)
			}
			own = append(own, r)
		}
		all = append(all, own...)
		err = errors.Join(l.update(n.Name, func(p *place) { p.PodCIDRs = own }), l.routeBack(n, own))
		if err != nil {
			return err
		}
	}
	if !l.spec.tunnels() {
		return nil
	}
	return l.tunnelsOnly(all)
}

// routeBack tells the router the way to a node's pods; outside hosts do not get to know it.
func (l *Lab) routeBack(n place, ranges []netip.Prefix) error {
	var back []space.Route
	for _, c := range ranges {
		for _, a := range n.Addrs {
			if a.Is6() == c.Addr().Is6() {
				back = append(back, space.Route{Dst: c, Via: a})
			}
		}
	}
	return space.AddRoutes(l.path("ns", underlayNS), bridge, back)
}
