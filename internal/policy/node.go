package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	yaml "go.yaml.in/yaml/v3"
)

// Limits of what Parse reads. A document beyond them is refused; none of them cuts anything silently.
const (
	maxFile  = 16 << 20 // bytes
	maxDocs  = 20000    // per file
	maxDepth = 32       // of nesting in one document
	maxNodes = 2 << 20  // per file
	maxAlias = 200000   // of those, the ones that aliases repeat: few bytes may ask for very many
	maxErrs  = 20       // reported per file

	maxPriority   = 1<<31 - 1
	maxLabels     = 1000    // of one object
	maxEntryPorts = 8192    // of one entry, over all its lists
	maxText       = 1024    // bytes of a name or value that nothing else bounds
	maxRegex      = 8 << 10 // bytes
	maxRegexSize  = 10000   // instructions that one regular expression may compile to
	maxRegexSizes = 1 << 20 // all of a file together
)

// FieldError is a mistake at one place of a document.
type FieldError struct {
	File  string
	Line  int
	Field string // path from the document's root; empty for the document itself
	Text  string // what is wrong and what to do
}

func (e *FieldError) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text)
	}
	return fmt.Sprintf("%s:%d: %s: %s", e.File, e.Line, e.Field, e.Text)
}

// reader walks the documents of one file and collects mistakes.
type reader struct {
	file  string
	first int // line before the document's first line
	nodes int // read so far, over all documents
	alias int // of those, by aliases
	regex int // instructions that the regular expressions read so far compile to
	errs  []error
}

func (r *reader) fail(n *yaml.Node, field, format string, args ...any) {
	if len(r.errs) == maxErrs {
		r.errs = append(r.errs, fmt.Errorf("%s: more mistakes follow", r.file))
	}
	if len(r.errs) > maxErrs {
		return
	}
	r.errs = append(r.errs, &FieldError{File: r.file, Line: r.line(n), Field: field, Text: fmt.Sprintf(format, args...)})
}

func (r *reader) line(n *yaml.Node) int { return r.first + n.Line }

// value is a node of the document with the path that leads to it.
type value struct {
	*yaml.Node
	path string
}

func (v value) at(key string) string {
	if v.path == "" {
		return key
	}
	return v.path + "." + key
}

// split cuts a file into its documents, each with the number of lines before it. A line that starts with "---" ends a
// document wherever it stands: YAML forbids it inside of text.
func split(data []byte) (docs [][]byte, before []int) {
	start, line, from := 0, 0, 0
	for pos := 0; pos < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		if text := data[pos:end]; bytes.HasPrefix(text, []byte("---")) && (len(bytes.TrimRight(text, " \t\r\n")) == 3 || text[3] == ' ' || text[3] == '\t') {
			docs, before = append(docs, data[start:pos]), append(before, from)
			start, from = pos, line
		}
		pos = end
	}
	return append(docs, data[start:]), append(before, from)
}

// document parses one document into a tree without aliases. ok is false when there is none or it is unreadable.
func (r *reader) document(data []byte) (v value, ok bool) {
	var root, more yaml.Node
	from := yaml.NewDecoder(bytes.NewReader(data))
	err := from.Decode(&root)
	if errors.Is(err, io.EOF) {
		return value{}, false
	}
	if err == nil {
		err = from.Decode(&more)
	}
	switch {
	case err == nil: // what split does not see as an end, YAML does
		at := &more
		if len(more.Content) > 0 {
			at = more.Content[0]
		}
		r.fail(at, "", "another document follows here without a line \"---\" of plain ASCII before it; write one")
		return value{}, false
	case !errors.Is(err, io.EOF):
		at, text := &yaml.Node{Line: 1}, strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\n", " "), "yaml: ")
		if _, err := fmt.Sscanf(text, "line %d: ", &at.Line); err == nil {
			_, text, _ = strings.Cut(text, ": ")
		}
		if strings.Contains(text, "<document start>") {
			text += "; begin each document with a line \"---\""
		}
		r.fail(at, "", "not YAML: %s", text)
		return value{}, false
	}
	if root.Kind == 0 || len(root.Content) == 0 {
		return value{}, false
	}
	top, err := r.expand(root.Content[0], 0, false)
	if err != nil {
		r.fail(top, "", "%s", err)
		return value{}, false
	}
	if top.Tag == "!!null" && top.Kind == yaml.ScalarNode {
		return value{}, false
	}
	return value{top, ""}, true
}

// expand replaces aliases by copies, within the limits. Of a copy it does not copy what says nothing: anchors, comments.
func (r *reader) expand(n *yaml.Node, depth int, copied bool) (*yaml.Node, error) {
	if r.nodes++; r.nodes > maxNodes {
		return n, fmt.Errorf("more than %d values in one file; split it", maxNodes)
	}
	if depth > maxDepth {
		return n, fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	at := n
	for n.Kind == yaml.AliasNode {
		n, copied = n.Alias, true
	}
	if copied {
		if r.alias++; r.alias > maxAlias {
			return at, fmt.Errorf("aliases repeat more than %d values in one file; write them out in several files", maxAlias)
		}
	}
	out := *n
	out.Anchor, out.HeadComment, out.LineComment, out.FootComment = "", "", "", ""
	out.Content = make([]*yaml.Node, len(n.Content))
	for i, c := range n.Content {
		e, err := r.expand(c, depth+1, copied)
		switch {
		case err != nil && at != n: // it is the alias that asks for too much
			return at, err
		case err != nil:
			return e, err
		}
		out.Content[i] = e
	}
	return &out, nil
}

// object is a mapping whose fields are taken one by one; what nobody took is a mistake.
type object struct {
	value
	r      *reader
	fields map[string]field
	order  []string
}

type field struct {
	key   *yaml.Node
	val   value
	taken bool
}

// object reads v as a mapping.
func (r *reader) object(v value) (*object, bool) {
	if v.Kind != yaml.MappingNode {
		r.fail(v.Node, v.path, "%s where an object is expected", describe(v.Node))
		return nil, false
	}
	o := &object{value: v, r: r, fields: make(map[string]field, len(v.Content)/2)}
	for i := 0; i+1 < len(v.Content); i += 2 {
		k, val := v.Content[i], v.Content[i+1]
		name := k.Value
		if k.Kind != yaml.ScalarNode || (k.Tag != "!!str" && k.Tag != "!!merge") {
			r.fail(k, v.path, "the key %q is not text; quote it", name)
			continue
		}
		if k.Tag == "!!merge" {
			r.fail(k, v.path, "merge keys (<<) are not supported; write the fields out")
			continue
		}
		if _, twice := o.fields[name]; twice {
			r.fail(k, v.at(printable(name)), "the field is there twice")
			continue
		}
		o.fields[name] = field{key: k, val: value{val, v.at(printable(name))}}
		o.order = append(o.order, name)
	}
	return o, true
}

// take returns a field. A null is refused: it could mean "nothing" or "not given", and those differ.
func (o *object) take(name string) (value, bool) {
	f, ok := o.fields[name]
	if !ok {
		return value{}, false
	}
	f.taken = true
	o.fields[name] = f
	if f.val.Tag == "!!null" {
		o.r.fail(f.key, f.val.path, "has no value; leave the field out, or write [] or {} or \"\" if empty is meant")
		return value{}, false
	}
	return f.val, true
}

// need takes a field that must be there.
func (r *reader) need(o *object, name string) (value, bool) {
	v, ok := o.take(name)
	if _, null := o.fields[name]; !ok && !null {
		r.fail(o.Node, o.at(name), "missing")
	}
	return v, ok
}

// skip takes fields whose content does not matter.
func (o *object) skip(names ...string) {
	for _, name := range names {
		if f, ok := o.fields[name]; ok {
			f.taken = true
			o.fields[name] = f
		}
	}
}

// refuse says of a field that is part of the language why it cannot stand here.
func (o *object) refuse(name, why string) {
	if f, ok := o.fields[name]; ok {
		o.skip(name)
		o.r.fail(f.key, f.val.path, "%s", why)
	}
}

// rest takes what nobody took: an object of which only a part matters.
func (o *object) rest() { o.skip(o.order...) }

// done reports the fields that nobody took.
func (o *object) done() {
	for _, name := range o.order {
		if f := o.fields[name]; !f.taken {
			o.r.fail(f.key, f.val.path, "unknown field")
		}
	}
}

// list reads v as a sequence, whose elements must not be null.
func (r *reader) list(v value) ([]value, bool) {
	if v.Kind != yaml.SequenceNode {
		r.fail(v.Node, v.path, "%s where a list is expected", describe(v.Node))
		return nil, false
	}
	out := make([]value, 0, len(v.Content))
	for i, c := range v.Content {
		e := value{c, fmt.Sprintf("%s[%d]", v.path, i)}
		if c.Tag == "!!null" {
			r.fail(c, e.path, "has no value; write {} or take the element out")
			continue
		}
		out = append(out, e)
	}
	return out, true
}

// text reads v as a string without control characters.
func (r *reader) text(v value) (string, bool) {
	if v.Kind != yaml.ScalarNode || v.Tag != "!!str" {
		r.fail(v.Node, v.path, "%s where text is expected; quote it", describe(v.Node))
		return "", false
	}
	if hasControl(v.Value) {
		r.fail(v.Node, v.path, "control characters are not allowed")
		return "", false
	}
	return v.Value, true
}

func (r *reader) boolean(v value) (bool, bool) {
	if v.Kind == yaml.ScalarNode && v.Tag == "!!bool" {
		switch v.Value {
		case "true", "True", "TRUE":
			return true, true
		case "false", "False", "FALSE":
			return false, true
		}
	}
	r.fail(v.Node, v.path, "%s where true or false is expected", describe(v.Node))
	return false, false
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "an object"
	case yaml.SequenceNode:
		return "a list"
	}
	if n.Tag == "!!null" {
		return "nothing"
	}
	return fmt.Sprintf("%.60q", n.Value)
}

// hasControl tells whether s could upset a terminal or a log. Bytes that are not UTF-8 count.
func hasControl(s string) bool {
	return strings.ContainsFunc(s, isControl)
}

func isControl(c rune) bool {
	switch {
	case c < 0x20, c >= 0x7f && c < 0xa0, c == 0xfffd:
		return true
	case c >= 0x200b && c <= 0x200f, c >= 0x2028 && c <= 0x202e, c >= 0x2066 && c <= 0x2069, c == 0xfeff:
		return true // invisible, or changes the direction of the text around it
	}
	return false
}

// printable returns s fit for an error message.
func printable(s string) string {
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	if hasControl(s) || strings.ContainsAny(s, ". []") {
		return fmt.Sprintf("%q", s)
	}
	return s
}

func (r *reader) err() error { return errors.Join(r.errs...) }

// items returns the objects of a list of objects. They may leave out what the list says for all.
func (r *reader) items(v value) (items []value, ok bool) {
	field := func(n *yaml.Node, name string) *yaml.Node {
		if n.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == name {
					return n.Content[i+1]
				}
			}
		}
		return &yaml.Node{}
	}
	kind, version := field(v.Node, "kind").Value, field(v.Node, "apiVersion").Value
	base, isList := strings.CutSuffix(kind, "List")
	if _, known := kindOf(base); !isList || base != "" && !known {
		return nil, false
	}
	o, ok := r.object(v)
	if !ok {
		return nil, true
	}
	o.skip("apiVersion", "kind", "metadata")
	if base == "" && version != "v1" {
		r.fail(field(v.Node, "apiVersion"), v.at("apiVersion"), "%.60q is not supported for a List; use v1", version)
	}
	list, ok := o.take("items")
	if !ok {
		r.fail(v.Node, v.at("items"), "missing")
		return nil, true
	}
	items, _ = r.list(list)
	if len(items) > maxDocs {
		r.fail(list.Node, list.path, "%d items; at most %d are read, split the list", len(items), maxDocs)
		return nil, true
	}
	o.done()
	for _, item := range items {
		if item.Kind != yaml.MappingNode || base == "" {
			continue
		}
		for _, add := range [][2]string{{"kind", base}, {"apiVersion", version}} {
			if field(item.Node, add[0]).Kind == 0 {
				k := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: add[0], Line: item.Line}
				val := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: add[1], Line: item.Line}
				item.Content = append([]*yaml.Node{k, val}, item.Content...)
			}
		}
	}
	return items, true
}

// print writes an item of a list as a document of its own.
func (r *reader) print(v value) string {
	b, err := yaml.Marshal(v.Node)
	if err != nil {
		r.fail(v.Node, v.path, "cannot be written as a document of its own: %v", err)
	}
	return string(b)
}
