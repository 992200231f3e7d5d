package kvstore

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"porin/internal/identity"
)

// collect is one pass of the collector. A set that had no claim in the last pass and has none now is removed, and its
// number begins to rest. Every node may do it: the transaction looks again.
//
// The same pass finds claims of this node that it does not know of (a transaction that went through though its answer
// was lost) and those that somebody removed.
func (s *Identities) collect(ctx context.Context) error {
	idle, mine, err := s.survey(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	var strays, unused []string
	for set := range mine {
		if s.held[set] != nil {
			continue
		}
		if _, twice := s.idle["stray "+set]; twice {
			strays = append(strays, set)
		} else {
			idle["stray "+set] = mine[set]
		}
	}
	for set, h := range s.held {
		if _, there := mine[set]; !there && h.lease != 0 {
			h.lease = 0
		}
	}
	for set, id := range idle {
		if s.idle[set] == id && !strings.HasPrefix(set, "stray ") {
			unused = append(unused, set)
		}
	}
	s.idle = idle
	s.mu.Unlock()
	s.wake()

	for _, set := range strays {
		if err := s.unclaim(ctx, set, mine[set]); err != nil {
			return err
		}
	}
	return s.free(ctx, unused, idle)
}

// survey reads all sets and claims: which sets nobody claims, and what this node claims.
func (s *Identities) survey(ctx context.Context) (idle, mine map[string]identity.ID, err error) {
	idle, mine = make(map[string]identity.ID), make(map[string]identity.ID)
	from, to := valPrefix, clientv3.GetPrefixRangeEnd(valPrefix)
	var rev int64
	for {
		op, cancel := context.WithTimeout(ctx, 2*opTimeout)
		resp, err := s.client.etcd.Get(op, from, clientv3.WithRange(to), clientv3.WithLimit(pageSize), clientv3.WithRev(rev))
		cancel()
		if err != nil {
			return nil, nil, fmt.Errorf("list claims: %w", err)
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			from = string(kv.Key) + "\x00"
			path := strings.TrimPrefix(string(kv.Key), valPrefix)
			cut := strings.LastIndexByte(path, '/')
			id, ok := parseID(string(kv.Value))
			if cut < 0 || !ok {
				s.log.Warn("key in the store ignored", "key", string(kv.Key))
				continue
			}
			set, node := path[:cut], path[cut+1:]
			switch node {
			case "": // sorts before the set's claims
				idle[set] = id
			case s.cfg.Node:
				mine[set] = id
				delete(idle, set)
			default:
				delete(idle, set)
			}
		}
		if !resp.More {
			return idle, mine, nil
		}
	}
}

// free removes sets that still have no claim. Their numbers rest under one lease.
func (s *Identities) free(ctx context.Context, sets []string, ids map[string]identity.ID) error {
	if len(sets) == 0 {
		return nil
	}
	op, cancel := context.WithTimeout(ctx, opTimeout)
	lease, err := s.client.etcd.Grant(op, int64(s.cfg.Rest/time.Second))
	cancel()
	if err != nil {
		return fmt.Errorf("lease for resting numbers: %w", err)
	}
	freed := 0
	for _, set := range sets {
		id := ids[set]
		op, cancel := context.WithTimeout(ctx, opTimeout)
		claims := clientv3.Compare(clientv3.CreateRevision(setKey(set)+"\x00"), "=", 0).
			WithRange(clientv3.GetPrefixRangeEnd(setKey(set)))
		resp, err := s.txn(op).
			If(clientv3.Compare(clientv3.Value(setKey(set)), "=", text(id)), claims).
			Then(
				clientv3.OpDelete(setKey(set)),
				clientv3.OpDelete(idKey(id)),
				clientv3.OpPut(freedKey(id), set, clientv3.WithLease(lease.ID)),
			).
			Commit()
		cancel()
		if err != nil {
			return fmt.Errorf("collect identity %d: %w", uint32(id), err)
		}
		if resp.Succeeded {
			freed++
		}
	}
	s.log.Info("unused identities collected", "count", freed)
	return nil
}
