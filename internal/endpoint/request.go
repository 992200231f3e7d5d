package endpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"porin/internal/labels"
	"porin/internal/policy"
)

// Sentinels that callers branch on.
var (
	ErrNotFound = errors.New("no such endpoint")
	ErrInvalid  = errors.New("not acceptable")               // the request is wrong; asking again does not help
	ErrRefused  = errors.New("refused")                      // the request claims what it may not: reserved labels, another's attachment
	ErrNotReady = errors.New("the agent is not ready yet")   // no policy in force yet; ask again
	ErrDiffers  = errors.New("differs from what was set up") // CHECK
)

// Limits of what a request may carry; far above what orchestrators send.
const (
	maxLabels     = 512
	maxLabelBytes = 64 << 10
	maxMTU        = 65535
	minMTUv4      = 576
	minMTUv6      = 1280
)

// Attachment names an interface of a container.
type Attachment struct {
	ContainerID string
	IfName      string
}

func (a Attachment) String() string { return a.ContainerID + ":" + a.IfName }

// DeviceName is the host side's name of an attachment's veth. It follows from the attachment alone, so that a device is
// found again when everything else that knew of it is lost. The datapath knows pod devices by this form.
func (a Attachment) DeviceName() string {
	sum := sha256.Sum256([]byte(a.ContainerID + "\x00" + a.IfName))
	return "pn" + hex.EncodeToString(sum[:5])
}

// Request asks for an endpoint.
type Request struct {
	ContainerID string
	IfName      string // in the workload
	Netns       string // path of the workload's network namespace
	Network     string // name of the CNI network, for GC
	Namespace   string // Kubernetes namespace, or empty
	Pod         string
	UID         string
	Labels      labels.Labels // as given from outside; porin adds those that it alone may give
	MTU         int           // 0: the node's
	NamedPorts  []policy.NamedPort
	Health      bool // the node's own health endpoint, with the reserved identity; said by the agent alone
}

// Attachment of the request.
func (r Request) Attachment() Attachment { return Attachment{r.ContainerID, r.IfName} }

var (
	idPattern        = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,252}$`)
	namespacePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	podPattern       = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
	sourcePattern    = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
)

// Validate refuses what must not reach a file name, the kernel or an identity. Whoever asks has checked already and
// explains better; this is the check that counts.
func (r Request) Validate() error {
	if err := r.Attachment().Validate(); err != nil {
		return err
	}
	if err := checkNetns(r.Netns); err != nil {
		return err
	}
	switch {
	case r.Network != "" && !idPattern.MatchString(r.Network):
		return fmt.Errorf("network name %q: only letters, digits, '.', '_' and '-': %w", r.Network, ErrInvalid)
	case r.Namespace != "" && !namespacePattern.MatchString(r.Namespace):
		return fmt.Errorf("namespace %q: only lower-case letters, digits and '-', at most 63: %w", r.Namespace, ErrInvalid)
	case r.Pod != "" && !podPattern.MatchString(r.Pod):
		return fmt.Errorf("pod name %q: only lower-case letters, digits, '-' and '.', at most 253: %w", r.Pod, ErrInvalid)
	case r.Pod != "" && r.Namespace == "":
		return fmt.Errorf("pod %q has no namespace: %w", r.Pod, ErrInvalid)
	case r.UID != "" && !idPattern.MatchString(r.UID):
		return fmt.Errorf("pod uid %q: only letters, digits, '.', '_' and '-': %w", r.UID, ErrInvalid)
	case r.MTU < 0 || r.MTU > maxMTU || (r.MTU > 0 && r.MTU < minMTUv4):
		return fmt.Errorf("mtu %d: between %d (IPv6: %d) and %d, or 0 for the node's: %w", r.MTU, minMTUv4, minMTUv6, maxMTU, ErrInvalid)
	}
	if _, err := checkPorts(r.NamedPorts); err != nil {
		return err
	}
	return CheckLabels(r.Labels)
}

// Validate refuses names that are no container's or no interface's.
func (a Attachment) Validate() error {
	if !idPattern.MatchString(a.ContainerID) {
		return fmt.Errorf("container id %q: only letters, digits, '.', '_' and '-', at most 253: %w", a.ContainerID, ErrInvalid)
	}
	n := a.IfName
	bad := strings.ContainsFunc(n, func(r rune) bool {
		return r == '/' || r == ':' || r == '%' || r > unicode.MaxASCII || unicode.IsSpace(r) || unicode.IsControl(r)
	})
	if n == "" || len(n) > 15 || n == "." || n == ".." || n == "lo" || n == "all" || n == "default" || bad {
		return fmt.Errorf("interface name %q: 1 to 15 printable characters without '/', ':', '%%' and spaces, and not lo, all, default: %w", n, ErrInvalid)
	}
	return nil
}

func checkNetns(path string) error {
	switch {
	case path == "":
		return fmt.Errorf("network namespace: the path is empty: %w", ErrInvalid)
	case len(path) > 4095 || !filepath.IsAbs(path) || filepath.Clean(path) != path ||
		strings.ContainsFunc(path, func(r rune) bool { return unicode.IsControl(r) || r == utf8.RuneError }):
		return fmt.Errorf("network namespace %q: must be a clean absolute path: %w", path, ErrInvalid)
	}
	return nil
}

// reservedSources are given by porin alone: who could bring such a label could pass for someone else.
var reservedSources = map[string]bool{
	labels.SourceReserved: true, labels.SourceCIDR: true, labels.SourceCIDRGroup: true, labels.SourceFQDN: true,
	labels.SourceNode: true, labels.SourceGen: true,
}

// CheckLabels refuses labels that a workload may not bring along.
func CheckLabels(ls labels.Labels) error {
	if len(ls) > maxLabels {
		return fmt.Errorf("%d labels: at most %d: %w", len(ls), maxLabels, ErrInvalid)
	}
	total := 0
	for _, l := range ls {
		if total += len(l.Key) + len(l.Value); total > maxLabelBytes {
			return fmt.Errorf("labels: more than %d bytes together: %w", maxLabelBytes, ErrInvalid)
		}
		text := l.Key + l.Value
		switch {
		case !sourcePattern.MatchString(l.Source) || l.Source == labels.SourceAny:
			return fmt.Errorf("label %q: source %q: 1 to 32 lower-case letters, digits or '-', and not any: %w", l, l.Source, ErrInvalid)
		case l.Key == "" || len(l.Key) > 317 || strings.ContainsAny(l.Key, "=;"):
			return fmt.Errorf("label %q: key %q: 1 to 317 characters without '=' and ';': %w", l, l.Key, ErrInvalid)
		case !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl):
			return fmt.Errorf("label %q: control characters and broken UTF-8 are not allowed: %w", l, ErrInvalid)
		case reservedSources[l.Source]:
			return fmt.Errorf("label %q: labels of source %s are given by porin alone: %w", l, l.Source, ErrRefused)
		case labels.IsTrusted(l.Key): // whatever the source: selectors without a source match any
			return fmt.Errorf("label %q: this key is given by porin alone, it says where a workload lives: %w", l, ErrRefused)
		}
	}
	return nil
}

// allLabels is what was given plus what porin itself gives.
func allLabels(given labels.Labels, namespace string) labels.Labels {
	if namespace == "" {
		return given
	}
	return labels.New(append(given[:len(given):len(given)], labels.Label{Source: labels.SourceK8s, Key: labels.KeyNamespace, Value: namespace})...)
}
