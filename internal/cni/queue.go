package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"porin/internal/durable"
)

// maxQueued bounds the deletions that wait. A node has far fewer pods.
const maxQueued = 10000

// Deletion is a DEL that came while the agent was away.
type Deletion struct {
	ContainerID string    `json:"container-id"`
	IfName      string    `json:"ifname"`
	Network     string    `json:"network"`
	Time        time.Time `json:"time"` // an endpoint made later is another one
}

// queueFile is a hash: no text of a runtime becomes part of a path.
func queueFile(dir, containerID, ifname string) string {
	sum := sha256.Sum256([]byte(containerID + "\x00" + ifname))
	return filepath.Join(dir, hex.EncodeToString(sum[:16])+".json")
}

// Queue writes d into dir, once per attachment, and returns when it is on disk.
func Queue(dir string, d Deletion) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("queue deletion: %w", err)
	}
	if err := checkDir(dir); err != nil {
		return fmt.Errorf("queue deletion: %w", err)
	}
	path := queueFile(dir, d.ContainerID, d.IfName)
	if _, err := os.Lstat(path); err != nil {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("queue deletion: %w", err)
		}
		if len(entries) >= maxQueued {
			return fmt.Errorf("queue deletion in %s: %d wait there already; start porin-agent", dir, len(entries))
		}
	}
	data, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("queue deletion: %w", err)
	}
	if err := durable.Replace(path, data); err != nil {
		return fmt.Errorf("queue deletion: %w", err)
	}
	return nil
}

// Queued tells whether a deletion of this attachment waits in dir.
func Queued(dir, containerID, ifname string) bool {
	_, err := os.Lstat(queueFile(dir, containerID, ifname))
	return err == nil
}

// Unqueue takes the deletion of an attachment out of dir, if it is there.
func Unqueue(dir, containerID, ifname string) error {
	if err := os.Remove(queueFile(dir, containerID, ifname)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take a deletion out of the queue: %w", err)
	}
	return nil
}

// Replay calls do for each deletion that waits in dir and takes out those for which it returns nil. The agent calls it
// when it starts, again once it listens, and now and then. A file of no use is removed and reported: the endpoint that
// it meant goes with its device. It returns how many were done.
func Replay(dir string, do func(Deletion) error) (done int, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read queued deletions: %w", err)
	}
	if err := checkDir(dir); err != nil {
		return 0, fmt.Errorf("read queued deletions: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if strings.HasPrefix(entry.Name(), durable.Unfinished) {
			if info, err := entry.Info(); err == nil && time.Since(info.ModTime()) > time.Minute {
				os.Remove(path) // its writer is gone
			}
			continue
		}
		d, err := readDeletion(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another call has done it meanwhile
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("queued deletion %s is of no use and removed: %w", path, err), os.RemoveAll(path))
			continue
		}
		if err := do(d); err != nil {
			errs = append(errs, fmt.Errorf("queued deletion of %s:%s: %w", d.ContainerID, d.IfName, err))
			continue
		}
		done++
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return done, errors.Join(errs...)
}

func readDeletion(path string) (d Deletion, err error) {
	info, err := os.Lstat(path)
	if err != nil {
		return d, err
	}
	if !info.Mode().IsRegular() || info.Size() > 64<<10 {
		return d, fmt.Errorf("mode %s, %d bytes", info.Mode(), info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return d, err
	}
	if want := queueFile(filepath.Dir(path), d.ContainerID, d.IfName); d.ContainerID == "" || d.IfName == "" || want != path {
		return d, errors.New("its name is not that of its content")
	}
	return d, nil
}

// checkDir refuses a folder in which others could have put deletions.
func checkDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm()&0o022 != 0 || ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s must be a folder of user %d that nobody else can write to; it is %s", dir, os.Geteuid(), info.Mode())
	}
	return nil
}
