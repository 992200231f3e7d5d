// Package verdict defines the words in which porin speaks about a packet's fate: actions, drop reasons,
// directions and observation points. It reads and writes nothing; the numbers are shared with the BPF
// programs (bpf/include/verdict.h) and a test keeps both lists equal. It never decides anything.
package verdict

import "fmt"

// Action is what a verdict table says about a packet.
type Action uint8

// Actions, numbered as enum action in bpf/include/verdict.h. The zero value denies: a row that was never
// filled must not allow.
const (
	Deny     Action = 0
	Allow    Action = 1
	Redirect Action = 2 // to the L7 proxy
	Audit    Action = 3 // would be denied; forwarded and reported
)

func (a Action) String() string {
	switch a {
	case Deny:
		return "deny"
	case Allow:
		return "allow"
	case Redirect:
		return "redirect"
	case Audit:
		return "audit"
	}
	return fmt.Sprintf("action(%d)", uint8(a))
}

// Direction of a policy decision, seen from the endpoint it protects.
type Direction uint8

// Directions, numbered as enum direction in bpf/include/verdict.h and as Hubble's TrafficDirection.
const (
	NoDirection Direction = 0
	Ingress     Direction = 1
	Egress      Direction = 2
)

func (d Direction) String() string {
	switch d {
	case Ingress:
		return "ingress"
	case Egress:
		return "egress"
	}
	return "none"
}
