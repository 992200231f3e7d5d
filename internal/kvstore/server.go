package kvstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// ServerConfig says where the embedded server keeps its data and where it listens.
type ServerConfig struct {
	Dir    string // data, made 0700
	Socket string // unix socket, in a folder that is made 0700
}

// The embedded server serves one agent and holds little: a label set is a few hundred bytes.
const (
	quotaBytes      = 256 << 20
	compactionHours = "1"
	maxSocketPath   = 107 // struct sockaddr_un
	startTimeout    = time.Minute
)

// Endpoint is the client's address of the server.
func (c ServerConfig) Endpoint() string { return "unix://" + c.Socket }

// Serve runs an etcd server in this process until ctx ends or the server dies. It listens on nothing but the unix
// socket. Some faults, a full disk for one, make etcd end the process: give it a process of its own (see Process).
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
		log.Info("embedded store ready", "dir", cfg.Dir, "socket", cfg.Socket)
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
