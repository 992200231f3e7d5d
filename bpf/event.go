package bpf

import "unsafe"

// eventHead is the least that a record holds: everything before the packet's bytes.
const eventHead = int(unsafe.Offsetof(Event{}.Snap))

// Decode fills e with a record of the ring, which is struct event or only its beginning. It refuses one that is too short or
// too long, or that says to hold more of the packet than it does. Nothing is allocated.
func (e *Event) Decode(record []byte) bool {
	dst := unsafe.Slice((*byte)(unsafe.Pointer(e)), unsafe.Sizeof(*e))
	if len(record) < eventHead || len(record) > len(dst) {
		return false
	}
	n := copy(dst, record)
	clear(dst[n:])
	return int(e.SnapLen) <= min(n-eventHead, EventSnap)
}
