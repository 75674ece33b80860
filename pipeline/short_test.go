// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/pipeline/packettext"
	"weir/pipeline/session"
)

// processLong is Process without the short way.
func (w *Worker) processLong(b *Burst) {
	w.received(b)
	w.counters.ReceivedBytes[b.Port] += w.intake(b, false)
	for i := range b.N {
		b.Packets[i].plain = false
	}
	w.finish(b)
}

// chatter makes random packets of few flows, most of them of the kind that go the short way.
type chatter struct {
	*rand.Rand
	t   testing.TB
	ack uint32
}

var talkers = []struct{ inside, outside, remote, protos string }{
	{"10.0.0.5", "192.0.2.5", "8.8.8.8", "udp tcp icmp"},
	{"10.0.0.6", "192.0.2.6", "8.8.8.8", "udp tcp"},
	{"10.0.0.6", "192.0.2.6", "198.51.100.77", "udp"}, // on the link
	{"10.0.0.7", "192.0.2.21", "8.8.4.4", "udp tcp"},
	{"[fd00::5]", "[2001:db8:1::5]", "[2001:4860::8]", "udp tcp"},
	{"[fd00::6]", "[2001:db8:1::6]", "[2001:4860::8]", "udp tcp"},
	{"10.0.0.5", "192.0.2.5", "192.0.2.6", "udp"}, // turns back
}

// frame returns a packet into port.
func (k *chatter) frame(port int) []byte {
	c := talkers[k.IntN(len(talkers))]
	proto := "udp"
	if len(c.protos) > 3 && k.IntN(2) == 0 {
		proto = "tcp"
	}
	local, remote := 1000+k.IntN(3), 53
	ends := fmt.Sprintf("%s:%d > %s:%d", c.inside, local, c.remote, remote)
	if port == 1 {
		outside := local
		if k.IntN(2) == 0 { // a guess at what SNAT may have chosen
			outside = 1024 + k.IntN(8)
		}
		ends = fmt.Sprintf("%s:%d > %s:%d", c.remote, remote, c.outside, outside)
	}
	line := proto + " " + ends
	if proto == "tcp" {
		k.ack += uint32(k.IntN(3)) * 100
		flags := []string{"ACK", "ACK", "ACK", "ACK", "ACK,PSH", "SYN", "SYN,ACK", "FIN,ACK", "RST"}
		line += fmt.Sprintf(" %s seq=%d ack=%d", flags[k.IntN(len(flags))], k.ack, k.ack)
	}
	size := k.IntN(64)
	if k.IntN(20) == 0 { // as long as a link takes, or about that
		size = 1432 + 20*k.IntN(3) + k.IntN(3)
	}
	line += fmt.Sprintf(" len=%d", size)
	switch k.IntN(40) {
	case 0:
		line += " ttl=1"
	case 1:
		line += " ttl=2"
	case 2, 3, 4, 5, 6:
		if c.inside[0] != '[' {
			line += " df"
		}
	}
	return parseLine(k.t, port, line)
}

// spoil changes some frames a little.
func (k *chatter) spoil(f []byte) []byte {
	switch k.IntN(20) {
	case 0:
		if len(f) > 0 {
			f[k.IntN(len(f))] ^= 1 << k.IntN(8)
		}
	case 1:
		f = f[:k.IntN(len(f)+1)]
	case 2:
		f = append(f, make([]byte, k.IntN(20))...)
	}
	return f
}

// contents lists the sessions, wherever they lie: what ends in the middle of a burst may make room
// earlier or later.
func (r *rig) contents() (list []string) {
	for ref := range uint32(r.sessions.Capacity()) {
		if s := *r.sessions.At(ref); s.State() != session.Free {
			if s.Mapping != session.None {
				s.Mapping = 0
			}
			s.Prev, s.Next = 0, 0
			list = append(list, fmt.Sprintf("%+v\n", s))
		}
	}
	slices.Sort(list)
	return list
}

// What parsePlain takes, parse lets pass and understands in the same way.
func TestPlainIsParsed(t *testing.T) {
	k := &chatter{Rand: rand.New(rand.NewPCG(1, 2)), t: t}
	w := newRig(t, rigConfig, [6]byte{}).Worker
	rounds, plain := 60_000, 0
	if testing.Short() {
		rounds = 10_000
	}
	for range rounds {
		port := k.IntN(2)
		f := k.frame(port)
		for range k.IntN(3) {
			f = k.spoil(f)
		}
		a, b := Packet{Data: f, Long: k.IntN(50) == 0}, Packet{Data: f}
		b.Long = a.Long
		a.kind, b.kind, a.tcpFlags, b.tcpFlags = kindError, kindTCP, 0xff, 0x55 // left over from the packet before
		if !a.parsePlain(port == 0, w.macs[port]) {
			continue
		}
		plain++
		if r := w.parse(&b, port == 0, w.macs[port]); r != goesOn {
			t.Fatalf("%s (%x): parse says %v", packettext.Format(f), f, r)
		}
		b.plain = true
		if fmt.Sprintf("%+v", a) != fmt.Sprintf("%+v", b) {
			t.Fatalf("%s (%x):\nparsePlain %+v\nparse      %+v", packettext.Format(f), f, a, b)
		}
	}
	if plain < rounds/4 {
		t.Errorf("of %d frames only %d were plain: the test shows little", rounds, plain)
	}
}

// Two workers that are alike, of which one never goes the short way, send the same frames in the
// same order, count the same, and have the same sessions in the end.
func TestShortIsLong(t *testing.T) {
	k := &chatter{Rand: rand.New(rand.NewPCG(3, 4)), t: t}
	text := strings.Replace(rigConfig, "ports: 1024-65535}, ", // and one of its flows is a forward's
		"ports: 1024-65535, forward: [{protocol: udp, port: 1025, to_port: 1001}, {protocol: tcp, port: 1026, to_port: 1001}]}, ", 1)
	short, long := newRig(t, text, [6]byte{2, 0, 0, 0, 2, 2}), newRig(t, text, [6]byte{2, 0, 0, 0, 2, 2})
	rigs := []*rig{short, long}
	rounds := 4_000
	if testing.Short() {
		rounds = 1_000
	}
	configs := []string{text, text + "      - {name: another, addresses: [10.0.0.10]}\n"}
	went := 0
	for round := range rounds {
		port, n := k.IntN(2), 1+k.IntN(MaxBurst)
		var frames [][]byte
		for range n {
			frames = append(frames, k.spoil(k.frame(port)))
		}
		step := time.Duration(k.IntN(50)) * time.Millisecond
		if k.IntN(200) == 0 {
			step = 6 * time.Minute
		}
		var sent [2][]string
		for i, r := range rigs {
			r.after(step)
			if round%200 == 199 {
				r.reload(configs[round/200%2])
			}
			r.Expire(r.sessions.Capacity())
			b := new(Burst)
			b.Port, b.N = port, n
			for j, f := range frames {
				b.Packets[j].Data, b.Packets[j].Handle = bytes.Clone(f), uintptr(j+1)
			}
			if r == short {
				r.Process(b)
				for j := range n {
					if p := &b.Packets[j]; p.plain && p.act == actNone && !bytes.Equal(p.Data, frames[j][:min(len(p.Data), len(frames[j]))]) {
						went++
					}
				}
			} else {
				r.processLong(b)
			}
			for p := range r.Out {
				for j := range r.Out[p].N {
					sent[i] = append(sent[i], fmt.Sprintf("port %d, packet %d: %x", p, r.Out[p].Handles[j], r.Out[p].Frames[j]))
				}
			}
			r.drain()
			r.balanced()
		}
		if fmt.Sprint(sent[0]) != fmt.Sprint(sent[1]) {
			for j := range min(len(sent[0]), len(sent[1])) {
				if sent[0][j] != sent[1][j] {
					t.Fatalf("round %d, frame %d of %d and %d:\nshort %s\nlong  %s", round, j, len(sent[0]), len(sent[1]), sent[0][j], sent[1][j])
				}
			}
			t.Fatalf("round %d: %d and %d frames", round, len(sent[0]), len(sent[1]))
		}
		if *short.counters != *long.counters {
			t.Fatalf("round %d:\nshort %+v\nlong  %+v", round, *short.counters, *long.counters)
		}
		if a, b := short.contents(), long.contents(); round%20 == 0 && !slices.Equal(a, b) {
			t.Fatalf("round %d: sessions\nshort %s\nlong  %s", round, a, b)
		}
	}
	if went < rounds {
		t.Errorf("in %d rounds only %d packets went the short way: the test shows little", rounds, went)
	}
	t.Logf("%d packets went the short way, %d were forwarded", went, short.counters.Forwarded)
}

// A flag goes the long way until somebody allows it: the short way knows nothing of it.
func TestFlagsGoTheLongWayUntilAllowed(t *testing.T) {
	allowed := map[uint16]bool{ // with OnLink, which only concerns the way out
		session.SNAT: true, session.FromOutside: true, session.SeenInside: true, session.SeenOutside: true,
		session.FinInside: true, session.FinOutside: true, session.Draining: true, session.Reset: true, session.Paired: true,
		session.Refresh: true, session.Bound: true, session.Forward: true,
	}
	w := newTestWorker(t, benchConfig)
	ref, s, ok := w.sessions.Alloc()
	if !ok {
		t.Fatal("no session")
	}
	*s = session.Session{Generation: uint32(w.gen.Number)}
	s.SetState(session.UDP)
	for _, inside := range []bool{true, false} {
		if s.Flags = 0; !w.settled(ref, longFlags(inside)) {
			t.Fatal("a session without flags goes the long way")
		}
		for bit := range 16 {
			s.Flags = 1 << bit
			want := allowed[s.Flags] || s.Flags == session.OnLink && !inside
			if got := w.settled(ref, longFlags(inside)); got != want {
				t.Errorf("flag %#x, from inside %t: short way %t, expected %t", s.Flags, inside, got, want)
			}
		}
	}
}
