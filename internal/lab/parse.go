package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds a lab file; the largest sensible one is far below.
const maxFile = 4 << 20

// Load reads a lab file and the manifests it names.
func Load(file string) (*Spec, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read lab file: %w", err)
	}
	s, err := Parse(file, data)
	if err != nil {
		return nil, err
	}
	for i := range s.Objects {
		o := &s.Objects[i]
		o.content = []byte(o.Inline)
		if o.File == "" {
			continue
		}
		if !filepath.IsAbs(o.File) {
			o.File = filepath.Join(s.dir, o.File)
		}
		if o.content, err = os.ReadFile(o.File); err != nil {
			return nil, fmt.Errorf("%s:%d: objects: read manifest: %w", file, o.line, err)
		}
	}
	return s, nil
}

// Parse reads a lab file's text. It refuses what it does not know, with the line and the nearest known name; every
// mistake of the file is reported, not only the first.
func Parse(file string, data []byte) (*Spec, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes: a lab file has at most %d", file, len(data), maxFile)
	}
	s := &Spec{file: file, dir: filepath.Dir(file)}
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: the file is empty", file)
	} else if err != nil {
		return nil, atLine(file, err)
	}
	var more yaml.Node
	if err := dec.Decode(&more); err == nil {
		return nil, fmt.Errorf("%s:%d: a lab file is one document, but here is a '---' (remove it)", file, more.Line)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s: a lab file is a mapping of workloads, objects, checks and the like", file)
	}
	p := &problems{file: file}
	knownFields(p, doc.Content[0], reflect.TypeFor[Spec](), "")
	if err := p.err(); err != nil {
		return nil, err
	}
	if err := doc.Decode(s); err != nil {
		return nil, atLine(file, err)
	}
	s.setDefaults()
	s.check(p)
	if err := p.err(); err != nil {
		return nil, err
	}
	return s, nil
}

// parseChecks reads the checks of another file for a lab that runs: a file with nothing but checks, or a whole lab file
// whose other parts are left alone.
func parseChecks(file string, data []byte, running *Spec) ([]check, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, atLine(file, err)
	}
	p := &problems{file: file}
	if len(doc.Content) == 1 {
		knownFields(p, doc.Content[0], reflect.TypeFor[Spec](), "")
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	var only struct {
		Checks []check `yaml:"checks"`
	}
	if err := doc.Decode(&only); err != nil {
		return nil, atLine(file, err)
	}
	if len(only.Checks) == 0 {
		return nil, fmt.Errorf("%s: there are no checks in it", file)
	}
	s := *running
	s.Checks = only.Checks
	s.setDefaults()
	n := s.newNames()
	discard := &problems{file: file}
	s.checkNodes(discard, n)
	s.checkWorkloads(discard, n)
	s.checkOutside(discard, n)
	for i := range s.Checks {
		s.Checks[i].check(p, &s, n)
	}
	return s.Checks, p.err()
}

// problems collects what is wrong with a file.
type problems struct {
	file string
	list []error
}

func (p *problems) add(line int, format string, args ...any) {
	p.list = append(p.list, fmt.Errorf("%s:%d: "+format, append([]any{p.file, line}, args...)...))
}

func (p *problems) err() error { return errors.Join(p.list...) }

// atLine turns the YAML library's "yaml: line 7: ..." into "file:7: ...".
func atLine(file string, err error) error {
	if te, ok := errors.AsType[*yaml.TypeError](err); ok {
		var list []error
		for _, e := range te.Errors {
			list = append(list, oneLine(file, e))
		}
		return errors.Join(list...)
	}
	return oneLine(file, strings.TrimPrefix(err.Error(), "yaml: "))
}

func oneLine(file, text string) error {
	m := regexp.MustCompile(`(?s)^line (\d+): (.*)$`).FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("%s: %s", file, text)
	}
	return fmt.Errorf("%s:%s: %s", file, m[1], m[2])
}

// knownFields reports the keys of mappings that the type has no field for. It does not follow aliases: a lab file has
// no use for them, and following them can take exponential time.
func knownFields(p *problems, n *yaml.Node, t reflect.Type, path string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		p.add(n.Line, "%sanchors and aliases are not supported in lab files: write the value out", path)
		return
	}
	switch {
	case n.Kind == yaml.SequenceNode:
		item := reflect.TypeFor[any]()
		if t.Kind() == reflect.Slice {
			item = t.Elem()
		}
		for _, c := range n.Content {
			knownFields(p, c, item, path)
		}
	case n.Kind != yaml.MappingNode:
	case t.Kind() == reflect.Struct:
		fields := map[string]reflect.Type{}
		for f := range t.Fields() {
			if name, _, _ := strings.Cut(f.Tag.Get("yaml"), ","); name != "" {
				fields[name] = f.Type
			}
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			ft, ok := fields[key.Value]
			if !ok {
				p.add(key.Line, "%sunknown field %q%s", path, key.Value, suggest(key.Value, keys(fields)))
				continue
			}
			knownFields(p, n.Content[i+1], ft, path+key.Value+": ")
		}
	default: // a free mapping: labels, agent settings
		for i := 0; i+1 < len(n.Content); i += 2 {
			knownFields(p, n.Content[i+1], reflect.TypeFor[any](), path+n.Content[i].Value+": ")
		}
	}
}

func keys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// suggest returns "; did you mean ...?" with the nearest of known, or the whole list when none is near.
func suggest(word string, known []string) string {
	best, at := 3, ""
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < best && d < len(k) {
			best, at = d, k
		}
	}
	if at != "" {
		return fmt.Sprintf("; did you mean %q?", at)
	}
	if len(known) == 0 {
		return ""
	}
	return "; known: " + strings.Join(known, ", ")
}

// distance is the number of letters to insert, remove or replace to make b of a. Long words are never near.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d++
			}
			diagonal = row[j+1]
			row[j+1] = min(d, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// UnmarshalYAML reads a number of nodes, which are then called node1, node2 ..., or a list.
func (l *nodeList) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		count, err := strconv.Atoi(n.Value)
		if err != nil || count < 1 || count > 64 {
			return lineError(n, "nodes: %q is not a number of nodes from 1 to 64, nor a list of nodes", n.Value)
		}
		for i := range count {
			*l = append(*l, node{Name: fmt.Sprintf("node%d", i+1), line: n.Line})
		}
		return nil
	}
	return n.Decode((*[]node)(l))
}

// UnmarshalYAML reads one text, or a list of endpoints.
func (u *storeURLs) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*u = storeURLs(n.Value)
		return nil
	}
	var list []string
	err := n.Decode(&list)
	*u = storeURLs(strings.Join(list, ","))
	return err
}

// UnmarshalYAML reads a list of words, or one text for a shell.
func (c *command) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*c = command{"/bin/sh", "-c", n.Value}
		return nil
	}
	return n.Decode((*[]string)(c))
}

func lineError(n *yaml.Node, format string, args ...any) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: ", n.Line) + fmt.Sprintf(format, args...)}}
}

// The items below remember their lines for later messages.

func (x *node) UnmarshalYAML(n *yaml.Node) error {
	type plain node
	x.line = n.Line
	return n.Decode((*plain)(x))
}

func (x *namespace) UnmarshalYAML(n *yaml.Node) error {
	type plain namespace
	x.line = n.Line
	return n.Decode((*plain)(x))
}

func (x *workload) UnmarshalYAML(n *yaml.Node) error {
	type plain workload
	x.line = n.Line
	return n.Decode((*plain)(x))
}

func (x *server) UnmarshalYAML(n *yaml.Node) error {
	type plain server
	x.line = n.Line
	return n.Decode((*plain)(x))
}

func (x *outside) UnmarshalYAML(n *yaml.Node) error {
	type plain outside
	x.line = n.Line
	return n.Decode((*plain)(x))
}

func (x *object) UnmarshalYAML(n *yaml.Node) error {
	type plain object
	x.line = n.Line
	return n.Decode((*plain)(x))
}

func (x *check) UnmarshalYAML(n *yaml.Node) error {
	type plain check
	x.line = n.Line
	return n.Decode((*plain)(x))
}
