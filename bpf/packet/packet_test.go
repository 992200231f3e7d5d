package packet

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

func link() Link {
	return Link{Src: MAC{2, 0, 0, 0, 0, 1}, Dst: MAC{2, 0, 0, 0, 0, 2}}
}

// Known bytes, made by hand from the RFCs, so that encoder and printer cannot agree on a mistake.
func TestParse(t *testing.T) {
	const eth = "020000000002" + "020000000001"
	for _, c := range []struct{ text, want string }{
		{"ip 10.0.0.1 > 10.0.0.2 udp 1 > 2", eth + "0800" + "4500001c00000000401166cf0a0000010a000002" + "000100020008ebd8"},
		{"ip 10.0.0.1 > 10.0.0.2 icmp echo id 7 seq 1", eth + "0800" + "4500001c00000000400166df0a0000010a000002" + "0800f7f700070001"},
		{
			"ip fd00::1 > fd00::2 udp 1 > 2 hex ff",
			eth + "86dd" + "6000000000091140fd000000000000000000000000000001fd000000000000000000000000000002" + "000100020009" + "06d4" + "ff",
		},
		{
			"arp request 02:00:00:00:00:01 10.0.0.1 > 00:00:00:00:00:00 169.254.1.1",
			eth + "0806" + "0001080006040001" + "0200000000010a000001" + "000000000000a9fe0101",
		},
		{"vlan 5 ip 10.0.0.1 > 10.0.0.2 proto 47", eth + "8100" + "00050800" + "450000140000000040" + "2f66b90a0000010a000002"},
		{"eth 02:00:00:00:00:03 > 02:00:00:00:00:04 type 0x88cc hex 01 pad 2", "020000000004" + "020000000003" + "88cc" + "010000"},
		{"raw 0102", "0102"},
	} {
		want, err := hex.DecodeString(strings.ReplaceAll(c.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(c.text, link())
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("Parse(%q)\n got %x\nwant %x", c.text, got, want)
		}
	}
}

func TestPrint(t *testing.T) {
	for _, text := range texts() {
		b, err := Parse(text, link())
		if err != nil {
			t.Error(err)
			continue
		}
		again := Print(b)
		back, err := Parse(again, Link{})
		if err != nil || !bytes.Equal(b, back) {
			t.Errorf("%q\nprinted as %q\n%v\n got %x\nwant %x", text, again, err, back, b)
		}
		if strings.Contains(again, "raw ") && !strings.HasPrefix(text, "raw") {
			t.Errorf("%q printed as bytes: %q", text, again)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"ip 10.0.0.1 > fd00::1":                   "different families",
		"ip 10.0.0.1 10.0.0.2 > ttl 1":            "want SRC > DST",
		"ip 10.0.0.1 > 10.0.0.2 tcp 1 > 2 X":      "no flag",
		"ip 10.0.0.1 > 10.0.0.2 udp 1 > 70000":    "no number of 16 bits",
		"ip 10.0.0.1 > 10.0.0.2 frag 3":           "multiple of 8",
		"ip 10.0.0.1 > 10.0.0.2 ttl":              "needs a value",
		"ip 10.0.0.1 > 10.0.0.2 ttl 1 ttl 2":      "twice",
		"ip 10.0.0.1 > 10.0.0.2 icmp 3/1 [ ip":    "needs 3 words",
		"ip 10.0.0.1 > 10.0.0.2 [ ip 1 > 2 ]":     "follows icmp only",
		"ip fd00::1 > fd00::2 df":                 "IPv4's",
		"bogus":                                   "no layer",
		"arp ask a b > c d":                       "neither request nor reply",
		"ip 10.0.0.1 > 10.0.0.2 udp 1 > 2 ip a b": "needs 3 words",
		"ip 10.0.0.1 > 10.0.0.2 cut 90":           "34 bytes only",
	} {
		if _, err := Parse(text, link()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): got error %v, want one with %q", text, err, want)
		}
	}
}

func texts() []string {
	return []string{
		"ip 10.0.1.5 > 10.96.0.10 tcp 40000 > 80 S",
		"ip 10.0.1.5 > 10.96.0.10 ttl 1 df id 7 tos 16 tcp 40000 > 80 SA seq 1 ack 2 win 3 opt 02040564 data 10",
		"ip 10.0.1.5 > 10.96.0.10 opt 01010101 udp 1 > 2 csum 0 data 3",
		"ip 10.0.1.5 > 10.96.0.10 frag 1480 id 9 proto 17 data 20",
		"ip 10.0.1.5 > 10.96.0.10 more id 9 udp 1 > 2 len 1000 data 16",
		"ip 10.0.1.5 > 10.96.0.10 sctp 1 > 2 tag 7 data 4",
		"ip 10.0.1.5 > 10.96.0.10 csum 1 len 40 udp 1 > 2",
		"ip fd00::1 > fd00::2 hbh dstopts route 0 1 fragment 0 more id 7 ah tcp 1 > 2 S",
		"ip fd00::1 > fd00::2 proto 6 fragment 8 id 7 data 12",
		"ip fd00::1 > fd00::2 ttl 255 class 3 label 9 ns fe80::1 mac 02:00:00:00:00:01",
		"ip fd00::1 > fd00::2 ttl 255 na fe80::1 mac 02:00:00:00:00:01 flags 0xe0000000",
		"ip fd00::1 > fd00::2 icmp 2/0 rest 1280 [ ip fd00::2 > fd00::3 tcp 1 > 2 A ]",
		"ip 10.0.0.1 > 10.0.0.2 icmp 3/4 rest 1400 [ ip 10.0.0.2 > 10.0.0.3 len 1500 udp 1 > 2 len 1480 csum 7 ]",
		"ip 10.0.0.1 > 10.0.0.2 icmp 13/0 hex 01020304",
		"ip 10.0.0.1 > 10.0.0.2 udp 1 > 2 pad 18",
		"arp reply 02:00:00:00:00:01 10.0.0.1 > 02:00:00:00:00:02 10.0.0.2 pad 18",
		"vlan 5 vlan 6 ip 10.0.0.1 > 10.0.0.2 tcp 1 > 2 -",
		"eth 02:00:00:00:00:03 > ff:ff:ff:ff:ff:ff type 0x88cc hex 0102",
		"eth 02:00:00:00:00:03 > 01:80:c2:00:00:00 type 38 hex 424203",
		"raw 00",
	}
}

// Text that parses prints as text that parses to the same bytes; and any bytes print as text that gives them back.
func FuzzPacketText(f *testing.F) {
	for _, text := range texts() {
		f.Add(text)
	}
	f.Add("ip ::ffff:1.2.3.4 > ::1 tcp 1 > 2 FSRPAUEC") // an IPv4 address in IPv6 clothes stays IPv6
	f.Add("ip 10.0.0.1 > 10.0.0.2 icmp 3/3 [ ip 10.0.0.1 > 10.0.0.2 icmp echo ]")
	f.Add("ip fd00::1 > fd00::2 fragment 65528 more id 1 dstopts")
	f.Fuzz(func(t *testing.T, text string) {
		if again := Print([]byte(text)); true {
			if b, err := Parse(again, Link{}); err != nil || string(b) != text {
				t.Fatalf("bytes %x printed as %q, which gives %x, %v", text, again, b, err)
			}
		}
		b, err := Parse(text, link())
		if err != nil {
			return
		}
		again := Print(b)
		back, err := Parse(again, Link{})
		if err != nil || !bytes.Equal(b, back) {
			t.Fatalf("%q printed as %q: %v\n got %x\nwant %x", text, again, err, back, b)
		}
	})
}
