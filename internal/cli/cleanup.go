package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"porin/internal/flow"
)

func (s *shell) cleanupCommand() *cobra.Command {
	var force bool
	var bpfRoot, runDir, stateDir string
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that porin made on this node",
		Long: `Removes the pods' devices, porin_host with its routes, programs, filters and pinned maps, the sockets and the state files
with the store of identities. Pods that still run lose their network, and what policy denied is denied no more because
nothing of porin is left. It asks before it begins, and refuses while the agent runs. Name the same folders as the agent's
flags do.`,
		Example: `  sudo porin cleanup
  sudo porin cleanup --force           # do not ask`,
		Args: exactly(),
	}
	f := cmd.Flags()
	f.BoolVar(&force, "force", false, "do not ask")
	f.StringVar(&bpfRoot, "bpf-root", "/sys/fs/bpf", "the agent's --bpf-root")
	f.StringVar(&runDir, "run-dir", "", "the agent's --run-dir (default: the folder of its socket)")
	f.StringVar(&stateDir, "state-dir", "/var/lib/porin", "the agent's --state-dir")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !s.isRoot() {
			return coded{errors.New("remove what porin made: needs root: run with sudo"), exitUnreachable}
		}
		if runDir == "" {
			runDir = filepath.Dir(s.path())
		}
		for _, dir := range []string{runDir, stateDir} {
			if err := ours(dir); err != nil {
				return err
			}
		}
		unlock, err := s.agentGone(cmd.Context(), runDir, stateDir)
		if err != nil {
			return err
		}
		defer unlock()
		if !force {
			what := fmt.Sprintf("This removes all porin devices, programs and maps (below %s/porin), %s and %s.\nPods that still run lose their network. Type yes to go on: ",
				bpfRoot, runDir, stateDir)
			fmt.Fprint(cmd.ErrOrStderr(), what)
			answer, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n') // no answer is a no
			if strings.TrimSpace(answer) != "yes" {
				return errors.New("nothing was removed")
			}
		}
		errs := s.clean(bpfRoot)
		for _, dir := range []string{runDir, stateDir} {
			errs = errors.Join(errs, removeFolder(dir))
		}
		if errs != nil {
			return fmt.Errorf("not everything could be removed, the rest is gone; run it again: %w", errs)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "removed: devices, programs, maps, %s, %s\n", flow.Escape(runDir), flow.Escape(stateDir))
		return nil
	}
	return cmd
}

// ours refuses to remove a folder that cannot be porin's own: a slip in a flag must not cost somebody's files.
func ours(dir string) error {
	clean := filepath.Clean(dir)
	if !filepath.IsAbs(clean) {
		return usage("folder %q: write it from the root: /...", dir)
	}
	if !strings.Contains(clean, "porin") {
		return usage("folder %q: no part of its name is porin, so it is not removed; remove it by hand if it is really porin's", dir)
	}
	st, err := os.Lstat(clean)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", clean, err)
	}
	if !st.IsDir() {
		return fmt.Errorf("%s is not a folder, so it is not removed", clean)
	}
	return nil
}

// removeFolder removes dir and all in it. A mount point is only emptied: whoever mounted it removes it.
func removeFolder(dir string) error {
	err := os.RemoveAll(dir)
	if errors.Is(err, unix.EBUSY) {
		if left, readErr := os.ReadDir(dir); readErr == nil && len(left) == 0 {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

// agentGone makes sure that no agent works with these folders, nor begins to before unlock is called: a running agent
// holds a lock in each, also while it starts and does not listen yet.
func (s *shell) agentGone(ctx context.Context, dirs ...string) (unlock func(), err error) {
	var locks []*os.File
	unlock = func() {
		for _, f := range locks {
			f.Close()
		}
	}
	for _, dir := range dirs {
		f, err := os.OpenFile(filepath.Join(dir, "agent.lock"), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			unlock()
			return nil, fmt.Errorf("see whether an agent runs: %w", err)
		}
		locks = append(locks, f)
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			unlock()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("the agent runs: it holds the lock of %s; stop it first", dir)
			}
			return nil, fmt.Errorf("see whether an agent runs: lock %s: %w", f.Name(), err)
		}
	}
	var d net.Dialer
	if conn, err := d.DialContext(ctx, "unix", s.path()); err == nil {
		conn.Close()
		unlock()
		return nil, fmt.Errorf("the agent runs: it answers on %s; stop it first", s.path())
	}
	return unlock, nil
}
