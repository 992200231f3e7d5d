package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"porin/internal/lab/gate"
	"porin/internal/lab/space"
)

// The store of a cluster is a place of its own on the nodes' network, so that its cable can be cut like any other:
//
//	node1 ...       store: gate (TCP 2379) ── unix socket ── etcd
//	   └──── br0 ─────┘
const (
	storeName  = "store"
	storePort  = 2379
	storeStart = 30 * time.Second
)

func storeAddr(v6 bool) netip.Addr {
	if v6 {
		return underlay6().Addr().Next().Next()
	}
	return underlay4().Addr().Next().Next()
}

// storeEndpoint is what the agents are told.
func (l *Lab) storeEndpoint() string {
	return "http://" + netip.AddrPortFrom(storeAddr(!l.spec.wired(ipv4)), storePort).String()
}

func (l *Lab) storeSocket() string { return l.path("store", "etcd.sock") }
func (l *Lab) slowFile() string    { return l.path("store", "slow") }

func (l *Lab) buildStore(ctx context.Context) error {
	t0 := time.Now()
	p := place{
		Kind: kindStore, Name: storeName, Netns: l.path("ns", storeName), Cgroup: filepath.Join(l.state.Cgroup, storeName), Port: storeName,
	}
	if err := space.NewCgroup(p.Cgroup); err != nil {
		return err
	}
	if err := space.NewNetns(p.Netns); err != nil {
		return err
	}
	if err := os.Mkdir(l.path("store"), 0o700); err != nil {
		return fmt.Errorf("make the store's folder: %w", err)
	}
	inner := space.End{Netns: p.Netns, Name: uplink}
	for _, a := range l.wired(
		netip.PrefixFrom(storeAddr(false), underlay4().Bits()), netip.PrefixFrom(storeAddr(true), underlay6().Bits())) {
		p.Addrs = append(p.Addrs, a.Addr())
		inner.Addrs = append(inner.Addrs, a)
	}
	if err := space.Connect(space.End{Netns: l.path("ns", underlayNS), Name: p.Port, Master: bridge}, inner); err != nil {
		return err
	}
	if err := space.Filter(l.path("ns", underlayNS), p.Port, nil); err != nil { // the place for faults
		return err
	}
	if err := l.addPlace(p); err != nil {
		return err
	}
	if err := l.StartStore(ctx); err != nil {
		return err
	}
	l.tell.done(t0, "store: %s", l.storeEndpoint())
	return nil
}

// store returns the lab's own store.
func (l *Lab) store() (place, error) {
	p, err := l.place(storeName)
	if err != nil || p.Kind != kindStore {
		return place{}, fmt.Errorf("lab %s has no store of its own: it has one with several nodes and 'store: embedded'", l.state.Name)
	}
	return p, nil
}

// StartStore starts the store if it does not run, and waits until it listens.
func (l *Lab) StartStore(ctx context.Context) error {
	p, err := l.store()
	if err != nil {
		return err
	}
	if !p.Server.Alive() {
		if err := os.Remove(l.storeSocket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the socket of the former store: %w", err)
		}
		agent := filepath.Join(l.state.BinDir, "porin-agent")
		cmd := &exec.Cmd{Path: agent, Args: []string{agent, "store", l.path("store", "data"), l.storeSocket(), "", "", "", ""}} // no listener of its own
		proc, err := l.start(cmd, space.Where{Netns: p.Netns, Cgroup: p.Cgroup}, storeName)
		if err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		if err := l.update(storeName, func(p *place) { p.Server = proc }); err != nil {
			return err
		}
		if err := l.storeListens(ctx, ended); err != nil {
			return fmt.Errorf("start the store: %w\n%s", err, lastLines(l.path("log", storeName+".log"), 10))
		}
	}
	if p.Gate.Alive() {
		return nil
	}
	cfg := gate.Config{Socket: l.storeSocket(), Slow: l.slowFile()}
	for _, a := range p.Addrs {
		cfg.Listen = append(cfg.Listen, netip.AddrPortFrom(a, storePort).String())
	}
	b, err := json.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("describe the store's gate: %w", err)
	}
	proc, err := l.startReady(ctx, self("gate", string(b)), space.Where{Netns: p.Netns, Cgroup: p.Cgroup}, storeName+"-gate")
	if err != nil {
		return err
	}
	return l.update(storeName, func(p *place) { p.Gate = proc })
}

func (l *Lab) storeListens(ctx context.Context, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, storeStart)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("unix", l.storeSocket())
		if err == nil {
			return c.Close()
		}
		select {
		case err := <-ended:
			return fmt.Errorf("it ended: %w", exited(err))
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// KillStore ends the store as a crash would: at once, and its door with it.
func (l *Lab) KillStore(ctx context.Context) error {
	p, err := l.store()
	if err != nil {
		return err
	}
	// the gate first: nobody may be told more than the connection's end
	return errors.Join(p.Gate.Signal(ctx, syscall.SIGKILL), p.Server.Signal(ctx, syscall.SIGKILL))
}

// WipeStore takes everything away that the store knows, and starts it again empty.
func (l *Lab) WipeStore(ctx context.Context) error {
	if err := l.KillStore(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(l.path("store", "data")); err != nil {
		return fmt.Errorf("wipe the store: %w", err)
	}
	return l.StartStore(ctx)
}

// SlowStore makes every write of the store take so long; 0 makes it fast again.
func (l *Lab) SlowStore(d time.Duration) error {
	if _, err := l.store(); err != nil {
		return err
	}
	if d <= 0 {
		if err := os.Remove(l.slowFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make the store fast again: %w", err)
		}
		return nil
	}
	tmp := l.slowFile() + ".tmp"
	if err := os.WriteFile(tmp, []byte(d.String()), 0o600); err != nil {
		return fmt.Errorf("make the store slow: %w", err)
	}
	if err := os.Rename(tmp, l.slowFile()); err != nil {
		return fmt.Errorf("make the store slow: %w", err)
	}
	return nil
}

// storeState tells in words how the store is.
func (l *Lab) storeState() (string, error) {
	p, err := l.store()
	if err != nil {
		return "", err
	}
	if !p.Server.Alive() || !p.Gate.Alive() {
		return "down", nil
	}
	if b, err := os.ReadFile(l.slowFile()); err == nil {
		return "up, every write takes " + strings.TrimSpace(string(b)), nil
	}
	return "up", nil
}
