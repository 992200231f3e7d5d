// Command guest is the init of an emulated machine: it makes a node of a bare kernel, runs the steps that it finds in its
// image, says PASS or FAIL about each, and switches the machine off. It never runs anywhere but as process 1.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"porin/test/kernels/guest/steps"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: runs as the init of a virtual machine only: make test-kernels")
		os.Exit(1)
	}
	if os.Getenv("PORIN_GUEST") == "" {
		if err := switchRoot(); err != nil {
			fmt.Println(steps.Fail, "guest:", err)
			off()
		}
	}
	if err := run(); err != nil {
		fmt.Println(steps.Fail, "guest:", err)
	}
	fmt.Println(steps.Done)
	off()
}

func off() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// switchRoot moves everything from the initial file system, which is no mount like others, to a tmpfs, and starts again
// there.
func switchRoot() error {
	const root = "/root"
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("root", root, "tmpfs", 0, "mode=0755,size=80%"); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	err := filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == root, path == "/dev":
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(root+path, 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		if err := copyFile(root+path, path); err != nil {
			return err
		}
		return os.Remove(path)
	})
	if err != nil {
		return fmt.Errorf("move to the root: %w", err)
	}
	if err := errors.Join(os.Chdir(root), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/")); err != nil {
		return fmt.Errorf("switch the root: %w", err)
	}
	return unix.Exec("/init", []string{"/init"}, []string{"PORIN_GUEST=1", "PATH=/porin/bin", "HOME=/", "TMPDIR=/tmp"})
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func run() error {
	for _, m := range []struct{ kind, at string }{
		{"devtmpfs", "/dev"},
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"cgroup2", "/sys/fs/cgroup"},
		{"bpf", "/sys/fs/bpf"},
		{"tmpfs", "/run"},
		{"tmpfs", "/tmp"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.at, err)
		}
	}
	// what a lab expects of a machine
	if err := errors.Join(os.MkdirAll("/var/lib", 0o755), os.MkdirAll("/etc", 0o755), os.WriteFile("/etc/hosts", nil, 0o644)); err != nil {
		return err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	fmt.Printf("\n%s %s\n", steps.Boot, unix.ByteSliceToString(name.Release[:])) // the firmware ends its talk within a line
	modules, err := filepath.Glob("/modules/*")
	if err != nil {
		return err
	}
	for _, m := range modules { // their names sort in the order of loading
		if err := load(m); err != nil {
			return fmt.Errorf("load %s: %w", m, err)
		}
	}
	if err := loopback(); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	text, err := os.ReadFile(steps.File)
	if err != nil {
		return err
	}
	var todo []steps.Step
	if err := json.Unmarshal(text, &todo); err != nil {
		return fmt.Errorf("%s: %w", steps.File, err)
	}
	for _, s := range todo {
		start := time.Now()
		if err := do(s); err != nil {
			fmt.Printf("%s %s: %v\n", steps.Fail, s.Name, err)
			continue
		}
		fmt.Printf("porin-guest: %s took %.1f s\n", s.Name, time.Since(start).Seconds())
		fmt.Println(steps.Pass, s.Name)
	}
	return nil
}

// load loads a module, compressed or not.
func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if strings.HasSuffix(path, ".xz") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	return unix.FinitModule(int(f.Fd()), "", flags)
}

func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// do runs one step. Tests that were skipped, or that did not run at all, prove nothing.
func do(s steps.Step) error {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &up); err != nil {
		return err
	}
	time.Sleep(s.Uptime - time.Duration(up.Nano()))
	ctx, cancel := context.WithTimeout(context.Background(), s.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Args[0], s.Args[1:]...)
	cmd.Dir = s.Dir
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if err := cmd.Start(); err != nil {
		w.Close()
		return err
	}
	w.Close()
	hollow := make(chan string, 1)
	go func() {
		bad := ""
		for sc := bufio.NewScanner(r); sc.Scan(); {
			line := sc.Text()
			fmt.Println(" ", line)
			if t := strings.TrimSpace(line); strings.HasPrefix(t, "--- SKIP") || strings.Contains(t, "no tests to run") {
				bad = t
			}
		}
		hollow <- bad
	}()
	err = cmd.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("not done after %s", s.Timeout)
	}
	if err != nil {
		return err
	}
	select {
	case bad := <-hollow:
		if bad != "" {
			return errors.New(bad)
		}
	case <-ctx.Done():
		return errors.New("left processes behind that still hold its output")
	}
	return nil
}
