package kvstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// ServerConfig says where the embedded server keeps its data and where it listens.
type ServerConfig struct {
	Dir    string // data, made 0700
	Socket string // unix socket, in a folder that is made 0700

	Listen        string // HOST:PORT for other nodes; empty: none
	Cert, Key, CA string // PEM files for that listener: others need a certificate that CA signed. Empty: plain, for labs
}

// Args are the words with which a process of its own is told to serve; ParseServer reads them.
func (c ServerConfig) Args() []string {
	return []string{c.Dir, c.Socket, c.Listen, c.Cert, c.Key, c.CA}
}

// ParseServer reads what Args wrote.
func ParseServer(args []string) (ServerConfig, error) {
	if len(args) != len(ServerConfig{}.Args()) {
		return ServerConfig{}, fmt.Errorf("embedded store: %d words say how to serve, %d are wanted", len(args), len(ServerConfig{}.Args()))
	}
	return ServerConfig{args[0], args[1], args[2], args[3], args[4], args[5]}, nil
}

// listener returns where others can reach the server.
func (c ServerConfig) listener() (url.URL, transport.TLSInfo, error) {
	if _, port, err := net.SplitHostPort(c.Listen); err != nil || port == "" {
		return url.URL{}, transport.TLSInfo{}, fmt.Errorf("embedded store: listen on %q: HOST:PORT is wanted", c.Listen)
	}
	if c.Cert == "" {
		return url.URL{Scheme: "http", Host: c.Listen}, transport.TLSInfo{}, nil
	}
	if _, err := tls.LoadX509KeyPair(c.Cert, c.Key); err != nil {
		return url.URL{}, transport.TLSInfo{}, fmt.Errorf("embedded store: certificate: %w", err)
	}
	if _, err := authorities(c.CA); err != nil {
		return url.URL{}, transport.TLSInfo{}, err
	}
	return url.URL{Scheme: "https", Host: c.Listen}, transport.TLSInfo{
		CertFile: c.Cert, KeyFile: c.Key, TrustedCAFile: c.CA, ClientCertAuth: true, // the pair is read for every connection
		Logger: zap.NewNop(),
	}, nil
}

// The embedded server holds little: a label set or an address is a few hundred bytes, of which there may be 100,000.
const (
	quotaBytes      = 512 << 20
	compactionHours = "1"
	maxSocketPath   = 107 // struct sockaddr_un
	startTimeout    = time.Minute
)

// Endpoint is the client's address of the server.
func (c ServerConfig) Endpoint() string { return "unix://" + c.Socket }

// Serve runs an etcd server in this process until ctx ends or the server dies. It listens on the unix socket, and for
// other nodes if it is told to. Some faults, a full disk for one, make etcd end the process: give it a process of its own (see Process).
func Serve(ctx context.Context, log *slog.Logger, cfg ServerConfig) error {
	if len(cfg.Socket) > maxSocketPath {
		return fmt.Errorf("embedded store: socket path %s has %d characters, at most %d are possible; choose a shorter run folder",
			cfg.Socket, len(cfg.Socket), maxSocketPath)
	}
	for _, dir := range []string{cfg.Dir, filepath.Dir(cfg.Socket)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("embedded store: %w", err)
		}
	}

	ec := embed.NewConfig()
	ec.Name = "porin"
	ec.Dir = cfg.Dir
	ec.ListenPeerUrls = nil // a single member has no peers; the advertised address is only its name
	ec.ListenClientUrls = []url.URL{{Scheme: "unix", Path: cfg.Socket}}
	ec.AdvertiseClientUrls = ec.ListenClientUrls
	if cfg.Listen != "" {
		others, info, err := cfg.listener()
		if err != nil {
			return err
		}
		ec.ListenClientUrls, ec.ClientTLSInfo = append(ec.ListenClientUrls, others), info
	}
	ec.InitialCluster = ec.InitialClusterFromName(ec.Name)
	ec.InitialClusterToken = "porin"
	ec.TickMs, ec.ElectionMs = 50, 500 // nobody else to elect, so starting need not take long
	ec.QuotaBackendBytes = quotaBytes
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, compactionHours
	ec.MaxSnapFiles, ec.MaxWalFiles = 2, 2
	ec.SnapshotCount = 10_000
	ec.EnableGRPCGateway = false
	ec.LogLevel = "warn"
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapTo(ctx, log))

	e, err := embed.StartEtcd(ec)
	if err != nil {
		return fmt.Errorf("embedded store in %s: %w", cfg.Dir, err)
	}
	defer e.Close()
	if err := os.Chmod(cfg.Socket, 0o600); err != nil {
		return fmt.Errorf("embedded store: %w", err)
	}
	select {
	case <-e.Server.ReadyNotify():
		log.Info("embedded store ready", "dir", cfg.Dir, "socket", cfg.Socket, "listen", cfg.Listen, "tls", cfg.Cert != "")
	case <-time.After(startTimeout):
		return fmt.Errorf("embedded store in %s: not ready after %s", cfg.Dir, startTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-e.Server.StopNotify():
		return fmt.Errorf("embedded store in %s: %w", cfg.Dir, errStopped)
	case err := <-e.Err():
		return fmt.Errorf("embedded store in %s: %w", cfg.Dir, err)
	}
}

var errStopped = errors.New("the server stopped by itself")
