package advise

import (
	"cmp"
	"slices"
	"time"
)

// Connection is one that somebody has seen: who, with whom, and what became of it.
type Connection struct {
	From, To End
	Port     Port
	Verdict  string // then
	Count    int
	Last     time.Time
}

// Replayed is a recorded connection on which two sets of policies differ.
type Replayed struct {
	From     string    `json:"from"`
	To       string    `json:"to"`
	Port     string    `json:"port"`
	Recorded string    `json:"recorded"` // what became of it then
	Count    int       `json:"count"`
	Last     time.Time `json:"last"`
	Old      string    `json:"old"` // what the policies of now make of it
	New      string    `json:"new"`
	OldRules []Rule    `json:"old_rules"`
	NewRules []Rule    `json:"new_rules"`
}

// Gather joins connections that are the same for policy, the last first.
func Gather(list []Connection) (out []Connection) {
	type key struct {
		from, to, verdict string
		port              Port
	}
	at := map[key]int{}
	for _, c := range list {
		k := key{c.From.Name, c.To.Name, c.Verdict, c.Port}
		i, ok := at[k]
		if !ok {
			at[k] = len(out)
			out = append(out, c)
			continue
		}
		out[i].Count += c.Count
		if c.Last.After(out[i].Last) {
			out[i].Last = c.Last
		}
	}
	slices.SortStableFunc(out, func(a, b Connection) int {
		return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.From.Name, b.From.Name), cmp.Compare(a.To.Name, b.To.Name), comparePorts(a.Port, b.Port))
	})
	return out
}

// Replay tells which of the connections next judges otherwise than w does. Who an address is, each world says for
// itself: a new block makes a new somebody.
func (w *World) Replay(next *World, list []Connection) []Replayed {
	out := []Replayed{}
	for _, c := range list {
		old, then := w.Ask(w.now(c.From), w.now(c.To), c.Port), next.Ask(next.now(c.From), next.now(c.To), c.Port)
		if old.Word() == then.Word() {
			continue
		}
		out = append(out, Replayed{
			From: c.From.Name, To: c.To.Name, Port: c.Port.String(), Recorded: c.Verdict, Count: c.Count, Last: c.Last,
			Old: old.Word(), New: then.Word(), OldRules: old.Rules, NewRules: then.Rules,
		})
	}
	return out
}

// now is an end as this world sees it.
func (w *World) now(e End) End {
	if e.Kind == Address && len(e.Addrs) == 1 {
		e.Identity = w.At(e.Addrs[0])
	}
	return e
}
