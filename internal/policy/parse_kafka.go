package policy

import (
	"slices"
	"strings"
)

// kafkaRule reads one element of rules.kafka.
func (r *reader) kafkaRule(v value) (k KafkaRule, ok bool) {
	errs := len(r.errs)
	o, ok := r.object(v)
	if !ok {
		return k, false
	}
	if s, ok := o.take("role"); ok {
		k.Role, _ = r.text(s)
		k.Role = strings.ToLower(k.Role)
		if k.APIKeys = kafkaRole(k.Role); k.APIKeys == nil && k.Role != "" {
			r.fail(s.Node, s.path, "role %.40q is unknown; use produce or consume", k.Role)
		}
	}
	if s, ok := o.take("apiKey"); ok {
		k.APIKey, _ = r.text(s)
		k.APIKey = strings.ToLower(k.APIKey)
		n := slices.Index(kafkaKeys(), strings.Replace(k.APIKey, "listoffsets", "offsets", 1))
		switch {
		case k.APIKey == "":
		case k.Role != "":
			r.fail(s.Node, s.path, "cannot stand beside role; write two rules")
		case n < 0:
			r.fail(s.Node, s.path, "apiKey %.40q is unknown; use one of %s", k.APIKey, strings.Join(kafkaKeys(), ", "))
		default:
			k.APIKeys = []int16{int16(n)}
		}
	}
	if s, ok := o.take("apiVersion"); ok && s.Value != "" {
		if n, ok := r.number(s, 1<<15-1); ok {
			version := int16(n)
			k.APIVersion = &version
		}
	}
	if s, ok := o.take("clientID"); ok {
		k.ClientID, _ = r.short(s)
	}
	if s, ok := o.take("topic"); ok {
		if k.Topic, _ = r.text(s); len(k.Topic) > 255 || strings.Trim(k.Topic, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
			r.fail(s.Node, s.path, "%.80q is no topic; use letters, digits, '-', '_' and '.', at most 255", k.Topic)
		}
	}
	o.done()
	return k, len(r.errs) == errs
}

// kafkaKeys are the names of the kinds of requests, by their number.
func kafkaKeys() []string {
	return []string{
		"produce", "fetch", "offsets", "metadata", "leaderandisr", "stopreplica", "updatemetadata", "controlledshutdown",
		"offsetcommit", "offsetfetch", "findcoordinator", "joingroup", "heartbeat", "leavegroup", "syncgroup",
		"describegroups", "listgroups", "saslhandshake", "apiversions", "createtopics", "deletetopics", "deleterecords",
		"initproducerid", "offsetforleaderepoch", "addpartitionstotxn", "addoffsetstotxn", "endtxn", "writetxnmarkers",
		"txnoffsetcommit", "describeacls", "createacls", "deleteacls", "describeconfigs", "alterconfigs",
	}
}

// kafkaRole returns the kinds of requests that a role needs; nil for an unknown one. Producers ask for an id even
// without transactions since Kafka 3.0; a transactional one needs the coordinator and the transaction's requests too.
func kafkaRole(role string) []int16 {
	switch role {
	case "produce":
		return []int16{0, 3, 10, 18, 22, 24, 25, 26, 28}
	case "consume":
		return []int16{1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 18}
	}
	return nil
}
