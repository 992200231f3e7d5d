package kvstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"porin/internal/node"
)

// txnOps keys are written in one transaction; etcd takes 128 at most.
const txnOps = 100

// Run writes the node's own records, again whenever the store has lost them, until ctx ends.
func (r *Records) Run(ctx context.Context) error {
	wait := time.Duration(0)
	for {
		renewed := r.client.leaseChanged()
		err := r.publish(ctx)
		switch {
		case err == nil:
			wait = r.client.cfg.Heartbeat
		case ctx.Err() != nil:
			return ctx.Err()
		default:
			if wait > time.Second || wait == 0 {
				wait = 100 * time.Millisecond
			}
			wait = min(2*wait, time.Second)
			if ok, _ := r.client.Healthy(); ok { // else the heartbeat has said so already
				r.log.Warn("own records not all written", "err", err, "again-in", wait)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-renewed:
		case <-r.kick:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// publish makes the store equal to what this node says about itself.
func (r *Records) publish(ctx context.Context) error {
	r.mu.Lock()
	ready := r.self != nil
	r.mu.Unlock()
	if !ready {
		return nil
	}
	lease, err := r.client.currentLease(ctx)
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	if err := r.clean(ctx); err != nil {
		return err
	}
	if err := r.publishAddresses(ctx, lease); err != nil {
		return r.blame(lease, err)
	}
	return r.blame(lease, r.publishNode(ctx, lease))
}

// blame forgets the lease if that is what the store does not know.
func (r *Records) blame(lease clientv3.LeaseID, err error) error {
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		r.client.lost(lease)
		r.wake()
	}
	return err
}

// clean looks, once, for records that an earlier run of the agent left and that are not true any more.
func (r *Records) clean(ctx context.Context) error {
	r.mu.Lock()
	cleaned := r.cleaned
	r.mu.Unlock()
	if cleaned {
		return nil
	}
	prefix := addressPrefix(r.cfg.Cluster, r.cfg.Node)
	op, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	resp, err := r.client.etcd.Get(op, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return fmt.Errorf("list own records: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, kv := range resp.Kvs {
		if _, addr, err := r.parse(string(kv.Key)); err == nil && r.want[addr] == nil {
			r.gone[addr] = true
		}
	}
	r.cleaned = true
	return nil
}

// publishAddresses writes what is not under the lease, and removes what is to go.
func (r *Records) publishAddresses(ctx context.Context, lease clientv3.LeaseID) error {
	r.mu.Lock()
	var put []netip.Addr
	for _, a := range sortedAddrs(r.want) {
		if r.want[a].lease != lease {
			put = append(put, a)
		}
	}
	remove := sortedAddrs(r.gone)
	r.mu.Unlock()
	for len(put)+len(remove) > 0 {
		n := min(len(put), txnOps)
		m := min(len(remove), txnOps-n)
		if err := r.write(ctx, lease, put[:n], remove[:m]); err != nil {
			return err
		}
		put, remove = put[n:], remove[m:]
	}
	return nil
}

// write is one transaction of publishAddresses.
func (r *Records) write(ctx context.Context, lease clientv3.LeaseID, put, remove []netip.Addr) error {
	var ops []clientv3.Op
	sent := make(map[netip.Addr]*record, len(put))
	r.mu.Lock()
	for _, a := range put {
		if rec := r.want[a]; rec != nil {
			sent[a] = rec
			ops = append(ops, clientv3.OpPut(AddressKey(r.cfg.Cluster, r.cfg.Node, a), rec.value, clientv3.WithLease(lease)))
		}
	}
	for _, a := range remove {
		if r.gone[a] {
			ops = append(ops, clientv3.OpDelete(AddressKey(r.cfg.Cluster, r.cfg.Node, a)))
		}
	}
	r.mu.Unlock()
	if len(ops) == 0 {
		return nil
	}
	op, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	_, err := r.client.do(op, "addresses", func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return r.client.etcd.Txn(ctx).Then(ops...).Commit()
	})
	if err != nil {
		return fmt.Errorf("write %d records of addresses: %w", len(ops), err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, rec := range sent {
		rec.lease = lease
		if r.want[a] == nil { // given up meanwhile
			r.gone[a] = true
		}
	}
	for _, a := range remove {
		if r.want[a] == nil {
			delete(r.gone, a)
		} else {
			r.want[a].lease = 0 // came back meanwhile, and may have been removed after
		}
	}
	return nil
}

// publishNode writes the node's record. If it is not there although it was, and the store still is the same one, then
// the claim lapsed: others may have taken over what it stood for, so the node claims anew.
func (r *Records) publishNode(ctx context.Context, lease clientv3.LeaseID) error {
	for range 3 {
		r.mu.Lock()
		self, claim, done, under := *r.self, r.claim, r.lease == lease, r.under
		r.mu.Unlock()
		if done {
			return nil
		}
		key := NodeKey(r.cfg.Cluster, r.cfg.Node)
		there, mark, err := r.look(ctx, key)
		if err != nil {
			return err
		}
		// Without the record: if its lease still lives somebody removed it, and if the mark is another the store was lost.
		if !there && under != lease && claim.Store == mark && !r.lapsed(&self, claim) {
			continue
		}
		value, err := json.Marshal(self)
		if err != nil {
			return fmt.Errorf("record of this node: %w", err)
		}
		_, err = r.txn(ctx, clientv3.Compare(clientv3.Value(markKey), "=", mark), clientv3.OpPut(key, string(value), clientv3.WithLease(lease)))
		switch {
		case errors.Is(err, errConflict):
			continue
		case err != nil:
			return err
		}
		if r.noted(self, lease, mark) {
			return nil
		}
	}
	return errors.New("the record of this node changes faster than it can be written")
}

// look tells whether the record is there, and the store's mark; it makes one if there is none.
func (r *Records) look(ctx context.Context, key string) (there bool, mark string, err error) {
	word := fmt.Sprintf("%016x", rand.Uint64())
	resp, err := r.txn(ctx, clientv3.Compare(clientv3.CreateRevision(markKey), "=", 0),
		clientv3.OpPut(markKey, word), clientv3.OpGet(key), clientv3.OpGet(markKey))
	switch {
	case errors.Is(err, errConflict):
		op, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		resp, err = r.client.etcd.Txn(op).Then(clientv3.OpGet(markKey), clientv3.OpGet(key), clientv3.OpGet(markKey)).Commit()
		if err != nil {
			return false, "", fmt.Errorf("read the record of this node: %w", err)
		}
	case err != nil:
		return false, "", err
	}
	for _, kv := range resp.Responses[2].GetResponseRange().Kvs {
		mark = string(kv.Value)
	}
	return len(resp.Responses[1].GetResponseRange().Kvs) > 0, mark, nil
}

// txn carries ops out if what is compared holds; else it is errConflict.
func (r *Records) txn(ctx context.Context, cmp clientv3.Cmp, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	op, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	resp, err := r.client.do(op, "node", func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return r.client.etcd.Txn(ctx).If(cmp).Then(ops...).Commit()
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("write the record of this node: %w", err)
	case !resp.Succeeded:
		return nil, errConflict
	}
	return resp, nil
}

// lapsed starts a new claim unless the node's record changed meanwhile.
func (r *Records) lapsed(self *node.Node, claim Claim) bool {
	r.mu.Lock()
	if r.claim != claim {
		r.mu.Unlock()
		return false
	}
	r.claim.Generation = max(uint64(r.cfg.Now().UnixNano()), claim.Generation+1)
	self.Generation = r.claim.Generation
	r.self.Generation = self.Generation
	told := r.onClaim
	r.mu.Unlock()
	r.log.Warn("this node's record had lapsed; its ranges are claimed anew", "generation", self.Generation)
	if told != nil {
		told(self.Generation)
	}
	return true
}

// noted remembers that the record is written, and tells whether it still is the one to be written.
func (r *Records) noted(self node.Node, lease clientv3.LeaseID, mark string) bool {
	r.mu.Lock()
	r.under = lease
	r.claim = Claim{Generation: self.Generation, Store: mark}
	claim := r.claim
	save := r.cfg.Save != nil && claim != r.saved
	current := sameRecord(*r.self, self)
	if current {
		r.lease = lease
	}
	r.mu.Unlock()
	if save {
		if err := r.cfg.Save(claim); err != nil {
			r.log.Warn("claim not saved; after a restart this node claims its ranges anew", "err", err)
		} else {
			r.mu.Lock()
			r.saved = claim
			r.mu.Unlock()
		}
	}
	return current
}

func sameRecord(a, b node.Node) bool {
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	return errA == nil && errB == nil && string(x) == string(y)
}
