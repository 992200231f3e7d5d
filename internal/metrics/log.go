package metrics

import (
	"context"
	"log/slog"
)

// SubsystemKey is the log attribute that names the room a line is from.
const SubsystemKey = "subsystem"

// Count returns a log handler that passes on to next and counts errors and warnings by subsystem.
func (m *Metrics) Count(next slog.Handler) slog.Handler {
	return &counting{m: m, next: next, subsystem: "agent"}
}

type counting struct {
	m         *Metrics
	next      slog.Handler
	subsystem string
}

func (c *counting) Enabled(ctx context.Context, l slog.Level) bool { return c.next.Enabled(ctx, l) }

func (c *counting) Handle(ctx context.Context, r slog.Record) error {
	switch {
	case r.Level >= slog.LevelError:
		c.m.logged.WithLabelValues("error", c.subsystem).Inc()
	case r.Level >= slog.LevelWarn:
		c.m.logged.WithLabelValues("warning", c.subsystem).Inc()
	}
	return c.next.Handle(ctx, r)
}

func (c *counting) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := *c
	for _, a := range attrs {
		if a.Key == SubsystemKey {
			out.subsystem = a.Value.String()
		}
	}
	out.next = c.next.WithAttrs(attrs)
	return &out
}

func (c *counting) WithGroup(name string) slog.Handler {
	out := *c
	out.next = c.next.WithGroup(name)
	return &out
}
