package datapath

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"porin/bpf"
	"porin/internal/identity"
	"porin/internal/policy"
	"porin/internal/verdict"
)

func TestPortPrefixesCoverExactly(t *testing.T) {
	for _, r := range [][2]uint16{{0, 65535}, {1, 65534}, {0, 1}, {80, 81}, {1000, 2000}, {32768, 65535}, {1, 65535}, {1023, 1025}, {65534, 65535}} {
		seen := map[uint16]int{}
		prefixes := portPrefixes(r[0], r[1])
		for _, p := range prefixes {
			for i := range uint32(1) << (portBits - p.fixed) {
				seen[p.first+uint16(i)]++
			}
		}
		for port := range uint32(1) << 16 {
			want := 0
			if uint16(port) >= r[0] && uint16(port) <= r[1] {
				want = 1
			}
			if seen[uint16(port)] != want {
				t.Fatalf("range %v: port %d is covered %d times, want %d", r, port, seen[uint16(port)], want)
			}
		}
		if len(prefixes) > 30 {
			t.Errorf("range %v takes %d rows", r, len(prefixes))
		}
	}
}

func TestRowsOfRefusesWhatTheMapsCannotSay(t *testing.T) {
	for name, row := range map[string]policy.Row{
		"port without protocol": {First: 80, Last: 80}, "backwards": {Proto: 6, First: 90, Last: 80},
	} {
		if _, err := rowsOf(1, &policy.Table{Key: name, Rows: []policy.Row{row}}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// policyRows are the rows of the three policy maps.
func policyRows(t testing.TB, d *Datapath) (peers, ports, ranges int) {
	t.Helper()
	var err [3]error
	peers, err[0] = d.policy.peers.len()
	ports, err[1] = d.policy.ports.len()
	ranges, err[2] = d.policy.ranges.len()
	if e := errors.Join(err[:]...); e != nil {
		t.Fatal(e)
	}
	return peers, ports, ranges
}

func TestRootSubjectsShareTablesAndArePruned(t *testing.T) {
	n := newNode(t)
	d := n.open()
	web, high := ports("web", 80, 80), ports("high", 1000, 2000)
	first := &policy.Subject{Key: "one", Isolated: true, Default: 5, Else: denyAll(), Peers: map[identity.ID]*policy.Table{1001: web, 1002: high}}
	second := &policy.Subject{Key: "two", Isolated: true, Default: 6, Else: web, Peers: map[identity.ID]*policy.Table{1003: high}}
	for _, s := range []*policy.Subject{first, second, first} {
		if err := d.PutSubject(s); err != nil {
			t.Fatal(err)
		}
	}
	peers, single, ranged := policyRows(t, d)
	if want := len(portPrefixes(1000, 2000)); peers != 5 || single != 1 || ranged != want {
		t.Fatalf("rows %d %d %d, want 5 1 %d", peers, single, ranged, want)
	}
	row, ok, err := d.policy.peers.get(bpf.PolicyPeerKey{Subject: d.policy.subjects["one"].id, Identity: 1002})
	if err != nil || !ok || row.Flags != bpf.TableRanges|bpf.TableNoPorts|bpf.TableNoProtos || row.Cookie != 5 {
		t.Fatalf("row of a table with ranges: %+v %v %v", row, ok, err)
	}
	if err := d.PatchSubject(policy.Patch{Subject: "one", Put: map[identity.ID]*policy.Table{1004: web}, Delete: []identity.ID{1002}}); err != nil {
		t.Fatal(err)
	}
	if err := d.PatchSubject(policy.Patch{Subject: "never put", Put: map[identity.ID]*policy.Table{1004: web}}); err != nil {
		t.Fatal(err)
	}

	putAllow(t, d)
	ep := pod(t, 20)
	ep.Ingress = "one"
	ep = wire(t, d, ep)
	later := time.Now().Add(time.Second)
	// "two" was never used and is kept a while; then it goes, with the table that only it used
	if _, err := d.prune(later, false); err != nil {
		t.Fatal(err)
	}
	if d.policy.subjects["two"] == nil {
		t.Fatal("a fresh subject was freed before an endpoint could point to it")
	}
	later = later.Add(freshSubject)
	for range 2 { // subjects, then the tables they held
		later = later.Add(time.Second)
		if _, err := d.prune(later, false); err != nil {
			t.Fatal(err)
		}
	}
	if d.policy.subjects["two"] != nil || d.policy.tables["high"] != nil || d.policy.subjects["one"] == nil {
		t.Fatalf("after pruning: subjects %v tables %v", d.policy.subjects, d.policy.tables)
	}
	if _, _, ranged = policyRows(t, d); ranged != 0 {
		t.Errorf("%d rows of ranges are left", ranged)
	}
	putAllow(t, d) // was never used for ingress, so it went as well
	// the endpoint moves on; its former subject goes after the grace period only
	ep.Ingress = "allow-in"
	if err := d.WriteEndpoint(ep); err != nil {
		t.Fatal(err)
	}
	if next, err := d.prune(time.Now(), false); err != nil || next.IsZero() || d.policy.subjects["one"] == nil {
		t.Fatalf("pruned without grace: next %v err %v", next, err)
	}
	for i := range 2 {
		if _, err := d.prune(time.Now().Add(freshSubject+time.Duration(i+1)*time.Second), false); err != nil {
			t.Fatal(err)
		}
	}
	if peers, single, _ = policyRows(t, d); peers != 2 || single != 1 {
		t.Errorf("rows left: peers %d ports %d, want 2 and 1", peers, single)
	}
}

func TestRootPruneAfterRestart(t *testing.T) {
	n := newNode(t)
	d := n.open()
	putAllow(t, d)
	if err := d.PutSubject(&policy.Subject{Key: "unused", Else: ports("web", 80, 90)}); err != nil {
		t.Fatal(err)
	}
	ep := wire(t, d, pod(t, 21))
	d.Close()

	d = n.open()
	if _, err := d.prune(time.Now(), false); err != nil {
		t.Fatal(err)
	}
	if peers, single, ranged := policyRows(t, d); peers != 2 || single != 1 || ranged != 0 {
		t.Fatalf("rows %d %d %d, want only those that the endpoint's row names", peers, single, ranged)
	}
	putAllow(t, d)
	if err := d.WriteEndpoint(ep); err != nil {
		t.Fatal(err)
	}
	if _, err := d.prune(time.Now(), false); err != nil {
		t.Fatal(err)
	}
	if peers, single, _ := policyRows(t, d); peers != 2 || single != 1 || d.policy.orphans {
		t.Errorf("rows %d %d, orphans %v: the former agent's must be gone", peers, single, d.policy.orphans)
	}
}

// Rows that nobody uses do not keep a new subject out.
func TestRootFullMapIsCleared(t *testing.T) {
	n := newNode(t)
	n.cfg.PolicyMax = 16
	n.cfg.Grace = time.Nanosecond
	d := n.open()
	putAllow(t, d)
	ep := wire(t, d, pod(t, 23))
	for i := range 100 {
		s := &policy.Subject{Key: policy.SubjectKey(fmt.Sprint("generation ", i)), Else: ports(fmt.Sprint("table ", i), uint16(i+1), uint16(i+1)), Peers: map[identity.ID]*policy.Table{
			1001: ports(fmt.Sprint("first of ", i), 1, 1), 1002: ports(fmt.Sprint("second of ", i), 2, 2), 1003: denyAll(),
		}}
		if err := d.PutSubject(s); err != nil {
			t.Fatalf("generation %d: %v", i, err)
		}
		ep.Ingress = s.Key
		if err := errors.Join(d.WriteEndpoint(ep), d.Commit()); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.Alarms()) != 0 {
		t.Errorf("alarms %v", d.Alarms())
	}
}

// A full map leaves nothing half written, says which map it is, and the endpoint is locked by its caller.
func TestRootFullMapsLeaveNothing(t *testing.T) {
	table := func(key string, rows int) *policy.Table {
		tb := &policy.Table{Key: key}
		for i := range rows {
			tb.Rows = append(tb.Rows, policy.Row{Proto: 6, First: uint16(i + 1), Last: uint16(i + 1), Verdict: policy.PortVerdict{Action: verdict.Allow}})
		}
		return tb
	}
	many := map[identity.ID]*policy.Table{}
	for i := range 40 {
		many[identity.ID(2000+i)] = denyAll()
	}
	for full, s := range map[string]*policy.Subject{
		mapPolicyPorts:  {Key: "big", Else: table("big", 100), Peers: map[identity.ID]*policy.Table{1001: table("small", 3)}},
		mapPolicyPeers:  {Key: "big", Else: allow("all"), Peers: many},
		mapPolicyRanges: {Key: "big", Else: allow("all"), Peers: map[identity.ID]*policy.Table{1001: ports("wide", 1, 65534)}},
	} {
		t.Run(full, func(t *testing.T) {
			n := newNode(t)
			n.cfg.PolicyMax = 16
			d := n.open()
			putAllow(t, d)
			ep := wire(t, d, pod(t, 22))
			before := dumpOf(t, d)
			err := d.PutSubject(s)
			var e *MapFullError
			if !errors.As(err, &e) || e.Map != full || e.Max != 16 {
				t.Fatalf("put: %v, want %s full at 16", err, full)
			}
			if after := dumpOf(t, d); !reflect.DeepEqual(before, after) {
				// tables without a user may wait for their pruning
				if _, err := d.prune(time.Now().Add(time.Second), false); err != nil {
					t.Fatal(err)
				}
				if after = dumpOf(t, d); !reflect.DeepEqual(before, after) {
					t.Errorf("rows left:\n got %v\nwant %v", after, before)
				}
			}
			if len(d.Alarms()) != 1 {
				t.Errorf("alarms %v", d.Alarms())
			}
			ep.Ingress = s.Key
			if err := d.WriteEndpoint(ep); err == nil {
				t.Error("an endpoint was pointed to a subject that is not there")
			}
			if err := d.LockEndpoint(ep); err != nil {
				t.Fatal(err)
			}
			row, _, _ := d.endpoints.get(uint32(ep.Ifindex))
			if row.Flags&bpf.EndpointLockdown == 0 || row.SubjectIn != 0 || row.SubjectOut != 0 {
				t.Errorf("locked row %+v", row)
			}
			if fmt.Sprint(d.Alarms()) == "[]" {
				t.Error("no alarm of the locked endpoint")
			}
			ep.Ingress = "allow-in"
			putAllow(t, d)
			if err := d.WriteEndpoint(ep); err != nil {
				t.Fatal(err)
			}
			d.check()
			if a := d.Alarms(); len(a) != 0 {
				t.Errorf("alarms after recovery: %v", a)
			}
		})
	}
}
