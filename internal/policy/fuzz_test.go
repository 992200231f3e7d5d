package policy

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// Whatever is read: no panic, no document of which a part was dropped, and what is accepted is printed and read back
// as the same.

func FuzzParse(f *testing.F) {
	f.Add([]byte(deathStar))
	f.Add([]byte("a: &a [*a]\n---\n<<: {}\n"))
	for _, doc := range goodDocuments() {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if ps, err := Parse("f", data); err == nil {
			checkPrint(t, data, ps)
		}
	})
}

// fuzzSpec fuzzes the spec of one kind.
func fuzzSpec(f *testing.F, versions, kind string) {
	prefix := fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: p}\n", versions, kind)
	for _, doc := range goodDocuments() {
		if _, spec, ok := strings.Cut(doc, "\nspec:"); ok && strings.Contains(doc, "kind: "+kind+"\n") {
			f.Add("spec:" + spec)
		}
	}
	f.Fuzz(func(t *testing.T, spec string) {
		data := []byte(prefix + spec)
		if ps, err := Parse("f", data); err == nil {
			checkPrint(t, data, ps)
		}
	})
}

func FuzzCiliumNetworkPolicy(f *testing.F) { fuzzSpec(f, "cilium.io/v2", KindNetworkPolicy) }
func FuzzCiliumClusterwideNetworkPolicy(f *testing.F) {
	fuzzSpec(f, "cilium.io/v2", KindClusterwideNetworkPolicy)
}

func FuzzNetworkPolicy(f *testing.F) {
	fuzzSpec(f, "networking.k8s.io/v1", KindKubernetesNetworkPolicy)
}

func FuzzClusterNetworkPolicy(f *testing.F) {
	fuzzSpec(f, "policy.networking.k8s.io/v1alpha2", KindClusterNetworkPolicy)
}
func FuzzCIDRGroup(f *testing.F) { fuzzSpec(f, "cilium.io/v2", KindCIDRGroup) }
func FuzzService(f *testing.F)   { fuzzSpec(f, "v1", KindService) }

func FuzzEndpointSlice(f *testing.F) {
	f.Add("addressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]")
	f.Add("addressType: IPv6\nendpoints: [{addresses: ['fd00::1'], conditions: {ready: true}}]\nports: []")
	f.Fuzz(func(t *testing.T, body string) {
		data := []byte("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: p, labels: {kubernetes.io/service-name: s}}\n" + body)
		if ps, err := Parse("f", data); err == nil {
			checkPrint(t, data, ps)
		}
	})
}

// FuzzText fuzzes the fields that hold text with rules of its own: any text that is accepted comes back as it was.
func FuzzText(f *testing.F) {
	for _, s := range []string{"", "GET|HEAD", "a)|(b", `\Qa`, "(?i)a", "X-Token: [0-9]+", "*", "**.a.b", "a.b.", "10.0.0.0/8", "::ffff:1.2.3.4/128", "http", "ht--tp", "k8s:app", "produce", strings.Repeat("(", 50), "(a{999}){999}", "\\pL{500}", "ÿ\x00"} {
		f.Add(s)
	}
	fields := []string{
		http("{path: %s}"), http("{headers: [%s]}"), http("{headerMatches: [{name: a, value: %s}]}"), kafka("{role: %s}"), kafka("{apiKey: %s}"),
		kafka("{topic: %s}"), kafka("{clientID: %s}"), tcp("%s", "rules: {http: []}"), tcp("80", "rules: {l7proto: %s, l7: [{%s: %s}]}"),
		tcp("443", "serverNames: [%s]"), dns("{matchPattern: %s}"), dns("{matchName: %s}"), "{toFQDNs: [{matchPattern: %s}]}", "{toCIDR: [%s]}",
		"{toCIDRSet: [{cidrGroupRef: %s}]}", "{toEndpoints: [{matchLabels: {%s: %s}}]}", "{toEntities: [%s]}", "{toServices: [{k8sService: {serviceName: %s}}]}",
		"{icmps: [{fields: [{type: %s}]}]}", "{toNodes: [{matchExpressions: [{key: %s, operator: In, values: [%s]}]}]}",
	}
	f.Fuzz(func(t *testing.T, text string) {
		quoted, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range fields {
			data := []byte(out(strings.ReplaceAll(field, "%s", string(quoted))))
			if ps, err := Parse("f", data); err == nil {
				checkPrint(t, data, ps)
			}
		}
	})
}
