package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"porin/internal/ipam"
	"porin/internal/kvstore"
)

// giver gives nodes their ranges. It decides anew from what the store says whenever that changes, so that neither a wiped
// store nor a change of leaders needs a way of its own.
//
//	request ──▶ has a range already? ──▶ is it free? ──▶ granted as it is
//	                │ no                     │ no: refused, with the owner's name
//	                ▼
//	            the store is settled? ──▶ next free range of a pool
type giver struct {
	log     *slog.Logger
	cfg     Config
	figures *figures
	store   *kvstore.Ranges
	lead    kvstore.Leadership

	settled  time.Time // from when on new ranges are given
	grants   int       // in the store when it was last read
	memory   *memory
	gone     map[string]time.Time // nodes that have a grant and no sign of life, since when
	problems map[string]string    // told already
}

func newGiver(log *slog.Logger, cfg Config, f *figures, store *kvstore.Ranges, lead kvstore.Leadership, m *memory) *giver {
	return &giver{
		log: log, cfg: cfg, figures: f, store: store, lead: lead, memory: m,
		gone: map[string]time.Time{}, problems: map[string]string{},
	}
}

// lookAnyway is how often an operator looks without a change: what has been waiting may be due.
const lookAnyway = 5 * time.Second

func (g *giver) run(ctx context.Context) error {
	return g.store.Changes(ctx, min(lookAnyway, g.cfg.Settle, g.cfg.Grace), g.once)
}

func (g *giver) once(ctx context.Context) error {
	now := g.cfg.now()
	s, err := g.store.Read(ctx)
	if err != nil {
		return err
	}
	// In a new store, or one that was wiped, those who have ranges already say so within a heartbeat. What the former
	// grants were is remembered, and not given to anybody else.
	switch {
	case g.settled.IsZero():
		g.settled = now
		if len(s.Grants) == 0 {
			g.settled = now.Add(g.cfg.Settle)
		}
	case len(s.Grants) == 0 && g.grants > 0:
		g.log.Warn("no grants are in the store any more; waiting for nodes to say what they have", "for", g.cfg.Settle)
		g.settled = now.Add(g.cfg.Settle)
	}
	g.grants = len(s.Grants)
	r, err := ipam.NewRanges(g.cfg.Pools)
	if err != nil {
		return err
	}
	g.take(r, s, now)
	err = g.answer(ctx, r, s, now)
	err = errors.Join(err, g.takeBack(ctx, s, now))
	g.figures.pools(r.Pools())
	g.figures.grants.Set(float64(len(s.Grants)))
	return err
}

// take notes who has what: first those who were granted it, then those whose record says so, then those who are
// remembered to have had it.
func (g *giver) take(r *ipam.Ranges, s kvstore.RangeState, now time.Time) {
	take := func(node string, list []netip.Prefix) {
		for _, p := range list {
			if err := r.Take(node, p); err != nil {
				g.problem(node, fmt.Sprintf("%s: %v", p, err))
			}
		}
	}
	for _, x := range s.Grants {
		take(x.Node, x.Ranges)
	}
	for _, x := range s.Nodes {
		take(x.Name, x.PodCIDRs)
	}
	for node, list := range g.memory.all(now) {
		for _, p := range list {
			_ = r.Take(node, p) // who has it now came first
		}
	}
}

// answer gives what was asked for and can be given.
func (g *giver) answer(ctx context.Context, r *ipam.Ranges, s kvstore.RangeState, now time.Time) error {
	grants := map[string]kvstore.RangeGrant{}
	for _, x := range s.Grants {
		grants[x.Node] = x
	}
	var errs []error
	// who has something to lose comes before who wants something new
	for _, fresh := range []bool{false, true} {
		for _, req := range s.Requests {
			old, ok := grants[req.Node]
			if !ok {
				old = kvstore.RangeGrant{Node: req.Node}
			}
			next, waits := g.decide(r, req, old, fresh, now)
			if waits || ok && slices.Equal(next.Ranges, old.Ranges) && next.Problem == old.Problem {
				continue
			}
			if err := g.store.Grant(ctx, g.lead, old, next); err != nil {
				errs = append(errs, err)
				continue
			}
			g.log.Info("ranges granted", "node", req.Node, "ranges", fmt.Sprint(next.Ranges), "problem", next.Problem)
			g.memory.note(req.Node, next.Ranges, now)
		}
	}
	return errors.Join(errs...)
}

// decide returns the grant that a request should have. With fresh, families that the node has nothing of get a range.
func (g *giver) decide(r *ipam.Ranges, req kvstore.RangeRequest, old kvstore.RangeGrant, fresh bool, now time.Time) (next kvstore.RangeGrant, waits bool) {
	next = kvstore.RangeGrant{Node: req.Node, Ranges: slices.Clone(old.Ranges)}
	var problems []string
	for _, p := range req.Has {
		if slices.Contains(next.Ranges, p) {
			continue
		}
		if err := r.Take(req.Node, p); err != nil {
			problems = append(problems, err.Error())
			continue
		}
		next.Ranges = append(next.Ranges, p)
	}
	for _, f := range []struct{ wanted, v4 bool }{{req.IPv4, true}, {req.IPv6, false}} {
		mine := func(p netip.Prefix) bool { return p.Addr().Is4() == f.v4 }
		switch {
		case !f.wanted, slices.ContainsFunc(next.Ranges, mine):
		case slices.ContainsFunc(req.Has, mine): // refused above: a second range would not help its workloads
		case !fresh, now.Before(g.settled):
			waits = true
		default:
			p, err := g.give(r, req.Node, f.v4)
			if err != nil {
				problems = append(problems, err.Error())
				continue
			}
			next.Ranges = append(next.Ranges, p)
		}
	}
	next.Problem = strings.Join(problems, "; ")
	if next.Problem != "" {
		g.problem(req.Node, next.Problem)
	} else {
		delete(g.problems, req.Node)
	}
	return next, waits
}

// give prefers what the node is remembered to have had.
func (g *giver) give(r *ipam.Ranges, node string, v4 bool) (netip.Prefix, error) {
	for _, p := range r.Of(node) {
		if p.Addr().Is4() == v4 {
			return p, nil
		}
	}
	return r.Give(node, v4)
}

// problem tells of something once, until it is another.
func (g *giver) problem(node, text string) {
	if g.problems[node] == text {
		return
	}
	g.problems[node] = text
	g.figures.refused.Inc()
	g.log.Error("node cannot have what it asks for", "node", node, "problem", text)
}

// takeBack takes ranges from nodes that have been gone for long: whose request and record have lapsed with their lease.
func (g *giver) takeBack(ctx context.Context, s kvstore.RangeState, now time.Time) error {
	alive := map[string]bool{}
	for _, x := range s.Requests {
		alive[x.Node] = true
	}
	for _, x := range s.Nodes {
		alive[x.Name] = true
	}
	granted := map[string]bool{}
	var errs []error
	for _, x := range s.Grants {
		granted[x.Node] = true
		since, missed := g.gone[x.Node]
		switch {
		case alive[x.Node]:
			delete(g.gone, x.Node)
		case !missed:
			g.gone[x.Node] = now
		case now.Sub(since) >= g.cfg.Grace:
			if err := g.store.TakeBack(ctx, g.lead, x); err != nil {
				errs = append(errs, err)
				continue
			}
			g.log.Info("ranges taken back from a node that is gone", "node", x.Node, "ranges", fmt.Sprint(x.Ranges), "gone-for", now.Sub(since))
			g.figures.returned.Inc()
			g.grants--
			delete(g.gone, x.Node)
			g.memory.drop(x.Node)
		}
	}
	for node := range g.gone {
		if !granted[node] {
			delete(g.gone, node)
		}
	}
	return errors.Join(errs...)
}
