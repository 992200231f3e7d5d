package cni

import (
	"encoding/json"
	"net/netip"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"porin/internal/labels"
)

// Type is the plugin's name in network configurations.
const Type = "porin-cni"

// Defaults of the configuration, those of porin-agent.
const (
	DefaultRunDir   = "/run/porin"
	DefaultStateDir = "/var/lib/porin"
)

const (
	maxConfig = 4 << 20
	maxArgs   = 64 << 10
)

// Config is a network configuration of type porin-cni. Keys that are not porin's are left to the runtime.
type Config struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Type       string `json:"type"`
	IPAM       struct {
		Type string `json:"type"`
	} `json:"ipam"`
	DNS              dns             `json:"dns"`
	PrevResult       json.RawMessage `json:"prevResult"`
	ValidAttachments json.RawMessage `json:"cni.dev/valid-attachments"` // null: there are none

	MTU      int    `json:"mtu"`       // of the workload's interface; 0: the agent's
	RunDir   string `json:"run-dir"`   // porin-agent's --run-dir: the socket is in it
	StateDir string `json:"state-dir"` // porin-agent's --state-dir: deletions wait in it while the agent is away
	LogFile  string `json:"log-file"`  // one line per call; empty: none

	Args struct {
		CNI struct {
			Labels     []keyValue  `json:"labels"`
			NamedPorts []NamedPort `json:"namedPorts"`
		} `json:"cni"`
		Mesos struct {
			NetworkInfo struct {
				Labels struct {
					Labels []keyValue `json:"labels"`
				} `json:"labels"`
			} `json:"network_info"`
		} `json:"org.apache.mesos"`
	} `json:"args"`
}

// dns is passed on from the configuration to the result.
type dns struct {
	Nameservers []string `json:"nameservers,omitempty"`
	Domain      string   `json:"domain,omitempty"`
	Search      []string `json:"search,omitempty"`
	Options     []string `json:"options,omitempty"`
}

func (d *dns) empty() bool {
	return len(d.Nameservers) == 0 && d.Domain == "" && len(d.Search) == 0 && len(d.Options) == 0
}

type keyValue struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// ParseConfig reads and checks a network configuration.
func ParseConfig(data []byte) (*Config, error) {
	refuse := func(format string, args ...any) error {
		return Errorf(CodeInvalidConfig, "read the network configuration", format, args...)
	}
	if len(data) > maxConfig {
		return nil, refuse("%d bytes, at most %d", len(data), maxConfig)
	}
	c := &Config{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, Errorf(CodeDecoding, "read the network configuration", "%v", err)
	}
	switch {
	case !identifier(c.Name):
		return nil, refuse("name is %q; it begins with a letter or digit and has letters, digits, _ . - only", c.Name)
	case c.Type != Type:
		return nil, refuse("type is %q; this is %s", c.Type, Type)
	case c.IPAM.Type != "":
		return nil, refuse("ipam.type is %q; porin gives addresses itself: remove ipam", c.IPAM.Type)
	case c.MTU != 0 && (c.MTU < 576 || c.MTU > 65535):
		return nil, refuse("mtu is %d; write 576 (IPv6: 1280) to 65535, or leave it out for the agent's", c.MTU)
	}
	for _, p := range []struct {
		key, def string
		value    *string
	}{{"run-dir", DefaultRunDir, &c.RunDir}, {"state-dir", DefaultStateDir, &c.StateDir}, {"log-file", "", &c.LogFile}} {
		if *p.value == "" {
			*p.value = p.def
		}
		if *p.value != "" && !cleanPath(*p.value) {
			return nil, refuse("%s is %q; write an absolute path without . and ..", p.key, *p.value)
		}
	}
	return c, nil
}

func cleanPath(p string) bool {
	return len(p) < 4096 && filepath.IsAbs(p) && filepath.Clean(p) == p && printable(p)
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// Socket is the path of the agent's socket.
func (c *Config) Socket() string { return filepath.Join(c.RunDir, SocketName) }

// DeletionsDir is the folder in which deletions wait for the agent.
func DeletionsDir(stateDir string) string { return filepath.Join(stateDir, "cni", "deletions") }

// ParseArgs reads CNI_ARGS, K=V pairs with ';' between them. A key that comes twice is refused: two readers could
// believe different ones.
func ParseArgs(text string) (map[string]string, error) {
	refuse := func(format string, args ...any) error {
		return Errorf(CodeInvalidEnvironment, "read CNI_ARGS", format, args...)
	}
	if len(text) > maxArgs {
		return nil, refuse("%d bytes, at most %d", len(text), maxArgs)
	}
	if !printable(text) {
		return nil, refuse("control characters are not allowed")
	}
	out := map[string]string{}
	for pair := range strings.SplitSeq(text, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, refuse("%q is no KEY=VALUE", pair)
		}
		if _, twice := out[key]; twice {
			return nil, refuse("%s is there twice", key)
		}
		out[key] = value
	}
	return out, nil
}

// request turns what the runtime said into a message for the agent. What only the agent can judge is left to it: it
// checks everything again.
func (c *Config) request(cmd Command, a *callArgs) (Request, error) {
	req := Request{
		Version: WireVersion, Command: cmd, Network: c.Name, ContainerID: a.ContainerID, IfName: a.IfName, Netns: a.Netns, MTU: c.MTU,
	}
	args, err := ParseArgs(a.Args)
	if err != nil {
		return req, err
	}
	if len(args) > 0 {
		req.Args = args
	}
	req.Namespace, req.Pod, req.UID = args["K8S_POD_NAMESPACE"], args["K8S_POD_NAME"], args["K8S_POD_UID"]
	if req.Pod != "" && req.Namespace == "" {
		return req, Errorf(CodeInvalidEnvironment, "read CNI_ARGS", "K8S_POD_NAME is given without K8S_POD_NAMESPACE")
	}
	req.NamedPorts = c.Args.CNI.NamedPorts
	req.Labels, err = c.labels(req.Namespace != "")
	return req, err
}

// labels are those of args.cni.labels, of source k8s for a pod and cni otherwise, and those of Mesos, of source mesos.
func (c *Config) labels(pod bool) (labels.Labels, error) {
	source := labels.SourceCNI
	if pod {
		source = labels.SourceK8s
	}
	var out []labels.Label
	for _, from := range []struct {
		name, source string
		list         []keyValue
	}{
		{"args.cni.labels", source, c.Args.CNI.Labels},
		{"args.org.apache.mesos.network_info.labels", labels.SourceMesos, c.Args.Mesos.NetworkInfo.Labels.Labels},
	} {
		for _, kv := range from.list {
			l := labels.Label{Source: from.source, Key: kv.Key, Value: kv.Value}
			switch {
			case l.Key == "" || !printable(l.Key) || !printable(l.Value):
				return nil, Errorf(CodeInvalidConfig, "read "+from.name, "label %q: the key is empty, or there are control characters", l.String())
			case labels.IsTrusted(l.Key):
				return nil, Errorf(CodeRefused, "read "+from.name, "label %q: this key is given by porin alone, it says where a workload lives", l.String())
			}
			out = append(out, l)
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	return labels.New(out...), nil
}

// previous is what ADD had returned, as the runtime hands it to CHECK.
func (c *Config) previous(ifname string) (*Response, error) {
	refuse := func(format string, args ...any) error {
		return Errorf(CodeInvalidConfig, "read prevResult", format, args...)
	}
	if len(c.PrevResult) == 0 || string(c.PrevResult) == "null" {
		return nil, refuse("CHECK needs what ADD returned")
	}
	var prev struct { // of all versions
		Interfaces []*struct {
			Name    string `json:"name"`
			MAC     string `json:"mac"`
			MTU     int    `json:"mtu"`
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
		IPs []*struct {
			Interface *int   `json:"interface"`
			Address   string `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(c.PrevResult, &prev); err != nil {
		return nil, refuse("%v", err)
	}
	out := &Response{Version: WireVersion}
	found := -1
	for i, dev := range prev.Interfaces {
		if dev == nil {
			return nil, refuse("interface %d is null", i)
		}
		one := Interface{Name: dev.Name, MAC: dev.MAC, MTU: dev.MTU, Sandbox: dev.Sandbox}
		switch {
		case dev.Sandbox == "":
			out.Host = one
		case dev.Name == ifname:
			out.Workload, found = one, i
		}
	}
	if found < 0 {
		return nil, refuse("it has no interface %q with a sandbox", ifname)
	}
	for _, ip := range prev.IPs {
		if ip == nil || ip.Interface != nil && *ip.Interface != found {
			continue
		}
		p, err := netip.ParsePrefix(ip.Address)
		if err != nil {
			return nil, refuse("address %q", ip.Address)
		}
		out.IPs = append(out.IPs, IP{Address: p})
	}
	return out, nil
}
