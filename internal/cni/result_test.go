package cni

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
)

// TestResultIsTheLibrarys: what the plugin writes by hand reads as what the specification's own library would write, in
// every version.
func TestResultIsTheLibrarys(t *testing.T) {
	resp := Response{
		Host:     Interface{Name: "pn0123456789", MTU: 1400},
		Workload: Interface{Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1400, Sandbox: "/run/netns/a\"b\\c"},
	}
	lib := &types100.Result{
		CNIVersion: "1.1.0",
		Interfaces: []*types100.Interface{
			{Name: resp.Host.Name, Mtu: 1400}, {Name: "eth0", Mac: resp.Workload.MAC, Mtu: 1400, Sandbox: resp.Workload.Sandbox},
		},
		DNS: types.DNS{Nameservers: []string{"10.0.0.10"}, Search: []string{"a.b"}},
	}
	for _, a := range [][3]string{{"10.1.0.2/32", "169.254.1.1", "0.0.0.0/0"}, {"fd00::2/128", "fe80::1", "::/0"}} {
		gw, dst := netip.MustParseAddr(a[1]), netip.MustParsePrefix(a[2])
		resp.IPs = append(resp.IPs, IP{netip.MustParsePrefix(a[0]), gw})
		resp.Routes = append(resp.Routes, Route{dst, gw})
		ip, own, _ := net.ParseCIDR(a[0])
		own.IP = ip
		_, to, _ := net.ParseCIDR(a[2])
		lib.IPs = append(lib.IPs, &types100.IPConfig{Interface: new(1), Address: *own, Gateway: net.ParseIP(a[1])})
		lib.Routes = append(lib.Routes, &types.Route{Dst: *to, GW: net.ParseIP(a[1])})
	}
	c := &Config{DNS: dns{Nameservers: lib.DNS.Nameservers, Search: lib.DNS.Search}}
	for _, v := range versions() {
		c.CNIVersion = v
		got, err := resp.result(c)
		if err != nil {
			t.Fatal(err)
		}
		as, err := lib.GetAsVersion(v)
		if err != nil {
			t.Fatal(err)
		}
		var want bytes.Buffer
		if err := as.PrintTo(&want); err != nil {
			t.Fatal(err)
		}
		var a, b any
		if err := json.Unmarshal(got, &a); err != nil {
			t.Fatalf("%s: %v: %s", v, err, got)
		}
		if err := json.Unmarshal(want.Bytes(), &b); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%s: got\n%s\nwant\n%s", v, got, want.Bytes())
		}
	}
}

// TestNamesAreTheLibrarys: the names that the plugin takes are those that the specification's own library takes.
func TestNamesAreTheLibrarys(t *testing.T) {
	names := []string{"", ".", "..", "a", "A9", "_a", "-", "a_b.c-d", "a b", "a/b", "a:b", "ä", "\xff", "a\n", "a\tb", "0", strings.Repeat("x", 15), strings.Repeat("x", 16)}
	for b := range 256 {
		names = append(names, string(rune(b)), "a"+string(rune(b)), "a"+string([]byte{byte(b)}))
	}
	for _, n := range names {
		if got, want := identifier(n), utils.ValidateContainerID(n) == nil; got != want {
			t.Errorf("container %q: taken %v, want %v", n, got, want)
		}
		if got, want := identifier(n), utils.ValidateNetworkName(n) == nil; got != want {
			t.Errorf("network %q: taken %v, want %v", n, got, want)
		}
		if got, want := deviceName(n), utils.ValidateInterfaceName(n) == nil; got && !want {
			t.Errorf("device %q: taken, and the library does not", n)
		}
	}
}

// TestCallIsRead: what is missing, unknown or of the wrong version is refused with the specification's code.
func TestCallIsRead(t *testing.T) {
	good := map[string]string{
		"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/x", "CNI_PATH": "/opt/cni/bin", "CNI_ARGS": "A=b",
	}
	read := func(change map[string]string) (callArgs, error) {
		return readCall(func(name string) string {
			if v, ok := change[name]; ok {
				return v
			}
			return good[name]
		}, strings.NewReader("{}"))
	}
	a, err := read(nil)
	if err != nil || a.Command != Add || a.ContainerID != "c1" || a.IfName != "eth0" || a.Netns != "/run/netns/x" || a.Args != "A=b" || string(a.Stdin) != "{}" {
		t.Errorf("%+v, %v", a, err)
	}
	for _, tc := range []struct {
		change map[string]string
		name   string // in the error; "" for none
	}{
		{map[string]string{"CNI_CONTAINERID": ""}, "CNI_CONTAINERID"},
		{map[string]string{"CNI_IFNAME": ""}, "CNI_IFNAME"},
		{map[string]string{"CNI_NETNS": ""}, "CNI_NETNS"},
		{map[string]string{"CNI_PATH": ""}, "CNI_PATH"},
		{map[string]string{"CNI_COMMAND": "CHECK", "CNI_NETNS": ""}, "CNI_NETNS"},
		{map[string]string{"CNI_COMMAND": "DEL", "CNI_NETNS": ""}, ""},
		{map[string]string{"CNI_COMMAND": "GC", "CNI_CONTAINERID": "", "CNI_IFNAME": "", "CNI_NETNS": ""}, ""},
		{map[string]string{"CNI_COMMAND": "STATUS", "CNI_PATH": ""}, "CNI_PATH"},
		{map[string]string{"CNI_COMMAND": "FORMAT"}, "FORMAT"},
	} {
		_, err := read(tc.change)
		if tc.name == "" {
			if err != nil {
				t.Errorf("%v: %v", tc.change, err)
			}
			continue
		}
		e, ok := err.(*Error)
		if !ok || e.Code != CodeInvalidEnvironment || !strings.Contains(e.Details, tc.name) {
			t.Errorf("%v: %v, want code 4 and %s named", tc.change, err, tc.name)
		}
	}
	for version, commands := range map[string][]Command{
		"": nil, "0.1.0": nil, "0.2.0": nil, "9.9.9": nil,
		"0.3.0": {Add, Del}, "0.3.1": {Add, Del}, "0.4.0": {Add, Del, Check}, "1.0.0": {Add, Del, Check}, "1.1.0": {Add, Del, Check, Status, GC},
	} {
		for _, cmd := range []Command{Add, Del, Check, Status, GC} {
			err := (&Config{CNIVersion: version}).speaks(cmd)
			want := false
			for _, c := range commands {
				want = want || c == cmd
			}
			e, _ := err.(*Error)
			if want != (err == nil) || err != nil && e.Code != CodeIncompatibleVersion {
				t.Errorf("%s of a configuration of %q: %v", cmd, version, err)
			}
		}
	}
}
