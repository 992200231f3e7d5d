package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// goodDocuments are all documents that the rows of the note let pass: every field of every kind.
func goodDocuments() (out []string) {
	for _, c := range slices.Concat(rowsOfFields(), rowsOfL7(), rowsOfValidation(), rowsOfKubernetes()) {
		out = append(out, c.good...)
	}
	return out
}

// bare strips where the parts of documents stood.
func bare(ps []*Policy) (out []Policy) {
	for _, p := range ps {
		one := Policy{Ref: p.Ref, Group: p.Group, Labels: p.Labels, Service: p.Service}
		if p.Slice != nil {
			one.Slice = &Slice{p.Slice.Service, append(p.Slice.Addresses[:0:0], p.Slice.Addresses...)}
		}
		for _, r := range p.Rules {
			rule := *r
			rule.Line = 0
			for _, s := range []*Section{&rule.Ingress, &rule.Egress} {
				for _, list := range []*[]*Entry{&s.Allow, &s.Deny, &s.Pass} {
					*list = slices.Clone(*list)
					for i, e := range *list {
						entry := *e
						entry.Line = 0
						(*list)[i] = &entry
					}
				}
			}
			one.Rules = append(one.Rules, &rule)
		}
		out = append(out, one)
	}
	return out
}

// checkPrint: what is accepted is printed, read back, and is the same, also from the text that is kept of it.
func checkPrint(t *testing.T, data []byte, ps []*Policy) {
	t.Helper()
	var printed []byte
	for _, p := range ps {
		b, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		printed = append(append(printed, "---\n"...), b...)
		one, err := Parse("kept", []byte(p.YAML))
		if err != nil || !reflect.DeepEqual(bare(one), bare([]*Policy{p})) {
			t.Fatalf("%q is kept as\n%s\nwhich is something else: %v", data, p.YAML, err)
		}
	}
	again, err := Parse("printed", printed)
	if err != nil {
		t.Fatalf("%q is printed as\n%s\nwhich is refused: %v", data, printed, err)
	}
	if was, is := bare(ps), bare(again); !reflect.DeepEqual(was, is) {
		a, _ := json.Marshal(was)
		b, _ := json.Marshal(is)
		t.Fatalf("%q is printed as\n%s\nwhich is something else\nwas %s\nis  %s", data, printed, a, b)
	}
	if was, is := snapshotRules(ps), snapshotRules(again); was != is {
		t.Fatalf("%q is printed as\n%s\nwhich means something else\n%s\n%s", data, printed, was, is)
	}
}

// snapshotRules returns the content hashes of everything that ps put in force.
func snapshotRules(ps []*Policy) string {
	e := NewEngine(Config{})
	e.UpdatePolicies(ps, nil)
	var b strings.Builder
	for _, p := range e.Policies() {
		for _, c := range e.policies[p.Ref].rules {
			fmt.Fprintf(&b, "%s %s %x\n", p.Ref, c.subject.Selector, c.digest)
		}
	}
	return b.String()
}

// TestPrintKeepsEverything: documents with every field of every kind survive being printed (A30).
func TestPrintKeepsEverything(t *testing.T) {
	for _, doc := range goodDocuments() {
		ps, err := Parse("p.yaml", []byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		checkPrint(t, []byte(doc), ps)
	}
}

// TestListItemsAreKept: what is kept of an item of a list is a document by itself, with its strings as they were.
func TestListItemsAreKept(t *testing.T) {
	var items []string
	for i, doc := range goodDocuments() {
		ps, err := Parse("p.yaml", []byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		if doc = ps[0].YAML; !strings.Contains(doc, "name: p") {
			continue
		}
		doc = strings.Replace(doc, "name: p", fmt.Sprintf("name: p%d", i), 1)
		items = append(items, "- "+strings.TrimSpace(strings.ReplaceAll(doc, "\n", "\n  ")))
	}
	list := "apiVersion: v1\nkind: List\nitems:\n" + strings.Join(items, "\n") + "\n"
	ps, err := Parse("list.yaml", []byte(list))
	if err != nil || len(ps) != len(items) {
		t.Fatalf("%d of %d items, %v", len(ps), len(items), err)
	}
	checkPrint(t, []byte(list), ps)
	odd := "apiVersion: v1\nkind: List\nitems:\n- &x\n  # a comment\n  apiVersion: cilium.io/v2\n  kind: CiliumNetworkPolicy\n  metadata: {name: a}\n" +
		"  spec: {endpointSelector: {matchLabels: {a: 'yes', b: \"1\", c: 'null', d: ''}}, description: \"x: '#' --- y\", ingress: []}\n"
	if ps, err = Parse("list.yaml", []byte(odd)); err != nil || len(ps) != 1 || bytes.Contains([]byte(ps[0].YAML), []byte("comment")) {
		t.Fatalf("%d documents, %v", len(ps), err)
	}
	checkPrint(t, []byte(odd), ps)
	if at := ps[0].Line; at != 4 {
		t.Errorf("the item is in line %d, want 4", at)
	}
}

// TestPrintRandom: random documents of every kind survive being printed.
func TestPrintRandom(t *testing.T) {
	g := seed(t)
	object := func(string) oPolicy { return g.object() }
	for i := range 400 {
		p := pick(g, g.policy, g.policy, g.kubernetes, g.cluster, object)(fmt.Sprintf("p%d", i))
		data := p.document()
		checkPrint(t, data, []*Policy{parsed(t, p)})
	}
}
