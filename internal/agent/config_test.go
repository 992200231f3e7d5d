package agent

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func load(t *testing.T, file string, environ []string, args ...string) (Config, error) {
	t.Helper()
	args = append([]string{"--node-name=n1"}, args...)
	if file != "" {
		path := filepath.Join(t.TempDir(), "agent.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	return Load(args, environ, io.Discard)
}

func TestDefaults(t *testing.T) {
	c, err := load(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.RunDir != "/run/porin" || c.StateDir != "/var/lib/porin" || c.Enforcement != "default" || c.Endpoints != nil ||
		!c.IPv4Range.IsValid() || !c.IPv6Range.IsValid() || c.MonitorInterval != 5*time.Second || c.MetricsAddress != "127.0.0.1:9962" {
		t.Errorf("defaults: %+v", c)
	}
}

func TestPrecedence(t *testing.T) {
	file := "mtu: 1400\nlog-level: debug\npolicy-enforcement: always\n"
	env := []string{"PORIN_LOG_LEVEL=warn", "PORIN_POLICY_ENFORCEMENT=never", "PORIN_SOCKET=/x", "PATH=/bin"}
	c, err := load(t, file, env, "--policy-enforcement=default")
	if err != nil {
		t.Fatal(err)
	}
	if c.MTU != 1400 {
		t.Errorf("mtu %d: the file is before the default", c.MTU)
	}
	if c.LogLevel != slog.LevelWarn {
		t.Errorf("log-level %v: the environment is before the file", c.LogLevel)
	}
	if c.Enforcement != "default" {
		t.Errorf("policy-enforcement %s: the command line is before everything, also with the default's value", c.Enforcement)
	}
	if got := c.values["mtu"]; got != "1400" {
		t.Errorf("values: mtu is %q", got)
	}
}

func TestListsInFiles(t *testing.T) {
	for _, file := range []string{
		"devices: [eth0, eth1]\nmasquerade-exclude: [10.0.0.0/8, 'fd00::/8']\nkvstore: ['https://a:2379', 'https://b:2379']\nenable-ipv6: false\n",
		"devices: eth0,eth1\nmasquerade-exclude: 10.0.0.0/8,fd00::/8\nkvstore: https://a:2379,https://b:2379\nenable-ipv6: 'false'\n",
	} {
		c, err := load(t, file, nil)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if !slices.Equal(c.Devices, []string{"eth0", "eth1"}) || len(c.MasqueradeExclude) != 2 || len(c.Endpoints) != 2 || c.IPv6Range.IsValid() {
			t.Errorf("%s: %+v", file, c)
		}
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name, file string
		env, args  []string
		want       string
	}{
		{"unknown key", "policy-enforcment: always\n", nil, nil, "policy-enforcment: no such setting; did you mean policy-enforcement?"},
		{"unknown flag", "", nil, []string{"--policy-dri=/x"}, "did you mean --policy-dir?"},
		{"flag like no other", "", nil, []string{"--zzz"}, "--zzz; porin-agent --help lists them"},
		{"flag of another type", "", nil, []string{"--mtu=x"}, `--mtu: "x": a value of type int is wanted`},
		{"cluster name", "", nil, []string{"--cluster-name=A_b"}, "cluster-name: \"A_b\""},
		{"flag without value", "", nil, []string{"--mtu"}, "--help lists"},
		{"misspelt environment", "", []string{"PORIN_POLICY_ENFORCMENT=always"}, nil, "PORIN_POLICY_ENFORCMENT: policy-enforcment: no such setting"},
		{"argument", "", nil, []string{"start"}, `argument "start"`},
		{"a map", "mtu: {v4: 1500}\n", nil, nil, "mtu: a map"},
		{"a list for a value", "mtu: [1, 2]\n", nil, nil, "mtu: a list"},
		{"not a number", "mtu: big\n", nil, nil, `mtu: "big": a value of type int is wanted`},
		{"not a boolean", "enable-ipv4: maybe\n", nil, nil, `enable-ipv4: "maybe": a value of type bool is wanted`},
		{"file in file", "config: other.yaml\n", nil, nil, "cannot name another"},
		{"no yaml", "a: [\n", nil, nil, "read settings from"},
		{"twice", "mtu: 1400\nmtu: 1500\n", nil, nil, "read settings from"},
		{"mtu too small", "mtu: 1000\n", nil, nil, "1280 to 65535"},
		{"range of the other family", "ipv4-range: fd00::/64\n", nil, nil, "ipv4-range: fd00::/64 is of the other family"},
		{"mapped range", "ipv6-range: '::ffff:10.0.0.0/104'\n", nil, nil, "ipv6-range"},
		{"range with host bits", "ipv4-range: 10.1.0.5/24\n", nil, nil, "10.1.0.0/24 is meant?"},
		{"no range", "ipv4-range: ''\n", nil, nil, "is no CIDR"},
		{"no family", "enable-ipv4: false\nenable-ipv6: false\n", nil, nil, "one family at least"},
		{"enforcement", "policy-enforcement: sometimes\n", nil, nil, "sometimes"},
		{"localhost", "allow-localhost: perhaps\n", nil, nil, "perhaps"},
		{"exclude", "masquerade-exclude: 10.0.0.1\n", nil, nil, `masquerade-exclude: "10.0.0.1" is no CIDR`},
		{"device", "devices: [averyveryverylongname]\n", nil, nil, "is no device name"},
		{"label filter", "labels: '!['\n", nil, nil, "labels: "},
		{"store scheme", "kvstore: ftp://x\n", nil, nil, "kvstore: "},
		{"store empty", "kvstore: ''\n", nil, nil, "kvstore: "},
		{"relative folder", "state-dir: here\n", nil, nil, "state-dir: \"here\": an absolute path"},
		{"long folder", "run-dir: /" + strings.Repeat("x", 120) + "\n", nil, nil, "too long for the sockets"},
		{"relative policies", "policy-dir: here\n", nil, nil, "policy-dir"},
		{"metrics", "metrics-address: '9962'\n", nil, nil, "metrics-address"},
		{"level", "log-level: loud\n", nil, nil, "log-level: \"loud\""},
		{"ring", "events-bytes: 100000\n", nil, nil, "events-bytes: 100000: a power of two"},
		{"interval", "monitor-interval: -1s\n", nil, nil, "monitor-interval"},
		{"interval without unit", "monitor-interval: 5\n", nil, nil, `monitor-interval: "5": a value of type duration is wanted`},
		{"too many", "ct-max: 5000000000\n", nil, nil, "ct-max"},
		{"node name", "", nil, []string{"--node-name=a/b"}, "node-name: \"a/b\""},
	} {
		_, err := load(t, c.file, c.env, c.args...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in it", c.name, err, c.want)
		}
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	_, err := load(t, "mtu: 1\nlog-level: loud\nipv4-range: x\n", nil)
	for _, want := range []string{"mtu", "log-level", "ipv4-range"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: does not speak of %s", err, want)
		}
	}
}

// A password in a URL would be logged and shown; it is refused without being repeated.
func TestSecretsAreNotRepeated(t *testing.T) {
	const canary = "s3cr3t-canary"
	_, err := load(t, "kvstore: https://root:"+canary+"@a:2379\n", nil)
	if err == nil || strings.Contains(err.Error(), canary) {
		t.Errorf("got %v; want a refusal without the password", err)
	}
}

func TestHelp(t *testing.T) {
	var out strings.Builder
	if _, err := Load([]string{"--help"}, nil, &out); !errors.Is(err, ErrHelp) {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{"--policy-dir", "PORIN_<FLAG>", "needs root"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("help does not speak of %s", want)
		}
	}
}

func TestLiveSettings(t *testing.T) {
	c, err := load(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	l := newLive(c)
	for _, bad := range []struct{ key, value, want string }{
		{"mtu", "1500", "needs a restart"},
		{"log-levle", "debug", "did you mean log-level?"},
		{"log-level", "loud", "loud"},
		{"policy-audit-mode", "perhaps", "true or false"},
	} {
		err := l.check(map[string]string{bad.key: bad.value})
		if err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s=%s: %v, want %q in it", bad.key, bad.value, err, bad.want)
		}
	}
	if err := l.check(map[string]string{"log-level": "debug", "policy-audit-mode": "1"}); err != nil {
		t.Fatal(err)
	}
	l.set("log-level", "debug")
	l.set("policy-audit-mode", "1")
	if all := l.all(); l.level.Level() != slog.LevelDebug || all["log-level"] != "debug" || all["policy-audit-mode"] != "true" {
		t.Errorf("level %v, values %v", l.level.Level(), all)
	}
}
