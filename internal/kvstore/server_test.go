package kvstore

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"

	"porin/internal/identity"
)

func TestSocketIsForTheOwnerOnly(t *testing.T) {
	srv := newServer(t)
	newNode(t, "a", srv.cfg.Endpoint()).allocate("k8s:app=x;")
	for path, want := range map[string]os.FileMode{
		srv.cfg.Socket: 0o600, filepath.Dir(srv.cfg.Socket): 0o700, srv.cfg.Dir: 0o700,
	} {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := fi.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
}

func TestSocketPathTooLong(t *testing.T) {
	err := Serve(t.Context(), logTo(t), ServerConfig{Dir: t.TempDir(), Socket: "/" + strings.Repeat("x", 120)})
	if err == nil || !strings.Contains(err.Error(), "shorter run folder") {
		t.Errorf("got %v, want to be told to choose a shorter path", err)
	}
}

// The server dies; its process comes back and the data with it.
func TestProcessComesBack(t *testing.T) {
	dir := shortDir(t)
	cfg := ServerConfig{Dir: filepath.Join(dir, "etcd"), Socket: filepath.Join(dir, "etcd.sock")}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := Process{Log: logTo(t), Path: self, Args: []string{"serve-store", cfg.Dir, cfg.Socket}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	n := newNode(t, "a", cfg.Endpoint())
	id := n.allocate("k8s:app=x;")
	first := kill(t, cfg)
	eventually(t, "there is another process", func() bool {
		pids := storeProcesses(t, cfg)
		return len(pids) == 1 && pids[0] != first
	})
	n.allocate("k8s:app=y;")
	if got := n.keys(idPrefix)[text(id)]; got != "k8s:app=x;" {
		t.Errorf("after the restart the number means %q", got)
	}
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("Run ended with %v", err)
	}
	if pids := storeProcesses(t, cfg); len(pids) != 0 {
		t.Errorf("processes left behind: %v", pids)
	}
}

// The agent is killed without a chance to clean up: its store dies with it.
func TestProcessDiesWithItsParent(t *testing.T) {
	dir := shortDir(t)
	cfg := ServerConfig{Dir: filepath.Join(dir, "etcd"), Socket: filepath.Join(dir, "etcd.sock")}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(self, "parent-of-store", cfg.Dir, cfg.Socket)
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store's process is there", func() bool { return len(storeProcesses(t, cfg)) == 1 })
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := parent.Wait(); err == nil {
		t.Error("the killed parent ended well")
	}
	eventually(t, "the store's process is gone", func() bool { return len(storeProcesses(t, cfg)) == 0 })
}

func kill(t *testing.T, cfg ServerConfig) int {
	t.Helper()
	pids := storeProcesses(t, cfg)
	if len(pids) != 1 {
		t.Fatalf("store processes %v, want one", pids)
	}
	p, err := os.FindProcess(pids[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	return pids[0]
}

// storeProcesses finds the processes that serve this test's store.
func storeProcesses(t *testing.T, cfg ServerConfig) (pids []int) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range dirs {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // gone meanwhile
		}
		if args := strings.Split(string(b), "\x00"); len(args) > 3 && args[1] == "serve-store" && args[3] == cfg.Socket {
			n, ok := parseID(filepath.Base(filepath.Dir(f)))
			if ok {
				pids = append(pids, int(n))
			}
		}
	}
	return pids
}

// A store across the network wants certificates from both sides.
func TestTLS(t *testing.T) {
	dir := shortDir(t)
	ca := newAuthority(t, dir, "ca")
	ca.issue(t, dir, "server")
	ca.issue(t, dir, "client")
	newAuthority(t, dir, "other").issue(t, dir, "stranger")
	pem := func(name string) string { return filepath.Join(dir, name) }

	var e *embed.Etcd
	var addr string
	for try := 0; e == nil; try++ { // a free port may be another's a moment later
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr = l.Addr().String()
		l.Close()
		ec := embed.NewConfig()
		ec.Dir, ec.LogLevel, ec.ListenPeerUrls = filepath.Join(dir, "etcd"), "error", nil
		ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapTo(t.Context(), slog.New(slog.NewTextHandler(io.Discard, nil))))
		ec.ListenClientUrls = []url.URL{{Scheme: "https", Host: addr}}
		ec.AdvertiseClientUrls = ec.ListenClientUrls
		ec.ClientTLSInfo = transport.TLSInfo{CertFile: pem("server.pem"), KeyFile: pem("server.key"), TrustedCAFile: pem("ca.pem"), ClientCertAuth: true}
		if e, err = embed.StartEtcd(ec); err != nil && (try == 9 || !errors.Is(err, unix.EADDRINUSE)) {
			t.Fatal(err)
		}
	}
	defer e.Close()

	good := newNode(t, "a", "https://"+addr, func(c *Config) { c.Cert, c.Key, c.CA = pem("client.pem"), pem("client.key"), pem("ca.pem") })
	good.allocate("k8s:app=x;")
	for name, edit := range map[string]func(*Config){
		"no client certificate":       func(c *Config) { c.CA = pem("ca.pem") },
		"certificate of another CA":   func(c *Config) { c.Cert, c.Key, c.CA = pem("stranger.pem"), pem("stranger.key"), pem("ca.pem") },
		"server of an unknown CA":     func(c *Config) { c.Cert, c.Key, c.CA = pem("client.pem"), pem("client.key"), pem("other.pem") },
		"server of no system-wide CA": func(c *Config) { c.Cert, c.Key = pem("client.pem"), pem("client.key") },
	} {
		n := newNode(t, "b", "https://"+addr, edit, func(c *Config) { c.Timeout = 500 * time.Millisecond })
		if id, err := n.Allocate(t.Context(), "k8s:app=x;"); err == nil {
			t.Errorf("%s: got %d, want an error", name, id)
		}
		n.stop()
	}
	for name, cfg := range map[string]Config{
		"key without certificate": {Endpoints: []string{"https://" + addr}, Key: pem("client.key"), Node: "a"},
		"TLS files, plain store":  {Endpoints: []string{"http://" + addr}, CA: pem("ca.pem"), Node: "a"},
		"CA that is none":         {Endpoints: []string{"https://" + addr}, CA: pem("client.key"), Node: "a"},
		"missing certificate":     {Endpoints: []string{"https://" + addr}, Cert: pem("no.pem"), Key: pem("no.key"), Node: "a"},
		"node name with a slash":  {Endpoints: []string{"https://" + addr}, Node: "a/b"},
		"no node name":            {Endpoints: []string{"https://" + addr}},
	} {
		if _, err := Dial(logTo(t), cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// authority signs certificates for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir, name string) *authority {
	a := &authority{}
	a.cert, a.key = sign(t, dir, name, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	return a
}

func (a *authority) issue(t *testing.T, dir, name string) {
	sign(t, dir, name, &x509.Certificate{
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, a)
}

func sign(t *testing.T, dir, name string, tmpl *x509.Certificate, by *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	tmpl.Subject = pkix.Name{CommonName: name}
	if tmpl.NotAfter.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	if by == nil {
		by = &authority{tmpl, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by.cert, &key.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(file, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(name+".pem", "CERTIFICATE", der)
	write(name+".key", "PRIVATE KEY", keyDER)
	if _, err := tls.X509KeyPair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})); err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// The disk of the store is full: its process ends or refuses, known numbers stay, and everything is well again when there
// is room.
func TestRootDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("PORIN_UNIT") == "1" {
			t.Skip("unit run without root")
		}
		t.Fatal("needs root: run with sudo")
	}
	dir := shortDir(t)
	disk := filepath.Join(dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=160m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cfg := ServerConfig{Dir: filepath.Join(disk, "etcd"), Socket: filepath.Join(dir, "etcd.sock")}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := Process{Log: logTo(t), Path: self, Args: []string{"serve-store", cfg.Dir, cfg.Socket}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })

	n := newNode(t, "a", cfg.Endpoint(), func(c *Config) { c.Timeout = 2 * time.Second })
	var id identity.ID
	eventually(t, "the store works", func() bool {
		var err error
		id, err = n.Allocate(t.Context(), "k8s:app=before;")
		return err == nil
	})
	filler := filepath.Join(disk, "filler")
	fill(t, filler)
	// more than the store has set aside
	full := false
	for i := 0; i < 200 && !full; i++ {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := n.etcd.Put(ctx, "porin/noise/"+text(identity.ID(i)), strings.Repeat("x", 1<<20))
		cancel()
		full = err != nil
	}
	if !full {
		t.Fatal("200 MiB went onto a full disk")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	eventually(t, "new label sets get numbers again", func() bool {
		_, err := n.Allocate(t.Context(), "k8s:app=after;")
		return err == nil
	})
	if got := n.keys(idPrefix)[text(id)]; got != "k8s:app=before;" {
		t.Errorf("the number from before means %q", got)
	}
}

// fill writes until there is no room.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<20); ; {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
