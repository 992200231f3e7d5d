package agent

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "porin/api/agent/v1"
)

// storeByHand reads and changes keys of the agent's store that nobody owns.
func storeByHand(t *testing.T, n *testNode) {
	t.Helper()
	ctx := t.Context()
	keys := func(key string, limit uint32) (out []string, more bool) {
		t.Helper()
		r, err := n.GetKeys(ctx, &agentv1.GetKeysRequest{Key: key, Recursive: true, Limit: limit})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range r.GetKeys() {
			out = append(out, strings.TrimPrefix(k.GetKey(), "porin/test/")+"="+k.GetValue())
		}
		return out, r.GetMore()
	}
	for _, key := range []string{"a", "a/1", "a/2", "a/2/3", "ab"} {
		if _, err := n.SetKey(ctx, &agentv1.SetKeyRequest{Key: "porin/test/" + key, Value: key}); err != nil {
			t.Fatal(err)
		}
	}
	if got, more := keys("porin/test", 0); !slices.Equal(got, []string{"a=a", "a/1=a/1", "a/2=a/2", "a/2/3=a/2/3", "ab=ab"}) || more {
		t.Errorf("all: %v, more %v", got, more)
	}
	if got, more := keys("porin/test/a/", 2); !slices.Equal(got, []string{"a/1=a/1", "a/2=a/2"}) || !more {
		t.Errorf("two below a: %v, more %v", got, more)
	}
	if r, err := n.GetKeys(ctx, &agentv1.GetKeysRequest{Key: "porin/test/a"}); err != nil || len(r.GetKeys()) != 1 || r.GetKeys()[0].GetValue() != "a" || r.GetKeys()[0].GetRevision() == 0 || r.GetKeys()[0].GetLeased() {
		t.Errorf("one key: %v %v", r, err)
	}
	if r, err := n.DeleteKeys(ctx, &agentv1.DeleteKeysRequest{Key: "porin/test/a", Recursive: true}); err != nil || r.GetDeleted() != 3 {
		t.Errorf("delete below a: %v %v", r, err)
	}
	if got, _ := keys("porin/test", 0); !slices.Equal(got, []string{"a=a", "ab=ab"}) {
		t.Errorf("left: %v", got)
	}
	if r, err := n.DeleteKeys(ctx, &agentv1.DeleteKeysRequest{Key: "porin/test/a"}); err != nil || r.GetDeleted() != 1 {
		t.Errorf("delete a: %v %v", r, err)
	}
	get := func(key string, recursive bool, limit uint32) error {
		_, err := n.GetKeys(ctx, &agentv1.GetKeysRequest{Key: key, Recursive: recursive, Limit: limit})
		return err
	}
	set := func(key, value string) error {
		_, err := n.SetKey(ctx, &agentv1.SetKeyRequest{Key: key, Value: value})
		return err
	}
	remove := func(key string, recursive bool) error {
		_, err := n.DeleteKeys(ctx, &agentv1.DeleteKeysRequest{Key: key, Recursive: recursive, Force: true})
		return err
	}
	for _, c := range []struct {
		what string
		err  error
		code codes.Code
		text string
	}{
		{"a key that is gone", get("porin/test/a", false, 0), codes.NotFound, "porin kvstore get porin --recursive"},
		{"another's key", get("other", false, 0), codes.InvalidArgument, "begins with porin/"},
		{"another's keys", get("po", true, 0), codes.InvalidArgument, "begins with porin/"},
		{"everything", get("", true, 0), codes.InvalidArgument, "begins with porin/"},
		{"too much", get("porin", true, maxKeys+1), codes.InvalidArgument, "at most 10000"},
		{"set of another's key", set("other", "v"), codes.InvalidArgument, "begins with porin/"},
		{"a value too long", set("porin/test/x", strings.Repeat("v", maxValue+1)), codes.InvalidArgument, "1048577 bytes"},
		{"delete what is gone", remove("porin/test/a", false), codes.NotFound, "no such key"},
		{"delete below what is gone", remove("porin/test/a", true), codes.NotFound, "no such key"},
		{"delete everything of others", remove("", true), codes.InvalidArgument, "begins with porin/"},
	} {
		if status.Code(c.err) != c.code || !strings.Contains(c.err.Error(), c.text) {
			t.Errorf("%s: %v, want %s with %q", c.what, c.err, c.code, c.text)
		}
	}
}

// The store can be looked at and changed through the agent, be it its own or the cluster's, where the records of nodes
// that are alive need force, and come back.
func TestRootStoreByHand(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		n := newTestNode(t)
		n.ready()
		storeByHand(t, n)
	})
	t.Run("shared", func(t *testing.T) {
		store := newSharedStore(t)
		n := newTestNode(t, "--kvstore="+store.Endpoint())
		n.ready()
		storeByHand(t, n)
		ctx := t.Context()
		leased := func() (out []*agentv1.StoreKey) {
			r, err := n.GetKeys(ctx, &agentv1.GetKeysRequest{Key: "porin", Recursive: true})
			if err != nil {
				t.Fatal(err)
			}
			return slices.DeleteFunc(r.GetKeys(), func(k *agentv1.StoreKey) bool { return !k.GetLeased() || !strings.Contains(k.GetValue(), `"n1"`) })
		}
		eventually(t, "the node has written its record", func() bool { return len(leased()) > 0 })
		own := leased()[0]
		folder := own.GetKey()[:strings.LastIndex(own.GetKey(), "/")]
		free := folder + "/!" // nobody owns it, and it comes first
		if _, err := n.SetKey(ctx, &agentv1.SetKeyRequest{Key: free, Value: "{}"}); err != nil {
			t.Fatal(err)
		}
		_, set := n.SetKey(ctx, &agentv1.SetKeyRequest{Key: own.GetKey(), Value: "{}"})
		_, one := n.DeleteKeys(ctx, &agentv1.DeleteKeysRequest{Key: own.GetKey()})
		_, all := n.DeleteKeys(ctx, &agentv1.DeleteKeysRequest{Key: folder, Recursive: true})
		for what, err := range map[string]error{"set": set, "delete": one, "delete all": all} {
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), own.GetKey()) || !strings.Contains(err.Error(), "--force") {
				t.Errorf("%s of a living node's record: %v", what, err)
			}
		}
		if _, err := n.GetKeys(ctx, &agentv1.GetKeysRequest{Key: free}); err != nil {
			t.Errorf("what stands beside a refused record: %v", err)
		}
		if _, err := n.DeleteKeys(ctx, &agentv1.DeleteKeysRequest{Key: own.GetKey(), Force: true}); err != nil {
			t.Errorf("with force: %v", err)
		}
		eventually(t, "its owner writes it again", func() bool {
			return slices.ContainsFunc(leased(), func(k *agentv1.StoreKey) bool {
				return k.GetKey() == own.GetKey() && k.GetRevision() > own.GetRevision()
			})
		})
		store.stop()
		_, err := n.SetKey(ctx, &agentv1.SetKeyRequest{Key: "porin/test/x", Value: "v"})
		if status.Code(err) != codes.FailedPrecondition || strings.Contains(err.Error(), "--force") {
			t.Errorf("without a store: %v", err)
		}
	})
}
