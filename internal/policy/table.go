package policy

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"sort"

	"porin/internal/identity"
	"porin/internal/verdict"
)

// sum is a hash of content, long enough that no two contents ever share one.
type sum [18]byte

func hash(b []byte) (s sum) {
	h := sha256.Sum256(b)
	copy(s[:], h[:])
	return s
}

func (s sum) String() string { return base64.RawURLEncoding.EncodeToString(s[:]) }

// tables keeps every verdict table in use once.
type tables struct {
	bySum map[sum]*Table
	buf   []byte
	slab  []Table // new tables and their rows are cut from slabs
	rows  []Row
}

// intern returns the table with these rows, copying them if it is new.
func (t *tables) intern(rows []Row) *Table {
	b := t.buf[:0]
	for i := range rows {
		r := &rows[i]
		b = append(b, r.Proto, byte(b2i(r.AnyPort)), byte(r.First>>8), byte(r.First), byte(r.Last>>8), byte(r.Last),
			byte(r.Verdict.Action), byte(b2i(r.Verdict.ExplicitDeny)|b2i(r.Verdict.Auth)<<1), byte(r.Verdict.ProxyPort>>8), byte(r.Verdict.ProxyPort))
		b = binary.BigEndian.AppendUint32(b, r.Verdict.L7)
		b = binary.BigEndian.AppendUint32(b, uint32(r.Verdict.Cookie))
	}
	t.buf = b
	s := hash(b)
	if have, ok := t.bySum[s]; ok {
		return have
	}
	if len(t.slab) == cap(t.slab) {
		t.slab = make([]Table, 0, 64)
	}
	if cap(t.rows)-len(t.rows) < len(rows) {
		t.rows = make([]Row, 0, max(256, len(rows)))
	}
	from := len(t.rows)
	t.rows = append(t.rows, rows...)
	t.slab = append(t.slab, Table{Key: s.String(), Rows: t.rows[from:len(t.rows):len(t.rows)]})
	table := &t.slab[len(t.slab)-1]
	t.bySum[s] = table
	return table
}

// Lookup returns the verdict for a protocol and port, as the datapath finds it: exact port, range, protocol, any
// protocol. ok is false when no row matches: denied, and the subject's default cookie says by whom.
func (t *Table) Lookup(proto uint8, port uint16) (v PortVerdict, ok bool) {
	i := t.search(proto, 0, port)
	if i < len(t.Rows) {
		if r := &t.Rows[i]; r.Proto == proto && r.kind() == 0 && r.First == port {
			return r.Verdict, true
		}
	}
	// the last range that starts at port or before
	if i = t.search(proto, 1, port); i == len(t.Rows) || t.Rows[i].Proto != proto || t.Rows[i].kind() != 1 || t.Rows[i].First != port {
		i--
	}
	if i >= 0 {
		if r := &t.Rows[i]; r.Proto == proto && r.kind() == 1 && r.First <= port && port <= r.Last {
			return r.Verdict, true
		}
	}
	for _, p := range []uint8{proto, 0} {
		if i = t.search(p, 2, 0); i < len(t.Rows) && t.Rows[i].Proto == p && t.Rows[i].AnyPort {
			return t.Rows[i].Verdict, true
		}
	}
	return PortVerdict{}, false
}

// search returns the first row not before (proto, kind, first).
func (t *Table) search(proto uint8, kind int, first uint16) int {
	return sort.Search(len(t.Rows), func(i int) bool {
		r := &t.Rows[i]
		if r.Proto != proto {
			return r.Proto > proto
		}
		if k := r.kind(); k != kind {
			return k > kind
		}
		return r.First >= first
	})
}

// Lookup returns the verdict of s on traffic with a peer, the lack of a row already turned into a denial.
func (s *Subject) Lookup(peer identity.ID, proto uint8, port uint16) PortVerdict {
	t, ok := s.Peers[peer]
	if !ok {
		t = s.Else
	}
	if v, ok := t.Lookup(proto, port); ok {
		return v
	}
	return PortVerdict{Action: verdict.Deny, Cookie: s.Default}
}
