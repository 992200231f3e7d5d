package kvstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"porin/internal/identity"
)

const (
	root      = "porin/identities/v1/"
	idPrefix  = root + "id/"
	valPrefix = root + "value/"
	frePrefix = root + "freed/"
)

func idKey(id identity.ID) string    { return idPrefix + strconv.FormatUint(uint64(id), 10) }
func freedKey(id identity.ID) string { return frePrefix + strconv.FormatUint(uint64(id), 10) }
func setKey(set string) string       { return valPrefix + set + "/" }

// parseID reads a number; ok is false for anything that number cannot have been written as.
func parseID(s string) (identity.ID, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return identity.ID(n), err == nil && strconv.FormatUint(n, 10) == s
}

// Errors that callers can tell apart.
var (
	ErrUnreachable = errors.New("the store does not answer; known label sets keep their identities, new ones wait")
	ErrExhausted   = errors.New("all identity numbers are taken")
	errConflict    = errors.New("the store has given the number or the label set away")
)

// Identities gives label sets their cluster-wide numbers. It implements identity.Store.
type Identities struct {
	log    *slog.Logger
	cfg    Config
	client *Client
	kick   chan struct{} // somebody wants claims to be written

	mu      sync.Mutex
	ids     map[identity.ID]string     // mu: number -> label set, as the watch told
	sets    map[string]identity.ID     // mu: the same, the other way
	resting map[identity.ID]string     // mu: collected numbers
	lost    map[identity.ID]lostNumber // mu: numbers that the store does not know any more, as after it was wiped
	held    map[string]*held           // mu: what this node uses
	synced  chan struct{}              // closed once the watch has read everything
	once    sync.Once                  // closes synced
	idle    map[string]identity.ID     // mu: sets that nobody claimed in the last pass of the collector
	txns    uint64                     // mu: transactions sent, for tests and metrics
}

// lostNumber is a number whose users may still write it again; it is given to nobody else until they had their time.
type lostNumber struct {
	set   string
	until time.Time
}

// held is a number in use on this node and the lease under which the store knows it.
type held struct {
	id    identity.ID
	lease clientv3.LeaseID // 0: still to be written
}

// NewIdentities returns the cluster's numbers behind client. Watch and Run must run for it to work.
func NewIdentities(log *slog.Logger, client *Client) *Identities {
	return &Identities{
		log: log, cfg: client.cfg, client: client, kick: make(chan struct{}, 1),
		ids: make(map[identity.ID]string), sets: make(map[string]identity.ID), resting: make(map[identity.ID]string),
		lost: make(map[identity.ID]lostNumber), held: make(map[string]*held), synced: make(chan struct{}), idle: make(map[string]identity.ID),
	}
}

// Allocate returns the number of the label set and claims it for this node: one transaction when nobody else is after
// the same thing at the same moment. It waits for the store at most Config.Timeout.
func (s *Identities) Allocate(ctx context.Context, set string) (identity.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	select {
	case <-s.synced: // before, every number looks free
	case <-ctx.Done():
		return 0, s.unreachable(ctx.Err())
	}
	var got held
	err := retry(ctx, func(ctx context.Context) (err error) {
		got, err = s.claim(ctx, set, 0)
		return err
	})
	var p permanent
	switch {
	case errors.As(err, &p):
		return 0, err
	case err != nil:
		return 0, s.unreachable(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[set] = &got
	return got.id, nil
}

func (s *Identities) unreachable(err error) error {
	return fmt.Errorf("%w (%s, tried for %s: %w)", ErrUnreachable, strings.Join(s.cfg.Endpoints, ","), s.cfg.Timeout, err)
}

// Adopt claims a number that this node uses already. It returns at once; Run writes the claim when the store answers.
func (s *Identities) Adopt(set string, id identity.ID) {
	s.mu.Lock()
	s.held[set] = &held{id: id}
	s.mu.Unlock()
	s.wake()
}

func (s *Identities) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Release takes this node's claim away. The number stays the set's until the collector comes.
func (s *Identities) Release(ctx context.Context, set string, id identity.ID) error {
	s.mu.Lock()
	h := s.held[set]
	if h == nil || h.id != id {
		s.mu.Unlock()
		return nil // given away by a conflict
	}
	delete(s.held, set) // first, so that nobody writes the claim again
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	err := retry(ctx, func(ctx context.Context) error { return s.unclaim(ctx, set, id) })
	if err != nil {
		s.mu.Lock()
		if s.held[set] == nil {
			s.held[set] = h
		}
		s.mu.Unlock()
		return s.unreachable(err)
	}
	return nil
}

func (s *Identities) unclaim(ctx context.Context, set string, id identity.ID) error {
	claim := setKey(set) + s.cfg.Node
	_, err := s.txn(ctx).
		If(clientv3.Compare(clientv3.Value(claim), "=", text(id))).
		Then(clientv3.OpDelete(claim)).
		Commit()
	return err
}

func text(id identity.ID) string { return strconv.FormatUint(uint64(id), 10) }

func (s *Identities) txn(ctx context.Context) clientv3.Txn {
	s.mu.Lock()
	s.txns++
	s.mu.Unlock()
	return s.client.etcd.Txn(ctx)
}

// claim writes this node's claim on the set's number, and the number itself if the set has none. want is the number
// to take, 0 for any. What it learns from a transaction that did not go through it uses for the next.
func (s *Identities) claim(ctx context.Context, set string, want identity.ID) (held, error) {
	const tries = 16 // each lost try means that another node won, so the cluster gets on
	for range tries {
		lease, err := s.client.currentLease(ctx)
		if err != nil {
			return held{}, err
		}
		id, exists, err := s.choose(set, want)
		if err != nil {
			return held{}, err
		}
		var ok bool
		if exists {
			ok, err = s.join(ctx, set, id, lease)
		} else {
			ok, err = s.create(ctx, set, id, lease)
		}
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			s.client.lost(lease)
			continue
		}
		if err != nil {
			return held{}, err
		}
		if ok {
			return held{id: id, lease: lease}, nil
		}
	}
	return held{}, fmt.Errorf("number for %q: %d tries, each time another node was faster", set, tries)
}

// choose picks the number that the set has, or else a free one.
func (s *Identities) choose(set string, want identity.ID) (id identity.ID, exists bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, ok := s.sets[set]; ok {
		if want != 0 && id != want {
			return 0, false, permanent{fmt.Errorf("%q is %d, not %d: %w", set, id, want, errConflict)}
		}
		return id, true, nil
	}
	if want != 0 {
		if other, ok := s.ids[want]; ok && other != set {
			return 0, false, permanent{fmt.Errorf("%d is that of %q: %w", want, other, errConflict)}
		}
		if other, ok := s.resting[want]; ok && other != set {
			return 0, false, permanent{fmt.Errorf("%d was that of %q until a moment ago: %w", want, other, errConflict)}
		}
		return want, false, nil
	}
	for id, old := range s.resting {
		if old == set {
			return id, false, nil // the same meaning again needs no rest
		}
	}
	now := time.Now()
	for id, l := range s.lost {
		if l.set == set && s.ids[id] == "" && s.resting[id] == "" {
			return id, false, nil
		}
	}
	size := s.cfg.Last - s.cfg.First + 1
	start := rand.Uint32N(size) // not the lowest: nodes would all run for the same one
	for i := range size {
		id := identity.ID(s.cfg.First + (start+i)%size)
		if l, lost := s.lost[id]; s.ids[id] == "" && s.resting[id] == "" && (!lost || now.After(l.until)) {
			return id, false, nil
		}
	}
	return 0, false, permanent{fmt.Errorf("%w: of %d, %d are in use and %d rest after use", ErrExhausted, size, len(s.ids), len(s.resting))}
}

// join adds this node's claim to a set that has a number.
func (s *Identities) join(ctx context.Context, set string, id identity.ID, lease clientv3.LeaseID) (bool, error) {
	resp, err := s.txn(ctx).
		If(clientv3.Compare(clientv3.Value(setKey(set)), "=", text(id))).
		Then(clientv3.OpPut(setKey(set)+s.cfg.Node, text(id), clientv3.WithLease(lease))).
		Else(clientv3.OpGet(setKey(set))).
		Commit()
	if err != nil || resp.Succeeded {
		return err == nil, err
	}
	s.learnSet(set, resp.Responses[0].GetResponseRange().Kvs)
	return false, nil
}

// create makes the number and the set at once, if there is neither.
func (s *Identities) create(ctx context.Context, set string, id identity.ID, lease clientv3.LeaseID) (bool, error) {
	s.mu.Lock()
	again := s.resting[id] == set
	s.mu.Unlock()
	freed := clientv3.Compare(clientv3.CreateRevision(freedKey(id)), "=", 0)
	then := []clientv3.Op{
		clientv3.OpPut(idKey(id), set),
		clientv3.OpPut(setKey(set), text(id)),
		clientv3.OpPut(setKey(set)+s.cfg.Node, text(id), clientv3.WithLease(lease)),
	}
	if again {
		freed = clientv3.Compare(clientv3.Value(freedKey(id)), "=", set)
		then = append(then, clientv3.OpDelete(freedKey(id)))
	}
	resp, err := s.txn(ctx).
		If(
			clientv3.Compare(clientv3.CreateRevision(setKey(set)), "=", 0),
			clientv3.Compare(clientv3.CreateRevision(idKey(id)), "=", 0),
			freed,
		).
		Then(then...).
		Else(clientv3.OpGet(setKey(set)), clientv3.OpGet(idKey(id)), clientv3.OpGet(freedKey(id))).
		Commit()
	if err != nil {
		return false, err
	}
	if resp.Succeeded {
		s.mu.Lock()
		s.ids[id], s.sets[set] = set, id
		delete(s.resting, id)
		s.mu.Unlock()
		return true, nil
	}
	s.learnSet(set, resp.Responses[0].GetResponseRange().Kvs)
	s.mu.Lock()
	defer s.mu.Unlock()
	learn(s.ids, id, resp.Responses[1].GetResponseRange().Kvs)
	learn(s.resting, id, resp.Responses[2].GetResponseRange().Kvs)
	return false, nil
}

// learnSet notes what the store says of a set's number.
func (s *Identities) learnSet(set string, kvs []*mvccpb.KeyValue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sets, set)
	if len(kvs) == 1 {
		if id, ok := parseID(string(kvs[0].Value)); ok {
			s.sets[set] = id
		}
	}
}

// learn notes what the store says of a number.
func learn(m map[identity.ID]string, id identity.ID, kvs []*mvccpb.KeyValue) {
	delete(m, id)
	if len(kvs) == 1 {
		m[id] = string(kvs[0].Value)
	}
}

// Run renews the lease, writes claims that the store does not have, and collects numbers that nobody claims, until ctx
// ends.
func (s *Identities) Run(ctx context.Context) error {
	beat := time.NewTicker(s.cfg.Heartbeat)
	defer beat.Stop()
	collect := time.NewTicker(s.cfg.Collect + rand.N(s.cfg.Collect/4+1)) // not all nodes at once
	defer collect.Stop()
	for {
		if err := s.client.beat(ctx); err == nil {
			s.republish(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beat.C:
		case <-s.kick:
		case <-collect.C:
			if err := s.collect(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("collect unused identities", "err", err)
			}
		}
	}
}

// republish writes every claim that is not under the current lease.
func (s *Identities) republish(ctx context.Context) {
	select {
	case <-s.synced:
	default:
		return // the watch has not told yet which numbers are taken
	}
	lease, err := s.client.currentLease(ctx)
	if err != nil {
		return
	}
	s.mu.Lock()
	missing := make(map[string]identity.ID)
	for set, h := range s.held {
		if h.lease != lease {
			missing[set] = h.id
		}
	}
	s.mu.Unlock()
	if len(missing) == 0 {
		return
	}
	began := time.Now()
	var g errgroup.Group
	g.SetLimit(32) // the store writes many transactions to disk with one sync
	for set, id := range missing {
		g.Go(func() error { return s.republishOne(ctx, set, id) })
	}
	if err := g.Wait(); err != nil {
		s.log.Warn("identities not all claimed yet", "err", err)
		return
	}
	s.log.Info("identities claimed", "count", len(missing), "took", time.Since(began))
}

func (s *Identities) republishOne(ctx context.Context, set string, id identity.ID) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := s.claimHeld(ctx, set, id)
	if errors.Is(err, errConflict) {
		s.log.Error("identity of this node belongs to others in the store", "id", uint32(id), "err", err)
		s.mu.Lock()
		if h := s.held[set]; h != nil && h.id == id {
			delete(s.held, set)
		}
		s.mu.Unlock()
		return nil // the watch tells the allocator
	}
	return err
}

// claimHeld claims id for set; a set that was released meanwhile loses the claim again.
func (s *Identities) claimHeld(ctx context.Context, set string, id identity.ID) error {
	s.mu.Lock()
	before := s.held[set]
	s.mu.Unlock()
	if before == nil || before.id != id {
		return nil
	}
	got, err := s.claim(ctx, set, id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	after := s.held[set]
	if after != nil && after.id == id {
		after.lease = got.lease
	}
	s.mu.Unlock()
	if after == nil {
		return s.unclaim(ctx, set, id)
	}
	return nil
}
