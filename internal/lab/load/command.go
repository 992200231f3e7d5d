package load

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// maxOps bounds one measurement.
const maxOps = 10_000_000

// Command returns the hidden command `lab load`, which is started in the two places to measure between.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "load",
		Short:  "Measure the CPU time of traffic between two places",
		Hidden: true,
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "server ADDR:PORT",
			Short: "Answer a client; 'mark' and 'cpu' on standard input tell the CPU time between them",
			Args:  cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				at, err := netip.ParseAddrPort(args[0])
				if err != nil {
					return fmt.Errorf("read the address: %w", err)
				}
				return Server(at, cmd.InOrStdin(), cmd.OutOrStdout())
			},
		},
		&cobra.Command{
			Use:   "client ADDR:PORT",
			Short: "Measure what standard input says, as 'rr 10000', 'crr 1000', 'stream 1000', 'udp 10000'",
			Args:  cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				to, err := netip.ParseAddrPort(args[0])
				if err != nil {
					return fmt.Errorf("read the address: %w", err)
				}
				return Client(to, cmd.InOrStdin(), cmd.OutOrStdout())
			},
		},
	)
	return cmd
}

// Server serves until standard input ends. To each line it answers the CPU time in ns since the line before.
func Server(at netip.AddrPort, in io.Reader, out io.Writer) error {
	tcp, udp, err := listen(at)
	if err != nil {
		return err
	}
	fail := make(chan error, 2)
	go serveTCP(tcp, fail)
	go serveUDP(udp, fail)
	if _, err := io.WriteString(out, "ready\n"); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	asked := make(chan error, 1)
	go func() { asked <- answerCPU(in, out) }()
	select {
	case err := <-fail:
		return err
	case err := <-asked:
		return err
	}
}

func answerCPU(in io.Reader, out io.Writer) error {
	last, err := cpu()
	if err != nil {
		return err
	}
	s := bufio.NewScanner(in)
	for s.Scan() {
		now, err := cpu()
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, int64(now-last)); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		last = now
	}
	return s.Err()
}

// Client makes the measurements that standard input asks for and answers each with one line of JSON.
func Client(to netip.AddrPort, in io.Reader, out io.Writer) error {
	runtime.LockOSThread()
	c := &client{to: to}
	enc := json.NewEncoder(out)
	s := bufio.NewScanner(in)
	for s.Scan() {
		mode, number, _ := strings.Cut(s.Text(), " ")
		ops, err := strconv.Atoi(number)
		if err != nil || ops < 1 || ops > maxOps {
			return fmt.Errorf("%q: write a kind and a number of operations up to %d, as 'rr 10000'", s.Text(), maxOps)
		}
		r, err := c.run(mode, ops)
		if err != nil {
			return err
		}
		if err := enc.Encode(r); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
	if err := s.Err(); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read commands: %w", err)
	}
	return nil
}
