package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"porin/internal/lab/space"
)

// Lab is a lab that is being built or runs.
type Lab struct {
	spec  *Spec
	tell  *teller
	mu    sync.Mutex // protects state.Places while parts are built at the same time
	state state
}

// teller prints progress: what was done and how long it took.
type teller struct {
	mu  sync.Mutex
	out io.Writer
}

func (t *teller) done(t0 time.Time, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, "%-60s %s\n", fmt.Sprintf(format, args...), time.Since(t0).Round(time.Millisecond))
}

// Options of a lab that do not belong into its file.
type Options struct {
	BinDir string    // where porin-agent and porin-cni are; default: beside this program
	Stderr io.Writer // progress
}

// Up builds the lab of spec. On error everything that was built is taken down again, unless keep is set.
func Up(ctx context.Context, spec *Spec, opt Options, keep bool) (*Lab, error) {
	if err := space.RequireRoot("a lab"); err != nil {
		return nil, err
	}
	binDir, err := findBinaries(opt.BinDir)
	if err != nil {
		return nil, err
	}
	root, err := space.CgroupRoot()
	if err != nil {
		return nil, err
	}
	file, err := filepath.Abs(spec.file)
	if err != nil {
		return nil, fmt.Errorf("find the lab file: %w", err)
	}
	l := &Lab{spec: spec, tell: &teller{out: opt.Stderr}, state: state{
		Version: stateVersion, Name: spec.Name, File: file, Created: time.Now().Truncate(time.Second), BinDir: binDir,
		Cgroup: filepath.Join(root, "porin-lab-"+spec.Name),
	}}
	if err := locked(l.claim); err != nil {
		return nil, err
	}
	if err := l.build(ctx); err != nil {
		l.printLogs(opt.Stderr)
		if keep {
			return nil, fmt.Errorf("%w (kept as it is: 'porin lab down %s' removes it)", err, spec.Name)
		}
		return nil, errors.Join(err, Down(context.WithoutCancel(ctx), spec.Name))
	}
	return l, nil
}

// Open returns a running lab. A lab that was only half built, or whose nodes have ended, is refused.
func Open(name string, opt Options) (*Lab, error) {
	if err := space.RequireRoot("a lab"); err != nil {
		return nil, err
	}
	name, err := pick(name)
	if err != nil {
		return nil, err
	}
	st, err := readState(name)
	if err != nil {
		return nil, err
	}
	l := &Lab{tell: &teller{out: opt.Stderr}, state: st}
	for _, n := range st.Places {
		if n.Kind == kindNode && !n.Pause.Alive() {
			return nil, fmt.Errorf("lab %s: the process that holds %s has ended: take the lab down with 'porin lab down %s'", name, n.Name, name)
		}
	}
	if !st.Up {
		return nil, fmt.Errorf("lab %s is still being built, or its building was cut short: 'porin lab down %s' removes it", name, name)
	}
	l.spec, err = Parse(st.File, mustRead(l.path("lab.yaml")))
	if err != nil {
		return nil, fmt.Errorf("read the file that lab %s was made from: %w", name, err)
	}
	return l, nil
}

func mustRead(file string) []byte {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil // Parse then says that the file is empty
	}
	return b
}

func findBinaries(dir string) (string, error) {
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find porin-agent and porin-cni: %w", err)
		}
		dir = filepath.Dir(self)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find porin-agent and porin-cni: %w", err)
	}
	for _, b := range []string{"porin-agent", "porin-cni"} {
		if _, err := os.Stat(filepath.Join(dir, b)); err != nil {
			return "", fmt.Errorf("find %s: %w: build it with 'make build', or say where it is with --bin-dir", b, err)
		}
	}
	return dir, nil
}

// claim takes the lab's name: its directory is made by exactly one process.
func (l *Lab) claim() error {
	name := l.state.Name
	if _, err := os.Stat(labDir(name)); err == nil {
		return fmt.Errorf("lab %s is there already: use another name, or take it down with 'porin lab down %s'", name, name)
	}
	if err := makeMountPoints(); err != nil {
		return err
	}
	if err := space.MakeDir(labDir(name)); err != nil {
		return errors.Join(err, removeMountPoints())
	}
	return nil
}

func (l *Lab) build(ctx context.Context) error {
	t0 := time.Now()
	for _, d := range []string{"ns", "log"} {
		if err := os.Mkdir(l.path(d), 0o700); err != nil {
			return fmt.Errorf("make lab directory: %w", err)
		}
	}
	if err := l.keepFile(); err != nil {
		return err
	}
	if err := space.NewCgroup(l.state.Cgroup); err != nil {
		return err
	}
	if err := l.writeHosts(); err != nil {
		return err
	}
	if err := l.save(); err != nil {
		return err
	}
	if err := l.buildUnderlay(); err != nil {
		return err
	}
	l.tell.done(t0, "lab %s: underlay built", l.state.Name)
	if l.spec.ownStore() {
		if err := l.buildStore(ctx); err != nil {
			return err
		}
		if l.spec.operated() {
			if _, err := l.StartOperator(ctx, operatorName); err != nil {
				return err
			}
		}
	}
	for i := range l.spec.Nodes {
		if err := l.buildNode(ctx, i); err != nil {
			return err
		}
	}
	for i := range l.spec.Outside {
		if err := l.buildOutside(ctx, i); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, n := range l.spec.Nodes {
		g.Go(func() error { return l.startAgent(gctx, n.Name, true) })
	}
	pods := l.spec.pods()
	g.Go(func() error { // namespaces and servers while the agents start
		t0 := time.Now()
		for _, p := range pods {
			if err := l.buildWorkload(gctx, p); err != nil {
				return err
			}
		}
		l.tell.done(t0, "%d workloads: namespaces and servers ready", len(pods))
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if l.spec.operated() {
		if err := l.learnRanges(ctx); err != nil {
			return err
		}
	}
	if err := l.attachAll(ctx, pods); err != nil {
		return err
	}
	if err := l.acquainted(ctx); err != nil {
		return err
	}
	if err := l.writeHosts(); err != nil {
		return err
	}
	if err := l.startPrograms(ctx, pods); err != nil {
		return err
	}
	if len(l.spec.Objects) > 0 {
		t0 := time.Now()
		rev, err := l.apply(ctx, manifests(l.spec.Objects))
		if err != nil {
			return err
		}
		l.tell.done(t0, "objects applied and in force (revision %d)", rev)
	}
	l.state.Up = true
	if err := l.save(); err != nil {
		return err
	}
	l.tell.done(t0, "lab %s is up", l.state.Name)
	return nil
}

// keepFile copies the lab file, so that the running lab does not change when the file does.
func (l *Lab) keepFile() error {
	b, err := os.ReadFile(l.spec.file)
	if err != nil {
		return fmt.Errorf("read lab file: %w", err)
	}
	if err := os.WriteFile(l.path("lab.yaml"), b, 0o600); err != nil {
		return fmt.Errorf("keep the lab file: %w", err)
	}
	return nil
}

func (l *Lab) addPlace(p place) error {
	l.mu.Lock()
	l.state.Places = append(l.state.Places, p)
	l.mu.Unlock()
	return l.save()
}

// update changes the place called name and writes the state down.
func (l *Lab) update(name string, change func(*place)) error {
	l.mu.Lock()
	i := slices.IndexFunc(l.state.Places, func(p place) bool { return p.Name == name })
	change(&l.state.Places[i])
	l.mu.Unlock()
	return l.save()
}

// place returns the node, workload replica or outside host called name.
func (l *Lab) place(name string) (place, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for _, p := range l.state.Places {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return place{}, fmt.Errorf("nothing in lab %s is called %q%s", l.state.Name, name, suggest(name, names))
}

func (l *Lab) places(kind string) []place {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []place
	for _, p := range l.state.Places {
		if p.Kind == kind {
			out = append(out, p)
		}
	}
	return out
}

// Down removes everything of the lab called name, whoever made it and however far it got.
func Down(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	root, err := space.CgroupRoot()
	if err != nil {
		return err
	}
	// Processes first: they hold the namespaces. All of a lab are in its cgroup, whatever their pids are by now.
	if err := space.RemoveCgroup(ctx, filepath.Join(root, "porin-lab-"+name)); err != nil {
		return fmt.Errorf("take lab %s down: %w", name, err)
	}
	// Then the namespace files and the directory, and with the last reference devices, pins and mounts.
	return locked(func() error {
		if err := space.RemoveDir(labDir(name)); err != nil {
			return fmt.Errorf("take lab %s down: %w", name, err)
		}
		return removeMountPoints()
	})
}

// printLogs shows the end of every agent's log, for a lab that could not be built.
func (l *Lab) printLogs(w io.Writer) {
	for _, n := range l.places(kindNode) {
		if tail := lastLines(l.path("log", n.Name+"-agent.log"), 20); tail != "" {
			fmt.Fprintf(w, "--- end of the log of %s's agent:\n%s", n.Name, tail)
		}
	}
}
