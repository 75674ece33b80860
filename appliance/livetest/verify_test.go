// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/pipeline/packettext"
)

// verifyLimit is how many frames of a link are read: what a bulk transfer sends beyond them is more
// of the same.
const verifyLimit = 20_000

// verify holds every frame that weir sends to a peer, until the test ends, against the independent
// verifier of lengths and checksums. The peers are Linux, so what comes to weir is right, and so
// must be what leaves it.
func (n *namespace) verify(t *testing.T, link string) {
	t.Helper()
	stop := n.watch(t, link, func(text string) { t.Errorf("weir sent %s", text) })
	t.Cleanup(func() { stop() })
}

// watch reads what arrives on a link, and reports the first frame that has a fault. stop ends that,
// and returns how many frames there were.
func (n *namespace) watch(t *testing.T, link string, report func(text string)) (stop func() int) {
	t.Helper()
	frames := 0
	stop, err := n.Capture(link, func(frame []byte, err error) bool {
		if err != nil {
			report(fmt.Sprintf("nothing that can be read: %v", err))
			return false
		}
		frames++
		if err := packettext.Verify(frame); err != nil {
			report(fmt.Sprintf("%s: %v", packettext.Format(frame), err))
			return false
		}
		return frames < verifyLimit
	})
	if err != nil {
		t.Fatal(err)
	}
	return stop
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
		err = a.Do(func() error {
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
