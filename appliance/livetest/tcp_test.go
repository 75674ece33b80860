// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/deploy/lab"
	"weir/pipeline/header"
)

// linePort is where lines are served.
const linePort = 7009

// serveLines answers each line of a TCP connection with the address that it came from, and closes
// after "bye".
func serveLines(t *testing.T, n *namespace, address netip.Addr) {
	t.Helper()
	serve(t, n, lab.Service{Port: linePort, TCP: func(c *net.TCPConn) {
		for s := bufio.NewScanner(c); s.Scan(); {
			if fmt.Fprintln(c, c.RemoteAddr()); s.Text() == "bye" {
				return
			}
		}
	}}, address)
}

// dialLines connects from a given port.
func dialLines(n *namespace, from netip.AddrPort, remote netip.Addr) (c *net.TCPConn, err error) {
	err = n.Do(func() error {
		d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(from), Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		}}
		x, err := d.Dial("tcp", netip.AddrPortFrom(remote, linePort).String())
		if err == nil {
			c = x.(*net.TCPConn)
			c.SetDeadline(time.Now().Add(patience))
		}
		return err
	})
	return c, err
}

// askLine sends a line and returns where the server saw it come from.
func askLine(c *net.TCPConn, line string) (seen netip.AddrPort, err error) {
	c.SetDeadline(time.Now().Add(patience))
	if _, err = fmt.Fprintln(c, line); err != nil {
		return seen, err
	}
	var text string
	if _, err = fmt.Fscanln(c, &text); err != nil {
		return seen, err
	}
	return netip.ParseAddrPort(text)
}

// A client that is bound to one port connects again and again, through SNAT and 1:1, both families;
// the server closes and waits, or the client aborts. No connection hangs.
func TestSamePort(t *testing.T) {
	n := newNetwork(t)
	serveLines(t, n.internet, remote4)
	serveLines(t, n.internet, remote6)
	w := startWeir(t, n, baseConfig)
	for _, f := range []struct{ from, to netip.Addr }{{batch4, remote4}, {web4, remote4}, {web6, remote6}} {
		from := netip.AddrPortFrom(f.from, 56000)
		var first netip.AddrPort
		for i := range 20 {
			var c *net.TCPConn
			eventually(t, patience, fmt.Sprintf("connection %d from %v", i, from), func() (err error) {
				c, err = dialLines(n.guest, from, f.to)
				if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) { // the last acknowledgment is on its way
					t.Fatalf("connection %d from %v: %v", i, from, err)
				}
				return err
			})
			line := "bye"
			if i%2 == 1 {
				line = "hello"
			}
			seen, err := askLine(c, line)
			if err != nil {
				t.Fatalf("connection %d, open, from %v: %v", i, from, err)
			}
			if i == 0 {
				first = seen
			} else if seen != first {
				t.Errorf("connection %d from %v was seen as %v, the first one as %v", i, from, seen, first)
			}
			if line == "bye" {
				if _, err := io.Copy(io.Discard, c); err != nil {
					t.Errorf("connection %d from %v: %v", i, from, err)
				}
			} else {
				c.SetLinger(0)
			}
			c.Close()
		}
	}
	if drops := w.scrape(t).get(t, reason("tcp_reset_out_of_window")); drops != 0 {
		t.Errorf("%v resets of proper hosts were dropped", drops)
	}
	w.expectBalance(t)
	w.stop(t)
}

// Somebody who sees nothing sends resets in the server's name to every port of the SNAT address,
// and then very many to the right one. The connection goes on, one that was idle meanwhile too.
func TestSpoofedResets(t *testing.T) {
	n := newNetwork(t)
	serveLines(t, n.internet, remote4)
	w := startWeir(t, n, baseConfig)
	busy, err := dialLines(n.guest, netip.AddrPortFrom(batch4, 0), remote4)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	idle, err := dialLines(n.guest, netip.AddrPortFrom(batch4, 0), remote4)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if _, err := askLine(idle, "before"); err != nil {
		t.Fatal(err)
	}
	seen, err := askLine(busy, "before")
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if err := n.internet.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet4{Addr: batchPublic4.As4()}
	rnd := rand.New(rand.NewPCG(1, 1))
	spoof := func(port uint16) {
		b := make([]byte, 40)
		b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_TCP
		binary.BigEndian.PutUint16(b[2:], 40)
		copy(b[12:], remote4.AsSlice())
		copy(b[16:], batchPublic4.AsSlice())
		segment := b[20:]
		binary.BigEndian.PutUint16(segment, linePort)
		binary.BigEndian.PutUint16(segment[2:], port)
		binary.BigEndian.PutUint32(segment[4:], rnd.Uint32())
		binary.BigEndian.PutUint32(segment[8:], rnd.Uint32())
		segment[12], segment[13] = 5<<4, header.TCPRst|header.TCPAck
		binary.BigEndian.PutUint16(segment[16:], ^header.Checksum(segment, header.PseudoHeader(b[12:16], b[16:20], unix.IPPROTO_TCP, 20)))
		if err := unix.Sendto(fd, b, 0, to); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 2 {
		for i := range 1 << 16 {
			if round == 0 {
				spoof(uint16(i))
			} else {
				spoof(seen.Port())
			}
			if i%256 == 255 { // the connection sets the pace
				if _, err := askLine(busy, "during"); err != nil {
					t.Fatalf("after %d resets of round %d: %v", i+1, round, err)
				}
			}
		}
	}
	for name, c := range map[string]*net.TCPConn{"the busy one": busy, "the idle one": idle} {
		if _, err := askLine(c, "after"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := w.expectBalance(t)
	if got := s.get(t, reason("tcp_reset_out_of_window")); got < 1<<15 || got > 1<<16+2 {
		t.Errorf("%v resets were dropped as such, expected most of %d", got, 1<<16+2)
	}
	w.stop(t)
}
