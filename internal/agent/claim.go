package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"porin/internal/endpoint"
)

// claimNode makes the folders and locks them: two agents over one state or one set of sockets would undo each other's
// work. The kernel drops the locks when the process ends, however it ends.
func claimNode(cfg Config) (release func(), err error) {
	var locks []*os.File
	release = func() {
		os.Remove(filepath.Join(cfg.RunDir, pidFile))
		for _, f := range locks {
			f.Close()
		}
	}
	for _, dir := range []string{cfg.RunDir, cfg.StateDir} {
		if err := ownFolder(dir); err != nil {
			release()
			return nil, err
		}
		f, err := lock(filepath.Join(dir, lockFile))
		if err != nil {
			for _, f := range locks {
				f.Close()
			}
			return nil, err
		}
		locks = append(locks, f)
	}
	pid := []byte(strconv.Itoa(os.Getpid()) + "\n")
	if err := os.WriteFile(filepath.Join(cfg.RunDir, pidFile), pid, 0o600); err != nil {
		release()
		return nil, fmt.Errorf("write process id: %w", err)
	}
	return release, nil
}

// ownFolder makes a folder that only root can look into, or takes one that is no worse.
func ownFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	if err := endpoint.CheckOwned(dir, true); err != nil {
		return fmt.Errorf("folder %s: %w", dir, err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("keep others out of %s: %w", dir, err)
	}
	return nil
}

// errRunning says that there is another agent.
var errRunning = errors.New("another porin-agent runs on it")

func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, readErr := os.ReadFile(path)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) && readErr == nil {
			return nil, fmt.Errorf("%s: %w (process %s); stop that one first", filepath.Dir(path), errRunning, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
