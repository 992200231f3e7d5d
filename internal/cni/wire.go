// Package cni reads what a container runtime asks (CNI 0.4.0 to 1.1.0) and carries it to the agent.
// It reads the runtime's environment and configuration and writes one request per call on the agent's socket, or a
// queued deletion when the agent is away. It never touches the kernel, and links neither stores nor the BPF loader:
// porin-cni must start in a millisecond.
package cni

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"porin/internal/labels"
)

// WireVersion is the version of the messages between porin-cni and the agent. The agent refuses a newer one.
const WireVersion = 1

// MaxMessage bounds a message, so that a broken peer cannot make the other side allocate without end. A GC request of
// 4096 attachments is about 500 KiB.
const MaxMessage = 4 << 20

// SocketName is the file of the agent's CNI socket in its run directory.
const SocketName = "cni.sock"

// Command is CNI_COMMAND.
type Command string

// Commands.
const (
	Add    Command = "ADD"
	Del    Command = "DEL"
	Check  Command = "CHECK"
	Status Command = "STATUS"
	GC     Command = "GC"
)

// Attachment names an interface of a container.
type Attachment struct {
	ContainerID string `json:"container-id"`
	IfName      string `json:"ifname"`
}

// Request is what porin-cni asks of the agent.
type Request struct {
	Version     int               `json:"version"`
	Command     Command           `json:"command"`
	Network     string            `json:"network"` // name of the network configuration
	ContainerID string            `json:"container-id,omitempty"`
	IfName      string            `json:"ifname,omitempty"`
	Netns       string            `json:"netns,omitempty"` // absolute path
	Namespace   string            `json:"namespace,omitempty"`
	Pod         string            `json:"pod,omitempty"`
	UID         string            `json:"uid,omitempty"`
	Args        map[string]string `json:"args,omitempty"`   // CNI_ARGS, all of them
	Labels      labels.Labels     `json:"labels,omitempty"` // from the configuration; not yet judged
	NamedPorts  []NamedPort       `json:"named-ports,omitempty"`
	MTU         int               `json:"mtu,omitempty"` // 0: the agent's

	Attachments []Attachment `json:"attachments,omitempty"` // GC: those that stay
	Prev        *Response    `json:"prev,omitempty"`        // CHECK: what ADD had returned
}

// NamedPort is a port of the workload that rules may name.
type NamedPort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol,omitempty"` // TCP (default), UDP, SCTP
	Port     uint16 `json:"port"`
}

// Interface of a result.
type Interface struct {
	Name    string `json:"name"`
	MAC     string `json:"mac,omitempty"`
	MTU     int    `json:"mtu,omitempty"`
	Sandbox string `json:"sandbox,omitempty"` // netns path; empty: the host's
}

// IP is an address of the workload's interface.
type IP struct {
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

// Route of the workload.
type Route struct {
	Dst     netip.Prefix `json:"dst"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

// Response is the agent's answer. With an Error the rest is empty.
type Response struct {
	Version  int       `json:"version"`
	Error    *Error    `json:"error,omitempty"`
	Endpoint uint16    `json:"endpoint,omitempty"`
	Host     Interface `json:"host,omitzero"`     // host side of the veth
	Workload Interface `json:"workload,omitzero"` // the workload's side
	IPs      []IP      `json:"ips,omitempty"`
	Routes   []Route   `json:"routes,omitempty"`
}

// Code is a CNI error code. Codes of 100 and up are porin's own.
type Code uint

// Codes of the CNI specification.
const (
	CodeIncompatibleVersion Code = 1
	CodeUnsupportedField    Code = 2
	CodeUnknownContainer    Code = 3
	CodeInvalidEnvironment  Code = 4
	CodeIO                  Code = 5
	CodeDecoding            Code = 6
	CodeInvalidConfig       Code = 7
	CodeInvalidNetns        Code = 8
	CodeTryAgainLater       Code = 11
	CodeNotAvailable        Code = 50
	CodeLimited             Code = 51
)

// Codes of porin.
const (
	CodeCheckFailed Code = 100 // CHECK found a difference
	CodeRefused     Code = 101 // the request is understood and not allowed: a reserved label, another's address
	CodeKernel      Code = 102 // the kernel did not do what the agent asked
)

// Error is an error in CNI's words.
type Error struct {
	Code    Code   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Errorf returns an *Error whose Msg says what was tried and whose Details say why it did not work.
func Errorf(code Code, msg, format string, args ...any) *Error {
	return &Error{Code: code, Msg: msg, Details: fmt.Sprintf(format, args...)}
}

// ErrTooLong is returned for a message above MaxMessage.
var ErrTooLong = errors.New("message too long")

// WriteMessage writes v as JSON behind its length (4 bytes, big endian), in one write.
func WriteMessage(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxMessage {
		return fmt.Errorf("write message of %d bytes: %w (limit %d)", len(body), ErrTooLong, MaxMessage)
	}
	frame := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	_, err = w.Write(append(frame, body...))
	return err
}

// ReadMessage reads one message into v.
func ReadMessage(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read message length: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxMessage {
		return fmt.Errorf("read message of %d bytes: %w (limit %d)", n, ErrTooLong, MaxMessage)
	}
	// Read as it comes: the length alone must not make us allocate 4 MiB for a peer that never sends them.
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return fmt.Errorf("read message of %d bytes: %w", n, err)
	}
	if len(body) != int(n) {
		return fmt.Errorf("read message: %d of %d bytes: %w", len(body), n, io.ErrUnexpectedEOF)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}
