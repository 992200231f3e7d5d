package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"porin/internal/durable"
	"porin/internal/endpoint"
	"porin/internal/policy"
)

// sourceAPI is the source of policies that came through the socket; the others have the path of their watched file.
const sourceAPI = "api"

// sourceFiles stands for all of them where changes are counted.
const sourceFiles = "files"

// owned is a policy and who brought it.
type owned struct {
	*policy.Policy
	source string
}

// savedHead is the first line of a saved policy, behind headMark. The sum tells a file that was cut off or edited from
// one that is whole: a policy that lost its end may still be a policy, and allow more.
type savedHead struct {
	Source string `json:"source"`
	File   string `json:"file"` // as the user named it, for messages
	Line   int    `json:"line"`
	Sum    string `json:"sha256"`
}

const headMark = "# porin: "

// maxLine bounds the empty lines that are put in front of a document to give its parts the lines they had.
const maxLine = 1 << 20

// savedPolicies is the folder that keeps every policy in force over a restart: one file per policy, written aside and
// renamed.
type savedPolicies struct{ dir string }

// name is the file of a policy. Names of policies are checked when they are parsed; a long one is shortened to a hash.
func (s savedPolicies) name(r policy.Ref) string {
	name := r.Kind + "_" + r.Namespace + "_" + r.Name
	if len(name) > 200 || strings.ContainsAny(name, "/\x00") {
		sum := sha256.Sum256([]byte(name))
		name = "long_" + hex.EncodeToString(sum[:])
	}
	return name + ".yaml"
}

// load reads all saved policies. bad holds, by file name, why a file is of no use.
func (s savedPolicies) load() (good []owned, bad map[string]error, err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("folder of saved policies: %w", err)
	}
	if err := endpoint.CheckOwned(s.dir, true); err != nil {
		return nil, nil, fmt.Errorf("folder of saved policies: %w", err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("list saved policies: %w", err)
	}
	bad = make(map[string]error)
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") { // a write that did not end
			if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
				return nil, nil, fmt.Errorf("remove unfinished file: %w", err)
			}
			continue
		}
		if o, err := s.read(name); err != nil {
			bad[name] = err
		} else {
			good = append(good, o)
		}
	}
	return good, bad, nil
}

func (s savedPolicies) read(name string) (owned, error) {
	path := filepath.Join(s.dir, name)
	if err := endpoint.CheckOwned(path, false); err != nil {
		return owned{}, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return owned{}, err
	}
	first, text, _ := bytes.Cut(data, []byte("\n"))
	line, ok := bytes.CutPrefix(first, []byte(headMark))
	var head savedHead
	if !ok || json.Unmarshal(line, &head) != nil {
		return owned{}, errors.New("its first line is not what porin writes")
	}
	if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != head.Sum {
		return owned{}, errors.New("it was cut off or edited")
	}
	p, err := parseAt(head.File, head.Line, text)
	if err != nil {
		return owned{}, err
	}
	if s.name(p.Ref) != name {
		return owned{}, fmt.Errorf("it holds %s, whose file is %s", p.Ref, s.name(p.Ref))
	}
	return owned{p, head.Source}, nil
}

// parseAt reads a policy as if it stood in this line of the file from which it came.
func parseAt(file string, line int, text []byte) (*policy.Policy, error) {
	p, err := parseOne(file, text)
	if err != nil {
		return nil, err
	}
	if pad := line - p.Line; pad > 0 && pad < maxLine {
		return parseOne(file, append(bytes.Repeat([]byte("\n"), pad), text...))
	}
	return p, nil
}

func parseOne(file string, text []byte) (*policy.Policy, error) {
	ps, err := policy.Parse(file, text)
	if err != nil {
		return nil, err
	}
	if len(ps) != 1 {
		return nil, fmt.Errorf("it holds %d policies, not one", len(ps))
	}
	return ps[0], nil
}

// save writes a policy, so that it is there whole or not at all.
func (s savedPolicies) save(o owned) error {
	sum := sha256.Sum256([]byte(o.YAML))
	head, err := json.Marshal(savedHead{o.source, o.File, o.Line, hex.EncodeToString(sum[:])})
	if err != nil {
		return fmt.Errorf("save %s: %w", o.Ref, err)
	}
	name := s.name(o.Ref)
	if err := durable.Replace(filepath.Join(s.dir, name), []byte(headMark+string(head)+"\n"+o.YAML)); err != nil {
		return fmt.Errorf("save %s: %w", o.Ref, err)
	}
	return nil
}

// remove takes a policy's file away.
func (s savedPolicies) remove(r policy.Ref) error {
	return s.removeFile(s.name(r))
}

func (s savedPolicies) removeFile(name string) error {
	if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove saved policy: %w", err)
	}
	return durable.Sync(s.dir)
}
