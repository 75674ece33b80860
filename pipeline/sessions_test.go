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
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// Each step is a direction, TCP flags, and the state that the session is in afterwards.
func TestTCPStates(t *testing.T) {
	const opening, open, closing = session.TCPOpening, session.TCPOpen, session.TCPClosing
	type step struct {
		from, flags string
		want        session.State
	}
	handshake := []step{{"in", "SYN", opening}, {"out", "SYN,ACK", opening}, {"in", "ACK", open}}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"handshake", handshake},
		{"simultaneous open", []step{{"in", "SYN", opening}, {"out", "SYN", open}, {"in", "SYN,ACK", open}, {"out", "SYN,ACK", open}, {"in", "ACK", open}}},
		{"SYN again and again", []step{{"in", "SYN", opening}, {"in", "SYN", opening}, {"in", "SYN", opening}}},
		{"no answer is no connection", []step{{"in", "SYN", opening}, {"in", "ACK", opening}}},
		{"the Internet's side alone does not open it", []step{{"in", "SYN", opening}, {"out", "SYN,ACK", opening}, {"out", "SYN,ACK", opening}}},
		{"FIN from inside first", slices.Concat(handshake, []step{{"in", "FIN,ACK", open}, {"out", "ACK", open}, {"out", "FIN,ACK", closing}, {"in", "ACK", closing}})},
		{"FIN from outside first", slices.Concat(handshake, []step{{"out", "FIN,ACK", open}, {"in", "ACK", open}, {"in", "FIN,ACK", closing}, {"out", "ACK", closing}})},
		{"FIN on one side stays open", slices.Concat(handshake, []step{{"in", "FIN,ACK", open}, {"out", "PSH,ACK", open}, {"out", "PSH,ACK", open}, {"in", "ACK", open}})},
		{"RST from outside", slices.Concat(handshake, []step{{"out", "RST", closing}, {"out", "ACK", closing}, {"in", "PSH,ACK", open}, {"out", "ACK", open}})},
		{"RST from inside", slices.Concat(handshake, []step{{"in", "RST,ACK", closing}})},
		{"refused", []step{{"in", "SYN", opening}, {"out", "RST,ACK", closing}}},
		{"refused and tried again", []step{{"in", "SYN", opening}, {"out", "RST,ACK", closing}, {"in", "SYN", opening}, {"out", "SYN,ACK", opening}, {"in", "ACK", open}}},
		{"reopened from inside", slices.Concat(handshake, []step{{"in", "FIN,ACK", open}, {"out", "FIN,ACK", closing}, {"in", "SYN", opening}, {"out", "SYN,ACK", opening}, {"in", "ACK", open}})},
		{"reopened from outside", slices.Concat(handshake, []step{{"in", "FIN,ACK", open}, {"out", "FIN,ACK", closing}, {"out", "SYN", closing}, {"in", "SYN,ACK", opening}, {"out", "ACK", open}})},
		{"old FINs are forgotten", slices.Concat(handshake, []step{{"in", "FIN,ACK", open}, {"out", "FIN,ACK", closing}, {"in", "SYN", opening}, {"out", "SYN,ACK", opening}, {"in", "ACK", open}, {"in", "FIN,ACK", open}})},
		{"SYN on an established one", slices.Concat(handshake, []step{{"in", "SYN", open}, {"out", "ACK", open}})},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, rigConfig, config.MAC{})
			var conversation talk
			for i, s := range c.steps {
				if s.from == "in" {
					text := conversation.say(0, s.flags, 0)
					r.expect(0, "tcp 10.0.0.5:40000 > 8.8.8.8:443 "+text, "tcp 192.0.2.5:40000 > 8.8.8.8:443 "+text)
				} else {
					text := conversation.say(1, s.flags, 0)
					r.expect(1, "tcp 8.8.8.8:443 > 192.0.2.5:40000 "+text, "tcp 8.8.8.8:443 > 10.0.0.5:40000 "+text)
				}
				if got := r.only().State(); got != s.want {
					t.Fatalf("step %d, %s %s: %v, want %v", i, s.from, s.flags, got, s.want)
				}
			}
			if n := r.counters.SessionsCreated; n != 1 {
				t.Errorf("%d sessions were made, want 1", n)
			}
		})
	}
}

// stateLines brings a session through SNAT into each state.
var stateLines = []struct {
	state   session.State
	timeout time.Duration
	lines   []string // from inside; < from outside
}{
	{session.UDP, 5 * time.Minute, []string{"udp 10.0.0.6:5000 > 8.8.8.8:4500"}},
	{session.ICMP, time.Minute, []string{"icmp echo-request 10.0.0.6 > 8.8.8.8 id=5000"}},
	{session.TCPOpening, 4 * time.Minute, []string{"tcp 10.0.0.6:5000 > 8.8.8.8:4500 SYN"}},
	{session.TCPOpen, 2*time.Hour + 4*time.Minute, []string{"tcp 10.0.0.6:5000 > 8.8.8.8:4500 SYN", "<SYN,ACK ack=1", "tcp 10.0.0.6:5000 > 8.8.8.8:4500 ACK seq=1 ack=1"}},
	{session.TCPClosing, 4 * time.Minute, []string{"tcp 10.0.0.6:5000 > 8.8.8.8:4500 SYN", "<SYN,ACK ack=1", "tcp 10.0.0.6:5000 > 8.8.8.8:4500 FIN,ACK seq=1 ack=1", "<FIN,ACK seq=1 ack=2"}},
}

// play sends the lines and returns the answer of the remote to the last one from inside.
func (r *rig) play(lines []string) (answer string) {
	r.t.Helper()
	for _, l := range lines {
		if flags, ok := strings.CutPrefix(l, "<"); ok {
			words := strings.Fields(answer)
			words[4] = flags
			if got := r.send(1, strings.Join(words, " ")); !strings.HasPrefix(got, "tcp 8.8.8.8:4500 > 10.0.0.6:5000") {
				r.t.Fatalf("%s: %s", l, got)
			}
			continue
		}
		out := r.send(0, l)
		words := strings.Fields(out)
		switch words[0] {
		case "icmp":
			answer = fmt.Sprintf("icmp echo-reply 8.8.8.8 > 192.0.2.6 %s", words[5])
		case "tcp":
			answer = fmt.Sprintf("tcp 8.8.8.8:4500 > %s %s", words[1], strings.Replace(words[4], "SYN", "SYN,ACK", 1))
		default:
			answer = fmt.Sprintf("udp 8.8.8.8:4500 > %s", words[1])
		}
	}
	return answer
}

// A session lives for its state's timeout to the millisecond, is refreshed from inside only, and
// all that also where the clock's milliseconds start again from 0.
func TestTimers(t *testing.T) {
	for _, start := range []int64{1e9, (1<<32 - 1000) * 1e6, (1<<32 - 100_000) * 1e6} {
		for _, c := range stateLines {
			t.Run(fmt.Sprintf("%v at %d", c.state, start/1e9), func(t *testing.T) {
				r := newRig(t, rigConfig, config.MAC{})
				lives := func() bool { r.Expire(r.Capacity()); return r.sessions.Len() == 1 }
				begin := func() string {
					r.forget()
					r.rewind(start)
					answer := r.play(c.lines)
					if got := r.only().State(); got != c.state {
						t.Fatalf("state %v", got)
					}
					return answer
				}
				begin()
				if r.after(c.timeout); !lives() {
					t.Error("gone at its timeout")
				}
				if r.after(time.Millisecond); lives() {
					t.Error("alive a millisecond after its timeout")
				}

				// What comes from outside passes, and refreshes nothing.
				answer := begin()
				for range 10 {
					r.after(c.timeout / 10)
					if got := r.send(1, answer); strings.HasPrefix(got, "drop") {
						t.Fatalf("%s: %s", answer, got)
					}
				}
				if r.after(time.Millisecond); r.send(1, answer) != "drop unsolicited" {
					t.Error("kept alive from outside")
				}

				// What comes from inside refreshes.
				answer = begin()
				last := c.lines[0]
				if len(c.lines) > 1 {
					last = c.lines[2]
				}
				for range 5 {
					if r.after(c.timeout); strings.HasPrefix(r.send(0, last), "drop") {
						t.Fatal("ended in spite of packets from inside")
					}
				}
				if n := r.counters.SessionsEnded; n != 2 { // the two of above
					t.Errorf("%d sessions ended, want 2", n)
				}

				// The look-up alone ends what is over, without Expire.
				r.after(c.timeout + time.Millisecond)
				if got := r.send(1, answer); got != "drop unsolicited" {
					t.Errorf("after its timeout: %s", got)
				}
				if r.sessions.Len() != 0 {
					t.Error("the look-up leaves it in the table")
				}
			})
		}
	}
}

// An outsider cannot keep a session alive by resets and SYNs in turn, not even when the instance
// resets back.
func TestResetsDoNotRefresh(t *testing.T) {
	for _, inside := range []bool{false, true} {
		r := newRig(t, rigConfig, config.MAC{})
		answer := r.play(stateLines[3].lines)
		syn, rst := strings.Replace(answer, "ACK", "SYN seq=77", 1), strings.Replace(answer, "ACK", "RST seq=1", 1)
		ended := func() bool { r.Expire(r.Capacity()); return r.sessions.Len() == 0 }
		for minutes := 0; !ended(); minutes++ {
			if minutes > 5 {
				t.Fatalf("still alive after %d minutes (instance resets: %t)", minutes, inside)
			}
			r.send(1, rst)
			r.send(1, syn)
			if inside {
				r.send(0, "tcp 10.0.0.6:5000 > 8.8.8.8:53 RST,ACK seq=1 ack=1")
			}
			r.after(time.Minute)
		}
	}
}

// outsideTo is a packet from a remote host of its own to one of several floating addresses.
func outsideTo(i int, address string) string {
	return fmt.Sprintf("udp 9.9.%d.%d:%d > %s:53", i>>8&255, i&255, 1000+i>>16, address)
}

// unconfirmedConfig limits the instance "several" to 16 sessions, a quarter of which may be
// unconfirmed.
var unconfirmedConfig = strings.Replace(rigConfig, "{name: several,", "{name: several, limits: {per_instance: 16},", 1)

// unconfirm sends n packets from outside, each of which has to begin a session, and returns their
// lines.
func (r *rig) unconfirm(n int) (lines []string) {
	r.t.Helper()
	for i := 0; len(lines) < n; i++ {
		made := r.counters.SessionsCreated
		line := outsideTo(i, "192.0.2.20")
		if got := r.send(1, line); !strings.Contains(got, "> 10.0.0.7:53") {
			r.t.Fatalf("%s: %s", line, got)
		}
		if r.counters.SessionsCreated > made {
			lines = append(lines, line)
		}
		if i > 100*n {
			r.t.Fatal("nothing from outside begins a session")
		}
	}
	return lines
}

func TestUnconfirmed(t *testing.T) {
	r := newRig(t, unconfirmedConfig, config.MAC{})
	reply := func(line string) string {
		w := strings.Fields(line)
		return r.send(0, fmt.Sprintf("udp 10.0.0.7:53 > %s", w[1]))
	}
	lines := r.unconfirm(4)
	if n := r.sessions.Len(); n != 4 {
		t.Fatalf("%d sessions", n)
	}
	// More take the place of the oldest.
	lines = append(lines, r.unconfirm(5)...)
	if n := r.instanceOf("several").Unconfirmed; n != 4 || r.sessions.Len() != 4 {
		t.Errorf("%d unconfirmed of %d sessions, want 4: a quarter of 16", n, r.sessions.Len())
	}
	for i, line := range lines {
		if lives := r.began(line); lives != (i >= 5) {
			t.Errorf("session %d of 9 lives: %t", i, lives)
		}
	}
	// A packet that begins nothing puts nobody out: the instance has a flow of its own with that
	// remote endpoint.
	for port := range 100 {
		out := strings.Fields(r.send(0, fmt.Sprintf("udp 10.0.0.7:53 > 7.7.7.7:%d", 1+port)))
		r.send(1, fmt.Sprintf("udp 7.7.7.7:%d > 192.0.2.20:53", 1+port))
		if !strings.HasPrefix(out[1], "192.0.2.20:") && !r.began(lines[5]) {
			t.Fatal("the oldest unconfirmed session had to go for one that was not made")
		}
		if r.sessions.Len() > 10 {
			break
		}
	}
	// Confirmed by a reply, from the address that was asked, one makes room.
	r.forget()
	lines = r.unconfirm(4)
	if got, want := reply(lines[2]), "udp 192.0.2.20:53 > "+strings.Fields(lines[2])[1]; got != want {
		t.Errorf("the reply: %s, want %s", got, want)
	}
	if n := r.instanceOf("several").Unconfirmed; n != 3 || r.sessions.Len() != 4 {
		t.Errorf("%d unconfirmed of %d, want 3 of 4", n, r.sessions.Len())
	}
	// 30 seconds, whatever comes from outside meanwhile; the confirmed one stays.
	r.after(30 * time.Second)
	r.Expire(r.Capacity())
	if r.sessions.Len() != 4 {
		t.Errorf("%d sessions at 30 s, want 4", r.sessions.Len())
	}
	r.send(1, lines[0])
	r.after(time.Millisecond)
	r.Expire(r.Capacity())
	if r.sessions.Len() != 1 || r.instanceOf("several").Unconfirmed != 0 {
		t.Errorf("%d sessions after 30 s, want 1", r.sessions.Len())
	}
	if err := r.sessions.Check(); err != nil {
		t.Error(err)
	}
}

// began reports whether a packet that came by this line has a session of its own.
func (r *rig) began(line string) bool {
	words := strings.Fields(line)
	local, remote := netip.MustParseAddrPort(words[3]), netip.MustParseAddrPort(words[1])
	k := session.OutsideKey(inet.FromNetip(local.Addr()), inet.FromNetip(remote.Addr()), local.Port(), remote.Port(), header.ProtocolUDP)
	return r.sessions.Find(&k) != session.None
}

// instanceOf returns the usage of an instance of the first VPC.
func (r *rig) instanceOf(name string) *state.Usage {
	i := slices.IndexFunc(r.cfg.VPCs[0].Instances, func(in config.Instance) bool { return in.Name == name })
	return &r.state.Instances[r.gen.Instances[i].Slot]
}

// A flow keeps its address when another one is added; without its session it follows the function.
func TestAffinity(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	more := strings.Replace(rigConfig, "192.0.2.22,", "192.0.2.22, 192.0.2.23, 192.0.2.24, 192.0.2.25, 192.0.2.26, 192.0.2.27,", 1)
	const flows = 200
	line := func(i int) string { return fmt.Sprintf("udp 10.0.0.7:%d > 8.8.8.8:53", 2000+i) }
	before := make([]string, flows)
	for i := range flows {
		before[i] = r.send(0, line(i))
	}
	r.reload(more)
	for i := range flows {
		r.expect(0, line(i), before[i])
	}
	r.forget()
	moved := 0
	for i := range flows {
		if now := r.send(0, line(i)); now != before[i] {
			moved++
		}
	}
	if moved < flows*40/100 || moved > flows*85/100 { // 5 of 8 addresses are new
		t.Errorf("without sessions %d of %d flows moved, want about %d", moved, flows, flows*5/8)
	}
}

// At a new generation a session is held against each rule of 2.5.
func TestRecheck(t *testing.T) {
	edit := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(rigConfig) }
	const (
		one    = "udp 10.0.0.5:1000 > 8.8.8.8:53"
		shared = "udp 10.0.0.6:1000 > 8.8.8.8:53"
	)
	for _, c := range []struct {
		name, line, text string
		lives            bool
	}{
		{"nothing changes", one, rigConfig, true},
		{"another instance comes", one, edit("instances:\n", "instances:\n      - {name: new, addresses: [10.0.0.77]}\n"), true},
		{"more specific route to the same gateway", one, edit("routes: [", "routes: [{to: 8.8.8.0/24, gateway: g}, "), true},
		{"no route", one, edit("{to: 0.0.0.0/0, gateway: g}, ", ""), false},
		{"drop", one, edit("routes: [", "routes: [{to: 8.8.8.8/32, drop: true}, "), false},
		{"drop elsewhere", one, edit("routes: [", "routes: [{to: 8.8.8.9/32, drop: true}, "), true},
		{"VPC-internal", one, edit("routes: [", "routes: [{to: 8.8.8.0/24, address: 10.0.0.6}, "), false},
		{"its gateway has no pools any more: keep", one, edit("pools: [p, attached]", "pools: [attached]"), true},
		{"... drain", one, edit("pools: [p, attached]", "pools: [attached]", "vpcs:", "sessions: {on_move: drain}\nvpcs:"), true},
		{"... cut", one, edit("pools: [p, attached]", "pools: [attached]", "vpcs:", "sessions: {on_move: cut}\nvpcs:"), false},
		{"address taken away", one, edit("[192.0.2.5, ", "["), false},
		{"address exchanged", one, edit("[192.0.2.5, ", "[192.0.2.99, "), false},
		{"another address beside it", one, edit("[192.0.2.5, ", "[192.0.2.5, 192.0.2.99, "), true},
		{"address given to another", one, edit("[192.0.2.5, ", "[", "[192.0.2.20, ", "[192.0.2.5, 192.0.2.20, "), false},
		{"address ephemeral now", one, edit("{floating: [192.0.2.5, ", "{ephemeral: [192.0.2.5], floating: ["), true},
		{"address shared now", one, edit("{floating: [192.0.2.5, \"2001:db8:1::5\"]", "{snat: [{address: 192.0.2.5, ports: 1000-2000}], floating: [\"2001:db8:1::5\"]"), false},
		{"private address changes", one, edit("[10.0.0.5, ", "[10.0.0.55, "), false},
		{"renamed", one, edit("name: one", "name: two"), true},
		{"remote is an external address now", one, edit("ranges: [192.0.2.0/24,", "ranges: [192.0.2.0/24, 8.8.8.0/24,", "[192.0.2.30]", "[8.8.8.8]"), false},
		{"SNAT: nothing changes", shared, rigConfig, true},
		{"SNAT: the range shrinks to others", shared, edit("{address: 192.0.2.6, ports: 1024-65535}", "{address: 192.0.2.6, ports: 1-1}"), false},
		{"SNAT: the range is another's", shared, edit("{address: 192.0.2.6, ports: 1024-65535}", "{address: 192.0.2.6, ports: 1-1}",
			"external: {ephemeral: [192.0.2.30]", "external: {snat: [{address: 192.0.2.6, ports: 1024-65535}], ephemeral: [192.0.2.30]"), false},
		{"SNAT: split ranges, all the instance's", shared, edit("{address: 192.0.2.6, ports: 1024-65535}",
			"{address: 192.0.2.6, ports: 1024-30000}, {address: 192.0.2.6, ports: 30001-65535}"), true},
		{"SNAT: the address is floating now", shared, edit("snat: [{address: 192.0.2.6, ports: 1024-65535}, ", "floating: [192.0.2.6], snat: ["), false},
		{"SNAT: a floating address beside it", shared, edit("external: {snat: [{address: 192.0.2.6,", "external: {floating: [192.0.2.99], snat: [{address: 192.0.2.6,"), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, rigConfig, config.MAC{})
			before := r.send(0, c.line)
			if r.sessions.Len() != 1 {
				t.Fatal(before)
			}
			r.reload(c.text)
			r.Expire(r.Capacity())
			if lives := r.sessions.Len() == 1; lives != c.lives {
				t.Fatalf("lives: %t, want %t", lives, c.lives)
			}
			if c.lives {
				r.expect(0, c.line, before)
			}
			if made := r.counters.SessionsCreated; c.lives && made != 1 {
				t.Errorf("%d sessions were made", made)
			}
		})
	}
}

// An address that moves to another instance takes no session along, and leaves no second one under
// the same key.
func TestAddressMovesToAnotherInstance(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	r.expect(0, "udp 10.0.0.8:1000 > 8.8.8.8:53", "udp 192.0.2.30:1000 > 8.8.8.8:53")
	r.reload(strings.NewReplacer("[192.0.2.30]", "[192.0.2.31]", "[192.0.2.5, ", "[192.0.2.30, ").Replace(rigConfig))
	r.expect(0, "udp 10.0.0.5:1000 > 8.8.8.8:53", "udp 192.0.2.30:1000 > 8.8.8.8:53")
	if err := r.sessions.Check(); err != nil {
		t.Error(err)
	}
	r.expect(1, "udp 8.8.8.8:53 > 192.0.2.30:1000", "udp 8.8.8.8:53 > 10.0.0.5:1000")
	r.expect(0, "udp 10.0.0.8:1000 > 8.8.8.8:53", "udp 192.0.2.31:1000 > 8.8.8.8:53")
	if r.sessions.Len() != 2 {
		t.Errorf("%d sessions, want 2", r.sessions.Len())
	}
}

// A draining session lives for drain_timeout, whatever it does, and no longer.
func TestDrain(t *testing.T) {
	const line, want = "udp 10.0.0.5:1000 > 8.8.8.8:4500", "udp 192.0.2.5:1000 > 8.8.8.8:4500"
	text := strings.NewReplacer("pools: [p, attached]", "pools: [attached]", "vpcs:", "sessions: {on_move: drain, drain_timeout: 10m}\nvpcs:").Replace(rigConfig)
	r := newRig(t, rigConfig, config.MAC{})
	r.expect(0, line, want)
	r.reload(text)
	for range 10 {
		r.expect(0, line, want)
		r.after(time.Minute - time.Millisecond)
	}
	r.expect(0, line, want)
	r.after(10 * time.Millisecond)
	r.expect(0, line, "drop no_eligible_address")
}

// limit reads a limit off by making sessions until one is refused.
func (r *rig) limit(line func(i int) string) (n int, refused string) {
	for ; n < 5000; n++ {
		if got := r.send(0, line(n)); strings.HasPrefix(got, "drop") {
			return n, got
		}
	}
	return n, ""
}

func TestLimits(t *testing.T) {
	shared := func(i int) string { return fmt.Sprintf("udp 10.0.0.6:%d > 8.8.8.8:53", 1000+i) }
	one := func(i int) string { return fmt.Sprintf("udp 10.0.0.5:%d > 8.8.8.8:53", 1000+i) }
	for _, c := range []struct {
		name, text string
		limit      int
		reason     string
	}{
		{"instance", strings.Replace(rigConfig, "{name: shared,", "{name: shared, limits: {per_instance: 40},", 1), 40, "drop limit_instance"},
		{"VPC", strings.Replace(rigConfig, "- name: v\n", "- name: v\n    limits: {per_vpc: 50}\n", 1), 50, "drop limit_vpc"},
		{"table", strings.Replace(rigConfig, "sessions: 4096", "sessions: 1024", 1), 929, "drop fair_share"}, // the level is at 896, in the rank up to 928
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.text, config.MAC{})
			n, refused := r.limit(shared)
			if n != c.limit || refused != c.reason {
				t.Fatalf("%d sessions, then %q; want %d, %q", n, refused, c.limit, c.reason)
			}
			// Those that live go on.
			if got := r.send(0, shared(0)); strings.HasPrefix(got, "drop") {
				t.Errorf("a live one: %s", got)
			}
			// 1:1 needs no state.
			before := r.counters.Stateless
			for i := range 100 {
				r.expect(0, one(i), fmt.Sprintf("udp 192.0.2.5:%d > 8.8.8.8:53", 1000+i))
				r.expect(1, fmt.Sprintf("udp 8.8.8.8:53 > 192.0.2.5:%d", 1000+i), fmt.Sprintf("udp 8.8.8.8:53 > 10.0.0.5:%d", 1000+i))
			}
			if got := r.counters.Stateless - before; c.name != "instance" && got != 200 {
				t.Errorf("%d packets went without a session, want 200", got)
			}
			// When the sessions end, new ones begin.
			r.after(6 * time.Minute)
			r.Expire(r.Capacity())
			if r.sessions.Len() != 0 {
				t.Fatalf("%d sessions live", r.sessions.Len())
			}
			if got := r.send(0, shared(1)); strings.HasPrefix(got, "drop") {
				t.Errorf("after all others ended: %s", got)
			}
		})
	}
}

// sixteen gives the instance a range of 16 ports, which serve many remote endpoints at once.
var sixteen = strings.Replace(rigConfig+"sessions: {mapping: address-and-port-dependent}\n", "{address: 192.0.2.6, ports: 1024-65535}", "{address: 192.0.2.6, ports: 2000-2009}, {address: 192.0.2.6, ports: 3000-3005}", 1)

// A range of 16 ports, in two pieces, serves exactly 16 flows towards one remote endpoint, and each
// port once.
func TestPortsExhausted(t *testing.T) {
	r := newRig(t, sixteen, config.MAC{})
	ports := map[uint16]bool{}
	for i := range 16 {
		f := r.process(0, parseLine(t, 0, fmt.Sprintf("udp 10.0.0.6:%d > 8.8.8.8:53", 1000+i)))[0]
		if f.port != 1 {
			t.Fatalf("flow %d of 16 is refused", i)
		}
		p := portOf(f.frame)
		if ports[p] || !(p >= 2000 && p <= 2009 || p >= 3000 && p <= 3005) {
			t.Fatalf("port %d: twice or not in the range", p)
		}
		ports[p] = true
	}
	r.expect(0, "udp 10.0.0.6:999 > 8.8.8.8:53", "drop ports_exhausted")
	// The same ports serve other remote endpoints (RFC 7857 section 3), be it another port or
	// another address.
	for _, remote := range []string{"8.8.8.8:54", "8.8.4.4:53"} {
		for i := range 16 {
			if got := r.send(0, fmt.Sprintf("udp 10.0.0.6:%d > %s", 1000+i, remote)); strings.HasPrefix(got, "drop") {
				t.Fatalf("flow %d to %s: %s", i, remote, got)
			}
		}
		r.expect(0, "udp 10.0.0.6:999 > "+remote, "drop ports_exhausted")
	}
	// Nobody is put out, and other protocols have ports of their own.
	if r.sessions.Len() != 3*16 {
		t.Errorf("%d sessions, want 48", r.sessions.Len())
	}
	for _, line := range []string{"tcp 10.0.0.6:999 > 8.8.8.8:53 SYN", "icmp echo-request 10.0.0.6 > 8.8.8.8 id=9"} {
		if got := r.send(0, line); strings.HasPrefix(got, "drop") {
			t.Errorf("%s: %s", line, got)
		}
	}
	// The ports of sessions that are over serve again, without Expire.
	r.after(6 * time.Minute)
	if got := r.send(0, "udp 10.0.0.6:998 > 8.8.8.8:53"); strings.HasPrefix(got, "drop") {
		t.Errorf("after the timeout: %s", got)
	}
}

// Chosen ports are spread evenly: chi-square over 64 buckets, and neighbors in time are no
// neighbors in number.
func TestPortsAreRandom(t *testing.T) {
	const n, buckets = 12_800, 64
	text := strings.Replace(rigConfig, "sessions: 4096", "sessions: 16384", 1)
	text = strings.Replace(text, "{address: 192.0.2.6, ports: 1024-65535}", "{address: 192.0.2.6, ports: 1024-33791}", 1) // 32,768 ports
	r := newRig(t, text, config.MAC{})
	var count [buckets]int
	var last, near int
	for i := range n {
		f := r.process(0, parseLine(t, 0, fmt.Sprintf("udp 10.0.0.6:%d > 8.8.8.8:53", 1000+i)))[0]
		p := int(portOf(f.frame)) - 1024
		count[p/(32768/buckets)]++
		if d := p - last; -4 < d && d < 4 {
			near++
		}
		last = p
	}
	chi := 0.0
	for _, c := range count {
		d := float64(c) - n/buckets
		chi += d * d / (n / buckets)
	}
	// 63 degrees of freedom: 0.001 of all generators exceed 103.4. One that avoids taken ports is a
	// little more even.
	if chi > 103.4 || chi < 20 {
		t.Errorf("chi-square %.1f over %d buckets: %v", chi, buckets, count)
	}
	if near > 40 { // expected: 7 of 32,768 for each
		t.Errorf("%d of %d ports are beside the one before", near, n)
	}
}

// Two first packets of one flow in one burst make one session and leave by one port; so do their
// replies.
func TestOneSessionPerBurst(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	line := "udp 10.0.0.6:1000 > 8.8.8.8:53 len=4"
	fates := r.process(0, parseLine(t, 0, line), parseLine(t, 0, "udp 10.0.0.6:1001 > 8.8.8.8:53"), parseLine(t, 0, line), parseLine(t, 0, line))
	if a, b, c := bare(fates[0].frame), bare(fates[2].frame), bare(fates[3].frame); a != b || a != c {
		t.Errorf("%s and %s and %s", a, b, c)
	}
	if r.sessions.Len() != 2 {
		t.Errorf("%d sessions, want 2", r.sessions.Len())
	}
	// From outside: a session begins only where the function would not choose that address.
	made := r.counters.SessionsCreated
	for i := range 30 {
		f := parseLine(t, 1, outsideTo(i, "192.0.2.20"))
		r.process(1, f, slices.Clone(f), slices.Clone(f))
	}
	if n := r.counters.SessionsCreated - made; n < 5 || n > 30 {
		t.Errorf("%d sessions from 30 flows", n)
	}
}

// The packets of a burst with all kinds of fates leave in the order in which they came.
func TestOrderInABurst(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	lines := []string{"udp 10.0.0.5:%d > 8.8.8.8:53", "udp 10.0.0.6:%d > 8.8.8.8:53", "udp 10.0.0.77:%d > 8.8.8.8:53", "udp 10.0.0.7:%d > 100.64.0.1:5",
		"udp 10.0.0.5:%d > 10.0.0.1:5", "udp 10.0.0.5:%d > 10.0.0.99:5", "udp 10.0.0.9:%d > 8.8.8.8:5", "udp 203.0.113.17:%d > 8.8.8.8:5"}
	for round := range 3 {
		var frames [][]byte
		for i := range MaxBurst {
			flow := i % (2 * len(lines))
			frames = append(frames, parseLine(t, 0, fmt.Sprintf(lines[flow%len(lines)]+" len=%d", 1000+flow/len(lines), 20+i)))
		}
		var b Burst
		b.N = MaxBurst
		for i, f := range frames {
			b.Packets[i].Data, b.Packets[i].Handle = f, uintptr(i+1)
		}
		r.Process(&b)
		for p := range r.Out {
			last := uintptr(0)
			for i := range r.Out[p].N {
				if h := r.Out[p].Handles[i]; h <= last {
					t.Errorf("round %d, port %d: packet %d leaves after packet %d", round, p, h, last)
				} else {
					last = h
				}
			}
		}
		if n := r.Out[1].N; n != 3*MaxBurst/8 { // floating, SNAT, attached
			t.Errorf("round %d: %d packets left, want %d", round, n, 3*MaxBurst/8)
		}
		if r.holding != 3 { // of eight
			t.Errorf("%d are held, want 3", r.holding)
		}
		r.drain()
		r.balanced()
	}
}

// When a pool's mapping becomes endpoint-independent, sessions that overload a port stay: a flow of
// the port's new owner towards the same remote endpoint is refused.
func TestMappingChangeEvictsNobody(t *testing.T) {
	eim := strings.Replace(rigConfig, "{address: 192.0.2.6, ports: 1024-65535}", "{address: 192.0.2.6, ports: 1024-1024}", 1)
	r := newRig(t, strings.Replace(eim, "vpcs:", "sessions: {mapping: address-and-port-dependent}\nvpcs:", 1), config.MAC{})
	const first = "udp 10.0.0.6:1 > 8.8.8.8:53"
	r.expect(0, first, "udp 192.0.2.6:1024 > 8.8.8.8:53")
	r.reload(eim)
	r.expect(0, "udp 10.0.0.6:2 > 8.8.8.8:53", "drop ports_exhausted")
	r.expect(0, "udp 10.0.0.6:2 > 8.8.4.4:53", "udp 192.0.2.6:1024 > 8.8.4.4:53")
	r.expect(0, first, "udp 192.0.2.6:1024 > 8.8.8.8:53")
	if r.counters.SessionsEnded != 0 {
		t.Errorf("%d sessions ended, expected none", r.counters.SessionsEnded)
	}
	if err := r.state.Check(); err != nil {
		t.Error(err)
	}
}

// A hairpinned flow's sessions are for packets that turn back: nobody outside gets in with the
// address of its other end.
func TestHairpinLetsNoSpoofedSourceIn(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	out := strings.Fields(r.send(0, "udp 10.0.0.6:1000 > 192.0.2.5:53")) // as 10.0.0.5 sees it
	r.expect(1, "udp 192.0.2.5:53 > "+out[1], "drop own_source")
	r.expect(0, "udp 10.0.0.5:53 > "+out[1], "udp 192.0.2.5:53 > 10.0.0.6:1000")
}
