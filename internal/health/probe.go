package health

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"
)

// ICMP types of an echo.
const (
	echo4, reply4 = 8, 0
	echo6, reply6 = 128, 129
)

// ping waits for the answer to one echo request.
func ping(ctx context.Context, to netip.Addr) error {
	network, request, reply := "ip4:icmp", byte(echo4), byte(reply4)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", echo6, reply6
	}
	conn, err := net.DialIP(network, nil, &net.IPAddr{IP: to.AsSlice()})
	if err != nil {
		return fmt.Errorf("ping %s: %w", to, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	msg := make([]byte, 8, 40)
	msg[0] = request
	_, _ = rand.Read(msg[4:6]) // never fails
	msg[7] = 1
	msg = append(msg, rand.Text()...)
	if to.Is4() { // the kernel fills in ICMPv6 checksums only
		binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	}
	if _, err := conn.Write(msg); err != nil {
		return fmt.Errorf("ping %s: %w", to, err)
	}
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(buf) // without the IP header
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("ping %s: no answer", to)
		case err != nil:
			return fmt.Errorf("ping %s: %w", to, err)
		}
		if a, ok := from.(*net.IPAddr); ok && a.IP.Equal(to.AsSlice()) && n == len(msg) && buf[0] == reply && bytes.Equal(buf[4:n], msg[4:]) {
			return nil
		}
	}
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// path is what is asked for.
const path = "/hello"

// get asks for path and wants status 200.
func get(ctx context.Context, to netip.Addr) error {
	transport := &http.Transport{ // a connection of its own each time: that one can be made is the question
		DisableKeepAlives: true, DialContext: (&net.Dialer{FallbackDelay: -1}).DialContext, MaxResponseHeaderBytes: 4 << 10,
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(to.String(), strconv.Itoa(Port))+path, nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", to, err)
	}
	resp, err := transport.RoundTrip(req)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("ask %s: no answer", to)
	}
	if err != nil {
		return fmt.Errorf("ask %s: %w", to, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask %s: status %s", to, resp.Status)
	}
	return nil
}

// Serve answers those who ask on l, until ctx ends.
func Serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "porin\n") // says nothing that a stranger could use
	})
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second,
		IdleTimeout: 10 * time.Second, MaxHeaderBytes: 4 << 10,
	}
	srv.SetKeepAlivesEnabled(false)
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(bounded{l, make(chan struct{}, maxClients)}); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health on %s: %w", l.Addr(), err)
	}
	return ctx.Err()
}

// maxClients are served at once; more wait in the kernel's queue.
const maxClients = 64

// bounded is a listener that hands out a bounded number of connections at once.
type bounded struct {
	net.Listener
	open chan struct{}
}

func (b bounded) Accept() (net.Conn, error) {
	b.open <- struct{}{}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.open
		return nil, err
	}
	return &counted{Conn: c, open: b.open}, nil
}

type counted struct {
	net.Conn
	open chan struct{}
	once bool
}

func (c *counted) Close() error {
	err := c.Conn.Close()
	if !c.once { // net/http closes a connection from one goroutine at a time
		c.once = true
		<-c.open
	}
	return err
}
