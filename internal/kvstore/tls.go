package kvstore

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
)

// tls returns nil when the endpoints are plain. The files are read for every connection, so that renewed certificates and
// authorities need no restart; they are read once here, so that a wrong setting is reported at once.
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
		if _, err := authorities(cfg.CA); err != nil {
			return nil, err
		}
		// The library would keep the authorities of the start for ever, so the check is made here, in full.
		t.InsecureSkipVerify = true
		t.VerifyConnection = func(state tls.ConnectionState) error { return verify(state, cfg.CA) }
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
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return t, nil
}

func authorities(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("store: CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("store: CA %s holds no certificate", file)
	}
	return pool, nil
}

// verify does what crypto/tls does by itself when it may: the chain, the dates, and the name.
func verify(state tls.ConnectionState, file string) error {
	pool, err := authorities(file)
	if err != nil {
		return err
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("store: it shows no certificate")
	}
	opts := x509.VerifyOptions{Roots: pool, DNSName: state.ServerName, Intermediates: x509.NewCertPool()}
	for _, c := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := state.PeerCertificates[0].Verify(opts); err != nil {
		return fmt.Errorf("tls: certificate of the store: %w", err)
	}
	return nil
}

// hints say what to do about errors of the handshake, by what they hold. The first that fits counts.
var hints = []struct{ sign, what string }{
	{"certificate required", "the store wants a client certificate: set --kvstore-cert and --kvstore-key"},
	{"tls: unknown certificate authority", "the store does not know who signed this node's certificate: give --kvstore-cert one that its authority signed"},
	{"tls: bad certificate", "the store does not accept this node's certificate: look at the file of --kvstore-cert, its authority, its dates, and that it is for clients"},
	{"tls: expired certificate", "this node's certificate has expired: renew the file of --kvstore-cert"},
	{"certificate has expired or is not yet valid", "the store's certificate is not valid now: renew it, or set this node's clock"},
	{"signed by unknown authority", "this node does not know who signed the store's certificate: give --kvstore-ca that authority's certificate"},
	{"cannot validate certificate for", "the store's certificate is not for this address: issue it for the address in --kvstore, or use the name that it is for"},
	{"certificate is not valid for any names", "the store's certificate is not for this name: issue it for the name in --kvstore"},
	{"certificate is valid for", "the store's certificate is not for this name: issue it for the name in --kvstore"},
	{"first record does not look like a TLS handshake", "the store does not speak TLS: begin the endpoint with http://"},
	{"malformed HTTP response", "the store speaks TLS: begin the endpoint with https://"},
	{"permission denied", "this node's user may not do that in the store: look at its role (etcdctl role get)"},
	{"connection refused", "nobody listens there: is the store running, and is this its address?"},
}

// explain adds what to do about it.
func explain(err error) error {
	text := err.Error()
	for _, h := range hints {
		if strings.Contains(text, h.sign) {
			return fmt.Errorf("%w (%s)", err, h.what)
		}
	}
	return err
}
