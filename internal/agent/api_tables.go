package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "porin/api/agent/v1"
	"porin/internal/datapath"
	"porin/internal/identity"
	"porin/internal/node"
)

// batch is how many rows of a map go into one message.
const batch = 500

func table(columns []string, rows [][]string) *agentv1.Table {
	t := &agentv1.Table{Columns: columns}
	for _, r := range rows {
		t.Rows = append(t.Rows, &agentv1.Row{Cells: r})
	}
	return t
}

// ListIPs lists what the kernel knows of addresses and CIDRs, with the names and labels that it does not know.
func (a *api) ListIPs(context.Context, *agentv1.ListIPsRequest) (*agentv1.Table, error) {
	var columns []string
	var rows [][]string
	err := a.datapath.ListMap("ipcache", "", func(c, row []string) error {
		columns = c
		rows = append(rows, row)
		return nil
	})
	if err != nil {
		return nil, err
	}
	who := slices.Index(columns, "IDENTITY")
	for i, r := range rows {
		name, ls := "", ""
		if p, err := netip.ParsePrefix(r[0]); err == nil && p.IsSingleIP() {
			name = a.NameByAddr(p.Addr())
		}
		if who >= 0 {
			if id, err := strconv.ParseUint(r[who], 10, 32); err == nil {
				ls = a.IdentityLabels(identity.ID(id)).String()
			}
		}
		rows[i] = append(slices.Clone(r), name, ls)
	}
	return table(append(slices.Clone(columns), "NAME", "LABELS"), rows), nil
}

// ListNodes lists the nodes that this one knows, itself first.
func (a *api) ListNodes(context.Context, *agentv1.ListNodesRequest) (*agentv1.Table, error) {
	var self, others [][]string
	for _, n := range a.cluster.nodes.Table().List() {
		name, since := n.Name, ""
		if n.Cluster != a.cfg.ClusterName {
			name = n.Key()
		}
		if !n.Since.IsZero() {
			since = n.Since.UTC().Format(time.RFC3339)
		}
		row := []string{name, string(n.State), since, words(n.Addresses), words(n.PodCIDRs), words(n.Health), strings.Join(n.Labels.Strings(), ","), n.Message}
		if n.State != node.Self {
			others = append(others, row)
			continue
		}
		row[3] = words(hostAddresses())
		self = append(self, row)
	}
	return table([]string{"NAME", "STATE", "SINCE", "ADDRESSES", "POD RANGES", "HEALTH", "LABELS", "MESSAGE"}, append(self, others...)), nil
}

// words joins what can be printed.
func words[T fmt.Stringer](list []T) string {
	out := make([]string, len(list))
	for i, x := range list {
		out[i] = x.String()
	}
	return strings.Join(out, ",")
}

func (a *api) ListMetrics(_ context.Context, req *agentv1.ListMetricsRequest) (*agentv1.Table, error) {
	columns, rows, err := a.metrics.Rows(req.GetPattern())
	if err != nil {
		return nil, err
	}
	return table(columns, rows), nil
}

func (a *api) ListMap(req *agentv1.ListMapRequest, out grpc.ServerStreamingServer[agentv1.Table]) error {
	t := &agentv1.Table{Columns: datapath.MapColumns(req.GetMap())}
	if t.Columns == nil {
		return invalid("map %q: there is none; known are endpoints, policy, ipcache, ct, nat", req.GetMap())
	}
	first := true
	flush := func() error {
		if len(t.Rows) == 0 && !first {
			return nil
		}
		err := out.Send(t)
		t, first = &agentv1.Table{}, false
		return err
	}
	err := a.datapath.ListMap(req.GetMap(), req.GetKey(), func(_, row []string) error {
		if err := out.Context().Err(); err != nil {
			return err
		}
		t.Rows = append(t.Rows, &agentv1.Row{Cells: row})
		if len(t.Rows) < batch {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

func (a *api) FlushMap(_ context.Context, req *agentv1.FlushMapRequest) (*agentv1.FlushMapResponse, error) {
	if m := req.GetMap(); m != "ct" && m != "nat" {
		return nil, invalid("flush map %q: only ct and nat can be flushed; the others say what is allowed", m)
	}
	n, err := a.datapath.FlushMap(req.GetMap())
	if err != nil {
		return nil, err
	}
	a.log.Info("map flushed on request", "map", req.GetMap(), "rows", n)
	a.observer.Announce(&agentv1.AgentEvent{Type: "map-flushed", Text: fmt.Sprintf("%s: %d rows", req.GetMap(), n)})
	return &agentv1.FlushMapResponse{Deleted: n}, nil
}

func (a *api) DumpTable(_ context.Context, req *agentv1.DumpTableRequest) (*agentv1.DumpTableResponse, error) {
	if req.GetTable() == "" {
		return &agentv1.DumpTableResponse{Tables: a.db.Names()}, nil
	}
	if !slices.Contains(a.db.Names(), req.GetTable()) {
		return nil, status.Errorf(codes.NotFound, "table %q: there is none; known are %s", req.GetTable(), strings.Join(a.db.Names(), ", "))
	}
	rows, rev, err := a.db.Dump(req.GetTable())
	if err != nil {
		return nil, err
	}
	resp := &agentv1.DumpTableResponse{Revision: rev}
	for _, r := range rows {
		resp.Rows = append(resp.Rows, string(r))
	}
	return resp, nil
}

// Monitor sends flows until the client has enough.
func (a *api) Monitor(req *agentv1.MonitorRequest, out grpc.ServerStreamingServer[agentv1.MonitorResponse]) error {
	if req.GetSnap() && !req.GetPastOnly() {
		return a.datapath.WithSnap(func() error { return a.monitor(req, out) })
	}
	return a.monitor(req, out)
}

func (a *api) monitor(req *agentv1.MonitorRequest, out grpc.ServerStreamingServer[agentv1.MonitorResponse]) error {
	if err := out.SendHeader(nil); err != nil { // the client knows that from now on it misses nothing
		return err
	}
	return a.observer.Monitor(out.Context(), req, out.Send)
}
