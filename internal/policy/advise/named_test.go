package advise

import (
	"strings"
	"testing"
)

const namedPorts = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 203.0.113.0/24}}]
      ports: [{port: pg}]
`

const webAndDB = `
workloads:
  - {name: web, labels: {app: web}, serves: [{port: 80}]}
  - {name: db, labels: {app: db}, serves: [{port: 5432, name: pg}]}
`

// TestLintKnowsNamedPorts: a port that is named is not port 0, which nobody serves.
func TestLintKnowsNamedPorts(t *testing.T) {
	found, err := world(t, webAndDB, namedPorts).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if f.Kind == Unserved {
			t.Errorf("found %+v", f)
		}
	}
}

// TestOnlyStepsThatFitDecide: a rule of Kubernetes that names pods and blocks is two steps with one name; only the one that
// fits decides.
func TestOnlyStepsThatFitDecide(t *testing.T) {
	w := world(t, webAndDB, namedPorts)
	known := w.Known()
	end := func(name string) End {
		for _, k := range known {
			if strings.HasSuffix(k.Name, name) {
				return k
			}
		}
		t.Fatalf("nobody is called %s", name)
		return End{}
	}
	trace := w.Trace(end("/web"), end("/db"), Port{6, 5432})
	decide, steps := 0, 0
	for _, s := range trace.Sides[1].Steps {
		if strings.Contains(s.Rule.String(), "ingress[0]") {
			steps++
			if s.Decides {
				decide++
			}
			if s.Decides && !s.Fits {
				t.Errorf("%s decides and does not fit", s.Rule)
			}
		}
	}
	if steps != 2 || decide != 1 {
		t.Errorf("%d of %d steps decide, want 1 of 2", decide, steps)
	}
}

// TestTypesEndAt255: ICMP has no more types than that, whatever a port could be.
func TestTypesEndAt255(t *testing.T) {
	got := SpanNames([]Span{{Proto: 1, First: 0, Last: 7}, {Proto: 1, First: 9, Last: 65535}, {Proto: 58, First: 0, Last: 254}, {Proto: 58, First: 256, Last: 65535}, {Proto: 6, First: 256, Last: 65535}})
	if want := "0-7/ICMP, 9-255/ICMP, 0-254/ICMPV6, 256-65535/TCP"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
