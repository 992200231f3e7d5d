package kvstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
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
	lease   clientv3.LeaseID // mu: 0 means that a new one is needed
	state   string           // mu: "" before the first answer
	cluster uint64           // mu: id of the cluster that answered last
	rev     int64            // mu: its revision then
	relist  chan struct{}    // mu: closed when the store is not the one it was
}

// opTimeout bounds a single request; what waits longer repeats it.
const opTimeout = 3 * time.Second

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
	return &Client{log: log, cfg: cfg, etcd: etcd, relist: make(chan struct{})}, nil
}

// Close ends the connection. The lease stays: what this node claims is still in use while its agent restarts.
func (c *Client) Close() error { return c.etcd.Close() }

// tls returns nil when the endpoints are plain.
func (cfg Config) tls() (*tls.Config, error) {
	secure := false
	for _, e := range cfg.Endpoints {
		secure = secure || strings.HasPrefix(e, "https://")
	}
	if !secure {
		if cfg.Cert+cfg.Key+cfg.CA != "" {
			return nil, errors.New("store: TLS files are given but no endpoint begins with https://")
		}
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CA != "" {
		pem, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, fmt.Errorf("store: CA: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("store: CA %s holds no certificate", cfg.CA)
		}
	}
	if (cfg.Cert == "") != (cfg.Key == "") {
		return nil, errors.New("store: a client certificate needs both --kvstore-cert and --kvstore-key")
	}
	if cfg.Cert != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
			if err != nil {
				return nil, fmt.Errorf("store: client certificate: %w", err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		// read for every connection, so that a renewed certificate needs no restart
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return t, nil
}

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
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	resp, err := c.etcd.Grant(ctx, int64(c.cfg.LeaseTTL/time.Second))
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lease == 0 {
		c.lease = resp.ID
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
		c.log.Warn("store lease lost; claiming again under a new one", "lease", fmt.Sprintf("%x", int64(id)))
	}
}

// beat renews the lease and looks whether the store still is the one it was: another cluster, or one whose revision
// went back, has lost what watchers know, and would let them wait for ever.
func (c *Client) beat(ctx context.Context) error {
	var err error
	for range 2 { // a second time with a new lease
		var id clientv3.LeaseID
		if id, err = c.currentLease(ctx); err != nil {
			break
		}
		var resp *clientv3.LeaseKeepAliveResponse
		op, cancel := context.WithTimeout(ctx, opTimeout)
		resp, err = c.etcd.KeepAliveOnce(op, id)
		cancel()
		if err == nil {
			err = c.met(ctx, resp.ClusterId, resp.Revision)
		}
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			break
		}
		c.lost(id)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.state
	if err != nil {
		c.state = fmt.Sprintf("%s: %v", strings.Join(c.cfg.Endpoints, ","), err)
	} else {
		c.state = "ok"
	}
	if (was == "ok") != (c.state == "ok") && ctx.Err() == nil {
		if err != nil {
			c.log.Warn("store does not answer; known identities stay, new label sets wait", "err", err)
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
		resp, err := c.etcd.Get(op, root, clientv3.WithCountOnly())
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
		op, cancel := context.WithTimeout(ctx, opTimeout)
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
