package policy

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"
)

// TestNoDocumentHides: a document that YAML sees is read or its file is refused, whatever stands between it and the one
// before. A denial that nobody reads would be a permission.
func TestNoDocumentHides(t *testing.T) {
	doc := func(name, rules string) string {
		return "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: " + name + "}\nspec: {endpointSelector: {}, " + rules + "}\n"
	}
	allow, deny := doc("a", "ingress: [{fromEntities: [all]}]"), doc("b", "ingressDeny: [{fromEntities: [all]}]")
	json := func(name string) string {
		return fmt.Sprintf(`{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": %q}, "spec": {"endpointSelector": {}, "ingress": []}}`, name)
	}
	wide := func(s string) string {
		b := []byte{0xff, 0xfe}
		for _, c := range utf16.Encode([]rune(s)) {
			b = append(b, byte(c), byte(c>>8))
		}
		return string(b)
	}
	const another = "another document follows"
	for name, c := range map[string]struct {
		file, want string // part of the error; empty: both are read
	}{
		"a line of dashes":                     {allow + "---\n" + deny, ""},
		"dashes and a comment":                 {allow + "--- # second\n" + deny, ""},
		"an end, then dashes":                  {allow + "...\n---\n" + deny, ""},
		"an end, a directive, dashes":          {allow + "...\n%YAML 1.1\n---\n" + deny, "begin each document with"},
		"lines that end in both":               {strings.ReplaceAll(allow+"---\n"+deny, "\n", "\r\n"), ""},
		"an end alone":                         {allow + "...\n" + deny, "begin each document with"},
		"lines that end in carriage return":    {strings.ReplaceAll(allow+"---\n"+deny, "\n", "\r"), another},
		"dashes between next lines":            {allow + "\u0085---\u0085" + deny, another},
		"dashes between line separators":       {allow + "\u2028---\u2028" + deny, another},
		"dashes between paragraph separators":  {allow + "\u2029---\u2029" + deny, another},
		"letters of two bytes":                 {wide(allow + "---\n" + deny), another},
		"objects of JSON, one after the other": {json("a") + "\n" + json("b") + "\n", "p.yaml:"},
		"dashes that claim to be nothing":      {allow + "--- !!null\n" + deny, ""},
		"an end and nonsense":                  {allow + "...\n}\n", "not YAML"},
	} {
		ps, err := Parse("p.yaml", []byte(c.file))
		switch {
		case c.want == "" && (err != nil || len(ps) != 2):
			t.Errorf("%s: %d policies, error %v; want both", name, len(ps), err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || len(ps) != 0):
			t.Errorf("%s: %d policies, error %v; want an error with %q", name, len(ps), err, c.want)
		}
	}
	for _, end := range []string{"...", "...\n", "...\n# the end\n", "---\n", "\n\n"} {
		if ps, err := Parse("p.yaml", []byte(allow+end)); err != nil || len(ps) != 1 {
			t.Errorf("one document and %q: %d policies, error %v; want one", end, len(ps), err)
		}
	}
}

// TestAliasesAreBounded: what aliases repeat counts by itself, so that a kilobyte cannot ask for minutes; documents of the
// size that people write may use them.
func TestAliasesAreBounded(t *testing.T) {
	list := "x: &a [" + repeated(1000, "{}") + "]\n"
	if _, err := Parse("p.yaml", []byte(list+"y: ["+repeated(250, "*a")+"]\n")); err == nil || !strings.Contains(err.Error(), "p.yaml:2: aliases repeat more than 200000 values") {
		t.Errorf("250,000 values by aliases: error %.200v", err)
	}
	p := parsed1(t, "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: p}\nspec: {externalCIDRs: ["+repeated(250000, "10.0.0.0/8")+"]}\n")
	if len(p.Group.CIDRs) != 250000 {
		t.Errorf("%d of 250000 blocks that are written out", len(p.Group.CIDRs))
	}
}
