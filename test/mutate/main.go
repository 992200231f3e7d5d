// Command mutate breaks guards of porin one at a time, in a copy of the tree, and tells which test notices each. A guard
// that can go without a test noticing is a mistake of the tests: the command fails. It never changes the tree itself.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var only, goTool string
	flag.StringVar(&only, "only", "", "regular expression of the guards to break (default: all)")
	flag.StringVar(&goTool, "go", "go", "the go command")
	flag.Parse()
	if err := run(ctx, goTool, only); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, goTool, only string) (err error) {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	dir, err := os.MkdirTemp("", "porin-mutate-")
	if err != nil {
		return fmt.Errorf("make a folder for the copy: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := copyTree(ctx, dir); err != nil {
		return err
	}
	var todo []mutation
	var moved []error
	for _, m := range mutations() {
		if wanted.MatchString(m.guard) {
			todo, moved = append(todo, m), append(moved, m.check(dir))
		}
	}
	if err := errors.Join(moved...); err != nil {
		return err
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "GUARD\tNOTICED BY\tTOOK")
	survived, witnesses, start := 0, map[string]bool{}, time.Now()
	for i, m := range todo {
		fmt.Fprintf(os.Stderr, "%d of %d: %s\n", i+1, len(todo), m.guard)
		began := time.Now()
		test, err := m.try(ctx, dir, goTool)
		if err != nil {
			return errors.Join(err, out.Flush())
		}
		if test == "" {
			survived++
			test = "NOBODY"
		} else {
			witnesses[test] = true
		}
		fmt.Fprintf(os.Stderr, "\tnoticed by %s\n", test)
		fmt.Fprintf(out, "%s\t%s\t%s\n", m.guard, test, time.Since(began).Round(100*time.Millisecond))
	}
	if err := out.Flush(); err != nil {
		return err
	}
	fmt.Printf("%d guards broken, %d noticed, by %d tests first; %d not; took %s\n",
		len(todo), len(todo)-survived, len(witnesses), survived, time.Since(start).Round(time.Second))
	if survived > 0 {
		return fmt.Errorf("%d guards can go without a test noticing", survived)
	}
	return nil
}

// copyTree copies what git knows of, as it is now, changes included.
func copyTree(ctx context.Context, dir string) error {
	list, err := exec.CommandContext(ctx, "git", "-c", "safe.directory=*", "ls-files", "-z").Output()
	if err != nil {
		return fmt.Errorf("list the files of the tree (run this in its root): %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		data, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, not committed
		}
		if err != nil {
			return fmt.Errorf("copy the tree: %w", err)
		}
		to := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, data, 0o644)); err != nil {
			return fmt.Errorf("copy the tree: %w", err)
		}
	}
	return nil
}

// mutation replaces a guard by something that does not guard.
type mutation struct {
	guard    string // what it is for
	file     string
	old, new string
}

// check refuses a mutation whose guard is not there, or not just once: it has moved, and the list is to be brought up.
func (m mutation) check(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, m.file))
	if err != nil {
		return fmt.Errorf("%s: %w", m.guard, err)
	}
	if n := bytes.Count(data, []byte(m.old)); n != 1 {
		return fmt.Errorf("%s: %q is in %s %d times, not once: bring test/mutate/list.go up to date", m.guard, m.old, m.file, n)
	}
	return nil
}

// try breaks the guard, runs the tests of its package without root, and puts it back. It returns the first test that
// failed; none if all passed.
func (m mutation) try(ctx context.Context, dir, goTool string) (test string, err error) {
	path := filepath.Join(dir, m.file)
	before, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.WriteFile(path, before, 0o644)) }()
	if err := os.WriteFile(path, bytes.Replace(before, []byte(m.old), []byte(m.new), 1), 0o644); err != nil {
		return "", err
	}
	// Without the folder's name in what is built, the compiler's cache knows the packages that are not broken.
	room, binary := filepath.Dir(m.file), filepath.Join(dir, "broken.test")
	build := exec.CommandContext(ctx, goTool, "test", "-c", "-vet=off", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", binary, "./"+room)
	build.Dir = dir
	if said, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(ctx.Err(), fmt.Errorf("%s: the broken tree does not build: %w:\n%s", m.guard, err, said))
	}
	first, rest := []string{}, []string(nil)
	if slow := slowTests()[room]; slow != "" { // most guards are noticed before their turn
		first, rest = []string{"-test.skip=" + slow}, []string{"-test.run=" + slow}
	}
	if test, err = m.run(ctx, dir, binary, first); test == "" && err == nil && rest != nil {
		test, err = m.run(ctx, dir, binary, rest)
	}
	return test, err
}

// run returns the first test that fails; none if all pass.
func (m mutation) run(ctx context.Context, dir, binary string, choice []string) (test string, err error) {
	cmd := exec.CommandContext(ctx, binary, append(choice, "-test.failfast", "-test.timeout=2m")...)
	cmd.Dir, cmd.Env = filepath.Join(dir, filepath.Dir(m.file)), append(os.Environ(), "PORIN_UNIT=1")
	said, err := cmd.CombinedOutput()
	if err == nil {
		return "", nil
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if failed := regexp.MustCompile(`(?m)^--- FAIL: (\S+)`).FindSubmatch(said); failed != nil {
		return string(failed[1]), nil
	}
	if stuck := regexp.MustCompile(`running tests:\s+(\S+)`).FindSubmatch(said); stuck != nil { // it waited for what never came
		return string(stuck[1]) + " (timeout)", nil
	}
	for line := range strings.Lines(string(said)) {
		if strings.HasPrefix(line, "panic: ") {
			return strings.TrimSpace(line), nil
		}
	}
	return "", fmt.Errorf("%s: the tests ended in a way that names no test:\n%s", m.guard, said)
}
