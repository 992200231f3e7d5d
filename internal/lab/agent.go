package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "porin/api/agent/v1"
)

// Limits of waiting for an agent.
const (
	agentStart  = 2 * time.Minute // one that ends is noticed at once; an emulated 6.1 verifies programs for 40 s
	policyInUse = 30 * time.Second
)

// dial connects to a node's agent: its socket lies on the node's own /run/porin.
func dial(node place) (*grpc.ClientConn, agentv1.AgentClient, error) {
	socket := fmt.Sprintf("/proc/%d/root/run/porin/agent.sock", node.Pause.PID)
	conn, err := grpc.NewClient("passthrough:///"+node.Name,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
		// an agent that starts is asked again at once, not after gRPC's second of patience
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.2, MaxDelay: 50 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: connect to the agent: %w", node.Name, err)
	}
	return conn, agentv1.NewAgentClient(conn), nil
}

// withAgent calls fn with a client of the node's agent.
func withAgent(node place, fn func(agentv1.AgentClient) error) error {
	conn, client, err := dial(node)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := fn(client); err != nil {
		return fmt.Errorf("%s: %w", node.Name, plain(err))
	}
	return nil
}

// plain leaves of a gRPC error what the agent said.
func plain(err error) error {
	if st, ok := status.FromError(err); ok {
		return errors.New(st.Message())
	}
	return err
}

// agentReady waits until the agent answers and calls itself healthy; it gives up at once when the agent ends.
func (l *Lab) agentReady(ctx context.Context, node place, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, agentStart)
	defer cancel()
	conn, client, err := dial(node)
	if err != nil {
		return err
	}
	defer conn.Close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		call, done := context.WithTimeout(ctx, 2*time.Second)
		st, err := client.Status(call, &agentv1.StatusRequest{}, grpc.WaitForReady(true))
		done()
		switch {
		case err != nil:
			last = plain(err)
		case st.GetHealthy():
			return nil
		default:
			last = fmt.Errorf("not healthy: %s", unhealthy(st))
		}
		select {
		case err := <-ended:
			return fmt.Errorf("it ended: %w", exited(err))
		case <-ctx.Done():
			return errors.Join(ctx.Err(), last)
		case <-tick.C:
		}
	}
}

func exited(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

func unhealthy(st *agentv1.StatusResponse) string {
	var out []string
	for _, c := range st.GetComponents() {
		if c.GetMessage() != "" {
			out = append(out, c.GetName()+" "+c.GetState()+": "+c.GetMessage())
		}
	}
	return strings.Join(append(out, st.GetAlarms()...), "; ")
}

func manifests(list []object) []*agentv1.ManifestFile {
	var out []*agentv1.ManifestFile
	for _, o := range list {
		name := o.File
		if name == "" {
			name = fmt.Sprintf("inline-line-%d", o.line)
		}
		out = append(out, &agentv1.ManifestFile{Name: name, Content: o.content})
	}
	return out
}

// apply puts manifests in force on every node and waits until every endpoint enforces them.
func (l *Lab) apply(ctx context.Context, files []*agentv1.ManifestFile) (uint64, error) {
	return l.change(ctx, func(ctx context.Context, c agentv1.AgentClient) (*agentv1.PolicyRevision, error) {
		return c.ApplyPolicy(ctx, &agentv1.ApplyPolicyRequest{Files: files})
	})
}

// remove takes the objects in manifests away again.
func (l *Lab) remove(ctx context.Context, files []*agentv1.ManifestFile) (uint64, error) {
	return l.change(ctx, func(ctx context.Context, c agentv1.AgentClient) (*agentv1.PolicyRevision, error) {
		return c.DeletePolicy(ctx, &agentv1.DeletePolicyRequest{Files: files})
	})
}

// ended says what an interrupted call leaves behind; another error has words of its own.
func ended(ctx context.Context, left string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.Canceled):
		return errors.New("interrupted: " + left)
	case ctx.Err() != nil:
		return errors.New("no answer: " + left)
	}
	return err
}

func (l *Lab) change(ctx context.Context, do func(context.Context, agentv1.AgentClient) (*agentv1.PolicyRevision, error)) (uint64, error) {
	var revision uint64
	for _, n := range l.places(kindNode) {
		err := withAgent(n, func(c agentv1.AgentClient) error {
			// the agent ends the wait and says who is late; should it hang, we end it a little later
			ctx, cancel := context.WithTimeout(ctx, policyInUse+5*time.Second)
			defer cancel()
			rev, err := do(ctx, c)
			if err != nil {
				return ended(ctx, "the change may or may not have been made", err)
			}
			revision = rev.GetRevision()
			_, err = c.WaitPolicy(ctx, &agentv1.WaitPolicyRequest{Revision: revision, Timeout: durationpb.New(policyInUse)})
			return ended(ctx, fmt.Sprintf("revision %d is made, but not every endpoint enforces it; 'porin lab exec %s -- porin endpoint list' shows which", revision, n.Name), err)
		})
		if err != nil {
			return 0, err
		}
	}
	return revision, nil
}

func signalOf(ee *exec.ExitError) syscall.Signal {
	if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return ws.Signal()
	}
	return 0
}

// Apply puts the objects of a manifest file in force on the running lab.
func (l *Lab) Apply(ctx context.Context, file string, data []byte) error {
	return l.edit(ctx, file, data, "applied and in force", l.apply)
}

// Delete takes the objects of a manifest file away from the running lab.
func (l *Lab) Delete(ctx context.Context, file string, data []byte) error {
	return l.edit(ctx, file, data, "deleted", l.remove)
}

func (l *Lab) edit(ctx context.Context, file string, data []byte, done string, do func(context.Context, []*agentv1.ManifestFile) (uint64, error)) error {
	t0 := time.Now()
	rev, err := do(ctx, []*agentv1.ManifestFile{{Name: filepath.Base(file), Content: data}})
	if err != nil {
		return err
	}
	l.tell.done(t0, "%s %s (revision %d)", file, done, rev)
	return nil
}

// acquaintance is how long news of a workload may take to every node.
const acquaintance = time.Minute

// acquainted waits until every node knows every workload: what a lab shows then is not how fast news travel.
func (l *Lab) acquainted(ctx context.Context) error {
	if !l.spec.cluster() {
		return nil
	}
	t0 := time.Now()
	ctx, cancel := context.WithTimeout(ctx, acquaintance)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for _, n := range l.places(kindNode) {
		for {
			missing, err := l.strangers(ctx, n)
			if err != nil {
				return err
			}
			if len(missing) == 0 {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s does not know %s after %s: %w", n.Name, strings.Join(missing, ", "), acquaintance, ctx.Err())
			case <-tick.C:
			}
		}
	}
	l.tell.done(t0, "%d nodes know all workloads", len(l.places(kindNode)))
	return nil
}

// strangers are the workloads' addresses that a node does not know.
func (l *Lab) strangers(ctx context.Context, n place) (missing []string, err error) {
	known := map[string]bool{}
	err = withAgent(n, func(c agentv1.AgentClient) error {
		t, err := c.ListIPs(ctx, &agentv1.ListIPsRequest{})
		for _, r := range t.GetRows() {
			if cells := r.GetCells(); len(cells) > 0 {
				known[cells[0]] = true
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, w := range l.places(kindWorkload) {
		for _, a := range w.Addrs {
			if !known[a.String()] && !known[netip.PrefixFrom(a, a.BitLen()).String()] {
				missing = append(missing, w.Name+" "+a.String())
			}
		}
	}
	return missing, nil
}
