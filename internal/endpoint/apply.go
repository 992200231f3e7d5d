package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"porin/internal/identity"
	"porin/internal/labels"
	"porin/internal/policy"
)

// ApplyPolicies puts policies in force and takes others out as one change, and returns its revision. The first call
// after a start must bring all of them: endpoints keep what the kernel has until then.
//
// Every packet is judged by the rules before or those after, because of the order of writes:
//
//	new CIDRs get identities; the subjects in use get their rows   (no address has these identities yet)
//	prefixes rows are written, commit                              (same verdict under either identity, old rules)
//	new subjects are written completely                            (nobody uses them yet)
//	each endpoint's row is flipped with one write, commit          (old rules before, new rules after)
//	prefixes that no rule needs are taken away, commit             (same verdict under either identity, new rules)
//	a grace period later, the rows of their identities             (no packet under way holds them any more)
//
// An error with revision 0 means that nothing has changed. An endpoint that cannot take the new rules is denied
// all traffic, shows why in its row, and is retried; that is no error of the change.
func (e *Endpoints) ApplyPolicies(ctx context.Context, put []*policy.Policy, del []policy.Ref) (revision uint64, err error) {
	if err := e.take(ctx); err != nil {
		return 0, fmt.Errorf("apply %d policies: %w", len(put), err)
	}
	defer e.give()
	wanted := map[netip.Prefix]bool{}
	for _, p := range e.deps.Policy.CIDRs(merge(e.deps.Policy.Policies(), put, del)) {
		wanted[p] = true
	}
	if err := e.addPrefixes(wanted); err != nil {
		return 0, fmt.Errorf("apply %d policies: %w; nothing has changed", len(put), err)
	}

	rev := e.kernel.revision + 1
	e.kernel.revision = rev
	e.deps.Policy.UpdatePolicies(put, del)
	denied := e.regenerate()
	err = e.commit()

	if gone := e.dropPrefixes(wanted); gone {
		err = errors.Join(err, e.commit())
	}
	e.record(put, del)
	e.mu.Lock()
	e.revision.Store(rev)
	close(e.newer)
	e.newer = make(chan struct{})
	e.mu.Unlock()
	select {
	case <-e.begun:
	default:
		close(e.begun)
	}
	e.log.Info("policies in force", "rev", rev, "put", len(put), "deleted", len(del), "denied", denied)
	if err != nil {
		return rev, fmt.Errorf("apply %d policies: in force for new connections: %w", len(put), err)
	}
	return rev, nil
}

// record brings the policies table up to date.
func (e *Endpoints) record(put []*policy.Policy, del []policy.Ref) {
	for _, r := range del {
		delete(e.kernel.sources, r)
	}
	for _, p := range put {
		e.kernel.sources[p.Ref] = e.kernel.revision
	}
	var gone []string
	for _, r := range del {
		gone = append(gone, refKey(r))
	}
	e.refs.Update(e.policyRows(), gone...)
}

// policyRows are the rows of the policies table as they should be.
func (e *Endpoints) policyRows() []PolicyRow {
	type group struct {
		labels labels.Labels
		n      int
	}
	alike := map[identity.ID]*group{} // endpoints of one identity are selected together
	for _, ep := range e.rows.List() {
		if alike[ep.Identity] == nil {
			alike[ep.Identity] = &group{labels: ep.Security}
		}
		alike[ep.Identity].n++
	}
	var rows []PolicyRow
	for _, p := range e.deps.Policy.Policies() {
		row := PolicyRow{Ref: p.Ref, Source: p.File, Revision: e.kernel.sources[p.Ref], Rules: len(p.Rules)}
		for _, g := range alike {
			if selects(p, g.labels) {
				row.Endpoints += g.n
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// recount brings the numbers of endpoints in the policies table up to date.
func (e *Endpoints) recount(ctx context.Context) {
	if e.take(ctx) != nil {
		return
	}
	defer e.give()
	var changed []PolicyRow
	for _, row := range e.policyRows() {
		if old, ok := e.refs.Get(refKey(row.Ref)); ok && old != row {
			changed = append(changed, row)
		}
	}
	if len(changed) > 0 {
		e.refs.Update(changed)
	}
}

// selects tells whether a policy takes part in the verdicts of workloads with these labels.
func selects(p *policy.Policy, ls labels.Labels) bool {
	if ns, _ := ls.Get(labels.SourceK8s, labels.KeyNamespace); p.Namespace != "" && ns != p.Namespace {
		return false
	}
	return slices.ContainsFunc(p.Rules, func(r *policy.Rule) bool { return !r.Nodes && r.Subject.Matches(ls) })
}

// Revision of the policies in force.
func (e *Endpoints) Revision() uint64 { return e.revision.Load() }

// WaitRevision returns once every endpoint enforces revision rev or a later one; 0 means the newest now.
func (e *Endpoints) WaitRevision(ctx context.Context, rev uint64) error {
	if rev == 0 {
		rev = e.Revision()
	}
	for {
		e.mu.Lock()
		newer := e.newer
		e.mu.Unlock()
		rows, _, changed := e.rows.Watch()
		behind := lagging(rows, rev)
		if now := e.Revision(); now < rev {
			behind = append(behind, fmt.Sprintf("the node, at revision %d", now))
		}
		if len(behind) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-newer:
		case <-ctx.Done():
			return fmt.Errorf("wait for policy revision %d; behind: %s: %w", rev, strings.Join(behind, ", "), context.Cause(ctx))
		}
	}
}

func lagging(rows []Endpoint, rev uint64) (behind []string) {
	for _, ep := range rows {
		if ep.settled() && (ep.Revision < rev || ep.Phase != Ready) {
			behind = append(behind, fmt.Sprintf("endpoint %d (%s, revision %d) %s", ep.ID, ep.Phase, ep.Revision, ep.Message))
		}
	}
	return behind
}

// merge returns the policies as they will be.
func merge(now, put []*policy.Policy, del []policy.Ref) []*policy.Policy {
	gone := map[policy.Ref]bool{}
	for _, r := range del {
		gone[r] = true
	}
	for _, p := range put {
		gone[p.Ref] = true
	}
	out := make([]*policy.Policy, 0, len(now)+len(put))
	for _, p := range now {
		if !gone[p.Ref] {
			out = append(out, p)
		}
	}
	return append(out, put...)
}

// addPrefixes gives every wanted prefix that is new an identity, rows in the subjects in use, and its prefixes row.
// On error nothing stays.
func (e *Endpoints) addPrefixes(wanted map[netip.Prefix]bool) error {
	fresh := map[netip.Prefix]identity.ID{}
	var ids []identity.Identity
	for _, p := range sortedPrefixes(wanted) {
		if id := e.kernel.prefixes[p]; id != identity.Unknown {
			continue
		}
		if l, ok := e.kernel.leaving[p]; ok { // its identity and rows are still there
			fresh[p] = l.id
			continue
		}
		id, _, err := e.deps.Identities.AllocateCIDR(p)
		if err != nil {
			for _, id := range ids { // nobody was told of them yet
				e.deps.Identities.ReleaseCIDR(id.Prefix)
			}
			return fmt.Errorf("identity for %s: %w", p, err)
		}
		fresh[p] = id.ID
		ids = append(ids, id)
	}
	if len(fresh) == 0 {
		return nil
	}
	e.learn(ids...)
	if err := e.exposed(); err != nil {
		e.leave(fresh)
		return err
	}
	if err := e.deps.Datapath.PutPrefixes(fresh); err != nil {
		err = fmt.Errorf("write %d CIDRs: %w", len(fresh), err)
		if back := e.deps.Datapath.DeletePrefixes(sortedPrefixes(fresh)); back != nil {
			// Rows without harm: under the old rules they give the same verdicts. They are owed to the next change.
			for p, id := range fresh {
				e.kernel.prefixes[p] = id
				delete(e.kernel.leaving, p)
			}
			return errors.Join(err, fmt.Errorf("take them back: %w", back))
		}
		e.leave(fresh) // some were there for a moment: packets under way may hold their identities
		return err
	}
	for p, id := range fresh {
		e.kernel.prefixes[p] = id
		delete(e.kernel.leaving, p)
	}
	// Without it a cached verdict stays, which is that of the old rules too; the commit at the end tries again.
	if err := e.commit(); err != nil {
		e.log.Warn("cached verdicts are not stale yet", "err", err)
	}
	return nil
}

// leave lets the identities of prefixes without rows rest for the grace period before they are released.
func (e *Endpoints) leave(ps map[netip.Prefix]identity.ID) {
	for p, id := range ps {
		e.kernel.leaving[p] = leaving{id, e.cfg.Now()}
	}
	e.wake()
}

// dropPrefixes takes away the prefixes that no rule needs. Their identities' rows stay for the grace period.
func (e *Endpoints) dropPrefixes(wanted map[netip.Prefix]bool) bool {
	var gone []netip.Prefix
	for _, p := range sortedPrefixes(e.kernel.prefixes) {
		if !wanted[p] {
			gone = append(gone, p)
		}
	}
	if len(gone) == 0 || e.undenied() { // former rules may need them to mean what they meant
		return false
	}
	if err := e.deps.Datapath.DeletePrefixes(gone); err != nil {
		// Harmless for verdicts: their identities stay known. The next change tries again.
		e.log.Warn("prefixes not taken away", "count", len(gone), "err", err)
		e.alarm("prefixes", fmt.Sprintf("%d CIDRs that no policy needs are still in the kernel: %v", len(gone), err))
		return false
	}
	e.alarm("prefixes", "")
	for _, p := range gone {
		if id := e.kernel.prefixes[p]; id != identity.Unknown {
			e.kernel.leaving[p] = leaving{id, e.cfg.Now()}
		}
		delete(e.kernel.prefixes, p)
	}
	e.wake()
	return true
}

// sweepPrefixes releases the identities of prefixes that left a grace period ago, and tells whether some are still to
// be released.
func (e *Endpoints) sweepPrefixes() (more bool) {
	var back []identity.ID
	for _, p := range sortedPrefixes(e.kernel.leaving) {
		l := e.kernel.leaving[p]
		if e.cfg.Now().Sub(l.since) < e.cfg.Grace {
			more = true
			continue
		}
		delete(e.kernel.leaving, p)
		if id, last := e.deps.Identities.ReleaseCIDR(p); last {
			back = append(back, id)
		}
	}
	e.unlearn(back...)
	return more
}

// regenerate resolves the rules of every endpoint anew: first all subjects are written, then the endpoints are flipped.
// It returns how many endpoints had to be denied.
func (e *Endpoints) regenerate() (denied int) {
	type resolved struct {
		id              identity.Identity
		ingress, egress *policy.Subject
		err             error
	}
	rows := slices.DeleteFunc(e.rows.List(), func(ep Endpoint) bool { return !ep.settled() || e.blocked(ep.ID) })
	type alike struct { // endpoints of one identity, with the same named ports, have the same rules
		id    identity.ID
		ports string
	}
	same := func(ep Endpoint) alike { return alike{ep.Identity, fmt.Sprint(ep.NamedPorts)} }
	for _, ep := range rows {
		e.namePorts(ep)
	}
	subjects := map[alike]resolved{}
	for _, ep := range rows {
		if _, done := subjects[same(ep)]; done {
			continue
		}
		id, err := e.identityOf(ep)
		r := resolved{id: id, err: err}
		if err == nil {
			r.ingress, r.egress, r.err = e.subjectsOf(id, ep.NamedPorts)
		}
		subjects[same(ep)] = r
	}
	var ready []Endpoint
	for _, ep := range rows {
		r := subjects[same(ep)]
		// Writing one identity's subjects may have denied endpoints by the way; their rows are read again.
		if now, ok := e.ByID(ep.ID); ok {
			ep = now
		}
		if r.err != nil {
			e.lockdown(ep, r.err)
			denied++
			continue
		}
		if ep.Phase == Ready && ep.Ingress == r.ingress.Key && ep.Egress == r.egress.Key {
			ep.Revision = e.kernel.revision
			ready = append(ready, ep)
			continue
		}
		was := ep.Phase
		ep, err := e.flip(named(ep, r.id), r.ingress, r.egress)
		if err != nil {
			e.lockdown(ep, err)
			denied++
			continue
		}
		if was != Ready {
			e.put(ep) // with a line in its log
		} else {
			ready = append(ready, ep)
		}
	}
	e.rows.Update(ready)
	return denied
}

// settled tells whether the kernel has, or should have, rules for ep.
func (ep Endpoint) settled() bool {
	return ep.Phase == Ready || ep.Phase == NotReady || ep.Phase == Restoring
}

func (e *Endpoints) blocked(id uint16) (yes bool) {
	e.noteOf(id, func(n *note) { yes = n.blocked })
	return yes
}
