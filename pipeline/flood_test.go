// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/inet"
	"weir/pipeline/packettext"
	"weir/pipeline/respond"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// floodConfig has a second VPC, w, on port 2. One next hop, one instance and w's instance have to
// be resolved.
var floodConfig = strings.Replace(responderConfig, "pools:\n", "  - {name: yin, device: net_null7, side: inside}\npools:\n", 1) + `
  - name: w
    attach: [{port: yin, addresses: [10.0.0.1/16]}]
    subnets: [10.0.0.0/16]
    routes: [{to: 0.0.0.0/0, gateway: g}]
    instances: [{name: one, addresses: [10.0.0.5], external: {floating: [192.0.2.40]}}]
`

// newFlooded starts a worker and control on text, whose ports are those of floodConfig.
func newFlooded(t testing.TB, text string) *control {
	r := newRig(t, text, config.MAC{})
	r.answers = true
	c := &control{r, respond.New(r.state, testMACs)}
	c.Configure(r.cfg, r.gen)
	return c
}

// burst takes frames through the worker in b, without looking at each, and returns how many weir
// itself says.
func (r *rig) burst(b *Burst, port int, frames ...[]byte) (said int) {
	b.Port, b.N = port, len(frames)
	for i, f := range frames {
		b.Packets[i].Data = f
	}
	r.stock(len(frames))
	before := r.counters.Originated
	r.Process(b)
	r.drain()
	return int(r.counters.Originated - before)
}

// asks says what a frame of weir's is: 1 for an ARP request, 135 for a neighbor solicitation,
// else 0.
func asks(frame []byte) byte {
	switch {
	case frame[12] == 0x08 && frame[13] == 0x06 && frame[21] == 1:
		return 1
	case frame[12] == 0x86 && frame[54] == 135:
		return 135
	}
	return 0
}

// Twenty seconds of 20,000 packets a second for weir itself: meanwhile the next hops stay resolved,
// each of their answers reaches control, and another network's ARP and pings are answered.
func TestFloodIsNobodyElsesOutage(t *testing.T) {
	const (
		insideARP  = "0 arp who-has 10.0.0.1 tell 10.0.7.%d"
		outsideARP = "1 arp who-has 198.51.100.2 tell 198.51.100.1%02d"
		outsideUDP = "1 udp 8.8.8.8:%d > 198.51.100.2:53"
		pings      = "1 icmp echo-request 8.8.8.8 > 198.51.100.2 id=%d"
		unresolved = "0 udp 10.0.0.6:1000 > 10.0.9.%d:53"
	)
	for _, c := range []struct {
		name  string
		lines []string
	}{
		{"ARP inside", []string{insideARP}},
		{"ARP outside", []string{outsideARP}},
		{"UDP to ourselves", []string{outsideUDP}},
		{"pings to ourselves", []string{pings}},
		{"packets to nobody", []string{unresolved}},
		{"all at once", []string{insideARP, outsideARP, outsideUDP, pings, unresolved}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newFlooded(t, floodConfig)
			type flood struct {
				port   int
				frames [][]byte
			}
			var floods []flood
			for _, l := range c.lines {
				f := flood{port: int(l[0] - '0')}
				for i := range 20 {
					f.frames = append(f.frames, parseLine(t, f.port, fmt.Sprintf(l[2:], 10+i)))
				}
				floods = append(floods, f)
			}
			other := [][]byte{parseLine(t, 2, "arp who-has 10.0.0.1 tell 10.0.0.5"), parseLine(t, 2, "icmp echo-request 10.0.0.5 > 10.0.0.1 id=9")}
			answers := map[byte][]byte{ // what a next hop says, by the byte of ARP or of ICMPv6 that says that it is asked
				1:   parseLine(t, 1, "arp reply 198.51.100.1 is-at "+neighborMAC+" to 198.51.100.2"),
				135: parseLine(t, 1, "nd advert 2001:db8::1 > 2001:db8::2 target=2001:db8::1 solicited tlla="+neighborMAC),
			}
			var b Burst
			asked, answered := 0, 0
			for ms := range 20_000 {
				r.after(time.Millisecond)
				for _, f := range floods {
					r.burst(&b, f.port, f.frames...)
				}
				if ms%500 == 0 {
					answered += r.burst(&b, 2, other...)
				}
				r.Poll(r.nanos)
				ring := r.state().Inject(0)
				for m := ring.Peek(); m != nil; m = ring.Peek() {
					port, what := m.At.Port(), asks(m.Data())
					ring.Pop()
					if port == 1 && what != 0 {
						asked++
						punted := r.counters.Punted
						if r.burst(&b, 1, answers[what]); r.counters.Punted != punted+1 {
							t.Fatalf("after %d ms the answer of a next hop is dropped", ms)
						}
					}
				}
				r.Release()
				r.drain()
				if ms < 10 { // the first answers are under way
					continue
				}
				for _, h := range r.rig.gen.Hops {
					if s, _ := r.state().Neighbors.Get(h.Neighbor); s != state.NeighborReachable {
						t.Fatalf("after %d ms next hop %s is in state %d", ms, h.Addr.Netip(), s)
					}
				}
			}
			if asked < 4 {
				t.Errorf("next hops were asked %d times in 20 s, want at least 4", asked)
			}
			if want := 2 * 20_000 / 500; answered != want {
				t.Errorf("the other network has %d answers, want %d", answered, want)
			}
			if got, most := r.counters.Punted, uint64(len(c.lines)*(puntBurst+20*puntsPerSecond)+500); got > most {
				t.Errorf("%d frames went to control, want at most %d", got, most)
			}
			if want := uint64(400_000); slices.Contains(c.lines, outsideUDP) && r.counters.Dropped[drop.NoService] != want {
				t.Errorf("%d dropped %v, want %d", r.counters.Dropped[drop.NoService], drop.NoService, want)
			}
			r.balanced()
		})
	}
}

// While control is away, what the inside says leaves room in the ring for what the outside says.
func TestRingKeepsRoomForOutside(t *testing.T) {
	r := newRig(t, floodConfig, config.MAC{})
	for i := range 300 {
		for port := 0; port <= 2; port += 2 {
			r.send(port, "arp who-has 10.0.0.1 tell 10.0.0.5")
			r.send(port, fmt.Sprintf("icmp echo-request 10.0.0.5 > 10.0.0.1 id=%d", i))
			r.send(port, fmt.Sprintf("udp 10.0.0.5:1000 > 10.0.%d.%d:53", 8+i>>8, i&255))
		}
	}
	r.expect(0, "arp who-has 10.0.0.1 tell 10.0.0.5", "drop punt_limited")
	for range 100 {
		r.expect(1, "arp reply 198.51.100.1 is-at "+neighborMAC+" to 198.51.100.2", "punt")
	}
}

// Control looks at the rings every few milliseconds: that alone allocates nothing.
func TestIdlePollAllocatesNothing(t *testing.T) {
	r := newFlooded(t, rigConfig)
	r.Passive = true
	r.Poll(r.nanos)
	if n := testing.AllocsPerRun(100, func() { r.Poll(r.nanos) }); n != 0 {
		t.Errorf("%.1f allocations", n)
	}
}

// Pings are all that weir serves at its own addresses.
func TestNoService(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	for _, c := range []struct {
		port       int
		line, want string
	}{
		{1, "icmp echo-request 8.8.8.8 > 198.51.100.2 id=1", "punt"},
		{1, "icmp6 echo-request 2001:4860::8 > 2001:db8::2 id=1", "punt"},
		{0, "icmp echo-request 10.0.0.5 > 10.0.0.1 id=1", "punt"},
		{1, "icmp echo-reply 8.8.8.8 > 198.51.100.2 id=1", "drop no_service"},
		{1, "udp 8.8.8.8:53 > 198.51.100.2:53", "drop no_service"},
		{1, "tcp 8.8.8.8:53 > 198.51.100.2:22 SYN", "drop no_service"},
		{1, "ip proto=47 8.8.8.8 > 198.51.100.2 len=4", "drop no_service"},
		{1, "icmp unreachable 1 8.8.8.8 > 198.51.100.2 quote(udp 198.51.100.2:5 > 8.8.8.8:53)", "drop no_service"},
		{1, "udp [2001:4860::8]:53 > [2001:db8::2]:53", "drop no_service"},
		{0, "tcp 10.0.0.5:1000 > 10.0.0.1:22 SYN", "drop no_service"},
		{0, "udp [fd00::5]:1000 > [fd00::1]:53", "drop no_service"},
	} {
		r.expect(c.port, c.line, c.want)
	}
}

// wanted takes the next message to control, which has to ask for an address on a port.
func (r *rig) wanted(port int, addr inet.Addr) {
	r.t.Helper()
	m := r.punts.Peek()
	if m == nil || m.Kind != state.PuntResolve || m.At != attach.Port(port) || m.Addr != addr {
		r.t.Fatalf("control is not asked for %s on port %d: %+v", addr.Netip(), port, m)
	}
	r.punts.Pop()
}

// One network's silence takes no other network's places, and who finds no place is asked for all
// the same.
func TestHeldShares(t *testing.T) {
	r := newRig(t, floodConfig, config.MAC{})
	for i := range 2 * maxHeld {
		r.send(0, fmt.Sprintf("udp 10.0.0.6:1000 > 10.0.%d.%d:53", 8+i>>8, i&255))
	}
	if want := maxHeld / 3; r.holding != want {
		t.Fatalf("%d are held for one port of three, want %d", r.holding, want)
	}
	r.punts.Reset()
	r.expect(1, "udp 8.8.8.8:53 > 192.0.2.40:5", "held")
	r.wanted(2, inside4(5))
	r.expect(0, "udp 10.0.0.6:1000 > 8.8.8.8:53", "held")
	r.wanted(1, inet.FromNetip(r.cfg.Ports[1].NextHops[0].Address))

	r.after(time.Second) // for the rate of questions
	r.expect(0, "udp 10.0.0.6:1000 > 10.0.20.1:53", "drop neighbor_unresolved")
	r.wanted(0, inside4(20<<8+1))
}

// A question may be lost: as long as a packet waits, control is asked again each second.
func TestHeldAsksAgain(t *testing.T) {
	r := newRig(t, floodConfig, config.MAC{})
	r.expect(1, "udp 8.8.8.8:53 > 192.0.2.40:5", "held")
	r.wanted(2, inside4(5))
	for second := range 3 {
		r.after(999 * time.Millisecond)
		if r.Release(); r.punts.Peek() != nil {
			t.Fatalf("second %d: asked again too early: %+v", second, r.punts.Peek())
		}
		r.after(time.Millisecond)
		r.Release()
		r.wanted(2, inside4(5))
	}
	if r.punts.Peek() != nil {
		t.Errorf("asked twice: %+v", r.punts.Peek())
	}
	r.balanced()
}

// ask4 lets a packet want 10.0.hi.lo on a port.
func (c *control) ask4(port int, n int) {
	c.Handle(&state.Message{Kind: state.PuntResolve, At: attach.Port(port), Addr: inside4(n)}, c.nanos)
	c.state().Inject(0).Reset()
}

// answer4 lets 10.0.hi.lo on a port answer.
func (c *control) answer4(port int, n int) {
	c.Learn(attach.Port(port), inside4(n).Netip(), [6]byte{2, 0, 0, 0, 3, byte(n)}, c.nanos)
}

// known is the state of 10.0.hi.lo on a port.
func (c *control) known(port int, n int) state.NeighborState {
	slot := c.state().Neighbors.Find(attach.Port(port), inside4(n))
	if slot == state.NoNeighbor {
		return state.NeighborNone
	}
	s, _ := c.state().Neighbors.Get(slot)
	return s
}

// manyInstances is floodConfig with n more instances in VPC v, at 10.0.16.0 and up.
func manyInstances(n int) string {
	var b strings.Builder
	b.WriteString("    instances:\n")
	for i := range n {
		fmt.Fprintf(&b, "      - {name: n%d, addresses: [10.0.%d.%d]}\n", i, 16+i>>8, i&255)
	}
	return strings.Replace(floodConfig, "    instances:\n", b.String(), 1)
}

// Neighbors that the configuration names, however many, take no place of those that it does not.
func TestConfiguredNeighborsTakeNoRoom(t *testing.T) {
	const n = 4200
	c := newFlooded(t, manyInstances(n))
	for i := range n {
		c.ask4(0, 16<<8+i)
		c.answer4(0, 16<<8+i)
	}
	c.ask4(0, 9<<8)
	c.answer4(0, 9<<8)
	if s := c.known(0, 9<<8); s != state.NeighborReachable {
		t.Errorf("beside %d configured neighbors another one is in state %d", n, s)
	}
	for i := range n {
		if s := c.known(0, 16<<8+i); s != state.NeighborReachable {
			t.Fatalf("configured neighbor %d is in state %d", i, s)
		}
	}
}

// Neighbors that no configuration names have room for 1,024 on each port. When a port's is full,
// one that never answered gives way to the next, and only when there is none, the one that was
// heard of longest ago.
func TestNeighborsGiveWay(t *testing.T) {
	c := newFlooded(t, floodConfig)
	const first = 9 << 8
	for i := range respond.MaxDynamic {
		if i != 500 {
			c.after(time.Millisecond)
			c.ask4(0, first+i)
			c.answer4(0, first+i)
		}
	}
	c.after(time.Duration(respond.ReaskInterval) - 2*time.Second) // the others are to be asked again before this one
	c.ask4(0, first+500)
	lost := func() (list []int) {
		for i := range respond.MaxDynamic {
			if c.known(0, first+i) == state.NeighborNone {
				list = append(list, i)
			}
		}
		return list
	}
	c.ask4(2, first)
	if s := c.known(2, first); s != state.NeighborIncomplete {
		t.Errorf("another port's neighbor is in state %d", s)
	}
	if got := lost(); got != nil {
		t.Errorf("another port's neighbor put out %v", got)
	}
	c.ask4(0, 30<<8)
	if got := lost(); !slices.Equal(got, []int{500}) {
		t.Errorf("%v gave way, want 500, which never answered", got)
	}
	c.answer4(0, 30<<8)
	c.ask4(0, 30<<8+1)
	if got := lost(); !slices.Equal(got, []int{0, 500}) {
		t.Errorf("%v gave way, want 0 too, which answered first", got)
	}
	// A scan takes its own places, not those of who answers.
	for i := range 3000 {
		c.ask4(0, 40<<8+i)
	}
	if got := lost(); !slices.Equal(got, []int{0, 500}) {
		t.Errorf("a scan put out %v", got[2:])
	}
}

// A responder takes over what an earlier one resolved: it asks each neighbor again within the time
// of asking again, no more at once than the way to the worker takes, keeps those that answer, and
// lets go of those that do not.
func TestResponderInherits(t *testing.T) {
	const named, dynamic = 2000, 600
	text := manyInstances(named)
	for _, start := range []time.Duration{time.Second, 1000 * time.Hour} {
		t.Run(start.String(), func(t *testing.T) {
			c := newFlooded(t, text)
			c.SetClock(int64(start))
			c.quiet()
			for i := range named {
				c.answer4(0, 16<<8+i)
			}
			for i := range dynamic {
				c.ask4(2, 9<<8+i)
				c.answer4(2, 9<<8+i)
			}
			used := c.state().Neighbors.Used
			c.Responder = respond.New(c.state(), testMACs)
			c.Configure(c.rig.cfg, c.rig.gen)
			silent := func(i int) bool { return i%3 == 0 }
			asked := map[inet.Addr]int{}
			for range int64(time.Duration(respond.ReaskInterval)/time.Second + 5) {
				c.after(time.Second)
				c.Poll(c.nanos)
				ring := c.state().Inject(0)
				for m := ring.Peek(); m != nil; m = ring.Peek() {
					words := strings.Fields(packettext.Format(m.Data()))
					port := m.At.Port()
					ring.Pop()
					if words[3] != "arp" {
						continue
					}
					a := inet.FromNetip(netip.MustParseAddr(words[5]))
					asked[a]++
					if n := int(a.Lo - inside4(0).Lo); port != 1 && !silent(n) {
						c.answer4(port, n)
					}
				}
			}
			if n := c.state().Lost(); n != 0 {
				t.Errorf("%d questions found no room", n)
			}
			gone := 0
			for i := range named {
				n, want := 16<<8+i, state.NeighborReachable
				if silent(n) {
					want = state.NeighborIncomplete
				}
				if got := c.known(0, n); got != want || asked[inside4(n)] == 0 {
					t.Fatalf("configured neighbor %d was asked %d times and is in state %d, want %d", i, asked[inside4(n)], got, want)
				}
			}
			for i := range dynamic {
				n, want := 9<<8+i, state.NeighborReachable
				if silent(n) {
					want = state.NeighborNone
					gone++
				}
				if got := c.known(2, n); got != want || asked[inside4(n)] == 0 {
					t.Fatalf("neighbor %d was asked %d times and is in state %d, want %d", i, asked[inside4(n)], got, want)
				}
			}
			if got := c.state().Neighbors.Used; got != used-gone {
				t.Errorf("%d entries, want %d", got, used-gone)
			}
		})
	}
}

// The last quarter of the session table is not for what the Internet begins, the last eighth for
// SNAT alone; what goes without a session passes all the same.
func TestTableIsShared(t *testing.T) {
	r := newRig(t, strings.Replace(rigConfig, "pools:\n", "  - {name: yin, device: net_null7, side: inside}\npools:\n", 1)+`
  - name: w
    attach: [{port: yin, addresses: [10.0.0.1/16]}]
    subnets: [10.0.0.0/16]
    routes: [{to: 0.0.0.0/0, gateway: g}]
    instances: [{name: one, addresses: [10.0.0.6], external: {snat: [{address: 192.0.2.41, ports: 1024-65535}]}}]
`, config.MAC{})
	capacity := r.Capacity()
	n := 0
	inside := func() (made bool) {
		n++
		before := r.sessions.Len()
		r.expect(0, fmt.Sprintf("udp 10.0.0.5:1000 > 9.0.%d.%d:53", n>>8, n&255), fmt.Sprintf("udp 192.0.2.5:1000 > 9.0.%d.%d:53", n>>8, n&255))
		return r.sessions.Len() > before
	}
	outside := func() (made int) { // of 50
		for range 50 {
			n++
			before := r.sessions.Len()
			r.expect(1, fmt.Sprintf("udp 7.0.%d.%d:53 > 192.0.2.20:1000", n>>8, n&255), fmt.Sprintf("udp 7.0.%d.%d:53 > 10.0.0.7:1000", n>>8, n&255))
			made += r.sessions.Len() - before
		}
		return made
	}
	if outside() == 0 {
		t.Fatal("in an empty table the Internet begins no session")
	}
	for r.sessions.Len() < capacity*6/8 {
		if !inside() {
			t.Fatalf("with %d of %d sessions a 1:1 flow begins none", r.sessions.Len(), capacity)
		}
	}
	stateless := r.counters.Stateless
	if made := outside(); made != 0 || r.counters.Stateless != stateless+50 {
		t.Errorf("with six eighths in use the Internet began %d sessions of 50, and %d went stateless", made, r.counters.Stateless-stateless)
	}
	for r.sessions.Len() < capacity*7/8 {
		if !inside() {
			t.Fatalf("with %d of %d sessions a 1:1 flow begins none", r.sessions.Len(), capacity)
		}
	}
	stateless = r.counters.Stateless
	if inside() || r.counters.Stateless != stateless+1 {
		t.Error("with seven eighths in use a 1:1 flow began a session")
	}
	// SNAT of the same VPC has a little more, rounded up; the rest is other VPCs'.
	for n++; ; n++ {
		if got := r.send(0, fmt.Sprintf("udp 10.0.0.6:%d > 8.8.8.8:53", n)); got == "drop fair_share" {
			break
		} else if strings.HasPrefix(got, "drop") {
			t.Fatalf("with %d of %d sessions SNAT: %s", r.sessions.Len(), capacity, got)
		}
	}
	if r.sessions.Len() < capacity*7/8 || r.sessions.Len() > capacity*15/16 {
		t.Errorf("one VPC has %d of %d sessions", r.sessions.Len(), capacity)
	}
	for r.sessions.Len() < capacity {
		n++
		if got := r.send(2, fmt.Sprintf("udp 10.0.0.6:%d > 8.8.8.8:53", n)); strings.HasPrefix(got, "drop") {
			t.Fatalf("with %d of %d sessions another VPC's SNAT: %s", r.sessions.Len(), capacity, got)
		}
	}
	r.expect(2, "udp 10.0.0.6:1 > 8.8.8.8:53", "drop table_full")
	r.expect(0, "udp 10.0.0.6:1 > 8.8.8.8:53", "drop fair_share")
	// One place free again is the other VPC's SNAT.
	r.end(0)
	if inside() {
		t.Error("a 1:1 flow took the last place")
	}
	r.expect(0, "udp 10.0.0.6:1 > 8.8.8.8:53", "drop fair_share")
	if got := r.send(2, "udp 10.0.0.6:1 > 8.8.8.8:53"); strings.HasPrefix(got, "drop") {
		t.Errorf("the place that came free: %s", got)
	}
}

// A search for a port that found none is not repeated for 10 ms: not the same question, that is,
// and at any time.
func TestExhaustionIsRemembered(t *testing.T) {
	for _, later := range []time.Duration{0, 24 * time.Hour, 30 * 24 * time.Hour, 49 * 24 * time.Hour} {
		r := newRig(t, sixteen, config.MAC{})
		fill := func() {
			for i := range 16 {
				r.send(0, fmt.Sprintf("udp 10.0.0.6:%d > 8.8.8.8:53", 1000+i))
			}
			r.expect(0, "udp 10.0.0.6:999 > 8.8.8.8:53", "drop ports_exhausted")
		}
		fill()
		if later != 0 { // nothing is remembered for long
			r.forget()
			r.after(later)
			if got := r.send(0, "udp 10.0.0.6:1000 > 8.8.8.8:53"); strings.HasPrefix(got, "drop") {
				t.Fatalf("%v later: %s", later, got)
			}
			fill()
		}
		r.end(0) // a port is free
		r.expect(0, "udp 10.0.0.6:999 > 8.8.8.8:53", "drop ports_exhausted")
		for _, line := range []string{"udp 10.0.0.6:999 > 8.8.8.8:54", "udp 10.0.0.6:999 > 8.8.4.4:53", "tcp 10.0.0.6:999 > 8.8.8.8:53 SYN"} {
			if got := r.send(0, line); strings.HasPrefix(got, "drop") {
				t.Errorf("%s, beside an exhausted endpoint: %s", line, got)
			}
		}
		r.after(9 * time.Millisecond)
		r.expect(0, "udp 10.0.0.6:999 > 8.8.8.8:53", "drop ports_exhausted")
		r.after(time.Millisecond)
		if got := r.send(0, "udp 10.0.0.6:999 > 8.8.8.8:53"); strings.HasPrefix(got, "drop") {
			t.Errorf("the port that came free, after 10 ms: %s", got)
		}
	}
}

// strangerConfig gives the instance one an address that no gateway's pool holds: it receives and
// answers, and begins nothing.
var strangerConfig = strings.NewReplacer("  - {name: attached,", "  - {name: q, ranges: [203.0.112.0/24]}\n  - {name: attached,",
	"floating: [192.0.2.5,", "floating: [192.0.2.5, 203.0.112.5,").Replace(rigConfig)

// Who sends first from outside does not choose the source of what an instance begins, not even
// within one burst.
func TestStrangerDoesNotChooseSource(t *testing.T) {
	for _, c := range []struct{ stranger, own, want string }{
		{"tcp 8.8.8.8:443 > 203.0.112.5:5000 SYN", "tcp 10.0.0.5:5000 > 8.8.8.8:443 SYN", "tcp 192.0.2.5:5000 > 8.8.8.8:443 SYN"},
		{"tcp 8.8.8.8:443 > 203.0.112.5:5000 SYN", "tcp 10.0.0.5:5000 > 8.8.8.8:443 SYN,ACK", "tcp 203.0.112.5:5000 > 8.8.8.8:443 SYN,ACK"},
		{"icmp echo-request 8.8.8.8 > 203.0.112.5 id=7", "icmp echo-request 10.0.0.5 > 8.8.8.8 id=7", "icmp echo-request 192.0.2.5 > 8.8.8.8 id=7"},
		{"icmp echo-request 8.8.8.8 > 203.0.112.5 id=7", "icmp echo-reply 10.0.0.5 > 8.8.8.8 id=7", "icmp echo-reply 203.0.112.5 > 8.8.8.8 id=7"},
		{"udp 8.8.8.8:443 > 203.0.112.5:5000", "udp 10.0.0.5:5000 > 8.8.8.8:443", "udp 203.0.112.5:5000 > 8.8.8.8:443"},
	} {
		r := newRig(t, strangerConfig, config.MAC{})
		if got := r.send(1, c.stranger); !strings.Contains(got, "10.0.0.5") || r.sessions.Len() != 1 {
			t.Fatalf("%s: %s, %d sessions", c.stranger, got, r.sessions.Len())
		}
		r.resolve(0, inside4(5))
		for _, f := range r.process(0, parseLine(t, 0, c.own), parseLine(t, 0, c.own)) {
			if got := bare(f.frame); got != c.want {
				t.Errorf("after %s, %s:\n  got  %s\n  want %s", c.stranger, c.own, got, c.want)
			}
		}
		if n := r.sessions.Len(); n != 1 || r.instanceOf("one").Unconfirmed != 0 {
			t.Errorf("%s: %d sessions, %d unconfirmed; want 1, 0", c.own, n, r.instanceOf("one").Unconfirmed)
		}
		if err := r.sessions.Check(); err != nil {
			t.Error(err)
		}
	}
}

// Each step is a wait, a direction with TCP flags, or neither; then the session is in a state, or
// gone.
func TestResetsAndTimeouts(t *testing.T) {
	const gone, opening, open, closing, unconfirmed = session.Free, session.TCPOpening, session.TCPOpen, session.TCPClosing, session.Unconfirmed
	type step struct {
		wait        time.Duration
		from, flags string // "": nothing
		want        session.State
	}
	handshake := []step{{0, "in", "SYN", opening}, {0, "out", "SYN,ACK", opening}, {0, "in", "ACK", open}}
	const established, closed, ms = 2*time.Hour + 4*time.Minute, 4 * time.Minute, time.Millisecond
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"RST from outside, then data", slices.Concat(handshake, []step{{0, "out", "RST", closing}, {time.Minute, "in", "PSH,ACK", open},
			{established, "", "", open}, {ms, "", "", gone}})},
		{"RST from outside, then silence", slices.Concat(handshake, []step{{time.Hour, "out", "RST", closing}, {closed, "", "", closing}, {ms, "", "", gone}})},
		{"RST from outside, data from outside refutes nothing", slices.Concat(handshake, []step{{0, "out", "RST", closing}, {time.Minute, "out", "PSH,ACK", closing},
			{closed - time.Minute, "", "", closing}, {ms, "", "", gone}})},
		{"FIN both ways, and ACKs", slices.Concat(handshake, []step{{0, "in", "FIN,ACK", open}, {0, "out", "FIN,ACK", closing}, {0, "in", "ACK", closing},
			{0, "out", "ACK", closing}, {0, "in", "PSH,ACK", closing}, {closed, "", "", closing}, {ms, "", "", gone}})},
		{"FIN both ways, then RST, and ACKs", slices.Concat(handshake, []step{{0, "out", "FIN,ACK", open}, {0, "in", "FIN,ACK", closing}, {0, "out", "RST", closing},
			{0, "in", "ACK", closing}, {closed, "", "", closing}, {ms, "", "", gone}})},
		{"refused, then an ACK", []step{{0, "in", "SYN", opening}, {0, "out", "RST,ACK", closing}, {0, "in", "ACK", closing}, {closed, "", "", closing}, {ms, "", "", gone}}},
		{"an ACK from outside opens nothing", []step{{0, "in", "SYN", opening}, {0, "out", "ACK", opening}, {0, "in", "ACK", opening}, {closed, "", "", opening}, {ms, "", "", gone}}},
		{"RST from inside confirms nothing", []step{{0, "out", "SYN", unconfirmed}, {0, "in", "RST,ACK", unconfirmed}, {generation.UnconfirmedTimeout, "", "", unconfirmed}, {ms, "", "", gone}}},
		{"SYN,ACK from inside confirms", []step{{0, "out", "SYN", unconfirmed}, {0, "in", "SYN,ACK", opening}, {0, "out", "ACK", open}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, strangerConfig, config.MAC{})
			r.resolve(0, inside4(5))
			address := "192.0.2.5"
			if c.steps[0].from == "out" {
				address = "203.0.112.5" // a session that begins from outside is for an address that is not eligible
			}
			var conversation talk
			for i, s := range c.steps {
				r.after(s.wait)
				switch s.from {
				case "in":
					text := conversation.say(0, s.flags, 0)
					r.expect(0, "tcp 10.0.0.5:5000 > 8.8.8.8:443 "+text, "tcp "+address+":5000 > 8.8.8.8:443 "+text)
				case "out":
					text := conversation.say(1, s.flags, 0)
					r.expect(1, "tcp 8.8.8.8:443 > "+address+":5000 "+text, "tcp 8.8.8.8:443 > 10.0.0.5:5000 "+text)
				}
				r.Expire(r.Capacity())
				if r.sessions.Len() == 0 {
					if s.want != gone {
						t.Fatalf("step %d: the session is gone, want %v", i, s.want)
					}
					continue
				}
				if got := r.only().State(); got != s.want {
					t.Fatalf("step %d, %s %s: %v, want %v", i, s.from, s.flags, got, s.want)
				}
			}
		})
	}
}

// A ping of the remote host is no reply to the instance's own, wherever in a burst it stands.
func TestPingFromThePinged(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	f := r.process(0, parseLine(t, 0, "icmp echo-request 10.0.0.6 > 8.8.8.8 id=7"))[0]
	id := strings.Fields(bare(f.frame))[5]
	request := "icmp echo-request 8.8.8.8 > 192.0.2.6 " + id
	r.expect(1, request, "drop unsolicited")
	made := r.counters.SessionsCreated
	for i := 0; r.counters.SessionsCreated == made; i++ {
		fates := r.process(1, parseLine(t, 1, outsideTo(i, "192.0.2.20")), parseLine(t, 1, request))
		if fates[1].port >= 0 {
			t.Fatalf("behind a packet that began a session: %s", bare(fates[1].frame))
		}
		if i > 100 {
			t.Fatal("nothing from outside begins a session")
		}
	}
	r.expect(1, "icmp echo-reply 8.8.8.8 > 192.0.2.6 "+id, "icmp echo-reply 8.8.8.8 > 10.0.0.6 id=7")
}

// What no translation leaves intact, or goes no further, has no part in a session that has its very
// ports.
func TestStrayPackets(t *testing.T) {
	const ah, segments = "ext=ah:020000000000010000000100000000", "ext=route:00fd0100000000"
	r := newRig(t, rigConfig, config.MAC{})
	flow := "udp [fd00::5]:1000 > [2001:4860::8]:53"
	r.expect(0, flow, "udp [2001:db8:1::5]:1000 > [2001:4860::8]:53")
	last := r.only().Last
	r.after(time.Second)
	for _, c := range []struct{ line, want string }{
		{flow + " " + ah, "drop untranslatable"},
		{flow + " " + segments, "drop untranslatable"},
		{flow + " ttl=1", "drop ttl_exceeded"},
	} {
		r.expect(0, c.line, c.want)
	}
	reply := "udp [2001:4860::8]:53 > [2001:db8:1::5]:1000"
	r.expect(1, reply+" "+ah, "drop untranslatable")
	r.expect(1, reply+" "+segments, "drop untranslatable")
	if r.only().Last != last {
		t.Error("a dropped packet refreshed the session")
	}
	// A SYN that ends or answers something begins no session.
	for _, flags := range []string{"FIN,SYN", "SYN,RST", "SYN,ACK", "FIN,SYN,PSH", "SYN,RST,URG"} {
		r.forget()
		r.expect(0, "tcp 10.0.0.5:1000 > 8.8.8.8:443 "+flags, "tcp 192.0.2.5:1000 > 8.8.8.8:443 "+flags)
		r.expect(0, "tcp 10.0.0.6:1000 > 8.8.8.8:443 "+flags, "drop no_session")
		if n := r.sessions.Len(); n != 0 {
			t.Errorf("%s began %d sessions", flags, n)
		}
	}
}

// A spoofed source learns nothing of TTLs: no error is sent to whom it names.
func TestNoErrorToASpoofedSource(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	for _, line := range []string{"udp 10.0.0.77:5 > 8.8.8.8:53 ttl=1", "udp 8.8.4.4:5 > 10.0.0.5:53 ttl=1", "udp [fd00::77]:5 > [2001:4860::8]:53 ttl=1"} {
		r.expect(0, line, "drop antispoof")
		if m := r.punts.Peek(); m != nil {
			t.Errorf("%s: an error is sent for %v", line, m.Reason)
		}
	}
	r.expect(0, "udp 10.0.0.5:5 > 8.8.8.8:53 ttl=1", "drop ttl_exceeded")
	if m := r.punts.Peek(); m == nil || m.Kind != state.PuntError || m.Reason != drop.TTLExceeded {
		t.Errorf("an instance's own packet: %+v", m)
	}
}

// A configured MAC comes into force with its generation: not before every worker is past the old
// one, and never if the generation is discarded.
func TestMACComesWithItsGeneration(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	mac := func() config.MAC {
		t.Helper()
		f := r.process(1, parseLine(t, 1, "udp 8.8.8.8:53 > 192.0.2.5:5"))[0]
		return config.MAC(f.frame[:6])
	}
	old, next := config.MAC{2, 0, 0, 0, 1, 5}, config.MAC{2, 0, 0, 0, 1, 0x55}
	compile := func(text string) *generation.Generation {
		t.Helper()
		g, err := r.compiler.Compile(parseConfig(t, text))
		if err != nil {
			t.Fatal(err)
		}
		anySource(g)
		r.gens = append(r.gens, g)
		return g
	}
	text := strings.Replace(rigConfig, old.String(), next.String(), 1)
	compile(text)
	if got := mac(); got != old {
		t.Errorf("compiled and not in force: %v", got)
	}
	r.compiler.Discard()
	if got := mac(); got != old {
		t.Errorf("discarded: %v", got)
	}
	r.reload(strings.Replace(rigConfig, "name: none", "name: nobody", 1)) // nothing is left for the next one's Retire
	if got := mac(); got != old {
		t.Errorf("discarded, and another one in force: %v", got)
	}
	r.SetGeneration(compile(text))
	if got := mac(); got != old {
		t.Errorf("before Retire: %v", got)
	}
	r.compiler.Retire()
	if got := mac(); got != next {
		t.Errorf("after Retire: %v, want %v", got, next)
	}
	// No MAC any more: it has to be resolved, from Retire on.
	r.SetGeneration(compile(strings.Replace(rigConfig, `mac: "02:00:00:00:01:05", `, "", 1)))
	if got := mac(); got != next {
		t.Errorf("before Retire: %v", got)
	}
	r.compiler.Retire()
	r.expect(1, "udp 8.8.8.8:53 > 192.0.2.5:5", "held")
}
