package kvstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// RangeRequest is a node's wish for ranges of addresses.
type RangeRequest struct {
	Node string         `json:"node"`
	IPv4 bool           `json:"ipv4"`
	IPv6 bool           `json:"ipv6"`
	Has  []netip.Prefix `json:"has,omitempty"` // what it was given before, and its workloads live in
}

// RangeGrant is what a node was given.
type RangeGrant struct {
	Node    string         `json:"node"`
	Ranges  []netip.Prefix `json:"ranges,omitempty"`
	Problem string         `json:"problem,omitempty"` // why it is less than was asked for

	rev int64 // of the record; 0: there is none yet
}

// NodeRanges is what a node's own record says of its ranges, however it came by them.
type NodeRanges struct {
	Name     string         `json:"name"`
	PodCIDRs []netip.Prefix `json:"pod-cidrs"`
}

// RangeState is what the store knows of ranges at one moment.
type RangeState struct {
	Requests []RangeRequest
	Grants   []RangeGrant
	Nodes    []NodeRanges
}

// Ranges are the records by which nodes are given their ranges. Nodes write requests, the leading operator grants:
//
//	porin/ranges/v1/<cluster>/request/<node>  RangeRequest   leased: the node lives
//	porin/ranges/v1/<cluster>/given/<node>    RangeGrant     permanent until the node has been gone for long
//	porin/ranges/v1/<cluster>/prefix/<prefix> node           permanent: makes a range unique, whoever grants
type Ranges struct {
	log    *slog.Logger
	client *Client
	root   string
	nodes  string
}

// NewRanges returns the cluster's.
func NewRanges(log *slog.Logger, client *Client, cluster string) *Ranges {
	return &Ranges{log: log, client: client, root: "porin/ranges/v1/" + cluster + "/", nodes: StatePrefix(cluster) + "nodes/"}
}

func (r *Ranges) requestKey(node string) string { return r.root + "request/" + node }
func (r *Ranges) givenKey(node string) string   { return r.root + "given/" + node }
func (r *Ranges) prefixKey(p netip.Prefix) string {
	return r.root + "prefix/" + strings.ReplaceAll(p.String(), "/", "-")
}

// Read returns everything as of one revision.
func (r *Ranges) Read(ctx context.Context) (RangeState, error) {
	op, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	resp, err := r.client.etcd.Txn(op).Then(
		clientv3.OpGet(r.root+"request/", clientv3.WithPrefix()),
		clientv3.OpGet(r.root+"given/", clientv3.WithPrefix()),
		clientv3.OpGet(r.nodes, clientv3.WithPrefix()),
	).Commit()
	if err != nil {
		return RangeState{}, fmt.Errorf("read ranges: %w", err)
	}
	var s RangeState
	s.Requests = records(r.log, resp.Responses[0].GetResponseRange().Kvs, r.root+"request/", func(v *RangeRequest, _ int64) string { return v.Node })
	s.Grants = records(r.log, resp.Responses[1].GetResponseRange().Kvs, r.root+"given/", func(v *RangeGrant, rev int64) string { v.rev = rev; return v.Node })
	s.Nodes = records(r.log, resp.Responses[2].GetResponseRange().Kvs, r.nodes, func(v *NodeRanges, _ int64) string { return v.Name })
	return s, nil
}

// records decodes what lies below a prefix. A record that is not its key's is not believed.
func records[T any](log *slog.Logger, kvs []*mvccpb.KeyValue, prefix string, name func(*T, int64) string) []T {
	var out []T
	for _, kv := range kvs {
		var v T
		if err := json.Unmarshal(kv.Value, &v); err != nil || name(&v, kv.ModRevision) != strings.TrimPrefix(string(kv.Key), prefix) {
			log.Warn("record in the store ignored", "key", string(kv.Key), "err", err)
			continue
		}
		out = append(out, v)
	}
	return out
}

// Changes calls f at once, whenever a request, a grant or a node's record changes, and every so often anyway, until ctx
// ends. Changes while f runs make one more call. An error of f is told in the log when it comes and goes; f is called again.
func (r *Ranges) Changes(ctx context.Context, every time.Duration, f func(context.Context) error) error {
	failing := false
	return r.client.changes(ctx, []string{r.root, r.nodes}, every, func(ctx context.Context) error {
		err := f(ctx)
		switch {
		case ctx.Err() != nil || errors.Is(err, ErrNotLeader):
		case err != nil && !failing:
			failing = true
			r.log.Warn("ranges are not as they should be", "err", err)
		case err == nil && failing:
			failing = false
			r.log.Info("ranges are as they should be again")
		}
		return err
	})
}

// changes calls f whenever something below one of the prefixes changes. f reads what it needs itself, so it does not
// matter what a watch misses.
func (c *Client) changes(ctx context.Context, prefixes []string, every time.Duration, f func(context.Context) error) error {
	wake := make(chan struct{}, 1)
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, p := range prefixes {
		go func() {
			for wctx.Err() == nil {
				one, end := context.WithCancel(clientv3.WithRequireLeader(wctx))
				for range c.etcd.Watch(one, p, clientv3.WithPrefix(), clientv3.WithKeysOnly()) {
					select {
					case wake <- struct{}{}:
					default:
					}
				}
				end() // the watch ended: compacted, or its member has no leader
				select {
				case <-time.After(time.Second):
				case <-wctx.Done():
				}
			}
		}()
	}
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		case <-again.C:
		}
		next := every
		if err := f(ctx); errors.Is(err, ErrNotLeader) {
			return err
		} else if err != nil {
			next = min(every, time.Second)
		}
		again.Reset(next)
	}
}

// Grant gives a node ranges that nobody else has. The new record takes old's place, which must be what Read told.
func (r *Ranges) Grant(ctx context.Context, lead Leadership, old, now RangeGrant) error {
	b, err := json.Marshal(now)
	if err != nil {
		return fmt.Errorf("grant to %s: %w", now.Node, err)
	}
	unchanged := clientv3.Compare(clientv3.ModRevision(r.givenKey(now.Node)), "=", old.rev)
	if old.rev == 0 {
		unchanged = clientv3.Compare(clientv3.CreateRevision(r.givenKey(now.Node)), "=", 0)
	}
	ifs := []clientv3.Cmp{lead.holds(), unchanged}
	then := []clientv3.Op{clientv3.OpPut(r.givenKey(now.Node), string(b))}
	for _, p := range now.Ranges {
		if !slices.Contains(old.Ranges, p) {
			ifs = append(ifs, clientv3.Compare(clientv3.CreateRevision(r.prefixKey(p)), "=", 0))
			then = append(then, clientv3.OpPut(r.prefixKey(p), now.Node))
		}
	}
	return r.commit(ctx, "grant ranges to "+now.Node, lead, ifs, then)
}

// TakeBack takes everything from a node that asks for nothing any more.
func (r *Ranges) TakeBack(ctx context.Context, lead Leadership, old RangeGrant) error {
	ifs := []clientv3.Cmp{
		lead.holds(), clientv3.Compare(clientv3.ModRevision(r.givenKey(old.Node)), "=", old.rev),
		clientv3.Compare(clientv3.CreateRevision(r.requestKey(old.Node)), "=", 0),
	}
	then := []clientv3.Op{clientv3.OpDelete(r.givenKey(old.Node))}
	for _, p := range old.Ranges {
		then = append(then, clientv3.OpDelete(r.prefixKey(p)))
	}
	return r.commit(ctx, "take the ranges of "+old.Node+" back", lead, ifs, then)
}

func (r *Ranges) commit(ctx context.Context, what string, lead Leadership, ifs []clientv3.Cmp, then []clientv3.Op) error {
	op, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	resp, err := r.client.etcd.Txn(op).If(ifs...).Then(then...).Else(clientv3.OpGet(lead.key)).Commit()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if resp.Succeeded {
		return nil
	}
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) != 1 || kvs[0].CreateRevision != lead.rev {
		return fmt.Errorf("%s: %w", what, ErrNotLeader)
	}
	return fmt.Errorf("%s: the store has changed meanwhile", what)
}

// Ask writes the node's request and tells f of the node's grant, at once and whenever it changes; gone is a grant that
// is not there. It writes the request again when the store has lost it, until ctx ends.
func (r *Ranges) Ask(ctx context.Context, req func() RangeRequest, f func(g RangeGrant, there bool)) error {
	name := req().Node
	err := r.client.changes(ctx, []string{r.givenKey(name), r.requestKey(name)}, r.client.cfg.Heartbeat, func(ctx context.Context) error {
		return r.askOnce(ctx, req(), f)
	})
	return err
}

func (r *Ranges) askOnce(ctx context.Context, req RangeRequest, f func(RangeGrant, bool)) error {
	op, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	b, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("ask for ranges: %w", err)
	}
	lease, err := r.client.currentLease(op)
	if err != nil {
		return fmt.Errorf("ask for ranges: %w", err)
	}
	key := r.requestKey(req.Node)
	resp, err := r.client.etcd.Txn(op).
		If(clientv3.Compare(clientv3.Value(key), "=", string(b)), clientv3.Compare(clientv3.LeaseValue(key), "=", lease)).
		Then(clientv3.OpGet(r.givenKey(req.Node))).
		Else(clientv3.OpPut(key, string(b), clientv3.WithLease(lease)), clientv3.OpGet(r.givenKey(req.Node))).
		Commit()
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		r.client.lost(lease)
	}
	if err != nil {
		return fmt.Errorf("ask for ranges: %w", err)
	}
	last := resp.Responses[len(resp.Responses)-1].GetResponseRange()
	grants := records(r.log, last.Kvs, r.root+"given/", func(v *RangeGrant, rev int64) string { v.rev = rev; return v.Node })
	if len(grants) == 1 {
		f(grants[0], true)
	} else {
		f(RangeGrant{Node: req.Node}, false)
	}
	return nil
}
