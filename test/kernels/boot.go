package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"porin/test/kernels/guest/steps"
)

const (
	qemu = "qemu-system-x86_64"
	// bootTime is how long a guest may live; a good one switches itself off.
	bootTime = 12 * time.Minute
)

// report is what a guest said.
type report struct {
	release  string
	verified []string // lines about the verifier's work
	passed   []string
	failed   []string
	ended    bool
	took     time.Duration
	console  string // the file
}

// boot runs a guest to its end and reads its console.
func boot(ctx context.Context, img image, initrd string, verbose bool) (r report, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	r.console = filepath.Join(filepath.Dir(initrd), "console-"+img.release+".log")
	log, err := os.Create(r.console)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	fmt.Printf("boot linux %s (emulated), console in %s\n", img.release, r.console)
	cmd := exec.CommandContext(ctx, qemu, "-accel", "tcg", "-cpu", "max", "-m", "1024", "-nic", "none", "-nographic", "-no-reboot",
		"-kernel", img.vmlinuz, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 mitigations=off quiet")
	cmd.Stderr = log
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return r, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return r, fmt.Errorf("%s: %w", qemu, err)
	}
	sc := bufio.NewScanner(io.TeeReader(pipe, log))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := strings.TrimRight(sc.Text(), "\r")
		r.read(line)
		if verbose {
			fmt.Printf("%s | %s\n", img.name, line)
		}
	}
	_, _ = io.Copy(log, pipe) // a line too long for the scanner
	err = errors.Join(sc.Err(), cmd.Wait())
	r.took = time.Since(start)
	if ctx.Err() != nil {
		return r, fmt.Errorf("linux %s: the guest was not done after %s: %w", img.release, r.took.Round(time.Second), ctx.Err())
	}
	if err != nil {
		return r, fmt.Errorf("linux %s: %s: %w", img.release, qemu, err)
	}
	return r, nil
}

func (r *report) read(line string) {
	if v, ok := strings.CutPrefix(line, steps.Boot+" "); ok {
		r.release = v
	} else if v, ok := strings.CutPrefix(line, steps.Pass+" "); ok {
		r.passed = append(r.passed, v)
	} else if v, ok := strings.CutPrefix(line, steps.Fail+" "); ok {
		r.failed = append(r.failed, v)
	} else if line == steps.Done {
		r.ended = true
	} else if strings.Contains(line, "instructions verified") {
		_, text, _ := strings.Cut(line, ".go:")
		_, text, _ = strings.Cut(text, ": ")
		r.verified = append(r.verified, text)
	}
}

// print shows what became of every step, and returns an error unless all of them passed.
func (r *report) print(img image) error {
	fmt.Printf("\nlinux %s, %s\n", img.release, r.took.Round(time.Second))
	bad := 0
	for _, s := range todo {
		at := slices.IndexFunc(r.failed, func(f string) bool { return strings.HasPrefix(f, s.Name+":") })
		switch {
		case at >= 0:
			fmt.Println("  FAIL", r.failed[at])
			bad++
		case slices.Contains(r.passed, s.Name):
			fmt.Println("  PASS", s.Name)
		default:
			fmt.Println("  FAIL", s.Name+": the guest said nothing about it")
			bad++
		}
	}
	for _, f := range r.failed {
		if !slices.ContainsFunc(todo, func(s steps.Step) bool { return strings.HasPrefix(f, s.Name+":") }) {
			fmt.Println("  FAIL", f)
			bad++
		}
	}
	for _, v := range r.verified {
		fmt.Println("      ", v)
	}
	switch {
	case bad > 0 || !r.ended:
		return fmt.Errorf("linux %s: %d of %d steps failed; see %s", img.release, bad, len(todo), r.console)
	case r.release != img.release:
		return fmt.Errorf("linux %s: the guest ran %q", img.release, r.release)
	}
	return nil
}
