// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/state"
)

// Nothing on the way of a packet allocates, whatever becomes of it.
func TestNoAllocations(t *testing.T) {
	established := func(line string) []string { return []string{line} }
	for _, c := range []struct {
		name  string
		port  int
		lines []string
		fresh bool // another remote port each time
		check func(c *state.Counters, bursts uint64) bool
	}{
		{"established", 0, established("udp 10.0.0.5:1 > 8.8.8.8:53"), false, func(c *state.Counters, _ uint64) bool { return c.SessionsCreated == 1 }},
		{"established through SNAT", 0, established("udp 10.0.0.6:1 > 8.8.8.8:53"), false, func(c *state.Counters, _ uint64) bool { return c.SessionsCreated == 1 }},
		{"new sessions", 0, []string{"udp 10.0.0.7:1 > 8.8.8.8:53", "udp [fd00::7]:1 > [2001:4860::8]:53"}, true, func(c *state.Counters, n uint64) bool { return c.SessionsCreated >= 2*n }},
		{"new sessions through SNAT", 0, []string{"udp 10.0.0.6:1 > 8.8.8.8:53", "tcp [fd00::6]:1 > [2001:4860::8]:53 SYN"}, true, func(c *state.Counters, n uint64) bool { return c.SessionsCreated >= 2*n }},
		{"from outside", 1, []string{"udp 8.8.8.8:1 > 192.0.2.20:53", "udp 8.8.8.8:1 > 203.0.113.17:5"}, true, func(c *state.Counters, n uint64) bool { return c.SessionsCreated > n/4 }},
		{"drops", 0, []string{"udp 10.0.0.77:1 > 8.8.8.8:53", "udp 10.0.0.9:1 > 8.8.8.8:53", "udp 10.0.0.5:1 > 100.64.0.1:5", "udp 10.0.0.5:1 > 8.8.8.8:5 ttl=1", "raw 00"}, true,
			func(c *state.Counters, n uint64) bool { return c.Totals().Dropped >= 5*n }},
		{"ICMP errors from outside", 1, []string{"icmp unreachable 3 9.9.9.9 > 192.0.2.5 quote(udp 192.0.2.5:1 > 8.8.8.8:53 len=9)",
			"icmp6 too-big 2a00::9 > 2001:db8:1::20 mtu=1280 quote(tcp [2001:db8:1::20]:1 > [2001:4860::8]:53 ACK len=9)",
			"icmp unreachable 3 9.9.9.9 > 192.0.2.6 quote(udp 192.0.2.6:1 > 8.8.8.8:53 len=9)"}, false,
			func(c *state.Counters, n uint64) bool {
				return c.Dropped[drop.ICMPUnrelated] == n && c.Forwarded >= 2*n
			}},
		{"ICMP errors from inside", 0, []string{"icmp unreachable 3 10.0.0.5 > 8.8.8.8 quote(udp 8.8.8.8:53 > 10.0.0.5:1 len=9)",
			"icmp6 unreachable 4 fd00::7 > 2001:4860::8 quote(icmp6 echo-request 2001:4860::8 > fd00::7 id=7)"}, false, func(c *state.Counters, n uint64) bool { return c.Forwarded >= 2*n && c.Stateless >= 2*n }},
		{"punts", 0, []string{"arp who-has 10.0.0.1 tell 10.0.0.5", "icmp echo-request 10.0.0.5 > 10.0.0.1 id=1"}, false, func(c *state.Counters, n uint64) bool { return c.Punted > n/2 }},
		{"answers", 0, []string{"arp who-has 10.0.0.1 tell 10.0.0.5", "icmp echo-request 10.0.0.5 > 10.0.0.1 id=1", "icmp6 echo-request fd00::5 > fd00::1 id=1",
			"nd solicit fd00::5 > fd00::1 target=fd00::1 slla=" + neighborMAC}, false, func(c *state.Counters, n uint64) bool { return c.Originated > n/2 }},
		{"TCP that opens, closes and is reset", 0, []string{"tcp 10.0.0.6:1 > 8.8.8.8:53 SYN mss=1480", "tcp 10.0.0.6:1 > 8.8.8.8:53 ACK seq=1", "tcp 10.0.0.6:1 > 8.8.8.8:53 FIN,ACK seq=1", "tcp 10.0.0.6:1 > 8.8.8.8:53 RST seq=2"}, true,
			func(c *state.Counters, n uint64) bool { return c.SessionsCreated >= n }},
		{"unknown through SNAT", 1, []string{"udp 8.8.8.8:1 > 192.0.2.6:2000", "udp [2001:4860::8]:1 > [2001:db8:1::6]:2000"}, true, func(c *state.Counters, n uint64) bool { return c.Dropped[drop.Unsolicited] >= n }},
		{"resets that do not fit", 1, established("tcp 8.8.8.8:53 > 192.0.2.5:1 RST seq=9"), false, func(c *state.Counters, n uint64) bool { return c.Dropped[drop.TCPReset] >= n }},
		{"TCP of no session", 0, established("tcp 10.0.0.6:1 > 8.8.8.8:53 ACK"), true, func(c *state.Counters, n uint64) bool { return c.Dropped[drop.NoSession] >= n }},
		{"holds", 0, []string{"udp 10.0.0.5:1 > 10.0.0.99:53", "udp 10.0.0.5:1 > 10.0.0.98:53"}, true, func(c *state.Counters, n uint64) bool { return c.Dropped[drop.NeighborUnresolved] > n/2 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, strings.Replace(rigConfig, "vpcs:", "sessions: {unknown_tcp: reset}\nvpcs:", 1), config.MAC{})
			r.send(0, "tcp 10.0.0.5:1 > 8.8.8.8:53 SYN")
			r.counters.SessionsCreated = 0
			var b Burst
			b.Port = c.port
			frames := make([][]byte, len(c.lines))
			data := make([][]byte, len(c.lines))
			for i, l := range c.lines {
				frames[i] = parseLine(t, c.port, l)
				data[i] = slices.Clone(frames[i])
			}
			var spare [4][]byte
			for i := range spare {
				spare[i] = make([]byte, 2048)
			}
			n := uint16(0)
			bursts := uint64(0)
			run := func() {
				n++
				bursts++
				b.N = len(frames)
				for i := range frames {
					copy(data[i], frames[i])
					if at := 36; c.fresh && len(data[i]) > at {
						if data[i][12] == 0x86 {
							at = 56
						}
						if c.port == 1 {
							at -= 2 // the remote's port
						}
						binary.BigEndian.PutUint16(data[i][at:], 1000+n)
					}
					b.Packets[i].Data, b.Packets[i].Handle = data[i], uintptr(i)
				}
				if c.name == "answers" {
					r.Spare.N = copy(r.Spare.Data[:], spare[:])
				}
				r.Process(&b)
				r.drain()
				r.Expire(16)
				if m := r.punts.Peek(); m != nil {
					r.punts.Pop()
				}
				if n%64 == 0 {
					r.after(4 * time.Second) // so that what is held ends
					r.Release()
					r.drain()
					r.punts.Reset()
				}
			}
			if allocs := testing.AllocsPerRun(500, run); allocs != 0 {
				t.Errorf("%v allocations a burst", allocs)
			}
			if !c.check(r.counters, bursts) {
				t.Errorf("the case does not do what it says in %d bursts: %+v", bursts, r.counters)
			}
		})
	}
}

// Taking a generation over, and letting it go, allocates nothing in the data plane.
func TestAttachAllocatesNothing(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	var g generation.Generation
	if n := testing.AllocsPerRun(20, func() {
		fd, err := unix.Dup(r.gens[0].FD())
		if err == nil {
			err = g.Attach(fd)
		}
		if err == nil {
			err = g.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
