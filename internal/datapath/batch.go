package datapath

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// batch is a list of route netlink requests that travel in one message. The kernel carries them out in order while the
// message is sent, so a workload's whole side costs two system calls. With a request at a time the calls, and the
// scheduler that waits for them, were half the CPU of an endpoint.
type batch struct {
	what []string
	data []byte
}

// add appends a request. what says for an error message what is tried.
func (b *batch) add(what string, kind, flags int, parts ...nl.NetlinkRequestData) {
	req := nl.NewNetlinkRequest(kind, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	req.Seq = uint32(len(b.what))
	for _, p := range parts {
		req.AddData(p)
	}
	b.what = append(b.what, what)
	b.data = append(b.data, req.Serialize()...)
	for len(b.data)%unix.NLMSG_ALIGNTO != 0 {
		b.data = append(b.data, 0)
	}
}

// run carries the requests out in the namespace of the calling thread and returns the links that the kernel described. All
// are tried; the first error is returned.
func (b *batch) run() (links []netlink.Link, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	defer unix.Close(fd)
	// the kernel answers before the send returns, so a missing answer never comes
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	if err := unix.Sendto(fd, b.data, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("netlink send: %w", err)
	}
	buf := make([]byte, 32<<10)
	for acked := 0; acked < len(b.what); {
		n, _, e := unix.Recvfrom(fd, buf, 0)
		if e == unix.EINTR {
			continue
		}
		if e != nil {
			return nil, fmt.Errorf("netlink answer: %w", e)
		}
		messages, e := syscall.ParseNetlinkMessage(buf[:n])
		if e != nil {
			return nil, fmt.Errorf("netlink answer: %w", e)
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.NLMSG_ERROR:
				acked++
				if errno := -int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 && err == nil {
					err = fmt.Errorf("%s: %w", b.what[m.Header.Seq], unix.Errno(errno))
				}
			case unix.RTM_NEWLINK:
				l, e := netlink.LinkDeserialize(nil, append([]byte(nil), m.Data...))
				if e != nil {
					return nil, fmt.Errorf("netlink answer: %w", e)
				}
				links = append(links, l)
			}
		}
	}
	return links, err
}

// one runs a batch that asks for one link.
func (b *batch) one() (netlink.Link, error) {
	links, err := b.run()
	if err != nil {
		return nil, err
	}
	if len(links) != 1 {
		return nil, fmt.Errorf("netlink: %d links described, asked for one", len(links))
	}
	return links[0], nil
}

// linkHead is the head of a request about a device.
func linkHead(index int, flags, change uint32) *nl.IfInfomsg {
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index, head.Flags, head.Change = int32(index), flags, change
	return head
}

// setUp brings a device up.
func (b *batch) setUp(what string, index int) {
	b.add("bring up "+what, unix.RTM_NEWLINK, 0, linkHead(index, unix.IFF_UP, unix.IFF_UP))
}

func attr(kind int, data []byte) *nl.RtAttr { return nl.NewRtAttr(kind, data) }

func attr32(kind int, v uint32) *nl.RtAttr { return nl.NewRtAttr(kind, nl.Uint32Attr(v)) }
