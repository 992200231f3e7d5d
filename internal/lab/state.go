package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"porin/internal/lab/serve"
	"porin/internal/lab/space"
)

// stateRoot holds one directory per running lab.
const stateRoot = "/run/porin-lab"

// What a place is.
const (
	kindNode     = "node"
	kindWorkload = "workload"
	kindOutside  = "outside"
	kindStore    = "store"
)

// place is somewhere a command can run: a node, a workload (one replica), an outside host, the store.
type place struct {
	Kind      string            `json:"kind"`
	Name      string            `json:"name"`
	Workload  string            `json:"workload,omitempty"`  // its name in the file, without the replica's number
	Namespace string            `json:"namespace,omitempty"` // workloads
	Node      string            `json:"node,omitempty"`      // workloads
	Labels    map[string]string `json:"labels,omitempty"`
	Netns     string            `json:"netns"` // file
	Cgroup    string            `json:"cgroup"`
	Pause     space.Process     `json:"pause,omitzero"`  // nodes: holds the mount and host name space
	Agent     space.Process     `json:"agent,omitzero"`  // nodes
	Server    space.Process     `json:"server,omitzero"` // built-in servers, or the program of run
	Addrs     []netip.Addr      `json:"addrs"`
	PodCIDRs  []netip.Prefix    `json:"pod-cidrs,omitempty"` // nodes
	Serves    []serve.Server    `json:"serves,omitempty"`
	Port      string            `json:"port,omitempty"`   // far end of its cable, in the underlay
	Gate      space.Process     `json:"gate,omitzero"`    // store: its door to the nodes; Server is the store itself
	Faults    []fault           `json:"faults,omitempty"` // of its cable
	Relay     space.Process     `json:"relay,omitzero"`   // while its cable is slow

	Operators map[string]space.Process `json:"operators,omitempty"` // store
}

func (p place) addr(family string) (netip.Addr, bool) {
	for _, a := range p.Addrs {
		if a.Is4() == (family == ipv4) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// state is what a lab writes down so that another process can use it or take it down.
type state struct {
	Version int       `json:"version"`
	Name    string    `json:"name"`
	File    string    `json:"file"` // absolute
	Created time.Time `json:"created"`
	BinDir  string    `json:"bin-dir"`
	Cgroup  string    `json:"cgroup"`
	Up      bool      `json:"up"` // everything was built
	Places  []place   `json:"places"`
}

const stateVersion = 1

func labDir(name string) string { return filepath.Join(stateRoot, name) }

func (l *Lab) path(elem ...string) string {
	return filepath.Join(append([]string{labDir(l.state.Name)}, elem...)...)
}

func (l *Lab) save() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, err := json.MarshalIndent(l.state, "", "  ")
	if err != nil {
		return fmt.Errorf("save lab state: %w", err)
	}
	tmp := l.path("state.json.tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("save lab state: %w", err)
	}
	if err := os.Rename(tmp, l.path("state.json")); err != nil {
		return fmt.Errorf("save lab state: %w", err)
	}
	return nil
}

func readState(name string) (state, error) {
	var st state
	b, err := os.ReadFile(filepath.Join(labDir(name), "state.json"))
	if err != nil {
		return st, fmt.Errorf("read the state of lab %s: %w", name, err)
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("read the state of lab %s: %w", name, err)
	}
	if st.Version != stateVersion {
		return st, fmt.Errorf("lab %s was made by another version of porin: take it down with 'porin lab down %s'", name, name)
	}
	return st, nil
}

// labNames lists the labs that have a directory, running or left behind by a crash.
func labNames() ([]string, error) {
	entries, err := os.ReadDir(stateRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && validName(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// pick returns the lab that the user means: by name, or the only one there is.
func pick(name string) (string, error) {
	all, err := labNames()
	if err != nil {
		return "", err
	}
	switch {
	case name != "" && slices.Contains(all, name):
		return name, nil
	case name != "":
		return "", fmt.Errorf("no lab is called %q%s", name, suggest(name, all))
	case len(all) == 0:
		return "", errors.New("no lab is running: start one with 'porin lab up FILE'")
	case len(all) > 1:
		return "", fmt.Errorf("several labs are running, choose one with --lab (down: by its name): %s", strings.Join(all, ", "))
	}
	return all[0], nil
}

// locked runs fn while no other process changes the set of labs.
func locked(fn func() error) error {
	if err := os.MkdirAll(stateRoot, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", stateRoot, err)
	}
	d, err := os.Open(stateRoot)
	if err != nil {
		return fmt.Errorf("lock %s: %w", stateRoot, err)
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", stateRoot, err)
	}
	return fn()
}

// Where a node's agent keeps its things: private file systems in every node, empty mount points on the machine.
func mountPoints() []string { return []string{"/run/porin", "/var/lib/porin"} }

// madeFile remembers which mount points did not exist before the first lab.
func madeFile() string { return filepath.Join(stateRoot, ".made") }

func makeMountPoints() error {
	for _, dir := range mountPoints() {
		err := os.Mkdir(dir, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
		f, err := os.OpenFile(madeFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("remember mount point %s: %w", dir, err)
		}
		_, err = fmt.Fprintln(f, dir)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("remember mount point %s: %w", dir, err)
		}
	}
	return nil
}

// removeMountPoints takes away what makeMountPoints made, once no lab is left: removing a directory detaches what
// other namespaces have mounted on it.
func removeMountPoints() error {
	all, err := labNames()
	if err != nil || len(all) > 0 {
		return err
	}
	b, err := os.ReadFile(madeFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove mount points: %w", err)
	}
	for dir := range strings.Lines(string(b)) {
		dir = strings.TrimSpace(dir)
		if !slices.Contains(mountPoints(), dir) {
			continue
		}
		// only if empty: an agent of the machine's own may have moved in
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove mount point %s: %w", dir, err)
		}
	}
	if err := os.Remove(madeFile()); err != nil {
		return fmt.Errorf("forget mount points: %w", err)
	}
	return nil
}
