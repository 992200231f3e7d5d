package cli

import (
	"context"
	"slices"
	"strings"
	"testing"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentv1 "porin/api/agent/v1"
)

// keyAgent is a fake agent with a store, which keeps what it was asked.
type keyAgent struct {
	fakeAgent
	asked chan proto.Message
}

func (a *keyAgent) GetKeys(_ context.Context, req *agentv1.GetKeysRequest) (*agentv1.GetKeysResponse, error) {
	a.asked <- req
	return poison(&a.fakeAgent, &agentv1.GetKeysResponse{More: req.GetLimit() < 1000, Keys: []*agentv1.StoreKey{
		{Key: "porin/test/1", Value: "hello", Revision: 7}, {Key: "porin/test/2", Value: `{"a":1}`, Revision: 8, Leased: true},
	}})
}

func (a *keyAgent) SetKey(_ context.Context, req *agentv1.SetKeyRequest) (*agentv1.SetKeyResponse, error) {
	a.asked <- req
	if !req.GetForce() && strings.HasSuffix(req.GetKey(), "/2") {
		return nil, status.Errorf(codes.FailedPrecondition, "write %s%s: a living node owns it", req.GetKey(), a.hostile)
	}
	return &agentv1.SetKeyResponse{}, nil
}

func (a *keyAgent) DeleteKeys(_ context.Context, req *agentv1.DeleteKeysRequest) (*agentv1.DeleteKeysResponse, error) {
	a.asked <- req
	deleted := uint32(1)
	if req.GetRecursive() {
		deleted = 2
	}
	return &agentv1.DeleteKeysResponse{Deleted: deleted}, nil
}

func TestKVStore(t *testing.T) {
	agent := &keyAgent{asked: make(chan proto.Message, 1)}
	t.Setenv(envSocket, serve(t, agent))
	list := "KEY           REVISION  LEASED  VALUE\nporin/test/1  7         -       hello\nporin/test/2  8         yes     {\"a\":1}\n"
	for _, c := range []struct {
		args      string
		code      int
		out, errs string
		asked     proto.Message // nil: nothing
	}{
		{"get porin/test -r", 0, list, "", &agentv1.GetKeysRequest{Key: "porin/test", Recursive: true, Limit: 1000}},
		{"get porin/test --recursive --limit 2", 0, list, "there are more than these 2: raise --limit, or name a longer prefix\n", &agentv1.GetKeysRequest{Key: "porin/test", Recursive: true, Limit: 2}},
		{
			"get porin/test/1 -o yaml", 0, "- key: porin/test/1\n  value: hello\n  revision: \"7\"\n  leased: false\n- key: porin/test/2\n  value: '{\"a\":1}'\n  revision: \"8\"\n  leased: true\n", "",
			&agentv1.GetKeysRequest{Key: "porin/test/1", Limit: 1000},
		},
		{"get", exitUsage, "", "PREFIX or KEY is missing", nil},
		{"get porin --limit 0", exitUsage, "", "at least one key", nil},
		{"get porin/\xff", exitUsage, "", "only text in UTF-8", nil},
		{"set porin/test/1 v --yes", 0, "set porin/test/1\n", "", &agentv1.SetKeyRequest{Key: "porin/test/1", Value: "v"}},
		{"set porin/test/1 --yes -- -1", 0, "set porin/test/1\n", "", &agentv1.SetKeyRequest{Key: "porin/test/1", Value: "-1"}},
		{"set porin/test/2 v --yes", exitFailed, "", "porin kvstore set: write porin/test/2: a living node owns it\n", &agentv1.SetKeyRequest{Key: "porin/test/2", Value: "v"}},
		{"set porin/test/2 v --yes --force", 0, "set porin/test/2\n", "", &agentv1.SetKeyRequest{Key: "porin/test/2", Value: "v", Force: true}},
		{"set porin/test/1 v", exitUsage, "", "add --yes if you mean it", nil},
		{"set porin/test/1 v --force", exitUsage, "", "add --yes if you mean it", nil},
		{"set porin/test/1 \xff --yes", exitUsage, "", `VALUE "\xff": only text in UTF-8`, nil},
		{"set porin/test/1", exitUsage, "", "VALUE is missing", nil},
		{"delete porin/test/1 --yes", 0, "deleted 1 key\n", "", &agentv1.DeleteKeysRequest{Key: "porin/test/1"}},
		{"delete porin/test -r --force --yes", 0, "deleted 2 keys\n", "", &agentv1.DeleteKeysRequest{Key: "porin/test", Recursive: true, Force: true}},
		{"delete porin/test -r", exitUsage, "", "add --yes if you mean it", nil},
		{"delete", exitUsage, "", "KEY is missing", nil},
	} {
		code, out, errs := call(t.Context(), New(), "", append([]string{"kvstore"}, strings.Split(c.args, " ")...)...)
		if code != c.code || out != c.out || !strings.Contains(errs, c.errs) || c.errs == "" && errs != "" {
			t.Errorf("%q: exit %d, want %d\n%s%s", c.args, code, c.code, out, errs)
		}
		var asked proto.Message
		select {
		case asked = <-agent.asked:
		default:
		}
		if (asked == nil) != (c.asked == nil) || asked != nil && !proto.Equal(asked, c.asked) {
			t.Errorf("%q asked %v, want %v", c.args, asked, c.asked)
		}
	}
}

// Anybody who may write to the store chooses what keys and values are.
func TestKVStoreEscapes(t *testing.T) {
	for _, h := range hostile() {
		agent := &keyAgent{fakeAgent: fakeAgent{hostile: h}, asked: make(chan proto.Message, 1)}
		t.Setenv(envSocket, serve(t, agent))
		for _, c := range [][]string{
			{"get", "porin", "-r"},
			{"get", "porin", "-o", "json"},
			{"get", "porin", "-o", "yaml"},
			{"set", "porin/2", "v", "--yes"},
			{"set", h, "v", "--yes"},
			{"set", h, "v"},
			{"get", h + "\xff"},
			{"delete", h},
		} {
			_, out, errs := call(t.Context(), New(), "", append([]string{"kvstore"}, c...)...)
			if out+errs == "" || slices.ContainsFunc([]rune(out+errs), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
				t.Errorf("%q printed %q", c, out+errs)
			}
			select {
			case <-agent.asked:
			default:
			}
		}
	}
}
