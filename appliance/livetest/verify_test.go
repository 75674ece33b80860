// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/pipeline/packettext"
)

// verifyLimit is how many frames of a link are read: what a bulk transfer sends beyond them is more of the same.
const verifyLimit = 20_000

// verify holds every frame that weir sends to a peer, until the test ends, against the independent verifier of lengths and checksums. The
// peers are Linux, so what comes to weir is right, and so must be what leaves it.
func (n *namespace) verify(t *testing.T, link string) {
	t.Helper()
	stop := n.watch(t, link, func(text string) { t.Errorf("weir sent %s", text) })
	t.Cleanup(func() { stop() })
}

// watch reads what arrives on a link, and reports the first frame that has a fault. stop ends that, and returns how many frames there were.
func (n *namespace) watch(t *testing.T, link string, report func(text string)) (stop func() int) {
	t.Helper()
	const every = uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // in network order
	index := n.link(t, link).Attrs().Index
	var fd int
	err := n.do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(every)); err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		timeout := unix.Timeval{Usec: 100_000} // after which the reader looks whether the test is over
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
			return fmt.Errorf("packet socket: timeout: %w", err)
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: every, Ifindex: index})
	})
	if err != nil {
		t.Fatal(err)
	}
	over, done := make(chan struct{}), make(chan int)
	go func() {
		defer unix.Close(fd)
		frames := 0
		defer func() { done <- frames }()
		buffer := make([]byte, 1<<16)
		for frames < verifyLimit {
			length, from, err := unix.Recvfrom(fd, buffer, 0)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				select {
				case <-over:
					return
				default:
					continue
				}
			case err != nil:
				report(fmt.Sprintf("nothing that can be read: packet socket of %s: %v", link, err))
				return
			}
			if sll, ok := from.(*unix.SockaddrLinklayer); !ok || sll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			frames++
			if err := packettext.Verify(buffer[:length]); err != nil {
				report(fmt.Sprintf("%s: %v", packettext.Format(buffer[:length]), err))
				return
			}
		}
	}()
	return func() int {
		close(over)
		return <-done
	}
}

// The watch sees a wrong frame, and finds no fault in a right one.
func TestVerify(t *testing.T) {
	a, b := newNamespace(t, true), newNamespace(t, true)
	connect(t, a, "sender", b, "eth0")
	for _, c := range []struct{ fields, want string }{{"", ""}, {" sum=bad", "udp: checksum"}, {" ipsum=bad", "ipv4: header checksum"}} {
		frame, err := packettext.Parse("02:00:00:00:00:05 > ff:ff:ff:ff:ff:ff udp 172.30.0.5:1 > 8.8.8.8:2 \"data\"" + c.fields)
		if err != nil {
			t.Fatal(err)
		}
		fault := ""
		stop := b.watch(t, "eth0", func(text string) { fault = text })
		index := a.link(t, "sender").Attrs().Index
		err = a.do(func() error {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index, Halen: 6})
		})
		if err != nil {
			t.Fatalf("packet socket: %v", err)
		}
		if n := stop(); n != 1 || !strings.Contains(fault, c.want) || (fault == "") != (c.want == "") {
			t.Errorf("%q: %d frames, fault %q; want 1 and %q", c.fields, n, fault, c.want)
		}
	}
}
