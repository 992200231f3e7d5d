package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
)

// kernel is what this room believes about the kernel's policy state. Guarded by the turn.
type kernel struct {
	known    map[identity.ID]labels.Labels   // identities that the engine knows
	departed map[identity.ID]struct{}        // of these, those that may be in the table no more
	prefixes map[netip.Prefix]identity.ID    // rows of prefixes
	leaving  map[netip.Prefix]leaving        // prefixes taken away, whose identities' rows stay for packets under way
	subjects map[policy.SubjectKey]*subject  // complete in the kernel, unless broken
	pointed  map[uint16][2]policy.SubjectKey // which ones each endpoint uses
	sources  map[policy.Ref]uint64           // revision with which a policy came
	ports    namedPorts
	revision uint64
}

type subject struct {
	refs   int
	broken bool // a patch did not succeed: nobody may use it before it is written anew
}

type leaving struct {
	id    identity.ID
	since time.Time
}

func newKernel() kernel {
	return kernel{
		known: map[identity.ID]labels.Labels{}, departed: map[identity.ID]struct{}{}, prefixes: map[netip.Prefix]identity.ID{}, leaving: map[netip.Prefix]leaving{},
		subjects: map[policy.SubjectKey]*subject{}, pointed: map[uint16][2]policy.SubjectKey{},
		sources: map[policy.Ref]uint64{}, ports: newNamedPorts(),
	}
}

// learn tells the engine of identities and gives the subjects in use their rows. No address has the new identities yet:
// that is what makes it safe. A subject that cannot take them would judge them by its rule for everyone else, so
// its endpoints are denied.
func (e *Endpoints) learn(ids ...identity.Identity) {
	var add []identity.Identity
	for _, id := range ids {
		if have, ok := e.kernel.known[id.ID]; !ok || !slices.Equal(have, id.Labels) {
			e.kernel.known[id.ID] = id.Labels
			add = append(add, id)
			if !e.inTable(id.ID) {
				e.kernel.departed[id.ID] = struct{}{} // it went meanwhile, and nobody will say so again
			}
		}
	}
	if len(add) > 0 {
		e.patch(e.deps.Policy.UpdateIdentities(add, nil))
	}
}

// unlearn is the reverse; no address has these identities any more.
func (e *Endpoints) unlearn(ids ...identity.ID) {
	for _, id := range ids {
		delete(e.kernel.known, id)
	}
	if len(ids) > 0 {
		e.patch(e.deps.Policy.UpdateIdentities(nil, ids))
	}
}

func (e *Endpoints) patch(patches []policy.Patch) {
	for _, p := range patches {
		s := e.kernel.subjects[p.Subject]
		if s == nil || s.broken {
			continue // not in use; written completely before it is
		}
		if err := e.deps.Datapath.PatchSubject(p); err != nil {
			s.broken = true
			e.lockUsers(p.Subject, fmt.Errorf("write policy rows of new identities: %w", err))
		}
	}
}

// lockUsers denies every endpoint that uses the subject.
func (e *Endpoints) lockUsers(key policy.SubjectKey, why error) {
	for id, keys := range e.kernel.pointed {
		if keys[0] != key && keys[1] != key {
			continue
		}
		if ep, ok := e.ByID(id); ok {
			e.lockdown(ep, why)
		}
	}
}

// lockdown denies everything from and to ep until a retry succeeds, and says why.
func (e *Endpoints) lockdown(ep Endpoint, why error) {
	if err := e.deps.Datapath.LockEndpoint(ep); err != nil {
		// It keeps the rules it had, and so do they keep their rows. That must not pass unseen.
		why = errors.Join(why, fmt.Errorf("deny its traffic: %w", err))
		e.log.Error("endpoint not denied", "ep", ep.ID, "dev", ep.Device, "err", err)
		e.alarm(lockAlarm(ep.ID), fmt.Sprintf("endpoint %d (%s) could not be denied and keeps its former rules: %v", ep.ID, ep.Name(), err))
	} else {
		e.alarm(lockAlarm(ep.ID), "")
		e.point(ep.ID, "", "")
	}
	ep.Phase, ep.Message, ep.Ingress, ep.Egress = NotReady, why.Error(), "", ""
	e.log.Warn("endpoint denied until a retry succeeds", "ep", ep.ID, "dev", ep.Device, "err", why)
	e.put(ep)
	e.later(ep.ID)
}

func lockAlarm(id uint16) string { return fmt.Sprintf("lock %d", id) }

// undenied tells whether an endpoint still has former rules because it could not be denied.
func (e *Endpoints) undenied() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for kind := range e.alarms {
		if strings.HasPrefix(kind, "lock ") {
			return true
		}
	}
	return false
}

// exposed is an error while an endpoint that could not be denied has a subject that could not be patched: it judges new
// identities as everyone else. None may get an address then.
func (e *Endpoints) exposed() error {
	if !e.undenied() {
		return nil
	}
	for id, keys := range e.kernel.pointed {
		ep, ok := e.ByID(id)
		if !ok || ep.Phase != NotReady {
			continue
		}
		for _, key := range keys {
			if s := e.kernel.subjects[key]; s == nil || s.broken {
				return fmt.Errorf("endpoint %d can neither learn of new identities nor be denied: %s", id, ep.Message)
			}
		}
	}
	return nil
}

// later plans the next retry of an endpoint.
func (e *Endpoints) later(id uint16) {
	e.noteOf(id, func(n *note) {
		wait := e.cfg.RetryMax
		if n.tries < 16 {
			wait = min(wait, e.cfg.RetryFirst<<n.tries)
		}
		n.tries++
		n.next = e.cfg.Now().Add(wait)
	})
	e.wake()
}

// identityOf is what ep's rules are resolved for.
func (e *Endpoints) identityOf(ep Endpoint) (identity.Identity, error) {
	if ep.Identity == identity.Unknown {
		return identity.Identity{}, errors.New("it has no identity yet")
	}
	if len(ep.Security) > 0 {
		return identity.Identity{ID: ep.Identity, Labels: ep.Security}, nil
	}
	if id, ok := e.deps.Identities.Get(ep.Identity); ok {
		return id, nil
	}
	return identity.Identity{}, fmt.Errorf("identity %d: its labels are not known", uint32(ep.Identity))
}

// subjectsOf resolves an identity's rules and writes them completely. Nothing uses them yet, unless it did before.
func (e *Endpoints) subjectsOf(id identity.Identity, own []policy.NamedPort) (ingress, egress *policy.Subject, err error) {
	e.learn(id)
	ingress, egress, err = e.deps.Policy.Resolve(id, own)
	if err != nil {
		return nil, nil, fmt.Errorf("resolve the policies of identity %d: %w", uint32(id.ID), err)
	}
	for _, s := range []*policy.Subject{ingress, egress} {
		known := e.kernel.subjects[s.Key]
		if known != nil && !known.broken {
			continue
		}
		if err := e.deps.Datapath.PutSubject(s); err != nil {
			if known == nil {
				e.deps.Policy.Forget(s.Key)
			}
			return nil, nil, fmt.Errorf("write the %s rules of identity %d: %w", s.Direction, uint32(id.ID), err)
		}
		if known == nil {
			known = &subject{}
			e.kernel.subjects[s.Key] = known
		}
		known.broken = false
	}
	return ingress, egress, nil
}

// flip points ep at its subjects with one write and makes it ready.
func (e *Endpoints) flip(ep Endpoint, ingress, egress *policy.Subject) (Endpoint, error) {
	ep.Ingress, ep.Egress = ingress.Key, egress.Key
	ep.Phase, ep.Message, ep.Revision = Ready, "", e.kernel.revision
	if err := e.deps.Datapath.WriteEndpoint(ep); err != nil {
		return ep, fmt.Errorf("write the endpoint's row: %w", err)
	}
	e.point(ep.ID, ep.Ingress, ep.Egress)
	e.alarm(lockAlarm(ep.ID), "")
	e.noteOf(ep.ID, func(n *note) {
		if n.tries, n.next = 0, (time.Time{}); n.unsaved {
			n.next = e.cfg.Now() // Run writes the state file
		}
	})
	return ep, nil
}

// point remembers which subjects an endpoint uses; empty keys: none.
func (e *Endpoints) point(id uint16, ingress, egress policy.SubjectKey) {
	for _, key := range e.kernel.pointed[id] {
		if s := e.kernel.subjects[key]; s != nil {
			s.refs--
		}
	}
	delete(e.kernel.pointed, id)
	if ingress == "" && egress == "" {
		return
	}
	e.kernel.pointed[id] = [2]policy.SubjectKey{ingress, egress}
	for _, key := range e.kernel.pointed[id] {
		if s := e.kernel.subjects[key]; s != nil {
			s.refs++
		}
	}
}

// commit ends a change: cached verdicts become stale, subjects that nobody uses are forgotten.
func (e *Endpoints) commit() error {
	err := e.deps.Datapath.Commit()
	if err != nil {
		err = fmt.Errorf("make cached verdicts stale: %w", err)
		e.alarm("commit", "established connections may still be judged by former rules: "+err.Error())
		e.wake()
	} else {
		e.alarm("commit", "")
	}
	for key, s := range e.kernel.subjects {
		if s.refs == 0 {
			delete(e.kernel.subjects, key)
			e.deps.Policy.Forget(key)
		}
	}
	return err
}

// owed tells whether a commit did not succeed yet.
func (e *Endpoints) owed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.alarms["commit"] != ""
}

// sortedPrefixes makes the order of writes the same for the same change.
func sortedPrefixes[V any](m map[netip.Prefix]V) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(m))
	for p := range m {
		out = append(out, p)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

// named completes a row that was rebuilt from the kernel with what its identity says about it.
func named(ep Endpoint, id identity.Identity) Endpoint {
	if ep.ContainerID == "" && len(ep.Security) == 0 {
		ep.Labels, ep.Security = id.Labels, id.Labels
		ep.Namespace, _ = id.Labels.Get(labels.SourceK8s, labels.KeyNamespace)
	}
	return ep
}
