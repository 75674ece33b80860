// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/config"
)

// Control and the data plane meet at a Unix socket of packets (SOCK_SEQPACKET). A message is a kind, a number, a
// payload, and descriptors of segments. The data plane listens; control asks, and gets one reply to each question.
type messageKind uint32

const (
	msgHello   messageKind = iota + 1 // answered by msgIdle or msgRunning
	msgStart                          // JSON startConfig; descriptors: state, generation, what of the state grows
	msgPublish                        // number; descriptor: generation
	msgStop                           // end in order
	msgOK
	msgFailed  // text
	msgIdle    // nothing runs yet
	msgRunning // number of the generation; JSON startConfig; descriptors as with msgStart
)

const (
	messageHeader = 16
	maxMessage    = 64 << 10
	defaultSocket = "/run/weir/dataplane.sock"
)

// startConfig is what the data plane needs beside the segments.
type startConfig struct {
	Log        config.Log
	Dataplane  config.Dataplane
	Ports      []startPort
	Supervised bool // a weir run started the process, and ends it when it ends in order
}

type startPort struct {
	Name, Device string
	MTU          int
	MAC          config.MAC
	Inside       bool
}

// conn is one end. It allocates nothing but in errors and for descriptors that it sends.
type conn struct {
	fd   int
	buf  [maxMessage]byte
	oob  [unix.SizeofCmsghdr + 4*4]byte // four descriptors; the kernel closes what is beyond
	fds  [4]int
	nfds int
	hdr  unix.Msghdr
	iov  unix.Iovec
}

// noConn is the descriptor of a conn without connection.
const noConn = -1

func (c *conn) Close() error {
	c.drop()
	err := unix.Close(c.fd)
	c.fd = noConn
	return err
}

// send writes one message.
func (c *conn) send(kind messageKind, number uint64, payload []byte, fds ...int) error {
	if messageHeader+len(payload) > maxMessage {
		return fmt.Errorf("a message of %d bytes; the socket takes %d", len(payload), maxMessage-messageHeader)
	}
	binary.LittleEndian.PutUint32(c.buf[:], uint32(kind))
	binary.LittleEndian.PutUint64(c.buf[8:], number)
	n := messageHeader + copy(c.buf[messageHeader:], payload)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		if err := unix.Sendmsg(c.fd, c.buf[:n], rights, nil, unix.MSG_NOSIGNAL); err != unix.EINTR {
			return err
		}
	}
}

// receive reads one message. The payload is good until the next call; the descriptors are the caller's to close, by
// take. io.EOF: the other side is gone.
func (c *conn) receive() (messageKind, uint64, []byte, error) {
	c.drop()
	c.iov = unix.Iovec{Base: &c.buf[0], Len: maxMessage}
	c.hdr = unix.Msghdr{Iov: &c.iov, Iovlen: 1, Control: &c.oob[0], Controllen: uint64(len(c.oob))}
	n, e := uintptr(0), unix.EINTR
	for e == unix.EINTR { // signals of Go's scheduler; on a socket with a timeout the kernel does not go on by itself
		n, _, e = unix.Syscall(unix.SYS_RECVMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&c.hdr)), unix.MSG_CMSG_CLOEXEC)
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
		return 0, 0, nil, fmt.Errorf("a message of more than %d bytes", maxMessage)
	case n < messageHeader:
		return 0, 0, nil, errors.New("a message without its header")
	}
	return messageKind(binary.LittleEndian.Uint32(c.buf[:])), binary.LittleEndian.Uint64(c.buf[8:]), c.buf[messageHeader:n], nil
}

// take hands descriptor i of the last message to the caller, or -1.
func (c *conn) take(i int) int {
	if i >= c.nfds {
		return -1
	}
	fd := c.fds[i]
	c.fds[i] = -1
	return fd
}

// drop closes the descriptors that nobody took.
func (c *conn) drop() {
	for _, fd := range c.fds[:c.nfds] {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	c.nfds = 0
}

// ask sends a question that is answered by msgOK. A msgFailed comes back as an error with its text.
func (c *conn) ask(kind messageKind, number uint64, payload any, fds ...int) error {
	var b []byte
	if payload != nil {
		var err error
		if b, err = json.Marshal(payload); err != nil {
			return err
		}
	}
	if err := c.send(kind, number, b, fds...); err != nil {
		return lost{err}
	}
	kind, _, _, err := c.answer()
	if err == nil && kind != msgOK {
		err = fmt.Errorf("the data plane answered with message %d: it is of another version", kind)
	}
	return err
}

// answer receives the answer to a question.
func (c *conn) answer() (messageKind, uint64, []byte, error) {
	kind, number, payload, err := c.receive()
	switch {
	case err != nil:
		return 0, 0, nil, lost{err}
	case kind == msgFailed:
		return 0, 0, nil, errors.New(string(payload))
	}
	return kind, number, payload, nil
}

// lost is an error of the connection: the other side died.
type lost struct{ err error }

func (l lost) Error() string { return "the data plane is gone: " + l.err.Error() }
func (l lost) Unwrap() error { return l.err }

// listen binds the data plane's socket. A socket file that nobody listens at is left over from a crash, and replaced.
func listen(path string) (int, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return -1, fmt.Errorf("socket %s: %w; choose another place with --socket", path, err)
	}
	if c, err := dial(path); err == nil {
		c.Close()
		return -1, fmt.Errorf("socket %s: another data plane listens there; stop it, or choose another place with --socket", path)
	}
	os.Remove(path)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	old := unix.Umask(0o077) // whoever may write there commands the gateway
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	unix.Umask(old)
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("socket %s: %w; choose another place with --socket", path, err)
	}
	return fd, nil
}

// dial connects to a data plane.
func dial(path string) (*conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	// A reply takes long only when huge amounts of memory are populated.
	tv := unix.Timeval{Sec: 60}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return &conn{fd: fd}, nil
}
