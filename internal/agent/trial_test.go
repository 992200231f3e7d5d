package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"porin/internal/policy"
)

// try puts documents on trial for a minute, beginning with what is in force.
func (h *house) try(texts ...string) (*trial, error) {
	h.t.Helper()
	ps, err := policy.Parse("user.yaml", []byte(strings.Join(texts, "---\n")))
	if err != nil {
		h.t.Fatal(err)
	}
	return h.Try(h.t.Context(), ps, nil, time.Minute)
}

func (h *house) mustTry(texts ...string) *trial {
	h.t.Helper()
	t, err := h.try(texts...)
	if err != nil || t == nil {
		h.t.Fatal(t, err)
	}
	return t
}

// running runs the policies until the test or stop ends them.
func (h *house) running() (stop func()) {
	ctx, cancel := context.WithCancel(h.t.Context())
	done := make(chan struct{})
	p := h.policies
	go func() {
		defer close(done)
		_ = p.Run(ctx)
	}()
	return func() { cancel(); <-done }
}

// breaks makes every change fail with err, while the policies run.
func (h *house) breaks(err error) {
	h.turn.Lock()
	defer h.turn.Unlock()
	h.kernel.fail = err
}

// onDisk is what a new agent would put in force.
func (h *house) onDisk() string {
	h.t.Helper()
	good, bad, err := savedPolicies{h.dir}.load()
	if err != nil || len(bad) > 0 {
		h.t.Fatal(bad, err)
	}
	all := &fakeEnforcer{inForce: map[policy.Ref]*policy.Policy{}}
	for _, o := range good {
		all.inForce[o.Ref] = o.Policy
	}
	return all.names()
}

func (h *house) settled(names string) {
	h.t.Helper()
	h.want(names)
	if got := h.onDisk(); got != names {
		h.t.Errorf("on disk: %q, want %q", got, names)
	}
	if t := h.Trial(); t != nil {
		h.t.Errorf("still on trial: %+v", t)
	}
	if _, err := os.Stat(h.trialFile()); !errors.Is(err, os.ErrNotExist) {
		h.t.Errorf("record of the trial: %v", err)
	}
}

// TestTrialIsTakenBackWhenItsTimeIsOver: not earlier, and whole: changed, new and deleted policies.
func TestTrialIsTakenBackWhenItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, false)
		if err := errors.Join(h.apply(doc("a", 80)), h.apply(doc("gone", 70))); err != nil {
			t.Fatal(err)
		}
		stop := h.running()
		defer stop()
		ps, err := policy.Parse("user.yaml", []byte(doc("a", 81)+"---\n"+doc("b", 90)))
		if err != nil {
			t.Fatal(err)
		}
		tr, err := h.Try(t.Context(), ps, []policy.Ref{{Kind: policy.KindNetworkPolicy, Namespace: "default", Name: "gone"}}, time.Minute)
		if err != nil || tr.Revision != 4 || tr.left(time.Now()) != time.Minute || len(tr.Before) != 3 {
			t.Fatalf("%+v, %v", tr, err)
		}
		<-time.After(time.Minute - time.Nanosecond)
		synctest.Wait()
		h.want("a:81 b:90")
		<-time.After(time.Second)
		synctest.Wait()
		h.settled("a:80 gone:70")
		if _, err := h.Confirm(0); !errors.Is(err, errNoTrial) {
			t.Errorf("confirmed too late: %v", err)
		}
		if err := h.apply(doc("a", 82)); err != nil {
			t.Errorf("the next change: %v", err)
		}
	})
}

func TestTrialStaysWhenItIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, false)
		stop := h.running()
		tr := h.mustTry(doc("a", 80), doc("b", 90))
		if _, err := h.Confirm(tr.Revision + 1); !errors.Is(err, errNoTrial) || h.Trial() == nil {
			t.Errorf("another revision confirmed: %v", err)
		}
		if _, err := h.Confirm(tr.Revision); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * time.Minute)
		synctest.Wait()
		h.settled("a:80 b:90")
		stop()
		h.restart()
		h.settled("a:80 b:90")
	})
}

func TestTrialOfNothingNew(t *testing.T) {
	h := newHouse(t, false)
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	if tr, err := h.try(doc("a", 80)); tr != nil || err != nil {
		t.Errorf("%+v, %v", tr, err)
	}
	h.settled("a:80")
}

func TestTrialIsRolledBackOnDemand(t *testing.T) {
	h := newHouse(t, false)
	h.mustTry(doc("a", 80))
	if tr, err := h.Rollback(t.Context(), 0); err != nil || tr.Revision != 2 {
		t.Fatal(tr, err)
	}
	h.settled("")
	if _, err := h.Rollback(t.Context(), 0); !errors.Is(err, errNoTrial) {
		t.Errorf("twice: %v", err)
	}
}

// TestTrialKeepsOtherChangesOut: those of the API all, and a watched file only where it would be in the way.
func TestTrialKeepsOtherChangesOut(t *testing.T) {
	h := newHouse(t, true)
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	h.mustTry(doc("b", 90))
	h.write("b.yaml", doc("b", 91))
	h.write("c.yaml", doc("c", 95))
	h.scanned()
	_, again := h.try(doc("c", 1))
	_, _, deleted := h.Delete(t.Context(), []policy.Ref{{Kind: policy.KindNetworkPolicy, Namespace: "default", Name: "a"}})
	_, _, all := h.DeleteAll(t.Context())
	for what, err := range map[string]error{"apply": h.apply(doc("a", 81)), "another trial": again, "delete": deleted, "delete all": all} {
		if !errors.Is(err, errTrial) || !strings.Contains(err.Error(), "porin policy confirm 3") {
			t.Errorf("%s: %v", what, err)
		}
	}
	h.want("a:80 b:90 c:95")
	if alarms := strings.Join(h.Alarms(), "\n"); !strings.Contains(alarms, "b.yaml refused") {
		t.Errorf("alarms: %s", alarms)
	}
	if _, err := h.Rollback(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	h.scanned()
	h.want("a:80 b:91 c:95")
}

// TestTrialOfADeletionKeepsTheFolderOut: what is gone on trial belongs to nobody, and would come back over another's.
func TestTrialOfADeletionKeepsTheFolderOut(t *testing.T) {
	h := newHouse(t, true)
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Try(t.Context(), nil, []policy.Ref{{Kind: policy.KindNetworkPolicy, Namespace: "default", Name: "a"}}, time.Minute); err != nil {
		t.Fatal(err)
	}
	h.write("a.yaml", doc("a", 81))
	h.scanned()
	h.want("")
	if alarms := strings.Join(h.Alarms(), "\n"); !strings.Contains(alarms, "a.yaml refused") {
		t.Errorf("alarms: %s", alarms)
	}
	if _, err := h.Rollback(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	h.want("a:80")
}

// TestTrialIsRememberedUntilItIsUndoneOnDisk: what was before is in force, but the next agent would read what was on trial.
func TestTrialIsRememberedUntilItIsUndoneOnDisk(t *testing.T) {
	h := newHouse(t, false)
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	h.mustTry(doc("a", 81))
	away := h.dir + ".away" // the disk takes no policy, but records
	if err := os.Rename(h.dir, away); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Rollback(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "in force but not on disk") {
		t.Errorf("rolled back without a disk: %v", err)
	}
	h.want("a:80")
	if tr := h.Trial(); tr == nil || !tr.Ending {
		t.Errorf("the trial is forgotten: %+v", tr)
	}
	if err := os.Rename(away, h.dir); err != nil {
		t.Fatal(err)
	}
	h.restart()
	h.settled("a:80")
}

// TestTrialRecordOfOthers: who could write the record could bring any policy.
func TestTrialRecordOfOthers(t *testing.T) {
	h := newHouse(t, false)
	h.mustTry(doc("a", 80))
	if err := os.Chmod(h.trialFile(), 0o666); err != nil {
		t.Fatal(err)
	}
	h.restart()
	h.want("a:80")
	if alarms := strings.Join(h.Alarms(), "\n"); !strings.Contains(alarms, "can be written by others") || h.Trial() != nil {
		t.Errorf("alarms: %s, trial %v", alarms, h.Trial())
	}
}

// TestTrialOutlivesTheAgent: a new agent goes on with what waits, and takes back what waited too long, before it is in
// force again.
func TestTrialOutlivesTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, false)
		if err := h.apply(doc("a", 80)); err != nil {
			t.Fatal(err)
		}
		tr := h.mustTry(doc("a", 81), doc("b", 90))
		<-time.After(30 * time.Second)
		h.restart()
		h.want("a:81 b:90")
		if now := h.Trial(); now == nil || now.Revision != tr.Revision || now.left(time.Now()) != 30*time.Second {
			t.Fatalf("after a restart: %+v", now)
		}
		if err := h.apply(doc("a", 82)); !errors.Is(err, errTrial) {
			t.Errorf("apply: %v", err)
		}
		stop := h.running()
		<-time.After(31 * time.Second)
		synctest.Wait()
		h.settled("a:80")
		stop()

		h.mustTry(doc("a", 83))
		<-time.After(time.Hour)
		h.restart()
		h.settled("a:80")
		if h.kernel.rev != 1 {
			t.Errorf("%d changes to take back what nobody confirmed: it was in force again", h.kernel.rev)
		}
	})
}

// TestTrialAndTheEndOfTheAgent: whenever the agent is killed, before the caller knew of the trial or while it is taken
// back, a new one has what was there before.
func TestTrialAndTheEndOfTheAgent(t *testing.T) {
	for _, c := range []struct {
		name string
		act  func(h *house)
	}{
		{"while it comes into force", func(h *house) { h.mustTry(doc("a", 81), doc("b", 90)) }},
		{"while it is taken back", func(h *house) {
			during := h.kernel.during
			h.kernel.during = nil
			h.mustTry(doc("a", 81), doc("b", 90))
			h.kernel.during = during
			if _, err := h.Rollback(h.t.Context(), 0); err != nil {
				h.t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHouse(t, false)
			if err := h.apply(doc("a", 80)); err != nil {
				t.Fatal(err)
			}
			copied := filepath.Join(filepath.Dir(h.dir), "killed")
			h.kernel.during = func() {
				if err := errors.Join(os.CopyFS(copied, os.DirFS(h.dir)), os.Link(h.dir+".trial", copied+".trial")); err != nil {
					t.Fatal(err)
				}
			}
			c.act(h)
			if err := os.Chmod(copied, 0o700); err != nil {
				t.Fatal(err)
			}
			files, _ := filepath.Glob(filepath.Join(copied, "*"))
			for _, f := range files {
				if err := os.Chmod(f, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			h.dir = copied
			h.restart()
			h.settled("a:80")
		})
	}
}

// TestTrialThatCannotBeTakenBackIsTriedAgain, and says so meanwhile.
func TestTrialThatCannotBeTakenBackIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, false)
		if err := h.apply(doc("a", 80)); err != nil {
			t.Fatal(err)
		}
		stop := h.running()
		defer stop()
		h.mustTry(doc("a", 81))
		h.breaks(errors.New("the map is busy"))
		<-time.After(61 * time.Second)
		synctest.Wait()
		if alarms := strings.Join(h.Alarms(), "\n"); !strings.Contains(alarms, "take revision 3 back: the map is busy") {
			t.Errorf("alarms: %s", alarms)
		}
		if _, err := h.Confirm(0); !errors.Is(err, errTrial) {
			t.Errorf("confirmed while it is taken back: %v", err)
		}
		h.breaks(nil)
		<-time.After(beginAgain + time.Second)
		synctest.Wait()
		h.settled("a:80")
		if n := len(h.Alarms()); n > 0 {
			t.Errorf("alarms: %v", h.Alarms())
		}
	})
}

// TestTrialNeedsItsRecord: without what was before on disk nothing is tried.
func TestTrialNeedsItsRecord(t *testing.T) {
	h := newHouse(t, false)
	if err := os.MkdirAll(filepath.Join(h.trialFile(), "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if tr, err := h.try(doc("a", 80)); tr != nil || err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("%+v, %v", tr, err)
	}
	h.want("")
}

func TestTrialWithABrokenRecord(t *testing.T) {
	h := newHouse(t, false)
	h.mustTry(doc("a", 80))
	data, err := os.ReadFile(h.trialFile())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.trialFile(), data[:len(data)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	h.restart()
	h.want("a:80")
	if alarms := strings.Join(h.Alarms(), "\n"); !strings.Contains(alarms, "its record cannot be read (it was cut off or edited; kept as ") {
		t.Errorf("alarms: %s", alarms)
	}
	if _, err := os.Stat(h.trialFile() + ".bad"); err != nil {
		t.Error(err)
	}
}

// TestTrialIsRefusedWhereNothingChanged: the kernel did not take it, or saved policies are held back.
func TestTrialIsRefusedWhereNothingChanged(t *testing.T) {
	h := newHouse(t, false)
	if err := h.apply(doc("a", 80)); err != nil {
		t.Fatal(err)
	}
	h.kernel.fail = errors.New("no room")
	if tr, err := h.try(doc("a", 81)); tr != nil || err == nil {
		t.Errorf("%+v, %v", tr, err)
	}
	h.kernel.fail = nil
	h.settled("a:80")

	if err := os.WriteFile(filepath.Join(h.dir, "CiliumNetworkPolicy_default_x.yaml"), []byte("cut"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.restart()
	if tr, err := h.try(doc("a", 81)); tr != nil || !errors.Is(err, errHeld) {
		t.Errorf("%+v, %v", tr, err)
	}
}

// TestTrialTime: neither a clock that is set back nor one that stood still makes it longer.
func TestTrialTime(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name         string
		until, ends  time.Duration
		want, window time.Duration
	}{
		{"both clocks alike", 40 * time.Second, 40 * time.Second, 40 * time.Second, time.Minute},
		{"set back by an hour", time.Hour, 40 * time.Second, 40 * time.Second, time.Minute},
		{"slept", -time.Hour, 40 * time.Second, 0, time.Minute},
		{"over", 40 * time.Second, -time.Second, 0, time.Minute},
	} {
		tr := &trial{Until: now.Round(0).Add(c.until), ends: now.Add(c.ends), Window: c.window}
		if got := tr.left(now); got != c.want {
			t.Errorf("%s: %s left, want %s", c.name, got, c.want)
		}
	}
}
