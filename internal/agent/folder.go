package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"porin/internal/policy"
)

const (
	rescan      = 30 * time.Second       // for file systems that do not tell of changes
	beginAgain  = 3 * time.Second        // between tries of the first change
	settle      = 200 * time.Millisecond // a file is written in several steps
	maxFileSize = 8 << 20
)

// watchedFile is what is known of a file of the watched folder.
type watchedFile struct {
	sum  [sha256.Size]byte // of the content that was last looked at; zero: none yet
	refs []policy.Ref      // in force from it
	err  error             // why its content is not in force
}

// scan makes the policies in force those of the watched folder's files. A file that is wrong keeps the policies it had;
// a folder that cannot be read keeps all. Policies of files that are gone go.
func (p *policies) scan(ctx context.Context) error {
	found, err := p.readFolder()
	p.mu.Lock()
	p.broken = err
	known := maps.Clone(p.files)
	p.mu.Unlock()
	if err != nil {
		return err
	}
	var changes []fileChange
	for _, path := range slices.Sorted(maps.Keys(known)) {
		if _, there := found[path]; !there {
			changes = append(changes, fileChange{path: path, gone: true, del: known[path].refs})
		}
	}
	for _, path := range slices.Sorted(maps.Keys(found)) {
		old := known[path]
		c := fileChange{path: path}
		var data []byte
		if data, c.err = found[path].data, found[path].err; c.err == nil {
			c.sum = sha256.Sum256(data)
			if c.sum == old.sum {
				continue
			}
			var ps []*policy.Policy
			if ps, c.err = parse(path, data); c.err == nil {
				c.fill(ps, old.refs)
			}
		}
		changes = append(changes, c)
	}
	if len(changes) == 0 {
		return nil
	}
	p.applyFiles(ctx, changes)
	return nil
}

// fileChange is what a file's new content changes.
type fileChange struct {
	path string
	gone bool
	sum  [sha256.Size]byte
	put  []owned
	del  []policy.Ref
	err  error // it is not to be applied
}

func (c *fileChange) fill(ps []*policy.Policy, old []policy.Ref) {
	now := map[policy.Ref]bool{}
	for _, one := range ps {
		c.put = append(c.put, owned{one, c.path})
		now[one.Ref] = true
	}
	for _, r := range old {
		if !now[r] {
			c.del = append(c.del, r)
		}
	}
}

// applyFiles puts all changed files in force as one change; if that does not go, one by one, so that one bad file does
// not hold the others back.
func (p *policies) applyFiles(ctx context.Context, changes []fileChange) {
	taken := map[policy.Ref]string{} // a policy that moved from one file to another is no conflict
	var good []*fileChange
	for i := range changes {
		c := &changes[i]
		if c.err == nil {
			c.err = claim(taken, c)
		}
		if c.err == nil {
			good = append(good, c)
		}
	}
	if err := p.applyTogether(ctx, good); err != nil {
		for _, c := range good {
			if c.err = p.applyTogether(ctx, []*fileChange{c}); errors.Is(c.err, errHeld) {
				c.err = nil // it is wanted, and comes into force with the rest
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range changes {
		c := &changes[i]
		f := p.files[c.path]
		switch {
		case c.gone && c.err == nil:
			delete(p.files, c.path)
			p.log.Info("policy file gone", "file", c.path, "policies", len(c.del))
			continue
		case c.err == nil:
			f = watchedFile{sum: c.sum}
			for _, o := range c.put {
				f.refs = append(f.refs, o.Ref)
			}
			p.log.Info("policy file in force", "file", c.path, "policies", len(c.put))
		default:
			if f.err == nil || f.err.Error() != c.err.Error() {
				p.log.Warn("policy file refused; what it held before stays in force", "file", c.path, "err", c.err)
			}
			f.err = c.err
			f.sum = [sha256.Size]byte{} // looked at again: the reason may lie elsewhere
		}
		p.files[c.path] = f
	}
}

func claim(taken map[policy.Ref]string, c *fileChange) error {
	for _, o := range c.put {
		if other, dup := taken[o.Ref]; dup {
			return fmt.Errorf("%s is in %s too", o.Ref, other)
		}
	}
	for _, o := range c.put {
		taken[o.Ref] = c.path
	}
	return nil
}

func (p *policies) applyTogether(ctx context.Context, changes []*fileChange) error {
	var put []owned
	var del []policy.Ref
	for _, c := range changes {
		put = append(put, c.put...)
	}
	for _, c := range changes {
		del = append(del, c.del...)
	}
	if len(put)+len(del) == 0 {
		return nil
	}
	_, _, err := p.change(ctx, sourceFiles, put, del)
	return err
}

// content of a file, or why there is none.
type content struct {
	data []byte
	err  error
}

// readFolder reads all policy files. Without a watched folder there are none.
func (p *policies) readFolder() (map[string]content, error) {
	out := map[string]content{}
	if p.folder == "" {
		return out, nil
	}
	entries, err := os.ReadDir(p.folder)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			continue
		}
		path := filepath.Join(p.folder, name)
		data, err := readRegular(path)
		if errors.Is(err, os.ErrNotExist) && e.Type()&os.ModeSymlink == 0 {
			continue // gone since it was listed
		}
		out[path] = content{data, err}
	}
	return out, nil
}

// readRegular reads a regular file of bounded size, behind a symbolic link too: mounted volumes are made of such.
func readRegular(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = fmt.Errorf("more than %d bytes; split it", maxFileSize)
	}
	return data, err
}

// watch returns a channel that tells, a little after the last change, that something in the folder changed.
func (p *policies) watch(ctx context.Context) (news <-chan struct{}, stop func()) {
	if p.folder == "" {
		return nil, func() {}
	}
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = w.Add(p.folder); err != nil {
			w.Close()
		}
	}
	if err != nil {
		p.log.Warn("watched folder does not tell of changes; looking every now and then", "folder", p.folder, "every", rescan, "err", err)
		return nil, func() {}
	}
	out := make(chan struct{}, 1)
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(done)
		defer w.Close()
		quiet := time.NewTimer(0) // look at once: something may have happened before the watch
		defer quiet.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case _, ok := <-w.Events:
				if !ok {
					return
				}
				quiet.Reset(settle)
			case <-w.Errors: // an overflow of the queue, for one
				quiet.Reset(settle)
			case <-quiet.C:
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}
	}()
	return out, func() { cancel(); <-done }
}

// rewatch tries again to watch a folder that could not be watched, and watches a folder anew that was replaced.
func (p *policies) rewatch(ctx context.Context, news <-chan struct{}, stop func()) (<-chan struct{}, func()) {
	if p.folder == "" {
		return news, stop
	}
	stop()
	return p.watch(ctx)
}
