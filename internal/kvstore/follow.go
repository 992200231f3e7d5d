package kvstore

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"porin/internal/node"
)

// Watch tells f of every record of the cluster, then of each change, until ctx ends: those of one revision of the store
// together, so that a lease that ended is told as one thing. After an interruption that the store's history does not
// bridge it lists everything again.
func (r *Records) Watch(ctx context.Context, f func(node.Batch)) error {
	return r.client.again(ctx, r.log.With("cluster", r.cfg.Cluster), func(ctx context.Context) error { return r.follow(ctx, f) })
}

// again calls f, which reads and watches, until ctx ends.
func (c *Client) again(ctx context.Context, log *slog.Logger, f func(context.Context) error) error {
	const first, most = 100 * time.Millisecond, 2 * time.Second
	wait := first
	for {
		began := time.Now()
		err := f(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(began) > time.Minute {
			wait = first
		}
		if ok, _ := c.Healthy(); ok { // else the heartbeat has said so already
			log.Warn("watch of the store interrupted", "err", err, "again-in", wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		wait = min(2*wait, most)
	}
}

func (r *Records) follow(ctx context.Context, f func(node.Batch)) error {
	relist := r.client.relisting()
	rev, err := r.list(ctx, f)
	if err != nil {
		return err
	}
	wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	ch := r.client.etcd.Watch(wctx, StatePrefix(r.cfg.Cluster), clientv3.WithPrefix(), clientv3.WithRev(rev+1))
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
			if b, some := r.batch(resp.Events); some {
				f(b)
			}
		}
	}
}

// batch makes one of events. Of several about one key the last counts.
func (r *Records) batch(events []*clientv3.Event) (b node.Batch, some bool) {
	last := make(map[string]*clientv3.Event, len(events))
	for _, e := range events {
		last[string(e.Kv.Key)] = e
	}
	for _, e := range events {
		key := string(e.Kv.Key)
		if last[key] != e {
			continue
		}
		gone := e.Type == mvccpb.Event_DELETE
		r.own(key, string(e.Kv.Value), gone)
		r.decode(&b, key, e.Kv.Value, gone)
		some = true
	}
	return b, some
}

// list reads all records as of one revision, and tells them page by page.
func (r *Records) list(ctx context.Context, f func(node.Batch)) (rev int64, err error) {
	r.client.count("listings")
	r.mu.Lock()
	r.listing++
	listing := r.listing
	r.mu.Unlock()
	prefix := StatePrefix(r.cfg.Cluster)
	from, to := prefix, clientv3.GetPrefixRangeEnd(prefix)
	mine := map[string]bool{}
	for {
		op, cancel := context.WithTimeout(ctx, 2*opTimeout)
		resp, err := r.client.etcd.Get(op, from, clientv3.WithRange(to), clientv3.WithLimit(pageSize), clientv3.WithRev(rev))
		cancel()
		if err != nil {
			return 0, fmt.Errorf("list records of cluster %s: %w", r.cfg.Cluster, err)
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		b := node.Batch{Listing: listing, Done: !resp.More}
		for _, kv := range resp.Kvs {
			key := string(kv.Key)
			from = key + "\x00"
			if r.own(key, string(kv.Value), false) {
				mine[key] = true
			}
			r.decode(&b, key, kv.Value, false)
		}
		f(b)
		if !resp.More {
			r.missed(mine)
			return rev, nil
		}
	}
}

// own looks at a record of this node itself: what somebody removed or changed is written again, but the node's record only
// when it is gone: another node of the same name would change it back for ever.
func (r *Records) own(key, value string, gone bool) bool {
	if r.cfg.Node == "" {
		return false
	}
	name, addr, err := r.parse(key)
	if err != nil || name != r.cfg.Node {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch rec := r.want[addr]; {
	case !addr.IsValid():
		if gone && r.lease != 0 {
			r.lease = 0
			r.wake()
		}
	case rec != nil && rec.lease != 0 && (gone || rec.value != value):
		rec.lease = 0
		r.wake()
	}
	return true
}

// missed makes own records that a listing did not tell be written again.
func (r *Records) missed(there map[string]bool) {
	if r.cfg.Node == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	again := false
	if r.lease != 0 && !there[NodeKey(r.cfg.Cluster, r.cfg.Node)] {
		r.lease, again = 0, true
	}
	for _, a := range slices.Collect(maps.Keys(r.want)) {
		if rec := r.want[a]; rec.lease != 0 && !there[AddressKey(r.cfg.Cluster, r.cfg.Node, a)] {
			rec.lease, again = 0, true
		}
	}
	if again {
		r.wake()
	}
}
