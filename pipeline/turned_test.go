// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"net/netip"
	"testing"

	"weir/pipeline/drop"
	"weir/pipeline/inet"
)

// backTo returns source and destination of packets that turn back at worker at and then are owned
// by another one, to.
func (c *crew) backTo() (private, external string, at, to int) {
	c.t.Helper()
	owner := func(a string) int {
		return int(c.workers[0].owner(&Packet{remote: inet.FromNetip(netip.MustParseAddr(a))}))
	}
	for _, s := range [][2]string{{"10.0.0.5", "192.0.2.5"}, {"10.0.0.6", "192.0.2.6"}, {"10.0.0.8", "192.0.2.30"}} {
		for _, d := range []string{"192.0.2.5", "192.0.2.20", "192.0.2.21", "192.0.2.22", "192.0.2.30"} {
			if at, to = owner(d), owner(s[1]); at != to {
				return s[0], d, at, to
			}
		}
	}
	c.t.Fatal("nothing turns back at one worker for another")
	return
}

// burst gives n packets to worker w as received by port 0: %d in line is the number of each.
func (c *crew) burst(w, n int, line string) {
	c.t.Helper()
	var b Burst
	b.N = n
	for i := range n {
		b.Packets[i].Data, b.Packets[i].Handle = parseLine(c.t, 0, fmt.Sprintf(line, 1024+i)), 1
	}
	c.workers[w].Process(&b)
	c.workers[w].empty(c.t)
}

// A worker that does not keep up with another one's frames still takes what turned back there.
func TestTurnedDoNotStarve(t *testing.T) {
	c := newCrew(t, 2, rigConfig)
	private, external, at, to := c.backTo()
	c.burst(at, 1, "udp "+private+":%d > "+external+":53 \"turned\"")
	there := c.remote(to)
	for turn := range 8 {
		c.burst(at, MaxBurst, "udp 10.0.0.5:%d > "+there+":53 \"frame\"")
		c.workers[to].Adopt(at)
		for _, line := range c.workers[to].empty(t) {
			if line[:1] == "0" { // it leaves to the inside
				t.Logf("in turn %d: %s", turn, line)
				return
			}
		}
	}
	sum := c.sum()
	t.Errorf("what turned back still waits: %+v", sum.Totals())
}

// What turned back has as much room between few workers as frames have.
func TestTurnedBursts(t *testing.T) {
	c := newCrew(t, 2, rigConfig)
	private, external, at, to := c.backTo()
	for range handoffSlots / MaxBurst {
		c.burst(at, MaxBurst, "udp "+private+":%d > "+external+":53")
	}
	if sum := c.sum(); sum.Dropped[drop.HandoffFull] != 0 || sum.Totals().Held != handoffSlots {
		t.Errorf("of %d packets %d are on their way, %d dropped", handoffSlots, sum.Totals().Held, sum.Dropped[drop.HandoffFull])
	}
	for c.workers[to].Adopt(at) > 0 {
		c.workers[to].empty(t)
	}
	sum := c.sum()
	if tot := sum.Totals(); tot.Forwarded != handoffSlots || tot.Held != 0 {
		t.Errorf("%+v, want %d forwarded", tot, handoffSlots)
	}
	for n, want := range map[int]int{2: 256, 8: 256, 9: 128, 64: 32} {
		if got := turnedSlots(n); got != want {
			t.Errorf("between %d workers there are %d slots, want %d", n, got, want)
		}
	}
}
