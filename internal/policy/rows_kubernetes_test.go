package policy

import (
	"strconv"
	"strings"
	"testing"

	"porin/internal/labels"
)

// ofKind wraps the body of a spec into a document of another kind.
func ofKind(version, kind, body string) string {
	return "apiVersion: " + version + "\nkind: " + kind + "\nmetadata: {name: p}\nspec:\n  " + strings.ReplaceAll(strings.TrimSpace(body), "\n", "\n  ") + "\n"
}

func knp(body string) string {
	return ofKind("networking.k8s.io/v1", KindKubernetesNetworkPolicy, body)
}
func knpIn(rule string) string { return knp("podSelector: {}\ningress:\n- " + rule) }

func kcnp(body string) string {
	return ofKind("policy.networking.k8s.io/v1alpha2", KindClusterNetworkPolicy, "tier: Admin\npriority: 5\nsubject: {namespaces: {}}\n"+body)
}

func kcnpIn(rule string) string  { return kcnp("ingress:\n- " + rule) }
func kcnpOut(rule string) string { return kcnp("egress:\n- " + rule) }

// TestRow5Kubernetes is section 5 of the note: the documents of Kubernetes.
func TestRow5Kubernetes(t *testing.T) { runRows(t, rowsOfKubernetes()) }

func rowsOfKubernetes() []row {
	rules := func(n int) string { return strings.Repeat("\n- {action: Pass, from: [{namespaces: {}}]}", n) }
	many := func(n int, one string) string { return strings.TrimSuffix(strings.Repeat(one+",", n), ",") }
	return []row{
		{
			"NetworkPolicy v1: endPort, SCTP, named ports, ipBlock with except",
			[]string{
				knp("podSelector: {}"), knp("podSelector: {matchLabels: {a: b}}\npolicyTypes: [Ingress, Egress]"), knp("podSelector: {}\npolicyTypes: [Egress]"),
				knpIn("{}"), knpIn("{from: [], ports: []}"),
				knpIn("{from: [{podSelector: {}}, {namespaceSelector: {}}, {podSelector: {}, namespaceSelector: {matchLabels: {a: b}}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}"),
				knpIn("{ports: [{}, {port: 80}, {port: 80, endPort: 90, protocol: UDP}, {port: http}, {protocol: SCTP}]}"),
				knp("podSelector: {}\negress:\n- {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}], ports: [{port: 53, protocol: UDP}]}"),
			},
			[][2]string{
				{knp("ingress: []"), "spec.podSelector: missing; write {} to select every pod of the namespace"},
				{knp("podSelector: {}\npolicyTypes: [ingress]"), `spec.policyTypes[0]: "ingress" is unknown; use Ingress or Egress`},
				{knp("podSelector: {}\ningressDeny: []"), "spec.ingressDeny: unknown field"},
				{knp("podSelector: {matchLabels: {'k8s:a': b}}"), "a Kubernetes label has no ':'"},
				{knp("podSelector: {matchLabels: {io.kubernetes.pod.namespace: b}}"), "no pod can carry this label; select namespaces with a namespaceSelector"},
				{knpIn("{from: [{}]}"), "spec.ingress[0].from[0]: names nobody; write podSelector, namespaceSelector or ipBlock"},
				{knpIn("{from: ~}"), "from: has no value"},
				{knpIn("{from: {}}"), "from: an object where a list is expected"},
				{knpIn("{to: []}"), "spec.ingress[0].to: unknown field"},
				{knpIn("{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}"), "ipBlock: cannot stand beside a selector"},
				{knpIn("{from: [{ipBlock: {}}]}"), "ipBlock.cidr: missing"},
				{knpIn("{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}"), "except[0]: 11.0.0.0/8 is not inside 10.0.0.0/8"},
				{knpIn("{from: [{ipBlock: {cidr: 10.0.0.1}}]}"), "is no CIDR"},
				{knpIn("{from: [{podSelector: ~}]}"), "has no value"},
				{knpIn("{from: [{namespaceSelector: {matchLabels: {'': a}}}]}"), "the key is empty"},
				{knpIn("{ports: [{port: 0}]}"), "ports[0].port: port 0 is none"},
				{knpIn("{ports: [{port: -80}]}"), "where a number from 0 to 65535"},
				{knpIn("{ports: [{port: 65536}]}"), "where a number from 0 to 65535"},
				{knpIn("{ports: [{port: '80'}]}"), "take the quotes away"},
				{knpIn("{ports: [{port: HTTP}]}"), "names of ports are lower case"},
				{knpIn("{ports: [{port: http, endPort: 90}]}"), "endPort: needs a port with a number"},
				{knpIn("{ports: [{endPort: 90}]}"), "endPort: needs a port with a number"},
				{knpIn("{ports: [{port: 90, endPort: 80}]}"), "endPort: 80 is below port 90"},
				{knpIn("{ports: [{protocol: ICMP}]}"), `protocol "ICMP" is not supported; use TCP, UDP or SCTP`},
				{knpIn("{ports: [{protocol: tcp}]}"), `protocol "tcp" is not supported`},
				{knpIn("{ports: [" + many(8193, "{port: 80}") + "]}"), "8193 ports; at most 8192"},
				{strings.Replace(knp("podSelector: {}"), "/v1", "/v1beta1", 1), `apiVersion: "networking.k8s.io/v1beta1" is not supported for a NetworkPolicy; use networking.k8s.io/v1`},
			},
		},
		{
			"ClusterNetworkPolicy v1alpha2: tier Admin or Baseline",
			[]string{kcnp(""), strings.Replace(kcnp(""), "Admin", "Baseline", 1)},
			[][2]string{
				{strings.Replace(kcnp(""), "Admin", "Normal", 1), `spec.tier: "Normal" is unknown; use Admin or Baseline`},
				{strings.Replace(kcnp(""), "tier: Admin", "tier: ~", 1), "spec.tier: has no value"},
				{strings.Replace(kcnp(""), "tier: Admin\n", "# none\n", 1), "spec.tier: missing"},
			},
		},
		{
			"ClusterNetworkPolicy v1alpha2: priority 0-1000",
			[]string{strings.Replace(kcnp(""), "priority: 5", "priority: 0", 1), strings.Replace(kcnp(""), "priority: 5", "priority: 1000", 1)},
			[][2]string{
				{strings.Replace(kcnp(""), "priority: 5", "priority: 1001", 1), "spec.priority: \"1001\" where a number from 0 to 1000"},
				{strings.Replace(kcnp(""), "priority: 5", "priority: -1", 1), "where a number from 0 to 1000"},
				{strings.Replace(kcnp(""), "priority: 5", "# none", 1), "spec.priority: missing"},
			},
		},
		{
			"ClusterNetworkPolicy v1alpha2: subject namespaces or pods",
			[]string{strings.Replace(kcnp(""), "{namespaces: {}}", "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}}", 1)},
			[][2]string{
				{strings.Replace(kcnp(""), "{namespaces: {}}", "{}", 1), "spec.subject: names nothing that porin knows"},
				{strings.Replace(kcnp(""), "{namespaces: {}}", "{namespaces: {}, pods: {}}", 1), "spec.subject.pods: cannot stand beside namespaces"},
				{strings.Replace(kcnp(""), "{namespaces: {}}", "{pods: {podSelector: {}}}", 1), "spec.subject.pods.namespaceSelector: missing; write {} for all"},
				{strings.Replace(kcnp(""), "{namespaces: {}}", "{nodes: {}}", 1), "spec.subject.nodes: unknown field"},
				{strings.Replace(kcnp(""), "subject: {namespaces: {}}", "# none", 1), "spec.subject: missing"},
			},
		},
		{
			"ClusterNetworkPolicy v1alpha2: at most 25 rules per direction",
			[]string{kcnp("ingress:" + rules(25)), kcnp("ingress: []\negress: []")},
			[][2]string{{kcnp("ingress:" + rules(26)), "spec.ingress: 26 elements; at most 25"}},
		},
		{
			"ClusterNetworkPolicy v1alpha2: Accept, Deny, Pass",
			[]string{kcnpIn("{name: x, action: Accept, from: [{namespaces: {}}]}"), kcnpIn("{action: Deny, from: [{pods: {podSelector: {}, namespaceSelector: {}}}]}"), kcnpIn("{action: Pass, from: [{namespaces: {}}]}")},
			[][2]string{
				{kcnpIn("{action: Allow, from: [{namespaces: {}}]}"), `spec.ingress[0].action: "Allow" is unknown; use Accept, Deny or Pass`},
				{kcnpIn("{from: [{namespaces: {}}]}"), "spec.ingress[0].action: missing"},
				{kcnpIn("{action: Deny}"), "spec.ingress[0].from: missing"},
				{kcnpIn("{action: Deny, from: []}"), "from: the list is empty"},
				{kcnpIn("{name: " + strings.Repeat("a", 101) + ", action: Deny, from: [{namespaces: {}}]}"), "name: longer than 100"},
				{kcnpIn("{action: Deny, from: [" + many(26, "{namespaces: {}}") + "]}"), "26 elements; at most 25"},
			},
		},
		{
			"ClusterNetworkPolicy v1alpha2: peers namespaces, pods; egress also nodes, networks, domainNames (Accept only)",
			[]string{
				kcnpOut("{action: Accept, to: [{namespaces: {}}, {nodes: {matchLabels: {a: b}}}, {networks: [10.0.0.0/8, 'fd00::/8']}, {domainNames: [a.b, '*.c.d', E.f.]}]}"),
				kcnpOut("{action: Deny, to: [{networks: [0.0.0.0/0, '::/0']}]}"),
			},
			[][2]string{
				{kcnpOut("{action: Deny, to: [{domainNames: [a.b]}]}"), "to[0].domainNames: can be accepted only"},
				{kcnpOut("{action: Accept, to: [{domainNames: [a]}]}"), "has one label only"},
				{kcnpOut("{action: Accept, to: [{domainNames: ['*']}]}"), "is no DNS name"},
				{kcnpOut("{action: Accept, to: [{domainNames: ['a.*.b']}]}"), "is no DNS name"},
				{kcnpOut("{action: Accept, to: [{networks: []}]}"), "networks: the list is empty"},
				{kcnpOut("{action: Accept, to: [{networks: [10.0.0.1]}]}"), "is no CIDR"},
				{kcnpIn("{action: Accept, from: [{networks: [10.0.0.0/8]}]}"), "from[0].networks: unknown field"},
			},
		},
		{
			"ClusterNetworkPolicy: an unknown peer type fails closed",
			nil,
			[][2]string{
				{kcnpIn("{action: Deny, from: [{serviceAccounts: {}}]}"), "from[0]: names nothing that porin knows"},
				{kcnpIn("{action: Deny, from: [{}]}"), "from[0]: names nothing that porin knows"},
				{kcnpIn("{action: Deny, from: [{namespaces: {}, sameLabels: [a]}]}"), "from[0].sameLabels: unknown field"},
				{kcnpOut("{action: Pass, to: [{namespaces: {}, networks: [10.0.0.0/8]}]}"), "cannot stand beside namespaces"},
			},
		},
		{
			"ClusterNetworkPolicy: protocols",
			[]string{
				kcnpIn("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 65535}}}}, {sctp: {destinationPort: {number: 1}}}, {destinationNamedPort: http}]}"),
			},
			[][2]string{
				{kcnpIn("{action: Accept, from: [{namespaces: {}}], protocols: []}"), "protocols: the list is empty"},
				{kcnpIn("{action: Accept, from: [{namespaces: {}}], protocols: [{}]}"), "protocols[0]: names nothing"},
				{kcnpIn("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {}}]}"), "tcp.destinationPort: missing"},
				{kcnpIn("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]}"), "destinationPort: names nothing"},
				{kcnpIn("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 0}}}]}"), "port 0 is none"},
				{kcnpIn("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 5, end: 5}}}}]}"), "start must be below end"},
				{kcnpIn("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 5}}}}]}"), "range.end: missing"},
				{kcnpIn("{action: Accept, from: [{namespaces: {}}], protocols: [{icmp: {}}]}"), "protocols[0].icmp: unknown field"},
				{kcnpOut("{action: Accept, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]}"), "have no named ports"},
			},
		},
		{
			"AdminNetworkPolicy, BaselineAdminNetworkPolicy: replaced",
			nil,
			[][2]string{{"apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\n", "write a ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2)"}},
		},
		{
			"CiliumCIDRGroup v2 and v2alpha1",
			[]string{ofKind("cilium.io/v2", KindCIDRGroup, "externalCIDRs: [10.0.0.0/8, 10.1.1.1, 'fd00::/8']"), ofKind("cilium.io/v2alpha1", KindCIDRGroup, "externalCIDRs: []")},
			[][2]string{
				{ofKind("cilium.io/v2", KindCIDRGroup, "{}"), "spec.externalCIDRs: missing; write [] for a group without addresses"},
				{ofKind("cilium.io/v2", KindCIDRGroup, "externalCIDRs: [a]"), "spec.externalCIDRs[0]: \"a\" is no CIDR"},
				{ofKind("cilium.io/v2", KindCIDRGroup, "externalCIDRs: ~"), "has no value"},
				{strings.Replace(ofKind("cilium.io/v2", KindCIDRGroup, "externalCIDRs: []"), "name: p", "name: p, namespace: x", 1), "a CiliumCIDRGroup has no namespace"},
				{strings.Replace(ofKind("cilium.io/v2", KindCIDRGroup, "externalCIDRs: []"), "name: p", "name: p, labels: {a: 1}", 1), "where text is expected"},
			},
		},
		{
			"Service v1: what policy does not need is not read",
			[]string{
				ofKind("v1", KindService, "selector: {app: a}\nports: [{port: 80}]\nclusterIP: 10.0.0.1\nsomethingNew: {x: y}"), ofKind("v1", KindService, "type: ExternalName\nexternalName: a.b"),
				"apiVersion: v1\nkind: Service\nmetadata: {name: p, labels: {a: b}}\n",
			},
			[][2]string{
				{ofKind("v1", KindService, "selector: {io.kubernetes.pod.namespace: other}"), "no pod can carry this label"},
				{ofKind("v1", KindService, "selector: [a]"), "a list where an object is expected"},
				{ofKind("v1", KindService, "selector: {a: ~}"), "has no value"},
			},
		},
		{
			"EndpointSlice v1: addresses of a service",
			[]string{
				"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: p, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.1, 10.0.0.1], conditions: {ready: false}}]\nports: [{port: 80}]\n",
				"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: p}\naddressType: FQDN\nendpoints: [{addresses: [a.b]}]\n",
			},
			[][2]string{
				{"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: p}\naddressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]\n", "endpoints[0].addresses[0]: \"fd00::1\" is no IPv4 address"},
				{"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: p}\naddressType: IPv6\nendpoints: [{addresses: ['::ffff:10.0.0.1']}]\n", "write IPv4 blocks in IPv4 notation"},
				{"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: p}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.0/8]}]\n", "is no IPv4 address"},
				{"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: p}\naddressType: IPv5\n", `addressType: "IPv5" is unknown`},
				{"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: p}\n", "addressType: missing"},
			},
		},
		{
			"List: as kubectl writes it",
			[]string{
				"apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, spec: {podSelector: {}}}\n",
				"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems:\n- {metadata: {name: a}, spec: {podSelector: {}}}\n",
			},
			[][2]string{
				{"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, spec: {}}\n", "p.yaml:4: items[0].spec.podSelector: missing"},
				{"apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: List, items: []}]\n", "items[0].kind: \"List\" is not supported"},
				{"apiVersion: v1\nkind: List\nitems: [~]\n", "items[0]: has no value"},
				{"apiVersion: v2\nkind: List\nitems: []\n", "apiVersion: \"v2\" is not supported for a List"},
				{"apiVersion: v1\nkind: List\n", "items: missing"},
				{"apiVersion: v1\nkind: List\nitem: []\n", "items: missing"},
				{"apiVersion: v1\nkind: List\nitems:\n- &a {apiVersion: v1, kind: Service, metadata: {name: a}}\n- *a\n", "items[1].metadata.name: Service default/a is already in line 4"},
			},
		},
	}
}

// parsed1 reads one document.
func parsed1(t *testing.T, doc string) *Policy {
	t.Helper()
	ps, err := Parse("p.yaml", []byte(doc))
	if err != nil || len(ps) != 1 {
		t.Fatalf("%d policies, %v\n%s", len(ps), err, doc)
	}
	return ps[0]
}

// TestKubernetesConversion: what documents of Kubernetes become.
func TestKubernetesConversion(t *testing.T) {
	t.Run("policyTypes", func(t *testing.T) {
		for _, c := range []struct {
			body    string
			in, out int // rules; -1: not isolated
		}{
			{"podSelector: {}", 0, -1},
			{"podSelector: {}\npolicyTypes: []", 0, -1},
			{"podSelector: {}\negress: []", 0, -1}, // no rule, so not a policy for egress
			{"podSelector: {}\negress: [{}]", 0, 1},
			{"podSelector: {}\ningress: [{}]", 1, -1},
			{"podSelector: {}\npolicyTypes: [Egress]", -1, 0},
			{"podSelector: {}\npolicyTypes: [Egress]\ningress: [{}]", -1, 0}, // a section without its type says nothing
			{"podSelector: {}\npolicyTypes: [Ingress]\negress: [{}]", 0, -1},
			{"podSelector: {}\npolicyTypes: [Ingress, Egress]", 0, 0},
		} {
			r := parsed1(t, knp(c.body)).Rules[0]
			for name, s := range map[string]*Section{"ingress": &r.Ingress, "egress": &r.Egress} {
				want := map[string]int{"ingress": c.in, "egress": c.out}[name]
				if s.Isolates() != (want >= 0) || len(s.Allow) != max(want, 0) {
					t.Errorf("%q: %s isolates %t with %d rules, want %d", c.body, name, s.Isolates(), len(s.Allow), want)
				}
			}
		}
	})
	t.Run("peers", func(t *testing.T) {
		for peer, want := range map[string]string{
			"podSelector: {matchLabels: {a: b}}": "k8s:a=b",
			"podSelector: {}":                    "",
			"namespaceSelector: {}":              "k8s:" + labels.KeyNamespace,
			"namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x}}":                 "k8s:" + labels.KeyNamespace + ",k8s:" + labels.KeyNamespace + "=x",
			"namespaceSelector: {matchLabels: {team: x}}, podSelector: {matchLabels: {team: y}}": "k8s:" + labels.KeyNamespaceLabels + "team=x,k8s:" + labels.KeyNamespace + ",k8s:team=y",
		} {
			e := parsed1(t, knpIn("{from: [{"+peer+"}]}")).Rules[0].Ingress.Allow[0]
			if got := e.Peers.Endpoints[0].String(); e.Peers.Kind != PeersEndpoints || got != want {
				t.Errorf("%s: %q, want %q", peer, got, want)
			}
		}
	})
	t.Run("a mixed rule keeps its place", func(t *testing.T) {
		r := parsed1(t, knp("podSelector: {}\ningress:\n- {from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]}\n- {}")).Rules[0]
		var places []int
		for _, e := range r.Ingress.Allow {
			places = append(places, e.Index)
		}
		if len(places) != 3 || places[0] != 0 || places[1] != 0 || places[2] != 1 {
			t.Errorf("places %v, want 0 0 1", places)
		}
	})
	t.Run("ClusterNetworkPolicy", func(t *testing.T) {
		r := parsed1(t, kcnp("egress:\n- {action: Pass, to: [{namespaces: {}}, {networks: [10.0.0.0/8]}]}\n- {action: Deny, to: [{networks: [0.0.0.0/0]}]}\n- {action: Accept, to: [{domainNames: ['*.b.c']}]}")).Rules[0]
		if r.Tier != TierAdmin || r.Priority != 5 || r.Egress.Isolates() || r.Ingress.Isolates() {
			t.Errorf("tier %d, priority %d, isolates %t %t", r.Tier, r.Priority, r.Ingress.Isolates(), r.Egress.Isolates())
		}
		s := &r.Egress
		if len(s.Pass) != 2 || len(s.Deny) != 2 || len(s.Allow) != 1 || s.Pass[1].Priority != 0 || s.Deny[0].Priority != 1 || s.Allow[0].Priority != 2 || s.Allow[0].Index != 2 {
			t.Errorf("pass %d, deny %d, allow %d entries", len(s.Pass), len(s.Deny), len(s.Allow))
		}
		if got := s.Allow[0].Peers.FQDNs[0].Pattern; got != "**.b.c." {
			t.Errorf("domainNames: %s", got)
		}
	})
}

// TestKafkaKeys: roles and names become the numbers of the protocol.
func TestKafkaKeys(t *testing.T) {
	for rule, want := range map[string]string{
		"{role: produce}": "0 3 10 18 22 24 25 26 28", "{role: CONSUME}": "1 2 3 8 9 10 11 12 13 14 18",
		"{apiKey: Fetch}": "1", "{apiKey: ListOffsets}": "2", "{apiKey: offsets}": "2", "{apiKey: AlterConfigs}": "33", "{topic: a}": "",
	} {
		k := parsed1(t, in(kafka(rule))).Rules[0].Ingress.Allow[0].Ports[0].L7.Kafka[0]
		var got []string
		for _, n := range k.APIKeys {
			got = append(got, strconv.Itoa(int(n)))
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %s, want %s", rule, s, want)
		}
	}
}

// TestRegexWholeValue: a regular expression fits whole values only.
func TestRegexWholeValue(t *testing.T) {
	h := parsed1(t, in(http("{path: '/public|/open/.*', headers: ['X-Token: [0-9]+', 'X-Bad: (']}"))).Rules[0].Ingress.Allow[0].Ports[0].L7.HTTP[0]
	for path, want := range map[string]bool{"/public": true, "/public/x": false, "/public?x=1": false, "/open/a": true, "/a/open/b": false, "/public\n": false} {
		if h.Path.MatchString(path) != want {
			t.Errorf("%q matches: %t", path, !want)
		}
	}
	if h.Headers[0].Pattern == nil || !h.Headers[0].Pattern.MatchString("12") || h.Headers[0].Pattern.MatchString("12a") {
		t.Error("X-Token does not match as a regular expression")
	}
	if h.Headers[1].Pattern != nil || h.Headers[1].Value != "(" {
		t.Error("X-Bad is not a literal")
	}
}
