package endpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"porin/internal/identity"
	"porin/internal/ipam"
	"porin/internal/labels"
	"porin/internal/verdict"
)

// writes are the calls that change what the kernel decides.
func writes(ops []string) []string {
	return slices.DeleteFunc(slices.Clone(ops), func(op string) bool { return op == "Commit" })
}

func TestRestartChangesNothing(t *testing.T) {
	a := newAgent(t, allowWeb, randomless("20.0.0.0/8"))
	web, client := a.create("web", "k8s:app=web"), a.create("client", "k8s:app=client")
	before := judgements(a.kernel)
	prefixes := fmt.Sprint(a.kernel.prefixes)

	b := a.restart()
	if ops := writes(b.kernel.ops); len(ops) > 0 {
		t.Errorf("Restore wrote %v", ops)
	}
	row, _ := b.ByID(web.ID)
	if row.Phase != Restoring || row.IPv4 != web.IPv4 || !slices.Equal(row.MAC, web.MAC) || row.Identity != web.Identity {
		t.Errorf("restored row: %+v", row)
	}
	if got, err := b.Get("pod-name:default/client"); err != nil || got.ID != client.ID {
		t.Errorf("client: %+v, %v", got, err)
	}
	same := func(when string) {
		for p, v := range judgements(b.kernel) {
			if before[p] != v {
				t.Fatalf("%s: %+v was %s, is %s", when, p, before[p], v)
			}
		}
	}
	b.kernel.step = func(op string) { same(op) }
	b.apply(allowWeb, randomless("20.0.0.0/8"))
	b.kernel.step = nil
	same("after the policies are back")
	if got := fmt.Sprint(b.kernel.prefixes); got != prefixes {
		t.Errorf("prefixes were %s, are %s", prefixes, got)
	}
	b.run()
	b.eventually("all are ready and claimed", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return !b.notes[web.ID].unclaimed && !b.notes[client.ID].unclaimed
	})
	third := b.create("third", "k8s:app=web")
	if third.ID == web.ID || third.ID == client.ID || third.IPv4 == web.IPv4 || third.Identity != web.Identity {
		t.Errorf("a new endpoint got what is taken: %+v", third)
	}
	for _, name := range []string{"web", "client", "third"} {
		if err := b.Delete(t.Context(), name, "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	b.empty()
}

func TestStrayDevicesGo(t *testing.T) {
	a := newAgent(t)
	ep := a.create("one")
	a.kernel.devices["pn0123456789"] = 99 // made, and the agent killed before it wrote rows
	b := a.restart()
	if len(b.kernel.devices) != 1 || b.kernel.devices[ep.Device] == 0 {
		t.Errorf("devices: %v", b.kernel.devices)
	}
}

func TestPrefixesNobodyNeedsGoAfterRestart(t *testing.T) {
	a := newAgent(t, randomless("20.0.0.0/8"))
	ep := a.create("a", "k8s:app=a")
	b := a.restart()
	b.apply(randomless("30.0.0.0/8"))
	if b.can(ep, verdict.Egress, remotes[0], 80) || !b.can(ep, verdict.Egress, remotes[4], 80) || len(b.kernel.prefixes) != 1 {
		t.Errorf("prefixes %v", b.kernel.prefixes)
	}
}

func TestWorkloadThatEndedWhileAgentWasDown(t *testing.T) {
	a := newAgent(t)
	ep := a.create("one")
	delete(a.kernel.devices, ep.Device) // its network namespace ended
	b := a.restart()
	b.empty()
	b.apply()
	if err := b.Delete(t.Context(), "one", "eth0"); err != nil {
		t.Errorf("late DEL: %v", err)
	}
}

// TestLateRemovalSparesTheNextOwner: rows that point to a newer device stay.
func TestLateRemovalSparesTheNextOwner(t *testing.T) {
	a := newAgent(t)
	old := a.create("old")
	next := a.create("next")
	a.kernel.peers[old.IPv4] = modelPeer{next.Identity, next.Ifindex}
	if err := a.Delete(t.Context(), "old", "eth0"); err != nil {
		t.Fatal(err)
	}
	if a.kernel.peers[old.IPv4].ifindex != next.Ifindex {
		t.Error("the row of the address's next owner was removed")
	}
}

// TestStateFileCutAtEveryByte: the endpoint is denied, then rebuilt from the kernel; its neighbour notices nothing; one
// line says what happened.
func TestStateFileCutAtEveryByte(t *testing.T) {
	a := newAgent(t, allowWeb)
	web, client := a.create("web", "k8s:app=web"), a.create("client", "k8s:app=client")
	path := filepath.Join(a.dir, "endpoints", fmt.Sprintf("%d.json", web.ID))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	row := *a.kernel.rows[web.Ifindex]
	for _, cut := range cuts(whole) {
		a.kernel.restart()
		r := row
		a.kernel.rows[web.Ifindex] = &r
		if err := os.WriteFile(path, cut.data, 0o600); err != nil {
			t.Fatal(err)
		}
		var logged bytes.Buffer
		b := startLogging(t, slog.New(slog.NewTextHandler(&logged, nil)), a.kernel, a.store, a.dir)
		if !a.kernel.rows[web.Ifindex].locked || b.can(web, verdict.Ingress, client.IPv4, 80) {
			t.Fatalf("%s: the endpoint is not denied", cut.name)
		}
		got, _ := b.ByID(web.ID)
		if got.Phase != NotReady || !strings.Contains(got.Message, "its state file is bad") || got.IPv4 != web.IPv4 {
			t.Fatalf("%s: row %+v", cut.name, got)
		}
		if n := strings.Count(logged.String(), "its state file is bad"); n != 1 {
			t.Fatalf("%s: %d log lines, want 1:\n%s", cut.name, n, logged.String())
		}
		if err := b.ipam.AllocateExact("another", web.IPv6); !errors.Is(err, ipam.ErrTaken) {
			t.Fatalf("%s: its address can be given away: %v", cut.name, err)
		}
		if r := a.kernel.rows[client.Ifindex]; r.locked {
			t.Fatalf("%s: the neighbour is denied", cut.name)
		}
		if n, _ := b.ByID(client.ID); n.Phase != Restoring || n.Pod != "client" {
			t.Fatalf("%s: the neighbour is %+v", cut.name, n)
		}
		for _, op := range writes(b.kernel.ops) {
			if op != "LockEndpoint" {
				t.Fatalf("%s: Restore did %v", cut.name, b.kernel.ops)
			}
		}
	}

	// Rebuilt: its identity's labels come from the store by way of the table, and it is judged again.
	a.kernel.restart()
	b := startAgent(t, a.kernel, a.store, a.dir)
	b.cfg.Identities.Put(identityRow(web))
	b.apply(allowWeb)
	got, _ := b.ByID(web.ID)
	if got.Phase != Ready || !b.can(web, verdict.Ingress, client.IPv4, 80) || b.can(web, verdict.Ingress, client.IPv4, 81) {
		t.Errorf("not rebuilt: %+v", got)
	}
	b.run()
	b.eventually("its file is whole again", func() bool {
		data, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		_, err = decodeFile(web.ID, data)
		return err == nil
	})
	if err := b.Delete(t.Context(), "web", "eth0"); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(t.Context(), "client", "eth0"); err != nil {
		t.Fatal(err)
	}
	b.empty()
}

type cut struct {
	name string
	data []byte
}

// cuts are the file cut at every byte, and other ways to be of no use.
func cuts(whole []byte) []cut {
	out := []cut{
		{"newer", bytes.Replace(whole, []byte(`"format":1`), []byte(`"format":2`), 1)},
		{"other endpoint's address", bytes.Replace(whole, []byte(`"ipv4":"10.1.0.2"`), []byte(`"ipv4":"10.1.0.3"`), 1)},
		{"something behind", append(bytes.Clone(whole), '}')},
		{"zeros", make([]byte, len(whole))},
	}
	for n := range whole {
		out = append(out, cut{fmt.Sprintf("cut at byte %d", n), whole[:n]})
	}
	return out
}

func TestStateFileMissing(t *testing.T) {
	a := newAgent(t, allowWeb)
	web := a.create("web", "k8s:app=web")
	if err := os.Remove(filepath.Join(a.dir, "endpoints", "1.json")); err != nil {
		t.Fatal(err)
	}
	b := a.restart()
	b.cfg.Identities.Put(identityRow(web))
	b.apply(allowWeb)
	row, _ := b.ByID(web.ID)
	if row.Phase != Ready || row.ContainerID != "" || row.Namespace != "default" {
		t.Fatalf("rebuilt row: %+v", row)
	}
	// The runtime asks again: now it is known whose it is.
	again := b.create("web", "k8s:app=web")
	if again.ID != web.ID || again.IPv4 != web.IPv4 || again.Pod != "web" {
		t.Errorf("after ADD: %+v", again)
	}
	if _, err := os.Stat(filepath.Join(a.dir, "endpoints", "1.json")); err != nil {
		t.Errorf("no state file: %v", err)
	}
}

func TestTwoFilesWithOneAddress(t *testing.T) {
	a := newAgent(t)
	one, two := a.create("one"), a.create("two")
	two.IPv4 = one.IPv4
	if err := a.save(two); err != nil {
		t.Fatal(err)
	}
	b := a.restart()
	b.apply()
	b.run()
	first, _ := b.ByID(one.ID)
	second, _ := b.ByID(two.ID)
	if first.Phase != Ready || second.Phase != NotReady || !strings.Contains(second.Message, one.Device) {
		t.Errorf("first %s, second %s: %q", first.Phase, second.Phase, second.Message)
	}
	if err := b.Delete(t.Context(), "two", "eth0"); err != nil {
		t.Fatal(err)
	}
	if err := b.ipam.AllocateExact(one.Device, one.IPv4); err != nil {
		t.Errorf("the address is not its own: %v", err)
	}
	if err := b.ipam.AllocateExact("another", one.IPv4); !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("the address can be given away: %v", err)
	}
}

// TestStoreDisagrees: another node has our number for other labels. The endpoint gets a new number and keeps its rights;
// who has the old one now does not get them.
func TestStoreDisagrees(t *testing.T) {
	a := newAgent(t, allowWeb)
	web, client := a.create("web", "k8s:app=web"), a.create("client", "k8s:app=client")
	b := a.restart()
	b.apply(allowWeb)
	b.run()
	b.eventually("the store is watched and all claims are made", func() bool {
		b.store.mu.Lock()
		defer b.store.mu.Unlock()
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.store.tell != nil && !b.notes[web.ID].unclaimed && !b.notes[client.ID].unclaimed
	})
	stranger := labels.New(labels.Label{Source: "k8s", Key: "app", Value: "stranger"}).Key()
	b.store.mu.Lock()
	b.store.ids = map[string]identity.ID{stranger: client.Identity, web.Security.Key(): web.Identity}
	b.store.next += 100
	b.store.mu.Unlock()
	b.store.tell(true, client.Identity, stranger)
	b.eventually("client has a new number", func() bool {
		row, _ := b.ByID(client.ID)
		return row.Identity != client.Identity && row.Phase == Ready
	})
	if !b.can(web, verdict.Ingress, client.IPv4, 80) || !b.can(web, verdict.Ingress, client.IPv6, 80) {
		t.Error("client lost its rights")
	}
	b.eventually("the old number means a stranger", func() bool {
		b.kernel.mu.Lock()
		defer b.kernel.mu.Unlock()
		return b.kernel.rows[web.Ifindex].in.peers[client.Identity] == nil
	})
}

func TestForeignStateDirIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"state dir": func(d string) error { return os.Chmod(d, 0o777) },
		"endpoints": func(d string) error { return os.Chmod(filepath.Join(d, "endpoints"), 0o770) },
		"link": func(d string) error {
			if err := os.Remove(filepath.Join(d, "endpoints")); err != nil {
				return err
			}
			return os.Symlink(os.TempDir(), filepath.Join(d, "endpoints"))
		},
	} {
		dir := filepath.Join(t.TempDir(), "state")
		if err := os.MkdirAll(filepath.Join(dir, "endpoints"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		a := newAgent(t)
		e := New(quiet, Config{StateDir: dir}, a.fresh())
		if err := e.Restore(t.Context()); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
}

// TestFileOthersCanWriteIsBad: a single file is refused like a damaged one.
func TestFileOthersCanWriteIsBad(t *testing.T) {
	a := newAgent(t)
	ep := a.create("one")
	if err := os.Chmod(filepath.Join(a.dir, "endpoints", "1.json"), 0o666); err != nil {
		t.Fatal(err)
	}
	b := a.restart()
	if row, _ := b.ByID(ep.ID); row.Phase != NotReady || !strings.Contains(row.Message, "can be written by others") {
		t.Errorf("row %+v", row)
	}
}

// errKilled ends an agent in the middle of a step.
var errKilled = errors.New("killed")

// TestKilledAtEveryStep kills the agent after each row that it writes to the kernel in each kind of change, starts the
// next one and lets the runtime do what it does then. Nothing may be allowed that no rules allow, nothing may be left.
func TestKilledAtEveryStep(t *testing.T) {
	changes := map[string]func(a *agent){
		"create": func(a *agent) { a.Create(context.Background(), request("new", "k8s:app=client")) },
		"delete": func(a *agent) { a.Delete(context.Background(), "client", "eth0") },
		"apply":  func(a *agent) { a.ApplyPolicies(context.Background(), parse(a.t, randomless("20.1.0.0/16")), nil) },
		"labels": func(a *agent) {
			a.SetLabels(context.Background(), 2, labels.Labels{{Source: "k8s", Key: "app", Value: "guest"}}, nil)
		},
	}
	for name, change := range changes {
		for at := 0; ; at++ {
			a := newAgent(t, allowWeb, randomless("20.0.0.0/8"))
			web := a.create("web", "k8s:app=web")
			a.create("client", "k8s:app=client")
			before := judgements(a.kernel)
			if !killAt(a, at, change) {
				if at == 0 {
					t.Fatalf("%s: no step", name)
				}
				break // it ended before
			}
			b := a.restart()
			b.apply(allowWeb, randomless("20.0.0.0/8"))
			for p, v := range judgements(b.kernel) {
				if was, known := before[p]; p.device == web.Device && known && v == verdict.Allow && was != verdict.Allow && !strings.HasPrefix(p.remote.String(), "10.") && !strings.HasPrefix(p.remote.String(), "fd00") {
					t.Errorf("%s killed at step %d: %+v was %s, is %s", name, at, p, was, v)
				}
			}
			if r := b.kernel.rows[web.Ifindex]; r == nil || r.locked {
				t.Errorf("%s killed at step %d: the other endpoint is denied", name, at)
			}
			if name == "create" { // the runtime had no answer: it tries again
				if _, err := b.Create(t.Context(), request("new", "k8s:app=client")); err != nil {
					t.Errorf("%s killed at step %d: again: %v", name, at, err)
				}
			}
			for _, c := range []string{"web", "client", "new"} {
				if err := b.Delete(t.Context(), c, "eth0"); err != nil {
					t.Errorf("%s killed at step %d: delete %s: %v", name, at, c, err)
				}
			}
			b.empty()
			if t.Failed() {
				return
			}
		}
	}
}

// killAt runs change and ends it after the at-th write, and tells whether it came to that.
func killAt(a *agent, at int, change func(*agent)) (killed bool) {
	n := 0
	a.kernel.step = func(string) {
		if n == at {
			panic(errKilled)
		}
		n++
	}
	defer func() {
		switch p := recover(); p {
		case nil:
		case errKilled:
			killed = true
		default:
			panic(p)
		}
	}()
	change(a)
	return false
}

func FuzzStateFile(f *testing.F) {
	a := newAgent(f)
	good, err := encodeFile(a.create("one", "k8s:app=web"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"sha256":"","endpoint":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		ep, err := decodeFile(1, data)
		if err != nil {
			return
		}
		again, err := encodeFile(ep)
		if err != nil {
			t.Fatalf("accepted and cannot be written: %+v: %v", ep, err)
		}
		if _, err := decodeFile(1, again); err != nil {
			t.Fatalf("written and not accepted: %s: %v", again, err)
		}
	})
}

// TestStateFileOfAnother: a whole file under another endpoint's number would give that one this workload's identity.
func TestStateFileOfAnother(t *testing.T) {
	a := newAgent(t)
	ep := a.create("web", "k8s:app=web")
	data, err := encodeFile(ep)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeFile(ep.ID, data); err != nil || got.ID != ep.ID {
		t.Fatalf("its own: %+v, %v", got, err)
	}
	for _, id := range []uint16{0, ep.ID + 1} {
		if got, err := decodeFile(id, data); err == nil {
			t.Errorf("as that of endpoint %d: %+v", id, got)
		}
	}
}
