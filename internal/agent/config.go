package agent

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"porin/internal/labels"
	"porin/internal/policy"
)

// Config of an agent, checked. Never changed after Load; what may change at run time is in type live.
type Config struct {
	NodeName               string
	ClusterName            string
	RunDir                 string // sockets and locks; empty after a boot
	StateDir               string // endpoints, policies, the embedded store
	BPFRoot                string
	IPv4, IPv6             bool         // families that pods have
	ClusterPool            bool         // porin-operator gives the node its ranges
	IPv4Range, IPv6Range   netip.Prefix // zero when the family is off, or before the operator gave one
	Devices                []string
	MTU                    int
	Masquerade             bool
	MasqueradeExclude      []netip.Prefix
	Enforcement            string
	AllowLocalhost         string
	Audit                  bool
	TraceAll               bool
	PolicyDir              string
	Labels                 *labels.Filter
	Endpoints              []string // of the store; nil: the embedded one
	Cluster                ClusterConfig
	StoreCert              string
	StoreKey               string
	StoreCA                string
	MetricsAddress         string
	LogLevel               slog.Level
	CTMax, NATMax          uint32
	PolicyMax, EventsBytes uint32
	MonitorInterval        time.Duration
	HealthInterval         time.Duration // 0: no questions, no health endpoint

	values map[string]string // every setting as text, for the API
}

// ErrHelp is returned by Load when the user asked for help, which has been printed.
var ErrHelp = pflag.ErrHelp

// embedded is the value of --kvstore that means the agent's own store.
const embedded = "embedded"

// maxSocketPath is how long a unix socket's path may be; the longest name in the run folder is etcd.sock.
const maxSocketPath = 107

var (
	nodePattern    = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
	clusterPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)
	devicePattern  = regexp.MustCompile(`^[^/\s:]{1,15}$`)
)

func flags() *pflag.FlagSet {
	host, _ := os.Hostname() // empty is refused below, with the flag's name
	f := pflag.NewFlagSet("porin-agent", pflag.ContinueOnError)
	f.SortFlags = false
	f.String("config", "", "YAML file with the settings below as keys, without the dashes")
	f.String("node-name", strings.ToLower(host), "name of this node in the cluster")
	f.String("cluster-name", "default", "name of the cluster that this node is of")
	f.String("run-dir", "/run/porin", "folder of the sockets")
	f.String("state-dir", "/var/lib/porin", "folder of what must survive a reboot")
	f.String("bpf-root", "/sys/fs/bpf", "where bpffs is, or is to be mounted")
	f.Bool("enable-ipv4", true, "give pods IPv4 addresses")
	f.Bool("enable-ipv6", true, "give pods IPv6 addresses")
	f.String("ipam", ipamStatic, "where the node's ranges are from: static (the settings below) or cluster-pool (porin-operator gives them)")
	f.String("ipv4-range", "10.217.0.0/24", "IPv4 addresses of this node's pods")
	f.String("ipv6-range", "fd00:d9:0:0::/64", "IPv6 addresses of this node's pods")
	f.StringSlice("devices", nil, "uplinks (default: devices with a default route)")
	f.Int("mtu", 0, "of pods (0: the uplink's)")
	f.Bool("enable-masquerade", true, "pods leave the node with the node's address")
	f.StringSlice("masquerade-exclude", nil, "CIDRs that pods reach with their own address")
	f.String("policy-enforcement", policy.EnforceDefault, "default (pods that a policy selects), always, or never")
	f.Bool("policy-audit-mode", false, "report what policy would deny, and let it pass")
	f.String("allow-localhost", policy.LocalhostAuto, "whether the node may reach its pods: auto, always, or policy")
	f.String("policy-dir", "", "folder of policy files to keep in force")
	f.String("labels", "", "label filter: words [!][source:]pattern; which labels make an identity")
	f.String("kvstore", embedded, "embedded, or the endpoints of an etcd (http, https or unix URLs, comma separated)")
	f.String("kvstore-cert", "", "client certificate for the store (PEM)")
	f.String("kvstore-key", "", "its key (PEM)")
	f.String("kvstore-ca", "", "certificates of the store's authority (PEM; default: the system's)")
	clusterFlags(f)
	f.Duration("health-interval", 10*time.Second, "how often every other node, and the health endpoint behind it, is asked whether it answers (0: never, and no health endpoint)")
	f.String("metrics-address", "127.0.0.1:9962", "listener for Prometheus ('' for none)")
	f.String("log-level", "info", "debug, info, warn, or error")
	f.Uint32("ct-max", 0, "connections to track (0: the default of the maps)")
	f.Uint32("nat-max", 0, "translated connections (0: the default)")
	f.Uint32("policy-max", 0, "rows of policy (0: the default)")
	f.Uint32("events-bytes", 0, "size of the event ring, a power of two (0: the default)")
	f.Bool("monitor-trace-all", false, "an event for every packet, not only for the first of a connection")
	f.Duration("monitor-interval", 5*time.Second, "how often a live connection is reported (0: never)")
	return f
}

// Load reads the settings: command line before environment (PORIN_<SETTING>) before file before default. All faults
// are reported at once. Help and the list of faults speak of settings by the names of the flags.
func Load(args, environ []string, out io.Writer) (Config, error) {
	fs := flags()
	fs.Usage = func() {
		fmt.Fprintf(out, "porin-agent runs porin on this node; it needs root.\n\nUsage:\n  porin-agent [flags]\n\nFlags (also PORIN_<FLAG> in the environment, or keys of the --config file):\n%s", fs.FlagUsages())
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return Config{}, ErrHelp
		}
		var unknown *pflag.NotExistError
		if errors.As(err, &unknown) {
			return Config{}, fmt.Errorf("%w; %s", err, hint(fs, unknown.GetSpecifiedName(), "--"))
		}
		var value *pflag.InvalidValueError
		if errors.As(err, &value) {
			return Config{}, fmt.Errorf("--%s: %q: a value of type %s is wanted", value.GetFlag().Name, value.GetValue(), value.GetFlag().Value.Type())
		}
		return Config{}, fmt.Errorf("%w; porin-agent --help lists the flags", err)
	}
	if fs.NArg() > 0 {
		return Config{}, fmt.Errorf("argument %q: porin-agent takes flags only", fs.Arg(0))
	}
	if err := layers(fs, environ); err != nil {
		return Config{}, err
	}
	return build(fs)
}

// layers sets the flags that the command line does not, from the environment and from the file.
func layers(fs *pflag.FlagSet, environ []string) error {
	given := map[string]bool{}
	fs.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	var errs []error
	set := func(values map[string]any, source func(key string) string) {
		for _, key := range slices.Sorted(maps.Keys(values)) {
			if given[key] {
				continue
			}
			if err := assign(fs, key, values[key]); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", source(key), err))
			}
			given[key] = true
		}
	}

	e := koanf.New("\x00") // keys are flat; nothing may be split
	err := e.Load(env.Provider("\x00", env.Opt{
		Prefix:      envPrefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(k, v string) (string, any) {
			key := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(k, envPrefix)), "_", "-")
			if fs.Lookup(key) == nil && !misspelt(fs, key) {
				return "", nil // somebody else's: PORIN_SOCKET, for one, is the CLI's
			}
			return key, v
		},
	}), nil)
	if err != nil {
		return fmt.Errorf("read the environment: %w", err)
	}
	set(e.Raw(), envName)

	if path, _ := fs.GetString("config"); path != "" {
		k := koanf.New("\x00")
		if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
			return errors.Join(append(errs, fmt.Errorf("read settings from %s: %w", path, err))...)
		}
		values := k.Raw()
		if _, ok := values["config"]; ok {
			errs = append(errs, fmt.Errorf("%s: config: a file cannot name another one", path))
			delete(values, "config")
		}
		set(values, func(string) string { return path })
	}
	return errors.Join(errs...)
}

const envPrefix = "PORIN_"

func envName(key string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// assign gives one setting its value, whatever form the source has it in.
func assign(fs *pflag.FlagSet, key string, value any) error {
	f := fs.Lookup(key)
	if f == nil {
		return fmt.Errorf("%s: no such setting; %s", key, hint(fs, key, ""))
	}
	if list, ok := value.([]any); ok {
		words := make([]string, len(list))
		for i, v := range list {
			words[i] = fmt.Sprint(v)
		}
		if _, ok := f.Value.(pflag.SliceValue); !ok && key != "kvstore" {
			return fmt.Errorf("%s: a list, but one value is wanted", key)
		}
		value = strings.Join(words, ",")
	}
	switch value.(type) {
	case map[string]any:
		return fmt.Errorf("%s: a map, but a value is wanted", key)
	case nil:
		value = ""
	}
	if err := fs.Set(key, fmt.Sprint(value)); err != nil {
		return fmt.Errorf("%s: %q: a value of type %s is wanted", key, fmt.Sprint(value), f.Value.Type())
	}
	return nil
}

// nearest returns the setting whose name differs least from key, and by how many letters.
func nearest(fs *pflag.FlagSet, key string) (name string, letters int) {
	letters = 1 << 30
	fs.VisitAll(func(f *pflag.Flag) {
		if d := distance(f.Name, key); d < letters {
			name, letters = f.Name, d
		}
	})
	return name, letters
}

// hint names the setting that key may have been meant for, or says where they are listed.
func hint(fs *pflag.FlagSet, key, dashes string) string {
	if near, d := nearest(fs, key); 2*d <= len(key) {
		return fmt.Sprintf("did you mean %s%s?", dashes, near)
	}
	return "porin-agent --help lists them"
}

// misspelt tells whether key looks like a setting written wrong rather than like something else.
func misspelt(fs *pflag.FlagSet, key string) bool {
	_, d := nearest(fs, key)
	return d <= 2 && len(key) > 4
}

// distance counts the letters to insert, remove or replace (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// build checks the values and turns them into a Config.
func build(fs *pflag.FlagSet) (Config, error) {
	c := Config{values: map[string]string{}}
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name == "config" {
			return
		}
		text := f.Value.String()
		if s, ok := f.Value.(pflag.SliceValue); ok {
			text = strings.Join(s.GetSlice(), ",")
		}
		c.values[f.Name] = text
	})
	b := builder{c.values, nil}
	c.NodeName = b.check("node-name", nodePattern.MatchString, "only lower-case letters, digits, '-' and '.', at most 253")
	c.ClusterName = b.check("cluster-name", clusterPattern.MatchString, "only lower-case letters, digits and '-', at most 32")
	c.RunDir = b.check("run-dir", filepath.IsAbs, "an absolute path is wanted")
	if n := len(filepath.Join(c.RunDir, storeSocket)); n > maxSocketPath {
		b.fail("run-dir", fmt.Sprintf("%d characters are too long for the sockets in it; at most %d", len(c.RunDir), maxSocketPath-len(storeSocket)-1))
	}
	c.StateDir = b.check("state-dir", filepath.IsAbs, "an absolute path is wanted")
	c.BPFRoot = b.check("bpf-root", filepath.IsAbs, "an absolute path is wanted")
	c.IPv4, c.IPv6 = b.bool("enable-ipv4"), b.bool("enable-ipv6")
	c.ClusterPool = b.check("ipam", func(s string) bool { return s == ipamStatic || s == ipamClusterPool }, "static or cluster-pool is wanted") == ipamClusterPool
	if c.IPv4 && !c.ClusterPool {
		c.IPv4Range = b.ranged("ipv4-range", true)
	}
	if c.IPv6 && !c.ClusterPool {
		c.IPv6Range = b.ranged("ipv6-range", false)
	}
	if c.ClusterPool && c.values["kvstore"] == embedded {
		b.fail("ipam", "cluster-pool needs the cluster's store: set kvstore to its endpoints, the same that porin-operator has")
	}
	if !b.bool("enable-ipv4") && !b.bool("enable-ipv6") {
		b.fail("enable-ipv6", "one family at least must be on: set enable-ipv4 or enable-ipv6 to true")
	}
	for _, d := range b.list("devices") {
		if !devicePattern.MatchString(d) {
			b.fail("devices", fmt.Sprintf("%q is no device name", d))
		}
		c.Devices = append(c.Devices, d)
	}
	c.MTU, _ = strconv.Atoi(c.values["mtu"])
	if least := map[bool]int{true: 1280, false: 576}[c.IPv6]; c.MTU != 0 && (c.MTU < least || c.MTU > 65535) {
		b.fail("mtu", fmt.Sprintf("%d: 0 or %d to 65535 is wanted", c.MTU, least))
	}
	c.Masquerade = b.bool("enable-masquerade")
	for _, s := range b.list("masquerade-exclude") {
		p, err := netip.ParsePrefix(s)
		if err != nil || p != p.Masked() {
			b.fail("masquerade-exclude", fmt.Sprintf("%q is no CIDR (or has bits behind its prefix length)", s))
		}
		c.MasqueradeExclude = append(c.MasqueradeExclude, p)
	}
	c.Enforcement, c.AllowLocalhost = c.values["policy-enforcement"], c.values["allow-localhost"]
	if err := (policy.Config{Enforcement: c.Enforcement, AllowLocalhost: c.AllowLocalhost}).Check(); err != nil {
		b.errs = append(b.errs, err)
	}
	c.Audit, c.TraceAll = b.bool("policy-audit-mode"), b.bool("monitor-trace-all")
	if c.PolicyDir = c.values["policy-dir"]; c.PolicyDir != "" && !filepath.IsAbs(c.PolicyDir) {
		b.fail("policy-dir", fmt.Sprintf("%q: an absolute path is wanted", c.PolicyDir))
	}
	filter, err := labels.ParseFilter(c.values["labels"])
	if err != nil {
		b.fail("labels", err.Error())
	}
	c.Labels = filter
	c.Endpoints = b.store("kvstore")
	c.StoreCert, c.StoreKey, c.StoreCA = c.values["kvstore-cert"], c.values["kvstore-key"], c.values["kvstore-ca"]
	b.cluster(&c, fs)
	if c.MetricsAddress = c.values["metrics-address"]; c.MetricsAddress != "" {
		if _, port, err := net.SplitHostPort(c.MetricsAddress); err != nil || port == "" {
			b.fail("metrics-address", fmt.Sprintf("%q: HOST:PORT is wanted, or '' for none", c.MetricsAddress))
		}
	}
	if c.LogLevel, err = parseLevel(c.values["log-level"]); err != nil {
		b.fail("log-level", err.Error())
	}
	c.CTMax, c.NATMax = b.size("ct-max"), b.size("nat-max")
	c.PolicyMax, c.EventsBytes = b.size("policy-max"), b.size("events-bytes")
	if n := c.EventsBytes; n != 0 && (n&(n-1) != 0 || n < 1<<16) {
		b.fail("events-bytes", fmt.Sprintf("%d: a power of two from 65536 on is wanted", n))
	}
	if c.HealthInterval, _ = fs.GetDuration("health-interval"); c.HealthInterval != 0 && c.HealthInterval < time.Second {
		b.fail("health-interval", fmt.Sprintf("%s: 0 or a second or more is wanted", c.HealthInterval))
	}
	c.MonitorInterval, _ = fs.GetDuration("monitor-interval")
	if c.MonitorInterval < 0 {
		b.fail("monitor-interval", "a time in the past")
	}
	return c, errors.Join(b.errs...)
}

// builder collects the faults of settings.
type builder struct {
	values map[string]string
	errs   []error
}

func (b *builder) fail(key, why string) { b.errs = append(b.errs, fmt.Errorf("%s: %s", key, why)) }

func (b *builder) check(key string, good func(string) bool, want string) string {
	v := b.values[key]
	if !good(v) {
		b.fail(key, fmt.Sprintf("%q: %s", v, want))
	}
	return v
}

func (b *builder) bool(key string) bool { return b.values[key] == "true" }

func (b *builder) list(key string) []string {
	if b.values[key] == "" {
		return nil
	}
	return strings.Split(b.values[key], ",")
}

func (b *builder) size(key string) uint32 {
	n, _ := strconv.ParseUint(b.values[key], 10, 32) // the flag's type has seen to it
	return uint32(n)
}

func (b *builder) ranged(key string, v4 bool) netip.Prefix {
	p, err := netip.ParsePrefix(b.values[key])
	switch {
	case err != nil:
		b.fail(key, fmt.Sprintf("%q is no CIDR", b.values[key]))
	case p.Addr().Is4() != v4 || p.Addr().Is4In6():
		b.fail(key, fmt.Sprintf("%s is of the other family", p))
	case p != p.Masked():
		b.fail(key, fmt.Sprintf("%s has bits behind its prefix length; %s is meant?", p, p.Masked()))
	}
	return p
}

func (b *builder) store(key string) []string {
	if b.values[key] == embedded {
		return nil
	}
	var out []string
	for _, s := range b.list(key) {
		u, err := url.Parse(strings.TrimSpace(s))
		switch {
		case err != nil || !slices.Contains([]string{"http", "https", "unix"}, u.Scheme), u.Scheme == "unix" && u.Path == "", u.Scheme != "unix" && u.Host == "":
			b.fail(key, fmt.Sprintf("%q: %s, or URLs such as https://10.0.0.1:2379", s, embedded))
			continue
		case u.User != nil:
			b.fail(key, "a password does not belong into a URL, which is logged; use client certificates")
			continue
		}
		out = append(out, u.String())
	}
	if len(out) == 0 {
		b.fail(key, "neither embedded nor any endpoint")
	}
	return out
}

func parseLevel(s string) (slog.Level, error) {
	var l slog.Level
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, s) {
		return l, fmt.Errorf("%q: debug, info, warn or error is wanted", s)
	}
	err := l.UnmarshalText([]byte(s))
	return l, err
}
