package policy

import (
	"porin/internal/identity"
	"porin/internal/verdict"
)

// Cookie names the list of rules that made a verdict. It is a hash of that list, so the same rules have the same
// cookie after a restart; Engine.Explain turns it back into rules. Zero: nothing was judged.
type Cookie uint32

// PortVerdict is what a verdict table says about one (protocol, port).
type PortVerdict struct {
	Action       verdict.Action
	ExplicitDeny bool   // a deny rule, not the lack of an allow rule
	Auth         bool   // Deny only: a rule would allow, but demands an authentication that nobody gave
	ProxyPort    uint16 // Redirect only; 0: no proxy, and the datapath drops
	L7           uint32 // Redirect only: see Engine.L7
	Cookie       Cookie
}

// Row of a verdict table: the verdict for ports First..Last of Proto. Proto 0 means every protocol; AnyPort means
// that the port does not matter (and then First and Last are 0). For ICMP the port is the type. Rows of one table do
// not overlap except by generality: exact port before range before any port of the protocol before any protocol. A
// packet takes the verdict of the most specific row that matches it; so rows carry the final word, precedence
// already applied. No row: deny.
type Row struct {
	Proto       uint8
	AnyPort     bool
	First, Last uint16
	Verdict     PortVerdict
}

// Table is a flattened verdict table. Never modified once made; equal content has equal Key, so tables are shared.
type Table struct {
	Key  string // hash of Rows, stable across restarts
	Rows []Row  // sorted
}

// SubjectKey identifies the content of a subject's rules: two subjects with the same key decide alike for ever.
type SubjectKey string

// Subject is a set of rules resolved for one direction. A changed rule makes a new subject with a new key; an
// identity that appears or goes only adds or removes a row of Peers (see Patch).
type Subject struct {
	Key       SubjectKey
	Direction verdict.Direction
	Isolated  bool                   // some policy isolates: what no rule allows is denied
	Default   Cookie                 // names the policies that isolate; 0 when none does
	Peers     map[identity.ID]*Table // identities that the rules treat differently from Else
	Else      *Table                 // everyone without a row in Peers; never nil
}

// Patch is what changes of a subject in place when identities or their named ports appear or go.
type Patch struct {
	Subject SubjectKey
	Put     map[identity.ID]*Table
	Delete  []identity.ID
}
