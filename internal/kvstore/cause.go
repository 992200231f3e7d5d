package kvstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"
)

// cause finds out why the store does not answer. The library says no more than that time ran out, so each endpoint is
// called once, as far as a certificate that is not accepted shows.
func (c *Client) cause(ctx context.Context) error {
	config, err := c.cfg.tls()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range c.cfg.Endpoints {
		u, err := url.Parse(e)
		if err != nil {
			return fmt.Errorf("endpoint %q: %w", e, err)
		}
		if err := call(ctx, u, config); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func call(ctx context.Context, u *url.URL, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	network, address := "tcp", u.Host
	if u.Scheme == "unix" {
		network, address = "unix", u.Path
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if u.Scheme != "https" {
		return nil
	}
	config = config.Clone()
	config.ServerName, config.NextProtos = u.Hostname(), []string{"h2"}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return err
	}
	// With TLS 1.3 the server refuses a client only after the client is done.
	if err := secure.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return err
	}
	_, err = secure.Read(make([]byte, 1))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	return err
}
