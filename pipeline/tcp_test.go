// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/packettext"
	"weir/pipeline/respond"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// talk gives the segments of a connection the numbers that two proper hosts would.
type talk struct {
	next [2]uint32 // per side, inside first: what it sends next
	isn  uint32
	syn  [2]bool // a SYN is the last that it said
}

// say returns the flags, numbers and n bytes of the next segment of a side as packettext has them.
func (c *talk) say(side int, flags string, n int) string {
	has := func(f string) bool { return strings.Contains(flags, f) }
	if has("SYN") {
		if !has("ACK") || !c.syn[side] {
			c.isn += 1_000_003
			c.next[side] = c.isn
		} else {
			c.next[side]-- // the same number as the SYN before
		}
	}
	c.syn[side] = has("SYN")
	text := flags
	if seq := c.next[side]; seq != 0 {
		text += fmt.Sprintf(" seq=%d", seq)
	}
	if has("ACK") && c.next[1-side] != 0 {
		text += fmt.Sprintf(" ack=%d", c.next[1-side])
	}
	if n > 0 {
		text += fmt.Sprintf(" len=%d", n)
	}
	if has("SYN") || has("FIN") {
		c.next[side]++
	}
	c.next[side] += uint32(n)
	return text
}

// connect establishes a connection from private port 5000 through SNAT and returns the external
// endpoint and the talk.
func (r *rig) connect() (external string, c *talk) {
	r.t.Helper()
	c = &talk{}
	out := r.send(0, "tcp 10.0.0.6:5000 > 8.8.8.8:443 "+c.say(0, "SYN", 0))
	external = strings.Fields(out)[1]
	r.send(1, "tcp 8.8.8.8:443 > "+external+" "+c.say(1, "SYN,ACK", 0))
	r.send(0, "tcp 10.0.0.6:5000 > 8.8.8.8:443 "+c.say(0, "ACK", 0))
	if s := r.only().State(); s != session.TCPOpen {
		r.t.Fatalf("%v after the handshake", s)
	}
	return external, c
}

// Two hosts talk over a path that loses, repeats and reorders; their numbers are kept in 64 bits
// here, so that nothing wraps. What the session knows is what passed it: never ahead of what was
// said, nor behind what both have since heard of.
func TestSequenceNumbers(t *testing.T) {
	rnd := rand.New(rand.NewPCG(6, 6))
	for round := range 200 {
		s := new(session.Session)
		*s = session.Session{Flags: session.SeenInside | session.SeenOutside}
		s.SetState(session.TCPOpen)
		w := new(Worker)
		var base [2]uint32
		for i := range base {
			if base[i] = rnd.Uint32(); round%2 == 0 { // soon 0, or soon half way round
				base[i] = uint32(round%4/2)<<31 - uint32(rnd.IntN(1<<20))
			}
		}
		low := func(side int, n uint64) uint32 { return base[side] + uint32(n) }
		var next, heard, passedEnd, passedAck [2]uint64 // of each side: sent, received of the other in order; of those, what passed
		type piece struct{ seq, end, ack uint64 }
		for i := range s.End {
			s.End[i], s.Ack[i] = base[i], base[1-i]
		}
		var last [2]piece
		for range 3000 {
			side := rnd.IntN(2)
			p := piece{next[side], next[side], heard[side]}
			switch rnd.IntN(10) {
			case 0: // a keepalive
				if p.seq > 0 {
					p.seq--
					p.end = p.seq
				}
			case 1: // what was sent before
				if last[side].end > 0 {
					p = last[side]
				}
			default:
				size := uint64(rnd.IntN(1 << 16))
				if rnd.IntN(20) == 0 {
					size = uint64(rnd.IntN(1 << 24))
				}
				if next[side]-heard[1-side] < 1<<26 { // the window
					p.end += size
					next[side] = p.end
				}
			}
			last[side] = p
			if rnd.IntN(8) == 0 { // lost before it came here
				continue
			}
			g := segment{low(side, p.seq), low(side, p.end), low(1-side, p.ack), tcpACK}
			if side == inSide {
				sent(s, &g)
			} else if p.ack >= passedAck[side] && !came(s, &g) {
				t.Fatalf("round %d: a segment in order is not taken for the connection's", round)
			}
			if side == inSide || p.ack >= passedAck[side] {
				passedEnd[side] = max(passedEnd[side], p.end)
				passedAck[side] = max(passedAck[side], p.ack)
				if side == inSide {
					passedEnd[outSide] = max(passedEnd[outSide], p.ack)
				}
			}
			if rnd.IntN(8) != 0 { // received
				heard[1-side] = max(heard[1-side], p.end)
			}
			for i := range s.End {
				if s.End[i] != low(i, passedEnd[i]) || s.Ack[i] != low(1-i, passedAck[i]) {
					t.Fatalf("round %d, side %d: end %d ack %d, want %d %d", round, i, s.End[i], s.Ack[i], low(i, passedEnd[i]), low(1-i, passedAck[i]))
				}
			}
			// Who sees nothing: a reset with any number but the two, and data that acknowledges
			// nothing on its way.
			if guess := rnd.Uint32(); guess != s.Ack[inSide] && guess != s.End[outSide] {
				before := *s
				if w.changeTCP(s, &segment{guess, guess, rnd.Uint32(), tcpRST}, false) || *s != before {
					t.Fatalf("round %d: a reset at %d passed", round, guess)
				}
			}
			if guess := low(inSide, passedEnd[inSide]+1+rnd.Uint64N(1<<31-1)); true {
				before := *s
				if came(s, &segment{rnd.Uint32(), rnd.Uint32(), guess, tcpACK}) || *s != before {
					t.Fatalf("round %d: it believed an acknowledgment of what nobody sent", round)
				}
			}
			for _, seq := range []uint32{s.Ack[inSide], s.End[outSide]} {
				copied := *s
				if !w.changeTCP(&copied, &segment{seq, seq, 0, tcpRST}, false) || copied.State() != session.TCPClosing {
					t.Fatalf("round %d: a reset at %d, which fits, has no effect", round, seq)
				}
			}
		}
	}
}

// S-6: resets with the server's address over all ports, and very many with random numbers to the
// right one, change nothing while data goes on; each is counted.
func TestOffPathResets(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	external, c := r.connect()
	rnd := rand.New(rand.NewPCG(7, 7))
	port := strings.Split(external, ":")[1]
	reset := parseLine(t, 1, "tcp 8.8.8.8:443 > "+external+" RST,ACK")
	var right uint16
	fmt.Sscan(port, &right)
	state := *r.only()
	misfits := uint64(0)
	var b Burst
	b.Port = 1
	spoof := func(ports func(i int) uint16) {
		for i := 0; i < 1<<16; {
			for b.N = 0; b.N < 32; b.N++ {
				f := slices.Clone(reset)
				p := ports(i)
				binary.BigEndian.PutUint16(f[36:], p)
				binary.BigEndian.PutUint32(f[38:], rnd.Uint32()|1<<31) // both ends are far from there
				binary.BigEndian.PutUint32(f[42:], rnd.Uint32()|1<<31)
				if p == right {
					misfits++
				}
				b.Packets[b.N].Data, b.Packets[b.N].Handle = f, uintptr(i)
				i++
			}
			r.Process(&b)
			if r.Out[0].N != 0 {
				t.Fatalf("a spoofed reset passed: %s", packettext.Format(r.Out[0].Frames[0]))
			}
			r.drain()
			if i%4096 == 0 {
				line := "8.8.8.8:443 > " + external + " " + c.say(1, "PSH,ACK", 100)
				r.expect(1, "tcp "+line, "tcp "+strings.Replace(line, external, "10.0.0.6:5000", 1))
				line = "10.0.0.6:5000 > 8.8.8.8:443 " + c.say(0, "PSH,ACK", 50)
				r.expect(0, "tcp "+line, "tcp "+strings.Replace(line, "10.0.0.6:5000", external, 1))
				state = *r.only()
			} else if *r.only() != state {
				t.Fatal("the session changed")
			}
		}
	}
	spoof(func(i int) uint16 { return uint16(i) })
	spoof(func(int) uint16 { return right })
	if got := r.counters.Dropped[drop.TCPReset]; got != misfits || misfits != 1<<16+1 {
		t.Errorf("%d resets counted, want %d", got, misfits)
	}
	if got := r.counters.Dropped[drop.Unsolicited]; got != 1<<16-1 {
		t.Errorf("%d unsolicited, want all but one port", got)
	}
	// An idle connection lives for its whole time all the same.
	r.after(2*time.Hour + 4*time.Minute)
	r.Expire(r.Capacity())
	if r.sessions.Len() != 1 || r.only().State() != session.TCPOpen {
		t.Error("the connection was shortened")
	}
}

// M-7: every combination of flags, to a flow and to none, from both sides, through SNAT and 1:1.
// Only a SYN without FIN, RST and ACK begins a session; with a session everything passes but resets
// from outside that do not fit; a segment of no connection changes nothing.
func TestAllFlags(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	for flags := range 256 {
		var names []string
		for i, n := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
			if flags>>i&1 != 0 {
				names = append(names, n)
			}
		}
		text := strings.Join(names, ",")
		if text == "" {
			text = "none"
		}
		plain := flags&(tcpFIN|tcpSYN|tcpRST|tcpACK) == tcpSYN
		r.forget()
		line := "tcp 10.0.0.5:5000 > 8.8.8.8:443 " + text
		r.expect(0, line, strings.Replace(line, "10.0.0.5", "192.0.2.5", 1))
		if n := r.sessions.Len(); (n == 1) != plain {
			t.Errorf("1:1, %s: %d sessions", text, n)
		}
		r.forget()
		got := r.send(0, "tcp 10.0.0.6:5000 > 8.8.8.8:443 "+text)
		if plain != strings.HasPrefix(got, "tcp 192.0.2.6:") || !plain && got != "drop no_session" {
			t.Errorf("SNAT, %s: %s", text, got)
		}
		r.forget()
		r.expect(1, "tcp 8.8.8.8:443 > 192.0.2.6:5000 "+text, "drop unsolicited")
		r.expect(1, "tcp 8.8.8.8:443 > 192.0.2.5:5000 "+text, "tcp 8.8.8.8:443 > 10.0.0.5:5000 "+text)
		if n := r.sessions.Len(); n != 0 {
			t.Errorf("from outside, %s: %d sessions", text, n)
		}
		// A live flow.
		external, c := r.connect()
		before := *r.only()
		fields := text + " seq=77 ack=88"
		line = "tcp 8.8.8.8:443 > " + external + " " + fields
		want := "tcp 8.8.8.8:443 > 10.0.0.6:5000 " + fields
		if flags&tcpRST != 0 {
			want = "drop tcp_reset_out_of_window"
		}
		r.expect(1, line, want)
		if *r.only() != before {
			t.Errorf("%s from outside, not in sequence, changed the session", text)
		}
		r.expect(0, "tcp 10.0.0.6:5000 > 8.8.8.8:443 "+fields, "tcp "+external+" > 8.8.8.8:443 "+fields)
		if got := r.only().State(); got != session.TCPOpen {
			t.Errorf("%s from inside: %v", text, got)
		}
		line = "tcp 8.8.8.8:443 > " + external + " " + c.say(1, "PSH,ACK", 5)
		r.expect(1, line, strings.Replace(line, external, "10.0.0.6:5000", 1))
	}
}

// slowClamp is RFC 9293 §3.2 read slowly: it returns what the options are to be.
func slowClamp(options []byte, limit int) []byte {
	out := bytes.Clone(options)
	rest := out
	for len(rest) > 0 && rest[0] != 0 {
		length := 1
		if rest[0] != 1 {
			if len(rest) == 1 {
				return out
			}
			if length = int(rest[1]); length < 2 || length > len(rest) {
				return out
			}
		}
		if rest[0] == 2 && length == 4 && int(rest[2])<<8+int(rest[3]) > limit {
			rest[2], rest[3] = byte(limit>>8), byte(limit)
		}
		rest = rest[length:]
	}
	return out
}

// M-6: hand-made lists of options, and many more at random, both families, both directions, SYN and
// not: what the slow reading says comes out, and every checksum that was right is right.
func TestClampOptions(t *testing.T) {
	lists := []string{"", "00", "01", "02", "0200", "0201", "0202", "0203", "0204", "020405", "020405b4", "02040000", "0204ffff", "02040514",
		"01020405b4", "0101020405b4", "010101020405b4", "020405b4020405b4", "020405b401020405b4", "00020405b4", "0300020405b4", "0301020405b4",
		"0302020405b4", "0303070204ffff", "03ff020405b4", "0328020405b4", "020305", "0205050505", "0206050505b4020405b4", "02ff05b4",
		"080a0000000100000002020405b4", "01080a0000000100000002020405b4", "0402020405b4", "0402020405b40103030a", "fe04beef020405b4",
		"fd0200020405b4", "05020204ffff", "22020204ffff", "1e0c000000000000000000000204ffff", "0101010101010102", "010101010101010204",
		"01010101010101020405", "0204", "020401", "04", "0402", "040204020402020405b4", "080a", "080a00", "0101010102", "02040204020402040204",
		"0404020405b4", "0202020405b4", "0202020202020405b4", "01000000020405b4", "0100020405b4", "0401020405b4", "0200020405b4", "0201020405b4",
		"0224020405b4020405b4", "ffffffff", "00000000", strings.Repeat("01", 40), strings.Repeat("01", 36) + "0204ffff", strings.Repeat("01", 39) + "02",
		strings.Repeat("01", 38) + "0204", strings.Repeat("01", 37) + "020405", strings.Repeat("0204ffff", 10), "01" + strings.Repeat("0204ffff", 9)}
	if len(lists) < 64 {
		t.Fatalf("%d lists, want 64", len(lists))
	}
	r := newRig(t, strings.Replace(rigConfig, "side: outside,", "side: outside, mtu: 1400,", 1), config.MAC{})
	rnd := rand.New(rand.NewPCG(8, 8))
	rounds := 20_000
	if testing.Short() {
		rounds = 2_000
	}
	for i := range rounds {
		var options []byte
		if i < len(lists) {
			fmt.Sscanf(lists[i], "%x", &options)
		} else {
			for n := rnd.IntN(41); len(options) < n; {
				options = append(options, []byte{0, 1, 1, 2, 2, 3, 4, byte(rnd.Uint32())}[rnd.IntN(8)])
				if rnd.IntN(2) == 0 {
					options = append(options, []byte{2, 4, 4, 10, byte(rnd.Uint32())}[rnd.IntN(5)])
				}
			}
			options = options[:min(len(options), 40)]
		}
		for len(options)%4 != 0 { // as the header's length does
			options = append(options, 0)
		}
		flags, limit := []string{"SYN", "SYN,ACK", "ACK", "none", "FIN,PSH,ACK"}[i%5], 1360
		if i < len(lists) {
			flags = "SYN"
		}
		from, to := "10.0.0.5:5000 > 8.8.8.8:443", "192.0.2.5:5000 > 8.8.8.8:443"
		port := 0
		switch i / 5 % 4 {
		case 1:
			from, to, port = "8.8.8.8:443 > 192.0.2.5:5000", "8.8.8.8:443 > 10.0.0.5:5000", 1
		case 2:
			from, to, limit = "[fd00::5]:5000 > [2001:4860::8]:443", "[2001:db8:1::5]:5000 > [2001:4860::8]:443", 1340
		case 3:
			from, to, port, limit = "[2001:4860::8]:443 > [2001:db8:1::5]:5000", "[2001:4860::8]:443 > [fd00::5]:5000", 1, 1340
		}
		want := options
		if strings.Contains(flags, "SYN") {
			want = slowClamp(options, limit)
		}
		line := func(ends string, options []byte) string {
			opt := ""
			if len(options) > 0 {
				opt = fmt.Sprintf(" opt=%x", options)
			}
			return fmt.Sprintf(`tcp %s %s seq=1 ack=2%s "odd"`, ends, flags, opt)
		}
		if i%100 == 0 {
			r.forget()
		}
		frame := parseLine(t, port, line(from, options))
		got := r.process(port, frame)[0] // which verifies the checksums
		if got.port != 1-port {
			t.Fatalf("%s was dropped", line(from, options))
		}
		if expected := bare(parseLine(t, 0, line(to, want))); bare(got.frame) != expected {
			t.Fatalf("%s\n got %s\nwant %s", line(from, options), bare(got.frame), expected)
		}
	}
}

// under pressure what has not been answered ends after ten seconds; what is established is not
// touched; the pressure ends well below where it began.
func TestPressure(t *testing.T) {
	r := newRig(t, strings.Replace(rigConfig, "vpcs:", "sessions: {limits: {per_instance: 0}}\nvpcs:", 1), config.MAC{})
	const established = 100
	for i := range established {
		c := &talk{}
		flow := fmt.Sprintf("10.0.0.6:%d > 8.8.4.4:443 ", 1000+i)
		external := strings.Fields(r.send(0, "tcp "+flow+c.say(0, "SYN", 0)))[1]
		r.send(1, "tcp 8.8.4.4:443 > "+external+" "+c.say(1, "SYN,ACK", 0))
		r.send(0, "tcp "+flow+c.say(0, "ACK", 0))
	}
	open := func() (n int) {
		for ref := range uint32(r.sessions.Capacity()) {
			if r.sessions.At(ref).State() == session.TCPOpen {
				n++
			}
		}
		return n
	}
	flood := 0
	syns := func(n int) (refused int) {
		for range n {
			if strings.HasPrefix(r.send(0, fmt.Sprintf("tcp 10.0.0.6:%d > 8.8.8.8:%d SYN", 1024+flood%60000, 1+flood/60000)), "drop") {
				refused++
			}
			flood++
		}
		return refused
	}
	walk := func() {
		for range 3 { // what mappings leave is free a turn later
			r.Expire(r.Capacity())
			r.after(time.Millisecond)
		}
	}
	quarters := func(n int) int { return r.sessions.Capacity() / 4 * n }

	syns(quarters(3) - established - 1)
	r.after(time.Minute)
	walk()
	if n := r.sessions.Len(); n != quarters(3)-1 {
		t.Fatalf("below three quarters a minute ended half-open sessions: %d are left", n)
	}
	syns(1)
	walk()
	if n := r.sessions.Len(); n != established+1 {
		t.Fatalf("at three quarters %d are left, want those established and the youngest", n)
	}
	// Still pressed until it is seen to be over, and then not any more.
	syns(1000)
	walk()
	r.after(time.Minute)
	walk()
	if n := r.sessions.Len(); n != established+1001 {
		t.Fatalf("the pressure goes on at a quarter: %d are left", n)
	}
	// A flood much larger than the table: those established live, and ten seconds after it
	// everybody is served.
	if syns(40_000) < 30_000 {
		t.Fatal("the flood does not fill the table")
	}
	if open() != established {
		t.Errorf("%d of %d established are left in the flood", open(), established)
	}
	walk()
	r.after(generation.PressedTimeout + time.Millisecond)
	walk()
	if n := r.sessions.Len(); n != established {
		t.Errorf("%d sessions ten seconds after the flood, want %d", n, established)
	}
	r.after(time.Second) // their ports rest a little
	walk()
	if refused := syns(1000); refused != 0 || open() != established {
		t.Errorf("%d of 1000 refused after the flood; %d of %d established", refused, open(), established)
	}
	// Hysteresis: between five and six eighths what was goes on.
	walk()
	if r.pressed != 0 {
		t.Fatal("pressed at a quarter")
	}
	syns(quarters(3) - r.sessions.Len() - 1)
	if walk(); r.pressed != 0 {
		t.Error("pressed one below three quarters")
	}
	syns(1)
	if walk(); r.pressed != 1 {
		t.Error("not pressed at three quarters")
	}
	if r.counters.Pressed != 1 {
		t.Error("the gauge does not show the pressure")
	}
	for r.sessions.Len() >= r.sessions.Capacity()/8*5 {
		if r.pressed != 1 {
			t.Fatalf("the pressure is off at %d", r.sessions.Len())
		}
		for ref := range uint32(r.sessions.Capacity()) {
			if r.sessions.At(ref).State() == session.TCPOpening {
				r.end(ref)
				break
			}
		}
		r.Expire(1)
	}
	if r.Expire(1); r.pressed != 0 {
		t.Error("pressed below five eighths")
	}
}

// The clock starts anywhere, wraps anywhere, and never runs back; a jump is what it says.
func TestClock(t *testing.T) {
	day := int64(24 * time.Hour)
	for _, start := range []int64{1, 1e6 * (1<<32 - 1), 1e6*(1<<32) - 5e9, 1e6*(1<<31) - 5e9, 1<<63 - 5e9, 1<<62 + 12345} {
		t.Run(fmt.Sprint(start), func(t *testing.T) {
			r := newRig(t, rigConfig, config.MAC{})
			r.rewind(start)
			_, c := r.connect()
			data := func() string { return r.send(0, "tcp 10.0.0.6:5000 > 8.8.8.8:443 "+c.say(0, "PSH,ACK", 1)) }
			lives := func() bool { r.Expire(r.Capacity()); return r.sessions.Len() == 1 }
			for range 20 { // across the wrap, and a second at a time
				r.after(time.Second)
				if data(); !lives() {
					t.Fatal("it ended while data passed")
				}
			}
			// Back by an hour, by ten years, by a nanosecond: not believed.
			for _, back := range []time.Duration{time.Nanosecond, time.Millisecond, time.Hour, 10 * 365 * 24 * time.Hour} {
				now := r.nanos
				r.SetClock(now - int64(back))
				if r.nanos != now || !lives() {
					t.Fatalf("%v back: the clock went from %d to %d, the session lives: %t", back, now, r.nanos, lives())
				}
			}
			// Forward within the timeout, and to its very end.
			r.after(time.Hour)
			if !lives() {
				t.Fatal("an hour ended it")
			}
			r.after(time.Hour + 4*time.Minute)
			if !lives() {
				t.Fatal("ended at its last moment")
			}
			data()
			r.after(2*time.Hour + 4*time.Minute + time.Millisecond)
			if lives() {
				t.Fatal("it outlives its timeout")
			}
			// Far jumps, such as a machine that was stopped: whatever the low 32 bits say of it, up
			// to the wrap.
			for _, days := range []int64{1, 20, 25, 30, 49} {
				c.isn += 1000
				r.connect()
				r.SetClock(r.nanos + days*day)
				if lives() {
					t.Errorf("%d days ended nothing", days)
				}
			}
		})
	}
}

// A token bucket goes on at the same rate across the wrap of nanoseconds.
func TestBucketAcrossTheWrap(t *testing.T) {
	for _, start := range []int64{0, 1, 1<<63 - 5e9, -3e9} {
		var b bucket
		taken, now := 0, start
		for range 10_000 {
			for b.take(now, 100, 50) {
				taken++
			}
			now += 1e6
		}
		if want := 50 + 100*10; taken < want-2 || taken > want+1 {
			t.Errorf("from %d: %d in ten seconds, want %d", start, taken, want)
		}
	}
}

// OPTE#436: the same source port, again and again; the server's last FIN may be lost, and either
// side may close.
func TestSamePortAgain(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	var c talk
	external := ""
	in := func(flags string, n int) {
		t.Helper()
		text := c.say(0, flags, n)
		got := r.send(0, "tcp 10.0.0.6:5000 > 8.8.8.8:443 "+text)
		if external == "" {
			external = strings.Fields(got)[1]
		}
		if want := "tcp " + external + " > 8.8.8.8:443 " + text; got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
	out := func(flags string, n int) {
		t.Helper()
		text := c.say(1, flags, n)
		r.expect(1, "tcp 8.8.8.8:443 > "+external+" "+text, "tcp 8.8.8.8:443 > 10.0.0.6:5000 "+text)
	}
	for i := range 20 {
		in("SYN", 0)
		out("SYN,ACK", 0)
		in("ACK", 0)
		in("PSH,ACK", 100)
		out("PSH,ACK", 1000)
		switch i % 5 {
		case 0:
			in("FIN,ACK", 0)
			out("FIN,ACK", 0)
			in("ACK", 0)
		case 1:
			out("FIN,ACK", 0)
			in("FIN,ACK", 0)
			out("ACK", 0)
		case 2: // the server's FIN does not come
			in("FIN,ACK", 0)
			out("ACK", 0)
		case 3:
			in("RST,ACK", 0)
		case 4:
			out("RST,ACK", 0)
		}
		if n := r.counters.SessionsCreated; n != 1 {
			t.Fatalf("connection %d: %d sessions were made", i, n)
		}
		r.after(time.Second)
	}
}

// The reset for unknown TCP has a rate, that of ICMP errors, and is asked for TCP alone.
func TestUnknownTCPRate(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	asked := func() int { return askedFor(r.punts) }
	for i := range 1000 {
		r.expect(0, fmt.Sprintf("tcp 10.0.0.6:%d > 8.8.8.8:443 ACK", 1000+i), "drop no_session")
	}
	if n := asked(); n < errorVPCBurst*2/3 || n > errorVPCBurst*4/3 {
		t.Errorf("%d answers to 1000 segments at once, want about %d", n, errorVPCBurst)
	}
	r.after(time.Second)
	for _, line := range []string{"tcp 10.0.0.6:5 > 8.8.8.8:443 RST", "icmp echo-reply 10.0.0.6 > 8.8.8.8 id=1"} {
		r.expect(0, line, "drop no_session")
	}
	if n := asked(); n != 0 {
		t.Errorf("%d answers to a reset and an echo reply", n)
	}
	r.reload(strings.Replace(rigConfig, "vpcs:", "sessions: {unknown_tcp: drop}\nvpcs:", 1))
	r.expect(0, "tcp 10.0.0.6:5 > 8.8.8.8:443 ACK", "drop no_session")
	if n := asked(); n != 0 {
		t.Error("answered with unknown_tcp: drop")
	}
}

// askedFor empties a ring to control and returns how many messages it had.
func askedFor(ring state.Ring) (n int) {
	for ; ring.Peek() != nil; n++ {
		ring.Pop()
	}
	return n
}

// For a while after a start no reset answers what is unknown, as all may be; ICMP errors do. The
// clock wakes it, whatever it shows.
func TestQuietAfterStart(t *testing.T) {
	for _, start := range []int64{1, 1e9, 1 << 62} {
		r := newRig(t, rigConfig, config.MAC{})
		r.Worker = NewWorker(r.state, 0, r.gens[0], WorkerConfig{MACs: r.macsOf(), Seed: &testSeed, Quiet: time.Minute})
		r.SetClock(start)
		ask := func() int {
			r.expect(0, "tcp 10.0.0.6:5 > 8.8.8.8:443 ACK", "drop no_session")
			return askedFor(r.punts)
		}
		for _, at := range []struct {
			after time.Duration
			want  int
		}{{0, 0}, {time.Minute - 1, 0}, {1, 1}, {time.Hour, 1}} {
			if r.after(at.after); ask() != at.want {
				t.Errorf("started at %d, %v later: expected %d answers", start, time.Duration(r.nanos-start), at.want)
			}
		}
		// A reload is no start.
		if r.reload(rigConfig); ask() != 1 {
			t.Error("no answer after a reload")
		}
		r.Worker = NewWorker(r.state, 0, r.gen, WorkerConfig{MACs: r.macsOf(), Seed: &testSeed, Quiet: time.Minute})
		r.SetClock(start + 1)
		r.expect(0, "tcp 10.0.0.9:5 > 8.8.8.8:443 ACK", "drop no_eligible_address")
		if m := r.punts.Peek(); m == nil || m.Reason != drop.NoEligible {
			t.Error("no ICMP error in the first minute")
		}
	}
}

// A reset of weir's own is right for segments of any length, also such as the ring to control cuts.
func TestResetForACutSegment(t *testing.T) {
	cfg := strings.NewReplacer("device: net_null0,", "device: net_null0, mtu: 9000,", "vpcs:", "sessions: {unknown_tcp: reset}\nvpcs:").Replace(rigConfig)
	for _, c := range []struct{ line, want string }{
		{"tcp 10.0.0.6:5 > 8.8.8.8:443 none seq=4294967000 len=8000", "tcp 8.8.8.8:443 > 10.0.0.6:5 RST,ACK ack=7704 win=0 df"},
		{"tcp [fd00::6]:5 > [2001:4860::8]:443 none seq=1 ext=dst len=8000", "tcp [2001:4860::8]:443 > [fd00::6]:5 RST,ACK ack=8001 win=0"},
	} {
		r := newRig(t, cfg, config.MAC{})
		r.expect(0, c.line, "drop no_session")
		answer := respond.New(r.state, []config.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}})
		answer.Passive = true
		answer.Configure(r.cfg, r.gen)
		answer.Poll(r.nanos)
		m := r.state.Inject(0).Peek()
		if m == nil {
			t.Fatalf("no answer to %s", c.line)
		}
		if err := packettext.Verify(m.Data()); err != nil {
			t.Error(err)
		}
		if got := bare(m.Data()); got != c.want || m.At != attach.Port(0) {
			t.Errorf("%s\n got %s by %v\nwant %s", c.line, got, m.At, c.want)
		}
	}
}
