package policy

import (
	"strings"
	"testing"
)

// row is one row of the note on semantics: documents that it lets pass, and documents that it refuses with these words.
type row struct {
	name string
	good []string
	bad  [][2]string
}

func (c row) run(t *testing.T) {
	t.Helper()
	t.Run(c.name, func(t *testing.T) {
		for _, doc := range c.good {
			if ps, err := Parse("p.yaml", []byte(doc)); err != nil || len(ps) != 1 {
				t.Errorf("refused: %v, %d policies\n%s", err, len(ps), doc)
			}
		}
		for _, b := range c.bad {
			if ps, err := Parse("p.yaml", []byte(b[0])); err == nil || !strings.Contains(err.Error(), b[1]) || !strings.HasPrefix(err.Error(), "p.yaml:") {
				t.Errorf("got  %v, %d policies\nwant an error with %s\n%s", err, len(ps), b[1], b[0])
			}
		}
	})
}

func runRows(t *testing.T, rows []row) {
	t.Helper()
	for _, c := range rows {
		c.run(t)
	}
}

// Shorthands for documents: one entry of a section, and the spec around it.
func cnp(body string) string  { return spec(KindNetworkPolicy, body) }
func ccnp(body string) string { return spec(KindClusterwideNetworkPolicy, body) }

func in(entry string) string      { return cnp(all + "ingress:\n- " + entry) }
func out(entry string) string     { return cnp(all + "egress:\n- " + entry) }
func denyIn(entry string) string  { return cnp(all + "ingressDeny:\n- " + entry) }
func denyOut(entry string) string { return cnp(all + "egressDeny:\n- " + entry) }
func hostIn(entry string) string  { return ccnp("nodeSelector: {}\ningress:\n- " + entry) }
func hostOut(entry string) string { return ccnp("nodeSelector: {}\negress:\n- " + entry) }
func tcp(port, more string) string {
	return "{toPorts: [{ports: [{port: " + port + ", protocol: TCP}], " + more + "}]}"
}
func http(rule string) string  { return tcp("80", "rules: {http: ["+rule+"]}") }
func kafka(rule string) string { return tcp("9092", "rules: {kafka: ["+rule+"]}") }
func dns(rule string) string {
	return "{toPorts: [{ports: [{port: 53, protocol: ANY}], rules: {dns: [" + rule + "]}}]}"
}

// TestRow4Fields is section 4 of the note: every field of CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy.
func TestRow4Fields(t *testing.T) { runRows(t, rowsOfFields()) }

func rowsOfFields() []row {
	long := strings.Repeat("a", 300)
	return []row{
		{
			"endpointSelector: exactly one of endpointSelector, nodeSelector",
			[]string{cnp("endpointSelector: {}\ningress: []"), ccnp("endpointSelector: {}\ningress: []")},
			[][2]string{
				{cnp("ingress: []"), "spec.endpointSelector: missing"},
				{ccnp("endpointSelector: {}\nnodeSelector: {}\ningress: []"), "spec.nodeSelector: cannot stand beside endpointSelector"},
			},
		},
		{
			"nodeSelector: CCNP",
			[]string{
				ccnp("nodeSelector: {matchLabels: {kubernetes.io/hostname: a, 'k8s:zone': b, 'node:rack': c}}\ningress: []"),
				ccnp("nodeSelector: {}\negressDeny: [{toEntities: [world]}]"),
			},
			[][2]string{
				{cnp("nodeSelector: {}\ningress: []"), "spec.nodeSelector: a CiliumNetworkPolicy cannot select nodes; use a CiliumClusterwideNetworkPolicy"},
				{ccnp("nodeSelector: {matchLabels: {'reserved:host': ''}}\ningress: []"), `source "reserved" has no labels here`},
			},
		},
		{
			"ingress[], egress[]: a present but empty list still switches default deny on",
			[]string{cnp(all + "ingress: []"), cnp(all + "egress: []")},
			[][2]string{{cnp(all + "ingress:"), "spec.ingress: has no value"}},
		},
		{
			"ingressDeny[], egressDeny[]: same peers; no L7, no auth",
			[]string{denyIn("{fromEntities: [world], toPorts: [{ports: [{port: 80}]}]}"), denyOut("{toServices: [{k8sService: {serviceName: a}}]}"), denyOut("{toNodes: [{}]}")},
			[][2]string{
				{denyIn("{fromEntities: [all], authentication: {mode: required}}"), "authentication: not allowed in a deny rule"},
				{denyIn("{fromRequires: [{}]}"), "spec.ingressDeny[0].fromRequires: not allowed in a deny rule"},
				{denyIn(http("{}")), "toPorts[0].rules: not allowed in a deny rule"},
				{denyOut("{toFQDNs: [{matchName: a.b}]}"), "toFQDNs: not allowed in a deny rule"},
				{denyOut(tcp("443", "serverNames: [a.b]")), "serverNames: not allowed in a deny rule"},
				{denyOut(tcp("443", "listener: {name: x}")), "listener: not allowed in a deny rule"},
				{denyOut(tcp("443", "terminatingTLS: {secret: {name: x}}")), "terminatingTLS: not allowed in a deny rule"},
			},
		},
		{
			"enableDefaultDeny{ingress,egress}",
			[]string{cnp(all + "ingress: []\nenableDefaultDeny: {ingress: false, egress: true}")},
			[][2]string{{cnp(all + "ingress: []\nenableDefaultDeny: {ingress: 0}"), "enableDefaultDeny.ingress: \"0\" where true or false"}},
		},
		{
			"labels, description, log{value}",
			[]string{cnp(all + "ingress: []\nlabels: [{key: a, value: b, source: k8s}]\ndescription: x\nlog: {value: y}")},
			[][2]string{{cnp(all + "ingress: []\nlabels: [{value: b}]"), "spec.labels[0].key: missing"}},
		},
		{
			"from/toEndpoints: nil = any peer (with toPorts); empty non-nil = nothing",
			[]string{in("{toPorts: [{ports: [{port: 80}]}]}"), in("{fromEndpoints: []}"), out("{toEndpoints: [{matchLabels: {a: b}}, {}]}")},
			[][2]string{{in("{fromEndpoints: ~}"), "has no value"}, {in("{fromEndpoints: {}}"), "an object where a list is expected"}},
		},
		{
			"from/toRequires",
			[]string{in("{fromRequires: [{matchLabels: {a: b}}]}"), out("{toRequires: [{}], toEndpoints: [{}]}")},
			[][2]string{{in("{toRequires: [{}]}"), "toRequires: unknown field"}},
		},
		{
			"from/toCIDR, from/toCIDRSet{cidr, cidrGroupRef, cidrGroupSelector, except[]}",
			[]string{
				in("{fromCIDR: [10.0.0.0/8, '::1']}"), in("{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}"),
				out("{toCIDRSet: [{cidrGroupRef: office, except: [10.1.0.0/16]}, {cidrGroupSelector: {matchLabels: {site: a}}}]}"),
				in("{fromCIDRSet: [{cidrGroupSelector: {matchExpressions: [{key: 'cidrgroup:site', operator: Exists}]}}]}"),
			},
			[][2]string{
				{in("{fromCIDRSet: [{cidrGroupRef: A_B}]}"), "no name of a CiliumCIDRGroup"},
				{in("{fromCIDRSet: [{cidrGroupRef: ''}]}"), "no name of a CiliumCIDRGroup"},
				{in("{fromCIDRSet: [{cidrGroupSelector: {matchLabels: {'reserved:a': b}}}]}"), `source "reserved" has no labels here`},
			},
		},
		{
			"from/toEntities",
			[]string{
				in("{fromEntities: [" + strings.Join(EntityNames(), ", ") + "]}"),
				in("{fromEntities: [all, world, cluster, host, init, none]}"),
				out("{toEntities: [world-ipv4, world-ipv6, cluster-mesh, remote-node, kube-apiserver, ingress, health, unmanaged]}"),
			},
			[][2]string{{in("{fromEntities: [World]}"), `entity "World" is unknown`}},
		},
		{
			"from/toGroups{aws{...}}",
			nil,
			[][2]string{
				{out("{toGroups: [{aws: {region: x}}]}"), "spec.egress[0].toGroups: not supported here: groups of cloud providers; list their addresses in a CiliumCIDRGroup"},
				{denyIn("{fromGroups: []}"), "spec.ingressDeny[0].fromGroups: not supported here"},
			},
		},
		{
			"from/toNodes: node label selectors",
			[]string{in("{fromNodes: [{matchLabels: {zone: a}}]}"), out("{toNodes: [{}], toPorts: [{ports: [{port: 9100}]}]}")},
			[][2]string{{in("{fromNodes: [{matchLabels: {'cidr:a': b}}]}"), `source "cidr" has no labels here`}},
		},
		{
			"toServices{k8sService, k8sServiceSelector}: + toPorts",
			[]string{
				out("{toServices: [{k8sService: {serviceName: a}}, {k8sService: {serviceName: a, namespace: b}}, {k8sServiceSelector: {selector: {}}}]}"),
				out("{toServices: [{k8sServiceSelector: {selector: {matchLabels: {a: b}}, namespace: c}}], toPorts: [{ports: [{port: 80}]}]}"),
				ccnp(all + "egress: [{toServices: [{k8sService: {serviceName: a, namespace: b}}]}]"),
			},
			[][2]string{
				{out("{toServices: [{}]}"), "toServices[0].k8sService: missing"},
				{out("{toServices: [{k8sService: {}}]}"), "serviceName: missing"},
				{out("{toServices: [{k8sServiceSelector: {}}]}"), "selector: missing"},
				{out("{toServices: [{k8sService: {serviceName: a}, k8sServiceSelector: {selector: {}}}]}"), "cannot stand beside k8sService"},
				{ccnp(all + "egress: [{toServices: [{k8sService: {serviceName: a}}]}]"), "namespace: missing; a CiliumClusterwideNetworkPolicy has no namespace of its own"},
				{in("{fromServices: []}"), "unknown field"},
				{out("{toServices: [{k8sService: {serviceName: a, namespace: B}}]}"), "is no RFC 1123 label"},
			},
		},
		{
			"toFQDNs{matchName, matchPattern}: '*' inside one label, '**.' several",
			[]string{out("{toFQDNs: [{matchName: A.b}, {matchName: a.b.}, {matchPattern: '*.b'}, {matchPattern: '**.b'}, {matchPattern: '*'}, {matchPattern: 'a-*.b_c'}]}")},
			[][2]string{
				{out("{toFQDNs: [{}]}"), "toFQDNs[0].matchName: missing; write matchName or matchPattern"},
				{out("{toFQDNs: [{matchName: a, matchPattern: b}]}"), "matchPattern: cannot stand beside matchName"},
				{out("{toFQDNs: [{matchName: '*.b'}]}"), "is no DNS name"},
				{out("{toFQDNs: [{matchName: 'a..b'}]}"), "is no DNS name"},
				{out("{toFQDNs: [{matchName: ''}]}"), "is no DNS name"},
				{out("{toFQDNs: [{matchName: " + strings.Repeat("a", 64) + "}]}"), "is no DNS name"},
				{out("{toFQDNs: [{matchName: " + strings.TrimSuffix(strings.Repeat("abcdefg.", 40), ".") + "}]}"), "is no DNS name"},
				{out("{toFQDNs: [{matchName: еxample.com}]}"), "is no DNS name"}, // a Cyrillic letter
				{out("{toFQDNs: [{matchPattern: '**'}]}"), "is no pattern of DNS names"},
				{out("{toFQDNs: [{matchPattern: '[a-z]*.b'}]}"), "is no pattern of DNS names"},
				{in("{fromFQDNs: []}"), "unknown field"},
			},
		},
		{
			"toPorts[].ports[]{port, endPort, protocol}: number or lower-cased IANA name; endPort only with a number",
			[]string{
				in("{toPorts: [{ports: [{port: http}, {port: HTTP-alt, protocol: TCP}, {port: '0x10'}, {port: 1e}]}]}"),
				in("{toPorts: [{ports: [{port: 0}, {port: '0', protocol: UDP}, {port: 80, endPort: 90}]}]}"),
			},
			[][2]string{
				{in("{toPorts: [{ports: [{port: http, endPort: 90}]}]}"), "endPort: cannot follow a name"},
				{in("{toPorts: [{ports: [{port: '" + long + "'}]}]}"), "is no name of a port"},
				{in("{toPorts: [{ports: [{port: -http}]}]}"), "is no name of a port"},
				{in("{toPorts: [{ports: [{port: ht--tp}]}]}"), "is no name of a port"},
				{in("{toPorts: [{ports: [{port: ht_tp}]}]}"), "is no name of a port"},
				{in("{toPorts: [{ports: [{port: 'a/b'}]}]}"), "is no name of a port"},
				{in("{toPorts: [{ports: [{port: http, protocol: ICMP}]}]}"), "ICMP has no named ports"},
				{in("{toPorts: [{ports: [{port: 0x10}]}]}"), "where a number from 0 to 65535 is expected"},
			},
		},
		{
			"protocols: TCP UDP ANY SCTP ICMP ICMPV6 VRRP IGMP GRE IPIP IPV6 ESP AH",
			[]string{in("{toPorts: [{ports: [{protocol: TCP}, {protocol: UDP}, {protocol: ANY}, {protocol: SCTP}, {protocol: ICMP}, {protocol: ICMPV6}, {protocol: VRRP}, {protocol: IGMP}, {protocol: GRE}, {protocol: IPIP}, {protocol: IPV6}, {protocol: ESP}, {protocol: AH, port: 0}]}]}")},
			[][2]string{{in("{toPorts: [{ports: [{port: 5, protocol: GRE}]}]}"), "port: GRE has no ports"}, {in("{toPorts: [{ports: [{protocol: '6'}]}]}"), "is not supported"}},
		},
		{
			"toPorts[].{terminatingTLS, originatingTLS, serverNames, listener}",
			[]string{
				out(tcp("443", "serverNames: [a.b, '*.c', '**.d']")),
				out(tcp("443", "terminatingTLS: {secret: {name: s}, certificate: tls.crt, privateKey: tls.key}, originatingTLS: {secret: {namespace: n, name: s}, trustedCA: ca.crt}, rules: {http: [{}]}, serverNames: [a]")),
				out(tcp("443", "listener: {envoyConfig: {kind: CiliumEnvoyConfig, name: a}, name: b, priority: 100}")),
			},
			[][2]string{
				{out(tcp("443", "serverNames: []")), "serverNames: the list is empty"},
				{out(tcp("443", "serverNames: ['']")), "is no pattern of DNS names"},
				{out(tcp("443", "terminatingTLS: {}")), "terminatingTLS.secret: missing"},
				{out(tcp("443", "terminatingTLS: {secret: {}}")), "secret.name: missing"},
				{out(tcp("443", "terminatingTLS: {secret: {name: ../../etc/passwd}}")), "is no name of a Secret"},
				{ccnp(all + "egress: [" + tcp("443", "originatingTLS: {secret: {name: s}}") + "]"), "secret.namespace: missing"},
				{out(tcp("443", "listener: {envoyConfig: {kind: X, name: a}, name: b}")), `envoyConfig.kind: "X" is unknown`},
				{out(tcp("443", "listener: {envoyConfig: {name: a}, name: b, priority: 101}")), "priority: \"101\" where a number from 0 to 100"},
				{out(tcp("443", "listener: {name: b}")), "envoyConfig: missing"},
			},
		},
		{
			"icmps[].fields[]{family, type}: type number or name",
			[]string{in("{icmps: [{fields: [{type: 8}, {family: IPv6, type: EchoRequest}]}]}")},
			[][2]string{{in("{icmps: [{fields: [{type: Echoes}]}]}"), `ICMP type "Echoes" is unknown`}},
		},
		{
			"authentication{mode}: disabled, required, test-always-fail",
			[]string{in("{authentication: {mode: disabled}}"), in("{authentication: {mode: required}}"), out("{authentication: {mode: test-always-fail}}")},
			[][2]string{{in("{authentication: {mode: Required}}"), `"Required" is unknown`}},
		},
		{
			"priority / tier: porin's own field",
			[]string{
				cnp(all + "ingress: []\nporin: {tier: Admin, priority: 2147483647, audit: true}"), cnp(all + "ingress: []\nporin: {}"),
				cnp(all + "ingress: []\nporin: {tier: Normal}"), ccnp(all + "ingress: []\nporin: {tier: Baseline, priority: 0}"),
			},
			[][2]string{
				{cnp(all + "ingress: []\nporin: {tier: admin}"), `spec.porin.tier: tier "admin" is unknown; use Admin, Normal or Baseline`},
				{cnp(all + "ingress: []\nporin: {priority: 2147483648}"), "spec.porin.priority: \"2147483648\" where a number from 0 to 2147483647"},
				{cnp(all + "ingress: []\nporin: {priority: -1}"), "where a number from 0 to"},
				{cnp(all + "ingress: []\nporin: {order: 1}"), "spec.porin.order: unknown field"},
				{cnp(all + "ingress: []\nporin: {audit: 'yes'}"), "spec.porin.audit: \"yes\" where true or false"},
			},
		},
		{"status", []string{cnp(all+"ingress: []") + "status: {conditions: [], nodes: {a: {ok: true}}}\n"}, nil},
	}
}

// TestRow4L7 is the row toPorts[].rules and what the note on layer 7 says of the fields.
func TestRow4L7(t *testing.T) { runRows(t, rowsOfL7()) }

func rowsOfL7() []row {
	return []row{
		{
			"http: path, method, host match the whole value as RE2",
			[]string{
				in(http("{}")), in(tcp("80", "rules: {http: []}")), in(http("{path: '/a/[0-9]+', method: 'GET|HEAD', host: '.*\\.example\\.com'}")),
				in(http("{path: '', method: ''}")), in(tcp("80", "rules: {http: [{method: GET}, {path: /x}]}")),
			},
			[][2]string{
				{in(http("{path: '('}")), "rules.http[0].path: \"(\" is no regular expression"},
				{in(http("{path: 'a)|(b'}")), "is no regular expression"}, // would end the group around it
				{in(http("{method: '(?=a)'}")), "is no regular expression"},
				{in(http("{host: '\\Qa'}")), "is no regular expression"}, // would quote the end of the group
				{in(http("{paths: /}")), "rules.http[0].paths: unknown field"},
				{in(http("{path: 1}")), "where text is expected"},
			},
		},
		{
			"http headers: 'Name' = present, 'Name: value' = equal or a whole match",
			[]string{in(http("{headers: ['X-Token: [0-9]+', X-Present, 'X-Old value', 'X-Bad: (']}")), in(http("{headers: []}"))},
			[][2]string{
				{in(http("{headers: ['X-Token:1']}")), "is no name of a header; write \"Name: value\", with a space"},
				{in(http("{headers: [': a']}")), "is no name of a header"},
				{in(http("{headers: ['']}")), "is no name of a header"},
				{in(http("{headers: [\"a: b\\r\\nc: d\"]}")), "control characters"},
			},
		},
		{
			"http headerMatches{name, value or secret, mismatch}",
			[]string{in(http("{headerMatches: [{name: a}, {name: a, value: b}, {name: a, secret: {name: s, namespace: n}, mismatch: REPLACE}, {name: a, value: b, mismatch: LOG}, {name: a, value: b, mismatch: ADD}, {name: a, mismatch: DELETE}]}"))},
			[][2]string{
				{in(http("{headerMatches: [{}]}")), "headerMatches[0].name: missing"},
				{in(http("{headerMatches: [{name: a, mismatch: log}]}")), `mismatch: "log" is unknown; use LOG, ADD, DELETE or REPLACE`},
				{in(http("{headerMatches: [{name: 'a b'}]}")), "is no name of a header"},
				{in(http("{headerMatches: [{name: a, secret: {}}]}")), "secret.name: missing"},
			},
		},
		{
			"kafka: role XOR apiKey, apiVersion, clientID, topic",
			[]string{
				in(kafka("{}")), in(kafka("{role: Produce, topic: a}")), in(kafka("{role: consume, clientID: c}")), in(kafka("{apiKey: Fetch, apiVersion: '4'}")),
				in(kafka("{apiKey: ListOffsets}")), in(kafka("{apiKey: alterconfigs, apiVersion: 0, topic: A.b_c-1}")), in(kafka("{apiVersion: ''}")),
			},
			[][2]string{
				{in(kafka("{role: produce, apiKey: fetch}")), "apiKey: cannot stand beside role"},
				{in(kafka("{role: both}")), `role "both" is unknown; use produce or consume`},
				{in(kafka("{apiKey: 'fetch2'}")), `apiKey "fetch2" is unknown`},
				{in(kafka("{apiKey: '1'}")), `apiKey "1" is unknown`},
				{in(kafka("{apiVersion: x}")), "apiVersion: \"x\" where a number"},
				{in(kafka("{apiVersion: 99999}")), "where a number from 0 to 32767"},
				{in(kafka("{topic: 'a b'}")), "is no topic"},
				{in(kafka("{topic: " + strings.Repeat("a", 256) + "}")), "is no topic"},
			},
		},
		{
			"dns: matchName, matchPattern, port 53",
			[]string{out(dns("{matchPattern: '*'}")), out(dns("{matchName: A.b}, {matchPattern: '**.b.'}")), out("{toPorts: [{ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}], rules: {dns: []}}]}")},
			[][2]string{{out(dns("{}")), "dns[0].matchName: missing"}},
		},
		{
			"l7proto + l7: generic parsers",
			[]string{
				in(tcp("9042", "rules: {l7proto: cassandra, l7: [{query_action: select, query_table: 'a.*'}, {}]}")),
				in(tcp("11211", "rules: {l7proto: memcache}")), in(tcp("6379", "rules: {l7proto: redis, l7: []}")),
			},
			[][2]string{
				{in(tcp("80", "rules: {l7: [{a: b}]}")), "l7: needs l7proto"},
				{in(tcp("80", "rules: {l7proto: http}")), "http has rules of its own"},
				{in(tcp("80", "rules: {l7proto: ''}")), "is no name of a parser"},
				{in(tcp("80", "rules: {l7proto: 'a b'}")), "is no name of a parser"},
				{in(tcp("80", "rules: {l7proto: r2d2, l7: [{'': b}]}")), "the key is empty"},
				{in(tcp("80", "rules: {l7proto: r2d2, l7: [{a: 1}]}")), "where text is expected"},
			},
		},
	}
}

// TestRow41 is section 4.1 of the note: each sentence is a test.
func TestRow41(t *testing.T) { runRows(t, rowsOfValidation()) }

func rowsOfValidation() []row {
	return []row{
		{
			"1 at least one of the four rule sections",
			[]string{cnp(all + "ingress: []"), cnp(all + "ingressDeny: []"), cnp(all + "egress: []"), cnp(all + "egressDeny: []")},
			[][2]string{{cnp(all), "spec: says nothing"}, {cnp(all + "enableDefaultDeny: {ingress: true}"), "spec: says nothing"}},
		},
		{
			"1 L3 peer kinds exclude each other inside one rule",
			[]string{in("{fromRequires: [{}], fromEntities: [all]}")},
			[][2]string{
				{in("{fromEndpoints: [{}], fromEntities: [all]}"), "fromEntities: cannot stand beside fromEndpoints"},
				{in("{fromCIDR: [], fromCIDRSet: []}"), "fromCIDRSet: cannot stand beside fromCIDR"},
				{in("{fromNodes: [], fromEndpoints: []}"), "fromNodes: cannot stand beside fromEndpoints"},
				{out("{toServices: [], toFQDNs: []}"), "toFQDNs: cannot stand beside toServices"},
				{out("{toServices: [], toEndpoints: []}"), "toServices: cannot stand beside toEndpoints"},
			},
		},
		{
			"1 icmps excludes toPorts",
			nil,
			[][2]string{{in("{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: 80}]}]}"), "icmps: cannot stand beside toPorts"}},
		},
		{
			"1 at most 40 ports or fields",
			[]string{in("{toPorts: [{ports: [" + ports(40) + "]}]}"), in("{icmps: [{fields: [" + strings.TrimSuffix(strings.Repeat("{type: 8},", 40), ",") + "]}]}")},
			[][2]string{
				{in("{toPorts: [{ports: [" + ports(41) + "]}]}"), "41 ports; at most 40"},
				{in("{icmps: [{fields: [" + strings.TrimSuffix(strings.Repeat("{type: 8},", 41), ",") + "]}]}"), "41 fields; at most 40"},
			},
		},
		{
			"2 L7 only on TCP",
			[]string{in(http("{}")), in("{toPorts: [{ports: [{port: web, protocol: tcp}, {port: 8000, endPort: 8100, protocol: TCP}], rules: {http: [{}]}}]}")},
			[][2]string{
				{in("{toPorts: [{ports: [{port: 80, protocol: UDP}], rules: {http: [{}]}}]}"), "ports[0].protocol: what is said on a connection can be judged with TCP only"},
				{in("{toPorts: [{ports: [{port: 80}], rules: {http: [{}]}}]}"), "write protocol: TCP"},
				{in("{toPorts: [{ports: [{port: 80, protocol: TCP}, {port: 81, protocol: SCTP}], rules: {kafka: []}}]}"), "ports[1].protocol:"},
				{out("{toPorts: [{ports: [{port: 443, protocol: UDP}], serverNames: [a.b]}]}"), "with TCP only"},
			},
		},
		{
			"2 DNS may be UDP or ANY",
			[]string{
				out("{toPorts: [{ports: [{port: 53, protocol: UDP}, {port: 53, protocol: ANY}, {port: 53, protocol: TCP}], rules: {dns: [{matchPattern: '*'}]}}]}"),
				out("{toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchPattern: '*'}]}}]}"),
			},
			[][2]string{{out("{toPorts: [{ports: [{port: 53, protocol: SCTP}], rules: {dns: []}}]}"), "dns needs UDP, TCP or ANY"}},
		},
		{"2 DNS rules not on ingress", nil, [][2]string{{in(dns("{matchPattern: '*'}")), "rules: dns is judged on egress only"}}},
		{
			"2 no port range, port 53 required",
			nil,
			[][2]string{
				{out("{toPorts: [{ports: [{port: 53, endPort: 54, protocol: UDP}], rules: {dns: []}}]}"), "dns is judged on port 53 only"},
				{out("{toPorts: [{ports: [{port: 5353, protocol: UDP}], rules: {dns: []}}]}"), "dns is judged on port 53 only"},
				{out("{toPorts: [{ports: [{port: domain, protocol: UDP}], rules: {dns: []}}]}"), "dns is judged on port 53 only"},
			},
		},
		{
			"2 no L7 with port 0 or in deny rules",
			nil,
			[][2]string{
				{in(tcp("0", "rules: {http: []}")), "ports[0].port: what is said on a connection can be judged on numbered ports only"},
				{in("{toPorts: [{ports: [{protocol: TCP}], rules: {http: []}}]}"), "on numbered ports only"},
				{out("{toPorts: [{ports: [{protocol: UDP}], rules: {dns: []}}]}"), "on numbered ports only"},
				{in("{toPorts: [{rules: {http: []}}]}"), "ports: missing"},
				{denyIn(http("{}")), "not allowed in a deny rule"},
				{denyOut(dns("{matchPattern: '*'}")), "not allowed in a deny rule"},
			},
		},
		{
			"3 host policy: no ingress L7, egress L7 only DNS",
			[]string{hostOut(dns("{matchPattern: '*'}")), hostIn("{toPorts: [{ports: [{port: 22}]}]}")},
			[][2]string{
				{hostIn(http("{}")), "rules: not allowed for connections to nodes"},
				{hostIn(tcp("443", "serverNames: [a]")), "not allowed for connections to nodes"},
				{hostOut(http("{}")), "rules: only dns is judged for connections of nodes"},
			},
		},
		{"3 Kafka: role XOR apiKey", []string{in(kafka("{role: produce}")), in(kafka("{apiKey: produce}"))}, [][2]string{{in(kafka("{role: produce, apiKey: produce}")), "cannot stand beside role"}}},
		{
			"3 one L7 type per rule",
			[]string{in("{toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {http: []}}, {ports: [{port: 9092, protocol: TCP}], rules: {kafka: []}}]}")},
			[][2]string{
				{in(tcp("80", "rules: {http: [], kafka: []}")), "rules.kafka: cannot stand beside http"},
				{in(tcp("80", "rules: {http: [], l7proto: x}")), "rules.l7proto: cannot stand beside http"},
				{in(tcp("80", "rules: {}")), "rules: names no rules"},
			},
		},
		{
			"3 port names follow the IANA grammar",
			[]string{in("{toPorts: [{ports: [{port: a}, {port: a1-b}, {port: 1a}, {port: abcdefghijklmno}]}]}")},
			[][2]string{
				{in("{toPorts: [{ports: [{port: abcdefghijklmnop}]}]}"), "is no name of a port"},
				{in("{toPorts: [{ports: [{port: a-}]}]}"), "is no name of a port"},
				{in("{toPorts: [{ports: [{port: a--b}]}]}"), "is no name of a port"},
				{in("{toPorts: [{ports: [{port: a.b}]}]}"), "is no name of a port"},
			},
		},
		{
			"4 except inside cidr",
			nil,
			[][2]string{{in("{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}"), "11.0.0.0/16 is not inside 10.0.0.0/8"}},
		},
		{
			"4 exactly one of cidr, cidrGroupRef, cidrGroupSelector",
			nil,
			[][2]string{
				{in("{fromCIDRSet: [{}]}"), "cidr: missing; write cidr, cidrGroupRef or cidrGroupSelector"},
				{in("{fromCIDRSet: [{cidr: 10.0.0.0/8, cidrGroupRef: a}]}"), "cidrGroupRef: cannot stand beside cidr"},
				{in("{fromCIDRSet: [{cidrGroupRef: a, cidrGroupSelector: {}}]}"), "cidrGroupSelector: cannot stand beside cidrGroupRef"},
			},
		},
		{"4 contiguous masks only", nil, [][2]string{{in("{fromCIDR: [10.0.0.0/255.0.255.0]}"), "is no CIDR"}}},
		{
			"5 selector operators In, NotIn, Exists, DoesNotExist",
			[]string{in("{fromEndpoints: [{matchExpressions: [{key: a, operator: In, values: [b]}, {key: a, operator: NotIn, values: [c]}, {key: d, operator: Exists}, {key: e, operator: DoesNotExist}]}]}")},
			[][2]string{{in("{fromEndpoints: [{matchExpressions: [{key: a, operator: Lt, values: ['1']}]}]}"), `operator "Lt" is unknown`}},
		},
		{"5 unknown entity rejected (none accepted)", []string{in("{fromEntities: [none]}")}, [][2]string{{in("{fromEntities: [moon]}"), `entity "moon" is unknown`}}},
		{"5 path and method regex must compile", nil, [][2]string{{in(http("{path: '*'}")), "is no regular expression"}, {in(http("{method: '[a'}")), "is no regular expression"}}},
		{
			"6 listener not on ingress and not with L7",
			nil,
			[][2]string{
				{in(tcp("80", "listener: {envoyConfig: {name: a}, name: b}")), "listener: not allowed on ingress"},
				{out(tcp("80", "listener: {envoyConfig: {name: a}, name: b}, rules: {http: []}")), "listener: cannot stand beside rules"},
			},
		},
		{
			"6 from/toNodes and icmps without flags; from/toRequires accepted here",
			[]string{in("{fromNodes: [{}]}"), out("{icmps: [{fields: [{type: 8}]}]}"), in("{fromRequires: [{}]}"), out("{toRequires: [{matchLabels: {a: b}}]}")},
			nil,
		},
		{"SNI with L7 needs TLS termination", nil, [][2]string{{out(tcp("443", "serverNames: [a], rules: {http: []}")), "serverNames: beside rules they need terminatingTLS"}}},
	}
}
