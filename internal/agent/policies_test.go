package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"porin/internal/policy"
)

// fakeEnforcer keeps what is in force.
type fakeEnforcer struct {
	rev     uint64
	inForce map[policy.Ref]*policy.Policy
	fail    error
	during  func() // called in the middle of a change
}

func (f *fakeEnforcer) ApplyPolicies(_ context.Context, put []*policy.Policy, del []policy.Ref) (uint64, error) {
	if f.fail != nil {
		return 0, f.fail
	}
	if f.during != nil {
		f.during()
	}
	for _, r := range del {
		delete(f.inForce, r)
	}
	for _, p := range put {
		f.inForce[p.Ref] = p
	}
	f.rev++
	return f.rev, nil
}

func (f *fakeEnforcer) Revision() uint64 { return f.rev }

// names lists what is in force, with the port that tells versions apart.
func (f *fakeEnforcer) names() string {
	var out []string
	for r, p := range f.inForce {
		_, port, _ := strings.Cut(p.YAML, "port: \"")
		port, _, _ = strings.Cut(port, "\"")
		out = append(out, r.Name+":"+port)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// house is an agent's policies over folders of the test.
type house struct {
	*policies
	t           *testing.T
	kernel      *fakeEnforcer
	dir, folder string
	log         *strings.Builder
}

func newHouse(t *testing.T, watched bool) *house {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, dir: filepath.Join(dir, "policies")}
	if watched {
		h.folder = filepath.Join(dir, "watched")
		if err := os.Mkdir(h.folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	h.restart()
	return h
}

// restart is a new agent over the same folders and an empty engine.
func (h *house) restart() {
	h.t.Helper()
	h.kernel, h.log = &fakeEnforcer{inForce: map[policy.Ref]*policy.Policy{}}, &strings.Builder{}
	h.policies = newPolicies(slog.New(slog.NewTextHandler(h.log, nil)), h.dir, h.folder, h.kernel)
	if err := h.Restore(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) apply(text string) error {
	h.t.Helper()
	ps, err := policy.Parse("user.yaml", []byte(text))
	if err != nil {
		h.t.Fatal(err)
	}
	_, _, err = h.Apply(h.t.Context(), ps)
	return err
}

func (h *house) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.folder, name), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) want(names string) {
	h.t.Helper()
	h.turn.Lock() // of what runs beside the test
	defer h.turn.Unlock()
	if got := h.kernel.names(); got != names {
		h.t.Errorf("in force: %q, want %q", got, names)
	}
}

func (h *house) scanned() {
	h.t.Helper()
	if err := h.scan(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

// doc is a policy with one port, which tells its versions apart.
func doc(name string, port int) string {
	return fmt.Sprintf(`apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: %s, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: a}}]
    toPorts: [{ports: [{port: "%d", protocol: TCP}]}]
`, name, port)
}

func TestAPIPoliciesSurviveARestart(t *testing.T) {
	h := newHouse(t, false)
	if err := h.apply("# a comment\n" + doc("a", 80) + "---\n" + doc("b", 81)); err != nil {
		t.Fatal(err)
	}
	if err := h.apply(doc("a", 90)); err != nil {
		t.Fatal(err)
	}
	h.want("a:90 b:81")
	before := h.kernel.inForce[policy.Ref{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "b"}]
	h.restart()
	h.want("a:90 b:81")
	after := h.kernel.inForce[before.Ref]
	if after.File != before.File || after.Line != before.Line || after.YAML != before.YAML || after.Rules[0].Line != before.Rules[0].Line {
		t.Errorf("after the restart the policy is %s:%d rule line %d, before %s:%d rule line %d",
			after.File, after.Line, after.Rules[0].Line, before.File, before.Line, before.Rules[0].Line)
	}
	if h.kernel.rev != 1 {
		t.Errorf("%d changes to restore; the first must bring everything", h.kernel.rev)
	}
	if _, _, err := h.Delete(t.Context(), []policy.Ref{before.Ref}); err != nil {
		t.Fatal(err)
	}
	h.restart()
	h.want("a:90")
	if _, _, err := h.DeleteAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.restart()
	h.want("")
	entries, err := os.ReadDir(h.dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("files left: %v %v", entries, err)
	}
}

func TestSameAgainIsNoChange(t *testing.T) {
	h := newHouse(t, false)
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	rev := h.kernel.rev
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	if h.kernel.rev != rev {
		t.Error("the same policy again made a revision")
	}
}

func TestDeleteOfWhatIsNotThere(t *testing.T) {
	h := newHouse(t, false)
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	_, _, err := h.Delete(t.Context(), []policy.Ref{{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "a"}, {Kind: "CiliumNetworkPolicy", Name: "z"}})
	if !errors.Is(err, errMissing) {
		t.Errorf("got %v", err)
	}
	h.want("a:80")
}

func TestRefusedChangeChangesNothing(t *testing.T) {
	h := newHouse(t, false)
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	h.kernel.fail = errors.New("no identity is free")
	if err := h.apply(doc("a", 81)); !errors.Is(err, h.kernel.fail) {
		t.Errorf("got %v", err)
	}
	h.restart()
	h.want("a:80")
}

// A saved file that was cut off at any byte is never taken for a policy: nothing is enforced anew until somebody says
// what it was, and nothing is left out either.
func TestCutOffFileHoldsEverythingBack(t *testing.T) {
	h := newHouse(t, false)
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	if err := h.apply(doc("b", 80)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.dir, "CiliumNetworkPolicy_default_a.yaml")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		h.restart()
		if h.kernel.rev != 0 || !h.Held() {
			t.Fatalf("cut off after %d of %d bytes: %d changes, in force %q", n, len(whole), h.kernel.rev, h.kernel.names())
		}
	}
	if alarms := strings.Join(h.Alarms(), "\n"); !strings.Contains(alarms, "CiliumNetworkPolicy_default_a.yaml") {
		t.Errorf("alarms do not name the file: %s", alarms)
	}
	if err := h.apply(doc("c", 80)); !errors.Is(err, errHeld) {
		t.Errorf("another policy while held: %v", err)
	}
	if h.kernel.rev != 0 {
		t.Error("something was enforced while held")
	}
	if err := h.apply(doc("a", 99)); err != nil {
		t.Fatal(err)
	}
	h.want("a:99 b:80 c:80")
	if h.Held() || len(h.Alarms()) != 0 {
		t.Errorf("still held: %v", h.Alarms())
	}
	h.restart()
	h.want("a:99 b:80 c:80")
}

func TestUnreadableFileCanBeDeleted(t *testing.T) {
	for _, all := range []bool{false, true} {
		h := newHouse(t, false)
		if err := h.apply(doc("a", 80)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(h.dir, "CiliumNetworkPolicy_default_a.yaml"), []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
		h.restart()
		var err error
		if all {
			_, _, err = h.DeleteAll(t.Context())
		} else {
			_, _, err = h.Delete(t.Context(), []policy.Ref{{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "a"}})
		}
		if err != nil || h.Held() {
			t.Errorf("all=%v: %v, held %v", all, err, h.Held())
		}
		h.restart()
		h.want("")
	}
}

func TestOthersFilesAreRefused(t *testing.T) {
	h := newHouse(t, false)
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.dir, "CiliumNetworkPolicy_default_a.yaml")
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	h.restart()
	if !h.Held() {
		t.Error("a file that anybody could have written was believed")
	}
}

// Disk full or read-only: the policy is enforced all the same, the fault shows, and the file follows later.
func TestEnforcedWithoutDisk(t *testing.T) {
	h := newHouse(t, false)
	if err := os.Remove(h.dir); err != nil {
		t.Fatal(err)
	}
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	h.want("a:80")
	if len(h.Alarms()) != 1 || !strings.Contains(h.Alarms()[0], "not on disk") {
		t.Errorf("alarms %v", h.Alarms())
	}
	if err := os.Mkdir(h.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h.resave()
	if len(h.Alarms()) != 0 {
		t.Errorf("alarms stay: %v", h.Alarms())
	}
	h.restart()
	h.want("a:80")
}

func TestWatchedFolder(t *testing.T) {
	h := newHouse(t, true)
	h.write("one.yaml", doc("a", 80)+"---\n"+doc("b", 80))
	h.write("two.yml", doc("c", 80))
	h.write("notes.txt", "not a policy")
	h.write(".hidden.yaml", "not a policy")
	h.scanned()
	h.want("a:80 b:80 c:80")
	rev := h.kernel.rev
	h.scanned()
	if h.kernel.rev != rev {
		t.Error("nothing changed, yet there is a revision")
	}

	h.write("one.yaml", doc("a", 81)) // b goes
	h.scanned()
	h.want("a:81 c:80")

	h.write("one.yaml", "kind: nonsense\n")
	h.scanned()
	h.want("a:81 c:80")
	if alarms := h.Alarms(); len(alarms) != 1 || !strings.Contains(alarms[0], "one.yaml") {
		t.Errorf("alarms %v", alarms)
	}
	if l := h.List(); l[0].Name != "a" || l[0].Error == "" || l[0].Source != filepath.Join(h.folder, "one.yaml") || l[1].Error != "" {
		t.Errorf("list: %+v", l)
	}

	// the agent restarts while the file is broken: its last good policy stays
	h.restart()
	h.want("a:81 c:80")
	if len(h.Alarms()) != 1 {
		t.Errorf("alarms %v", h.Alarms())
	}

	h.write("one.yaml", doc("a", 82))
	h.scanned()
	h.want("a:82 c:80")
	if err := os.Remove(filepath.Join(h.folder, "two.yml")); err != nil {
		t.Fatal(err)
	}
	h.scanned()
	h.want("a:82")
	h.restart()
	h.want("a:82")

	// gone while the agent was down
	if err := os.Remove(filepath.Join(h.folder, "one.yaml")); err != nil {
		t.Fatal(err)
	}
	h.restart()
	h.want("")
}

func TestFileThatWasNeverGoodIsListed(t *testing.T) {
	h := newHouse(t, true)
	h.write("bad.yaml", "a: b\n")
	h.scanned()
	if l := h.List(); len(l) != 1 || l[0].Policy != nil || l[0].Error == "" {
		t.Errorf("list %+v", l)
	}
}

// A folder that cannot be read is not an empty folder.
func TestMissingFolderKeepsPolicies(t *testing.T) {
	h := newHouse(t, true)
	h.write("one.yaml", doc("a", 80))
	h.scanned()
	if err := os.Rename(h.folder, h.folder+".away"); err != nil {
		t.Fatal(err)
	}
	if err := h.scan(t.Context()); err == nil {
		t.Error("no error")
	}
	h.want("a:80")
	h.restart()
	h.want("a:80")
	if len(h.Alarms()) != 1 || !strings.Contains(h.Alarms()[0], "watched folder") {
		t.Errorf("alarms %v", h.Alarms())
	}
}

func TestOwnersOfPolicies(t *testing.T) {
	h := newHouse(t, true)
	h.write("one.yaml", doc("a", 80))
	h.scanned()
	if err := h.apply(doc("b", 80)); err != nil {
		t.Fatal(err)
	}
	if err := h.apply(doc("a", 99)); !errors.Is(err, errOwner) || !strings.Contains(err.Error(), "one.yaml") {
		t.Errorf("API over a file's policy: %v", err)
	}
	if _, _, err := h.Delete(t.Context(), []policy.Ref{{Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "a"}}); !errors.Is(err, errOwner) {
		t.Errorf("API deletes a file's policy: %v", err)
	}
	h.write("two.yaml", doc("b", 99))
	h.write("three.yaml", doc("a", 99))
	h.scanned()
	h.want("a:80 b:80")
	if alarms := strings.Join(h.Alarms(), "\n"); !strings.Contains(alarms, "two.yaml") || !strings.Contains(alarms, "three.yaml") {
		t.Errorf("alarms: %s", alarms)
	}
	if _, _, err := h.DeleteAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.scanned() // the way is free for two.yaml
	h.want("a:80 b:99")

	// a policy that moves to another file is no conflict
	if err := os.Rename(filepath.Join(h.folder, "one.yaml"), filepath.Join(h.folder, "zero.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(h.folder, "three.yaml")); err != nil {
		t.Fatal(err)
	}
	h.scanned()
	h.want("a:80 b:99")
	if len(h.Alarms()) != 0 {
		t.Errorf("alarms %v", h.Alarms())
	}
}

// One bad file among many does not hold the others back.
func TestOneFileFailsOthersDoNot(t *testing.T) {
	h := newHouse(t, true)
	h.write("a.yaml", doc("a", 80))
	h.write("b.yaml", "spec: [")
	h.write("c.yaml", doc("c", 80))
	h.write("d.yaml", doc("a", 81)) // already in a.yaml
	if err := os.Mkdir(filepath.Join(h.folder, "e.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.scanned()
	h.want("a:80 c:80")
	if len(h.Alarms()) != 3 {
		t.Errorf("alarms %v", h.Alarms())
	}
}

// The folder is followed while the agent runs.
func TestFolderIsFollowed(t *testing.T) {
	h := newHouse(t, true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}()
	h.write("one.yaml", doc("a", 80))
	h.soon("a")
	h.write("one.yaml", doc("b", 80))
	h.soon("b")
	if err := os.Remove(filepath.Join(h.folder, "one.yaml")); err != nil {
		t.Fatal(err)
	}
	h.soon("")
}

// soon waits until exactly these policies are wanted.
func (h *house) soon(names ...string) {
	h.t.Helper()
	names = slices.DeleteFunc(names, func(s string) bool { return s == "" })
	eventually(h.t, fmt.Sprintf("policies %v in force", names), func() bool {
		var got []string
		for _, v := range h.List() {
			got = append(got, v.Name)
		}
		return slices.Equal(got, names)
	})
}

func TestFirstChangeIsRepeated(t *testing.T) {
	h := newHouse(t, false)
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("map full")
	h.kernel = &fakeEnforcer{inForce: map[policy.Ref]*policy.Policy{}, fail: broken}
	h.policies = newPolicies(slog.New(slog.NewTextHandler(io.Discard, nil)), h.dir, "", h.kernel)
	if err := h.Restore(t.Context()); err != nil {
		t.Fatalf("the agent must start and say what is wrong: %v", err)
	}
	if !h.Held() || len(h.Alarms()) != 1 || !strings.Contains(h.Alarms()[0], "map full") {
		t.Errorf("held %v, alarms %v", h.Held(), h.Alarms())
	}
	h.kernel.fail = nil
	h.begin(t.Context())
	h.want("a:80")
	if h.Held() || len(h.Alarms()) != 0 {
		t.Errorf("held %v, alarms %v", h.Held(), h.Alarms())
	}
}

func TestFileNamesOfPolicies(t *testing.T) {
	s := savedPolicies{"/x"}
	seen := map[string]policy.Ref{}
	long := strings.Repeat("a", 250)
	for _, r := range []policy.Ref{
		{Kind: "K", Namespace: "a", Name: "b"},
		{Kind: "K", Name: "a_b"},
		{Kind: "K", Name: "b"},
		{Kind: "K", Namespace: "a.b", Name: "c"},
		{Kind: "K", Namespace: "n", Name: long},
		{Kind: "K", Namespace: "m", Name: long},
		{Kind: "K", Namespace: "..", Name: "../../etc/passwd"},
	} {
		name := s.name(r)
		if other, dup := seen[name]; dup {
			t.Errorf("%v and %v have one file %s", r, other, name)
		}
		seen[name] = r
		if len(name) > 255 || strings.Contains(name, "/") || strings.HasPrefix(name, ".") {
			t.Errorf("%v: file name %q", r, name)
		}
	}
}

func FuzzSavedPolicy(f *testing.F) {
	dir := f.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		f.Fatal(err)
	}
	s := savedPolicies{dir}
	ps, err := policy.Parse("x.yaml", []byte(doc("a", 80)))
	if err != nil {
		f.Fatal(err)
	}
	if err := s.save(owned{ps[0], sourceAPI}); err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(dir, s.name(ps[0].Ref))
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)                                    // as it is written
	f.Add(whole[:len(whole)/2])                     // cut off
	f.Add([]byte(headMark + "{}\n"))                // no sum
	f.Add([]byte(headMark + `{"line":9999999999}`)) // a line to pad up to
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := s.read(filepath.Base(path))
		if err == nil && o.YAML != ps[0].YAML && !strings.Contains(string(data), o.YAML) {
			t.Errorf("read %q from %q", o.YAML, data)
		}
	})
}

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * time.Minute)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 2 minutes: %s", what)
		}
	}
}
