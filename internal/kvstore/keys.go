package kvstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// keysRoot is what people may look at and change by hand: everything of this program's, nothing of others in the same etcd.
const keysRoot = "porin/"

// Errors of changes by hand.
var (
	ErrKey    = errors.New("no such key can be")
	ErrLeased = errors.New("a node that is alive owns this record and writes it again")
	ErrNoKey  = errors.New("the store has no such key")
)

// Entry is a key of the store as people see it.
type Entry struct {
	Key, Value string
	Revision   int64 // of the store, when it was written last
	Leased     bool  // it goes with the node that wrote it
}

// Look returns the key, or with prefix all that begin so, sorted, at most limit, and whether there are more.
func (c *Client) Look(ctx context.Context, key string, prefix bool, limit int) (list []Entry, more bool, err error) {
	if err := checkKey(key); err != nil {
		return nil, false, err
	}
	op, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	opts := []clientv3.OpOption{clientv3.WithLimit(int64(limit))}
	if prefix {
		opts = append(opts, clientv3.WithPrefix())
	}
	resp, err := c.etcd.Get(op, key, opts...)
	if err != nil {
		return nil, false, c.byHand("read", key, err)
	}
	for _, kv := range resp.Kvs {
		list = append(list, Entry{string(kv.Key), string(kv.Value), kv.ModRevision, kv.Lease != 0})
	}
	if len(list) == 0 && !prefix {
		return nil, false, fmt.Errorf("%s: %w", key, ErrNoKey)
	}
	return list, resp.More, nil
}

// Set writes a key by hand. It spares the records of living nodes unless force is set; these then write theirs again.
func (c *Client) Set(ctx context.Context, key, value string, force bool) error {
	return c.change(ctx, "write", key, force, clientv3.OpPut(key, value))
}

// Remove deletes a key by hand, as Set writes one.
func (c *Client) Remove(ctx context.Context, key string, force bool) error {
	return c.change(ctx, "delete", key, force, clientv3.OpDelete(key))
}

func (c *Client) change(ctx context.Context, what, key string, force bool, change clientv3.Op) error {
	if err := checkKey(key); err != nil {
		return err
	}
	var conditions []clientv3.Cmp
	if change.IsDelete() {
		conditions = append(conditions, clientv3.Compare(clientv3.CreateRevision(key), ">", 0))
	}
	if !force {
		conditions = append(conditions, clientv3.Compare(clientv3.LeaseValue(key), "=", clientv3.NoLease))
	}
	op, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	resp, err := c.etcd.Txn(op).If(conditions...).Then(change).Else(clientv3.OpGet(key, clientv3.WithKeysOnly())).Commit()
	switch {
	case err != nil:
		return c.byHand(what, key, err)
	case resp.Succeeded:
		return nil
	case len(resp.Responses[0].GetResponseRange().Kvs) == 0:
		return fmt.Errorf("%s %s: %w", what, key, ErrNoKey)
	}
	return fmt.Errorf("%s %s: %w", what, key, ErrLeased)
}

func (c *Client) byHand(what, key string, err error) error {
	return fmt.Errorf("%s %s: %w (%s: %w)", what, key, ErrUnreachable, strings.Join(c.cfg.Endpoints, ","), explain(err))
}

func checkKey(key string) error {
	switch {
	case !strings.HasPrefix(key, keysRoot):
		return fmt.Errorf("key %q: only what begins with %s can be looked at or changed: %w", key, keysRoot, ErrKey)
	case !utf8.ValidString(key) || strings.ContainsFunc(key, unicode.IsControl) || len(key) > 2048:
		return fmt.Errorf("key %.80q: at most 2048 bytes of printable text are wanted: %w", key, ErrKey)
	}
	return nil
}
