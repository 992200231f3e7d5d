package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// GC takes away the endpoints of a CNI network whose attachment is not in keep.
func (e *Endpoints) GC(ctx context.Context, network string, keep []Attachment) error {
	stays := map[string]bool{}
	for _, at := range keep {
		stays[at.DeviceName()] = true
	}
	var errs []error
	for _, ep := range e.rows.List() {
		// Those being made or rebuilt belong to a request of now, or to a network that is not known yet.
		if ep.Network != network || stays[ep.Device] || !ep.settled() || ep.ContainerID == "" {
			continue
		}
		e.log.Info("endpoint is not valid any more", "ep", ep.ID, "name", ep.Name(), "network", network)
		if err := e.Delete(ctx, ep.ContainerID, ep.IfName); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Expect is what a runtime believes of an attachment. Zero fields are not compared.
type Expect struct {
	Netns string
	IPs   []netip.Addr
	MAC   string // of the workload's side
}

// Check compares an endpoint with what the runtime was told of and with what the kernel has.
func (e *Endpoints) Check(ctx context.Context, at Attachment, want Expect) error {
	if err := at.Validate(); err != nil {
		return err
	}
	if err := e.waitBegun(ctx); err != nil {
		return err
	}
	unlock, err := e.attachments.lock(ctx, at.DeviceName())
	if err != nil {
		return err
	}
	defer unlock()
	ep, ok := e.ByAttachment(at)
	if !ok {
		return fmt.Errorf("check %s: %w", at, ErrNotFound)
	}
	ifindex, there := e.deps.Datapath.DeviceIndex(ep.Device)
	differs := func(format string, args ...any) error {
		return fmt.Errorf("check endpoint %d of %s: "+format+": %w", append(append([]any{ep.ID, at}, args...), ErrDiffers)...)
	}
	switch {
	case ep.Phase != Ready:
		return differs("it is %s: %s", ep.Phase, ep.Message)
	case !there:
		return differs("device %s is gone", ep.Device)
	case ifindex != ep.Ifindex:
		return differs("device %s has index %d, not %d", ep.Device, ifindex, ep.Ifindex)
	case want.Netns != "" && want.Netns != ep.Netns:
		return differs("it is in %s, not %s", ep.Netns, want.Netns)
	case want.MAC != "" && want.MAC != ep.MAC.String():
		return differs("its MAC is %s, not %s", ep.MAC, want.MAC)
	}
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if a.IsValid() && want.IPs != nil && !slices.Contains(want.IPs, a) {
			return differs("it has %s, of which the runtime does not know", a)
		}
	}
	for _, a := range want.IPs {
		if a != ep.IPv4 && a != ep.IPv6 {
			return differs("it does not have %s", a)
		}
	}
	if c, ok := e.deps.Datapath.(Checker); ok {
		if err := c.CheckDevice(ep); err != nil {
			return differs("%v", err)
		}
	}
	return nil
}
