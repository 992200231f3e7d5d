package flow

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	agentv1 "porin/api/agent/v1"
)

// monitorOnly is an agent that can only be monitored.
type monitorOnly struct {
	agentv1.UnimplementedAgentServer
	o *Observer
}

func (m monitorOnly) Monitor(req *agentv1.MonitorRequest, s agentv1.Agent_MonitorServer) error {
	return m.o.Monitor(s.Context(), req, s.Send)
}

// BenchmarkMonitor sends events as fast as a reader at the other end of the agent's socket takes them, and then at a
// fixed rate, where none may be lost that a node really makes.
func BenchmarkMonitor(b *testing.B) {
	for _, c := range []struct {
		name string
		rate int // events a second; 0: as fast as they go
	}{{"flood", 0}, {"50k-a-second", 50000}, {"100k-a-second", 100000}} {
		b.Run(c.name, func(b *testing.B) {
			o := observer(b, starwars(b))
			o.clock = systemClock
			l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
			if err != nil {
				b.Fatal(err)
			}
			srv := grpc.NewServer()
			agentv1.RegisterAgentServer(srv, monitorOnly{o: o})
			go func() { _ = srv.Serve(l) }() // ends with Stop
			defer srv.Stop()
			conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(4<<20), grpc.WithReadBufferSize(256<<10)) // as the CLI does
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			stream, err := agentv1.NewAgentClient(conn).Monitor(b.Context(), &agentv1.MonitorRequest{})
			if err != nil {
				b.Fatal(err)
			}
			joined(b, o, 1)
			ev := typed(4, 11, 12)
			b.ResetTimer()
			go func() {
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				for start, i := time.Now(), 0; i < b.N; <-tick.C {
					due := b.N
					if c.rate > 0 {
						due = min(due, int(time.Since(start)*time.Duration(c.rate)/time.Second))
					}
					for ; i < due; i++ {
						o.Handle(ev)
					}
				}
			}()
			var got, lost uint64
			for got+lost < uint64(b.N) {
				m, err := stream.Recv()
				if err != nil {
					b.Fatal(err)
				}
				if m.GetFlow() != nil {
					got++
				}
				lost += m.GetLost()
			}
			b.ReportMetric(float64(got)/b.Elapsed().Seconds(), "flows/s")
			b.ReportMetric(100*float64(lost)/float64(b.N), "%lost")
		})
	}
}
