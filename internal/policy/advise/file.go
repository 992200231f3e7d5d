package advise

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
)

// maxFile bounds a workload file: room for some 100,000 workloads.
const maxFile = 32 << 20

// File is a workload file: the shape of a lab file, of which it needs the workloads only. What says how to build a lab
// is accepted and means nothing here.
type File struct {
	Name       string           `yaml:"name"`
	Families   []string         `yaml:"families"`
	Agent      map[string]any   `yaml:"agent"`
	Namespaces []namespace      `yaml:"namespaces"`
	Workloads  []workload       `yaml:"workloads"`
	Outside    []outside        `yaml:"outside"`
	Objects    []Object         `yaml:"objects"`
	Checks     []Check          `yaml:"checks"`
	NodeList   yaml.Node        `yaml:"nodes"`
	Routing    string           `yaml:"routing"`
	Store      string           `yaml:"store"`
	Policies   []*policy.Policy `yaml:"-"` // of Objects
	Path       string           `yaml:"-"`
}

type namespace struct {
	Name   string            `yaml:"name"`
	Labels map[string]string `yaml:"labels"`
}

type workload struct {
	Name           string            `yaml:"name"`
	Namespace      string            `yaml:"namespace"`
	ServiceAccount string            `yaml:"serviceAccount"`
	Cluster        string            `yaml:"cluster"`
	Node           string            `yaml:"node"`
	Labels         map[string]string `yaml:"labels"`
	Ports          []server          `yaml:"ports"` // with names, for rules; those of serves count too
	Replicas       int               `yaml:"replicas"`
	Serves         []server          `yaml:"serves"`
	Run            any               `yaml:"run"`
}

type server struct {
	Port     uint16 `yaml:"port"`
	Protocol string `yaml:"protocol"`
	Name     string `yaml:"name"`
	Kind     string `yaml:"kind"`
}

type outside struct {
	Name      string       `yaml:"name"`
	Addresses []netip.Addr `yaml:"addresses"`
	Names     []string     `yaml:"names"` // in DNS
	Serves    []server     `yaml:"serves"`
}

type node struct {
	Name   string            `yaml:"name"`
	Labels map[string]string `yaml:"labels"`
}

// Object is a manifest, in a file of its own or written here.
type Object struct {
	File   string `yaml:"file"`
	Inline string `yaml:"inline"`
}

// Check is a connection and what must become of it.
type Check struct {
	From     string         `yaml:"from"`
	To       string         `yaml:"to"`
	Port     string         `yaml:"port"` // number, or name that the receiver gives to one
	Protocol string         `yaml:"protocol"`
	Family   string         `yaml:"family"`
	Expect   string         `yaml:"expect"`
	Reason   string         `yaml:"reason"`
	Times    int            `yaml:"times"`
	Run      any            `yaml:"run"`
	On       string         `yaml:"on"`
	HTTP     map[string]any `yaml:"http"`
	Backends int            `yaml:"backends"`
	Line     int            `yaml:"-"`
}

// Read reads a workload file, and with read the manifests that it names.
func Read(path string, data []byte, read func(path string) ([]byte, error)) (*File, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes: a workload file has at most %d", path, len(data), maxFile)
	}
	f := &File{Path: path}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(f); err != nil {
		return nil, located(path, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: a workload file is one document; give policies with -f, or under objects", path)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, located(path, err)
	}
	at := lines(&doc)
	for i := range f.Checks {
		f.Checks[i].Line = at.line("checks", i)
	}
	errs := f.check(at)
	for i, o := range f.Objects {
		ps, err := o.parse(path, at.line("objects", i), read)
		errs = append(errs, err)
		f.Policies = append(f.Policies, ps...)
	}
	errs = append(errs, twice(f.Policies))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return f, nil
}

// places is the lines of the elements of the file's lists, by name.
type places map[string][]int

// line is 1 for what came into the list in another way than by being written there.
func (p places) line(list string, i int) int {
	if i < len(p[list]) {
		return p[list][i]
	}
	return 1
}

// lines tells in which line each element of the file's lists stands.
func lines(doc *yaml.Node) places {
	out := places{}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return out
	}
	for i, n := 0, doc.Content[0].Content; i+1 < len(n); i += 2 {
		list := n[i+1]
		if list.Kind == yaml.AliasNode {
			list = list.Alias
		}
		for _, e := range list.Content {
			out[n[i].Value] = append(out[n[i].Value], e.Line)
		}
	}
	return out
}

// located turns the library's "line 7: ..." into "path:7: ...".
func located(path string, err error) error {
	list := []string{strings.TrimPrefix(err.Error(), "yaml: ")}
	if te, ok := errors.AsType[*yaml.TypeError](err); ok {
		list = te.Errors
	}
	unknown := regexp.MustCompile(`^field (.*) not found in type .*\.(\w+)$`)
	var out []error
	for _, text := range list {
		where := path
		if m := regexp.MustCompile(`(?s)^line (\d+): (.*)$`).FindStringSubmatch(text); m != nil {
			where, text = path+":"+m[1], m[2]
		}
		if m := unknown.FindStringSubmatch(text); m != nil {
			text = fmt.Sprintf("unknown field %q in %s", m[1], map[bool]string{true: "the file", false: strings.ToLower(m[2])}[m[2] == "File"])
		}
		if text == "EOF" {
			text = "the file is empty; it needs workloads"
		}
		out = append(out, fmt.Errorf("%s: %s", where, text))
	}
	return errors.Join(out...)
}

func (o Object) parse(path string, line int, read func(string) ([]byte, error)) ([]*policy.Policy, error) {
	switch {
	case (o.File == "") == (o.Inline == ""):
		return nil, fmt.Errorf("%s:%d: objects: an item has either file or inline", path, line)
	case o.Inline != "":
		return policy.Parse(fmt.Sprintf("%s:%d:inline", path, line), []byte(o.Inline))
	}
	name := o.File
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(path), name)
	}
	data, err := read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s:%d: objects: file %s: no such file; names are relative to this file", path, line, o.File)
	}
	if err != nil {
		return nil, fmt.Errorf("%s:%d: objects: %w", path, line, err)
	}
	return policy.Parse(name, data)
}

// twice refuses two policies of one name: the second would replace the first.
func twice(ps []*policy.Policy) error {
	seen := map[policy.Ref]*policy.Policy{}
	var errs []error
	for _, p := range ps {
		if first, ok := seen[p.Ref]; ok {
			errs = append(errs, &policy.FieldError{
				File: p.File, Line: p.Line, Field: "metadata.name",
				Text: fmt.Sprintf("%s is already in %s:%d; applied together, one would replace the other", p.Ref, first.File, first.Line),
			})
			continue
		}
		seen[p.Ref] = p
	}
	return errors.Join(errs...)
}

// Twice is for callers that read several files of policies.
func Twice(ps []*policy.Policy) error { return twice(ps) }

func (f *File) check(at places) (errs []error) {
	fail := func(list string, i int, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s:%d: %s: %s", f.Path, at.line(list, i), list, fmt.Sprintf(format, args...)))
	}
	for i, family := range f.Families {
		if family != "ipv4" && family != "ipv6" {
			fail("families", i, "%q: write ipv4 or ipv6", family)
		}
	}
	seen := map[string]int{}
	for i, w := range f.Workloads {
		name := space(w.Namespace) + "/" + w.Name
		switch {
		case w.Name == "":
			fail("workloads", i, "name is missing")
		case seen[name] > 0:
			fail("workloads", i, "%s is already in line %d", name, seen[name])
		case w.Replicas < 0 || w.Replicas > 1000:
			fail("workloads", i, "%s: replicas: %d is not from 1 to 1000", name, w.Replicas)
		}
		seen[name] = at.line("workloads", i)
		for _, s := range append(slices.Clone(w.Serves), w.Ports...) {
			if _, err := s.port(); err != nil {
				fail("workloads", i, "%s: serves: %s", name, err)
			}
		}
		for _, s := range w.Ports {
			if s.Name == "" {
				fail("workloads", i, "%s: ports: port %d has no name; rules can mean it by its number anyway", name, s.Port)
			}
		}
		if _, refused := w.pod(f).All(); len(refused) > 0 {
			fail("workloads", i, "%s: labels: only porin gives %s; use namespace, serviceAccount or cluster", name, strings.Join(refused, " and "))
		}
	}
	for i, c := range f.Checks {
		if err := c.check(); err != nil {
			fail("checks", i, "%s", err)
		}
	}
	return errs
}

func space(s string) string {
	if s == "" {
		return "default"
	}
	return s
}

func (s server) port() (Port, error) {
	text := strconv.Itoa(int(s.Port))
	if s.Protocol != "" {
		text += "/" + s.Protocol
	}
	ps, err := ParsePort(text, nil)
	if err != nil {
		return Port{}, err
	}
	return ps[0], nil
}

func (w *workload) pod(f *File) labels.Pod {
	p := labels.Pod{Namespace: space(w.Namespace), ServiceAccount: w.ServiceAccount, Cluster: w.Cluster, Labels: w.Labels}
	for _, ns := range f.Namespaces {
		if ns.Name == p.Namespace {
			p.NamespaceLabels = ns.Labels
		}
	}
	return p
}

// World returns the file's workloads under its policies and more.
func (f *File) World(more []*policy.Policy) (*World, error) {
	cfg := Config{Families: f.Families}
	set := func(key string) string {
		if v, ok := f.Agent[key]; ok {
			return fmt.Sprint(v)
		}
		return ""
	}
	cfg.Enforcement, cfg.AllowLocalhost = set("policy-enforcement"), set("allow-localhost")
	cfg.Audit, cfg.Cluster = set("policy-audit-mode") == "true", set("cluster-name")
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("%s: agent: %w", f.Path, err)
	}
	filter, err := labels.ParseFilter(set("labels"))
	if err != nil {
		return nil, fmt.Errorf("%s: agent: %w", f.Path, err)
	}
	all := append(append([]*policy.Policy(nil), f.Policies...), more...)
	if err := twice(all); err != nil {
		return nil, err
	}
	return New(cfg, f.ends(filter), all), nil
}

func (f *File) ends(filter *labels.Filter) (out []End) {
	for i := range f.Workloads {
		w := &f.Workloads[i]
		ls, _ := w.pod(f).All()
		e := End{Kind: Workload, Name: space(w.Namespace) + "/" + w.Name, Identity: identity.Identity{Labels: filter.Security(ls)}, Serves: served(w.Serves), Ports: w.named()}
		if w.Replicas < 2 {
			out = append(out, e)
			continue
		}
		for n := range w.Replicas {
			r := e
			r.Name, r.Replica = fmt.Sprintf("%s-%d", e.Name, n+1), e.Name
			out = append(out, r)
		}
	}
	for _, o := range f.Outside {
		e := End{Kind: Outside, Name: o.Name, Addrs: o.Addresses, Serves: served(o.Serves), Identity: reserved(identity.World)}
		for _, name := range o.Names {
			e.Names = append(e.Names, dnsName(name))
		}
		out = append(out, e)
	}
	for i, n := range f.nodes() {
		out = append(out, End{Kind: Node, Name: n.Name, Identity: nodeIdentity(i, n.Labels)})
	}
	return out
}

// nodeIdentity is a node as the first one sees it: that one is the host, the others are remote.
func nodeIdentity(i int, own map[string]string) identity.Identity {
	id := reserved(identity.Host)
	if i > 0 {
		id = reserved(identity.RemoteNode)
	}
	if len(own) == 0 {
		return id
	}
	if i > 0 {
		id.ID = scopeNodes + identity.ID(i)
	}
	all := slices.Clone([]labels.Label(id.Labels))
	for k, v := range own {
		all = append(all, labels.Label{Source: labels.SourceNode, Key: k, Value: v})
	}
	id.Labels = labels.New(all...)
	return id
}

// scopeNodes is where numbers of remote nodes with labels begin.
const scopeNodes identity.ID = 2 << 24

// named returns the workload's ports that have names, as rules write them.
func (w *workload) named() (out []policy.NamedPort) {
	for _, s := range append(slices.Clone(w.Serves), w.Ports...) {
		if p, err := s.port(); err == nil && s.Name != "" {
			out = append(out, policy.NamedPort{Name: strings.ToLower(s.Name), Proto: p.Proto, Port: p.Number})
		}
	}
	return out
}

// nodes returns the lab's nodes; node1 .. if there is only a number.
func (f *File) nodes() (out []node) {
	if f.NodeList.Kind == yaml.SequenceNode && f.NodeList.Decode(&out) == nil {
		return out
	}
	n, err := strconv.Atoi(f.NodeList.Value)
	if err != nil {
		n = 1
	}
	for i := range min(n, 1000) {
		out = append(out, node{Name: fmt.Sprintf("node%d", i+1)})
	}
	return out
}

func served(list []server) (out []Served) {
	for _, s := range list {
		if p, err := s.port(); err == nil {
			out = append(out, Served{p, s.Name})
		}
	}
	return out
}
