package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"porin/internal/cni"
	"porin/internal/endpoint"
	"porin/internal/ipam"
	"porin/internal/kvstore"
	"porin/internal/policy"
)

// addTimeout bounds an ADD: the runtime must hear of a failure while it still waits.
const addTimeout = 60 * time.Second

// replayEvery is how often deletions are looked for that came while the agent was away; one can be queued by a call that
// found the socket missing a moment before it opened.
const replayEvery = 20 * time.Second

// openCNI takes in what was queued, then opens the socket for porin-cni.
func (a *agent) openCNI(run *stack, log *slog.Logger) error {
	if err := a.replay(run.ctx, log); err != nil {
		log.Warn("queued deletions", "err", err)
	}
	l, err := listen(filepath.Join(a.cfg.RunDir, cniSocket), log)
	if err != nil {
		return err
	}
	run.start("cni", func(ctx context.Context) error { return cni.Serve(ctx, log, l, a.serveCNI) })
	run.start("cni queue", func(ctx context.Context) error {
		tick := time.NewTicker(replayEvery)
		defer tick.Stop()
		for {
			if err := a.replay(ctx, log); err != nil && ctx.Err() == nil {
				log.Warn("queued deletions", "err", err)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
	})
	return nil
}

func (a *agent) replay(ctx context.Context, log *slog.Logger) error {
	done, err := cni.Replay(cni.DeletionsDir(a.cfg.StateDir), func(d cni.Deletion) error {
		at := endpoint.Attachment{ContainerID: d.ContainerID, IfName: d.IfName}
		if ep, ok := a.endpoints.ByAttachment(at); ok && ep.Created.After(d.Time) {
			return nil // another one, made since
		}
		return a.endpoints.Delete(ctx, d.ContainerID, d.IfName)
	})
	if done > 0 {
		log.Info("deletions honoured that came while the agent was away", "count", done)
	}
	return err
}

// serveCNI answers one request of porin-cni.
func (a *agent) serveCNI(ctx context.Context, req cni.Request) cni.Response {
	ctx, cancel := context.WithTimeout(ctx, addTimeout)
	defer cancel()
	var resp cni.Response
	var err error
	switch req.Command {
	case cni.Add:
		resp, err = a.cniAdd(ctx, req)
	case cni.Del:
		err = a.endpoints.Delete(ctx, req.ContainerID, req.IfName)
	case cni.Check:
		err = a.cniCheck(ctx, req)
	case cni.GC:
		keep := make([]endpoint.Attachment, len(req.Attachments))
		for i, at := range req.Attachments {
			keep[i] = endpoint.Attachment{ContainerID: at.ContainerID, IfName: at.IfName}
		}
		err = a.endpoints.GC(ctx, req.Network, keep)
	case cni.Status:
		if a.policies.Held() {
			return cni.Response{Error: cni.Errorf(cni.CodeNotAvailable, "ask for the agent's state", "no policy is in force yet: porin status tells why")}
		}
		for _, p := range a.addresses.Pools() {
			if p.Used >= p.Size {
				return cni.Response{Error: cni.Errorf(cni.CodeLimited, "ask for the agent's state", "all %d addresses of %s are in use", p.Size, p.Prefix)}
			}
		}
	default:
		return cni.Response{Error: cni.Errorf(cni.CodeUnsupportedField, "handle the request", "command %q is not known", req.Command)}
	}
	if err != nil {
		return cni.Response{Error: cniError(req, err)}
	}
	return resp
}

func (a *agent) cniAdd(ctx context.Context, req cni.Request) (cni.Response, error) {
	ports, err := namedPorts(req.NamedPorts)
	if err != nil {
		return cni.Response{}, err
	}
	ep, err := a.endpoints.Create(ctx, endpoint.Request{
		ContainerID: req.ContainerID, IfName: req.IfName, Netns: req.Netns, Network: req.Network,
		Namespace: req.Namespace, Pod: req.Pod, UID: req.UID, Labels: req.Labels, NamedPorts: ports, MTU: req.MTU,
	})
	if err != nil {
		return cni.Response{}, err
	}
	resp := cni.Response{
		Endpoint: ep.ID,
		Host:     cni.Interface{Name: ep.Device, MTU: ep.MTU},
		Workload: cni.Interface{Name: ep.IfName, MAC: ep.MAC.String(), MTU: ep.MTU, Sandbox: ep.Netns},
	}
	for _, f := range []struct {
		addr    netip.Addr
		gateway string
		all     string
	}{
		{ep.IPv4, "169.254.1.1", "0.0.0.0/0"},
		{ep.IPv6, "fe80::1", "::/0"},
	} {
		if !f.addr.IsValid() {
			continue
		}
		gateway := netip.MustParseAddr(f.gateway)
		resp.IPs = append(resp.IPs, cni.IP{Address: netip.PrefixFrom(f.addr, f.addr.BitLen()), Gateway: gateway})
		resp.Routes = append(resp.Routes, cni.Route{Dst: netip.MustParsePrefix(f.all), Gateway: gateway})
	}
	return resp, nil
}

func (a *agent) cniCheck(ctx context.Context, req cni.Request) error {
	want := endpoint.Expect{Netns: req.Netns}
	if req.Prev != nil {
		want.MAC = req.Prev.Workload.MAC
		want.IPs = []netip.Addr{}
		for _, ip := range req.Prev.IPs {
			want.IPs = append(want.IPs, ip.Address.Addr())
		}
	}
	return a.endpoints.Check(ctx, endpoint.Attachment{ContainerID: req.ContainerID, IfName: req.IfName}, want)
}

// cniError puts an error into CNI's words. What a later try may heal gets the code that runtimes retry.
func cniError(req cni.Request, err error) *cni.Error {
	code := cni.CodeKernel
	for _, c := range []struct {
		err  error
		code cni.Code
	}{
		{endpoint.ErrDiffers, cni.CodeCheckFailed},
		{endpoint.ErrRefused, cni.CodeRefused},
		{endpoint.ErrNotReady, cni.CodeTryAgainLater},
		{kvstore.ErrUnreachable, cni.CodeTryAgainLater},
		{kvstore.ErrExhausted, cni.CodeLimited},
		{ipam.ErrExhausted, cni.CodeTryAgainLater},
		{context.DeadlineExceeded, cni.CodeTryAgainLater},
		{context.Canceled, cni.CodeTryAgainLater},
		{endpoint.ErrNotFound, cni.CodeUnknownContainer},
		{endpoint.ErrInvalid, cni.CodeInvalidEnvironment},
	} {
		if errors.Is(err, c.err) {
			code = c.code
			break
		}
	}
	if req.Command == cni.Add && code == cni.CodeInvalidEnvironment && cni.CheckNetns(req.Netns) != nil {
		code = cni.CodeInvalidNetns
	}
	return cni.Errorf(code, fmt.Sprintf("%s %s:%s", req.Command, req.ContainerID, req.IfName), "%v", err)
}

// portProtocols are those whose ports have names.
func portProtocols() map[uint8]string {
	return map[uint8]string{policy.ProtoTCP: "TCP", policy.ProtoUDP: "UDP", policy.ProtoSCTP: "SCTP"}
}

// namedPorts reads what a workload's configuration says of its ports.
func namedPorts(list []cni.NamedPort) (out []policy.NamedPort, err error) {
	for _, p := range list {
		n, want := policy.NamedPort{Name: p.Name, Port: p.Port}, cmp.Or(strings.ToUpper(p.Protocol), "TCP")
		for number, name := range portProtocols() {
			if name == want {
				n.Proto = number
			}
		}
		if n.Proto == 0 {
			return nil, fmt.Errorf("named port %q: protocol %q: TCP, UDP or SCTP: %w", p.Name, p.Protocol, endpoint.ErrInvalid)
		}
		out = append(out, n)
	}
	return out, nil
}
