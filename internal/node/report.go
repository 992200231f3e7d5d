package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// State of a node.
type State string

// States.
const (
	Self    State = "self"
	Live    State = "live"
	Lapsed  State = "lapsed"  // its record is gone from the store; it stays known for a while
	Refused State = "refused" // nothing of what it claims is its own
)

// Row is a row of the table nodes: a node as it says it is, and what became of that.
type Row struct {
	Node
	State    State          `json:"state"`
	Since    time.Time      `json:"since,omitzero"` // when it lapsed
	Accepted []netip.Prefix `json:"accepted,omitempty"`
	Message  string         `json:"message,omitempty"` // why not all is accepted
}

// Counts are figures for metrics and status.
type Counts struct {
	Nodes     map[State]int
	Addresses int            // of other nodes, in the kernel
	Waiting   int            // their identity is not known here
	Refused   int            // now
	Reasons   map[string]int // addresses that are not in the kernel, by why
	Refusals  uint64         // records refused since the start
}

// Counts returns how many nodes and addresses there are.
func (n *Nodes) Counts() Counts {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := Counts{Nodes: map[State]int{Self: 1}, Reasons: map[string]int{}}
	for _, o := range n.book.owners {
		if o.known {
			c.Nodes[o.state()]++
		}
	}
	c.Addresses, c.Waiting, c.Refusals = n.book.count[accepted], n.book.count[waiting], n.book.refused
	for r := waiting; r < reasons; r++ {
		if n.book.count[r] > 0 {
			c.Reasons[reasonText[r]] = n.book.count[r]
		}
		if r.refused() {
			c.Refused += n.book.count[r]
			c.Refusals += n.book.told[r]
		}
	}
	return c
}

func (o *owner) state() State {
	switch {
	case o.bad != "" || len(o.ranges) == 0 && o.refused != "":
		return Refused
	case o.lapsed():
		return Lapsed
	}
	return Live
}

// Alarms says what needs a human.
func (n *Nodes) Alarms() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, text := range n.alarms {
		out = append(out, text)
	}
	if n.trouble != "" {
		out = append(out, "other nodes are not all in the kernel: "+n.trouble)
	}
	for _, o := range n.book.owners {
		switch {
		case o.bad != "":
			out = append(out, fmt.Sprintf("node %s refused: %s", o.key, o.bad))
		case o.refused != "":
			out = append(out, fmt.Sprintf("node %s: %s", o.key, o.refused))
		}
		for r := outside; r < reasons; r++ {
			if o.n[r] > 0 && (o.refused == "" || r != outside) {
				out = append(out, fmt.Sprintf("%d addresses that node %s tells of are refused: %s", o.n[r], o.key, reasonText[r]))
			}
		}
	}
	slices.Sort(out)
	return out
}

// Problems tells in one line what keeps other nodes from being reachable; empty when nothing does.
func (n *Nodes) Problems() string { return strings.Join(n.Alarms(), "; ") }

// show brings the table up to date.
func (n *Nodes) show() {
	n.mu.Lock()
	if !n.book.changed {
		n.mu.Unlock()
		return
	}
	n.book.changed = false
	n.memory.Add(1)
	want := map[string]Row{}
	for _, o := range n.book.owners {
		if o.known {
			want[o.key] = Row{Node: o.node, State: o.state(), Since: o.since, Accepted: o.ranges, Message: strings.Join(nonEmpty(o.bad, o.refused), "; ")}
		}
	}
	n.mu.Unlock()
	var put []Row
	var gone []string
	for _, r := range n.rows.List() {
		now, there := want[r.Key()]
		switch {
		case r.State == Self:
		case !there:
			gone = append(gone, r.Key())
		case sameNode(now.Node, r.Node) && now.State == r.State && now.Since.Equal(r.Since) && now.Message == r.Message && slices.Equal(now.Accepted, r.Accepted):
			delete(want, r.Key())
		}
	}
	for _, r := range want {
		put = append(put, r)
	}
	n.rows.Update(put, gone...)
}

func nonEmpty(list ...string) []string {
	return slices.DeleteFunc(list, func(s string) bool { return s == "" })
}

func text(list []netip.Addr) string {
	out := make([]string, len(list))
	for i, a := range list {
		out[i] = a.String()
	}
	return strings.Join(out, ",")
}

// AddressRow is a row of the table addresses.
type AddressRow struct {
	Address
	Message string `json:"message,omitempty"` // why the kernel does not have it
}

// addresses are the rows of the table addresses, made when somebody asks: there may be 100,000.
func (n *Nodes) addresses() (rows []AddressRow, rev uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, sl := range n.book.slots {
		for e := sl.first; e != nil; e = e.next {
			rows = append(rows, AddressRow{e.address(), reasonText[e.why]})
		}
	}
	slices.SortFunc(rows, func(a, b AddressRow) int {
		if c := a.Addr.Compare(b.Addr); c != 0 {
			return c
		}
		return strings.Compare(a.Node, b.Node)
	})
	return rows, n.rev
}
