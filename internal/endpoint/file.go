package endpoint

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"porin/internal/durable"
	"porin/internal/identity"
)

// FileFormat is the version of the state files. A file of a newer one is not understood, so its endpoint is denied and
// rebuilt from the kernel.
const FileFormat = 1

const maxFile = 1 << 20

// stateFile is <state-dir>/endpoints/<id>.json. The sum is over the endpoint's bytes as they stand.
type stateFile struct {
	Format   int             `json:"format"`
	SHA256   string          `json:"sha256"`
	Endpoint json.RawMessage `json:"endpoint"`
}

var devicePattern = regexp.MustCompile(`^pn[0-9a-f]{10}$`)

// encodeFile returns the state file of ep. There is no newline at the end: every byte that is missing shows.
func encodeFile(ep Endpoint) ([]byte, error) {
	// What depends on policies is resolved anew after a restart.
	ep.Ingress, ep.Egress, ep.Revision, ep.Message = "", "", 0, ""
	body, err := json.Marshal(ep)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return json.Marshal(stateFile{FileFormat, hex.EncodeToString(sum[:]), body})
}

// decodeFile reads the state file of endpoint id. What it accepts was written by encodeFile for that number.
func decodeFile(id uint16, data []byte) (Endpoint, error) {
	var f stateFile
	if len(data) == 0 {
		return Endpoint{}, errors.New("the file is empty")
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return Endpoint{}, fmt.Errorf("no complete JSON: %w", err)
	}
	if f.Format != FileFormat {
		return Endpoint{}, fmt.Errorf("format %d, this agent understands %d", f.Format, FileFormat)
	}
	sum := sha256.Sum256(f.Endpoint)
	if want := hex.EncodeToString(sum[:]); f.SHA256 != want {
		return Endpoint{}, fmt.Errorf("checksum is %.64q, that of the content %q", f.SHA256, want)
	}
	var ep Endpoint
	dec := json.NewDecoder(bytes.NewReader(f.Endpoint))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&ep); err != nil {
		return Endpoint{}, fmt.Errorf("endpoint: %w", err)
	}
	switch {
	case ep.ID != id || id == 0:
		return Endpoint{}, fmt.Errorf("it is that of endpoint %d", ep.ID)
	case !devicePattern.MatchString(ep.Device):
		return Endpoint{}, fmt.Errorf("device %q is none of porin's", ep.Device)
	case len(ep.MAC) != 6:
		return Endpoint{}, fmt.Errorf("MAC %q", ep.MAC)
	case ep.IPv4.IsValid() && !ep.IPv4.Is4(), ep.IPv6.IsValid() && (!ep.IPv6.Is6() || ep.IPv6.Is4In6()), !ep.IPv4.IsValid() && !ep.IPv6.IsValid():
		return Endpoint{}, fmt.Errorf("addresses %s and %s", ep.IPv4, ep.IPv6)
	case ep.Identity == identity.Unknown || ep.Identity.IsLocal():
		return Endpoint{}, fmt.Errorf("identity %d", uint32(ep.Identity))
	case ep.ContainerID != "" && ep.Attachment().DeviceName() != ep.Device:
		return Endpoint{}, fmt.Errorf("device %s is not that of %s", ep.Device, ep.Attachment())
	}
	return ep, nil
}

func (e *Endpoints) path(id uint16) string { return filepath.Join(e.dir(), fmt.Sprintf("%d.json", id)) }

// save writes ep's state file so that at every moment either the old or the new one is there, whole.
func (e *Endpoints) save(ep Endpoint) error {
	data, err := encodeFile(ep)
	if err == nil {
		err = durable.Replace(e.path(ep.ID), data)
	}
	if err != nil {
		return fmt.Errorf("save endpoint %d: %w", ep.ID, err)
	}
	return nil
}

// removeFile needs no fsync of the folder: a file that comes back after a crash has no device and is removed then.
func (e *Endpoints) removeFile(id uint16) error {
	if err := os.Remove(e.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// openDir makes the folder of the state files and refuses one in which others could put files: a state file says who a
// workload is.
func openDir(stateDir, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, d := range []string{stateDir, dir} {
		if err := CheckOwned(d, true); err != nil {
			return err
		}
	}
	return nil
}

// CheckOwned refuses a path that someone else could change: another owner, writable by group or others, a symbolic link.
func CheckOwned(path string, dir bool) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case dir && !info.IsDir():
		return fmt.Errorf("%s is no folder", path)
	case !dir && !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file", path)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s can be written by others than its owner (mode %#o): refused; chmod go-w it after a look at what is inside", path, info.Mode().Perm())
	case ok && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, not to %d: refused", path, st.Uid, os.Geteuid())
	}
	return nil
}

// found is a state file as it was read.
type found struct {
	id  uint16
	ep  Endpoint
	bad error // why it is of no use
}

// readFiles reads all state files, sorted by number as text, and removes what a crash left of writing one.
func (e *Endpoints) readFiles() ([]found, error) {
	entries, err := os.ReadDir(e.dir())
	if err != nil {
		return nil, err
	}
	var out []found
	for _, entry := range entries {
		name := entry.Name()
		path := filepath.Join(e.dir(), name)
		if strings.HasPrefix(name, durable.Unfinished) {
			if err := os.Remove(path); err != nil {
				e.log.Warn("unfinished state file not removed", "file", path, "err", err)
			}
			continue
		}
		base, ok := strings.CutSuffix(name, ".json")
		id, err := strconv.ParseUint(base, 10, 16)
		if !ok || err != nil || id == 0 || strconv.FormatUint(id, 10) != base {
			e.log.Warn("file is no endpoint's; left alone", "file", path)
			continue
		}
		f := found{id: uint16(id)}
		f.ep, f.bad = readFile(path, f.id)
		out = append(out, f)
	}
	return out, nil
}

func readFile(path string, id uint16) (Endpoint, error) {
	if err := CheckOwned(path, false); err != nil {
		return Endpoint{}, err
	}
	info, err := os.Stat(path)
	if err == nil && info.Size() > maxFile {
		return Endpoint{}, fmt.Errorf("%d bytes, at most %d", info.Size(), maxFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Endpoint{}, err
	}
	return decodeFile(id, data)
}
