package kvstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// leaderPrefix holds one leased key per candidate; the oldest one leads.
const leaderPrefix = "porin/leader/v1/"

// ErrNotLeader is returned by what only a leader may do when somebody else leads by now.
var ErrNotLeader = errors.New("another one leads")

// Leadership proves in a transaction that its holder still leads. What was written under an earlier one cannot come late.
type Leadership struct {
	key string
	rev int64
}

func (l Leadership) holds() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(l.key), "=", l.rev)
}

// Lead runs do whenever this process leads among those that call Lead with the same name, one at a time in the whole
// cluster. do's context ends when the leadership does. A leader that dies is followed after ttl; one that ends by itself
// at once.
func (c *Client) Lead(ctx context.Context, name, who string, ttl time.Duration, do func(context.Context, Leadership) error) error {
	for {
		err := c.leadOnce(ctx, name, who, ttl, do)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.log.Warn("not leading; trying again", "leader-of", name, "err", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *Client) leadOnce(ctx context.Context, name, who string, ttl time.Duration, do func(context.Context, Leadership) error) error {
	grant, cancel := context.WithTimeout(ctx, opTimeout)
	lease, err := c.etcd.Grant(grant, max(1, int64(ttl/time.Second)))
	cancel()
	if err != nil {
		return fmt.Errorf("lease for a leader of %s: %w", name, err)
	}
	s, err := concurrency.NewSession(c.etcd, concurrency.WithLease(lease.ID), concurrency.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("session for a leader of %s: %w", name, err)
	}
	defer s.Close() // revokes the lease: the next one leads at once
	e := concurrency.NewElection(s, leaderPrefix+name)
	term, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() {
		select {
		case <-s.Done():
			end(errors.New("the store has not heard of us for too long"))
		case <-term.Done():
		}
	}()
	if err := e.Campaign(term, who); err != nil {
		return fmt.Errorf("campaign for %s: %w", name, errors.Join(err, context.Cause(term)))
	}
	c.log.Info("leading", "leader-of", name, "as", who)
	err = do(term, Leadership{key: e.Key(), rev: e.Rev()})
	if cause := context.Cause(term); cause != nil && ctx.Err() == nil {
		err = errors.Join(cause, err)
	}
	return err
}
