package advise

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"porin/internal/verdict"
)

// Expectations of a check.
const (
	allow  = "allow"
	deny   = "deny"
	reject = "reject"
	audit  = "audit"    // let pass, and reported
	proxy  = "redirect" // to the proxy, which looks at what is said
)

// Result is one connection of a check, or a check that rules alone cannot answer.
type Result struct {
	Check    string `json:"check"`
	From     string `json:"from"`
	To       string `json:"to"`
	Port     string `json:"port"`
	File     string `json:"file"`
	Line     int    `json:"line"`
	Expected string `json:"expected"`
	Got      string `json:"got"`
	OK       bool   `json:"ok"`
	Skipped  string `json:"skipped,omitempty"` // why it was not asked
	Side     string `json:"side,omitempty"`    // which end decided: egress or ingress
	Rules    []Rule `json:"rules,omitempty"`
}

func (c *Check) check() error {
	if c.Run != nil || c.HTTP != nil || c.Backends != 0 {
		return nil
	}
	switch {
	case c.From == "" || c.To == "":
		return fmt.Errorf("from and to are needed: name a workload, an outside host, a node or an address")
	case !slices.Contains([]string{allow, deny, reject, audit, proxy}, c.Expect):
		return fmt.Errorf("expect: %q: write allow, deny, reject, audit or redirect", c.Expect)
	case c.Family != "" && c.Family != "ipv4" && c.Family != "ipv6":
		return fmt.Errorf("family: %q: write ipv4 or ipv6", c.Family)
	}
	if _, err := ParsePort(c.port(), nil); err != nil && !IsPortName(c.port()) {
		return err
	}
	return nil
}

// port is the check's port as people write it elsewhere.
func (c *Check) port() string {
	switch {
	case strings.EqualFold(c.Protocol, "ICMP") && c.Port == "":
		return c.Protocol
	case c.Protocol == "" && IsPortName(c.Port):
		return c.Port
	}
	return c.Port + "/" + cmp.Or(strings.ToUpper(c.Protocol), "TCP")
}

// title names the check as its file does.
func (c *Check) title() string {
	return fmt.Sprintf("%s -> %s %s", c.From, c.To, c.port())
}

// Test asks the engine about every connection of the checks. A check that holds for both families, and for every
// replica, with the same verdict by the same rules gives one result.
func (w *World) Test(file string, checks []Check) ([]Result, error) {
	var out []Result
	for i := range checks {
		c := &checks[i]
		skip := Result{File: file, Line: c.Line, Expected: c.Expect, OK: true, From: c.From, To: c.To}
		switch {
		case c.Run != nil:
			skip.Check, skip.Skipped = fmt.Sprintf("run %v", c.Run), "runs a command; needs a lab"
		case c.HTTP != nil || c.Backends != 0:
			skip.Check, skip.Skipped = c.title(), "asks for more than a verdict; needs a lab"
		}
		if skip.Skipped != "" {
			out = append(out, skip)
			continue
		}
		results, err := w.test(file, c)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: checks: %w", file, c.Line, err)
		}
		out = append(out, results...)
	}
	return out, nil
}

func (w *World) test(file string, c *Check) (out []Result, err error) {
	for _, family := range w.Config.Families {
		if c.Family != "" && c.Family != family {
			continue
		}
		froms, err := w.Find(c.From, family)
		if err != nil {
			return nil, fmt.Errorf("from: %w", err)
		}
		tos, err := w.Find(c.To, family)
		if err != nil {
			return nil, fmt.Errorf("to: %w", err)
		}
		for _, from := range two(froms) {
			for _, to := range two(tos) {
				if from.Name == to.Name && c.From != c.To || !speaks(from, family) || !speaks(to, family) {
					continue
				}
				ports, err := to.Port(c.port(), []string{family})
				if err != nil {
					return nil, err
				}
				for _, p := range ports {
					r := w.result(file, c, from, to, p)
					if !slices.ContainsFunc(out, func(o Result) bool { return same(o, r) }) {
						out = append(out, r)
					}
				}
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no address of the family %s", c.title(), c.Family)
	}
	return out, nil
}

// two leaves two replicas of each workload: enough to ask about one replica and another, since all are judged alike.
func two(ends []End) (out []End) {
	seen := map[string]int{}
	for _, e := range ends {
		if seen[e.Replica]++; e.Replica == "" || seen[e.Replica] <= 2 {
			out = append(out, e)
		}
	}
	return out
}

// speaks tells whether the end has an address of the family. Workloads of files have both.
func speaks(e End, family string) bool {
	return len(e.Addrs) == 0 || slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return Family(a) == family })
}

// same tells whether a person needs to see only one of them: what holds is told once, what does not wherever it happens.
func same(a, b Result) bool {
	place := a.From == b.From && a.To == b.To && a.Port == b.Port
	return a.OK == b.OK && (a.OK || place) && a.Got == b.Got && slices.Equal(a.Rules, b.Rules)
}

func (w *World) result(file string, c *Check, from, to End, p Port) Result {
	v := w.Ask(from, to, p)
	r := Result{
		Check: c.title(), From: from.Name, To: to.Name, Port: p.String(), File: file, Line: c.Line, Expected: c.Expect,
		Got: v.Word(), Side: v.Side, Rules: v.Rules,
	}
	want := c.Expect
	if want == reject { // somebody says no who could say so: policy let it pass
		want = allow
	}
	r.OK = want == r.Got || want == allow && r.Got != deny
	return r
}

// Verdict is the answer to one question.
type Verdict struct {
	Action verdict.Action
	Side   string // the end that decided: egress or ingress; both for what both allow
	Rules  []Rule // that decided: those of the end that denied, or of both
}

// Word returns allow, deny, audit or redirect.
func (v Verdict) Word() string { return word(v.Action) }

func word(a verdict.Action) string {
	switch a {
	case verdict.Allow:
		return allow
	case verdict.Audit:
		return audit
	case verdict.Redirect:
		return proxy
	}
	return deny
}

// Ask asks the engine about one connection.
func (w *World) Ask(from, to End, p Port) Verdict {
	d := w.Engine.DecideAt(from.Identity, to.Identity, to.Ports, p.Proto, p.Number)
	return join(answer{d.Egress, d.Ingress}, d.Action, w.Engine.Explain)
}
