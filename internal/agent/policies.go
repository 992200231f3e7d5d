package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"porin/internal/policy"
)

// enforcer puts policies in force; *endpoint.Endpoints does.
type enforcer interface {
	ApplyPolicies(ctx context.Context, put []*policy.Policy, del []policy.Ref) (revision uint64, err error)
	Revision() uint64
}

// Errors of changes that the caller can do something about.
var (
	errOwner   = errors.New("another source owns the policy")
	errHeld    = errors.New("policies are held back")
	errMissing = errors.New("there is no such policy")
	errTrial   = errors.New("a change of policies is on trial")
	errNoTrial = errors.New("it is not on trial")
)

// policies knows which policies are to be in force and who brought them: the API or a file of the watched folder. A
// policy belongs to whoever brought it first. All of them are kept on disk, those of files too: a file that breaks
// while the agent is down must not take its policy out of force.
//
//	API ───────────┐
//	watched folder ┴─▶ change ─▶ Endpoints.ApplyPolicies ─▶ saved on disk
//
// A saved policy that cannot be read says who knows what. Until it is applied again or deleted no rule is changed: the
// endpoints keep what the kernel has, and new ones wait.
type policies struct {
	log    *slog.Logger
	to     enforcer
	saved  savedPolicies
	folder string // watched; empty: none
	told   func(source string, took time.Duration, changed []policy.Ref, revision uint64, err error)

	turn     sync.Mutex // held through a whole change
	mu       sync.Mutex
	want     map[policy.Ref]owned   // mu
	bad      map[string]error       // mu: saved files that are of no use, by name
	begun    bool                   // mu: the first change, with everything, has been made
	unsaved  map[policy.Ref]bool    // mu: whose files are not as they should be
	files    map[string]watchedFile // mu: by path
	broken   error                  // mu: why the watched folder cannot be read
	saveErr  error                  // mu: why unsaved is not empty
	beginErr error                  // mu: why the first change has not been made
	trial    *trial                 // turn and mu: the change that waits to be confirmed
	lost     string                 // mu: what became of a trial whose record could not be read
	wake     chan struct{}          // trial is another one
}

func newPolicies(log *slog.Logger, dir, folder string, to enforcer) *policies {
	return &policies{
		log: log, to: to, saved: savedPolicies{dir}, folder: folder,
		told: func(string, time.Duration, []policy.Ref, uint64, error) {},
		want: map[policy.Ref]owned{}, bad: map[string]error{}, unsaved: map[policy.Ref]bool{}, files: map[string]watchedFile{},
		wake: make(chan struct{}, 1),
	}
}

// Restore reads the saved policies and the watched folder, and puts all in force as the first change.
func (p *policies) Restore(ctx context.Context) error {
	good, bad, err := p.saved.load()
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.bad = bad
	for _, o := range good {
		p.want[o.Ref] = o
		if o.source != sourceAPI {
			f := p.files[o.source]
			f.refs = append(f.refs, o.Ref)
			p.files[o.source] = f
		}
	}
	p.mu.Unlock()
	for name, err := range bad {
		p.log.Error("saved policy is of no use; endpoints keep the rules they have until it is applied again or deleted", "file", name, "err", err)
	}
	if err := p.resume(); err != nil {
		return fmt.Errorf("change on trial: %w", err)
	}
	if err := p.scan(ctx); err != nil {
		p.log.Warn("watched folder", "err", err) // its policies are those saved
	}
	p.begin(ctx)
	return nil
}

// begin makes the first change if it has not been made. What keeps it from being made shows in the status.
func (p *policies) begin(ctx context.Context) {
	if p.started() {
		return
	}
	_, _, err := p.change(ctx, sourceAPI, nil, nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && !errors.Is(err, errHeld) && ctx.Err() == nil && (p.beginErr == nil || p.beginErr.Error() != err.Error()) {
		p.log.Error("saved policies are not in force; endpoints keep the rules they have", "err", err)
	}
	p.beginErr = err
}

// Run follows the watched folder, takes back what is not confirmed and repeats what could not be saved, until ctx ends.
func (p *policies) Run(ctx context.Context) error {
	var trials sync.WaitGroup
	trials.Go(func() { p.watchTrial(ctx) })
	defer trials.Wait()
	news, stop := p.watch(ctx)
	defer stop()
	again := time.NewTicker(rescan)
	defer again.Stop()
	retry := time.NewTicker(beginAgain)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-retry.C:
			p.begin(ctx)
			continue
		case <-news:
		case <-again.C:
			p.resave()
			news, stop = p.rewatch(ctx, news, stop)
		}
		if err := p.scan(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("watched folder", "err", err)
		}
	}
}

func (p *policies) started() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.begun
}

// Apply puts policies of the API in force. Nothing changes on error with revision 0.
func (p *policies) Apply(ctx context.Context, put []*policy.Policy) (revision uint64, changed []policy.Ref, err error) {
	list := make([]owned, len(put))
	for i, one := range put {
		list[i] = owned{one, sourceAPI}
	}
	return p.change(ctx, sourceAPI, list, nil)
}

// Delete takes policies of the API out of force. One that is not there is an error, unless its saved file is bad.
func (p *policies) Delete(ctx context.Context, del []policy.Ref) (revision uint64, changed []policy.Ref, err error) {
	if err := p.thereAre(del); err != nil {
		return 0, nil, err
	}
	return p.change(ctx, sourceAPI, nil, del)
}

// thereAre refuses names of policies that do not exist.
func (p *policies) thereAre(refs []policy.Ref) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, r := range refs {
		_, there := p.want[r]
		if _, bad := p.bad[p.saved.name(r)]; !there && !bad {
			errs = append(errs, fmt.Errorf("delete %s: %w", r, errMissing))
		}
	}
	return errors.Join(errs...)
}

// DeleteAll takes every policy of the API out of force, those that cannot be read too.
func (p *policies) DeleteAll(ctx context.Context) (revision uint64, changed []policy.Ref, err error) {
	if err := p.onTrial(); err != nil {
		return 0, nil, err
	}
	del := p.ofAPI()
	p.mu.Lock()
	bad := slices.Collect(maps.Keys(p.bad))
	p.mu.Unlock()
	for _, name := range bad {
		if err := p.dropBad(name); err != nil {
			return 0, nil, err
		}
	}
	return p.change(ctx, sourceAPI, nil, del)
}

// ofAPI lists the policies of the API.
func (p *policies) ofAPI() (out []policy.Ref) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for r, o := range p.want {
		if o.source == sourceAPI {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, compareRefs)
	return out
}

// change is the only way to other policies. source says on whose behalf; for a watched file its path.
func (p *policies) change(ctx context.Context, source string, put []owned, del []policy.Ref) (revision uint64, changed []policy.Ref, err error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	if source == sourceAPI && len(put)+len(del) > 0 {
		if err := p.onTrial(); err != nil {
			return 0, nil, err
		}
	}
	return p.changeNow(ctx, source, put, del)
}

// changeNow is change for a caller that has the turn.
func (p *policies) changeNow(ctx context.Context, source string, put []owned, del []policy.Ref) (revision uint64, changed []policy.Ref, err error) {
	began := time.Now()
	put, del, err = p.difference(source, put, del)
	if err != nil {
		return 0, nil, err
	}
	if len(put)+len(del) == 0 && p.started() {
		return p.to.Revision(), nil, nil
	}
	for _, o := range put {
		changed = append(changed, o.Ref)
	}
	changed = append(changed, del...)
	defer func() {
		p.told(source, time.Since(began), changed, revision, err)
	}()

	p.mu.Lock()
	next, bad := maps.Clone(p.want), maps.Clone(p.bad)
	first := !p.begun
	p.mu.Unlock()
	var docs []*policy.Policy
	for _, o := range put {
		next[o.Ref] = o
		docs = append(docs, o.Policy)
		delete(bad, p.saved.name(o.Ref))
	}
	for _, r := range del {
		delete(next, r)
		delete(bad, p.saved.name(r))
	}
	if first && len(bad) > 0 {
		p.take(next, bad, put, del)
		return 0, changed, p.heldError()
	}
	if first {
		docs, del = nil, nil
		for _, r := range slices.SortedFunc(maps.Keys(next), compareRefs) {
			docs = append(docs, next[r].Policy)
		}
	}
	revision, err = p.to.ApplyPolicies(ctx, docs, del)
	if revision == 0 {
		return 0, nil, cmp.Or(err, errors.New("the change was not made"))
	}
	p.mu.Lock()
	p.begun = true
	p.mu.Unlock()
	p.take(next, bad, put, changed[len(put):])
	if err != nil {
		return revision, changed, fmt.Errorf("revision %d: %w", revision, err)
	}
	return revision, changed, nil
}

// difference leaves out what would change nothing, and refuses what belongs to another source. A policy that is both
// put and deleted moves from one file to another.
func (p *policies) difference(source string, put []owned, del []policy.Ref) ([]owned, []policy.Ref, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	refuse := func(o owned) {
		errs = append(errs, fmt.Errorf("%s: it comes from %s; change it there: %w", o.Ref, o.place(), errOwner))
	}
	var news []owned
	for _, o := range put {
		if source != sourceAPI && p.trial.touches(o.Ref) {
			errs = append(errs, fmt.Errorf("%s: %w", o.Ref, errTrial))
		}
		old, ok := p.want[o.Ref]
		if ok && old.source != o.source && !slices.Contains(del, o.Ref) {
			refuse(old)
		}
		_, bad := p.bad[p.saved.name(o.Ref)]
		if !ok || bad || old.source != o.source || old.YAML != o.YAML || old.File != o.File || old.Line != o.Line {
			news = append(news, o)
		}
	}
	var gone []policy.Ref
	for _, r := range del {
		old, ok := p.want[r]
		if ok && source == sourceAPI && old.source != sourceAPI {
			refuse(old)
		}
		_, bad := p.bad[p.saved.name(r)]
		moves := slices.ContainsFunc(put, func(o owned) bool { return o.Ref == r })
		if (ok || bad) && !moves {
			gone = append(gone, r)
		}
	}
	return news, gone, errors.Join(errs...)
}

func (o owned) place() string {
	if o.source == sourceAPI {
		return "porin policy apply"
	}
	return "the watched file " + o.source
}

// take makes next what is wanted, and the disk follow.
func (p *policies) take(next map[policy.Ref]owned, bad map[string]error, put []owned, del []policy.Ref) {
	p.mu.Lock()
	p.want, p.bad = next, bad
	for _, o := range put {
		p.unsaved[o.Ref] = true
	}
	for _, r := range del {
		p.unsaved[r] = true
	}
	p.mu.Unlock()
	p.resave()
}

// resave brings the files of changed policies in line. A full disk does not keep a policy from being enforced.
func (p *policies) resave() {
	p.mu.Lock()
	todo := make(map[policy.Ref]owned, len(p.unsaved))
	for r := range p.unsaved {
		todo[r] = p.want[r]
	}
	p.mu.Unlock()
	var errs []error
	for _, r := range slices.SortedFunc(maps.Keys(todo), compareRefs) {
		o := todo[r]
		var err error
		if o.Policy == nil {
			err = p.saved.remove(r)
		} else {
			err = p.saved.save(o)
		}
		p.mu.Lock()
		if err != nil {
			errs = append(errs, err)
		} else if p.want[r] == o {
			delete(p.unsaved, r)
		}
		p.mu.Unlock()
	}
	p.mu.Lock()
	was := p.saveErr
	p.saveErr = errors.Join(errs...)
	now := p.saveErr
	p.mu.Unlock()
	if now != nil && was == nil {
		p.log.Error("policies are in force but not on disk; a restart would lose the change", "err", now)
	}
}

// dropBad removes a saved file that cannot be read, because the user said so.
func (p *policies) dropBad(name string) error {
	p.turn.Lock()
	defer p.turn.Unlock()
	if err := p.saved.removeFile(name); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.bad, name)
	return nil
}

func (p *policies) heldError() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for name, err := range p.bad {
		names = append(names, fmt.Sprintf("%s (%v)", name, err))
	}
	slices.Sort(names)
	return fmt.Errorf("%w: saved policies in %s cannot be read, so nobody knows what they forbid: %v; endpoints keep the rules they have. Apply those policies again, or delete them (porin policy delete)",
		errHeld, p.saved.dir, names)
}

// Alarms returns what a person must see.
func (p *policies) Alarms() (out []string) {
	p.mu.Lock()
	held := !p.begun && len(p.bad) > 0
	p.mu.Unlock()
	if held {
		out = append(out, p.heldError().Error())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, text := range []string{p.trial.alarm(), p.lost} {
		if text != "" {
			out = append(out, text)
		}
	}
	if !held && !p.begun && p.beginErr != nil {
		out = append(out, fmt.Sprintf("saved policies are not in force: %v; endpoints keep the rules they have", p.beginErr))
	}
	if p.broken != nil {
		out = append(out, fmt.Sprintf("watched folder: %v; its policies stay as they are", p.broken))
	}
	if p.saveErr != nil {
		out = append(out, fmt.Sprintf("policies not on disk: %v", p.saveErr))
	}
	for _, path := range slices.Sorted(maps.Keys(p.files)) {
		if f := p.files[path]; f.err != nil {
			out = append(out, fmt.Sprintf("policy file %s refused: %v; what it held before stays in force", path, f.err))
		}
	}
	for _, r := range slices.SortedFunc(maps.Keys(p.want), compareRefs) {
		out = append(out, lacking(p.want[r].Policy)...)
	}
	return out
}

// Held tells whether unreadable policies keep the agent from enforcing any.
func (p *policies) Held() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.begun
}

// policyView is a policy for the API. A file that has never held a good policy has no Policy.
type policyView struct {
	*policy.Policy
	Source string
	Error  string
}

// List returns the policies by kind, namespace and name, then the files of which nothing is in force.
func (p *policies) List() []policyView {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []policyView
	for _, r := range slices.SortedFunc(maps.Keys(p.want), compareRefs) {
		o := p.want[r]
		v := policyView{Policy: o.Policy, Source: o.source}
		if f, ok := p.files[o.source]; ok && f.err != nil {
			v.Error = f.err.Error()
		}
		out = append(out, v)
	}
	for _, path := range slices.Sorted(maps.Keys(p.files)) {
		if f := p.files[path]; f.err != nil && len(f.refs) == 0 {
			out = append(out, policyView{Source: path, Error: f.err.Error()})
		}
	}
	return out
}

func compareRefs(a, b policy.Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
