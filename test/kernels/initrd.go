package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"porin/test/kernels/guest/steps"
)

// payload builds what the guests run and returns it: files of this machine by their path in the guest.
func payload(ctx context.Context, cache string) (map[string]string, error) {
	files := map[string]string{}
	build := func(to string, args ...string) error {
		out := filepath.Join(cache, filepath.Base(to))
		files[to] = out
		cmd := exec.CommandContext(ctx, "go", slices.Concat(args[:len(args)-1], []string{"-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", out}, args[len(args)-1:])...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build %s: %w", args[len(args)-1], err)
		}
		return nil
	}
	if err := errors.Join(
		build("init", "build", "./test/kernels/guest"),
		build("porin/bpf/bpf.test", "test", "-c", "./bpf"),
		build("porin/internal/datapath/datapath.test", "test", "-c", "./internal/datapath"),
	); err != nil {
		return nil, err
	}
	for _, name := range []string{"porin", "porin-agent", "porin-cni"} {
		files["porin/bin/"+name] = "bin/" + name
		if _, err := os.Stat("bin/" + name); err != nil {
			return nil, fmt.Errorf("%w: run 'make build'", err)
		}
	}
	for _, dir := range []string{"bpf/testdata", "examples"} {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				files["porin/"+filepath.ToSlash(p)] = p
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

// writeInitrd writes the guest's first file system.
func writeInitrd(to string, img image, files map[string]string) (err error) {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := &cpio{w: bufio.NewWriterSize(f, 1<<20), dirs: map[string]bool{".": true}}
	all := map[string]string{}
	for i, m := range img.modules {
		all[fmt.Sprintf("modules/%02d-%s", i, filepath.Base(m))] = m
	}
	maps.Copy(all, files)
	// the console, for what init prints before it has mounted /dev
	w.entry("dev", 0o040755, 0, 0, nil)
	w.dirs["dev"] = true
	w.entry("dev/console", 0o020600, 5, 1, nil)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		text, err := os.ReadFile(all[name])
		if err != nil {
			return err
		}
		w.file(name, text)
	}
	text, err := json.Marshal(todo)
	if err != nil {
		return err
	}
	w.file(strings.TrimPrefix(steps.File, "/"), text)
	w.entry("TRAILER!!!", 0, 0, 0, nil)
	if w.err == nil {
		w.err = w.w.Flush()
	}
	if w.err != nil {
		return fmt.Errorf("write %s: %w", to, w.err)
	}
	return nil
}

// cpio writes the archive format that the kernel unpacks: "newc", see the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst.
type cpio struct {
	w    *bufio.Writer
	at   int
	n    int
	dirs map[string]bool
	err  error
}

func (c *cpio) file(name string, text []byte) {
	c.folder(path.Dir(name))
	c.entry(name, 0o100755, 0, 0, text)
}

func (c *cpio) folder(name string) {
	if c.dirs[name] {
		return
	}
	c.folder(path.Dir(name))
	c.dirs[name] = true
	c.entry(name, 0o040755, 0, 0, nil)
}

func (c *cpio) entry(name string, mode, major, minor int, text []byte) {
	c.n++
	// ino mode uid gid nlink mtime size, device of the file, device that it is, length of the name, checksum
	c.put(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.n, mode, 0, 0, 1, 0, len(text), 0, 0, major, minor, len(name)+1, 0, name))
	c.put(text)
}

// put writes b and fills up to the next multiple of four.
func (c *cpio) put(b []byte) {
	if c.err != nil {
		return
	}
	if _, c.err = c.w.Write(b); c.err != nil {
		return
	}
	c.at += len(b)
	pad := -c.at & 3
	c.at += pad
	_, c.err = io.WriteString(c.w, "\x00\x00\x00"[:pad])
}
