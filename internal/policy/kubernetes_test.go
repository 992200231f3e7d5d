package policy

import (
	"strings"
	"testing"

	"porin/internal/identity"
	"porin/internal/verdict"
)

// netpol is a NetworkPolicy of namespace red.
func netpol(body string) string {
	return strings.Replace(knp(body), "{name: p}", "{name: p, namespace: red}", 1)
}

const dbPods = "podSelector: {matchLabels: {app: db}}\n"

// TestRule11KubernetesPolicy is rule 11 of the note, corner by corner: documents, and what becomes of connections. The
// cast: web and db in namespace red (team x), other (team y) and bluedb in blue, docker in none.
func TestRule11KubernetesPolicy(t *testing.T) {
	for _, c := range []struct{ name, docs, ask string }{
		{
			"no rules: ingress is isolated, egress is not", netpol(dbPods),
			`web > db tcp 80: deny by red/p0 ingress
			db > web tcp 80: allow
			web > db icmp 8: deny
			host > db tcp 80: allow by allow-localhost
			remote-node > db tcp 80: deny
			world-ipv4 > db tcp 80: deny
			other > web tcp 80: allow`,
		},
		{
			"policyTypes defaulting: an egress rule makes it a policy for egress too", netpol(dbPods + "egress:\n- to: [{podSelector: {}}]"),
			`web > db tcp 80: deny
			db > web tcp 80: allow
			db > other tcp 80 out: deny by red/p0 egress`,
		},
		{
			"policyTypes defaulting: an empty egress list does not", netpol(dbPods + "egress: []"),
			`web > db tcp 80: deny
			db > other tcp 80: allow`,
		},
		{
			"policyTypes [Egress] without rules: egress is isolated, ingress is not", netpol(dbPods + "policyTypes: [Egress]"),
			`web > db tcp 80: allow
			db > web tcp 80: deny
			db > world-ipv4 tcp 80 out: deny
			db > host tcp 80 out: deny`,
		},
		{
			"policyTypes [Egress]: an ingress section says nothing", netpol(dbPods + "policyTypes: [Egress]\ningress:\n- from: [{podSelector: {matchLabels: {app: web}}}]"),
			`other > db tcp 80: allow by no policy isolates it
			db > web tcp 80: deny`,
		},
		{
			"policyTypes [Ingress]: an egress section opens nothing that another policy closed",
			netpol(dbPods+"policyTypes: [Ingress]\negress:\n- {}") + "---\n" + strings.Replace(netpol(dbPods+"policyTypes: [Egress]"), "name: p", "name: q", 1),
			`db > web tcp 80: deny
			web > db tcp 80: deny`,
		},
		{
			"from missing: everyone, the world and ICMP too", netpol(dbPods + "ingress:\n- {}"),
			`web > db tcp 80: allow by red/p0 ingress[0]
			docker > db udp 5: allow
			world-ipv6 > db icmpv6 128: allow
			remote-node > db sctp 1: allow
			unmanaged > db gre 0: allow`,
		},
		{
			"from empty: everyone", netpol(dbPods + "ingress:\n- from: []"),
			`web > db tcp 80: allow
			world-ipv4 > db tcp 80: allow`,
		},
		{
			"from and ports empty: everyone and everything", netpol(dbPods + "ingress:\n- {from: [], ports: []}"),
			`other > db icmp 8: allow
			world-ipv4 > db sctp 80: allow`,
		},
		{
			"ports without from: everyone, those ports only", netpol(dbPods + "ingress:\n- ports: [{port: 80}]"),
			`world-ipv4 > db tcp 80: allow
			web > db tcp 81: deny
			web > db udp 80: deny
			web > db icmp 8: deny`,
		},
		{
			"podSelector {}: every pod of the own namespace", netpol(dbPods + "ingress:\n- from: [{podSelector: {}}]"),
			`web > db tcp 80: allow
			other > db tcp 80: deny
			docker > db tcp 80: deny
			world-ipv4 > db tcp 80: deny
			remote-node > db tcp 80: deny`,
		},
		{
			"namespaceSelector {}: every pod of every namespace, and nobody else", netpol(dbPods + "ingress:\n- from: [{namespaceSelector: {}}]"),
			`web > db tcp 80: allow
			other > db tcp 80: allow
			bluedb > db tcp 80: allow
			docker > db tcp 80: deny
			remote-node > db tcp 80: deny
			world-ipv4 > db tcp 80: deny`,
		},
		{
			"namespaceSelector by labels", netpol(dbPods + "ingress:\n- from: [{namespaceSelector: {matchLabels: {team: y}}}]"),
			`other > db tcp 80: allow
			web > db tcp 80: deny
			bluedb > db tcp 80: deny`,
		},
		{
			"namespaceSelector by the name that every namespace carries", netpol(dbPods + "ingress:\n- from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blue}}}]"),
			`other > db tcp 80: allow
			bluedb > db tcp 80: allow
			web > db tcp 80: deny`,
		},
		{
			"namespaceSelector NotIn: namespaces without the label too, and still only pods of namespaces",
			netpol(dbPods + "ingress:\n- from: [{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [y]}]}}]"),
			`bluedb > db tcp 80: allow
			web > db tcp 80: allow
			other > db tcp 80: deny
			docker > db tcp 80: deny
			host > db tcp 80: allow by allow-localhost
			world-ipv4 > db tcp 80: deny`,
		},
		{
			"namespaceSelector and podSelector in one element: both", netpol(dbPods + "ingress:\n- from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blue}}, podSelector: {matchLabels: {app: db}}}]"),
			`bluedb > db tcp 80: allow
			other > db tcp 80: deny
			web > db tcp 80: deny`,
		},
		{
			"namespaceSelector and podSelector in two elements: either", netpol(dbPods + "ingress:\n- from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blue}}}, {podSelector: {matchLabels: {app: web}}}]"),
			`bluedb > db tcp 80: allow
			other > db tcp 80: allow
			web > db tcp 80: allow`,
		},
		{
			"matchExpressions: In, NotIn, Exists, DoesNotExist",
			netpol(dbPods + "ingress:\n- from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [web, x]}, {key: app, operator: NotIn, values: [db]}, {key: app, operator: Exists}, {key: none, operator: DoesNotExist}]}}]"),
			`web > db tcp 80: allow
			other > db tcp 80: deny`,
		},
		{
			"ports default to TCP", netpol(dbPods + "ingress:\n- ports: [{}]"),
			`web > db tcp 1: allow
			web > db udp 1: deny
			web > db sctp 1: deny
			web > db icmp 8: deny`,
		},
		{
			"a protocol alone: every port of it", netpol(dbPods + "ingress:\n- ports: [{protocol: SCTP}]"),
			`web > db sctp 36412: allow
			web > db tcp 36412: deny`,
		},
		{
			"UDP and SCTP ports", netpol(dbPods + "ingress:\n- ports: [{protocol: UDP, port: 53}, {protocol: SCTP, port: 80}]"),
			`web > db udp 53: allow
			web > db tcp 53: deny
			web > db sctp 80: allow
			web > db sctp 81: deny`,
		},
		{
			"endPort", netpol(dbPods + "ingress:\n- ports: [{port: 80, endPort: 90}, {port: 65535, endPort: 65535}]"),
			`web > db tcp 79: deny
			web > db tcp 80: allow
			web > db tcp 85: allow
			web > db tcp 90: allow
			web > db tcp 91: deny
			web > db tcp 65535: allow`,
		},
		{
			"ipBlock with except: what is outside of the cluster", netpol(dbPods + "ingress:\n- from: [{ipBlock: {cidr: 192.0.0.0/8, except: [192.0.2.0/24]}}]"),
			`192.0.0.0/8 > db tcp 80: allow
			192.0.2.0/24 > db tcp 80: deny
			world-ipv4 > db tcp 80: deny
			web > db tcp 80: deny`,
		},
		{
			"ipBlock 0.0.0.0/0: the IPv4 world, neither pods nor nodes", netpol(dbPods + "ingress:\n- from: [{ipBlock: {cidr: 0.0.0.0/0}}]"),
			`world-ipv4 > db tcp 80: allow
			192.0.2.0/24 > db tcp 80: allow
			world-ipv6 > db tcp 80: deny
			other > db tcp 80: deny
			remote-node > db tcp 80: deny`,
		},
		{
			"an except does not close what another rule opens", netpol(dbPods + "ingress:\n- from: [{ipBlock: {cidr: 192.0.0.0/8, except: [192.0.2.0/24]}}, {ipBlock: {cidr: 192.0.2.0/24}}]"),
			`192.0.2.0/24 > db tcp 80: allow`,
		},
		{
			"peers and ports of one rule: both; of two rules: either", netpol(dbPods + "ingress:\n- {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}\n- {from: [{namespaceSelector: {matchLabels: {team: y}}}], ports: [{port: 81}]}"),
			`web > db tcp 80: allow by red/p0 ingress[0]
			web > db tcp 81: deny
			other > db tcp 81: allow by red/p0 ingress[1]
			other > db tcp 80: deny`,
		},
		{
			"pods and blocks in one rule: either, and the rule keeps its number", netpol(dbPods + "ingress:\n- {from: [{podSelector: {}}, {ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 80}]}\n- {from: [{namespaceSelector: {}}], ports: [{port: 81}]}"),
			`web > db tcp 80: allow by red/p0 ingress[0]
			192.0.2.0/24 > db tcp 80: allow by red/p0 ingress[0]
			192.0.2.0/24 > db tcp 81: deny
			other > db tcp 81: allow by red/p0 ingress[1]`,
		},
		{
			"policies add up", netpol(dbPods+"ingress:\n- from: [{podSelector: {matchLabels: {app: web}}}]") + "---\n" + strings.Replace(netpol("podSelector: {}\ningress:\n- from: [{namespaceSelector: {matchLabels: {team: y}}}]"), "name: p", "name: q", 1),
			`web > db tcp 80: allow
			other > db tcp 80: allow
			bluedb > db tcp 80: deny
			db > web tcp 80: deny`,
		},
		{
			"podSelector {} selects the pods of the namespace only", netpol("podSelector: {}"),
			`web > db tcp 80: deny
			db > web tcp 80: deny
			web > other tcp 80: allow
			web > docker tcp 80: allow
			web > bluedb tcp 80: allow`,
		},
		{
			"nobody has the labels", netpol(dbPods + "ingress:\n- from: [{podSelector: {matchLabels: {app: nobody}}}]"),
			`web > db tcp 80: deny
			other > db tcp 80: deny`,
		},
		{
			"both directions must agree",
			netpol(dbPods+"ingress:\n- from: [{podSelector: {matchLabels: {app: web}}}]") + "---\n" + strings.Replace(netpol("podSelector: {matchLabels: {app: web}}\npolicyTypes: [Egress]\negress:\n- {to: [{podSelector: {}}], ports: [{port: 5432}]}"), "name: p", "name: q", 1),
			`web > db tcp 5432: allow
			web > db tcp 80: deny by red/q egress
			db > web tcp 80: allow`,
		},
		{
			"egress to names of services means the pods behind them, by their ports", netpol("podSelector: {matchLabels: {app: web}}\negress:\n- {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blue}}}], ports: [{port: 53, protocol: UDP}, {port: 53}]}"),
			`web > bluedb udp 53 out: allow
			web > bluedb tcp 53 out: allow
			web > bluedb tcp 80 out: deny
			web > db udp 53 out: deny`,
		},
		{
			"beside a CiliumNetworkPolicy: the union, and its denials win", netpol(dbPods+"ingress:\n- {}") + "---\n" + strings.Replace(red(db+"ingressDeny: [{fromEndpoints: [{matchLabels: {app: web}}]}]"), "name: p", "name: q", 1),
			`web > db tcp 80: deny by red/q ingressDeny[0]
			other > db tcp 80: allow by red/p0 ingress[0]`,
		},
	} {
		t.Run(c.name, func(t *testing.T) { stage(t, Config{}, strings.Split(c.docs, "---\n")...).ask(c.ask) })
	}
}

// TestRule8NamedPortsOfKubernetes: names are those of the selected pod on ingress, of the peer on egress.
func TestRule8NamedPortsOfKubernetes(t *testing.T) {
	c := stage(t, Config{}, netpol("podSelector: {}\npolicyTypes: [Ingress, Egress]\ningress:\n- ports: [{port: web}, {port: dns, protocol: UDP}]\negress:\n- ports: [{port: web}]"))
	c.e.UpdatePorts(map[identity.ID][]NamedPort{
		1001: {{"web", ProtoTCP, 8080}},
		1002: {{"web", ProtoTCP, 9090}, {"dns", ProtoTCP, 53}},
	})
	for _, q := range []struct {
		from, to string
		proto    uint8
		port     uint16
		want     verdict.Action
	}{
		{"web", "db", ProtoTCP, 9090, verdict.Allow},
		{"web", "db", ProtoTCP, 8080, verdict.Deny},
		{"db", "web", ProtoTCP, 8080, verdict.Allow},
		{"db", "web", ProtoTCP, 9090, verdict.Deny},
		{"other", "db", ProtoUDP, 53, verdict.Deny},  // the name is that of a TCP port
		{"other", "db", ProtoTCP, 53, verdict.Deny},  // and the rule wants UDP
		{"web", "other", ProtoTCP, 80, verdict.Deny}, // who has no port of the name
	} {
		if d := c.e.Decide(c.who[q.from], c.who[q.to], q.proto, q.port); d.Action != q.want {
			t.Errorf("%s > %s %d/%d: %s, want %s", q.from, q.to, q.proto, q.port, d.Action, q.want)
		}
	}
}

// clusterNP is a ClusterNetworkPolicy for db of namespace red.
func clusterNP(tier string, priority string, body string) string {
	return ofKind("policy.networking.k8s.io/v1alpha2", KindClusterNetworkPolicy, "tier: "+tier+"\npriority: "+priority+
		"\nsubject: {pods: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: red}}, podSelector: {matchLabels: {app: db}}}}\n"+body)
}

const (
	fromWeb   = "from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}]"
	fromAll   = "from: [{namespaces: {}}]"
	ontoBlue  = "to: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: blue}}}]"
	onPort80  = "protocols: [{tcp: {destinationPort: {number: 80}}}]"
	onPorts   = "protocols: [{tcp: {destinationPort: {range: {start: 80, end: 90}}}}, {udp: {destinationPort: {number: 53}}}]"
	allowNone = dbPods + "policyTypes: [Ingress, Egress]"
)

// TestNameOfClusterRule: the name of a rule is shown with it.
func TestNameOfClusterRule(t *testing.T) {
	c := stage(t, Config{}, clusterNP("Admin", "5", "ingress:\n- {name: no web here, action: Deny, "+fromWeb+"}"))
	d := c.e.Decide(c.who["web"], c.who["db"], ProtoTCP, 80)
	if refs := c.e.Explain(d.Ingress.Cookie); len(refs) != 1 || refs[0].Description != "no web here" {
		t.Errorf("%+v", refs)
	}
}

// TestRule13ClusterPolicy is rule 13 of the note and the tiers of rule 4.
func TestRule13ClusterPolicy(t *testing.T) {
	for _, c := range []struct {
		name string
		docs []string
		ask  string
	}{
		{
			"it never isolates",
			[]string{clusterNP("Admin", "5", "ingress:\n- {action: Accept, "+fromWeb+"}\negress: []")},
			`web > db tcp 80: allow by ClusterNetworkPolicy p0 ingress[0]
			other > db tcp 80: allow by no policy isolates it
			db > other tcp 80: allow`,
		},
		{
			"Admin Accept opens what a NetworkPolicy closes",
			[]string{clusterNP("Admin", "5", "ingress:\n- {action: Accept, "+fromWeb+", "+onPort80+"}"), netpol(allowNone)},
			`web > db tcp 80: allow by ClusterNetworkPolicy p0 ingress[0]
			web > db tcp 81: deny by red/p1 ingress
			other > db tcp 80: deny`,
		},
		{
			"Admin Deny closes what a NetworkPolicy opens",
			[]string{clusterNP("Admin", "5", "ingress:\n- {action: Deny, "+fromWeb+", "+onPorts+"}"), netpol(dbPods + "ingress:\n- {}")},
			`web > db tcp 80: deny by ClusterNetworkPolicy p0 ingress[0]
			web > db tcp 90: deny
			web > db udp 53: deny
			web > db tcp 91: allow
			other > db tcp 80: allow`,
		},
		{
			"Admin Deny beats allow-localhost's tier for pods only: the node is no pod of a namespace",
			[]string{clusterNP("Admin", "5", "ingress:\n- {action: Deny, "+fromAll+"}")},
			`web > db tcp 80: deny
			docker > db tcp 80: allow
			host > db tcp 80: allow
			world-ipv4 > db tcp 80: allow`,
		},
		{
			"Pass leaves the decision to the next tier",
			[]string{clusterNP("Admin", "5", "ingress:\n- {action: Pass, "+fromWeb+"}\n- {action: Deny, "+fromAll+"}"), netpol(dbPods + "ingress:\n- ports: [{port: 80}]")},
			`web > db tcp 80: allow by red/p1 ingress[0]
			web > db tcp 81: deny by red/p1 ingress
			other > db tcp 80: deny by ClusterNetworkPolicy p0 ingress[1]`,
		},
		{
			"Pass with no tier behind it: the default",
			[]string{clusterNP("Admin", "5", "ingress:\n- {action: Pass, "+fromWeb+"}\n- {action: Deny, "+fromAll+"}")},
			`web > db tcp 80: allow
			other > db tcp 80: deny`,
		},
		{
			"Pass over policies of the same tier, not of the next",
			[]string{
				clusterNP("Admin", "1", "ingress:\n- {action: Pass, "+fromWeb+"}"), clusterNP("Admin", "2", "ingress:\n- {action: Deny, "+fromWeb+"}"),
				clusterNP("Baseline", "0", "ingress:\n- {action: Deny, "+fromWeb+", "+onPort80+"}"),
			},
			`web > db tcp 81: allow
			web > db tcp 80: deny by ClusterNetworkPolicy p2 ingress[0]`,
		},
		{
			"rules of one policy: the first that fits",
			[]string{clusterNP("Admin", "5", "ingress:\n- {action: Accept, "+fromWeb+", "+onPort80+"}\n- {action: Deny, "+fromWeb+"}\n- {action: Accept, "+fromWeb+"}")},
			`web > db tcp 80: allow by ingress[0]
			web > db tcp 81: deny by ingress[1]`,
		},
		{
			"a first Deny stands before an Accept below it",
			[]string{clusterNP("Admin", "5", "ingress:\n- {action: Deny, "+fromWeb+", "+onPort80+"}\n- {action: Accept, "+fromAll+"}"), netpol(allowNone)},
			`web > db tcp 80: deny by ClusterNetworkPolicy p0 ingress[0]
			web > db tcp 81: allow by ClusterNetworkPolicy p0 ingress[1]
			other > db tcp 80: allow`,
		},
		{
			"policies by priority: lower first",
			[]string{clusterNP("Admin", "10", "ingress:\n- {action: Accept, "+fromAll+"}"), clusterNP("Admin", "9", "ingress:\n- {action: Deny, "+fromWeb+"}")},
			`web > db tcp 80: deny by ClusterNetworkPolicy p1
			other > db tcp 80: allow`,
		},
		{
			"priority 0 before 1000, whatever the effects",
			[]string{clusterNP("Admin", "1000", "ingress:\n- {action: Deny, "+fromAll+"}"), clusterNP("Admin", "0", "ingress:\n- {action: Accept, "+fromWeb+"}")},
			`web > db tcp 80: allow by ClusterNetworkPolicy p1
			other > db tcp 80: deny`,
		},
		{
			"equal priority, equal place: Deny wins",
			[]string{clusterNP("Admin", "7", "ingress:\n- {action: Accept, "+fromWeb+"}"), clusterNP("Admin", "7", "ingress:\n- {action: Deny, "+fromWeb+"}")},
			`web > db tcp 80: deny`,
		},
		{
			"Baseline decides only where no NetworkPolicy isolates",
			[]string{clusterNP("Baseline", "5", "ingress:\n- {action: Deny, "+fromAll+"}\negress:\n- {action: Deny, "+ontoBlue+"}"), netpol(dbPods + "ingress:\n- from: [{podSelector: {matchLabels: {app: web}}}]")},
			`web > db tcp 80: allow by red/p1 ingress[0]
			other > db tcp 80: deny by red/p1 ingress
			db > other tcp 80: deny by ClusterNetworkPolicy p0 egress[0]
			db > web tcp 80: allow`,
		},
		{
			"Baseline Accept opens nothing that a NetworkPolicy closes",
			[]string{clusterNP("Baseline", "5", "ingress:\n- {action: Accept, "+fromAll+"}"), netpol(allowNone)},
			`web > db tcp 80: deny by red/p1 ingress`,
		},
		{
			"Baseline Deny after no policy at all",
			[]string{clusterNP("Baseline", "5", "ingress:\n- {action: Accept, "+fromWeb+"}\n- {action: Deny, "+fromAll+"}")},
			`web > db tcp 80: allow
			other > db tcp 80: deny
			docker > db tcp 80: allow`,
		},
		{
			"without protocols: every protocol, ICMP too",
			[]string{clusterNP("Admin", "5", "ingress:\n- {action: Deny, "+fromWeb+"}")},
			`web > db icmp 8: deny
			web > db sctp 1: deny
			web > db gre 0: deny`,
		},
		{
			"networks: addresses outside; of a whole family: everyone that they can mean",
			[]string{clusterNP("Admin", "5", "egress:\n- {action: Accept, to: [{networks: [192.0.2.0/24]}]}\n- {action: Deny, to: [{networks: [0.0.0.0/0]}]}")},
			`db > 192.0.2.0/24 tcp 80 out: allow
			db > world-ipv4 tcp 80 out: deny
			db > web tcp 80 out: deny
			db > host tcp 80 out: deny
			db > world-ipv6 tcp 80 out: allow`,
		},
		{
			"networks of one family never accept pods: nobody knows of which family they are",
			[]string{clusterNP("Admin", "5", "egress:\n- {action: Accept, to: [{networks: [0.0.0.0/0]}]}"), netpol(allowNone)},
			`db > world-ipv4 tcp 80 out: allow
			db > web tcp 80 out: deny`,
		},
		{
			"networks of both families accept everyone",
			[]string{clusterNP("Admin", "5", "egress:\n- {action: Accept, to: [{networks: [0.0.0.0/0, '::/0']}]}"), netpol(allowNone)},
			`db > world-ipv6 tcp 80 out: allow
			db > web tcp 80 out: allow
			db > host tcp 80 out: allow`,
		},
		{
			"peers of one rule: any of them",
			[]string{clusterNP("Admin", "5", "egress:\n- {action: Deny, to: [{networks: [192.0.2.0/24]}, {namespaces: {matchLabels: {team: y}}}, {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}]}")},
			`db > 192.0.2.0/24 tcp 80 out: deny by egress[0]
			db > other tcp 80 out: deny by egress[0]
			db > web tcp 80 out: deny by egress[0]
			db > bluedb tcp 80 out: allow`,
		},
		{
			"domainNames that nobody has looked up: nobody",
			[]string{clusterNP("Admin", "5", "egress:\n- {action: Accept, to: [{domainNames: ['*.example.com']}]}"), netpol(allowNone)},
			`db > world-ipv4 tcp 443 out: deny`,
		},
		{
			"a CiliumNetworkPolicy in the Admin tier stands beside them",
			[]string{
				red(db + "ingressDeny: [{fromEndpoints: [{matchLabels: {app: web}}]}]\nporin: {tier: Admin, priority: 3}\nenableDefaultDeny: {ingress: false}"),
				clusterNP("Admin", "4", "ingress:\n- {action: Accept, "+fromAll+"}"),
			},
			`web > db tcp 80: deny by red/p0 ingressDeny[0]
			other > db tcp 80: allow by ClusterNetworkPolicy p1`,
		},
		{
			"subject: pods of selected namespaces only, never those without one",
			[]string{strings.Replace(clusterNP("Admin", "5", "ingress:\n- {action: Deny, "+fromAll+"}"), "matchLabels: {kubernetes.io/metadata.name: red}", "", 1)},
			`web > bluedb tcp 80: deny
			web > db tcp 80: deny
			web > docker tcp 80: allow`,
		},
	} {
		t.Run(c.name, func(t *testing.T) { stage(t, Config{}, c.docs...).ask(c.ask) })
	}
}
