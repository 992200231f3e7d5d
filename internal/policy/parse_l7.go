package policy

import (
	"slices"
	"strings"
)

// contents reads what an element of toPorts says beside its ports; nil if nothing.
func (r *reader) contents(o *object, at site, ports []readPort) *L7 {
	l := &L7{}
	given := map[string]value{}
	for _, name := range []string{"rules", "serverNames", "terminatingTLS", "originatingTLS", "listener"} {
		f, there := o.fields[name]
		v, ok := o.take(name)
		switch {
		case !there:
			continue
		case at.deny:
			r.fail(f.key, f.val.path, notInDeny)
			ok = false
		case at.host && at.ingress:
			r.fail(f.key, f.val.path, "not allowed for connections to nodes: nothing looks into them")
			ok = false
		}
		given[name] = f.val
		if !ok {
			continue
		}
		switch name {
		case "rules":
			r.rules(v, l)
		case "serverNames":
			l.ServerNames = r.serverNames(v)
		case "terminatingTLS":
			l.TerminatingTLS = r.tls(v, at)
		case "originatingTLS":
			l.OriginatingTLS = r.tls(v, at)
		case "listener":
			r.listener(v, at, l)
		}
	}
	if len(given) == 0 {
		return nil
	}
	rules, hasRules := given["rules"]
	if names, ok := given["serverNames"]; ok && hasRules && l.TerminatingTLS == nil {
		r.fail(names.Node, names.path, "beside rules they need terminatingTLS: without it the rules see nothing")
	}
	if listener, ok := given["listener"]; ok && hasRules {
		r.fail(listener.Node, listener.path, "cannot stand beside rules; write two toPorts elements")
	}
	if hasRules && at.host && l.Parser != "" && l.Parser != ParserDNS {
		r.fail(rules.Node, rules.path, "only dns is judged for connections of nodes")
	}
	if hasRules && at.ingress && l.Parser == ParserDNS {
		r.fail(rules.Node, rules.path, "dns is judged on egress only")
	}
	for _, p := range ports {
		r.checkContents(p, l)
	}
	return l
}

// checkContents refuses ports on which what l says cannot be judged.
func (r *reader) checkContents(p readPort, l *L7) {
	dns := l.Parser == ParserDNS
	switch {
	case p.port.Any:
		r.fail(p.Node, p.at("port"), "what is said on a connection can be judged on numbered ports only; write the port")
	case dns && (p.port.Name != "" || p.port.First != 53 || p.port.Last != 53):
		r.fail(p.Node, p.at("port"), "dns is judged on port 53 only")
	case dns && (p.port.AnyProto || p.port.Proto == ProtoUDP || p.port.Proto == ProtoTCP):
	case dns:
		r.fail(p.Node, p.at("protocol"), "dns needs UDP, TCP or ANY")
	case p.port.Proto != ProtoTCP:
		r.fail(p.Node, p.at("protocol"), "what is said on a connection can be judged with TCP only (dns: UDP too); write protocol: TCP")
	}
}

// rules reads rules of one family.
func (r *reader) rules(v value, l *L7) {
	o, ok := r.object(v)
	if !ok {
		return
	}
	first := ""
	for _, family := range []struct {
		name string
		read func(value)
	}{
		{ParserHTTP, func(v value) { l.HTTP = each(r, v, r.httpRule) }},
		{ParserKafka, func(v value) { l.Kafka = each(r, v, r.kafkaRule) }},
		{ParserDNS, func(v value) { l.DNS = each(r, v, r.fqdn) }},
		{"l7proto", func(v value) { r.genericParser(v, l) }},
	} {
		field, ok := o.fields[family.name]
		if !ok {
			continue
		}
		list, ok := o.take(family.name)
		if first != "" {
			r.fail(field.key, field.val.path, "cannot stand beside %s; write two toPorts elements", first)
			continue
		}
		first = family.name
		if ok {
			l.Parser = family.name
			family.read(list)
		}
	}
	if list, ok := o.take("l7"); ok {
		if first != "l7proto" {
			r.fail(list.Node, list.path, "needs l7proto, the name of the parser")
		}
		l.Generic = each(r, list, r.genericRule)
	}
	if len(o.order) == 0 {
		r.fail(v.Node, v.path, "names no rules; take it out to allow everything, or write http, kafka, dns or l7proto")
	}
	o.done()
}

// each reads the elements of a list.
func each[T any](r *reader, v value, read func(value) (T, bool)) []T {
	list, _ := r.list(v)
	out := make([]T, 0, len(list))
	for _, el := range list {
		if one, ok := read(el); ok {
			out = append(out, one)
		}
	}
	return out
}

// genericParser reads l7proto.
func (r *reader) genericParser(v value, l *L7) {
	s, ok := r.text(v)
	if !ok {
		return
	}
	l.Parser = s
	switch {
	case s == ParserHTTP, s == ParserKafka, s == ParserDNS:
		r.fail(v.Node, v.path, "%s has rules of its own; write rules.%s", s, s)
	case len(s) > 63 || s == "" || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./") != "":
		r.fail(v.Node, v.path, "%.80q is no name of a parser; use letters, digits, '-', '_', '.' and '/', at most 63", s)
	}
}

// genericRule reads one set of key: value of a generic parser.
func (r *reader) genericRule(v value) (map[string]string, bool) {
	o, ok := r.object(v)
	if !ok {
		return nil, false
	}
	out := map[string]string{}
	for _, key := range o.order {
		val, ok := o.take(key)
		if !ok {
			continue
		}
		if key == "" || hasControl(key) || len(key) > maxText {
			r.fail(val.Node, val.path, "the key is empty, too long or holds control characters")
			continue
		}
		out[key], _ = r.short(val)
	}
	return out, true
}

// serverNames reads names of servers and patterns of them, lower case, without the final dot.
func (r *reader) serverNames(v value) []string {
	list, ok := r.list(v)
	if ok && len(v.Content) == 0 {
		r.fail(v.Node, v.path, "the list is empty; take the field out to mean every name")
	}
	var out []string
	for _, el := range list {
		if s, ok := r.dnsPattern(el); ok {
			out = append(out, strings.TrimSuffix(s, "."))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// tls reads terminatingTLS or originatingTLS.
func (r *reader) tls(v value, at site) *TLSContext {
	o, ok := r.object(v)
	if !ok {
		return nil
	}
	t := &TLSContext{}
	if s, ok := o.take("secret"); ok {
		t.Secret, _ = r.secret(s, at.policy)
	} else if _, null := o.fields["secret"]; !null {
		r.fail(v.Node, v.at("secret"), "missing")
	}
	for i, to := range []*string{&t.TrustedCA, &t.Certificate, &t.PrivateKey} {
		if s, ok := o.take([]string{"trustedCA", "certificate", "privateKey"}[i]); ok {
			*to, _ = r.short(s)
		}
	}
	o.done()
	return t
}

// secret reads {namespace, name}.
func (r *reader) secret(v value, p *Policy) (s SecretRef, ok bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return s, false
	}
	s.Namespace = p.Namespace
	if n, ok := o.take("namespace"); ok {
		s.Namespace, _ = r.namespace(n)
	} else if p.Namespace == "" {
		r.fail(v.Node, v.at("namespace"), "missing; a %s has no namespace of its own", p.Kind)
	}
	if n, ok := o.take("name"); ok {
		s.Name, _ = r.objectName(n, "Secret")
	} else {
		r.fail(v.Node, v.at("name"), "missing")
	}
	o.done()
	return s, len(r.errs) == errs
}

// listener reads {envoyConfig: {kind, name}, name, priority}.
func (r *reader) listener(v value, at site, l *L7) {
	if at.ingress {
		r.fail(v.Node, v.path, "not allowed on ingress")
		return
	}
	o, ok := r.object(v)
	if !ok {
		return
	}
	if c, ok := o.take("envoyConfig"); ok {
		if co, ok := r.object(c); ok {
			l.ListenerOf.Kind = "CiliumEnvoyConfig"
			if k, ok := co.take("kind"); ok {
				if l.ListenerOf.Kind, ok = r.text(k); ok && !slices.Contains([]string{"CiliumEnvoyConfig", "CiliumClusterwideEnvoyConfig"}, l.ListenerOf.Kind) {
					r.fail(k.Node, k.path, "%.40q is unknown; use CiliumEnvoyConfig or CiliumClusterwideEnvoyConfig", l.ListenerOf.Kind)
				}
			}
			if n, ok := co.take("name"); ok {
				l.ListenerOf.Name, _ = r.objectName(n, l.ListenerOf.Kind)
			} else {
				r.fail(c.Node, c.at("name"), "missing")
			}
			co.done()
		}
	} else {
		r.fail(v.Node, v.at("envoyConfig"), "missing")
	}
	if n, ok := o.take("name"); ok {
		if l.Listener, ok = r.short(n); ok && l.Listener == "" {
			r.fail(n.Node, n.path, "is empty")
		}
	} else {
		r.fail(v.Node, v.at("name"), "missing")
	}
	if n, ok := o.take("priority"); ok {
		l.ListenerPriority, _ = r.number(n, 100)
	}
	o.done()
}

// short reads a text of reasonable length.
func (r *reader) short(v value) (string, bool) {
	s, ok := r.text(v)
	if ok && len(s) > maxText {
		r.fail(v.Node, v.path, "longer than %d bytes", maxText)
		return "", false
	}
	return s, ok
}
