package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"porin/test/kernels/guest/steps"
)

// todo is what every guest runs. Limits are twice the longest that was seen, emulated on a machine that was busy with
// other things.
var todo = []steps.Step{
	{
		Name: "verifier", Dir: "/porin/bpf", Timeout: 2 * time.Minute,
		Args: []string{"./bpf.test", "-test.v", "-test.run=^TestRootLoadAll$"},
	},
	{
		Name: "live traffic", Dir: "/porin/internal/datapath", Timeout: 4 * time.Minute,
		Args: []string{"./datapath.test", "-test.v", "-test.run=^TestRootLive(Traffic|Policy)$"},
	},
	{Name: "example icmp", Dir: "/porin", Timeout: 4 * time.Minute, Args: []string{"bin/porin", "lab", "run", "examples/icmp/lab.yaml"}},
	{Name: "example host-access", Dir: "/porin", Timeout: 4 * time.Minute, Args: []string{"bin/porin", "lab", "run", "examples/host-access/lab.yaml"}},
	{
		// Stories let time pass by making rows older, and no row can be older than the machine.
		Name: "packet stories", Dir: "/porin/bpf", Timeout: 4 * time.Minute, Uptime: 65 * time.Second,
		Args: []string{"./bpf.test", "-test.v", "-test.run=^TestRoot(Stories|VLANOnTheWire)$"},
	},
}

func main() {
	cache := flag.String("cache", "bin/kernels", "where kernels and images are kept")
	names := flag.String("kernels", "", "comma-separated kernels to boot; all of them when empty")
	verbose := flag.Bool("v", false, "print the guests' consoles")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *cache, *names, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cache, names string, verbose bool) error {
	if _, err := exec.LookPath(qemu); err != nil {
		return fmt.Errorf("%w: apt-get install --no-install-recommends qemu-system-x86", err)
	}
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	var images []image
	for _, k := range chosen {
		img, err := fetch(ctx, cache, k)
		if err != nil {
			return fmt.Errorf("linux %s: %w", k.name, err)
		}
		images = append(images, img)
	}
	files, err := payload(ctx, cache)
	if err != nil {
		return err
	}
	reports := make([]report, len(images))
	errs := make([]error, len(images))
	var group sync.WaitGroup
	for i, img := range images {
		group.Go(func() {
			initrd := filepath.Join(cache, "initrd-"+img.release)
			if errs[i] = writeInitrd(initrd, img, files); errs[i] == nil {
				reports[i], errs[i] = boot(ctx, img, initrd, verbose)
			}
		})
	}
	group.Wait()
	for i, img := range images {
		errs[i] = errors.Join(errs[i], reports[i].print(img))
	}
	return errors.Join(errs...)
}

// choose returns the kernels of that comma-separated list.
func choose(names string) ([]kernel, error) {
	if names == "" {
		return kernels, nil
	}
	var out []kernel
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(kernels, func(k kernel) bool { return k.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no kernel %q; known: %v", name, kernels)
		}
		out = append(out, kernels[i])
	}
	return out, nil
}
