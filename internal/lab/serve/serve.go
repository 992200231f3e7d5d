// Package serve assembles a workload's built-in servers: echo over TCP and UDP, and a small HTTP server.
// It reads requests from the network and writes back what it was sent, or a page that names the client as seen.
// It never trusts, stores or forwards anything.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

// Kinds of servers.
const (
	Echo = "echo"
	HTTP = "http"
)

// Server says what to listen on.
type Server struct {
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"` // TCP or UDP
	Kind     string `json:"kind"`     // Echo or HTTP
	Name     string `json:"name,omitempty"`
}

// Config of all servers of one workload.
type Config struct {
	Hostname string       `json:"hostname"`
	Servers  []Server     `json:"servers"`
	Addrs    []netip.Addr `json:"addrs"`    // listen on these only; none: on every address of Families
	Families []string     `json:"families"` // "ipv4", "ipv6"
}

// Run listens on everything in cfg, calls ready, and serves until ctx ends.
func Run(ctx context.Context, cfg Config, ready func() error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range cfg.Servers {
		for _, addr := range cfg.addrs() {
			if err := start(ctx, g, cfg.Hostname, s, addr); err != nil {
				return err
			}
		}
	}
	if err := ready(); err != nil {
		return err
	}
	g.Go(func() error { <-ctx.Done(); return nil })
	return g.Wait()
}

// addrs: one socket per family (or address), never one for both families, so that every reply leaves from the address
// that was asked.
func (c Config) addrs() []netip.Addr {
	if len(c.Addrs) > 0 {
		return c.Addrs
	}
	var out []netip.Addr
	for _, f := range c.Families {
		if f == "ipv4" {
			out = append(out, netip.IPv4Unspecified())
		} else {
			out = append(out, netip.IPv6Unspecified())
		}
	}
	return out
}

func start(ctx context.Context, g *errgroup.Group, hostname string, s Server, addr netip.Addr) error {
	at := netip.AddrPortFrom(addr, s.Port).String()
	family := "4"
	if addr.Is6() {
		family = "6"
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // what an ordinary program opens
	switch {
	case s.Protocol == "UDP" && s.Kind == Echo:
		c, err := lc.ListenPacket(ctx, "udp"+family, at)
		if err != nil {
			return fmt.Errorf("serve %s on %s/UDP: %w", s.Kind, at, err)
		}
		context.AfterFunc(ctx, func() { c.Close() })
		g.Go(func() error { return closed(ctx, echoUDP(c)) })
	case s.Protocol == "TCP" && (s.Kind == Echo || s.Kind == HTTP):
		l, err := lc.Listen(ctx, "tcp"+family, at)
		if err != nil {
			return fmt.Errorf("serve %s on %s/TCP: %w", s.Kind, at, err)
		}
		context.AfterFunc(ctx, func() { l.Close() })
		if s.Kind == HTTP {
			srv := &http.Server{Handler: page(hostname), ReadHeaderTimeout: 5 * time.Second}
			g.Go(func() error { return closed(ctx, srv.Serve(l)) })
			return nil
		}
		g.Go(func() error { return closed(ctx, echoTCP(l)) })
	default:
		return fmt.Errorf("serve %s on port %d/%s: no such server", s.Kind, s.Port, s.Protocol)
	}
	return nil
}

func closed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func echoTCP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			if ne, ok := errors.AsType[*net.OpError](err); ok && ne.Temporary() {
				continue
			}
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		go func() {
			defer c.Close()
			if _, err := io.Copy(c, c); err != nil {
				return // the client went away; nobody else is concerned
			}
		}()
	}
}

func echoUDP(c net.PacketConn) error {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an ICMP error that belongs to an earlier reply
		}
		if _, err := c.WriteTo(buf[:n], from); err != nil && errors.Is(err, net.ErrClosed) {
			return err
		}
	}
}

// page names the server and what it saw of the client; a POST gets its body back.
func page(hostname string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, "host: %s\nclient: %s\nrequest: %s %s\n", hostname, r.RemoteAddr, r.Method, r.URL.EscapedPath())
		if r.Body != nil {
			if _, err := io.Copy(w, io.LimitReader(r.Body, 1<<20)); err != nil {
				fmt.Fprintln(os.Stderr, "copy request body:", err)
			}
		}
	})
}
