// SPDX-License-Identifier: Apache-2.0

// Package link is what the two processes share: the messages that pass between control and the data
// plane, the form of their logs, and their clock.
package link

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/config"
)

// Kind says what a message is. Control and the data plane meet at a Unix socket of packets
// (SOCK_SEQPACKET). A message is a kind, a number, a payload, and descriptors of segments. The data
// plane listens; control asks, and gets one reply to each question.
type Kind uint32

// The messages. Hello, Start, Publish and Stop are control's; the others answer them.
const (
	Hello   Kind = iota + 1 // answered by Idle or Running
	Start                   // JSON StartConfig; descriptors: state, generation, what of the state grows
	Publish                 // number; descriptor: generation
	Stop                    // end in order
	OK
	Failed  // text
	Idle    // nothing runs yet
	Running // number of the generation; JSON StartConfig; descriptors as with Start
)

// DefaultSocket is where a data plane listens that nobody tells otherwise.
const DefaultSocket = RunDirectory + "/dataplane.sock"

// RunDirectory is the data plane's.
const RunDirectory = "/run/weir-dataplane"

const (
	messageHeader = 16
	maxMessage    = 64 << 10
)

// StartConfig is what the data plane needs beside the segments.
type StartConfig struct {
	Log        config.Log
	Dataplane  config.Dataplane
	Ports      []StartPort
	Supervised bool // a weir run started the process, and ends it when it ends in order
	Empty      bool // it is to begin without the sessions that the state has
}

// StartPort is a port of StartConfig.
type StartPort struct {
	Name, Device string
	MTU          int
	MAC          config.MAC
	VLAN         config.VLAN // outside
	Inside       bool
	Shared       bool // set by the data plane: ports of both sides are on the device
}

// Conn is one end. It allocates nothing but in errors and for descriptors that it sends.
type Conn struct {
	FD   int
	buf  [maxMessage]byte
	oob  [unix.SizeofCmsghdr + 4*4]byte // four descriptors; the kernel closes what is beyond
	fds  [4]int
	nfds int
	hdr  unix.Msghdr
	iov  unix.Iovec
}

// NoConn is the descriptor of a Conn without connection.
const NoConn = -1

func (c *Conn) Close() error {
	c.drop()
	err := unix.Close(c.FD)
	c.FD = NoConn
	return err
}

// Send writes one message.
func (c *Conn) Send(kind Kind, number uint64, payload []byte, fds ...int) error {
	if messageHeader+len(payload) > maxMessage {
		return fmt.Errorf("message of %d bytes; expected at most %d", len(payload), maxMessage-messageHeader)
	}
	binary.LittleEndian.PutUint32(c.buf[:], uint32(kind))
	binary.LittleEndian.PutUint64(c.buf[8:], number)
	n := messageHeader + copy(c.buf[messageHeader:], payload)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		if err := unix.Sendmsg(c.FD, c.buf[:n], rights, nil, unix.MSG_NOSIGNAL); err != unix.EINTR {
			return err
		}
	}
}

// Receive reads one message. The payload is good until the next call; the descriptors are the
// caller's to close, by Take. io.EOF: the other side is gone.
func (c *Conn) Receive() (Kind, uint64, []byte, error) {
	c.drop()
	c.iov = unix.Iovec{Base: &c.buf[0], Len: maxMessage}
	c.hdr = unix.Msghdr{Iov: &c.iov, Iovlen: 1, Control: &c.oob[0], Controllen: uint64(len(c.oob))}
	n, e := uintptr(0), unix.EINTR
	for e == unix.EINTR { // signals of Go's scheduler; on a socket with a timeout the kernel does not go on by itself
		n, _, e = unix.Syscall(unix.SYS_RECVMSG, uintptr(c.FD), uintptr(unsafe.Pointer(&c.hdr)), unix.MSG_CMSG_CLOEXEC)
	}
	switch {
	case e == unix.ECONNRESET || e == 0 && n == 0:
		return 0, 0, nil, io.EOF
	case e != 0:
		return 0, 0, nil, e
	}
	// One control message: SOL_SOCKET, SCM_RIGHTS, then the descriptors as 32-bit numbers.
	if used := c.oob[:c.hdr.Controllen]; len(used) >= unix.SizeofCmsghdr {
		for d := used[unix.SizeofCmsghdr:binary.LittleEndian.Uint64(used)]; len(d) >= 4 && c.nfds < len(c.fds); d = d[4:] {
			c.fds[c.nfds] = int(int32(binary.LittleEndian.Uint32(d)))
			c.nfds++
		}
	}
	switch {
	case c.hdr.Flags&unix.MSG_TRUNC != 0:
		return 0, 0, nil, fmt.Errorf("message of more than %d bytes; expected at most that", maxMessage)
	case n < messageHeader:
		return 0, 0, nil, errors.New("message without a header")
	}
	return Kind(binary.LittleEndian.Uint32(c.buf[:])), binary.LittleEndian.Uint64(c.buf[8:]), c.buf[messageHeader:n], nil
}

// Take hands descriptor i of the last message to the caller, or -1.
func (c *Conn) Take(i int) int {
	if i >= c.nfds {
		return -1
	}
	fd := c.fds[i]
	c.fds[i] = -1
	return fd
}

// drop closes the descriptors that nobody took.
func (c *Conn) drop() {
	for _, fd := range c.fds[:c.nfds] {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	c.nfds = 0
}

// How long an answer may take.
const (
	answerWithin = 20 * time.Second
	startWithin  = 2 * time.Minute
)

// Patience says how long to wait for the next message.
func (c *Conn) Patience(limit time.Duration) error {
	tv := unix.NsecToTimeval(limit.Nanoseconds())
	return unix.SetsockoptTimeval(c.FD, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

// Ask sends a question that is answered by OK. A Failed comes back as an error with its text.
func (c *Conn) Ask(kind Kind, number uint64, payload any, fds ...int) error {
	var b []byte
	if payload != nil {
		var err error
		if b, err = json.Marshal(payload); err != nil {
			return err
		}
	}
	// A start takes long when huge amounts of memory are populated.
	limit := answerWithin
	if kind == Start {
		limit = startWithin
	}
	if err := c.Patience(limit); err != nil {
		return Lost{err}
	}
	if err := c.Send(kind, number, b, fds...); err != nil {
		return Lost{err}
	}
	kind, _, _, err := c.Answer()
	if err == nil && kind != OK {
		err = fmt.Errorf("the data plane answered with message %d: it has another version", kind)
	}
	return err
}

// Answer receives the answer to a question.
func (c *Conn) Answer() (Kind, uint64, []byte, error) {
	kind, number, payload, err := c.Receive()
	switch {
	case err != nil:
		return 0, 0, nil, Lost{err}
	case kind == Failed:
		return 0, 0, nil, errors.New(string(payload))
	}
	return kind, number, payload, nil
}

// Lost is an error of the connection: the other side died.
type Lost struct{ Err error }

func (l Lost) Error() string { return "the data plane is gone: " + l.Err.Error() }
func (l Lost) Unwrap() error { return l.Err }

// Listen binds the data plane's socket. The group may connect; who commands is asked of each that
// does.
func Listen(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	listening := func() bool {
		c, err := Dial(path)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	err = Bind(path, listening, func() error { return unix.Bind(fd, &unix.SockaddrUnix{Name: path}) })
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		unix.Close(fd)
		if err == ErrInUse {
			return -1, fmt.Errorf("socket %s: another data plane listens there; stop it, or choose another path with --socket", path)
		}
		return -1, fmt.Errorf("socket %s: %w; choose another path with --socket", path, err)
	}
	return fd, nil
}

// Dial connects to a data plane.
func Dial(path string) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := CheckDirectory(filepath.Dir(path)); err != nil && !os.IsNotExist(err) {
		unix.Close(fd)
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if err := checkPeer(fd, path); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	c := &Conn{FD: fd}
	if err := c.Patience(answerWithin); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return c, nil
}
