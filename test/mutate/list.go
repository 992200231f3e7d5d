package main

// mutations is the guards that decide who may talk to whom, and what breaks each.
func mutations() []mutation {
	const flatten, compile, decide = "internal/policy/flatten.go", "internal/policy/compile.go", "internal/policy/decide.go"
	const entity, resolve, documents = "internal/policy/entity.go", "internal/policy/resolve.go", "internal/policy/documents.go"
	return []mutation{
		{"deny beats allow", flatten, "case lists[EffectDeny].n > 0:", "case lists[EffectDeny].n > 0 && lists[EffectAllow].n == 0:"},
		{"unmet authentication allows nothing", flatten, "case lists[EffectAuth].n > 0:", "case lists[EffectAuth].n > 0 && lists[EffectAllow].n == 0:"},
		{"pass skips no more than its tier", flatten, "passed = tier\n", "passed = TierNormal\n"},
		{"isolation comes before the Baseline tier", flatten, "case tier > TierNormal && f.views[view].normal:", "case false:"},
		{"a rule of layer 7 restricts", flatten, "if l.filtered[view] == l.lists[view][EffectAllow].n &&", "if false &&"},
		{"a plain allow cancels layer 7 for its piece only", flatten, "if p.L7 == nil {\n\t\t\t\treturn false", "if p.L7 == nil {\n\t\t\t\treturn true"},
		{"parsers that contradict deny", flatten, "if conflict(f.parts) {", "if false {"},
		{"audit reports and changes nothing", flatten, "case v == 0 && s.audit,", "case"},
		{"requirements narrow what is allowed", flatten, "case !f.met[v] && !s.free &&", "case false &&"},
		{"a port range ends where it ends", flatten, "event{uint32(p.Last) + 1, false, s}", "event{uint32(p.Last) + 2, false, s}"},
		{"protocol ANY means three protocols", flatten, "return proto == ProtoTCP || proto == ProtoUDP || proto == ProtoSCTP", "return true"},
		{"priorities of 32 bits keep their order", compile, "uint64(priority)<<entryBits |", "uint64(uint16(priority))<<entryBits |"},
		{"an entry without peers and ports opens nothing", compile, "if entry.selectsNothing() {", "if false {"},
		{"an allow that demands authentication is none", compile, "case entry.Auth == AuthRequired || entry.Auth == AuthTestAlwaysFail:", "case false:"},
		{"deny entries deny", compile, "effect = EffectDeny", "effect = EffectAllow"},
		{"the sender is asked", decide, "Egress:  e.judge(from, to, nil, verdict.Egress, proto, port),", "Egress:  PortVerdict{Action: verdict.Allow},"},
		{"the strictest of both ends counts", decide, "d.Egress.Action == a || d.Ingress.Action == a", "d.Egress.Action == a && d.Ingress.Action == a"},
		{"excepts are taken out of a block", entity, "if covers(e, block) {\n\t\t\treturn false", "if covers(e, block) {\n\t\t\treturn true"},
		{"blocks select no pods", entity, "case i.Prefix.IsValid():\n\t\treturn []netip.Prefix{i.Prefix.Masked()}", "case i.Prefix.IsValid() || isWorkload(i):\n\t\treturn []netip.Prefix{i.Prefix.Masked()}"},
		{"entity none is nobody", entity, "case \"none\":\n\t\treturn false", "case \"none\":\n\t\treturn true"},
		{"endpoint selectors select workloads only", "internal/policy/selection.go", "if !isWorkload(i) {", "if false {"},
		{"namespaced policies keep to their namespace", "internal/policy/selection.go", "if namespace != \"\" && (!named || subject) {", "if false {"},
		{"init endpoints are isolated", resolve, "p.own = im.init", "p.own = nil"},
		{"enforcement always isolates", resolve, "p.own = im.always", "p.own = nil"},
		{"too many rows are refused", resolve, "if e.nodeTable(r, c); r.rows > e.cfg.MaxRows {", "if e.nodeTable(r, c); false {"},
		{"a class is what holds it, no less", resolve, "sc.class[m] = n.into", "sc.class[m] = max(c, n.into-1)"},
		{"a missing group is nobody", documents, "if p := d.groups[c.Group]; p != nil {\n\t\t\t\tgroup(p, c)\n\t\t\t}", "if p := d.groups[c.Group]; p != nil {\n\t\t\t\tgroup(p, c)\n\t\t\t} else {\n\t\t\t\tout = append(out, CIDR{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0)})\n\t\t\t}"},
		{"a list of its own isolates when empty", "internal/policy/model.go", "return s.Allow != nil || s.Deny != nil", "return len(s.Allow)+len(s.Deny) > 0"},

		{"unknown fields are refused", "internal/policy/node.go", "if f := o.fields[name]; !f.taken {", "if f := o.fields[name]; false && !f.taken {"},
		{"excepts lie inside of their block", "internal/policy/parse_peer.go", "if outer.IsValid() && !covers(outer, p) {", "if false {"},
		{"the lists of ports have a bound", "internal/policy/parse_port.go", "if len(list) > maxPorts {", "if false {"},
		{"an empty list of ports is refused", "internal/policy/parse_port.go", "if ok && len(v.Content) == 0 {\n\t\tr.fail(v.Node, v.path, \"the list is empty; take toPorts out", "if ok && false {\n\t\tr.fail(v.Node, v.path, \"the list is empty; take toPorts out"},
		{"layer 7 is refused in deny rules", "internal/policy/parse_l7.go", "case at.deny:\n\t\t\tr.fail(f.key, f.val.path, notInDeny)", "case false:\n\t\t\tr.fail(f.key, f.val.path, notInDeny)"},

		{"two changes on trial do not overlap", "internal/agent/trial.go", "if err := p.onTrial(); err != nil {", "if err := p.onTrial(); false {"},
		{"an unacknowledged trial is taken back", "internal/agent/trial.go", "if t.Revision != 0 && !t.Ending &&", "if !t.Ending &&"},
		{"what was before is on disk first", "internal/agent/trial.go", "if err := p.record(t); err != nil {\n\t\treturn nil,", "if err := error(nil); err != nil {\n\t\treturn nil,"},
	}
}
