package policy

import "regexp"

// Families of rules that have fields of their own.
const (
	ParserHTTP  = "http"
	ParserKafka = "kafka"
	ParserDNS   = "dns"
)

// L7 is what one element of toPorts says about the contents of the connections that it allows: rules of one family, of
// which any may allow a request, and demands on TLS. Without rules it allows every request, still through the proxy.
type L7 struct {
	Parser  string // "http", "kafka", "dns", or the l7proto of a generic parser; empty: only demands on TLS
	HTTP    []HTTPRule
	Kafka   []KafkaRule
	DNS     []FQDN
	Generic []map[string]string

	ServerNames    []string // SNI: names or patterns
	TerminatingTLS *TLSContext
	OriginatingTLS *TLSContext

	Listener         string // name of another proxy's listener
	ListenerOf       ListenerConfig
	ListenerPriority int // 0: not said, else 1..100, lower first
}

// ListenerConfig names the object that describes a listener.
type ListenerConfig struct {
	Kind, Name string
}

// HTTPRule allows the requests that satisfy all of its fields; an empty one allows every request.
type HTTPRule struct {
	Path, Method, Host *regexp.Regexp // whole value; nil: any
	Headers            []HeaderRule   // headers[]
	HeaderMatches      []HeaderMatch
}

// HeaderRule is one entry of headers: presence, or a value that is literally equal or matches as a whole.
type HeaderRule struct {
	Name     string
	HasValue bool
	Value    string
	Pattern  *regexp.Regexp // nil: not a regular expression
}

// HeaderMatch is one entry of headerMatches. The value is compared exactly.
type HeaderMatch struct {
	Name     string
	Value    string
	Secret   *SecretRef
	Mismatch string // "", LOG, ADD, DELETE or REPLACE
}

// SecretRef names a Kubernetes secret.
type SecretRef struct {
	Namespace, Name string
}

// KafkaRule allows the requests that satisfy all of its fields.
type KafkaRule struct {
	APIKeys    []int16 // those of the role or of the key; nil: any
	Role       string  // produce, consume or empty
	APIKey     string  // as written, lower case, or empty
	APIVersion *int16
	ClientID   string
	Topic      string
}

// TLSContext names the certificates for terminating or originating TLS.
type TLSContext struct {
	Secret                             SecretRef
	TrustedCA, Certificate, PrivateKey string // keys in the secret
}
