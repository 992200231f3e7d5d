package cli

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestExamplesHoldOffline: what the examples' checks expect of the wire, the engine says without one; and no rule of
// theirs is idle.
func TestExamplesHoldOffline(t *testing.T) {
	files, err := filepath.Glob("../../examples/*/lab.yaml")
	if err != nil || len(files) < 6 {
		t.Fatalf("examples: %v, %v", files, err)
	}
	files = append(files, "../../examples/policy-test/test.yaml")
	for _, f := range files {
		code, out, errs := call(t.Context(), New(), "", "policy", "test", f)
		if code != 0 || !regexp.MustCompile(`\n[1-9][0-9]* held, 0 did not, `).MatchString(out) {
			t.Errorf("%s: exit %d\n%s%s", f, code, out, errs)
		}
		code, out, errs = call(t.Context(), New(), "", "policy", "lint", "-w", f)
		if code != 0 || strings.Contains(out, "redundant") || strings.Contains(out, "shadowed") || strings.Contains(out, "selects-nothing") {
			t.Errorf("%s: exit %d\n%s%s", f, code, out, errs)
		}
	}
}
