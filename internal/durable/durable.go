// Package durable defines how a file is replaced: after a crash at any moment it is the old one or the new one, whole.
// It writes the file that it is told to and its folder, and reads nothing. It never decides what a file holds.
package durable

import (
	"os"
	"path/filepath"
)

// Unfinished begins the name of a file that is not whole yet: what a crash left of it means nothing and may be removed.
const Unfinished = ".tmp-"

// Replace makes path a file with this content and mode 0600. It returns when that is on the disk.
func Replace(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, Unfinished)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return Sync(dir)
}

// Sync returns when the names in a folder are on the disk: of files that were made, renamed or removed.
func Sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if e := d.Close(); err == nil {
		err = e
	}
	return err
}
