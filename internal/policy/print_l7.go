package policy

import "regexp"

type yamlHTTP struct {
	Path          string            `yaml:"path,omitempty"`
	Method        string            `yaml:"method,omitempty"`
	Host          string            `yaml:"host,omitempty"`
	Headers       []string          `yaml:"headers,omitempty"`
	HeaderMatches []yamlHeaderMatch `yaml:"headerMatches,omitempty"`
}

type yamlHeaderMatch struct {
	Name     string      `yaml:"name"`
	Value    string      `yaml:"value,omitempty"`
	Secret   *yamlSecret `yaml:"secret,omitempty"`
	Mismatch string      `yaml:"mismatch,omitempty"`
}

type yamlSecret struct {
	Namespace string `yaml:"namespace,omitempty"`
	Name      string `yaml:"name"`
}

type yamlKafka struct {
	Role       string `yaml:"role,omitempty"`
	APIKey     string `yaml:"apiKey,omitempty"`
	APIVersion *int16 `yaml:"apiVersion,omitempty"`
	ClientID   string `yaml:"clientID,omitempty"`
	Topic      string `yaml:"topic,omitempty"`
}

type yamlTLS struct {
	Secret      yamlSecret `yaml:"secret"`
	TrustedCA   string     `yaml:"trustedCA,omitempty"`
	Certificate string     `yaml:"certificate,omitempty"`
	PrivateKey  string     `yaml:"privateKey,omitempty"`
}

type yamlListener struct {
	Config   map[string]string `yaml:"envoyConfig"`
	Name     string            `yaml:"name"`
	Priority int               `yaml:"priority,omitempty"`
}

// marshalL7 writes into y what l says beside the ports.
func marshalL7(l *L7, y *yamlPorts) {
	switch l.Parser {
	case "":
	case ParserHTTP:
		y.Rules = yamlEntry{ParserHTTP: marshalList(l.HTTP, marshalHTTP)}
	case ParserKafka:
		y.Rules = yamlEntry{ParserKafka: marshalList(l.Kafka, func(k KafkaRule) yamlKafka {
			return yamlKafka{k.Role, k.APIKey, k.APIVersion, k.ClientID, k.Topic}
		})}
	case ParserDNS:
		y.Rules = yamlEntry{ParserDNS: marshalList(l.DNS, marshalFQDN)}
	default:
		y.Rules = yamlEntry{"l7proto": l.Parser}
		if l.Generic != nil {
			y.Rules["l7"] = l.Generic
		}
	}
	y.ServerNames = l.ServerNames
	y.TerminatingTLS, y.OriginatingTLS = marshalTLS(l.TerminatingTLS), marshalTLS(l.OriginatingTLS)
	if l.Listener != "" {
		y.Listener = &yamlListener{map[string]string{"kind": l.ListenerOf.Kind, "name": l.ListenerOf.Name}, l.Listener, l.ListenerPriority}
	}
}

func marshalHTTP(h HTTPRule) yamlHTTP {
	var y yamlHTTP
	for to, re := range map[*string]*regexp.Regexp{&y.Path: h.Path, &y.Method: h.Method, &y.Host: h.Host} {
		if re != nil {
			*to = regexText(re)
		}
	}
	for _, one := range h.Headers {
		s := one.Name
		if one.HasValue {
			s += ": " + one.Value
		}
		y.Headers = append(y.Headers, s)
	}
	for _, m := range h.HeaderMatches {
		y.HeaderMatches = append(y.HeaderMatches, yamlHeaderMatch{m.Name, m.Value, marshalSecret(m.Secret), m.Mismatch})
	}
	return y
}

func marshalSecret(s *SecretRef) *yamlSecret {
	if s == nil {
		return nil
	}
	return &yamlSecret{s.Namespace, s.Name}
}

func marshalTLS(t *TLSContext) *yamlTLS {
	if t == nil {
		return nil
	}
	return &yamlTLS{*marshalSecret(&t.Secret), t.TrustedCA, t.Certificate, t.PrivateKey}
}
