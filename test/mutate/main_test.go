package main

import "testing"

// TestGuardsAreWhereTheListSays: whoever moves a guard brings the list along, or nobody breaks it any more.
func TestGuardsAreWhereTheListSays(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range mutations() {
		if err := m.check("../.."); err != nil {
			t.Error(err)
		}
		if seen[m.guard] || m.old == m.new {
			t.Errorf("%s: is there twice, or breaks nothing", m.guard)
		}
		seen[m.guard] = true
	}
}
