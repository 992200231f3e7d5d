package bpf

import (
	"bytes"
	"encoding/binary"
	"testing"
	"unsafe"
)

func TestEventDecode(t *testing.T) {
	var ev Event
	full := make([]byte, unsafe.Sizeof(ev))
	for i := range full {
		full[i] = byte(i)
	}
	if ev.Decode(full[:eventHead-1]) || ev.Decode(append(full[:len(full):len(full)], 0)) || ev.Decode(full) {
		t.Error("a record of a wrong size, or that says more than it holds, was taken")
	}
	snap := func(n uint16) { binary.NativeEndian.PutUint16(full[unsafe.Offsetof(ev.SnapLen):], n) }
	snap(EventSnap)
	if !ev.Decode(full) || ev.SnapLen != EventSnap || !bytes.Equal(ev.Snap[:], full[eventHead:eventHead+EventSnap]) {
		t.Errorf("whole record: %+v", ev)
	}
	snap(EventSnapShort)
	short := full[:eventHead+EventSnapShort]
	if !ev.Decode(short) || ev.SnapLen != EventSnapShort || !bytes.Equal(ev.Snap[:EventSnapShort], short[eventHead:]) || ev.Snap[EventSnapShort] != 0 {
		t.Errorf("short record: %+v", ev)
	}
	if snap(EventSnapShort + 1); ev.Decode(short) {
		t.Error("a record that holds a byte less than it says was taken")
	}
	if n := testing.AllocsPerRun(100, func() { ev.Decode(full) }); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
}
