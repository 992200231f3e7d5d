package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	agentv1 "porin/api/agent/v1"
)

// maxMessage is the largest answer that the CLI takes: a list of some 100,000 rows.
const maxMessage = 256 << 20

// path is where the agent listens.
func (s *shell) path() string {
	if s.socket != "" {
		return s.socket
	}
	return defaultSocket()
}

// connect opens the agent's socket. The connection is opened here and now, so that an agent that does not run is told
// as such, and not as a failed request.
func (s *shell) connect(ctx context.Context) (agentv1.AgentClient, func(), error) {
	path := s.path()
	var dialer net.Dialer
	first, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, nil, unreachable(path, err)
	}
	var once sync.Once
	conn, err := grpc.NewClient("passthrough:///agent",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// Room for some 10,000 flows on the way: monitor must not wait for windows to open.
		grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(4<<20), grpc.WithReadBufferSize(256<<10),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (c net.Conn, err error) {
			once.Do(func() { c = first })
			if c != nil {
				return c, nil
			}
			return dialer.DialContext(ctx, "unix", path)
		}))
	if err != nil {
		first.Close()
		return nil, nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return agentv1.NewAgentClient(conn), func() { conn.Close(); first.Close() }, nil
}

// unreachable says why the socket did not open and what to do about it.
func unreachable(path string, err error) error {
	var text string
	switch {
	case errors.Is(err, os.ErrPermission):
		text = fmt.Sprintf("connect to %s: permission denied: needs root: run with sudo", path)
	case errors.Is(err, os.ErrNotExist):
		text = fmt.Sprintf("connect to %s: no such file: is porin-agent running? start it with 'sudo porin-agent', or name its socket with --socket", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		text = fmt.Sprintf("connect to %s: nobody listens: porin-agent has stopped; start it with 'sudo porin-agent'", path)
	default:
		text = fmt.Sprintf("connect to %s: %v", path, err)
	}
	return coded{explained{text, err}, exitUnreachable}
}

// explained is an error in our words that keeps its cause.
type explained struct {
	text  string
	cause error
}

func (e explained) Error() string { return e.text }
func (e explained) Unwrap() error { return e.cause }

// ask connects and calls f; an error of the agent comes back in words.
func (s *shell) ask(cmd *cobra.Command, f func(ctx context.Context, agent agentv1.AgentClient) error) error {
	agent, done, err := s.connect(cmd.Context())
	if err != nil {
		return err
	}
	defer done()
	return s.answer(f(cmd.Context(), agent))
}

// answer puts an error of a request into words. The agent's own messages say what was tried and on what.
func (s *shell) answer(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	text, code := st.Message(), exitFailed
	switch st.Code() {
	case codes.Unavailable:
		text = fmt.Sprintf("the agent at %s went away in the middle of the request: look at its log, then try again (%s)", s.path(), st.Message())
		code = exitUnreachable
	case codes.Unimplemented:
		text = "the agent does not know this request: it is older than this command; 'porin version' shows both"
	case codes.DeadlineExceeded:
		code = exitNotYet
	case codes.Canceled:
		text = "interrupted"
	}
	return coded{explained{text, err}, code}
}
