package kvstore

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapTo returns a zap logger that writes warnings and errors to log until ctx ends: a server that is told to stop
// reports each of its closed listeners as an error. Etcd's client and server speak zap only.
func zapTo(ctx context.Context, log *slog.Logger) *zap.Logger { return zap.New(&zapCore{ctx, log}) }

type zapCore struct {
	ctx context.Context // a logger has no calls that could carry it
	log *slog.Logger
}

func (c *zapCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel && c.ctx.Err() == nil }

func (c *zapCore) With(fields []zapcore.Field) zapcore.Core {
	return &zapCore{c.ctx, c.log.With(attrs(fields)...)}
}

func (c *zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !expected(e.Message) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	c.log.Log(c.ctx, level, "etcd: "+e.Message, attrs(fields)...)
	return nil
}

func (c *zapCore) Sync() error { return nil }

// expected names what etcd reports as wrong at every start, or at the first one of an empty store, and is not: one socket
// for everything, token signing, which only matters to users of etcd's own passwords, and a version that is written a
// moment later. And what the client repeats: whoever asked is told, and the heartbeat says once that nobody answers.
func expected(message string) bool {
	switch message {
	case "Running http and grpc server on single port. This is not recommended for production.",
		"simple token is not cryptographically signed",
		"Failed to detect schema version",
		"failed to update storage version",
		"retrying of unary invoker failed":
		return true
	}
	return false
}

// secretField names what etcd might log of a client's credentials.
func secretField(key string) bool { return key == "password" || key == "token" }

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	var out []any
	for _, f := range fields {
		f.AddTo(enc)
	}
	for k, v := range enc.Fields {
		if secretField(k) {
			v = "***"
		}
		out = append(out, slog.Any(k, v))
	}
	return out
}
