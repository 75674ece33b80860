// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// expectRefused wants exit code 1 and one line that says what is wrong.
func expectRefused(t *testing.T, p *process, text string) {
	t.Helper()
	if code := p.wait(t, patience); code != 1 {
		t.Errorf("%s exits with %d, expected 1", p.name, code)
	}
	said := 0
	for line := range strings.Lines(p.log()) {
		if program, rest, _ := strings.Cut(line, ": "); (program == "weir" || program == "weir-dataplane") && strings.Contains(rest, text) {
			said++
		}
	}
	if said != 1 {
		t.Errorf("%s says %q in %d lines, expected one", p.name, text, said)
	}
}

func TestRefusedStart(t *testing.T) {
	n := newNetwork(t)
	for _, c := range []struct {
		name   string
		change func(w *weir) []string // returns the arguments
		text   string
	}{
		{"no configuration", func(w *weir) []string {
			return []string{"run", "--config", filepath.Join(w.dir, "none.yaml"), "--socket", w.socket}
		}, "none.yaml: cannot be read: no such file or directory"},
		{"faulty configuration", func(w *weir) []string {
			w.write(t, replace(t, baseConfig, "side: outside", "side: upside"))
			return []string{"run", "--config", w.config, "--socket", w.socket}
		}, "weir.yaml:7"},
		{"no such interface", func(w *weir) []string {
			w.write(t, replace(t, baseConfig, "iface=outside", "iface=nowhere"))
			return []string{"run", "--config", w.config, "--socket", w.socket}
		}, "nowhere"},
		{"no such driver", func(w *weir) []string {
			w.write(t, replace(t, baseConfig, "net_af_packet1,iface=outside,framecnt=4096", "net_nothing1"))
			return []string{"run", "--config", w.config, "--socket", w.socket}
		}, "net_nothing1"},
		{"no such core", func(w *weir) []string {
			w.write(t, replace(t, baseConfig, "workers: [1]", "workers: [99]"))
			return []string{"run", "--config", w.config, "--socket", w.socket}
		}, "core 99"},
		{"no place for the socket", func(w *weir) []string {
			return []string{"run", "--config", w.config, "--socket", "/proc/weir/dataplane.sock"}
		}, "/proc/weir"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWeir(t, n, baseConfig)
			expectRefused(t, spawn(t, n.gateway, w.env(), c.change(w)...), c.text)
			w.expectNoDataplane(t, patience)
			if entries, err := os.ReadDir(filepath.Dir(w.socket)); err == nil && len(entries) > 0 {
				t.Errorf("left behind: %v", entries)
			}
		})
	}
}

// A second weir disturbs nothing and says what is in its way: the first one's socket, its
// interfaces, or its port.
func TestSecondWeir(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4)
	w := startWeir(t, n, baseConfig)
	s := startStream(t, n.guest, web4, remote4, 5*time.Millisecond)
	elsewhere := replace(t, baseConfig, "127.0.0.1:9474", "127.0.0.1:9475")

	for _, c := range []struct {
		name, config, socket, text string
	}{
		{"same socket", elsewhere, w.socket, "another weir run controls this data plane"},
		{"same interfaces", elsewhere, "", "another data plane uses it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			second := newWeir(t, n, c.config)
			socket := cmp.Or(c.socket, second.socket)
			expectRefused(t, spawn(t, n.gateway, second.env(), "run", "--config", second.config, "--socket", socket), c.text)
			w.dataplane(t)
		})
	}
	s.end()
	if _, sent := s.lost(); sent == 0 {
		t.Error("the stream has sent nothing")
	}
	s.expectWhole(t)
	w.expectBalance(t)
	w.stop(t)
}

// The words of the socket, as they stand on it.
const (
	wordHello   = 1
	wordStart   = 2
	wordPublish = 3
	wordFailed  = 6
)

// message is one message: kind, number, payload.
func message(kind uint32, number uint64, payload string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, kind)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, number)
	return append(b, payload...)
}

// dialSocket connects to a data plane as control does.
func dialSocket(t *testing.T, path string) (fd int, hangUp func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	hangUp = sync.OnceFunc(func() { unix.Close(fd) })
	t.Cleanup(hangUp)
	eventually(t, patience, "the data plane listens", func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) })
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	return fd, hangUp
}

// readMessage reads one message; 0 bytes or an error: the connection has ended.
func readMessage(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// Garbage on the socket ends the connection or, said to begin, the process with an error. It is
// never a panic.
func TestGarbage(t *testing.T) {
	n := newNetwork(t)
	r := rand.New(rand.NewPCG(1, 2))
	noise := func(size int) []byte {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	file := filepath.Join(t.TempDir(), "segment")
	if err := os.WriteFile(file, noise(1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	segment, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer segment.Close()

	for _, c := range []struct {
		name    string
		message []byte
		fds     []int
		answer  string // in the answer; "": the connection ends without one
		ends    bool   // the process too
	}{
		{"a byte", []byte{1}, nil, "", false},
		{"noise", noise(1000), nil, "another version", false},
		{"noise, much", append(message(77, 0, ""), noise(60000)...), nil, "another version", false},
		{"more than a message holds", append(message(wordHello, 0, ""), noise(70000)...), nil, "", false},
		{"an unknown word", message(99, 0, ""), nil, "another version", false},
		{"an answer", message(wordFailed, 0, "no"), nil, "another version", false},
		{"publish before start", message(wordPublish, 1, ""), nil, "another version", false},
		{"start without anything", message(wordStart, 0, ""), nil, "start:", true},
		{"start with noise", append(message(wordStart, 0, ""), noise(100)...), nil, "start:", true},
		{"start without segments", message(wordStart, 0, "{}"), nil, "no memory segments", true},
		{"start with one segment", message(wordStart, 0, "{}"), []int{int(segment.Fd())}, "no memory segments", true},
		{"start with two segments", message(wordStart, 0, "{}"), []int{int(segment.Fd()), int(segment.Fd())}, "no memory segments", true},
		{"start with devices", message(wordStart, 0, "{}"), []int{int(null.Fd()), int(null.Fd()), int(null.Fd())}, "not a segment of weir's", true},
		{"start with files of noise", message(wordStart, 0, "{}"), []int{int(segment.Fd()), int(segment.Fd()), int(segment.Fd())}, "not a segment of weir's", true},
		{"too many descriptors", message(wordHello, 0, ""), repeated(null.Fd(), 100), "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWeir(t, n, baseConfig)
			p := spawnDataplane(t, n.gateway, w.env(), "--socket", w.socket)
			fd, hangUp := dialSocket(t, w.socket)
			before := openFiles(t, p.Cmd.Process.Pid, os.DevNull)
			var rights []byte
			if c.fds != nil {
				rights = unix.UnixRights(c.fds...)
			}
			if err := unix.Sendmsg(fd, c.message, rights, nil, unix.MSG_NOSIGNAL); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 1<<16)
			k, _ := readMessage(fd, b)
			if c.answer != "" && !bytes.Contains(b[:k], []byte(c.answer)) {
				t.Errorf("answered %q, expected %q", b[:k], c.answer)
			}
			if c.ends {
				p.wait(t, patience)
			} else {
				// It still serves: hello is answered.
				hangUp()
				again, _ := dialSocket(t, w.socket)
				if err := unix.Sendmsg(again, message(wordHello, 0, ""), nil, nil, unix.MSG_NOSIGNAL); err != nil {
					t.Fatal(err)
				}
				if k, err := readMessage(again, b); err != nil || k < 16 {
					t.Errorf("afterwards hello is answered by %d bytes, %v", k, err)
				}
				if after := openFiles(t, p.Cmd.Process.Pid, os.DevNull); after != before {
					t.Errorf("%d descriptors that came with the message are left open", after-before)
				}
				p.signal(t, unix.SIGTERM)
				if code := p.wait(t, patience); code != 0 {
					t.Errorf("exit code %d after SIGTERM, expected 0", code)
				}
			}
			if s := p.log(); strings.Contains(s, "panic") || strings.Contains(s, "goroutine ") {
				t.Error("it panics")
			}
		})
	}
}

func repeated(fd uintptr, n int) (list []int) {
	for range n {
		list = append(list, int(fd))
	}
	return list
}

// openFiles returns how many descriptors of a process lead to path.
func openFiles(t *testing.T, pid int, path string) (count int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, _ := os.Readlink(filepath.Join(dir, e.Name())); target == path {
			count++
		}
	}
	return count
}
