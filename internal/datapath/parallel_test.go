package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"porin/internal/identity"
	"porin/internal/policy"
)

// Endpoints come and go while policy and prefixes change and the repairs run; at the end nothing is left of any of it.
func TestRootEverythingAtOnce(t *testing.T) {
	n := newNode(t)
	d := n.open()
	putAllow(t, d)
	keeper := wire(t, d, pod(t, 9)) // keeps the common subjects in use
	run(t, d)
	empty := dumpOf(t, d)
	var group sync.WaitGroup
	work := func(rounds int, f func(round int) error) {
		group.Go(func() {
			for i := range rounds {
				if err := f(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for w := range 4 {
		ep := pod(t, uint16(100+w))
		work(10, func(i int) error {
			s := &policy.Subject{
				Key: policy.SubjectKey(fmt.Sprintf("own %d %d", w, i)), Isolated: true, Else: denyAll(),
				Peers: map[identity.ID]*policy.Table{1001: ports("web", 80, 80), 1002: ports(fmt.Sprint("high ", i), 1000, uint16(1001+i))},
			}
			ep := ep
			var err error
			if ep.Ifindex, ep.MAC, err = d.CreateDevice(ep); err != nil {
				return err
			}
			first := d.WriteEndpoint(ep)
			ep.Ingress = s.Key
			return errors.Join(first, d.PutSubject(s), d.WriteEndpoint(ep), d.Commit(), d.RemoveEndpoint(ep), d.DeleteDevice(ep.Device), d.Commit())
		})
	}
	work(200, func(i int) error {
		cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i), 0}), 24)
		return errors.Join(d.PutPrefixes(map[netip.Prefix]identity.ID{cidr: identity.ScopeLocal + identity.ID(i) + 1}), d.DeletePrefixes([]netip.Prefix{cidr}))
	})
	work(200, func(i int) error {
		id := identity.ID(3000 + i%7)
		return errors.Join(
			d.PatchSubject(policy.Patch{Subject: keeper.Ingress, Put: map[identity.ID]*policy.Table{id: ports("patched", 1, 9)}}),
			d.PatchSubject(policy.Patch{Subject: keeper.Ingress, Delete: []identity.ID{id}}), d.Commit())
	})
	work(50, func(int) error {
		d.MapPressure()
		d.Counters()
		d.Alarms()
		d.Lost()
		_, err := d.Survivors()
		return err
	})
	group.Wait()
	d.policy.mu.Lock()
	for _, s := range d.policy.subjects {
		s.put = s.put.Add(-freshSubject)
	}
	d.policy.mu.Unlock()
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	wait(t, "only what was there before is left", func() bool {
		got := dumpOf(t, d)
		return fmt.Sprint(got) == fmt.Sprint(empty)
	})
	if left, err := d.Devices(); err != nil || len(left) != 1 || left[0] != keeper.Device {
		t.Errorf("devices %v (%v), want %s", left, err, keeper.Device)
	}
	if len(d.Alarms()) != 0 {
		t.Errorf("alarms %v", d.Alarms())
	}
}
