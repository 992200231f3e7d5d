package kvstore

import (
	"errors"
	"strings"
	"testing"

	"porin/internal/identity"
)

func TestChangesByHand(t *testing.T) {
	srv := newServer(t)
	a := newReporter(t, "a", srv.cfg.Endpoint(), Claim{})
	a.publish(1, 7)
	a.sees("is there", "a", "a/10.1.0.7=300")
	ctx, owned := t.Context(), AddressKey("c", "a", pod(1, 7))
	for key, want := range map[string]error{
		"": ErrKey, "other/x": ErrKey, "porin": ErrKey, "porin/a\nb": ErrKey, "porin/\xff": ErrKey, "porin/none": ErrNoKey,
	} {
		if err := a.client.Remove(ctx, key, true); !errors.Is(err, want) {
			t.Errorf("remove %q: %v, want %v", key, err, want)
		}
		if _, _, err := a.client.Look(ctx, key, false, 1); !errors.Is(err, want) {
			t.Errorf("look at %q: %v, want %v", key, err, want)
		}
	}
	if err := a.client.Set(ctx, "other/x", "1", true); !errors.Is(err, ErrKey) {
		t.Errorf("set of another's key: %v", err)
	}
	if err := a.client.Set(ctx, owned, "{}", false); !errors.Is(err, ErrLeased) {
		t.Errorf("set of a living node's record: %v", err)
	}
	if err := a.client.Remove(ctx, owned, false); !errors.Is(err, ErrLeased) {
		t.Errorf("remove a living node's record: %v", err)
	}
	before, _, err := a.client.Look(ctx, owned, false, 1)
	if err != nil || len(before) != 1 || !before[0].Leased {
		t.Fatalf("record %+v %v", before, err)
	}
	if err := a.client.Remove(ctx, owned, true); err != nil {
		t.Errorf("remove it all the same: %v", err)
	}
	eventually(t, "its owner writes it again", func() bool {
		now, _, err := a.client.Look(ctx, owned, false, 1)
		return err == nil && now[0].Value == before[0].Value && now[0].Revision > before[0].Revision
	})
	for _, key := range []string{"porin/test/1", "porin/test/2", "porin/test/3"} {
		if err := a.client.Set(ctx, key, "v", false); err != nil {
			t.Fatal(err)
		}
	}
	list, more, err := a.client.Look(ctx, "porin/test/", true, 2)
	if err != nil || len(list) != 2 || !more || list[1].Key != "porin/test/2" || list[1].Leased {
		t.Errorf("looked at %+v, more %v, %v", list, more, err)
	}
	if err := a.client.Remove(ctx, "porin/test/1", false); err != nil {
		t.Error(err)
	}
	if list, more, err := a.client.Look(ctx, "porin/test/", true, 2); err != nil || len(list) != 2 || more {
		t.Errorf("after one went: %+v, more %v, %v", list, more, err)
	}
	srv.stop()
	if err := a.client.Set(withTimeout(t, 1e9), "porin/test/1", "v", false); !errors.Is(err, ErrUnreachable) {
		t.Errorf("without a store: %v", err)
	}
}

// All numbers are taken: a new label set is told so, every other goes on as before, also on a node that never had it.
func TestExhaustionBlocksNewSetsOnly(t *testing.T) {
	srv := newServer(t)
	three := func(c *Config) { c.First, c.Last = 300, 302 }
	a, b := newNode(t, "a", srv.cfg.Endpoint(), three), newNode(t, "b", srv.cfg.Endpoint(), three)
	ids := map[string]identity.ID{}
	for _, set := range []string{"k8s:app=1;", "k8s:app=2;", "k8s:app=3;"} {
		ids[set] = a.allocate(set)
	}
	for _, n := range []*member{a, b} {
		eventually(t, "the node knows all numbers", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return len(n.seen) == len(ids) })
		_, err := n.Allocate(t.Context(), "k8s:app=4;")
		if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "of 3, 3 are in use") {
			t.Errorf("a fourth label set for three numbers: %v", err)
		}
		for set, want := range ids {
			if got := n.allocate(set); got != want {
				t.Errorf("%s: got %d, it is %d", set, got, want)
			}
		}
	}
}
