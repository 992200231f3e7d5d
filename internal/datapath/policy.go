package datapath

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"porin/bpf"
	"porin/internal/identity"
	"porin/internal/policy"
)

// policyMaps keeps policy_peers, policy_ports and policy_ranges equal to the subjects it was given.
//
//	endpoints row --subject id--> policy_peers rows --table id--> policy_ports, policy_ranges rows
//
// Rows are written from right to left and freed from left to right, so no packet finds an id that leads nowhere. Ids only
// grow: a packet that still holds an old one finds its rows or none, never those of another.
type policyMaps struct {
	cfg    Config
	peers  table[bpf.PolicyPeerKey, bpf.PolicyPeer]
	ports  table[bpf.PolicyPortKey, bpf.PolicyVerdict]
	ranges table[bpf.PolicyRangeKey, bpf.PolicyVerdict]

	mu          sync.Mutex
	subjects    map[policy.SubjectKey]*subject
	tables      map[string]*verdicts
	nextSubject uint32
	nextTable   uint32
	orphans     bool // rows of a former agent may be left
}

// subject is one that stands in the maps.
type subject struct {
	id     uint32
	key    policy.SubjectKey
	cookie policy.Cookie
	peers  map[identity.ID]*verdicts
	other  *verdicts
	users  int       // endpoints rows
	ever   bool      // an endpoint used it once
	put    time.Time // last asked for: an endpoint may be about to point to it
	left   time.Time // when the last user left
}

// verdicts is a verdict table that stands in the maps.
type verdicts struct {
	id     uint32 // 0: the table has no row and needs none
	key    string
	rows   tableRows
	flags  uint32 // bpf.Table*
	users  int    // policy_peers rows
	unused time.Time
}

func newPolicyMaps(cfg Config, ms map[string]*ebpf.Map) *policyMaps {
	return &policyMaps{
		cfg:         cfg,
		peers:       tableOf[bpf.PolicyPeerKey, bpf.PolicyPeer](ms, mapPolicyPeers),
		ports:       tableOf[bpf.PolicyPortKey, bpf.PolicyVerdict](ms, mapPolicyPorts),
		ranges:      tableOf[bpf.PolicyRangeKey, bpf.PolicyVerdict](ms, mapPolicyRanges),
		subjects:    map[policy.SubjectKey]*subject{},
		tables:      map[string]*verdicts{},
		nextSubject: 1, nextTable: 1,
	}
}

// restore finds the highest ids in use: what a former agent wrote stays in force until endpoints point elsewhere.
func (p *policyMaps) restore() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.peers.each(func(keys []bpf.PolicyPeerKey, values []bpf.PolicyPeer) error {
		for i, k := range keys {
			p.orphans = true
			p.nextSubject = max(p.nextSubject, k.Subject+1)
			p.nextTable = max(p.nextTable, values[i].Table+1)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := p.ports.each(func(keys []bpf.PolicyPortKey, _ []bpf.PolicyVerdict) error {
		for _, k := range keys {
			p.orphans = true
			p.nextTable = max(p.nextTable, k.Table+1)
		}
		return nil
	}); err != nil {
		return err
	}
	return p.ranges.each(func(keys []bpf.PolicyRangeKey, _ []bpf.PolicyVerdict) error {
		for _, k := range keys {
			p.orphans = true
			p.nextTable = max(p.nextTable, k.Table+1)
		}
		return nil
	})
}

// put writes s completely, or nothing of it.
func (p *policyMaps) put(s *policy.Subject, now time.Time) error {
	if s.Else == nil {
		return fmt.Errorf("subject %s: it has no table for everyone else", s.Key)
	}
	if _, ok := s.Peers[identity.Unknown]; ok {
		return fmt.Errorf("subject %s: identity 0 means everyone else and cannot be a peer", s.Key)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if sub := p.subjects[s.Key]; sub != nil {
		sub.put = now
		var gone []identity.ID
		for id := range sub.peers {
			if s.Peers[id] == nil {
				gone = append(gone, id)
			}
		}
		return p.change(sub, s.Peers, gone, now)
	}
	sub := &subject{id: p.nextSubject, key: s.Key, cookie: s.Default, peers: map[identity.ID]*verdicts{}, put: now}
	p.nextSubject++ // never taken back: an id that failed may have been seen by nobody, but costs nothing
	other, err := p.ensureTable(s.Else)
	if err != nil {
		return err
	}
	if err := p.change(sub, s.Peers, nil, now); err != nil {
		p.release(other, now)
		return err
	}
	// the row of everyone else makes the subject usable, so it is last
	if err := p.peers.put(bpf.PolicyPeerKey{Subject: sub.id}, sub.row(other)); err != nil {
		p.release(other, now)
		return errors.Join(err, p.clearPeers(sub, now))
	}
	sub.other = other
	p.subjects[s.Key] = sub
	return nil
}

// patch changes rows of a subject in place. One that nobody put, or that was freed, has no endpoint: nothing to do.
func (p *policyMaps) patch(c policy.Patch, now time.Time) error {
	if _, ok := c.Put[identity.Unknown]; ok {
		return fmt.Errorf("subject %s: identity 0 means everyone else and cannot be a peer", c.Subject)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	sub := p.subjects[c.Subject]
	if sub == nil {
		return nil
	}
	return p.change(sub, c.Put, c.Delete, now)
}

// change makes the rows of put and removes those of gone. On error the subject is as it was.
func (p *policyMaps) change(sub *subject, put map[identity.ID]*policy.Table, gone []identity.ID, now time.Time) (err error) {
	type step struct {
		id            identity.ID
		before, after *verdicts
		written       bool
	}
	var steps []step
	key := func(id identity.ID) bpf.PolicyPeerKey {
		return bpf.PolicyPeerKey{Subject: sub.id, Identity: uint32(id)}
	}
	defer func() {
		if err == nil {
			return
		}
		for _, s := range steps {
			switch {
			case s.written && s.before == nil:
				err = errors.Join(err, p.peers.del(key(s.id)))
			case s.written:
				err = errors.Join(err, p.peers.put(key(s.id), sub.row(s.before)))
			}
			p.release(s.after, now)
		}
	}()
	for id, t := range put {
		if t == nil {
			return fmt.Errorf("subject %s: identity %s has no table", sub.key, id)
		}
		before := sub.peers[id]
		if before != nil && before.key == t.Key {
			continue
		}
		after, err := p.ensureTable(t)
		if err != nil {
			return err
		}
		steps = append(steps, step{id, before, after, false})
	}
	var keys []bpf.PolicyPeerKey // new rows go in one batch
	var rows []bpf.PolicyPeer
	for i, s := range steps {
		if s.before == nil {
			keys, rows = append(keys, key(s.id)), append(rows, sub.row(s.after))
			continue
		}
		if err := p.peers.put(key(s.id), sub.row(s.after)); err != nil {
			return err
		}
		steps[i].written = true
	}
	if err := p.peers.putAll(keys, rows); err != nil {
		return err
	}
	for i := range steps {
		steps[i].written = true
	}
	for i, id := range gone {
		if sub.peers[id] == nil {
			continue
		}
		if err := p.peers.del(key(id)); err != nil {
			for _, id := range gone[:i] {
				if before := sub.peers[id]; before != nil {
					err = errors.Join(err, p.peers.put(key(id), sub.row(before)))
				}
			}
			return err
		}
	}
	for _, s := range steps {
		p.release(s.before, now)
		sub.peers[s.id] = s.after
	}
	for _, id := range gone {
		p.release(sub.peers[id], now)
		delete(sub.peers, id)
	}
	return nil
}

func (s *subject) row(t *verdicts) bpf.PolicyPeer {
	return bpf.PolicyPeer{Table: t.id, Cookie: uint32(s.cookie), Flags: t.flags}
}

// flags tells the programs which probes of the table find something.
func (r *tableRows) flags() uint32 {
	flags := bpf.TableNoPorts | bpf.TableNoProtos
	if len(r.ranges) > 0 {
		flags |= bpf.TableRanges
	}
	for _, k := range r.ports {
		switch {
		case k.Wild == 0:
			flags &^= bpf.TableNoPorts
		case k.Proto != 0:
			flags &^= bpf.TableNoProtos
		}
	}
	return flags
}

// ensureTable returns the table with the content of t, written if it was not there, with one more user.
func (p *policyMaps) ensureTable(t *policy.Table) (*verdicts, error) {
	v := p.tables[t.Key]
	if v == nil {
		v = &verdicts{key: t.Key}
		if len(t.Rows) > 0 {
			v.id = p.nextTable
			p.nextTable++
			var err error
			if v.rows, err = rowsOf(v.id, t); err != nil {
				return nil, err
			}
			if err := v.rows.write(p); err != nil {
				return nil, err
			}
			v.flags = v.rows.flags()
		}
		p.tables[t.Key] = v
	}
	v.users++
	return v, nil
}

func (p *policyMaps) release(v *verdicts, now time.Time) {
	if v == nil {
		return
	}
	if v.users--; v.users == 0 {
		v.unused = now
	}
}

func (p *policyMaps) clearPeers(sub *subject, now time.Time) error {
	keys := make([]bpf.PolicyPeerKey, 0, len(sub.peers))
	for id, v := range sub.peers {
		keys = append(keys, bpf.PolicyPeerKey{Subject: sub.id, Identity: uint32(id)})
		p.release(v, now)
	}
	clear(sub.peers)
	return p.peers.delAll(keys)
}

// use counts an endpoints row that points to the subject; it returns 0 and false if the subject is not in the maps.
func (p *policyMaps) use(key policy.SubjectKey) (id uint32, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sub := p.subjects[key]
	if sub == nil {
		return 0, false
	}
	sub.users++
	sub.ever = true
	return sub.id, true
}

func (p *policyMaps) unuse(key policy.SubjectKey, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if sub := p.subjects[key]; sub != nil {
		if sub.users--; sub.users == 0 {
			sub.left = now
		}
	}
}

// prune frees subjects and tables without users since grace, and what a former agent left that no row of endpoints names.
// It tells when something that is not due yet will be.
func (p *policyMaps) prune(now time.Time, need bool, inRows func() (map[uint32]bool, error)) (next time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	later := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for key, sub := range p.subjects {
		if sub.users > 0 {
			continue
		}
		due := sub.put.Add(freshSubject)
		if left := sub.left.Add(p.cfg.Grace); sub.ever && (need || left.After(due)) {
			due = left
		}
		if now.Before(due) {
			later(due)
			continue
		}
		if err := p.peers.del(bpf.PolicyPeerKey{Subject: sub.id}); err != nil {
			return next, err
		}
		if err := p.clearPeers(sub, now); err != nil {
			return next, err
		}
		p.release(sub.other, now)
		delete(p.subjects, key)
	}
	for key, v := range p.tables {
		if v.users > 0 {
			continue
		}
		if due := v.unused.Add(p.cfg.Grace); now.Before(due) {
			later(due)
			continue
		}
		if err := v.rows.remove(p); err != nil {
			return next, err
		}
		delete(p.tables, key)
	}
	if !p.orphans {
		return next, nil
	}
	named, err := inRows()
	if err != nil {
		return next, err
	}
	return next, p.pruneOrphans(named)
}

// pruneOrphans removes rows of a former agent: subjects that neither this agent nor a row of endpoints names, then the
// tables that no row of policy_peers names any more.
func (p *policyMaps) pruneOrphans(named map[uint32]bool) error {
	mine := map[uint32]bool{}
	for sub := range maps.Values(p.subjects) {
		mine[sub.id] = true
	}
	tables := map[uint32]bool{}
	for v := range maps.Values(p.tables) {
		tables[v.id] = true
	}
	left := false
	var peers []bpf.PolicyPeerKey
	if err := p.peers.each(func(keys []bpf.PolicyPeerKey, values []bpf.PolicyPeer) error {
		for i, k := range keys {
			switch {
			case mine[k.Subject]:
			case named[k.Subject]:
				left = true
			default:
				peers = append(peers, k)
				continue
			}
			tables[values[i].Table] = true
		}
		return nil
	}); err != nil {
		return err
	}
	if err := p.peers.delAll(peers); err != nil {
		return err
	}
	var ports []bpf.PolicyPortKey
	if err := p.ports.each(func(keys []bpf.PolicyPortKey, _ []bpf.PolicyVerdict) error {
		for _, k := range keys {
			if !tables[k.Table] {
				ports = append(ports, k)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	var ranges []bpf.PolicyRangeKey
	if err := p.ranges.each(func(keys []bpf.PolicyRangeKey, _ []bpf.PolicyVerdict) error {
		for _, k := range keys {
			if !tables[k.Table] {
				ranges = append(ranges, k)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	p.orphans = left
	return errors.Join(p.ports.delAll(ports), p.ranges.delAll(ranges))
}
