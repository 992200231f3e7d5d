package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxConnections bounds what clients of one socket can hold open.
const maxConnections = 1024

// listen opens a unix socket that only root can use: by its mode, by the mode of its folder, and by the user id that the
// kernel names for each connection, since modes can be changed and folders mounted elsewhere.
func listen(path string, log *slog.Logger) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err) // the lock says that nobody uses it
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("keep others out of %s: %w", path, err)
	}
	return &rootListener{l.(*net.UnixListener), log, make(chan struct{}, maxConnections)}, nil
}

// rootListener accepts connections of root only.
type rootListener struct {
	*net.UnixListener
	log  *slog.Logger
	open chan struct{}
}

// Accept returns the next connection of root. Those of others are closed and logged.
func (l *rootListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peer(conn)
		if err == nil && uid != 0 {
			err = fmt.Errorf("user %d may not", uid)
		}
		if err == nil {
			select {
			case l.open <- struct{}{}:
				return &counted{UnixConn: conn, open: l.open}, nil
			default:
				err = fmt.Errorf("%d connections are open", maxConnections)
			}
		}
		l.log.Warn("connection refused", "socket", l.Addr(), "err", err)
		conn.Close()
	}
}

// peer returns the user at the other end.
func peer(conn *net.UnixConn) (uid uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	ctrl := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(ctrl, err); err != nil {
		return 0, fmt.Errorf("ask who is there: %w", err)
	}
	return cred.Uid, nil
}

// counted gives its place back when it is closed.
type counted struct {
	*net.UnixConn
	open chan struct{}
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { <-c.open })
	return c.UnixConn.Close()
}
