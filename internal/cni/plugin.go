package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// Version of the binary; the linker sets it.
var Version = "unknown"

// plugin is one run of porin-cni.
type plugin struct {
	wait    time.Duration // how long ADD waits for an agent that is away
	timeout time.Duration // how long the agent may take
	stdout  io.Writer
	now     func() time.Time
}

// Main runs the plugin as the environment and standard input say and returns its exit code. The answer, be it an
// error, goes to standard output as JSON.
func Main() int {
	p := plugin{wait: 3 * time.Second, timeout: 90 * time.Second, stdout: os.Stdout, now: time.Now}
	if e := p.run(); e != nil {
		if err := e.Print(); err != nil {
			fmt.Fprintf(os.Stderr, "porin-cni: write the error to standard output: %v; it was: %v\n", err, e)
		}
		return 1
	}
	return 0
}

func (p plugin) run() *types.Error {
	return skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add:    p.logged(Add, p.add),
		Del:    p.logged(Del, p.del),
		Check:  p.logged(Check, p.check),
		Status: p.logged(Status, p.status),
		GC:     p.logged(GC, p.gc),
	}, version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"), "CNI plugin porin-cni "+Version)
}

// logged reads the configuration, runs one command, writes its line into the log file, and turns its error into CNI's.
func (p plugin) logged(cmd Command, run func(context.Context, *Config, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(a *skel.CmdArgs) error {
		start := p.now()
		conf, err := ParseConfig(a.StdinData)
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), p.timeout)
			defer cancel()
			err = run(ctx, conf, a)
			conf.log(start, p.now().Sub(start), cmd, a, err)
		}
		if err == nil {
			return nil
		}
		var e *Error
		if !errors.As(err, &e) {
			e = Errorf(CodeIO, string(cmd), "%v", err)
		}
		return e.cni()
	}
}

// log never fails a call: it is for people.
func (c *Config) log(at time.Time, took time.Duration, cmd Command, a *skel.CmdArgs, err error) {
	if c.LogFile == "" {
		return
	}
	f, e := os.OpenFile(c.LogFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if e != nil {
		fmt.Fprintf(os.Stderr, "porin-cni: log: %v\n", e)
		return
	}
	defer f.Close()
	result := "ok"
	if err != nil {
		result = err.Error()
	}
	fmt.Fprintf(f, "%s %s network=%q container=%q ifname=%q netns=%q args=%q took=%s result=%q\n",
		at.UTC().Format(time.RFC3339Nano), cmd, c.Name, a.ContainerID, a.IfName, a.Netns, a.Args, took, result)
}

// reach connects to the agent; one that is away is waited for.
func (p plugin) reach(ctx context.Context, c *Config, wait time.Duration) (*Client, error) {
	deadline := p.now().Add(wait)
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		client, err := Dial(ctx, c.Socket())
		switch {
		case err == nil:
			return client, nil
		case errors.Is(err, syscall.EACCES):
			return nil, fmt.Errorf("%w: needs root: run with sudo", err)
		case !away(err) || p.now().Add(pause).After(deadline):
			return nil, fmt.Errorf("%w; is porin-agent running?", err)
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// away tells whether err means that no agent listens, rather than that we may not ask.
func away(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EAGAIN)
}

func (p plugin) add(ctx context.Context, c *Config, a *skel.CmdArgs) error {
	if c.RawPrevResult != nil {
		return Errorf(CodeInvalidConfig, "add the interface", "prevResult is given: porin-cni makes the interface itself and must be the first plugin of its list")
	}
	req, err := c.request(Add, a)
	if err != nil {
		return err
	}
	if err := CheckNetns(a.Netns); err != nil {
		return err
	}
	client, err := p.reach(ctx, c, p.wait)
	if err != nil {
		return Errorf(CodeTryAgainLater, "add the interface", "%v", err)
	}
	// An earlier container of this name may still wait to be deleted: the order must hold.
	if Queued(DeletionsDir(c.StateDir), a.ContainerID, a.IfName) {
		if _, err := client.call(ctx, Request{Command: Del, Network: c.Name, ContainerID: a.ContainerID, IfName: a.IfName}); err != nil {
			return Errorf(CodeTryAgainLater, "delete the earlier interface of this name", "%v", err)
		}
		if err := Unqueue(DeletionsDir(c.StateDir), a.ContainerID, a.IfName); err != nil {
			return Errorf(CodeIO, "delete the earlier interface of this name", "%v", err)
		}
		if client, err = p.reach(ctx, c, p.wait); err != nil {
			return Errorf(CodeTryAgainLater, "add the interface", "%v", err)
		}
	}
	resp, err := client.call(ctx, req)
	if err != nil {
		return err
	}
	result, err := resp.result(c)
	if err != nil {
		return Errorf(CodeDecoding, "read the agent's answer", "%v", err)
	}
	out, err := result.GetAsVersion(c.CNIVersion)
	if err != nil {
		return Errorf(CodeIncompatibleVersion, "write the result", "%v", err)
	}
	return out.PrintTo(p.stdout)
}

// call is Call with both kinds of errors as one: no answer means ask again later.
func (c *Client) call(ctx context.Context, req Request) (Response, error) {
	resp, err := c.Call(ctx, req)
	if err != nil {
		return resp, Errorf(CodeTryAgainLater, string(req.Command), "%v", err)
	}
	if resp.Error != nil {
		return resp, resp.Error
	}
	return resp, nil
}

// del deletes now, or as soon as the agent is back. Its network namespace does not matter, and may be gone.
func (p plugin) del(ctx context.Context, c *Config, a *skel.CmdArgs) error {
	req := Request{Command: Del, Network: c.Name, ContainerID: a.ContainerID, IfName: a.IfName, Netns: a.Netns}
	dir := DeletionsDir(c.StateDir)
	queued := false
	for range 2 {
		client, err := p.reach(ctx, c, 0)
		if err == nil {
			_, err = client.call(ctx, req)
		}
		var e *Error
		switch {
		case err == nil:
			if queued || Queued(dir, a.ContainerID, a.IfName) {
				return Unqueue(dir, a.ContainerID, a.IfName)
			}
			return nil
		case errors.As(err, &e) && e.Code != CodeTryAgainLater:
			return err
		case queued:
			return nil
		}
		if err := Queue(dir, Deletion{ContainerID: a.ContainerID, IfName: a.IfName, Network: c.Name, Time: p.now()}); err != nil {
			return Errorf(CodeTryAgainLater, "queue the deletion until porin-agent is back", "%v", err)
		}
		queued = true // and once more: the agent may have come up and read the queue just before
	}
	return nil
}

func (p plugin) check(ctx context.Context, c *Config, a *skel.CmdArgs) error {
	req, err := c.request(Check, a)
	if err != nil {
		return err
	}
	if req.Prev, err = c.previous(a.IfName); err != nil {
		return err
	}
	if err := CheckNetns(a.Netns); err != nil {
		return err
	}
	client, err := p.reach(ctx, c, p.wait)
	if err != nil {
		return Errorf(CodeTryAgainLater, "check the interface", "%v", err)
	}
	_, err = client.call(ctx, req)
	return err
}

func (p plugin) status(ctx context.Context, c *Config, _ *skel.CmdArgs) error {
	client, err := p.reach(ctx, c, 0)
	if err != nil {
		return Errorf(CodeNotAvailable, "ask the agent", "%v", err)
	}
	resp, err := client.Call(ctx, Request{Command: Status, Network: c.Name})
	if err != nil {
		return Errorf(CodeNotAvailable, "ask the agent", "%v", err)
	}
	if resp.Error != nil {
		return resp.Error
	}
	return nil
}

func (p plugin) gc(ctx context.Context, c *Config, _ *skel.CmdArgs) error {
	if !c.hasAttachments {
		return Errorf(CodeInvalidConfig, "collect garbage", "cni.dev/valid-attachments is missing; without it nothing can be told to be garbage")
	}
	req := Request{Command: GC, Network: c.Name}
	for _, at := range c.ValidAttachments {
		req.Attachments = append(req.Attachments, Attachment{ContainerID: at.ContainerID, IfName: at.IfName})
	}
	client, err := p.reach(ctx, c, p.wait)
	if err != nil {
		return Errorf(CodeTryAgainLater, "collect garbage", "%v", err)
	}
	_, err = client.call(ctx, req)
	return err
}

// result is the response in CNI's words. The configuration's DNS settings are passed on.
func (r Response) result(c *Config) (*types100.Result, error) {
	out := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: r.Host.Name, Mac: r.Host.MAC, Mtu: r.Host.MTU},
			{Name: r.Workload.Name, Mac: r.Workload.MAC, Mtu: r.Workload.MTU, Sandbox: r.Workload.Sandbox},
		},
		DNS: c.DNS,
	}
	if r.Workload.Name == "" || len(r.IPs) == 0 {
		return nil, errors.New("it has no interface or no address")
	}
	for _, ip := range r.IPs {
		if !ip.Address.IsValid() {
			return nil, fmt.Errorf("address %s", ip.Address)
		}
		out.IPs = append(out.IPs, &types100.IPConfig{Interface: new(1), Address: ipNet(ip.Address), Gateway: ipOf(ip.Gateway)})
	}
	for _, route := range r.Routes {
		if !route.Dst.IsValid() {
			return nil, fmt.Errorf("route to %s", route.Dst)
		}
		out.Routes = append(out.Routes, &types.Route{Dst: ipNet(route.Dst), GW: ipOf(route.Gateway)})
	}
	return out, nil
}

func ipOf(a netip.Addr) net.IP {
	if !a.IsValid() {
		return nil
	}
	return a.AsSlice()
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixFrom(n net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	addr = addr.Unmap()
	if addr.Is4() && bits == 128 {
		ones -= 96
	}
	p := netip.PrefixFrom(addr, ones)
	return p, p.IsValid()
}
