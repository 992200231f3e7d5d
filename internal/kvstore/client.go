package kvstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Config of a Client. The zero value of a duration means its default.
type Config struct {
	Endpoints     []string // unix:///path, http://host:port, https://host:port
	Cert, Key, CA string   // PEM files, read again for every new connection
	Node          string   // this node's name in the store; no '/'

	LeaseTTL  time.Duration // how long this node's claims outlive it (default 15 min)
	Heartbeat time.Duration // how often the lease is renewed and the store looked at (default 5 s)
	Timeout   time.Duration // how long a new label set waits for the store (default 10 s)
	Rest      time.Duration // how long a collected number rests (default 1 h)
	Collect   time.Duration // time between two passes of the collector (default 5 min)
	First     uint32        // lowest number to give out (default 256)
	Last      uint32        // highest (default 65535)

	// ReadOnly clients of another cluster's store take no lease and never write.
	ReadOnly bool
	Cluster  string // whose records a ReadOnly client reads
	// Did, if given, is told of every operation: scope (addresses, node, identities, heartbeat), how long it took, and
	// how it went.
	Did func(scope string, took time.Duration, err error)
}

func (c *Config) defaults() {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&c.LeaseTTL, 15 * time.Minute},
		{&c.Heartbeat, 5 * time.Second},
		{&c.Timeout, 10 * time.Second},
		{&c.Rest, time.Hour},
		{&c.Collect, 5 * time.Minute},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if c.First == 0 {
		c.First = 256
	}
	if c.Last == 0 {
		c.Last = 65535
	}
}

// Client is a connection to the store with a lease that lives as long as this node does.
type Client struct {
	log  *slog.Logger
	cfg  Config
	etcd *clientv3.Client

	mu      sync.Mutex
	lease   clientv3.LeaseID  // mu: 0 means that a new one is needed
	state   string            // mu: "" before the first answer
	cluster uint64            // mu: id of the cluster that answered last
	rev     int64             // mu: its revision then
	relist  chan struct{}     // mu: closed when the store is not the one it was
	renewed chan struct{}     // mu: closed when there is another lease, or none
	losses  uint64            // mu: how often the store was not the one it was
	answer  time.Time         // mu: when it answered last
	counts  map[string]uint64 // mu
}

const (
	// opTimeout bounds a request that changes nothing; what waits longer repeats it.
	opTimeout = 3 * time.Second
	// writeTimeout is longer: a store whose disk is slow carries a request out long after a shorter time would have made
	// us repeat it. It is shorter than Config.Timeout, so that a request that got lost is repeated once at least.
	writeTimeout = 8 * time.Second
)

// Dial prepares a client. It reads the TLS files but connects to nothing yet.
func Dial(log *slog.Logger, cfg Config) (*Client, error) {
	cfg.defaults()
	if cfg.Node == "" || strings.Contains(cfg.Node, "/") {
		return nil, fmt.Errorf("store: node name %q must not be empty nor hold a '/'", cfg.Node)
	}
	tlsConfig, err := cfg.tls()
	if err != nil {
		return nil, err
	}
	etcd, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  tlsConfig,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               zapTo(context.Background(), log),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			// soon back after a long outage: gRPC's own waiting grows to two minutes
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: opTimeout,
		})},
	})
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", strings.Join(cfg.Endpoints, ","), err)
	}
	return &Client{
		log: log, cfg: cfg, etcd: etcd, relist: make(chan struct{}), renewed: make(chan struct{}), counts: map[string]uint64{},
	}, nil
}

// Close ends the connection. The lease stays: what this node claims is still in use while its agent restarts.
func (c *Client) Close() error { return c.etcd.Close() }

// Healthy tells whether the store answered the last heartbeat, and if not, why.
func (c *Client) Healthy() (ok bool, message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state {
	case "":
		return false, "waiting for the store's first answer"
	case "ok":
		return true, fmt.Sprintf("revision %d", c.rev)
	}
	return false, c.state
}

// currentLease returns the lease under which claims are written, a new one if need be.
func (c *Client) currentLease(ctx context.Context) (clientv3.LeaseID, error) {
	c.mu.Lock()
	id := c.lease
	c.mu.Unlock()
	if id != 0 {
		return id, nil
	}
	op, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	resp, err := c.etcd.Grant(op, int64(c.cfg.LeaseTTL/time.Second))
	if err != nil {
		return 0, err
	}
	if err := c.met(ctx, resp.ClusterId, resp.Revision); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lease == 0 {
		c.lease = resp.ID
		c.tellRenewed()
		return c.lease, nil
	}
	// somebody was faster; ours is empty and ends by itself
	return c.lease, nil
}

// lost forgets a lease that the store does not know any more.
func (c *Client) lost(id clientv3.LeaseID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lease == id && id != 0 {
		c.lease = 0
		c.tellRenewed()
		c.log.Warn("store lease lost; claiming again under a new one", "lease", fmt.Sprintf("%x", int64(id)))
	}
}

// tellRenewed wakes who writes under the lease. The lock is held.
func (c *Client) tellRenewed() {
	close(c.renewed)
	c.renewed = make(chan struct{})
}

// leaseChanged returns a channel that closes when records must be written under another lease.
func (c *Client) leaseChanged() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.renewed
}

// Silent tells for how long the store has not answered; 0 while it does. Before its first answer it counts from since.
func (c *Client) Silent(since, now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == "ok" {
		return 0
	}
	if c.answer.After(since) {
		since = c.answer
	}
	return now.Sub(since)
}

// count counts something that is no operation.
func (c *Client) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

// Counts returns what was counted: refused records, listings, and times that the store was lost.
func (c *Client) Counts() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := maps.Clone(c.counts)
	out["lost"] = c.losses
	return out
}

// do runs a transaction and tells Config.Did.
func (c *Client) do(ctx context.Context, scope string, f func(context.Context) (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error) {
	began := time.Now()
	resp, err := f(ctx)
	if c.cfg.Did != nil {
		c.cfg.Did(scope, time.Since(began), err)
	}
	return resp, err
}

// Beat looks after a ReadOnly client's store until ctx ends. Others do that while Identities.Run runs.
func (c *Client) Beat(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.Heartbeat)
	defer tick.Stop()
	for {
		_ = c.beat(ctx) // Healthy tells
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// glance asks a store that may not be written to.
func (c *Client) glance(ctx context.Context) error {
	op, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	resp, err := c.etcd.Get(op, StatePrefix(c.cfg.Cluster), clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	return c.met(ctx, resp.Header.ClusterId, resp.Header.Revision)
}

// keep renews the lease.
func (c *Client) keep(ctx context.Context) error {
	var err error
	for range 2 { // a second time with a new lease
		var id clientv3.LeaseID
		if id, err = c.currentLease(ctx); err != nil {
			return err
		}
		var resp *clientv3.LeaseKeepAliveResponse
		op, cancel := context.WithTimeout(ctx, opTimeout)
		resp, err = c.etcd.KeepAliveOnce(op, id)
		cancel()
		if err == nil {
			err = c.met(ctx, resp.ClusterId, resp.Revision)
		}
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return err
		}
		c.lost(id)
	}
	return err
}

// beat renews the lease and looks whether the store still is the one it was: another cluster, or one whose revision
// went back, has lost what watchers know, and would let them wait for ever.
func (c *Client) beat(ctx context.Context) error {
	began := time.Now()
	var err error
	if c.cfg.ReadOnly {
		err = c.glance(ctx)
	} else {
		err = c.keep(ctx)
	}
	if c.cfg.Did != nil && ctx.Err() == nil {
		c.cfg.Did("heartbeat", time.Since(began), err)
	}
	if err != nil && ctx.Err() == nil {
		if why := c.cause(ctx); why != nil {
			err = why
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.state
	if err != nil {
		c.state = fmt.Sprintf("%s: %v", strings.Join(c.cfg.Endpoints, ","), explain(err))
	} else {
		c.state, c.answer = "ok", time.Now()
	}
	if (was == "ok") != (c.state == "ok") && ctx.Err() == nil {
		if err != nil {
			c.log.Warn("store does not answer; known identities stay, new label sets wait", "err", explain(err))
		} else {
			c.log.Info("store answers", "endpoints", strings.Join(c.cfg.Endpoints, ","))
		}
	}
	return err
}

// met notes which cluster answered at which revision.
func (c *Client) met(ctx context.Context, cluster uint64, rev int64) error {
	if c.older(cluster, rev) { // or only a member that lags behind: ask the quorum
		op, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		resp, err := c.etcd.Get(op, StatePrefix(c.cfg.Cluster), clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		cluster, rev = resp.Header.ClusterId, resp.Header.Revision
	}
	older := c.older(cluster, rev)
	c.mu.Lock()
	defer c.mu.Unlock()
	if older {
		c.log.Warn("store is not what it was; reading everything again",
			"cluster", fmt.Sprintf("%x", cluster), "rev", rev, "was", fmt.Sprintf("%x", c.cluster), "was-rev", c.rev)
		c.losses++
		close(c.relist)
		c.relist = make(chan struct{})
	}
	c.cluster, c.rev = cluster, rev
	return nil
}

// older tells whether the answer comes from another cluster or from before the last one.
func (c *Client) older(cluster uint64, rev int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cluster != 0 && (cluster != c.cluster || rev < c.rev)
}

func (c *Client) relisting() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relist
}

// retry calls f until it goes well, fails for good, or ctx ends; it waits a little longer each time.
func retry(ctx context.Context, f func(context.Context) error) error {
	wait := 20 * time.Millisecond
	for {
		op, cancel := context.WithTimeout(ctx, writeTimeout)
		err := f(op)
		cancel()
		if err == nil || final(err) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
		wait = min(2*wait, time.Second)
	}
}

// permanent marks an error that waiting does not heal.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

func final(err error) bool {
	return errors.As(err, &permanent{}) || errors.Is(err, rpctypes.ErrPermissionDenied) || errors.Is(err, rpctypes.ErrAuthFailed)
}
