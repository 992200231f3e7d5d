package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// kernel is a Linux to boot: Debian's newest of a series.
type kernel struct{ name, meta string }

func (k kernel) String() string { return k.name }

var kernels = []kernel{
	{"6.1", "linux-image-cloud-amd64"},       // the oldest that is claimed: no TCX
	{"6.12", "linux-image-6.12-cloud-amd64"}, // the newest in Debian 12
}

// modules are what these kernels have as modules, in the order of loading: what a node needs, and a bridge, which a lab
// puts between its nodes.
var modules = []string{"veth", "sch_ingress", "cls_bpf", "llc", "stp", "bridge"}

// image is an unpacked kernel.
type image struct {
	kernel
	release string
	vmlinuz string
	modules []string
}

// fetch returns a kernel from the cache, and gets it into the cache first when apt knows a newer one or there is none. What
// was downloaded earlier will do where apt or the network is missing.
func fetch(ctx context.Context, cache string, k kernel) (image, error) {
	dir := filepath.Join(cache, k.name)
	old, have := cached(dir, k)
	pkg, err := newest(ctx, k.meta)
	if err == nil {
		if have && "linux-image-"+old.release == pkg {
			return old, nil
		}
		err = download(ctx, dir, pkg)
	}
	if err != nil {
		if have && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "linux %s: the one of an earlier download, because: %v\n", old.release, err)
			return old, nil
		}
		return image{}, err
	}
	img, ok := cached(dir, k)
	if !ok {
		return image{}, fmt.Errorf("%s lacks the kernel or one of the modules %v", pkg, modules)
	}
	return img, nil
}

// download makes dir hold the kernel and the modules of a package.
func download(ctx context.Context, dir, pkg string) error {
	fmt.Println("download", pkg)
	part := dir + ".part"
	if err := errors.Join(os.RemoveAll(part), os.MkdirAll(part, 0o755)); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "apt-get", "download", "-qq", pkg)
	cmd.Dir = part
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download %s: %w\n%sthis needs the network once, and 'apt-get update' before", pkg, err, out)
	}
	debs, err := filepath.Glob(filepath.Join(part, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download %s left %v", pkg, debs)
	}
	if err := unpack(ctx, debs[0], part, strings.TrimPrefix(pkg, "linux-image-")); err != nil {
		return fmt.Errorf("unpack %s: %w", pkg, err)
	}
	return errors.Join(os.Remove(debs[0]), os.RemoveAll(dir), os.Rename(part, dir))
}

// newest asks apt which image a meta package stands for.
func newest(ctx context.Context, meta string) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "show", "--no-all-versions", meta).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache show %s: %w; needs Debian 12 with its security suite, and 'apt-get update' before", meta, err)
	}
	for line := range strings.Lines(string(out)) {
		if dep, ok := strings.CutPrefix(line, "Depends: "); ok {
			pkg := strings.Fields(dep)[0]
			if strings.HasPrefix(pkg, "linux-image-") {
				return pkg, nil
			}
		}
	}
	return "", fmt.Errorf("package %s names no linux-image-...: %s", meta, out)
}

// cached returns the kernel in dir if all of it is there.
func cached(dir string, k kernel) (image, bool) {
	found, _ := filepath.Glob(filepath.Join(dir, "vmlinuz-*"))
	if len(found) != 1 {
		return image{}, false
	}
	img := image{kernel: k, vmlinuz: found[0], release: strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-")}
	for _, m := range modules {
		found, _ := filepath.Glob(filepath.Join(dir, m+".ko*"))
		if len(found) != 1 {
			return image{}, false
		}
		img.modules = append(img.modules, found[0])
	}
	return img, true
}

// unpack takes the kernel and the modules out of a package.
func unpack(ctx context.Context, deb, dir, release string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = func() error {
		for t := tar.NewReader(pipe); ; {
			h, err := t.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			base := filepath.Base(h.Name)
			stem, _, _ := strings.Cut(base, ".ko")
			wanted := base == "vmlinuz-"+release
			for _, m := range modules {
				wanted = wanted || stem == m && stem != base
			}
			if !wanted || h.Typeflag != tar.TypeReg {
				continue
			}
			f, err := os.OpenFile(filepath.Join(dir, base), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			_, err = io.Copy(f, t)
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
		}
	}()
	_, _ = io.Copy(io.Discard, pipe) // what comes after the archive
	return errors.Join(err, cmd.Wait())
}
