package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"porin/internal/ipam"
	"porin/internal/labels"
	"porin/internal/verdict"
)

const allowWeb = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
`

func TestCreateIsJudgedAtOnce(t *testing.T) {
	a := newAgent(t, allowWeb)
	web, client, other := a.create("web", "k8s:app=web"), a.create("client", "k8s:app=client"), a.create("other", "k8s:app=other")
	for _, tc := range []struct {
		from Endpoint
		port uint16
		want bool
	}{{client, 80, true}, {client, 81, false}, {other, 80, false}} {
		for _, addr := range []netip.Addr{tc.from.IPv4, tc.from.IPv6} {
			if got := a.can(web, verdict.Ingress, addr, tc.port); got != tc.want {
				t.Errorf("%s (%s) to web port %d: allowed %v, want %v", tc.from.Name(), addr, tc.port, got, tc.want)
			}
		}
	}
	if web.Phase != Ready || web.Revision != 1 || web.Identity == client.Identity || !web.Labels.Has(labels.Label{Source: "k8s", Key: labels.KeyNamespace, Value: "default"}) {
		t.Errorf("row of web: %+v", web)
	}
	if web.MTU != 1500 {
		t.Errorf("mtu of web %d, want the node's 1500", web.MTU)
	}
	var steps []string
	for _, l := range a.Log(web.ID) {
		steps = append(steps, string(l.Phase)+": "+l.Message)
	}
	if got, want := strings.Join(steps, "\n"), fmt.Sprintf("creating: has addresses %s, %s\nwaiting-for-identity: asks for the identity of %s\n"+
		"creating: has identity %s; its device %s is made\nready: identity %[4]s, policy revision 1 is in force",
		web.IPv4, web.IPv6, web.Security, web.Identity, web.Device); got != want {
		t.Errorf("log of web:\n%s\nwant:\n%s", got, want)
	}
	for _, ref := range []string{"1", "endpoint-id:1", "container-id:web", "cni-attachment-id:web:eth0", "pod-name:default/web", "ipv4:" + web.IPv4.String(), "ipv6:" + web.IPv6.String()} {
		if got, err := a.Get(ref); err != nil || got.ID != web.ID {
			t.Errorf("Get(%s) = %d, %v; want %d", ref, got.ID, err, web.ID)
		}
	}
	for _, ref := range []string{"0", "99999", "x", "pod-name:default/none", "ipv4:::1", "what:ever", "container-id:"} {
		if got, err := a.Get(ref); err == nil {
			t.Errorf("Get(%s) = %d, want an error", ref, got.ID)
		}
	}
}

func TestCreateAgainIsTheSame(t *testing.T) {
	a := newAgent(t)
	first := a.create("one", "k8s:app=web")
	if again := a.create("one", "k8s:app=web"); !reflect.DeepEqual(first, again) {
		t.Errorf("again:\n%+v\nfirst:\n%+v", again, first)
	}
	if err := a.Check(t.Context(), first.Attachment(), Expect{Netns: first.Netns, IPs: []netip.Addr{first.IPv4, first.IPv6}, MAC: first.MAC.String()}); err != nil {
		t.Errorf("Check: %v", err)
	}
	// The same name in another network namespace is another workload.
	req := request("one", "k8s:app=web")
	req.Netns = "/run/netns/new"
	second, err := a.Create(t.Context(), req)
	if err != nil || second.Netns != req.Netns || second.IPv4 == first.IPv4 || len(a.kernel.devices) != 1 {
		t.Errorf("in another netns: %+v, %v; devices %v", second, err, a.kernel.devices)
	}
	if err := a.Delete(t.Context(), "one", "eth0"); err != nil {
		t.Fatal(err)
	}
	if err := a.Delete(t.Context(), "one", "eth0"); err != nil {
		t.Errorf("second delete: %v", err)
	}
	a.empty()
}

func TestHundredParallelCreatesOfOneAttachment(t *testing.T) {
	a := newAgent(t, allowWeb)
	eps := make([]Endpoint, 100)
	var wg sync.WaitGroup
	for i := range eps {
		wg.Go(func() {
			var err error
			if eps[i], err = a.Create(context.Background(), request("one", "k8s:app=web")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, ep := range eps {
		if !reflect.DeepEqual(ep, eps[0]) {
			t.Fatalf("two answers:\n%+v\n%+v", ep, eps[0])
		}
	}
	if len(a.kernel.devices) != 1 || a.rows.Len() != 1 {
		t.Errorf("%d devices, %d rows", len(a.kernel.devices), a.rows.Len())
	}
}

func TestThousandCreateDeleteLeaveNothing(t *testing.T) {
	a := newAgent(t, allowWeb)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 125 {
				name := fmt.Sprintf("w%d-%d", w, i)
				if _, err := a.Create(context.Background(), request(name, fmt.Sprintf("k8s:app=a%d", i%7))); err != nil {
					t.Error(err)
				}
				if err := a.Delete(context.Background(), name, "eth0"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	a.empty()
	for _, id := range a.ids.List() {
		if !id.ID.IsReserved() && a.ids.Release(t.Context(), id.ID) == nil {
			t.Errorf("identity %d is still counted", id.ID)
		}
	}
}

// TestCreateFailureLeavesNothing lets each call that Create makes fail once.
func TestCreateFailureLeavesNothing(t *testing.T) {
	boom := errors.New("boom")
	for _, op := range []string{"CreateDevice", "PutSubject", "WriteEndpoint", "Commit"} {
		t.Run(op, func(t *testing.T) {
			a := newAgent(t, allowWeb)
			n := 0
			a.kernel.fail = func(got string) error {
				if got == op {
					if n++; n == 1 {
						return boom
					}
				}
				return nil
			}
			_, err := a.Create(t.Context(), request("one", "k8s:app=web"))
			if !errors.Is(err, boom) {
				t.Fatalf("got %v, want boom", err)
			}
			a.empty()
			a.create("one", "k8s:app=web")
		})
	}
	t.Run("store", func(t *testing.T) {
		a := newAgent(t)
		a.store.down = true
		if _, err := a.Create(t.Context(), request("one", "k8s:app=web")); err == nil {
			t.Fatal("no error")
		}
		a.empty()
	})
	t.Run("disk", func(t *testing.T) {
		a := newAgent(t)
		if err := os.Remove(a.Endpoints.dir()); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Create(t.Context(), request("one", "k8s:app=web")); err == nil || !strings.Contains(err.Error(), "save endpoint 1") {
			t.Fatalf("got %v", err)
		}
		a.empty()
	})
	t.Run("addresses", func(t *testing.T) {
		a := newAgent(t)
		for i := range 65533 {
			if err := a.ipam.AllocateExact("x", netip.AddrFrom4([4]byte{10, 1, byte((i + 2) >> 8), byte(i + 2)})); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.Create(t.Context(), request("one")); err == nil || !strings.Contains(err.Error(), "65533 of 65533 used") {
			t.Fatalf("got %v", err)
		}
		if a.rows.Len() != 0 || len(a.notes) != 0 || len(a.kernel.devices) != 0 {
			t.Error("something is left")
		}
	})
}

// TestDevicesAreMadeInParallel: nobody waits for another one's device.
func TestDevicesAreMadeInParallel(t *testing.T) {
	a := newAgent(t)
	const n = 10
	var inside sync.WaitGroup
	inside.Add(n)
	a.kernel.enter = func(string) { inside.Done(); inside.Wait() } // hangs unless all are in at once
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			if _, err := a.Create(ctx, request(fmt.Sprintf("p%d", i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestCallerGivesUp: a Create whose caller is gone while it waits for the turn is undone.
func TestCallerGivesUp(t *testing.T) {
	a := newAgent(t)
	if err := a.take(t.Context()); err != nil { // a long change is under way
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := a.Create(ctx, request("one"))
		done <- err
	}()
	a.eventually("its device is made", func() bool { _, ok := a.kernel.DeviceIndex(Attachment{"one", "eth0"}.DeviceName()); return ok })
	cancel()
	a.give()
	if err := <-done; err == nil {
		// The turn came first: then it is there, whole.
		if err := a.Delete(t.Context(), "one", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	a.empty()
}

// TestDiskFull: labels change all the same, an alarm says that they are not on disk, and they get there.
func TestDiskFull(t *testing.T) {
	a := newAgent(t)
	a.run()
	ep := a.create("one", "k8s:app=web")
	aside := a.Endpoints.dir() + ".aside"
	if err := os.Rename(a.Endpoints.dir(), aside); err != nil {
		t.Fatal(err)
	}
	moved, err := a.SetLabels(t.Context(), ep.ID, labels.Labels{{Source: "k8s", Key: "app", Value: "db"}}, nil)
	if err != nil || moved.Phase != Ready || moved.Identity == ep.Identity {
		t.Fatalf("%+v, %v", moved, err)
	}
	if al := a.Alarms(); len(al) != 1 || !strings.Contains(al[0], "out of date") {
		t.Errorf("alarms: %q", al)
	}
	if err := os.Rename(aside, a.Endpoints.dir()); err != nil {
		t.Fatal(err)
	}
	a.eventually("the file is up to date", func() bool {
		data, err := os.ReadFile(a.path(ep.ID))
		if err != nil {
			return false
		}
		saved, err := decodeFile(ep.ID, data)
		return err == nil && saved.Identity == moved.Identity && len(a.Alarms()) == 0
	})
}

// TestUndoIsRetried: what the kernel refuses to take away is not forgotten, and its addresses are not given away.
func TestUndoIsRetried(t *testing.T) {
	a := newAgent(t)
	ep := a.create("one", "k8s:app=web")
	stuck := true
	a.kernel.fail = func(op string) error {
		if op == "DeleteDevice" && stuck {
			return errors.New("busy")
		}
		return nil
	}
	if err := a.Delete(t.Context(), "one", "eth0"); err == nil {
		t.Fatal("Delete says that all is well")
	}
	if row, ok := a.ByID(ep.ID); !ok || row.Phase != Disconnecting || !strings.Contains(row.Message, "busy") {
		t.Fatalf("row %+v, %v", row, ok)
	}
	if a.can(ep, verdict.Egress, netip.MustParseAddr("1.1.1.1"), 80) {
		t.Error("the endpoint that cannot be removed still talks")
	}
	if err := a.ipam.AllocateExact("another", ep.IPv4); !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("its address is free: %v", err)
	}
	a.kernel.mu.Lock()
	stuck = false
	a.kernel.mu.Unlock()
	a.run()
	a.eventually("it is removed", a.idle)
	a.empty()
}

func TestCreateWaitsForPolicies(t *testing.T) {
	a := startAgent(t, newModel(), newStore(), filepath.Join(t.TempDir(), "state"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // long enough to come to the point where it waits
	defer cancel()
	if _, err := a.Create(ctx, request("one")); !errors.Is(err, ErrNotReady) {
		t.Fatalf("before the first policies: got %v, want ErrNotReady", err)
	}
	a.apply()
	a.create("one")
}

func TestRequestsAreRefused(t *testing.T) {
	a := newAgent(t)
	for name, tc := range map[string]struct {
		change func(*Request)
		want   error
	}{
		"container traversal": {func(r *Request) { r.ContainerID = "../x" }, ErrInvalid},
		"container empty":     {func(r *Request) { r.ContainerID = "" }, ErrInvalid},
		"container newline":   {func(r *Request) { r.ContainerID = "a\nb" }, ErrInvalid},
		"ifname long":         {func(r *Request) { r.IfName = "abcdefghijklmnop" }, ErrInvalid},
		"ifname slash":        {func(r *Request) { r.IfName = "a/b" }, ErrInvalid},
		"ifname lo":           {func(r *Request) { r.IfName = "lo" }, ErrInvalid},
		"ifname dots":         {func(r *Request) { r.IfName = ".." }, ErrInvalid},
		"ifname template":     {func(r *Request) { r.IfName = "eth%d" }, ErrInvalid},
		"netns relative":      {func(r *Request) { r.Netns = "run/netns/a" }, ErrInvalid},
		"netns traversal":     {func(r *Request) { r.Netns = "/run/netns/../../etc" }, ErrInvalid},
		"netns nul":           {func(r *Request) { r.Netns = "/run/netns/a\x00" }, ErrInvalid},
		"mtu 1":               {func(r *Request) { r.MTU = 1 }, ErrInvalid},
		"mtu below IPv6":      {func(r *Request) { r.MTU = 1000 }, ErrInvalid},
		"namespace":           {func(r *Request) { r.Namespace = "a;k8s:role=admin" }, ErrInvalid},
		"pod":                 {func(r *Request) { r.Pod = "a\x1b[31m" }, ErrInvalid},
		"label reserved":      {func(r *Request) { r.Labels = labels.Labels{{Source: "reserved", Key: "host"}} }, ErrRefused},
		"label cidr":          {func(r *Request) { r.Labels = labels.Labels{{Source: "cidr", Key: "10.0.0.0/8"}} }, ErrRefused},
		"label namespace": {func(r *Request) {
			r.Labels = labels.Labels{{Source: "any", Key: labels.KeyNamespace, Value: "kube-system"}}
		}, ErrInvalid},
		"label namespace key": {func(r *Request) {
			r.Labels = labels.Labels{{Source: "cni", Key: labels.KeyNamespace, Value: "kube-system"}}
		}, ErrRefused},
		"label ns labels": {func(r *Request) {
			r.Labels = labels.Labels{{Source: "k8s", Key: labels.KeyNamespaceLabels + "team", Value: "a"}}
		}, ErrRefused},
		"label newline":   {func(r *Request) { r.Labels = labels.Labels{{Source: "k8s", Key: "a", Value: "x\ny"}} }, ErrInvalid},
		"label separator": {func(r *Request) { r.Labels = labels.Labels{{Source: "k8s", Key: "a=b;k8s:role"}} }, ErrInvalid},
		"label count":     {func(r *Request) { r.Labels = make(labels.Labels, 5000) }, ErrInvalid},
		"label size": {func(r *Request) {
			r.Labels = labels.Labels{{Source: "k8s", Key: "a", Value: strings.Repeat("x", 1<<20)}}
		}, ErrInvalid},
	} {
		req := request("one", "k8s:app=web")
		tc.change(&req)
		if _, err := a.Create(t.Context(), req); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
	a.empty()
}

func TestCheckFindsDifferences(t *testing.T) {
	a := newAgent(t)
	ep := a.create("one")
	other := a.create("two")
	for name, want := range map[string]Expect{
		"netns":           {Netns: "/run/netns/two"},
		"forged address":  {IPs: []netip.Addr{ep.IPv4, ep.IPv6, other.IPv4}},
		"another's":       {IPs: []netip.Addr{other.IPv4, other.IPv6}},
		"missing address": {IPs: []netip.Addr{ep.IPv4}},
		"mac":             {MAC: "02:00:00:00:00:01"},
	} {
		if err := a.Check(t.Context(), ep.Attachment(), want); !errors.Is(err, ErrDiffers) {
			t.Errorf("%s: got %v, want ErrDiffers", name, err)
		}
	}
	if err := a.Check(t.Context(), Attachment{"none", "eth0"}, Expect{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown attachment: got %v", err)
	}
	delete(a.kernel.devices, ep.Device)
	if err := a.Check(t.Context(), ep.Attachment(), Expect{}); !errors.Is(err, ErrDiffers) || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("device gone: got %v", err)
	}
}

func TestGCRemovesWhatIsNotKept(t *testing.T) {
	a := newAgent(t)
	keep, gone := a.create("keep"), a.create("gone")
	req := request("elsewhere")
	req.Network = "other"
	other, err := a.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.GC(t.Context(), "net", []Attachment{keep.Attachment(), {"never-was", "eth0"}}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		ep   Endpoint
		want bool
	}{{keep, true}, {gone, false}, {other, true}} {
		if _, ok := a.ByID(tc.ep.ID); ok != tc.want {
			t.Errorf("%s: there %v, want %v", tc.ep.Name(), ok, tc.want)
		}
	}
}

func TestDeviceThatVanishesIsCollected(t *testing.T) {
	a := newAgent(t)
	a.run()
	ep := a.create("one")
	renamed := a.create("two")
	a.kernel.mu.Lock()
	delete(a.kernel.devices, ep.Device)
	delete(a.kernel.devices, renamed.Device)
	a.kernel.devices["dummy0"] = renamed.Ifindex
	a.kernel.mu.Unlock()
	a.eventually("the first is gone and the second denied", func() bool {
		_, there := a.ByID(ep.ID)
		row, _ := a.ByID(renamed.ID)
		return !there && row.Phase == NotReady && strings.Contains(row.Message, "dummy0")
	})
	if a.can(renamed, verdict.Egress, netip.MustParseAddr("1.1.1.1"), 80) {
		t.Error("a renamed device still talks")
	}
	a.kernel.mu.Lock()
	delete(a.kernel.devices, "dummy0")
	a.kernel.devices[renamed.Device] = renamed.Ifindex
	a.kernel.mu.Unlock()
	a.eventually("the second is ready again", func() bool { row, _ := a.ByID(renamed.ID); return row.Phase == Ready })
	if err := a.Delete(t.Context(), "two", "eth0"); err != nil {
		t.Fatal(err)
	}
	a.empty()
}

func TestLeftOverDeviceIsReplacedOrDeleted(t *testing.T) {
	a := newAgent(t)
	at := Attachment{"one", "eth0"}
	a.kernel.devices[at.DeviceName()] = 7
	ep := a.create("one")
	if ep.Ifindex == 7 {
		t.Error("took over a device of unknown content")
	}
	a.kernel.devices[Attachment{"two", "eth0"}.DeviceName()] = 8
	if err := a.Delete(t.Context(), "two", "eth0"); err != nil || len(a.kernel.devices) != 1 {
		t.Errorf("delete without a row: %v, devices %v", err, a.kernel.devices)
	}
}

// BenchmarkCreateDelete is what an endpoint costs this room: without a device, with its state file.
func BenchmarkCreateDelete(b *testing.B) {
	a := newAgent(b, allowWeb)
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("p%d", i)
		a.create(name, "k8s:app=web")
		if err := a.Delete(b.Context(), name, "eth0"); err != nil {
			b.Fatal(err)
		}
	}
}
