package bpf_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"porin/internal/verdict"
)

// Every drop reason is what some story wants, and there are as many stories as promised.
func TestEveryReasonHasAStory(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 60 {
		t.Errorf("%d stories, promised are 60", len(files))
	}
	want := regexp.MustCompile(`(?m)^want drop (\w+)$`)
	seen := map[string]bool{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) == 0 || text[0] != '#' {
			t.Errorf("%s does not say what it tells", f)
		}
		for _, m := range want.FindAllSubmatch(text, -1) {
			seen[string(m[1])] = true
		}
	}
	for _, r := range verdict.Reasons() {
		if r != verdict.None && !seen[r.Name()] {
			t.Errorf("no story drops a packet for %s", r.Name())
		}
	}
}
