package policy

import "testing"

// TestDecidedHere: what docs/POLICY.md says of corners that the reference leaves open.
func TestDecidedHere(t *testing.T) {
	const (
		web  = "fromEndpoints: [{matchLabels: {app: web}}]"
		http = "toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {http: [{method: GET}]}}]"
	)
	in := func(entries string) string { return red(db + "ingress: [" + entries + "]") }
	for _, c := range []struct {
		name string
		docs []string
		ask  string
	}{
		{
			"an allow without layer 7 beside one with it",
			[]string{in("{" + web + ", " + http + "}, {" + http + "}, {" + web + ", toPorts: [{ports: [{port: 80, protocol: TCP}]}]}")},
			`web > db tcp 80: allow
			other > db tcp 80: redirect`,
		},
		{
			"a plain allow for the peer alone",
			[]string{in("{" + web + "}, {" + http + "}")},
			`web > db tcp 80: allow
			other > db tcp 80: redirect`,
		},
		{
			"an empty list lets everything pass, through the proxy",
			[]string{in("{" + web + ", toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {http: []}}]}")},
			`web > db tcp 80: redirect
			web > db tcp 81: deny`,
		},
		{
			"layer 7 without default deny",
			[]string{red(db + "ingress: [{" + web + ", " + http + "}]\nenableDefaultDeny: {ingress: false}")},
			`web > db tcp 80: redirect
			web > db tcp 81: allow by no policy isolates it
			other > db tcp 80: allow by no policy isolates it`,
		},
		{
			"rules of different families contradict each other",
			[]string{in("{" + web + ", " + http + "}"), in("{" + web + ", toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {kafka: []}}]}")},
			`web > db tcp 80: deny by layer 7 rules of different kinds`,
		},
		{
			"a demand that nobody meets denies, unless somebody else allows first or denies",
			[]string{in("{" + web + ", authentication: {mode: required}}, {fromEndpoints: [{}], authentication: {mode: disabled}, toPorts: [{ports: [{port: 81}]}]}")},
			`web > db tcp 80: deny by red/p0 ingress[0]
			web > db tcp 81: deny by red/p0 ingress[0]`,
		},
		{
			"protocols without ports",
			[]string{in("{" + web + ", toPorts: [{ports: [{protocol: GRE}]}]}")},
			`web > db gre 0: allow
			web > db tcp 80: deny
			other > db gre 0: deny`,
		},
		{
			"port 0 with deny: every port, and no ICMP",
			[]string{red(db + "ingress: [{" + web + "}]\ningressDeny: [{" + web + ", toPorts: [{ports: [{port: 0}]}]}]")},
			`web > db tcp 1: deny
			web > db sctp 1: deny
			web > db icmp 8: allow`,
		},
		{
			"a group that is not there is nobody",
			[]string{in("{fromCIDRSet: [{cidrGroupRef: office}]}")},
			`world-ipv4 > db tcp 80: deny
			192.0.2.0/24 > db tcp 80: deny`,
		},
		{
			"an empty group is nobody, with excepts too",
			[]string{
				in("{fromCIDRSet: [{cidrGroupSelector: {}, except: [192.0.2.0/24]}]}"), ofKind("cilium.io/v2", KindCIDRGroup, "externalCIDRs: []"),
			},
			`world-ipv4 > db tcp 80: deny
			192.0.2.0/24 > db tcp 80: deny`,
		},
		{
			"excepts beside a group are taken from all of its blocks",
			[]string{
				in("{fromCIDRSet: [{cidrGroupSelector: {matchLabels: {site: a}}, except: [192.0.2.0/24]}]}"),
				"apiVersion: cilium.io/v2alpha1\nkind: CiliumCIDRGroup\nmetadata: {name: p, labels: {site: a}}\nspec: {externalCIDRs: [192.0.0.0/8]}\n",
			},
			`192.0.0.0/8 > db tcp 80: allow
			192.0.2.0/24 > db tcp 80: deny`,
		},
		{
			"names that nobody has looked up are nobody",
			[]string{red(db + "egress: [{toFQDNs: [{matchPattern: '*'}]}]")},
			`db > world-ipv4 tcp 443 out: deny`,
		},
		{
			"a service that is not there is nobody",
			[]string{red(db + "egress: [{toServices: [{k8sService: {serviceName: web}}, {k8sServiceSelector: {selector: {}}}]}]")},
			`db > web tcp 80 out: deny
			db > world-ipv4 tcp 80 out: deny`,
		},
		{
			"a service means the pods that it selects in its own namespace",
			[]string{
				red(db + "egress: [{toServices: [{k8sServiceSelector: {selector: {matchLabels: {a: b}}}}]}]"),
				"apiVersion: v1\nkind: Service\nmetadata: {name: p, namespace: blue, labels: {a: b}}\nspec: {selector: {app: other}, clusterIP: 192.0.2.1}\n",
			},
			`db > other tcp 80 out: allow
			db > web tcp 80 out: deny
			db > 192.0.2.0/24 tcp 80 out: deny`,
		},
		{
			"requirements narrow what every rule allows",
			[]string{
				in("{fromRequires: [{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.team': x}}]}"),
				clusterwide("endpointSelector: {matchLabels: {app: db}}\ningress: [{fromEndpoints: [{}]}, {fromCIDR: [192.0.2.0/24]}]"),
			},
			`web > db tcp 80: allow
			other > db tcp 80: deny
			192.0.2.0/24 > db tcp 80: deny
			host > db tcp 80: allow by allow-localhost
			web > bluedb tcp 80: allow
			other > bluedb tcp 80: allow`,
		},
		{
			"audit changes no verdict, and tells",
			[]string{red(db + "ingress: []\nporin: {audit: true}"), red("endpointSelector: {matchLabels: {app: web}}\ningress: []")},
			`other > db tcp 80: audit by red/p0 ingress
			other > web tcp 80: deny by red/p1 ingress`,
		},
	} {
		t.Run(c.name, func(t *testing.T) { stage(t, Config{}, c.docs...).ask(c.ask) })
	}
}
