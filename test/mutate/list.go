package main

// slowTests are those that run after the others of their package, if these noticed nothing.
func slowTests() map[string]string {
	return map[string]string{
		"internal/policy":   "^(TestOracle|TestHugeSubject|TestDistinctPriorities|TestManyPorts|TestAliasesAreBounded|TestHostile.*|TestBigButFine|TestPrintRandom|Fuzz.*)$",
		"internal/agent":    "^(Test([^HNT]|Help|T[^r]).*|Fuzz.*)$",
		"internal/endpoint": "^(TestThousandCreateDeleteLeaveNothing|TestCreateWaitsForPolicies|TestKilledAtEveryStep|TestFaultsNeverWiden)$",
	}
}

// mutations is the guards that decide who may talk to whom, and what breaks each.
func mutations() []mutation {
	const flatten, compile, decide = "internal/policy/flatten.go", "internal/policy/compile.go", "internal/policy/decide.go"
	const apply, kernel, file, trial = "internal/endpoint/apply.go", "internal/endpoint/kernel.go", "internal/endpoint/file.go", "internal/agent/trial.go"
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
		{"blocks select no pods", entity, "case i.Prefix.IsValid():\n\t\treturn []netip.Prefix{i.Prefix.Masked()}", "case isWorkload(i):\n\t\treturn []netip.Prefix{v4, v6}\n\tcase i.Prefix.IsValid():\n\t\treturn []netip.Prefix{i.Prefix.Masked()}"},
		{"entity none is nobody", entity, "case \"none\":\n\t\treturn false", "case \"none\":\n\t\treturn true"},
		{"endpoint selectors select workloads only", "internal/policy/selection.go", "if !isWorkload(i) || !s.ofCluster(i) {", "if !s.ofCluster(i) {"},
		{"peers are of the own cluster", "internal/policy/selection.go", "if !isWorkload(i) || !s.ofCluster(i) {", "if !isWorkload(i) {"},
		{"namespaced policies keep to their namespace", "internal/policy/selection.go", "if namespace != \"\" && (!named || subject) {", "if false {"},
		{"init endpoints are isolated", "internal/policy/plan.go", "p.own = im.init", "p.own = nil"},
		{"enforcement always isolates", "internal/policy/plan.go", "p.own = im.always", "p.own = nil"},
		{"too many rows are refused", resolve, "if r.rows <= e.cfg.MaxRows {", "if true {"},
		{"work on rules that overlap has a bound", resolve, "if f.over {", "if false {"},
		{"a class is what holds it, no less", resolve, "sc.class[m] = n.into", "sc.class[m] = max(c, n.into-1)"},
		{"a missing group is nobody", documents, "if p := d.groups[c.Group]; p != nil {\n\t\t\t\tgroup(p, c)\n\t\t\t}", "if p := d.groups[c.Group]; p != nil {\n\t\t\t\tgroup(p, c)\n\t\t\t} else {\n\t\t\t\tout = append(out, CIDR{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0)})\n\t\t\t}"},
		{"a list of its own isolates when empty", "internal/policy/model.go", "return s.Allow != nil || s.Deny != nil", "return len(s.Allow)+len(s.Deny) > 0"},

		{"unknown fields are refused", "internal/policy/node.go", "if f := o.fields[name]; !f.taken {", "if f := o.fields[name]; false && !f.taken {"},
		{"excepts lie inside of their block", "internal/policy/parse_peer.go", "if outer.IsValid() && !covers(outer, p) {", "if false {"},
		{"the lists of ports have a bound", "internal/policy/parse_port.go", "if len(list) > maxPorts {", "if false {"},
		{"an empty list of ports is refused", "internal/policy/parse_port.go", "if ok && len(v.Content) == 0 {\n\t\tr.fail(v.Node, v.path, \"the list is empty; take toPorts out", "if ok && false {\n\t\tr.fail(v.Node, v.path, \"the list is empty; take toPorts out"},
		{"layer 7 is refused in deny rules", "internal/policy/parse_l7.go", "case at.deny:\n\t\t\tr.fail(f.key, f.val.path, notInDeny)", "case false:\n\t\t\tr.fail(f.key, f.val.path, notInDeny)"},

		{"rows of new blocks come before their addresses", apply, "\te.learn(ids...)\n\tif err := e.exposed()", "\tdefer e.learn(ids...)\n\tif err := e.exposed()"},
		{"blocks are known before the rules that name them", apply, "if err := e.addPrefixes(wanted); err != nil {", "e.deps.Policy.UpdatePolicies(put, del)\n\te.regenerate()\n\tif err := e.addPrefixes(wanted); err != nil {"},
		{"blocks go after the rules that name them", apply, "e.kernel.revision = rev\n", "e.kernel.revision = rev\n\te.dropPrefixes(wanted)\n"},
		{"an identity rests until no packet has it", apply, "if e.cfg.Now().Sub(l.since) < e.cfg.Grace {", "if e.cfg.Now().Sub(l.since) < 0 {"},
		{"subjects are written before an endpoint has them", kernel, "if err := e.deps.Datapath.PutSubject(s); err != nil {", "if err := error(nil); err != nil {"},
		{"every change makes cached verdicts stale", kernel, "err := e.deps.Datapath.Commit()", "err := error(nil)"},
		{"no room for new rules locks the endpoint", apply, "e.lockdown(ep, r.err)", "_ = ep"},
		{"no room for a new identity locks who would misjudge it", kernel, "e.lockUsers(p.Subject, fmt.Errorf(\"write policy rows of new identities: %w\", err))", "_ = err"},
		{"who can neither learn nor be locked meets no new identity", kernel, "if s := e.kernel.subjects[key]; s == nil || s.broken {\n\t\t\t\treturn", "if s := e.kernel.subjects[key]; s == nil && s != nil {\n\t\t\t\treturn"},
		{"a state file that was cut or edited is refused", file, "f.SHA256 != want {", "false {"},
		{"a state file is that of its endpoint", file, "case ep.ID != id || id == 0:", "case false:"},
		{"a file that others can write is refused", file, "case info.Mode().Perm()&0o022 != 0:", "case false:"},
		{"nobody gives himself porin's labels", "internal/endpoint/request.go", "case reservedSources[l.Source]:", "case false:"},
		{"nobody says himself where he lives", "internal/endpoint/request.go", "case labels.IsTrusted(l.Key):", "case false:"},
		{"names of ports are told to the rules in use", "internal/endpoint/ports.go", "e.patch(e.deps.Policy.UpdatePorts(set))", "e.deps.Policy.UpdatePorts(set)"},

		{"rules that nobody would enforce are refused", "internal/agent/enforceable.go", "if r.Nodes {", "if false {"},
		{"the watched folder leaves a policy on trial alone", "internal/agent/policies.go", "if source != sourceAPI && p.trial.touches(o.Ref) {", "if false {"},
		{"two changes on trial do not overlap", trial, "if err := p.onTrial(); err != nil {", "if err := p.onTrial(); false {"},
		{"an unacknowledged trial is taken back", trial, "if t.Revision != 0 && !t.Ending &&", "if !t.Ending &&"},
		{"a late confirmation is none", trial, "if t.Ending || t.left(time.Now()) == 0 {\n\t\treturn nil,", "if false {\n\t\treturn nil,"},
		{"a trial ends by whichever clock says so first", trial, "min(t.ends.Sub(now), t.Until.Sub(now.Round(0)), t.Window)", "t.ends.Sub(now)"},
		{"a record that was cut or edited is not believed", trial, "hex.EncodeToString(is[:]) != sum {", "false && hex.EncodeToString(is[:]) != sum {"},
		{"a record that others can write is not believed", trial, "err = endpoint.CheckOwned(p.trialFile(), false)", "_ = endpoint.CheckOwned"},
		{"what takes a trial back is on disk before it is forgotten", trial, "if _, _, err := p.changeNow(ctx, sourceAPI, put, del); err != nil {\n\t\treturn err\n\t}\n\treturn p.savedAll(t)", "_, _, err = p.changeNow(ctx, sourceAPI, put, del)\n\treturn err"},
		{"what was before is on disk first", trial, "if err := p.record(t); err != nil {\n\t\treturn nil,", "if err := error(nil); err != nil {\n\t\treturn nil,"},
	}
}
