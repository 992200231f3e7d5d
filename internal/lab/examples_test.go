package lab

import (
	"path/filepath"
	"testing"

	"porin/internal/policy"
)

// Every example can be read, and so can its policies.
func TestExamplesParse(t *testing.T) {
	files, err := filepath.Glob("../../examples/*/lab.yaml")
	if err != nil || len(files) < 6 {
		t.Fatalf("examples: %v %v", files, err)
	}
	for _, f := range files {
		s, err := Load(f)
		if err != nil {
			t.Error(err)
			continue
		}
		if s.Name != filepath.Base(filepath.Dir(f)) || len(s.Checks) == 0 {
			t.Errorf("%s: name %s, %d checks", f, s.Name, len(s.Checks))
		}
		for _, o := range s.Objects {
			if _, err := policy.Parse(o.File, o.content); err != nil {
				t.Error(err)
			}
		}
	}
}
