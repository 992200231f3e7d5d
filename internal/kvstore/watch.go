package kvstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"porin/internal/identity"
)

// The watched keys are one range: freed/ and id/. The claims of all nodes lie behind it; only the collector reads them.
var (
	watchFrom = frePrefix
	watchTo   = clientv3.GetPrefixRangeEnd(idPrefix)
)

// pageSize keys are read at once.
const pageSize = 2000

// errStart says that the watch must read everything anew.
var errStart = errors.New("reading everything again")

// Watch tells f of every number of the cluster, then of each change, until ctx ends. After an interruption that the
// store's history does not bridge it reads everything again and tells f the difference, deletions included.
func (s *Identities) Watch(ctx context.Context, f func(upsert bool, id identity.ID, set string)) error {
	return s.client.again(ctx, s.log, func(ctx context.Context) error { return s.listAndWatch(ctx, f) })
}

func (s *Identities) listAndWatch(ctx context.Context, f func(bool, identity.ID, string)) error {
	relist := s.client.relisting()
	ids, resting, rev, err := s.list(ctx)
	if err != nil {
		return err
	}
	s.replace(ids, resting, f)
	s.once.Do(func() { close(s.synced) })
	s.wake()

	wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	ch := s.client.etcd.Watch(wctx, watchFrom, clientv3.WithRange(watchTo), clientv3.WithRev(rev+1))
	for {
		select {
		case <-relist:
			return errStart
		case resp, ok := <-ch:
			if !ok {
				return errStart
			}
			if resp.CompactRevision != 0 {
				return fmt.Errorf("revisions up to %d were compacted: %w", resp.CompactRevision, errStart)
			}
			if err := resp.Err(); err != nil {
				return err
			}
			for _, e := range resp.Events {
				s.event(e.Type == mvccpb.Event_DELETE, string(e.Kv.Key), string(e.Kv.Value), f)
			}
		}
	}
}

// list reads all numbers as of one revision.
func (s *Identities) list(ctx context.Context) (ids, resting map[identity.ID]string, rev int64, err error) {
	ids, resting = make(map[identity.ID]string), make(map[identity.ID]string)
	from := watchFrom
	for {
		var resp *clientv3.GetResponse
		op, cancel := context.WithTimeout(ctx, 2*opTimeout)
		resp, err = s.client.etcd.Get(op, from, clientv3.WithRange(watchTo), clientv3.WithLimit(pageSize), clientv3.WithRev(rev))
		cancel()
		if err != nil {
			return nil, nil, 0, fmt.Errorf("list identities: %w", err)
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			key := string(kv.Key)
			if id, freed, ok := s.number(key); ok && freed {
				resting[id] = string(kv.Value)
			} else if ok {
				ids[id] = string(kv.Value)
			}
			from = key + "\x00"
		}
		if !resp.More {
			return ids, resting, rev, nil
		}
	}
}

// number reads a watched key.
func (s *Identities) number(key string) (id identity.ID, freed, ok bool) {
	rest, ok := strings.CutPrefix(key, idPrefix)
	if !ok {
		rest, freed = strings.CutPrefix(key, frePrefix)
		ok = freed
	}
	if ok {
		id, ok = parseID(rest)
	}
	if !ok {
		s.log.Warn("key in the store ignored", "key", key)
	}
	return id, freed, ok
}

// replace takes over what a list told and tells f the difference to what was known.
func (s *Identities) replace(ids, resting map[identity.ID]string, f func(bool, identity.ID, string)) {
	s.mu.Lock()
	old := s.ids
	now := time.Now()
	for id, set := range old {
		if ids[id] == "" && resting[id] == "" { // collected long ago, or lost with the store: others may still use it
			s.lost[id] = lostNumber{set, now.Add(s.cfg.Rest)}
		}
	}
	for id, l := range s.lost {
		if ids[id] != "" || now.After(l.until) {
			delete(s.lost, id)
		}
	}
	s.ids, s.resting = ids, resting
	s.sets = make(map[string]identity.ID, len(ids))
	for id, set := range ids {
		s.sets[set] = id
	}
	told := make(map[identity.ID]string, len(ids)) // ids may grow under our feet once unlocked
	maps.Copy(told, ids)
	s.mu.Unlock()
	for id, set := range old {
		if _, still := told[id]; !still {
			f(false, id, set)
		}
	}
	for id, set := range told {
		f(true, id, set)
	}
}

// event takes over one change.
func (s *Identities) event(gone bool, key, value string, f func(bool, identity.ID, string)) {
	id, freed, ok := s.number(key)
	if !ok {
		return
	}
	s.mu.Lock()
	m := s.ids
	if freed {
		m = s.resting
	}
	old, known := m[id]
	if gone {
		delete(m, id)
	} else {
		m[id] = value
	}
	if !freed {
		if known && s.sets[old] == id {
			delete(s.sets, old)
		}
		if !gone {
			s.sets[value] = id
		}
	}
	s.mu.Unlock()
	switch {
	case freed:
	case gone:
		f(false, id, old)
	default:
		f(true, id, value)
	}
}
