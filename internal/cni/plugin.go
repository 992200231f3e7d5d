package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
)

// Version of the binary; the linker sets it.
var Version = "unknown"

// plugin is one run of porin-cni.
type plugin struct {
	wait    time.Duration // how long ADD waits for an agent that is away
	timeout time.Duration // how long the agent may take
	stdout  io.Writer
	now     func() time.Time
}

// Main runs the plugin as the environment and standard input say and returns its exit code. The answer, be it an
// error, goes to standard output as JSON.
func Main() int {
	debug.SetGCPercent(-1) // it ends before there is anything to collect
	runtime.GOMAXPROCS(1)  // it does one thing at a time: while it waits, Go's own threads sleep too
	p := plugin{wait: 3 * time.Second, timeout: 90 * time.Second, stdout: os.Stdout, now: time.Now}
	return p.run(os.Getenv, os.Stdin)
}

// log never fails a call: it is for people.
func (c *Config) log(at time.Time, took time.Duration, a *callArgs, err error) {
	if c.LogFile == "" {
		return
	}
	f, e := os.OpenFile(c.LogFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if e != nil {
		fmt.Fprintf(os.Stderr, "porin-cni: log: %v\n", e)
		return
	}
	defer f.Close()
	result := "ok"
	if err != nil {
		result = err.Error()
	}
	fmt.Fprintf(f, "%s %s network=%q container=%q ifname=%q netns=%q args=%q took=%s result=%q\n",
		at.UTC().Format(time.RFC3339Nano), a.Command, c.Name, a.ContainerID, a.IfName, a.Netns, a.Args, took, result)
}

// reach connects to the agent; one that is away is waited for.
func (p plugin) reach(ctx context.Context, c *Config, wait time.Duration) (*Client, error) {
	deadline := p.now().Add(wait)
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		client, err := Dial(ctx, c.Socket())
		switch {
		case err == nil:
			return client, nil
		case errors.Is(err, syscall.EACCES):
			return nil, fmt.Errorf("%w: needs root: run with sudo", err)
		case !away(err) || p.now().Add(pause).After(deadline):
			return nil, fmt.Errorf("%w; is porin-agent running?", err)
		}
		time.Sleep(pause)
		if ctx.Err() != nil {
			return nil, err
		}
	}
}

// away tells whether err means that no agent listens, rather than that we may not ask.
func away(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EAGAIN)
}

func (p plugin) add(ctx context.Context, c *Config, a *callArgs) error {
	if len(c.PrevResult) > 0 && string(c.PrevResult) != "null" {
		return Errorf(CodeInvalidConfig, "add the interface", "prevResult is given: porin-cni makes the interface itself and must be the first plugin of its list")
	}
	req, err := c.request(Add, a)
	if err != nil {
		return err
	}
	if err := CheckNetns(a.Netns); err != nil {
		return err
	}
	client, err := p.reach(ctx, c, p.wait)
	if err != nil {
		return Errorf(CodeTryAgainLater, "add the interface", "%v", err)
	}
	// An earlier container of this name may still wait to be deleted: the order must hold.
	if Queued(DeletionsDir(c.StateDir), a.ContainerID, a.IfName) {
		if _, err := client.call(ctx, Request{Command: Del, Network: c.Name, ContainerID: a.ContainerID, IfName: a.IfName}); err != nil {
			return Errorf(CodeTryAgainLater, "delete the earlier interface of this name", "%v", err)
		}
		if err := Unqueue(DeletionsDir(c.StateDir), a.ContainerID, a.IfName); err != nil {
			return Errorf(CodeIO, "delete the earlier interface of this name", "%v", err)
		}
		if client, err = p.reach(ctx, c, p.wait); err != nil {
			return Errorf(CodeTryAgainLater, "add the interface", "%v", err)
		}
	}
	resp, err := client.call(ctx, req)
	if err != nil {
		return err
	}
	out, err := resp.result(c)
	if err != nil {
		return Errorf(CodeDecoding, "read the agent's answer", "%v", err)
	}
	_, err = p.stdout.Write(out)
	return err
}

// call is Call with both kinds of errors as one: no answer means ask again later.
func (c *Client) call(ctx context.Context, req Request) (Response, error) {
	resp, err := c.Call(ctx, req)
	if err != nil {
		return resp, Errorf(CodeTryAgainLater, string(req.Command), "%v", err)
	}
	if resp.Error != nil {
		return resp, resp.Error
	}
	return resp, nil
}

// del deletes now, or as soon as the agent is back. Its network namespace does not matter, and may be gone.
func (p plugin) del(ctx context.Context, c *Config, a *callArgs) error {
	req := Request{Command: Del, Network: c.Name, ContainerID: a.ContainerID, IfName: a.IfName, Netns: a.Netns}
	dir := DeletionsDir(c.StateDir)
	queued := false
	for range 2 {
		client, err := p.reach(ctx, c, 0)
		if err == nil {
			_, err = client.call(ctx, req)
		}
		var e *Error
		switch {
		case err == nil:
			if queued || Queued(dir, a.ContainerID, a.IfName) {
				return Unqueue(dir, a.ContainerID, a.IfName)
			}
			return nil
		case errors.As(err, &e) && e.Code != CodeTryAgainLater:
			return err
		case queued:
			return nil
		}
		if err := Queue(dir, Deletion{ContainerID: a.ContainerID, IfName: a.IfName, Network: c.Name, Time: p.now()}); err != nil {
			return Errorf(CodeTryAgainLater, "queue the deletion until porin-agent is back", "%v", err)
		}
		queued = true // and once more: the agent may have come up and read the queue just before
	}
	return nil
}

func (p plugin) check(ctx context.Context, c *Config, a *callArgs) error {
	req, err := c.request(Check, a)
	if err != nil {
		return err
	}
	if req.Prev, err = c.previous(a.IfName); err != nil {
		return err
	}
	if err := CheckNetns(a.Netns); err != nil {
		return err
	}
	client, err := p.reach(ctx, c, p.wait)
	if err != nil {
		return Errorf(CodeTryAgainLater, "check the interface", "%v", err)
	}
	_, err = client.call(ctx, req)
	return err
}

func (p plugin) status(ctx context.Context, c *Config, _ *callArgs) error {
	client, err := p.reach(ctx, c, 0)
	if err != nil {
		return Errorf(CodeNotAvailable, "ask the agent", "%v", err)
	}
	resp, err := client.Call(ctx, Request{Command: Status, Network: c.Name})
	if err != nil {
		return Errorf(CodeNotAvailable, "ask the agent", "%v", err)
	}
	if resp.Error != nil {
		return resp.Error
	}
	return nil
}

func (p plugin) gc(ctx context.Context, c *Config, _ *callArgs) error {
	if c.ValidAttachments == nil {
		return Errorf(CodeInvalidConfig, "collect garbage", "cni.dev/valid-attachments is missing; without it nothing can be told to be garbage")
	}
	req := Request{Command: GC, Network: c.Name}
	var valid []struct {
		ContainerID string `json:"containerID"`
		IfName      string `json:"ifname"`
	}
	if err := json.Unmarshal(c.ValidAttachments, &valid); err != nil {
		return Errorf(CodeInvalidConfig, "read cni.dev/valid-attachments", "%v", err)
	}
	for _, at := range valid {
		req.Attachments = append(req.Attachments, Attachment{ContainerID: at.ContainerID, IfName: at.IfName})
	}
	client, err := p.reach(ctx, c, p.wait)
	if err != nil {
		return Errorf(CodeTryAgainLater, "collect garbage", "%v", err)
	}
	_, err = client.call(ctx, req)
	return err
}
