package agent

import (
	"os"
	"strings"
	"testing"
)

func TestRootCalmTimers(t *testing.T) {
	needRoot(t)
	if err := calmTimers(); err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, th := range threads {
		got, err := os.ReadFile("/proc/" + th.Name() + "/timerslack_ns")
		if os.IsNotExist(err) {
			continue
		}
		if err != nil || strings.TrimSpace(string(got)) != "1000000" {
			t.Errorf("thread %s: slack %q, %v; want 1000000", th.Name(), got, err)
		}
	}
}
