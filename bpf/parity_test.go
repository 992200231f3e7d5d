package bpf

import (
	"encoding/binary"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"porin/api/flow"
	"porin/internal/verdict"
)

func specs(t *testing.T) map[string]*ebpf.CollectionSpec {
	t.Helper()
	pod, err := LoadPod()
	if err != nil {
		t.Fatal(err)
	}
	host, err := LoadHost()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*ebpf.CollectionSpec{"pod": pod, "host": host}
}

// plain is a name without what C and Go write differently: lo_to_hi and LoToHi, prefixlen and PrefixLen.
func plain(name string) string {
	return strings.ToLower(strings.ReplaceAll(name, "_", ""))
}

// TestTypesParity compares every struct of the maps with its Go twin: size, and name and offset of every field.
func TestTypesParity(t *testing.T) {
	twins := map[string]any{
		"addr": Addr{}, "endpoint": Endpoint{}, "peer": Peer{}, "prefix_key": PrefixKey{},
		"policy_peer_key": PolicyPeerKey{}, "policy_peer": PolicyPeer{}, "policy_port_key": PolicyPortKey{},
		"policy_range_key": PolicyRangeKey{}, "policy_verdict": PolicyVerdict{}, "ct_key": CTKey{},
		"ct_count": CTCount{}, "ct_entry": CTEntry{}, "nat_key": NatKey{}, "nat_entry": NatEntry{},
		"frag_key": FragKey{}, "frag_entry": FragEntry{}, "node": Node{}, "counter": Counter{}, "settings": Settings{}, "event": Event{},
	}
	for set, spec := range specs(t) {
		for name, twin := range twins {
			var s *btf.Struct
			if err := spec.Types.TypeByName(name, &s); err != nil {
				t.Errorf("%s: struct %s: %v", set, name, err)
				continue
			}
			rt := reflect.TypeOf(twin)
			if int(s.Size) != binary.Size(twin) || int(s.Size) != int(rt.Size()) {
				t.Errorf("%s: struct %s has %d bytes, %s has %d in memory and %d written out", set, name, s.Size, rt, rt.Size(),
					binary.Size(twin))
			}
			if rt.Kind() != reflect.Struct {
				continue
			}
			fields := map[string]uint32{}
			for _, m := range s.Members {
				fields[plain(m.Name)] = m.Offset.Bytes()
			}
			for f := range rt.Fields() {
				if f.Name == "_" {
					continue
				}
				off, ok := fields[plain(f.Name)]
				if !ok || uintptr(off) != f.Offset {
					t.Errorf("%s: %s.%s is at %d, in struct %s at %d (found: %v)", set, rt, f.Name, f.Offset, name, off, ok)
				}
				delete(fields, plain(f.Name))
			}
			for left := range fields {
				if !strings.HasPrefix(left, "pad") {
					t.Errorf("%s: struct %s has %s, %s has not", set, name, left, rt)
				}
			}
		}
	}
}

// TestFlagsParity compares the flag enums with the Go constants.
func TestFlagsParity(t *testing.T) {
	want := map[string]map[string]uint64{
		"endpoint_flag": {"EP_LOCKDOWN": uint64(EndpointLockdown), "EP_AUDIT": uint64(EndpointAudit)},
		"peer_flag": {
			"PEER_LOCAL": uint64(PeerLocal), "PEER_HOST": uint64(PeerHost), "PEER_CLUSTER": uint64(PeerCluster),
			"PEER_NO_OWNER": uint64(PeerNoOwner), "PEER_REMOTE": uint64(PeerRemote),
		},
		"table_flag": {
			"TABLE_RANGES": uint64(TableRanges), "TABLE_NO_PORTS": uint64(TableNoPorts), "TABLE_NO_PROTOS": uint64(TableNoProtos),
		},
		"verdict_flag": {"VERDICT_EXPLICIT_DENY": uint64(VerdictExplicitDeny), "VERDICT_AUTH": uint64(VerdictAuth)},
		"ct_flag": {
			"CTF_SEEN_REPLY": uint64(CTSeenReply), "CTF_LO_FIN": uint64(CTLoFin), "CTF_HI_FIN": uint64(CTHiFin),
			"CTF_RST": uint64(CTRst), "CTF_NAT": uint64(CTNat),
		},
		"setting_flag": {
			"SETTING_AUDIT": uint64(SettingAudit), "SETTING_MASQ4": uint64(SettingMasq4),
			"SETTING_MASQ6": uint64(SettingMasq6), "SETTING_TRACE_ALL": uint64(SettingTraceAll),
			"SETTING_SNAP": uint64(SettingSnap),
		},
		"tunnel": {
			"TUNNEL_NONE": uint64(TunnelNone), "TUNNEL_GENEVE": uint64(TunnelGeneve), "TUNNEL_VXLAN": uint64(TunnelVXLAN),
		},
		"event_type": {"EVENT_DROP": 1, "EVENT_TRACE": 4, "EVENT_POLICY_VERDICT": 5},
	}
	for enum, values := range want {
		compareEnum(t, enum, values)
	}
}

// TestVerdictParity compares the words that C, Go and the flow API share.
func TestVerdictParity(t *testing.T) {
	compareEnum(t, "action", map[string]uint64{
		"ACTION_DENY": uint64(verdict.Deny), "ACTION_ALLOW": uint64(verdict.Allow), "ACTION_REDIRECT": uint64(verdict.Redirect),
		"ACTION_AUDIT": uint64(verdict.Audit),
	})
	compareEnum(t, "direction", map[string]uint64{
		"DIR_NONE": uint64(verdict.NoDirection), "DIR_INGRESS": uint64(verdict.Ingress), "DIR_EGRESS": uint64(verdict.Egress),
	})
	compareEnum(t, "point", map[string]uint64{
		"POINT_UNKNOWN": uint64(verdict.UnknownPoint), "POINT_TO_HOST": uint64(verdict.ToHost),
		"POINT_TO_STACK": uint64(verdict.ToStack), "POINT_FROM_ENDPOINT": uint64(verdict.FromEndpoint),
		"POINT_FROM_HOST": uint64(verdict.FromHost), "POINT_FROM_NETWORK": uint64(verdict.FromNetwork),
		"POINT_TO_NETWORK": uint64(verdict.ToNetwork), "POINT_TO_ENDPOINT": uint64(verdict.ToEndpoint),
		"POINT_TO_OVERLAY": uint64(verdict.ToOverlay), "POINT_FROM_OVERLAY": uint64(verdict.FromOverlay),
	})
	compareEnum(t, "ct_status", map[string]uint64{
		"CT_UNKNOWN": uint64(verdict.StatusUnknown), "CT_NEW": uint64(verdict.StatusNew),
		"CT_ESTABLISHED": uint64(verdict.StatusEstablished), "CT_REPLY": uint64(verdict.StatusReply),
		"CT_RELATED": uint64(verdict.StatusRelated),
	})
	reasons := map[string]uint64{}
	for _, r := range verdict.Reasons() {
		reasons[r.Name()] = uint64(r)
		if _, ok := flow.DropReason_name[int32(r)]; !ok {
			t.Errorf("the flow API has no drop reason %d, %s", r, r.Name())
		}
		if verdict.Reason(r).String() == "" {
			t.Errorf("%s has no text", r.Name())
		}
	}
	compareEnum(t, "drop_reason", reasons)
	for n, name := range flow.DropReason_name {
		// Hubble's number that porin keeps free for services.
		if !verdict.Reason(n).Known() && flow.DropReason(n) != flow.DropReason_DENIED_BY_LB_SRC_RANGE_CHECK {
			t.Errorf("drop reason %s = %d of the flow API is not in verdict", name, n)
		}
	}
}

func compareEnum(t *testing.T, enum string, want map[string]uint64) {
	t.Helper()
	for set, spec := range specs(t) {
		var e *btf.Enum
		if err := spec.Types.TypeByName(enum, &e); err != nil {
			t.Errorf("%s: enum %s: %v", set, enum, err)
			continue
		}
		got := map[string]uint64{}
		for _, v := range e.Values {
			got[v.Name] = v.Value
			if n, ok := want[v.Name]; !ok || n != v.Value {
				t.Errorf("%s: enum %s has %s = %d, Go has %d (known: %v)", set, enum, v.Name, v.Value, n, ok)
			}
		}
		for name := range want {
			if _, ok := got[name]; !ok {
				t.Errorf("%s: enum %s lacks %s", set, enum, name)
			}
		}
	}
}

// TestMapsParity: maps that both sets have are the same, or they could not be shared.
func TestMapsParity(t *testing.T) {
	s := specs(t)
	for name, m := range s["pod"].Maps {
		h := s["host"].Maps[name]
		if h == nil || h.Type != m.Type || h.KeySize != m.KeySize || h.ValueSize != m.ValueSize ||
			h.MaxEntries != m.MaxEntries || h.Flags != m.Flags {
			t.Errorf("map %s: pod has %v, host has %v", name, m, h)
		}
	}
	if len(s["pod"].Maps) != len(s["host"].Maps) {
		t.Errorf("pod has %d maps, host has %d", len(s["pod"].Maps), len(s["host"].Maps))
	}
}

// TestOneConntrackLookup: the pod program names conntrack twice, once to look up and once to insert, so no path through
// it can look twice.
func TestOneConntrackLookup(t *testing.T) {
	n := 0
	for _, ins := range specs(t)["pod"].Programs["pod_egress"].Instructions {
		if ins.IsLoadFromMap() && ins.Reference() == "conntrack" {
			n++
		}
	}
	if n != 2 {
		t.Errorf("pod_egress refers to conntrack %d times, want 2: one lookup, one insert", n)
	}
}
