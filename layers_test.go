// Package porin checks the house as a whole: who may import whom, what each binary may link, and that every room
// introduces itself.
package porin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// lattice says who may import whom: a room may import the rooms of every line above its own, and the rooms named
// before it on its own line that stand left of a "<".
const lattice = `
words       api/flow < api/agent/v1, internal/labels, internal/verdict, internal/state, internal/durable, bpf
deciders    internal/identity, internal/ipam < internal/node < internal/policy, internal/service < internal/endpoint
appliers    internal/datapath, internal/proxy, internal/crypto
edges       internal/kvstore, internal/cni, internal/k8s, internal/mesh, internal/docker, internal/containers
observers   internal/flow, internal/metrics, internal/health
assembly    internal/agent, internal/operator < internal/lab/load < internal/lab < internal/cli
`

// verbs that a package comment may begin with, by storey.
var verbs = map[string][]string{
	"words": {"defines"}, "deciders": {"decides"}, "appliers": {"applies"}, "edges": {"reads"}, "observers": {"observes"},
	"assembly": {"assembles"}, "cmd": {"Command"},
}

// forbidden: what a binary must not link, because it starts for every pod or is handed to everyone.
var forbidden = map[string][]string{
	"porin/cmd/porin-cni": {
		"k8s.io/", "go.etcd.io/", "github.com/cilium/ebpf", "google.golang.org/grpc", "github.com/vishvananda/netlink",
		"github.com/spf13/cobra", "github.com/prometheus/", "github.com/containernetworking/",
	},
	"porin/cmd/porin": {"k8s.io/", "go.etcd.io/etcd/server"},
}

type pkg struct {
	ImportPath string
	Doc        string
	Dir        string
	Imports    []string
	Deps       []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps=false", "-json=ImportPath,Doc,Dir,Imports,Deps", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// rank returns the storey of a room, a number that grows upwards, and whether the lattice knows the room. A
// subfolder belongs to its room unless it has a place of its own.
func rank(path string) (storey string, level int, ok bool) {
	rel := strings.TrimPrefix(path, "porin/")
	if strings.HasPrefix(rel, "cmd/") {
		return "cmd", 1 << 20, true
	}
	best := -1
	n := 0
	for line := range strings.Lines(strings.TrimSpace(lattice)) {
		name, rooms, _ := strings.Cut(strings.TrimSpace(line), " ")
		n += 100
		for i, group := range strings.Split(rooms, "<") {
			for room := range strings.SplitSeq(group, ",") {
				room = strings.TrimSpace(room)
				if (rel == room || strings.HasPrefix(rel, room+"/")) && len(room) > best {
					best, storey, level, ok = len(room), name, n+i, true
				}
			}
		}
	}
	return storey, level, ok
}

func room(path string) string {
	parts := strings.Split(strings.TrimPrefix(path, "porin/"), "/")
	return strings.Join(parts[:min(2, len(parts))], "/")
}

func TestLayers(t *testing.T) {
	for _, p := range list(t) {
		if p.ImportPath == "porin" || strings.HasPrefix(p.ImportPath, "porin/test/") {
			continue
		}
		storey, level, ok := rank(p.ImportPath)
		if !ok {
			t.Errorf("%s has no place in the lattice: add it to layers_test.go", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, "porin/") || room(imp) == room(p.ImportPath) {
				continue
			}
			s, l, ok := rank(imp)
			if !ok || l > level || (l == level && storey != "words") {
				t.Errorf("%s (%s) imports %s (%s): ask down, announce up", p.ImportPath, storey, imp, s)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	for _, p := range list(t) {
		storey, _, _ := rank(p.ImportPath)
		if storey == "" || strings.HasPrefix(p.ImportPath, "porin/api/") {
			continue
		}
		name := filepath.Base(p.ImportPath)
		ok := false
		for _, v := range verbs[storey] {
			ok = ok || strings.HasPrefix(p.Doc, "Package "+name+" "+v) || storey == "cmd" && strings.HasPrefix(p.Doc, "Command "+name+" ")
		}
		if !ok {
			t.Errorf("%s: the package comment must begin 'Package %s %s' and say what it reads, writes and never does; it is %q",
				p.ImportPath, name, strings.Join(verbs[storey], "|"), p.Doc)
		}
	}
}

func TestForbiddenDependencies(t *testing.T) {
	seen := 0
	for _, p := range list(t) {
		bad, ok := forbidden[p.ImportPath]
		if !ok {
			continue
		}
		seen++
		for _, d := range p.Deps {
			if i := slices.IndexFunc(bad, func(b string) bool { return strings.HasPrefix(d, b) }); i >= 0 {
				t.Errorf("%s links %s: %s is forbidden there", p.ImportPath, d, bad[i])
			}
		}
	}
	if seen != len(forbidden) {
		t.Errorf("%d of %d binaries of the list exist", seen, len(forbidden))
	}
}

var generated = regexp.MustCompile(`\.pb\.go$|_bpfel\.go$`)

// TestFileSizes keeps files to one story: under 600 lines, mains under 60.
func TestFileSizes(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == ".git" || d.Name() == "bin" {
				return filepath.SkipDir
			}
			return nil
		}
		limit := 600
		switch ext := filepath.Ext(path); {
		case ext != ".go" && ext != ".c" && ext != ".h", generated.MatchString(path):
			return nil
		case strings.HasPrefix(path, "cmd/") && filepath.Base(path) == "main.go":
			limit = 60
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		n := 0
		for s := bufio.NewScanner(f); s.Scan(); {
			n++
		}
		if n > limit {
			t.Errorf("%s has %d lines, more than %d: split it by story", path, n, limit)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNoInit: rooms are wired by hand; nothing happens on import.
func TestNoInit(t *testing.T) {
	for _, p := range list(t) {
		files, err := filepath.Glob(filepath.Join(p.Dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if generated.MatchString(f) || strings.HasSuffix(f, "_test.go") {
				continue
			}
			tree, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range tree.Decls {
				if fn := funcName(d); fn == "init" {
					t.Errorf("%s has an init function: wire it in New or Run", f)
				}
			}
		}
	}
}

func funcName(d ast.Decl) string {
	if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
		return fn.Name.Name
	}
	return ""
}
