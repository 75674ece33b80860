// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"io"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newPair returns the two ends of a connection, the first with a timeout as control's has one.
func newPair(t *testing.T) (control, plane *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}); err != nil {
		t.Fatal(err)
	}
	control, plane = &Conn{FD: fds[0]}, &Conn{FD: fds[1]}
	t.Cleanup(func() {
		for _, c := range []*Conn{control, plane} {
			if c.FD != NoConn {
				c.Close()
			}
		}
	})
	return control, plane
}

// Go's scheduler sends signals to threads that are in its way. One that meets a thread waiting for
// an answer must not look like a data plane that died.
func TestReceiveUnderSignals(t *testing.T) {
	control, plane := newPair(t)
	thread, answer := make(chan int), make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		kind, number, _, err := control.Receive()
		if err == nil && (kind != OK || number != 7) {
			err = errors.New("another message")
		}
		answer <- err
	}()
	waiting := <-thread
	for range 50 {
		if err := unix.Tgkill(unix.Getpid(), waiting, unix.SIGURG); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	if err := plane.Send(OK, 7, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err != nil {
		t.Errorf("receive: %v, expected the message that came after the signals", err)
	}
}

func TestAsk(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(plane *Conn) error
		want   string // the error; "": none
		lost   bool   // it says that the other side is gone
	}{
		{"ok", func(p *Conn) error { return p.Send(OK, 0, nil) }, "", false},
		{"failed", func(p *Conn) error { return p.Send(Failed, 0, []byte("no such core")) }, "no such core", false},
		{"gone", func(p *Conn) error { return p.Close() }, "the data plane is gone: EOF", true},
		{"another version", func(p *Conn) error { return p.Send(99, 0, nil) }, "the data plane answered with message 99: it has another version", false},
		{"cut", func(p *Conn) error { _, err := unix.Write(p.FD, []byte{5}); return err }, "the data plane is gone: message without a header", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			control, plane := newPair(t)
			answered := make(chan error)
			go func() {
				kind, number, payload, err := plane.Receive()
				if err == nil && (kind != Publish || number != 3 || string(payload) != `"x"`) {
					err = errors.New("the question is another one")
				}
				answered <- errors.Join(err, c.answer(plane))
			}()
			err := control.Ask(Publish, 3, "x")
			if e := <-answered; e != nil {
				t.Fatal(e)
			}
			if got := message(err); got != c.want {
				t.Errorf("ask: %q, expected %q", got, c.want)
			}
			if errors.As(err, new(Lost)) != c.lost {
				t.Errorf("ask: %v: lost is %v, expected %v", err, !c.lost, c.lost)
			}
		})
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Descriptors that nobody took are closed with the next message, and all of them with the
// connection.
func TestDescriptors(t *testing.T) {
	control, plane := newPair(t)
	var pipes [2]int
	if err := unix.Pipe2(pipes[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipes[0])
	if err := control.Send(Start, 0, nil, pipes[1], pipes[1]); err != nil {
		t.Fatal(err)
	}
	unix.Close(pipes[1]) // the sent ones are the pipe's only writers now
	if _, _, _, err := plane.Receive(); err != nil {
		t.Fatal(err)
	}
	taken, missing := plane.Take(1), plane.Take(2)
	if taken < 0 || missing != -1 {
		t.Errorf("take: %d and %d; expected a descriptor and -1", taken, missing)
	}
	if again := plane.Take(1); again != -1 {
		t.Errorf("taken twice: %d", again)
	}
	unix.Close(taken)
	if err := control.Send(Stop, 0, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := plane.Receive(); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(pipes[0], true); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(pipes[0], make([]byte, 1)); n != 0 || err != nil { // EAGAIN: a writer is left
		t.Errorf("the pipe's end is not closed: %d bytes, %v", n, err)
	}
	plane.Close()
	if _, _, _, err := control.Receive(); err != io.EOF {
		t.Errorf("receive from a closed connection: %v, expected EOF", err)
	}
}
