package kvstore

import (
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// realEtcd is Debian's etcd, which speaks TLS only and wants client certificates.
type realEtcd struct {
	t        *testing.T
	dir      string
	endpoint string
	peer     string
	cmd      *exec.Cmd
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func newRealEtcd(t *testing.T, dir string) *realEtcd {
	t.Helper()
	e := &realEtcd{t: t, dir: dir, endpoint: fmt.Sprintf("https://127.0.0.1:%d", freePort(t)), peer: fmt.Sprintf("http://127.0.0.1:%d", freePort(t))}
	e.start()
	t.Cleanup(e.stop)
	return e
}

func (e *realEtcd) start() {
	e.t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		e.t.Fatal("etcd is not installed: apt-get install etcd-server")
	}
	pem := func(name string) string { return filepath.Join(e.dir, name) }
	e.cmd = exec.Command(path, "--name=t", "--data-dir="+pem("data"), "--logger=zap", "--log-level=error",
		"--listen-client-urls="+e.endpoint, "--advertise-client-urls="+e.endpoint, "--listen-peer-urls="+e.peer,
		"--initial-advertise-peer-urls="+e.peer, "--initial-cluster=t="+e.peer,
		"--cert-file="+pem("server.pem"), "--key-file="+pem("server.key"), "--trusted-ca-file="+pem("ca.pem"), "--client-cert-auth")
	log, err := os.OpenFile(pem("etcd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		e.t.Fatal(err)
	}
	defer log.Close()
	e.cmd.Stdout, e.cmd.Stderr = log, log
	e.cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
}

func (e *realEtcd) stop() {
	if e.cmd == nil {
		return
	}
	if err := e.cmd.Process.Kill(); err != nil {
		e.t.Errorf("stop etcd: %v", err)
	}
	_ = e.cmd.Wait() // killed
	e.cmd = nil
	if e.t.Failed() {
		b, _ := os.ReadFile(filepath.Join(e.dir, "etcd.log"))
		e.t.Logf("etcd's log:\n%s", b)
	}
}

// A real etcd with client certificates: records and numbers go in and out, also after it was killed; certificates and
// authorities are replaced while everything runs.
func TestRealEtcd(t *testing.T) {
	dir := shortDir(t)
	ca := newAuthority(t, dir, "ca")
	ca.issue(t, dir, "server")
	ca.issue(t, dir, "client")
	pem := func(name string) string { return filepath.Join(dir, name) }
	etcd := newRealEtcd(t, dir)
	secure := func(c *Config) { c.Cert, c.Key, c.CA = pem("client.pem"), pem("client.key"), pem("ca.pem") }
	a, b := newReporter(t, "a", etcd.endpoint, Claim{}, secure), newReporter(t, "b", etcd.endpoint, Claim{}, secure)
	a.publish(1, 7)
	b.publish(2, 7)
	all := []string{"a", "b", "a/10.1.0.7=300", "b/10.2.0.7=300"}
	a.sees("knows both", all...)
	id := a.allocate("k8s:app=x;")
	if got := b.allocate("k8s:app=x;"); got != id {
		t.Errorf("b got %d, a %d", got, id)
	}
	etcd.stop()
	etcd.start()
	a.records.PublishAddresses(at(1, 8), nil)
	b.sees("hears of a change after etcd was killed", append(all, "a/10.1.0.8=300")...)

	// another authority, another server, another client: no agent is started again
	next := newAuthority(t, dir, "ca")
	next.issue(t, dir, "server")
	etcd.stop()
	etcd.start()
	eventually(t, "a says why it is not let in", func() bool {
		ok, why := a.client.Healthy()
		return !ok && strings.Contains(why, "--kvstore-c")
	})
	next.issue(t, dir, "client")
	a.records.PublishAddresses(at(1, 9), nil)
	b.sees("hears of a change after the certificates were replaced", append(all, "a/10.1.0.8=300", "a/10.1.0.9=300")...)
}

// What keeps a node out is said, with what to do about it, and tried again.
func TestWhyTheStoreLetsNobodyIn(t *testing.T) {
	dir := shortDir(t)
	ca := newAuthority(t, dir, "ca")
	ca.issue(t, dir, "server")
	ca.issue(t, dir, "client")
	other := newAuthority(t, dir, "other")
	other.issue(t, dir, "stranger")
	sign(t, dir, "old", &x509.Certificate{
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
	}, ca)
	pem := func(name string) string { return filepath.Join(dir, name) }
	srv := newServer(t, func(c *ServerConfig) {
		c.Listen = fmt.Sprintf("127.0.0.1:%d", freePort(t))
		c.Cert, c.Key, c.CA = pem("server.pem"), pem("server.key"), pem("ca.pem")
	})
	endpoint := "https://" + srv.cfg.Listen
	good := newNode(t, "good", endpoint, func(c *Config) { c.Cert, c.Key, c.CA = pem("client.pem"), pem("client.key"), pem("ca.pem") })
	good.allocate("k8s:app=x;")
	for _, c := range []struct {
		name, want string
		endpoint   string
		edit       func(*Config)
	}{
		{"no client certificate", "set --kvstore-cert and --kvstore-key", endpoint, func(c *Config) { c.CA = pem("ca.pem") }},
		{"client of another authority", "one that its authority signed", endpoint, func(c *Config) { c.Cert, c.Key, c.CA = pem("stranger.pem"), pem("stranger.key"), pem("ca.pem") }},
		{"expired client", "--kvstore-cert", endpoint, func(c *Config) { c.Cert, c.Key, c.CA = pem("old.pem"), pem("old.key"), pem("ca.pem") }},
		{"server of an unknown authority", "give --kvstore-ca that authority's certificate", endpoint, func(c *Config) { c.Cert, c.Key, c.CA = pem("client.pem"), pem("client.key"), pem("other.pem") }},
		{"another name", "not for this", "https://localhost" + srv.cfg.Listen[strings.LastIndex(srv.cfg.Listen, ":"):], func(c *Config) { c.Cert, c.Key, c.CA = pem("client.pem"), pem("client.key"), pem("ca.pem") }},
		{"nobody there", "is the store running", fmt.Sprintf("https://127.0.0.1:%d", freePort(t)), func(c *Config) { c.Cert, c.Key, c.CA = pem("client.pem"), pem("client.key"), pem("ca.pem") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, "n", c.endpoint, c.edit)
			eventually(t, "it says "+c.want, func() bool {
				ok, why := n.client.Healthy()
				return !ok && strings.Contains(why, c.want)
			})
			n.stop()
		})
	}
}
