package advise

import (
	"cmp"
	"slices"

	"porin/internal/identity"
)

// Selection is one set of peers that rules name, and who is in it.
type Selection struct {
	Selector string   `json:"selector"`
	Rules    []Rule   `json:"rules"` // that name it
	Who      []string `json:"who"`
}

// Selectors lists the sets of peers that rules name, among everybody known.
func (w *World) Selectors() []Selection {
	known := w.Known()
	ids := make([]identity.Identity, len(known))
	for i, e := range known {
		ids[i] = e.Identity
	}
	at, out := map[string]int{}, []Selection{}
	for _, h := range w.Engine.Survey(ids) {
		for _, m := range h.Peers {
			i, ok := at[m.Text]
			if !ok {
				i = len(out)
				at[m.Text] = i
				s := Selection{Selector: m.Text, Rules: []Rule{}, Who: []string{}}
				for _, n := range m.Who {
					s.Who = append(s.Who, known[n].Name)
				}
				out = append(out, s)
			}
			if r := (Rule{h.Rule}); !slices.Contains(out[i].Rules, r) {
				out[i].Rules = append(out[i].Rules, r)
			}
		}
	}
	slices.SortFunc(out, func(a, b Selection) int { return cmp.Compare(a.Selector, b.Selector) })
	return out
}
