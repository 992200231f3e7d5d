package cni

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"porin/internal/labels"
)

func TestMessages(t *testing.T) {
	var b bytes.Buffer
	want := Request{Version: 1, Command: Add, ContainerID: "c", Labels: labels.New(labels.Label{Source: "k8s", Key: "a", Value: "b"})}
	if err := WriteMessage(&b, want); err != nil {
		t.Fatal(err)
	}
	if n := binary.BigEndian.Uint32(b.Bytes()); int(n) != b.Len()-4 {
		t.Errorf("length %d, body %d", n, b.Len()-4)
	}
	whole := bytes.Clone(b.Bytes())
	var got Request
	if err := ReadMessage(&b, &got); err != nil || got.ContainerID != "c" || len(got.Labels) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	for n := range whole {
		if err := ReadMessage(bytes.NewReader(whole[:n]), &got); err == nil {
			t.Errorf("%d of %d bytes: no error", n, len(whole))
		}
	}
	if err := ReadMessage(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff, '{', '}'}), &got); !errors.Is(err, ErrTooLong) {
		t.Errorf("4 GiB announced: %v", err)
	}
	if err := WriteMessage(io.Discard, Request{ContainerID: strings.Repeat("x", MaxMessage)}); !errors.Is(err, ErrTooLong) {
		t.Errorf("too long to write: %v", err)
	}
}

func TestServeAnswersWhatIsBroken(t *testing.T) {
	n := newNode(t)
	n.reply = func(r Request) Response {
		if r.Command == Check {
			panic("bug")
		}
		return Response{}
	}
	n.agent()
	send := func(frame []byte) (r Response) {
		t.Helper()
		c, err := net.Dial("unix", filepath.Join(n.run, SocketName))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(frame); err != nil {
			t.Fatal(err)
		}
		c.(*net.UnixConn).CloseWrite()
		if err := ReadMessage(c, &r); err != nil {
			t.Fatalf("no answer: %v", err)
		}
		return r
	}
	frame := func(v any) []byte {
		var b bytes.Buffer
		if err := WriteMessage(&b, v); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for name, tc := range map[string]struct {
		frame []byte
		code  Code
	}{
		"empty":        {nil, CodeDecoding},
		"no json":      {[]byte{0, 0, 0, 1, '{'}, CodeDecoding},
		"long":         {[]byte{0xff, 0, 0, 0}, CodeDecoding},
		"newer":        {frame(Request{Version: WireVersion + 1}), CodeIncompatibleVersion},
		"without":      {frame(Request{}), CodeIncompatibleVersion},
		"handler dies": {frame(Request{Version: 1, Command: Check}), CodeTryAgainLater},
	} {
		if r := send(tc.frame); r.Error == nil || r.Error.Code != tc.code {
			t.Errorf("%s: %+v, want code %d", name, r.Error, tc.code)
		}
	}
	if r := send(frame(Request{Version: 1, Command: Status})); r.Error != nil {
		t.Errorf("after all that: %v", r.Error)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	n := newNode(t)
	l, err := net.Listen("unix", filepath.Join(n.run, SocketName)) // accepts by its backlog, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(t.Context(), filepath.Join(n.run, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, Request{Command: Status}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
}

func TestQueue(t *testing.T) {
	dir := DeletionsDir(t.TempDir())
	if done, err := Replay(dir, nil); done != 0 || err != nil {
		t.Errorf("no folder: %d, %v", done, err)
	}
	hostile := Deletion{ContainerID: "../../../etc/passwd", IfName: "a/b\n"}
	for _, d := range []Deletion{{ContainerID: "a", IfName: "eth0"}, {ContainerID: "b", IfName: "eth0"}, hostile} {
		if err := Queue(dir, d); err != nil {
			t.Fatal(err)
		}
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		info, _ := e.Info()
		if len(e.Name()) != 37 || strings.Trim(e.Name(), "0123456789abcdef") != ".json" || info.Mode().Perm() != 0o600 {
			t.Errorf("file %q, mode %s", e.Name(), info.Mode())
		}
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("folder's mode %s", info.Mode())
	}
	for name, content := range map[string]string{"junk.json": "{", "0123456789abcdef0123456789abcdef.json": `{"container-id":"c","ifname":"eth0"}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	boom := errors.New("boom")
	var seen []string
	done, err := Replay(dir, func(d Deletion) error {
		seen = append(seen, d.ContainerID)
		if d.ContainerID == "b" {
			return boom
		}
		return nil
	})
	if done != 2 || !errors.Is(err, boom) || strings.Count(err.Error(), "no use") != 2 || len(seen) != 3 {
		t.Errorf("%d done, %v, seen %q", done, err, seen)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 || !Queued(dir, "b", "eth0") {
		t.Errorf("what failed must stay, and only that: %v", entries)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Replay(dir, func(Deletion) error { t.Error("honoured"); return nil }); err == nil {
		t.Error("a folder that everyone can write to is read")
	}
	if err := Queue(dir, Deletion{ContainerID: "c", IfName: "eth0"}); err == nil {
		t.Error("a folder that everyone can write to is used")
	}
}

func TestQueueIsBounded(t *testing.T) {
	dir := DeletionsDir(t.TempDir())
	if err := Queue(dir, Deletion{ContainerID: "a", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	for i := range maxQueued - 1 {
		if err := os.WriteFile(filepath.Join(dir, "x"+strings.Repeat("y", i%200)+string(rune('a'+i/200))+".json"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Queue(dir, Deletion{ContainerID: "b", IfName: "eth0"}); err == nil || !strings.Contains(err.Error(), "start porin-agent") {
		t.Errorf("got %v", err)
	}
	if err := Queue(dir, Deletion{ContainerID: "a", IfName: "eth0"}); err != nil {
		t.Errorf("one that waits already: %v", err)
	}
}

func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		`{"cniVersion":"1.1.0","name":"n","type":"porin-cni"}`,
		`{"cniVersion":"0.4.0","name":"n","type":"porin-cni","mtu":1400,"args":{"cni":{"labels":[{"key":"a","value":"b"}]}}}`,
		`{"name":"n","type":"porin-cni","args":{"org.apache.mesos":{"network_info":{"labels":{"labels":[{"key":"a","value":"b"}]}}}}}`,
		`{"cniVersion":"1.0.0","name":"n","type":"porin-cni","prevResult":{"cniVersion":"1.0.0","interfaces":[null,{"name":"eth0","sandbox":"/x","mac":"m"}],"ips":[{"interface":1,"address":"10.0.0.1/32"}]}}`,
		`{"cniVersion":"0.3.1","name":"n","type":"porin-cni","prevResult":{"interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"version":"6","interface":0,"address":"fd00::1/128"}]}}`,
		`{"name":"n","type":"porin-cni","run-dir":"/a/../b"}`,
		`{"name":"n","type":"porin-cni","cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}`,
	} {
		f.Add([]byte(seed), "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b")
	}
	f.Fuzz(func(t *testing.T, data []byte, args string) {
		c, err := ParseConfig(data)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Code == 0 || e.Msg == "" {
				t.Fatalf("not a CNI error: %v", err)
			}
			return
		}
		for _, p := range []string{c.RunDir, c.StateDir} {
			if !cleanPath(p) {
				t.Fatalf("accepted the path %q", p)
			}
		}
		if c.MTU != 0 && c.MTU < 576 {
			t.Fatalf("accepted mtu %d", c.MTU)
		}
		pairs, err := ParseArgs(args)
		if err == nil {
			ls, err := c.labels(pairs["K8S_POD_NAMESPACE"] != "")
			for _, l := range ls {
				if labels.IsTrusted(l.Key) || l.Source == labels.SourceReserved || !printable(l.String()) {
					t.Fatalf("accepted label %q (%v)", l, err)
				}
			}
		}
		if prev, err := c.previous("eth0"); err == nil {
			if prev.Workload.Name != "eth0" {
				t.Fatalf("previous result without the interface: %+v", prev)
			}
			if _, err := json.Marshal(prev); err != nil {
				t.Fatal(err)
			}
		}
	})
}
