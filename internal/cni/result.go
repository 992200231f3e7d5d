package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// result is the response in CNI's words, in the configuration's version of them. The configuration's DNS settings are
// passed on. Written by hand: to look at types costs more than to write.
func (r Response) result(c *Config) ([]byte, error) {
	if r.Workload.Name == "" || len(r.IPs) == 0 {
		return nil, errors.New("it has no interface or no address")
	}
	b := text(make([]byte, 0, 1024))
	b = b.name(`{"cniVersion":`, c.CNIVersion)
	b = append(b, `,"interfaces":[`...)
	for i, dev := range []Interface{r.Host, r.Workload} {
		if i > 0 {
			b = append(b, ',')
		}
		b = b.name(`{"name":`, dev.Name)
		if dev.MAC != "" {
			b = b.name(`,"mac":`, dev.MAC)
		}
		if dev.MTU != 0 && c.CNIVersion >= "1.0.0" {
			b = strconv.AppendInt(append(b, `,"mtu":`...), int64(dev.MTU), 10)
		}
		if dev.Sandbox != "" {
			b = b.name(`,"sandbox":`, dev.Sandbox)
		}
		b = append(b, '}')
	}
	b = append(b, `],"ips":[`...)
	for i, ip := range r.IPs {
		if !ip.Address.IsValid() {
			return nil, fmt.Errorf("address %s", ip.Address)
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"interface":1`...)
		if c.CNIVersion < "1.0.0" {
			family := "6"
			if ip.Address.Addr().Is4() {
				family = "4"
			}
			b = b.name(`,"version":`, family)
		}
		b = b.name(`,"address":`, ip.Address.String())
		if ip.Gateway.IsValid() {
			b = b.name(`,"gateway":`, ip.Gateway.String())
		}
		b = append(b, '}')
	}
	b = append(b, ']')
	for i, route := range r.Routes {
		if !route.Dst.IsValid() {
			return nil, fmt.Errorf("route to %s", route.Dst)
		}
		if i == 0 {
			b = append(b, `,"routes":[`...)
		} else {
			b = append(b, ',')
		}
		b = b.name(`{"dst":`, route.Dst.String())
		if route.Gateway.IsValid() {
			b = b.name(`,"gw":`, route.Gateway.String())
		}
		b = append(b, '}')
		if i == len(r.Routes)-1 {
			b = append(b, ']')
		}
	}
	if !c.DNS.empty() {
		d, err := json.Marshal(c.DNS)
		if err != nil {
			return nil, fmt.Errorf("pass the DNS settings on: %w", err)
		}
		b = append(append(b, `,"dns":`...), d...)
	}
	return append(b, "}\n"...), nil
}

// text is JSON as it grows.
type text []byte

// name appends before and value as a JSON string.
func (b text) name(before, value string) text {
	b = append(append(b, before...), '"')
	for _, r := range value {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ':
			b = append(b, '\\', 'u', '0', '0', "0123456789abcdef"[r>>4], "0123456789abcdef"[r&15])
		default: // bytes that are no UTF-8 come as U+FFFD
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}
