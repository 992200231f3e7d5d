package operator

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"porin/internal/ipam"
	"porin/internal/kvstore"
)

// Config of an operator, checked.
type Config struct {
	Name           string // of this candidate
	Cluster        string
	Store          kvstore.Config
	Pools          []ipam.ClusterPool
	Settle         time.Duration // a new or wiped store gives nothing new for so long
	Grace          time.Duration // a node may be gone for so long before its ranges are taken back
	LeaderTTL      time.Duration
	MetricsAddress string
	LogLevel       slog.Level

	clock func() time.Time // nil: the machine's
}

func (c Config) now() time.Time {
	if c.clock != nil {
		return c.clock()
	}
	return time.Now()
}

// ErrHelp is returned by Load when the user asked for help, which has been printed.
var ErrHelp = pflag.ErrHelp

const envPrefix = "PORIN_OPERATOR_"

func flags() *pflag.FlagSet {
	host, _ := os.Hostname() // empty is refused below
	f := pflag.NewFlagSet("porin-operator", pflag.ContinueOnError)
	f.SortFlags = false
	f.String("config", "", "YAML file with the settings below as keys, without the dashes")
	f.String("name", strings.ToLower(host), "name of this operator among several")
	f.String("cluster-name", "default", "name of the cluster")
	f.StringSlice("kvstore", nil, "endpoints of the cluster's etcd (http, https or unix URLs, comma separated)")
	f.String("kvstore-cert", "", "client certificate for the store (PEM)")
	f.String("kvstore-key", "", "its key (PEM)")
	f.String("kvstore-ca", "", "certificates of the store's authority (PEM; default: the system's)")
	f.StringSlice("cluster-pool-ipv4-cidr", []string{"10.0.0.0/8"}, "networks out of which nodes get their IPv4 ranges ('' for none)")
	f.Int("cluster-pool-ipv4-mask-size", 24, "size of a node's IPv4 range")
	f.StringSlice("cluster-pool-ipv6-cidr", []string{"fd00::/104"}, "networks out of which nodes get their IPv6 ranges ('' for none)")
	f.Int("cluster-pool-ipv6-mask-size", 120, "size of a node's IPv6 range")
	f.Duration("settle", 10*time.Second, "how long nodes may take to say what they have before a new or wiped store gives new ranges")
	f.Duration("node-grace", time.Hour, "how long a node may be gone before its ranges are taken back (its lease of 15 min comes before)")
	f.Duration("leader-ttl", 15*time.Second, "how long a leader may be silent before another one takes over")
	f.Duration("identity-gc-interval", 5*time.Minute, "time between two passes of the collector of identities")
	f.String("metrics-address", "127.0.0.1:9963", "listener for Prometheus and /healthz ('' for none)")
	f.String("log-level", "info", "debug, info, warn, or error")
	return f
}

// Load reads the settings: command line before environment (PORIN_OPERATOR_<SETTING>) before file before default. All
// faults are reported at once.
func Load(args, environ []string, out io.Writer) (Config, error) {
	f := flags()
	f.Usage = func() {
		fmt.Fprintf(out, "porin-operator gives the nodes of a cluster their ranges of addresses and collects unused identities.\n\nUsage:\n  porin-operator [flags]\n\nFlags (also %s<FLAG> in the environment, or keys of the --config file):\n%s", envPrefix, f.FlagUsages())
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return Config{}, ErrHelp
		}
		return Config{}, fmt.Errorf("%w; porin-operator --help lists the flags", err)
	}
	if f.NArg() > 0 {
		return Config{}, fmt.Errorf("argument %q: porin-operator takes flags only", f.Arg(0))
	}
	if err := layers(f, environ); err != nil {
		return Config{}, err
	}
	return build(f)
}

// layers sets the flags that the command line does not, from the environment and from the file.
func layers(f *pflag.FlagSet, environ []string) error {
	given := map[string]bool{}
	f.Visit(func(x *pflag.Flag) { given[x.Name] = true })
	var errs []error
	set := func(source, key, value string) {
		if f.Lookup(key) == nil {
			errs = append(errs, fmt.Errorf("%s: %s: no such setting; porin-operator --help lists them", source, key))
		} else if !given[key] {
			if err := f.Set(key, value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", source, err))
			}
		}
	}
	var fromEnv []string
	for _, e := range environ {
		key, value, _ := strings.Cut(e, "=")
		if rest, ok := strings.CutPrefix(key, envPrefix); ok {
			name := strings.ReplaceAll(strings.ToLower(rest), "_", "-")
			set(key, name, value)
			fromEnv = append(fromEnv, name)
		}
	}
	for _, name := range fromEnv {
		given[name] = true
	}
	path, _ := f.GetString("config")
	if path == "" {
		return errors.Join(errs...)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("read settings: %w", err))...)
	}
	var values map[string]any
	if err := yaml.Unmarshal(b, &values); err != nil {
		return errors.Join(append(errs, fmt.Errorf("read settings from %s: %w", path, err))...)
	}
	for key, v := range values {
		text := fmt.Sprint(v)
		if list, ok := v.([]any); ok {
			var words []string
			for _, x := range list {
				words = append(words, fmt.Sprint(x))
			}
			text = strings.Join(words, ",")
		}
		set(path, key, text)
	}
	return errors.Join(errs...)
}

var namePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

// build checks the values and turns them into a Config.
func build(f *pflag.FlagSet) (Config, error) {
	var errs []error
	fail := func(key, why string) { errs = append(errs, fmt.Errorf("%s: %s", key, why)) }
	text := func(key string) string { s, _ := f.GetString(key); return s }
	list := func(key string) []string { s, _ := f.GetStringSlice(key); return s }
	positive := func(key string) time.Duration {
		d, _ := f.GetDuration(key)
		if d < time.Second {
			fail(key, fmt.Sprintf("%s: a second or more is wanted", d))
		}
		return d
	}
	c := Config{Name: text("name"), Cluster: text("cluster-name"), MetricsAddress: text("metrics-address")}
	for key, v := range map[string]string{"name": c.Name, "cluster-name": c.Cluster} {
		if !namePattern.MatchString(v) {
			fail(key, fmt.Sprintf("%q: only lower-case letters, digits, '-' and '.'", v))
		}
	}
	c.Store = kvstore.Config{
		Endpoints: list("kvstore"), Cert: text("kvstore-cert"), Key: text("kvstore-key"), CA: text("kvstore-ca"),
		Node: "operator." + c.Name, Collect: positive("identity-gc-interval"),
	}
	if len(c.Store.Endpoints) == 0 {
		fail("kvstore", "endpoints of the cluster's etcd are wanted, such as https://10.0.0.1:2379")
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		bits, _ := f.GetInt("cluster-pool-" + family + "-mask-size")
		for _, s := range list("cluster-pool-" + family + "-cidr") {
			p, err := netip.ParsePrefix(s)
			if err != nil || p.Addr().Is4() != (family == "ipv4") {
				fail("cluster-pool-"+family+"-cidr", fmt.Sprintf("%q is no %s network", s, family))
				continue
			}
			c.Pools = append(c.Pools, ipam.ClusterPool{Prefix: p, NodeBits: bits})
		}
	}
	if _, err := ipam.NewRanges(c.Pools); err != nil {
		errs = append(errs, err)
	}
	c.Settle, c.Grace, c.LeaderTTL = positive("settle"), positive("node-grace"), positive("leader-ttl")
	if c.MetricsAddress != "" {
		if _, port, err := net.SplitHostPort(c.MetricsAddress); err != nil || port == "" {
			fail("metrics-address", fmt.Sprintf("%q: HOST:PORT is wanted, or '' for none", c.MetricsAddress))
		}
	}
	level := text("log-level")
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, level) || c.LogLevel.UnmarshalText([]byte(level)) != nil {
		fail("log-level", fmt.Sprintf("%q: debug, info, warn or error is wanted", level))
	}
	return c, errors.Join(errs...)
}
