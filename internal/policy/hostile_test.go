package policy

import (
	"fmt"
	"strings"
	"testing"
)

// repeated returns n elements of a list.
func repeated(n int, element string) string {
	return strings.TrimSuffix(strings.Repeat(element+",", n), ",")
}

// TestHostileObjects is X04 and X05: what is huge, odd or made to be mistaken for something else ends in an error that
// says where and why, and never in a policy that means less than is written.
func TestHostileObjects(t *testing.T) {
	var labels []string
	for i := range 5000 {
		labels = append(labels, fmt.Sprintf("l%d: a", i))
	}
	mib := strings.Repeat("a", 1<<20)
	service := "apiVersion: v1\nkind: Service\nmetadata: {name: %s, labels: {%s}}\n"
	for name, c := range map[string]struct{ doc, want string }{
		"a mebibyte of regular expression":             {in(http("{path: '" + mib + "'}")), "a regular expression of 1048576 bytes; at most 8192"},
		"a mebibyte of host":                           {in(http("{host: '" + mib + "'}")), "at most 8192"},
		"a mebibyte of header":                         {in(http("{headers: ['a " + mib + "']}")), "1048578 bytes; at most 8192"},
		"a mebibyte of header to match":                {in(http("{headerMatches: [{name: a, value: '" + mib + "'}]}")), "at most 8192"},
		"repetitions inside of repetitions":            {in(http("{path: '((a{100}){100}){100}'}")), "is no regular expression"},
		"a long repetition of something long":          {in(http("{path: '(" + strings.Repeat("ab", 100) + "){900}'}")), "regular expressions are too large"},
		"many letters many times":                      {in(http("{path: '[\\pL\\pN\\pS]{1000}'}")), "regular expressions are too large"},
		"many large regular expressions":               {in(http(repeated(200, "{path: 'a{1000}b{1000}c{900}'}"))), "rules.http[120].path"},
		"groups inside of groups":                      {in(http("{path: '" + strings.Repeat("(", 3000) + strings.Repeat(")", 3000) + "'}")), "is no regular expression"},
		"a header that would be two":                   {in(http("{headers: [\"a b\\nc d\"]}")), "control characters"},
		"10,000 ports in one list":                     {in("{toPorts: [{ports: [" + repeated(10000, "{port: 1}") + "]}]}"), "10000 ports; at most 40"},
		"10,000 ports in many lists":                   {in("{toPorts: [" + repeated(250, "{ports: ["+ports(40)+"]}") + "]}"), "10000 ports; at most 8192 in one entry"},
		"10,000 ports of Kubernetes":                   {knpIn("{ports: [" + repeated(10000, "{port: 1}") + "]}"), "10000 ports; at most 8192"},
		"5,000 labels":                                 {fmt.Sprintf(service, "p", strings.Join(labels, ",")), "5000 labels; at most 1000"},
		"a mebibyte of label":                          {fmt.Sprintf(service, "p", "a: "+mib), "longer than 253"},
		"a mebibyte of label key":                      {fmt.Sprintf(service, "p", "? "+mib+"\n: a"), "longer than"},
		"a mebibyte of name":                           {fmt.Sprintf(service, mib, ""), "is no RFC 1123 name"},
		"a name of 254":                                {fmt.Sprintf(service, strings.Repeat("a", 254), ""), "is no RFC 1123 name"},
		"a name that is a path":                        {fmt.Sprintf(service, "../../etc/passwd", ""), "is no RFC 1123 name"},
		"a name with a look-alike":                     {fmt.Sprintf(service, "pаypal", ""), "is no RFC 1123 name"}, // the second letter is Cyrillic
		"a name with a new line":                       {fmt.Sprintf(service, `"a\nb"`, ""), "control characters"},
		"a name that moves the cursor":                 {fmt.Sprintf(service, `"a\e[2J"`, ""), "control characters"},
		"a label with NUL":                             {fmt.Sprintf(service, "p", `a: "b\0"`), "control characters"},
		"a namespace with dots":                        {strings.Replace(fmt.Sprintf(service, "p", ""), "name: p", "name: p, namespace: a.b", 1), "is no RFC 1123 label"},
		"a selector that claims another namespace":     {ofKind("v1", KindService, "selector: {io.kubernetes.pod.namespace: kube-system}"), "no pod can carry this label"},
		"a selector that claims a service account":     {ofKind("v1", KindService, "selector: {io.cilium.k8s.policy.serviceaccount: admin}"), "no pod can carry this label"},
		"a pod selector that claims namespace labels":  {knpIn("{from: [{podSelector: {matchLabels: {io.cilium.k8s.namespace.labels.team: x}}}]}"), "no pod can carry this label"},
		"a namespaced policy for everyone's new pods":  {cnp("endpointSelector: {matchLabels: {'reserved:init': ''}}\ningress: []"), "is in no namespace"},
		"a group that names itself":                    {ofKind("cilium.io/v2", KindCIDRGroup, "externalCIDRs: [p]"), "is no CIDR"},
		"a list inside of itself":                      {"apiVersion: v1\nkind: List\nitems: &a [{apiVersion: v1, kind: List, items: *a}]\n", "nested deeper"},
		"a list of a million aliases":                  {"x: &a [" + repeated(1000, "{}") + "]\ny: &b [" + repeated(1000, "*a") + "]\nz: [*b, *b, *b]\n", "more than"},
		"a negative port":                              {knpIn("{ports: [{port: -1}]}"), "where a number from 0 to 65535"},
		"a priority that would wrap":                   {cnp(all + "ingress: []\nporin: {priority: 4294967296}"), "where a number from 0 to 2147483647"},
		"a port that would wrap":                       {in("{toPorts: [{ports: [{port: 65616}]}]}"), "where a number from 0 to 65535"},
		"Kafka's version that would wrap":              {in(kafka("{apiVersion: 65536}")), "where a number from 0 to 32767"},
		"a wrong letter in a field that would open":    {in("{fromEndpoint: [{matchLabels: {a: b}}], toPorts: [{ports: [{port: 80}]}]}"), "unknown field"},
		"a field of another spelling":                  {in("{FromEndpoints: [{matchLabels: {a: b}}]}"), "unknown field"},
		"a look-alike of a field":                      {in("{fromEndpoіnts: [{matchLabels: {a: b}}]}"), "unknown field"}, // one letter is Ukrainian
		"the same field twice, once wide":              {in("{fromEntities: [none], fromEntities: [all]}"), "the field is there twice"},
		"an unknown field of a ClusterNetworkPolicy":   {kcnpIn("{action: Deny, from: [{namespaces: {}}], unless: []}"), "unknown field"},
		"an unknown field of a NetworkPolicy":          {knpIn("{from: [{podSelector: {}}], except: []}"), "unknown field"},
		"an unknown field of a group":                  {ofKind("cilium.io/v2", KindCIDRGroup, "externalCIDRs: []\ninternalCIDRs: []"), "unknown field"},
		"a selector with 300 conditions on long words": {cnp("endpointSelector: {matchLabels: {" + strings.Repeat("a", 600) + ": b}}\ningress: []"), "longer than 512"},
	} {
		ps, err := Parse("p.yaml", []byte(c.doc))
		if err == nil || ps != nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "p.yaml:") {
			t.Errorf("%s: %d policies, error %.300v; want an error with %q", name, len(ps), err, c.want)
		} else if len(err.Error()) > 8000 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
	}
}

// TestBigButFine: large objects that people have are read whole.
func TestBigButFine(t *testing.T) {
	var cidrs, rules, exact []string
	for i := range 50000 {
		cidrs = append(cidrs, fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255))
	}
	for i := range 2000 {
		rules = append(rules, fmt.Sprintf("{path: '/api/v%d/.*'}", i))
	}
	for i := range 8192 {
		exact = append(exact, fmt.Sprintf("{port: %d}", i+1))
	}
	g := parsed1(t, ofKind("cilium.io/v2", KindCIDRGroup, "externalCIDRs: ["+strings.Join(cidrs[:50000], ",")+"]"))
	if len(g.Group.CIDRs) != 50000 {
		t.Errorf("%d of 50000 blocks", len(g.Group.CIDRs))
	}
	h := parsed1(t, in(http(strings.Join(rules, ","))))
	if got := len(h.Rules[0].Ingress.Allow[0].Ports[0].L7.HTTP); got != 2000 {
		t.Errorf("%d of 2000 rules", got)
	}
	p := parsed1(t, knpIn("{ports: ["+strings.Join(exact, ",")+"]}"))
	if got := len(p.Rules[0].Ingress.Allow[0].Ports); got != 8192 {
		t.Errorf("%d of 8192 ports", got)
	}
	parsed1(t, strings.Replace(knp("podSelector: {}"), "name: p", "name: "+strings.TrimSuffix(strings.Repeat("abcdefghi.", 25), ".")+".abc", 1))
}
