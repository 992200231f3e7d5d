package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"porin/internal/kvstore"
)

func rangesOf(t *testing.T, dir string) *ranges {
	t.Helper()
	client, err := kvstore.Dial(slog.New(slog.DiscardHandler), kvstore.Config{Endpoints: []string{"unix:///nowhere"}, Node: "n"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	r, err := newRanges(slog.New(slog.DiscardHandler), Config{NodeName: "n", ClusterName: "c", StateDir: dir, IPv4: true, IPv6: true}, client)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// What a node was given it keeps over restarts, store or no store, and whatever the store says later.
func TestRangesAreKept(t *testing.T) {
	dir := t.TempDir()
	r := rangesOf(t, dir)
	grant := func(ps ...string) (g kvstore.RangeGrant) {
		for _, p := range ps {
			g.Ranges = append(g.Ranges, netip.MustParsePrefix(p))
		}
		return g
	}
	r.told(grant("10.0.3.0/24"), true)
	if r.complete() {
		t.Fatal("complete with one family of two")
	}
	r.told(grant("10.0.3.0/24", "fd00::300/120"), true)
	if err := r.save(); err != nil || !r.complete() {
		t.Fatal(err, r.complete())
	}

	r = rangesOf(t, dir)
	v4, v6, err := r.await(context.Background()) // there is no store to ask
	if got := fmt.Sprint(v4, v6, err); got != "10.0.3.0/24 fd00::300/120 <nil>" {
		t.Errorf("after a restart: %s", got)
	}
	if has := fmt.Sprint(r.request().Has); has != "[10.0.3.0/24 fd00::300/120]" {
		t.Errorf("asks for %s", has)
	}
	r.told(kvstore.RangeGrant{}, false)
	if r.Alarm() != "" || !r.complete() {
		t.Errorf("a wiped store: alarm %q, complete %v", r.Alarm(), r.complete())
	}
	r.told(grant("10.0.9.0/24", "fd00::300/120"), true)
	if v4, _ := r.get(); v4.String() != "10.0.3.0/24" || !strings.Contains(r.Alarm(), "10.0.9.0/24 is this node's, but its workloads are in 10.0.3.0/24") {
		t.Errorf("another range: %s, alarm %q", v4, r.Alarm())
	}
	r.told(kvstore.RangeGrant{Problem: "taken by x"}, true)
	if !strings.Contains(r.Alarm(), "taken by x") {
		t.Errorf("a refusal: alarm %q", r.Alarm())
	}

	if err := os.WriteFile(filepath.Join(dir, rangesFile), []byte("[\"10.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newRanges(r.log, r.cfg, nil); err == nil || !strings.Contains(err.Error(), rangesFile) {
		t.Errorf("a broken file: %v", err)
	}
}
