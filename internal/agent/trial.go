package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"porin/internal/durable"
	"porin/internal/endpoint"
	"porin/internal/policy"
)

// Bounds of the time in which a trial is to be confirmed: long enough to look, short enough to be somebody's job.
const (
	minTrial = time.Second
	maxTrial = 24 * time.Hour
)

// trial is a change of policies that is taken back unless it is confirmed in time. What was there before is on disk
// before the change is made, so that no end of the agent makes the change last.
//
//	             change made            confirmed
//	record ────▶ Revision 0 ────▶ waiting ────▶ record removed
//	                 │               │ time over, rollback
//	                 │ agent ended   ▼
//	                 └────────────▶ ending ────▶ what was before in force and saved ────▶ record removed
type trial struct {
	Revision uint64        `json:"revision"` // with which it came into force; 0: not known to be
	Until    time.Time     `json:"until"`
	Window   time.Duration `json:"window"`
	Ending   bool          `json:"ending"` // it is being taken back
	Before   []trialBefore `json:"before"`

	ends time.Time // as Until, by the clock that nobody sets
	why  string    // it is being taken back
	err  error     // why that has not worked yet
}

// trialBefore is what a policy was before the trial.
type trialBefore struct {
	Ref    policy.Ref `json:"ref"`
	Was    bool       `json:"was"` // false: there was none
	Source string     `json:"source,omitempty"`
	File   string     `json:"file,omitempty"`
	Line   int        `json:"line,omitempty"`
	YAML   string     `json:"yaml,omitempty"`
}

// touches tells whether the trial changes a policy.
func (t *trial) touches(r policy.Ref) bool {
	return t != nil && slices.ContainsFunc(t.Before, func(b trialBefore) bool { return b.Ref == r })
}

// left is how long there is to confirm it, by whichever clock says less: neither a clock that was set back nor a machine
// that slept makes it longer.
func (t *trial) left(now time.Time) time.Duration {
	return max(0, min(t.ends.Sub(now), t.Until.Sub(now.Round(0)), t.Window))
}

func (t *trial) refs() (out []policy.Ref) {
	for _, b := range t.Before {
		out = append(out, b.Ref)
	}
	return out
}

// Try makes a change that is taken back unless Confirm comes within the window. Without a difference there is no trial:
// then it returns nil.
func (p *policies) Try(ctx context.Context, put []*policy.Policy, del []policy.Ref, window time.Duration) (*trial, error) {
	list := make([]owned, len(put))
	for i, one := range put {
		list[i] = owned{one, sourceAPI}
	}
	p.turn.Lock()
	defer p.turn.Unlock()
	if err := p.onTrial(); err != nil {
		return nil, err
	}
	if !p.started() {
		return nil, fmt.Errorf("%w: the saved policies are not in force yet, so there is no state to come back to; see 'porin status'", errHeld)
	}
	put2, del2, err := p.difference(sourceAPI, list, del)
	if err != nil {
		return nil, err
	}
	if len(put2)+len(del2) == 0 {
		return nil, nil
	}
	t := &trial{Window: window, Before: p.before(put2, del2)}
	t.ends = time.Now().Add(window)
	t.Until = t.ends.Round(0)
	if err := p.record(t); err != nil {
		return nil, fmt.Errorf("nothing was changed: %w", err)
	}
	p.mu.Lock()
	p.trial = t
	p.mu.Unlock()
	rev, _, err := p.changeNow(ctx, sourceAPI, list, del)
	p.mu.Lock()
	t.Revision = rev
	p.mu.Unlock()
	switch {
	case rev == 0: // nothing was changed
		return nil, errors.Join(err, p.forget(t))
	case err != nil:
		err = fmt.Errorf("the change came into force, but not everywhere, and is taken back: %w", err)
		return nil, errors.Join(err, p.takeBack(ctx, "an endpoint could not take it"))
	}
	if err := p.record(t); err != nil {
		p.log.Warn("a change on trial would be taken back by a restart, before its time", "err", err)
	}
	p.log.Info("change on trial", "rev", rev, "policies", len(t.Before), "until", t.Until)
	p.wakeUp()
	return p.Trial(), nil
}

// Check tells what Apply would change, or why it would be refused. Nothing changes.
func (p *policies) Check(put []*policy.Policy) (changed []policy.Ref, err error) {
	list := make([]owned, len(put))
	for i, one := range put {
		list[i] = owned{one, sourceAPI}
	}
	list, _, err = p.difference(sourceAPI, list, nil)
	for _, o := range list {
		changed = append(changed, o.Ref)
	}
	return changed, err
}

// before remembers what a change is about to replace.
func (p *policies) before(put []owned, del []policy.Ref) (out []trialBefore) {
	p.mu.Lock()
	defer p.mu.Unlock()
	refs := slices.Clone(del)
	for _, o := range put {
		refs = append(refs, o.Ref)
	}
	slices.SortFunc(refs, compareRefs)
	for _, r := range refs {
		b := trialBefore{Ref: r}
		if o, ok := p.want[r]; ok {
			b = trialBefore{Ref: r, Was: true, Source: o.source, File: o.File, Line: o.Line, YAML: o.YAML}
		}
		out = append(out, b)
	}
	return out
}

// Confirm makes the change on trial last. revision may be 0.
func (p *policies) Confirm(revision uint64) (*trial, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	t, err := p.named(revision, "confirm")
	if err != nil {
		return nil, err
	}
	if t.Ending || t.left(time.Now()) == 0 {
		return nil, fmt.Errorf("confirm revision %d: its time is over, it is being taken back: %w", t.Revision, errTrial)
	}
	if err := p.forget(t); err != nil {
		return nil, fmt.Errorf("confirm revision %d: it still waits: %w", t.Revision, err)
	}
	p.log.Info("change confirmed", "rev", t.Revision)
	return t, nil
}

// Rollback takes the change on trial back now.
func (p *policies) Rollback(ctx context.Context, revision uint64) (*trial, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	t, err := p.named(revision, "roll back")
	if err != nil {
		return nil, err
	}
	return t, p.takeBack(ctx, "rolled back by the user")
}

// named returns the trial if it is the one that is meant.
func (p *policies) named(revision uint64, verb string) (*trial, error) {
	t := p.Trial()
	if t == nil {
		return nil, fmt.Errorf("%s: no change of policies waits to be confirmed: %w", verb, errNoTrial)
	}
	if revision != 0 && t.Revision != revision {
		return nil, fmt.Errorf("%s revision %d: the change that waits is revision %d: %w", verb, revision, t.Revision, errNoTrial)
	}
	return t, nil
}

// takeBack puts in force what was before the trial. The caller has the turn. What does not work is tried again.
func (p *policies) takeBack(ctx context.Context, why string) error {
	p.mu.Lock()
	t := *p.trial
	if t.why == "" {
		t.why = why
		p.log.Info("change taken back", "rev", t.Revision, "why", why)
	}
	t.Ending = true
	p.trial = &t
	p.mu.Unlock()
	// Should the agent end in the middle, the next one goes on with it.
	recorded := p.record(&t)
	err := p.undo(ctx, &t)
	if err == nil {
		err = p.forget(&t)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("take revision %d back: %w", t.Revision, errors.Join(err, recorded))
	if t.err == nil {
		p.log.Error("change is not taken back yet; it is tried again", "rev", t.Revision, "err", err)
	}
	again := t
	again.err = err
	p.mu.Lock()
	p.trial = &again
	p.mu.Unlock()
	p.wakeUp()
	return err
}

// undo makes the policies of a trial what they were, in force and on disk.
func (p *policies) undo(ctx context.Context, t *trial) error {
	put, del, err := t.restored()
	if err != nil {
		return err
	}
	if _, _, err := p.changeNow(ctx, sourceAPI, put, del); err != nil {
		return err
	}
	return p.savedAll(t)
}

// savedAll tells whether the files of the policies of a trial are as they should be.
func (p *policies) savedAll(t *trial) error {
	p.resave()
	p.mu.Lock()
	defer p.mu.Unlock()
	for r := range p.unsaved {
		if t.touches(r) {
			return fmt.Errorf("%s is in force but not on disk: %w", r, p.saveErr)
		}
	}
	return nil
}

// restored is the change that takes a trial back.
func (t *trial) restored() (put []owned, del []policy.Ref, err error) {
	for _, b := range t.Before {
		if !b.Was {
			del = append(del, b.Ref)
			continue
		}
		one, err := parseAt(b.File, b.Line, []byte(b.YAML))
		if err != nil {
			return nil, nil, fmt.Errorf("%s as it was before: %w", b.Ref, err)
		}
		put = append(put, owned{one, b.Source})
	}
	return put, del, nil
}

// resume goes on with the trial that an earlier agent left, before the first change. One that waits goes on waiting; one
// whose time is over, or that was never acknowledged, is taken back before it comes into force again.
func (p *policies) resume() error {
	data, err := os.ReadFile(p.trialFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = endpoint.CheckOwned(p.trialFile(), false)
	}
	t := &trial{}
	if err == nil {
		t, err = readTrial(data)
	}
	if err != nil {
		bad := p.trialFile() + ".bad"
		p.mu.Lock()
		p.lost = fmt.Sprintf("a change of policies waited to be confirmed, but its record cannot be read (%v; kept as %s): what it changed stays; look whether it is what you want", err, bad)
		p.mu.Unlock()
		p.log.Error("record of a change on trial is of no use; the change stays", "err", err, "kept", bad)
		return os.Rename(p.trialFile(), bad)
	}
	t.ends = time.Now().Add(min(time.Until(t.Until), t.Window))
	if t.Revision != 0 && !t.Ending && t.left(time.Now()) > 0 {
		p.log.Info("change on trial still waits", "rev", t.Revision, "until", t.Until)
		p.mu.Lock()
		p.trial = t
		p.mu.Unlock()
		return nil
	}
	t.Ending, t.why = true, "its time ended while no agent ran"
	put, del, err := t.restored()
	if err != nil {
		return err
	}
	p.log.Info("change taken back", "rev", t.Revision, "why", t.why)
	p.mu.Lock()
	p.trial = t
	for _, o := range put {
		p.want[o.Ref], p.unsaved[o.Ref] = o, true
		delete(p.bad, p.saved.name(o.Ref))
	}
	for _, r := range del {
		delete(p.want, r)
		delete(p.bad, p.saved.name(r))
		p.unsaved[r] = true
	}
	p.mu.Unlock()
	if err = p.savedAll(t); err == nil {
		err = p.forget(t)
	}
	if err != nil {
		p.log.Error("change is not taken back on disk yet; it is tried again", "err", err)
	}
	return nil
}

// watchTrial takes the trial back when its time is over, and tries again what did not work, until ctx ends.
func (p *policies) watchTrial(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-timer.C:
			p.expire(ctx)
		}
		next := maxTrial
		if t := p.Trial(); t != nil && t.Ending {
			next = beginAgain
		} else if t != nil {
			next = min(t.left(time.Now()), time.Second) // the wall clock may be set
		}
		timer.Reset(next)
	}
}

// expire takes back a trial whose time is over, if it is still there.
func (p *policies) expire(ctx context.Context) {
	p.turn.Lock()
	defer p.turn.Unlock()
	if t := p.Trial(); t != nil && (t.Ending || t.left(time.Now()) == 0) {
		_ = p.takeBack(ctx, fmt.Sprintf("not confirmed within %s", t.Window)) // logged, and in the status
	}
}

func (p *policies) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Trial returns the change that waits to be confirmed; nil if there is none.
func (p *policies) Trial() *trial {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trial == nil {
		return nil
	}
	t := *p.trial
	return &t
}

// onTrial refuses a change while another one waits. Two that overlap could not be taken back one without the other.
func (p *policies) onTrial() error {
	t := p.Trial()
	switch {
	case t == nil:
		return nil
	case t.Ending:
		return fmt.Errorf("%w: revision %d is being taken back; try again in a moment", errTrial, t.Revision)
	}
	return fmt.Errorf("%w: revision %d waits %s more to be confirmed; first 'porin policy confirm %d' or 'porin policy rollback %d'",
		errTrial, t.Revision, t.left(time.Now()).Round(time.Second), t.Revision, t.Revision)
}

// alarm says what of a trial a person must see; empty if nothing.
func (t *trial) alarm() string {
	if t == nil || t.err == nil {
		return ""
	}
	return fmt.Sprintf("policies: %v; it is tried again every %s", t.err, beginAgain)
}

// trialFile is beside the folder of saved policies.
func (p *policies) trialFile() string { return p.saved.dir + ".trial" }

// record writes the trial so that a restart knows of it. The sum tells a whole file from one that was cut off.
func (p *policies) record(t *trial) error {
	text, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("record what was before: %w", err)
	}
	sum := sha256.Sum256(text)
	if err := durable.Replace(p.trialFile(), []byte(hex.EncodeToString(sum[:])+"\n"+string(text)+"\n")); err != nil {
		return fmt.Errorf("record what was before: %w", err)
	}
	return nil
}

func readTrial(data []byte) (*trial, error) {
	sum, text, _ := strings.Cut(strings.TrimSuffix(string(data), "\n"), "\n")
	if is := sha256.Sum256([]byte(text)); hex.EncodeToString(is[:]) != sum {
		return nil, errors.New("it was cut off or edited")
	}
	t := &trial{}
	if err := json.Unmarshal([]byte(text), t); err != nil {
		return nil, err
	}
	return t, nil
}

// forget ends the trial: its record first, so that nothing takes back what was confirmed.
func (p *policies) forget(*trial) error {
	if err := os.Remove(p.trialFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of the change: %w", err)
	}
	if err := durable.Sync(filepath.Dir(p.trialFile())); err != nil {
		return fmt.Errorf("remove the record of the change: %w", err)
	}
	p.mu.Lock()
	p.trial = nil
	p.mu.Unlock()
	return nil
}
