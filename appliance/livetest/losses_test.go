// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"weir/deploy/lab"
)

// losses keeps account of what the kernel had no room for, on the ways between the machines of a
// network: a worker that the scheduler keeps from its core does not empty its rings, and an echo
// server its socket. Whatever else is lost is weir's fault.
//
// It is used from the test's own goroutine.
type losses struct {
	ends    []*namespace          // where clients and servers are
	weir    []func() (pids []int) // the data planes that may have run
	ring    int                   // reading a ring's count sets it back
	claimed int                   // a drop explains one loss, not one of each stream
}

// explained is how much the kernel has dropped so far, and where.
type explained struct{ ring, sockets, claimed int }

// free is how many drops explain no loss yet.
func (e explained) free() int { return e.ring + e.sockets - e.claimed }

// judge fails the test if more is lost than the kernel has dropped since before, drops that explain
// other losses apart.
func (l *losses) judge(t *testing.T, before explained, lost int, what string) {
	t.Helper()
	if lost == 0 {
		return
	}
	now := l.explain(t)
	why := fmt.Sprintf("the kernel dropped %d frames for want of room in weir's rings and %d datagrams in sockets; %d of those explain other losses",
		now.ring-before.ring, now.sockets-before.sockets, now.claimed-before.claimed)
	if !l.claim(before, now, lost) {
		t.Errorf("%s are lost, but %s", what, why)
		return
	}
	t.Logf("%s are lost: %s", what, why)
}

// claim reports whether what was dropped between two looks explains so many losses.
func (l *losses) claim(before, now explained, lost int) bool {
	if lost > now.free()-before.free() {
		return false
	}
	l.claimed += lost
	return true
}

// explain reads the counts so far. What a data plane's rings had dropped since the last look is
// lost with it when it dies.
func (l *losses) explain(t *testing.T) explained {
	t.Helper()
	for _, pids := range l.weir {
		for _, pid := range pids() {
			drops, err := lab.RingDrops(pid)
			if err != nil {
				t.Fatal(err)
			}
			l.ring += int(drops)
		}
	}
	e := explained{ring: l.ring, claimed: l.claimed}
	for _, n := range l.ends {
		drops, err := n.UDPDrops()
		if err != nil {
			t.Fatal(err)
		}
		e.sockets += int(drops)
	}
	return e
}

// What the kernel has dropped explains a loss, once; what it has not, fails.
func TestLossesAreExplained(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4)
	w := startWeir(t, n, baseConfig)
	s := startFlowing(t, n.guest, web4, remote4)
	before := n.guest.losses.explain(t)
	plane := w.dataplane(t)
	syscall.Kill(plane, syscall.SIGSTOP)
	c, err := dialUDP(n.guest, netip.AddrPortFrom(batch4, 0), remote4)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 * 4096 { // the ring has 4096 frames
		c.Write([]byte("flood"))
	}
	eventually(t, patience, "the ring overflows", func() error { return atLeast(n.guest.losses.explain(t).ring-before.ring, 4096) })
	syscall.Kill(plane, syscall.SIGCONT)
	s.endWhole(t)
	room := n.guest.losses.explain(t).free() - before.free()
	for _, c := range []struct {
		lost int
		want bool
	}{{room + 1, false}, {room, true}, {1, false}} {
		if got := n.guest.losses.claim(before, n.guest.losses.explain(t), c.lost); got != c.want {
			t.Errorf("%d lost where %d drops are free: explained is %v", c.lost, room, got)
		}
	}
}
