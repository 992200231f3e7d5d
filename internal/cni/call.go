package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
)

// The plugin speaks CNI itself: the specification's own library reads the configuration five times over and compiles
// regular expressions before it asks anything. The tests hold it against that library.

// cmdVersion asks the plugin alone.
const cmdVersion Command = "VERSION"

// versions of the specification that the plugin speaks, oldest first.
func versions() []string { return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// since is the version that brought a command; the others were always there.
func since(cmd Command) string {
	switch cmd {
	case Check:
		return "0.4.0"
	case Status, GC:
		return "1.1.0"
	}
	return versions()[0]
}

// callArgs is what a runtime says of one call.
type callArgs struct {
	Command     Command
	ContainerID string
	IfName      string
	Netns       string
	Args        string
	Path        string
	Stdin       []byte
}

// readCall takes the call from the environment. The configuration is read only when the rest is good.
func readCall(getenv func(string) string, stdin io.Reader) (a callArgs, err error) {
	refuse := func(format string, args ...any) error {
		return Errorf(CodeInvalidEnvironment, "read the environment", format, args...)
	}
	a = callArgs{
		Command: Command(getenv("CNI_COMMAND")), ContainerID: getenv("CNI_CONTAINERID"), IfName: getenv("CNI_IFNAME"),
		Netns: getenv("CNI_NETNS"), Args: getenv("CNI_ARGS"), Path: getenv("CNI_PATH"),
	}
	var must []string
	need := func(name, value string) {
		if value == "" {
			must = append(must, name)
		}
	}
	switch a.Command {
	case cmdVersion:
		return a, nil
	case Add, Check, Del:
		need("CNI_CONTAINERID", a.ContainerID)
		need("CNI_IFNAME", a.IfName)
		if a.Command != Del {
			need("CNI_NETNS", a.Netns)
		}
		if a.ContainerID != "" && !identifier(a.ContainerID) {
			return a, refuse("CNI_CONTAINERID is %q; it begins with a letter or digit and has letters, digits, _ . - only", a.ContainerID)
		}
		if a.IfName != "" && !deviceName(a.IfName) {
			return a, refuse("CNI_IFNAME is %q; it must be the name of a device: 1 to 15 bytes without space, / and :", a.IfName)
		}
	case Status, GC:
	default:
		return a, refuse("unknown CNI_COMMAND %q", a.Command)
	}
	need("CNI_PATH", a.Path)
	if len(must) > 0 {
		return a, refuse("%s: not set", strings.Join(must, ", "))
	}
	if a.Stdin, err = io.ReadAll(io.LimitReader(stdin, maxConfig+1)); err != nil {
		return a, Errorf(CodeIO, "read the network configuration", "%v", err)
	}
	return a, nil
}

// identifier tells whether s may name a container or a network.
func identifier(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return s != ""
}

func deviceName(s string) bool {
	bad := func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) }
	return s != "" && len(s) < 16 && s != "." && s != ".." && printable(s) && !strings.ContainsFunc(s, bad)
}

// speaks refuses a configuration in a version that the plugin does not know, or that lacks the command.
func (c *Config) speaks(cmd Command) error {
	known := versions()
	at := slices.Index(known, c.CNIVersion)
	if at < 0 {
		return Errorf(CodeIncompatibleVersion, "incompatible CNI versions", "the configuration has cniVersion %q; this plugin speaks %s", c.CNIVersion, strings.Join(known, ", "))
	}
	if at < slices.Index(known, since(cmd)) {
		return Errorf(CodeIncompatibleVersion, "incompatible CNI versions", "the configuration has cniVersion %s; %s came with %s", c.CNIVersion, cmd, since(cmd))
	}
	return nil
}

// run answers one call and returns the exit code.
func (p plugin) run(getenv func(string) string, stdin io.Reader) int {
	if getenv("CNI_COMMAND") == "" { // somebody looks what this is
		fmt.Fprintf(os.Stderr, "CNI plugin porin-cni %s\nCNI protocol versions supported: %s\n", Version, strings.Join(versions(), ", "))
		return 0
	}
	err := p.call(getenv, stdin)
	if err == nil {
		return 0
	}
	var e *Error
	if !errors.As(err, &e) {
		e = Errorf(CodeIO, getenv("CNI_COMMAND"), "%v", err)
	}
	data, err := json.MarshalIndent(e, "", "    ")
	if err == nil {
		_, err = p.stdout.Write(data)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "porin-cni: write the error to standard output: %v; it was: %v\n", err, e)
	}
	return 1
}

func (p plugin) call(getenv func(string) string, stdin io.Reader) error {
	a, err := readCall(getenv, stdin)
	if err != nil {
		return err
	}
	if a.Command == cmdVersion {
		return p.version()
	}
	start := p.now()
	c, err := ParseConfig(a.Stdin)
	if err != nil {
		return err
	}
	if err := c.speaks(a.Command); err != nil {
		return err
	}
	do := map[Command]func(context.Context, *Config, *callArgs) error{Add: p.add, Del: p.del, Check: p.check, Status: p.status, GC: p.gc}[a.Command]
	err = do(deadline(start.Add(p.timeout)), c, &a)
	c.log(start, p.now().Sub(start), &a, err)
	return err
}

func (p plugin) version() error {
	known := versions()
	return json.NewEncoder(p.stdout).Encode(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{known[len(known)-1], known})
}
