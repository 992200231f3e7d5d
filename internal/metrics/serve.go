package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Handler serves GET /metrics. It sends no CORS header: a web page in somebody's browser must not read it.
func (m *Metrics) Handler() http.Handler {
	prom := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		EnableOpenMetrics:   true,
		MaxRequestsInFlight: 4, // a scrape walks tables: a flood of them must not starve the agent
		Timeout:             10 * time.Second,
	})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", http.MaxBytesHandler(prom, 0))
	return mux
}

// Serve listens on address until ctx ends. An empty address means no listener; it returns nil at once.
func (m *Metrics) Serve(ctx context.Context, address string) error {
	if address == "" {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen for Prometheus on %s: %w; choose another with --metrics-address, or '' for none", address, err)
	}
	return m.serve(ctx, l)
}

func (m *Metrics) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           m.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	stopped := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stopped()
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve Prometheus on %s: %w", l.Addr(), err)
	}
	return nil
}
