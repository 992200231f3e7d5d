package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// spec wraps the body of a spec into a document; the body's first line is line 5 of the file.
func spec(kind, body string) string {
	meta := "{name: p, namespace: red}"
	if kind == KindClusterwideNetworkPolicy {
		meta = "{name: p}"
	}
	return fmt.Sprintf("apiVersion: cilium.io/v2\nkind: %s\nmetadata: %s\nspec:\n  %s\n", kind, meta, strings.ReplaceAll(strings.TrimSpace(body), "\n", "\n  "))
}

const all = "endpointSelector: {}\n"

// ports returns n port elements.
func ports(n int) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("{port: %d}", i+1))
	}
	return strings.Join(out, ",")
}

// TestValidation: every mistake refuses the document with file, line, field and what to do.
func TestValidation(t *testing.T) {
	cnp := func(body string) string { return spec(KindNetworkPolicy, body) }
	ccnp := func(body string) string { return spec(KindClusterwideNetworkPolicy, body) }
	in := func(entry string) string { return cnp(all + "ingress:\n- " + entry) }
	out := func(entry string) string { return cnp(all + "egress:\n- " + entry) }
	deny := func(entry string) string { return cnp(all + "ingressDeny:\n- " + entry) }
	for _, c := range []struct{ name, doc, want string }{
		// 4.1 rule 1
		{"no section", cnp(all), "p.yaml:5: spec: says nothing"},
		{"peer kinds exclude each other", in("{fromEndpoints: [{}], fromEntities: [all]}"), "p.yaml:7: spec.ingress[0].fromEntities: cannot stand beside fromEndpoints"},
		{"CIDR and CIDRSet too", out("{toCIDR: [10.0.0.0/8], toCIDRSet: [{cidr: 10.0.0.0/8}]}"), "spec.egress[0].toCIDRSet: cannot stand beside toCIDR"},
		{"even empty ones", in("{fromEndpoints: [], fromCIDR: [10.0.0.0/8]}"), "spec.ingress[0].fromCIDR: cannot stand beside fromEndpoints"},
		{"icmps excludes toPorts", in("{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: 80}]}]}"), "spec.ingress[0].icmps: cannot stand beside toPorts"},
		{"41 ports", in("{toPorts: [{ports: [" + ports(41) + "]}]}"), "spec.ingress[0].toPorts[0].ports: 41 ports; at most 40"},
		{"41 fields", in("{icmps: [{fields: [" + strings.TrimSuffix(strings.Repeat("{type: 8},", 41), ",") + "]}]}"), "spec.ingress[0].icmps[0].fields: 41 fields; at most 40"},
		{"no subject", cnp("ingress: []"), "p.yaml:5: spec.endpointSelector: missing"},
		{"groups", out("{toGroups: [{}]}"), "spec.egress[0].toGroups: not supported here"},
		{"groups on ingress", in("{fromGroups: [{}]}"), "spec.ingress[0].fromGroups: not supported here"},
		{"unknown authentication", in("{authentication: {mode: mutual}}"), `spec.ingress[0].authentication.mode: "mutual" is unknown; use disabled, required or test-always-fail`},
		{"authentication without a mode", in("{authentication: {}}"), "spec.ingress[0].authentication.mode: missing"},
		{"authentication in a deny rule", deny("{fromEntities: [all], authentication: {mode: disabled}}"), "spec.ingressDeny[0].authentication: not allowed in a deny rule"},
		// 4.1 rule 4
		{"except outside", in("{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}]}"), "spec.ingress[0].fromCIDRSet[0].except[1]: 11.0.0.0/16 is not inside 10.0.0.0/8"},
		{"except bigger", in("{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.0.0.0/7]}]}"), "except[0]: 10.0.0.0/7 is not inside"},
		{"except of the other family", in("{fromCIDRSet: [{cidr: 0.0.0.0/0, except: ['::/0']}]}"), "except[0]: ::/0 is not inside"},
		{"no cidr", in("{fromCIDRSet: [{except: []}]}"), "p.yaml:7: spec.ingress[0].fromCIDRSet[0].cidr: missing"},
		{"mask with holes", in("{fromCIDR: [10.0.0.0/255.0.255.0]}"), `spec.ingress[0].fromCIDR[0]: "10.0.0.0/255.0.255.0" is no CIDR`},
		{"length 33", in("{fromCIDR: [10.0.0.0/33]}"), "is no CIDR"},
		{"mapped", in("{fromCIDR: ['::ffff:10.0.0.0/104']}"), "write IPv4 blocks in IPv4 notation"},
		{"zone", in("{fromCIDR: ['fe80::1%eth0']}"), "is no CIDR"},
		{"plain address in a set", in("{fromCIDRSet: [{cidr: 10.0.0.1}]}"), "fromCIDRSet[0].cidr: \"10.0.0.1\" is no CIDR"},
		// 4.1 rule 5
		{"operator", in("{fromEndpoints: [{matchExpressions: [{key: a, operator: Gt, values: ['1']}]}]}"), `p.yaml:7: spec.ingress[0].fromEndpoints[0].matchExpressions[0]: key "a": operator "Gt" is unknown`},
		{"operator without values", cnp("endpointSelector: {matchExpressions: [{key: a, operator: In}]}\ningress: []"), `spec.endpointSelector.matchExpressions[0]: key "a": operator In needs at least one value`},
		{"entity", in("{fromEntities: [world, moon]}"), `p.yaml:7: spec.ingress[0].fromEntities[1]: entity "moon" is unknown; use one of all, world`},
		// ports
		{"port above 65535", in("{toPorts: [{ports: [{port: 65536}]}]}"), "spec.ingress[0].toPorts[0].ports[0].port: \"65536\" where a number from 0 to 65535"},
		{"negative port", in("{toPorts: [{ports: [{port: -1}]}]}"), "where a number from 0 to 65535"},
		{"octal", in("{toPorts: [{ports: [{port: '080'}]}]}"), "where a number from 0 to 65535"},
		{"fraction", in("{toPorts: [{ports: [{port: 80.5}]}]}"), "where a number from 0 to 65535"},
		{"range backwards", in("{toPorts: [{ports: [{port: 90, endPort: 80}]}]}"), "ports[0].endPort: 80 is below port 90"},
		{"range from 0", in("{toPorts: [{ports: [{port: 0, endPort: 80}]}]}"), "ports[0].endPort: needs a port above 0"},
		{"protocol", in("{toPorts: [{ports: [{port: 80, protocol: QUIC}]}]}"), `ports[0].protocol: protocol "QUIC" is not supported`},
		{"neither port nor protocol", in("{toPorts: [{ports: [{}]}]}"), "ports[0].port: missing"},
		{"ICMP type 256", in("{toPorts: [{ports: [{port: 256, protocol: ICMP}]}]}"), "at most 255"},
		{"empty toPorts", in("{toPorts: []}"), "spec.ingress[0].toPorts: the list is empty; take the field out to mean every port"},
		{"empty ports", in("{toPorts: [{ports: []}]}"), "toPorts[0].ports: the list is empty"},
		{"no ports", in("{toPorts: [{}]}"), "toPorts[0].ports: missing"},
		{"empty icmps", in("{icmps: []}"), "spec.ingress[0].icmps: the list is empty"},
		{"empty fields", in("{icmps: [{fields: []}]}"), "icmps[0].fields: the list is empty"},
		{"no fields", in("{icmps: [{}]}"), "icmps[0].fields: missing"},
		{"no type", in("{icmps: [{fields: [{family: IPv4}]}]}"), "icmps[0].fields[0].type: missing"},
		{"family", in("{icmps: [{fields: [{family: IPv5, type: 8}]}]}"), `fields[0].family: "IPv5": use IPv4 or IPv6`},
		{"type name of the other family", in("{icmps: [{fields: [{family: IPv4, type: PacketTooBig}]}]}"), `fields[0].type: ICMP type "PacketTooBig" is unknown for IPv4`},
		{"type 256", in("{icmps: [{fields: [{type: 256}]}]}"), "fields[0].type: \"256\" where a number from 0 to 255"},
		{"deny without peers and ports", deny("{}"), "spec.ingressDeny[0]: an entry without peers and ports selects nothing; to deny everyone write fromEntities: [all]"},
		// scope
		{"other namespace", cnp("endpointSelector: {matchLabels: {'k8s:io.kubernetes.pod.namespace': blue}}\ningress: []"), "excludes the policy's own namespace \"red\""},
		{"reserved subject in a namespace", cnp("endpointSelector: {matchLabels: {'reserved:init': ''}}\ningress: []"), "use a CiliumClusterwideNetworkPolicy"},
		{"cidr labels", in("{fromEndpoints: [{matchLabels: {'cidr:10.0.0.0/8': ''}}]}"), "labels of source cidr cannot be selected"},
		// form
		{"unknown field", cnp(all + "ingres: []"), "p.yaml:6: spec.ingres: unknown field"},
		{"unknown field in an entry", in("{fromEndpoint: [{}]}"), "p.yaml:7: spec.ingress[0].fromEndpoint: unknown field"},
		{"ingress field in egress", out("{fromEndpoints: [{}]}"), "spec.egress[0].fromEndpoints: unknown field"},
		{"unknown field at the top", cnp(all+"ingress: []") + "extra: 1\n", "p.yaml:7: extra: unknown field"},
		{"unknown field in metadata", strings.Replace(cnp(all+"ingress: []"), "namespace: red", "namespce: red", 1), "metadata.namespce: unknown field"},
		{"field twice", cnp(all + "ingress: []\ningress: [{fromEntities: [all]}]"), "p.yaml:7: spec.ingress: the field is there twice"},
		{"null section", cnp(all + "ingress:"), "p.yaml:6: spec.ingress: has no value"},
		{"null peers", in("{fromEndpoints: , toPorts: [{ports: [{port: 80}]}]}"), "spec.ingress[0].fromEndpoints: has no value"},
		{"null selector", in("{fromEndpoints: [~]}"), "spec.ingress[0].fromEndpoints[0]: has no value"},
		{"null subject", cnp("endpointSelector: ~\ningress: []"), "spec.endpointSelector: has no value"},
		{"list for object", cnp("endpointSelector: []\ningress: []"), "spec.endpointSelector: a list where an object is expected"},
		{"object for list", cnp(all + "ingress: {}"), "spec.ingress: an object where a list is expected"},
		{"number for text", cnp("endpointSelector: {matchLabels: {a: 1}}\ningress: []"), "spec.endpointSelector.matchLabels.a: \"1\" where text is expected; quote it"},
		{"number as key", cnp("endpointSelector: {matchLabels: {1: a}}\ningress: []"), `the key "1" is not text`},
		{"merge key", cnp("endpointSelector: &x {}\ningress: [{<<: *x}]"), "merge keys (<<) are not supported"},
		{"text for a boolean", cnp(all + "ingress: []\nenableDefaultDeny: {ingress: 'false'}"), "spec.enableDefaultDeny.ingress: \"false\" where true or false is expected"},
		{"unknown default deny", cnp(all + "ingress: []\nenableDefaultDeny: {ingres: false}"), "spec.enableDefaultDeny.ingres: unknown field"},
		{"terminal escape", cnp(all + "description: \"a\\e[2Jb\"\ningress: []"), "spec.description: control characters"},
		{"text that runs backwards", cnp(all + "description: \"a\\u202eb\"\ningress: []"), "spec.description: control characters"},
		{"long log", cnp(all + "log: {value: " + strings.Repeat("a", 33) + "}\ningress: []"), "spec.log.value: longer"},
		{"other kind", "apiVersion: cilium.io/v2\nkind: Pod\nmetadata: {name: a}\n", `p.yaml:2: kind: "Pod" is not supported`},
		{"other version", "apiVersion: v1\nkind: CiliumNetworkPolicy\n", `p.yaml:1: apiVersion: "v1" is not supported`},
		{"no version", strings.Replace(cnp(all+"ingress: []"), "apiVersion: cilium.io/v2\n", "", 1), "apiVersion: missing"},
		{"no name", strings.Replace(cnp(all+"ingress: []"), "name: p, ", "", 1), "metadata.name: missing"},
		{"bad name", strings.Replace(cnp(all+"ingress: []"), "name: p", "name: P_x", 1), "metadata.name: \"P_x\" is no RFC 1123 name"},
		{"name with control characters", strings.Replace(cnp(all+"ingress: []"), "name: p", "name: \"p\\x07\"", 1), "metadata.name: control characters"},
		{"long namespace", strings.Replace(cnp(all+"ingress: []"), "namespace: red", "namespace: "+strings.Repeat("a", 64), 1), "is no RFC 1123 label"},
		{"namespace of a clusterwide policy", strings.Replace(ccnp(all+"ingress: []"), "name: p", "name: p, namespace: red", 1), "metadata.namespace: a CiliumClusterwideNetworkPolicy has no namespace"},
		{"no spec", "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n", "spec: missing"},
		{"empty specs", "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspecs: []\n", "p.yaml:4: specs: the list is empty"},
		{"same policy twice", cnp(all+"ingress: []") + "---\n" + cnp(all+"egress: []"), "p.yaml:8: metadata.name: CiliumNetworkPolicy red/p is already in line 1"},
		{"line numbers of a later document", cnp(all+"ingress: []") + "---\n# a comment\n---\n" + cnp(all+"egres: []"), "p.yaml:15: spec.egres: unknown field"},
		{"not YAML", cnp(all) + "---\na:\n  - b: [\n", "p.yaml:8: not YAML"},
		{"text", "just text", "p.yaml:1: \"just text\" where an object is expected"},
	} {
		ps, err := Parse("p.yaml", []byte(c.doc))
		if err == nil || !strings.Contains(err.Error(), c.want) || ps != nil {
			t.Errorf("%s:\n%s\ngot  %v, %d policies\nwant an error with %s", c.name, c.doc, err, len(ps), c.want)
			continue
		}
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Line == 0 || fe.File != "p.yaml" {
			t.Errorf("%s: %v does not say where", c.name, err)
		}
	}
}

// TestAccepted: what looks unusual and is legal.
func TestAccepted(t *testing.T) {
	cnp := func(body string) string { return spec(KindNetworkPolicy, body) }
	in := func(entry string) string { return cnp(all + "ingress:\n- " + entry) }
	for _, c := range []struct{ name, doc string }{
		{"entity none", in("{fromEntities: [none]}")},
		{"every entity", in("{fromEntities: [" + strings.Join(EntityNames(), ",") + "]}")},
		{"empty sections", cnp(all + "ingress: []\negress: []\ningressDeny: []\negressDeny: []")},
		{"40 ports", in("{toPorts: [{ports: [" + ports(40) + "]}]}")},
		{"80 ports in two lists", in("{toPorts: [{ports: [" + ports(40) + "]}, {ports: [" + ports(40) + "]}]}")},
		{"lower case protocol", in("{toPorts: [{ports: [{port: '80', protocol: tcp}]}]}")},
		{"protocol only", in("{toPorts: [{ports: [{protocol: SCTP}]}]}")},
		{"end of 0", in("{toPorts: [{ports: [{port: 80, endPort: 0}]}]}")},
		{"ICMP by name", in("{icmps: [{fields: [{type: EchoRequest}, {family: IPv6, type: EchoRequest}]}]}")},
		{"addresses as CIDRs", in("{fromCIDR: [10.0.0.1, 'fd00::1']}")},
		{"host bits", in("{fromCIDR: [10.1.2.3/8]}")},
		{"disabled authentication", in("{fromEntities: [all], authentication: {mode: disabled}}")},
		{"own namespace in the subject", cnp("endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: red}}\ningress: []")},
		{"init in a clusterwide policy", spec(KindClusterwideNetworkPolicy, "endpointSelector: {matchLabels: {'reserved:init': ''}}\ningress: []")},
		{"Kubernetes' bookkeeping", strings.Replace(cnp(all+"ingress: []"), "name: p", "name: p, uid: x, creationTimestamp: ~, generation: 3, annotations: {a: b}, managedFields: [{}]", 1) + "status: {conditions: []}\n"},
		{"spec and specs", cnp(all+"ingress: []") + "specs:\n- {endpointSelector: {}, egress: []}\n"},
		{"several lines of description", cnp(all + "description: |\n  one\n  two\ningress: []")},
		{"labels and log", cnp(all + "labels: [{key: a, value: b, source: k8s}, {key: c}]\nlog: {value: seen}\ningress: []")},
		{"anchors and aliases", cnp("endpointSelector: &x {matchLabels: {a: b}}\ningress: [{fromEndpoints: [*x, *x]}]")},
		{"JSON", `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"p"},"spec":{"endpointSelector":{},"ingress":[{"fromEntities":["all"]}]}}`},
		{"document end markers", "---\n" + cnp(all+"ingress: []") + "...\n---\n"},
	} {
		if ps, err := Parse("p.yaml", []byte(c.doc)); err != nil || len(ps) != 1 {
			t.Errorf("%s:\n%s\n%d policies, %v", c.name, c.doc, len(ps), err)
		}
	}
	for _, empty := range []string{"", "\n", "---\n---\n", "# nothing\n", "~\n"} {
		if ps, err := Parse("p.yaml", []byte(empty)); err != nil || len(ps) != 0 {
			t.Errorf("%q: %d policies, %v; want none and no error", empty, len(ps), err)
		}
	}
	ps, err := Parse("p.yaml", []byte("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec: {endpointSelector: {}, ingress: []}\n"))
	if err != nil || ps[0].Namespace != "default" {
		t.Errorf("a policy without namespace: %v, %v; want namespace default", ps, err)
	}
}

// TestHostileDocuments is X05: bombs end in an error, quickly.
func TestHostileDocuments(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 20; i++ {
		bomb.WriteString(fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ",")))
	}
	for name, c := range map[string]struct{ doc, want string }{
		"billion laughs":        {bomb.String(), "more than"},
		"alias of itself":       {"a: &a [*a]\n", "nested deeper"},
		"deep nesting":          {"a: " + strings.Repeat("[", 200) + strings.Repeat("]", 200), "nested deeper"},
		"very deep nesting":     {strings.Repeat("[", 200000), "not YAML"},
		"huge file":             {strings.Repeat("#", maxFile+1), "at most"},
		"too many documents":    {strings.Repeat("---\n", maxDocs+2), "documents"},
		"a mebibyte of key":     {spec(KindNetworkPolicy, "endpointSelector: {matchLabels: {"+strings.Repeat("a", 1<<20)+": b}}\ningress: []"), "not YAML"},
		"a mebibyte of value":   {spec(KindNetworkPolicy, "endpointSelector: {matchLabels: {a: "+strings.Repeat("b", 1<<20)+"}}\ningress: []"), "longer than"},
		"ten thousand mistakes": {spec(KindNetworkPolicy, all+"ingress: ["+strings.TrimSuffix(strings.Repeat("{a: b},", 10000), ",")+"]"), "more mistakes follow"},
		"NUL":                   {"a: \x00", "not YAML"},
	} {
		ps, err := Parse("p.yaml", []byte(c.doc))
		if err == nil || ps != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d policies, error %.300v; want an error with %q", name, len(ps), err, c.want)
		} else if len(err.Error()) > 8000 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
	}
}
