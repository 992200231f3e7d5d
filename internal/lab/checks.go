package lab

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	flowpb "porin/api/flow"
	"porin/internal/flow"
	"porin/internal/lab/probe"
	"porin/internal/lab/space"
)

// Times of checks.
const (
	deniedWait   = 10 * time.Second       // a denied try waits no longer for an answer, or for the word that it was dropped
	deniedGrace  = 100 * time.Millisecond // and this long after its drop was reported
	deniedFirst  = 2 * time.Second        // an allowed try may be reported as dropped for so long at first
	allowedWait  = 5 * time.Second        // and be refused for so long: its server may be starting
	allowedTry   = 10 * time.Second       // what is reported as dropped or refused takes no time; the rest is a busy machine
	verdictWait  = 300 * time.Millisecond // for the event that names the rule
	commandLimit = time.Minute
	parallel     = 8 // checks at once
)

// Row is the outcome of one check for one pair of places and one family.
type Row struct {
	Line     int    `json:"line"` // in the lab file
	Check    string `json:"check"`
	Family   string `json:"family,omitempty"`
	Expected string `json:"expected"`
	Seen     string `json:"seen"`
	OK       bool   `json:"ok"`
	Rule     string `json:"rule,omitempty"`
	Node     string `json:"node,omitempty"`   // that dropped, or else that judged last
	Detail   string `json:"detail,omitempty"` // why it is not as expected
	TookMS   int64  `json:"took-ms"`
}

// try is a check for one source, one destination address.
type try struct {
	*check
	from   place
	to     string
	target place
	addr   netip.Addr
	say    string
	via    *place // an outside host that needs a way to this pod to make the try at all
	family string
}

// Check runs checks against the running lab and returns a row for each, in their order.
func (l *Lab) Check(ctx context.Context, checks []check) ([]Row, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := l.listen(ctx)
	if err != nil {
		return nil, err
	}
	rows := make([][]Row, len(checks))
	for i := 0; i < len(checks); {
		if checks[i].Run != nil { // a command may change what follows: nothing runs beside it
			rows[i] = []Row{l.runCommand(ctx, &checks[i])}
			i++
			continue
		}
		j := i
		for j < len(checks) && checks[j].Run == nil {
			j++
		}
		if err := l.checkConnections(ctx, events, checks[i:j], rows[i:j]); err != nil {
			return nil, err
		}
		i = j
	}
	var out []Row
	for _, r := range rows {
		out = append(out, r...)
	}
	return out, ctx.Err()
}

// checkConnections runs independent checks at the same time. First those that need nothing; then, with ways from
// outside hosts to pods that no host outside would have otherwise, the rest.
func (l *Lab) checkConnections(ctx context.Context, events *flows, checks []check, rows [][]Row) error {
	var first, second []func()
	var ways []try
	for i := range checks {
		tries := l.expand(&checks[i])
		rows[i] = make([]Row, max(1, len(tries)))
		if len(tries) == 0 {
			rows[i][0] = Row{
				Line: checks[i].line, Check: checks[i].title(checks[i].From, checks[i].To), Family: checks[i].Family, Expected: checks[i].Expect,
				Seen: "nothing", Detail: "the two have no address family in common",
			}
		}
		for k, t := range tries {
			run := func() { rows[i][k] = l.runTry(ctx, events, t) }
			if t.via == nil {
				first = append(first, run)
				continue
			}
			second = append(second, run)
			ways = append(ways, t)
		}
	}
	together(first)
	for _, t := range ways {
		if err := l.way(t, space.AddRoutes); err != nil {
			return err
		}
	}
	together(second)
	for _, t := range ways {
		// several checks may share a way: gone is gone
		if err := l.way(t, space.DeleteRoutes); err != nil && !strings.Contains(err.Error(), "no such process") {
			return err
		}
	}
	return nil
}

func together(list []func()) {
	var g errgroup.Group
	g.SetLimit(parallel)
	for _, fn := range list {
		g.Go(func() error { fn(); return nil })
	}
	_ = g.Wait() // the functions return no errors
}

func (l *Lab) way(t try, do func(string, string, []space.Route) error) error {
	r := space.Route{Dst: netip.PrefixFrom(t.addr, t.addr.BitLen()), Via: linkGateway(t.addr.Is6())}
	for _, a := range t.from.Addrs {
		if a.Is6() == t.addr.Is6() {
			r.Src = a
			break
		}
	}
	return do(t.from.Netns, uplink, []space.Route{r})
}

// expand makes of a check one try per source, destination and family.
func (l *Lab) expand(c *check) []try {
	var out []try
	for _, from := range l.named(c.From) {
		for _, to := range l.targets(c.To) {
			if to.Name == from.Name && c.From != c.To {
				continue // one of several replicas, not asked for by name
			}
			for _, family := range l.spec.Families {
				if c.Family != "" && c.Family != family {
					continue
				}
				addr, ok := to.addr(family)
				if _, has := from.addr(family); !ok || !has {
					continue
				}
				t := try{check: c, from: from, to: to.Name, target: to, addr: addr, say: say(to, c.Protocol, c.Port), family: family}
				if from.Kind == kindOutside && to.Kind == kindWorkload {
					t.via = &from
				}
				out = append(out, t)
			}
		}
	}
	return out
}

// named returns the places that a name means: one place, all replicas of a workload, or the owner of an address.
func (l *Lab) named(name string) []place {
	l.mu.Lock()
	defer l.mu.Unlock()
	addr, err := netip.ParseAddr(name)
	var out []place
	for _, p := range l.state.Places {
		if p.Name == name || p.Kind == kindWorkload && p.Workload == name {
			out = append(out, p)
		}
		for _, a := range p.Addrs {
			if err == nil && a == addr {
				p.Addrs = []netip.Addr{a}
				out = append(out, p)
			}
		}
	}
	return out
}

// targets is named, but an address may also be nobody's.
func (l *Lab) targets(name string) []place {
	out := l.named(name)
	if addr, err := netip.ParseAddr(name); err == nil {
		for i := range out {
			out[i].Name = name
		}
		if len(out) == 0 {
			out = []place{{Name: name, Addrs: []netip.Addr{addr}}}
		}
	}
	return out
}

// say is what a client tells a server: the language of the built-in ones, nothing to others.
func say(to place, protocol string, port uint16) string {
	for _, s := range to.Serves {
		if s.Port == port && s.Protocol == protocol {
			return s.Kind
		}
	}
	if protocol == "TCP" {
		return probe.Connect
	}
	return probe.Echo
}

func (c *check) title(from, to string) string {
	s := from + " -> " + to + " " + c.Protocol
	if c.Port != 0 {
		s += "/" + strconv.Itoa(int(c.Port))
	}
	return s
}

func (l *Lab) runTry(ctx context.Context, events *flows, t try) Row {
	t0 := time.Now()
	row := Row{Line: t.line, Check: t.title(t.from.Name, t.to), Family: t.family, Expected: t.Expect}
	if t.Expect == expectAllow {
		l.expectAllowed(ctx, events, t, &row)
	} else {
		l.expectRefused(ctx, events, t, &row)
	}
	row.TookMS = time.Since(t0).Milliseconds()
	return row
}

// expectAllowed waits until a first try succeeds; from then on every one must.
func (l *Lab) expectAllowed(ctx context.Context, events *flows, t try, row *Row) {
	t0 := time.Now()
	for good, n := 0, 1; ; n++ {
		r := l.probe(ctx, events, t, allowedTry, true)
		limit := allowedWait
		if len(r.drops) > 0 {
			limit = deniedFirst
		}
		row.Seen = string(r.Outcome)
		switch {
		case r.Outcome == probe.Answered:
			good++
			if good == t.Times {
				row.OK = true
				row.Rule, row.Node = why(r.verdicts), nodesOf(r.verdicts)
				return
			}
			continue
		case good == 0 && time.Since(t0) < limit && ctx.Err() == nil:
			// Not yet. What fails at once would be tried far too often.
			pause(ctx, 20*time.Millisecond)
			continue
		}
		if good > 0 {
			row.Detail = fmt.Sprintf("try %d of %d failed: ", good+1, t.Times)
		}
		row.Detail += r.Detail
		if len(r.drops) > 0 {
			row.Seen = expectDeny
			row.Rule, row.Node = why(r.drops), nodesOf(r.drops)
		} else {
			row.Rule, row.Node = why(r.verdicts), nodesOf(r.verdicts)
		}
		return
	}
}

func pause(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ctx.Done()
}

// expectRefused makes every try; each must be refused as expected, and a denial be owned up to by a node.
func (l *Lab) expectRefused(ctx context.Context, events *flows, t try, row *Row) {
	for n := range t.Times {
		r := l.probe(ctx, events, t, deniedWait, true)
		row.Seen = string(r.Outcome)
		row.Rule, row.Node = why(r.drops), nodesOf(r.drops)
		wrong := ""
		switch {
		case r.Outcome == probe.Answered:
			row.Rule = why(r.verdicts)
			wrong = "it was answered"
		case t.Expect == expectReject && r.Outcome != probe.Rejected:
			wrong = "nobody said no: " + r.Detail
		case t.Expect == expectReject:
		case r.astray != "":
			wrong = r.astray
		case len(r.drops) == 0:
			row.Rule, row.Node = why(r.verdicts), nodesOf(r.verdicts)
			wrong = "no node reported a drop: " + r.Detail
		case t.Reason != "" && !reported(r.drops, t.Reason):
			wrong = fmt.Sprintf("dropped, but not for %s: %s", t.Reason, reasons(r.drops))
		case t.Reason == "" && !anyByPolicy(r.drops):
			wrong = "dropped, but not by policy: " + reasons(r.drops)
		default:
			row.Seen = expectDeny
		}
		if wrong != "" {
			row.Detail = wrong
			if t.Times > 1 {
				row.Detail = fmt.Sprintf("try %d of %d: %s", n+1, t.Times, wrong)
			}
			return
		}
	}
	row.OK = true
}

func reported(drops []*flowpb.Flow, reason string) bool {
	for _, d := range drops {
		if strings.EqualFold(d.GetDropReasonDesc().String(), reason) {
			return true
		}
	}
	return false
}

func anyByPolicy(drops []*flowpb.Flow) bool {
	return slices.ContainsFunc(drops, byPolicy)
}

func reasons(drops []*flowpb.Flow) string {
	var out []string
	for _, d := range drops {
		if r := d.GetDropReasonDesc().String(); !strings.Contains(strings.Join(out, " "), r) {
			out = append(out, r)
		}
	}
	return strings.Join(out, ", ")
}

// probe makes one try from inside t.from and collects what the nodes report about it. With dropEnds, a reported drop
// shortens the wait for an answer that will not come.
func (l *Lab) probe(ctx context.Context, events *flows, t try, limit time.Duration, dropEnds bool) probed {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	since := time.Now()
	key := flowKey{protocol: t.Protocol, dst: t.addr, dstPort: t.Port}
	mine := l.sentBy(t.from)
	// A drop counts if the node reports it that has to judge; any other node's is not that packet's fate.
	drop := func(f *flowpb.Flow) bool { return isDrop(f) && mine(f) && judges(f, t.from, t.target) }
	elsewhere := func(f *flowpb.Flow) bool { return isDrop(f) && mine(f) && !judges(f, t.from, t.target) }
	allowed := func(f *flowpb.Flow) bool { return !isDrop(f) && mine(f) }

	var watch sync.WaitGroup
	started := func(port uint16) {
		key.srcPort = port
		if !dropEnds {
			return
		}
		watch.Go(func() {
			if events.await(ctx, key, since, drop) != nil {
				pause(ctx, deniedGrace)
				cancel()
			}
		})
	}
	var out probed
	err := space.InNetns(t.from.Netns, func() error {
		out.Result = probe.Run(ctx, probe.Request{
			Protocol: t.Protocol, To: t.addr, Port: t.Port, Say: t.say, Timeout: limit, Started: started,
		})
		return nil
	})
	if err != nil {
		out.Result = probe.Result{Outcome: probe.Broken, Detail: err.Error()}
	}
	cancel()
	watch.Wait()
	// the event that names the rule may lag a little behind the packet
	late, done := context.WithTimeout(context.WithoutCancel(ctx), verdictWait)
	defer done()
	if out.Outcome == probe.Answered {
		events.await(late, key, since, allowed)
	} else {
		events.await(late, key, since, drop)
	}
	out.drops, _, _ = events.find(key, since, drop)
	out.verdicts, _, _ = events.find(key, since, allowed)
	if stray, _, _ := events.find(key, since, elsewhere); len(stray) > 0 {
		out.astray = fmt.Sprintf("%s dropped it (%s), which is not the node to judge it", nodesOf(stray), reasons(stray))
	}
	return out
}

// runCommand runs a check's command; every run must end with the expected code.
func (l *Lab) runCommand(ctx context.Context, c *check) Row {
	t0 := time.Now()
	row := Row{Line: c.line, Check: c.On + ": " + c.text(), Expected: "exit " + c.Expect}
	defer func() { row.TookMS = time.Since(t0).Milliseconds() }()
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	for range c.Times {
		var out bytes.Buffer
		code, err := l.runIn(ctx, c.On, c.Run, &out)
		if err != nil {
			row.Seen, row.Detail = "error", err.Error()
			return row
		}
		row.Seen = "exit " + strconv.Itoa(code)
		if row.Seen != row.Expected {
			row.Detail = flow.Escape(tail(out.String(), 5))
			return row
		}
	}
	row.OK = true
	return row
}

func (c *check) text() string {
	if len(c.Run) == 3 && c.Run[0] == "/bin/sh" && c.Run[1] == "-c" {
		return c.Run[2]
	}
	return strings.Join(c.Run, " ")
}

func (l *Lab) runIn(ctx context.Context, where string, args []string, out *bytes.Buffer) (int, error) {
	p, err := l.place(where)
	if err != nil {
		return 0, err
	}
	cmd, err := l.command(args)
	if err != nil {
		return 0, err
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second // a child left in the background must not hold the check up
	return l.wait(ctx, cmd, p)
}

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}
