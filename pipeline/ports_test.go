// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline/session"
)

// newShare makes a rig whose instance 10.0.0.6 has a few ports of 192.0.2.6.
func newShare(t *testing.T, ports, more string) *rig {
	t.Helper()
	text := strings.Replace(rigConfig, "{address: 192.0.2.6, ports: 1024-65535}", "{address: 192.0.2.6, ports: "+ports+"}", 1)
	return newRig(t, text+more, config.MAC{})
}

// server is one that closes first and keeps TIME_WAIT: for a minute it takes a SYN from the same
// endpoint only with a number beyond all that the last connection had (RFC 9293 §3.6.1).
type server struct {
	waits map[string]timeWait
}

type timeWait struct {
	next  uint32
	until int64
}

// visit opens a connection through SNAT to a server and closes it. It returns "" or what went
// wrong.
func (v *server) visit(r *rig, private int, isn uint32) string {
	const remote = "8.8.8.8:80"
	local := fmt.Sprintf("10.0.0.6:%d", private)
	out := func(format string, args ...any) string {
		return r.send(0, fmt.Sprintf("tcp %s > %s ", local, remote)+fmt.Sprintf(format, args...))
	}
	got := out("SYN seq=%d", isn)
	external, _, ok := strings.Cut(strings.TrimPrefix(got, "tcp "), " ")
	if !ok || !strings.HasPrefix(external, "192.0.2.6:") {
		return got
	}
	if w := v.waits[external]; r.nanos < w.until && int32(isn-w.next) <= 0 {
		return fmt.Sprintf("the server in TIME_WAIT takes no SYN of %d from %s: it has had %d", isn, external, w.next)
	}
	in := func(format string, args ...any) string {
		return r.send(1, fmt.Sprintf("tcp %s > %s ", remote, external)+fmt.Sprintf(format, args...))
	}
	theirs := isn ^ 0x5555_5555
	for _, got := range []string{
		in("SYN,ACK seq=%d ack=%d", theirs, isn+1),
		out("ACK seq=%d ack=%d", isn+1, theirs+1),
		out("PSH,ACK seq=%d ack=%d len=100", isn+1, theirs+1),
		in("FIN,ACK seq=%d ack=%d", theirs+1, isn+101),
		out("FIN,ACK seq=%d ack=%d", isn+101, theirs+2),
		in("ACK seq=%d ack=%d", theirs+2, isn+102),
	} {
		if !strings.HasPrefix(got, "tcp ") {
			return got
		}
	}
	v.waits[external] = timeWait{isn + 102, r.nanos + time.Minute.Nanoseconds()}
	return ""
}

// Ten thousand connections, each from another endpoint, pass through 1,024 ports to one server that
// keeps TIME_WAIT.
func TestManyConnectionsThroughFewPorts(t *testing.T) {
	n := 10_000
	if testing.Short() {
		n = 3_000
	}
	for _, mapping := range []string{"endpoint-independent", "address-and-port-dependent"} {
		t.Run(mapping, func(t *testing.T) {
			r := newShare(t, "1024-2047", "sessions: {mapping: "+mapping+"}\n")
			random := rand.New(rand.NewPCG(5, 7))
			v := server{map[string]timeWait{}}
			for i := range n {
				if fault := v.visit(r, 1024+i, random.Uint32()); fault != "" {
					t.Fatalf("connection %d: %s", i, fault)
				}
				r.after(2 * time.Millisecond) // all within TIME_WAIT
				r.Expire(16)
			}
			if len(v.waits) < 1000 {
				t.Errorf("%d of 1,024 ports were used", len(v.waits))
			}
			if live := r.sessions.Len(); live > 1024 {
				t.Errorf("%d sessions on 1,024 ports with one remote endpoint", live)
			}
			if err := r.state.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A resolver asks 20 times a second for five minutes, each time from another endpoint, and gets all
// answers through 1,024 ports.
func TestResolverThroughFewPorts(t *testing.T) {
	r := newShare(t, "1024-2047", "")
	queries := 6000
	if testing.Short() {
		queries = 3000
	}
	for i := range queries {
		local, remote := fmt.Sprintf("10.0.0.6:%d", 1024+i*7%60000), fmt.Sprintf("8.8.%d.8:53", i%8)
		got := r.send(0, fmt.Sprintf("udp %s > %s", local, remote))
		words := strings.Fields(got)
		if len(words) < 2 || words[0] != "udp" {
			t.Fatalf("query %d: %s", i, got)
		}
		r.after(50 * time.Millisecond)
		r.Expire(r.Capacity())
		r.expect(1, fmt.Sprintf("udp %s > %s", remote, words[1]), fmt.Sprintf("udp %s > %s", remote, local))
	}
}

// Four ports have had four flows, which are over: ten seconds later four others pass.
func TestRestIsForOthers(t *testing.T) {
	r := newShare(t, "5000-5003", "")
	for i := range 4 {
		if got := r.send(0, fmt.Sprintf("udp 10.0.0.6:%d > 8.8.8.8:4500", 1000+i)); !strings.HasPrefix(got, "udp ") {
			t.Fatal(got)
		}
	}
	r.after(5*time.Minute + time.Millisecond)
	if n := r.Expire(r.Capacity()); n != 4 {
		t.Fatalf("%d of 4 flows are over", n)
	}
	r.after(999 * time.Millisecond)
	r.Expire(r.Capacity())
	r.expect(0, "udp 10.0.0.6:2000 > 8.8.8.8:4500", "drop ports_exhausted")
	r.after(9001 * time.Millisecond)
	r.Expire(r.Capacity())
	seen := map[string]bool{}
	for i := range 4 {
		got := r.send(0, fmt.Sprintf("udp 10.0.0.6:%d > 8.8.8.8:4500", 2000+i))
		if !strings.HasPrefix(got, "udp 192.0.2.6:500") {
			t.Fatalf("flow %d of 4, ten seconds later: %s", i, got)
		}
		seen[strings.Fields(got)[1]] = true
	}
	if len(seen) != 4 {
		t.Errorf("four flows have ports %v", seen)
	}
	r.expect(0, "udp 10.0.0.6:3000 > 8.8.8.8:4500", "drop ports_exhausted")
}

// A share's port rests for port_rest when it becomes another instance's.
func TestRestWhenAShareChangesHands(t *testing.T) {
	for _, c := range []struct {
		sessions string
		rest     time.Duration
	}{{"", 2 * time.Minute}, {"sessions: {port_rest: 30s}\n", 30 * time.Second}} {
		config := strings.Replace(rigConfig, "1024-65535", "5000-5000", 1)
		r := newShare(t, "5000-5000", c.sessions)
		if got := r.send(0, "udp 10.0.0.6:1000 > 8.8.8.8:4500"); !strings.HasPrefix(got, "udp ") {
			t.Fatal(got)
		}
		moved := strings.Replace(config, `external: {snat: [{address: 192.0.2.6, ports: 5000-5000}, `, `external: {snat: [`, 1)
		moved = strings.Replace(moved, `- {name: none, addresses: [10.0.0.9, "fd00::9"], mac: "02:00:00:00:01:09"}`,
			`- {name: none, addresses: [10.0.0.9, "fd00::9"], mac: "02:00:00:00:01:09", external: {snat: [{address: 192.0.2.6, ports: 5000-5000}]}}`, 1)
		r.reload(moved + c.sessions)
		r.Expire(r.Capacity())
		for _, wait := range []time.Duration{0, 10 * time.Second, c.rest - 10*time.Second - time.Millisecond} {
			r.after(wait)
			r.Expire(r.Capacity())
			r.expect(0, "udp 10.0.0.9:1000 > 8.8.8.8:4500", "drop ports_exhausted")
		}
		r.after(time.Millisecond)
		r.Expire(r.Capacity())
		r.Expire(0)
		r.expect(0, "udp 10.0.0.9:1000 > 8.8.8.8:4500", "udp 192.0.2.6:5000 > 8.8.8.8:4500")
	}
}

// What a stranger began through a mapping, and nobody answered, ends with the mapping: it does not
// lead past the port's next owner.
func TestStrangersGoWithTheMapping(t *testing.T) {
	for _, c := range []struct{ filtering, stranger, next string }{
		{"address-dependent", "8.8.8.8:99", "drop filtered"},
		{"endpoint-independent", "9.9.9.9:99", "10.0.0.6:2000"},
	} {
		for _, p := range []struct {
			proto, flags string
			timeout      time.Duration
		}{{"udp", "", 5 * time.Minute}, {"tcp", " SYN", 4 * time.Minute}} {
			r := newShare(t, "5000-5000", "sessions: {filtering: "+c.filtering+"}\n")
			line := func(from, to string) string { return p.proto + " " + from + " > " + to + p.flags }
			in := line(c.stranger, "192.0.2.6:5000")
			r.expect(0, line("10.0.0.6:1000", "8.8.8.8:4500"), line("192.0.2.6:5000", "8.8.8.8:4500"))
			r.after(p.timeout - time.Second)
			r.expect(1, in, line(c.stranger, "10.0.0.6:1000"))
			r.after(time.Second)
			r.expect(1, in, line(c.stranger, "10.0.0.6:1000"))
			r.after(time.Millisecond)
			r.Expire(r.Capacity())
			r.expect(1, in, "drop unsolicited")
			r.after(2 * time.Second)
			r.Expire(r.Capacity())
			r.expect(0, line("10.0.0.6:2000", "8.8.4.4:4500"), line("192.0.2.6:5000", "8.8.4.4:4500"))
			want := c.next
			if !strings.HasPrefix(want, "drop") {
				want = line(c.stranger, want)
			}
			r.expect(1, in, want)
			if err := r.state.Check(); err != nil {
				t.Error(err)
			}
		}
	}
	// The port changes hands before the stranger comes again.
	r := newShare(t, "5000-5000", "")
	r.expect(0, "udp 10.0.0.6:1000 > 8.8.8.8:4500", "udp 192.0.2.6:5000 > 8.8.8.8:4500")
	r.after(299 * time.Second)
	r.expect(1, "udp 8.8.8.8:99 > 192.0.2.6:5000", "udp 8.8.8.8:99 > 10.0.0.6:1000")
	r.after(4 * time.Second)
	r.Expire(r.Capacity())
	r.after(2 * time.Second)
	r.Expire(r.Capacity())
	r.expect(0, "udp 10.0.0.6:2000 > 8.8.4.4:4500", "udp 192.0.2.6:5000 > 8.8.4.4:4500")
	r.expect(1, "udp 8.8.8.8:99 > 192.0.2.6:5000", "drop filtered")
	if n := r.sessions.Len(); n != 1 {
		t.Errorf("%d sessions, expected the port's owner's alone", n)
	}
}

// One port, and a connection that was closed: who may begin another one, and with what number.
func TestPortOfAClosedConnection(t *testing.T) {
	closed := func(t *testing.T, more string) *rig {
		t.Helper()
		r := newShare(t, "5000-5000", more)
		if fault := (&server{map[string]timeWait{}}).visit(r, 1000, 70_000); fault != "" {
			t.Fatal(fault)
		}
		return r
	}
	syn := func(r *rig, private int, remote string, seq uint32, passes bool) {
		r.t.Helper()
		want := "drop ports_exhausted"
		if passes {
			want = fmt.Sprintf("tcp 192.0.2.6:5000 > %s SYN seq=%d", remote, seq)
		}
		r.expect(0, fmt.Sprintf("tcp 10.0.0.6:%d > %s SYN seq=%d", private, remote, seq), want)
	}
	for _, mapping := range []string{"endpoint-independent", "address-and-port-dependent"} {
		t.Run(mapping, func(t *testing.T) {
			more := "sessions: {mapping: " + mapping + "}\n"
			t.Run("elsewhere", func(t *testing.T) { syn(closed(t, more), 2000, "8.8.4.4:80", 1, true) })
			t.Run("own", func(t *testing.T) { syn(closed(t, more), 1000, "8.8.8.8:80", 1, true) })
			t.Run("lower", func(t *testing.T) {
				r := closed(t, more)
				syn(r, 2000, "8.8.8.8:80", 70_102, false)
				r.after(20 * time.Millisecond)
				syn(r, 2000, "8.8.8.8:80", 70_103, true)
				if n := r.sessions.Len(); n != 1 {
					t.Errorf("%d sessions, expected the new one alone", n)
				}
			})
			t.Run("forgotten", func(t *testing.T) {
				r := closed(t, more)
				r.after(4*time.Minute + time.Millisecond)
				r.Expire(r.Capacity())
				syn(r, 2000, "8.8.8.8:80", 5, true)
			})
			t.Run("late", func(t *testing.T) { // what its own endpoints still say passes, also when the port is another's elsewhere
				r := closed(t, more)
				syn(r, 2000, "8.8.4.4:80", 1, true)
				r.expect(1, "tcp 8.8.8.8:80 > 192.0.2.6:5000 FIN,ACK seq="+strconv.Itoa(70_000^0x5555_5555+1)+" ack=70101",
					"tcp 8.8.8.8:80 > 10.0.0.6:1000 FIN,ACK seq="+strconv.Itoa(70_000^0x5555_5555+1)+" ack=70101")
				r.expect(0, "tcp 10.0.0.6:1000 > 8.8.8.8:80 ACK seq=70102 ack="+strconv.Itoa(70_000^0x5555_5555+2),
					"tcp 192.0.2.6:5000 > 8.8.8.8:80 ACK seq=70102 ack="+strconv.Itoa(70_000^0x5555_5555+2))
			})
		})
	}
	t.Run("own, but the port is another's", func(t *testing.T) {
		r := closed(t, "")
		syn(r, 2000, "8.8.4.4:80", 1, true)
		syn(r, 1000, "8.8.8.8:80", 90_000, false)
	})
	t.Run("filtered", func(t *testing.T) { // what the closed connection knew lets nobody in to the port's next owner
		r := closed(t, "")
		syn(r, 2000, "8.8.4.4:80", 1, true)
		r.expect(1, "tcp 8.8.8.8:81 > 192.0.2.6:5000 SYN seq=1", "drop filtered")
		r.expect(1, "tcp 8.8.4.4:81 > 192.0.2.6:5000 SYN seq=1", "tcp 8.8.4.4:81 > 10.0.0.6:2000 SYN seq=1")
	})
	t.Run("reset", func(t *testing.T) {
		r := newShare(t, "5000-5000", "")
		syn(r, 1000, "8.8.8.8:80", 70_000, true)
		r.send(1, "tcp 8.8.8.8:80 > 192.0.2.6:5000 SYN,ACK seq=5 ack=70001")
		r.send(0, "tcp 10.0.0.6:1000 > 8.8.8.8:80 ACK seq=70001 ack=6")
		r.send(0, "tcp 10.0.0.6:1000 > 8.8.8.8:80 RST,ACK seq=70001 ack=6")
		if s := r.only(); s.State() != session.TCPClosing || s.Mapping == session.None {
			t.Fatalf("%v after a reset, mapping %d", s.State(), int32(s.Mapping))
		}
		syn(r, 2000, "8.8.4.4:80", 1, false)
		r.after(4*time.Minute + time.Millisecond)
		r.Expire(r.Capacity())
		syn(r, 2000, "8.8.4.4:80", 1, false)
		r.after(time.Second)
		syn(r, 2000, "8.8.4.4:80", 1, true)
	})
	t.Run("half closed", func(t *testing.T) {
		r := newShare(t, "5000-5000", "")
		syn(r, 1000, "8.8.8.8:80", 70_000, true)
		r.send(1, "tcp 8.8.8.8:80 > 192.0.2.6:5000 SYN,ACK seq=5 ack=70001")
		r.send(0, "tcp 10.0.0.6:1000 > 8.8.8.8:80 FIN,ACK seq=70001 ack=6")
		r.send(1, "tcp 8.8.8.8:80 > 192.0.2.6:5000 FIN,ACK seq=6 ack=70002")
		syn(r, 2000, "8.8.4.4:80", 1, false) // the last acknowledgment is missing
		r.send(0, "tcp 10.0.0.6:1000 > 8.8.8.8:80 ACK seq=70002 ack=7")
		syn(r, 2000, "8.8.4.4:80", 1, true)
	})
}

// A data plane that dies in the closing state has given the port back.
func TestClosedConnectionAcrossARestart(t *testing.T) {
	r := newShare(t, "5000-5000", "")
	if fault := (&server{map[string]timeWait{}}).visit(r, 1000, 70_000); fault != "" {
		t.Fatal(fault)
	}
	Sweep(r.state, r.gen, r.nanos)
	if err := r.state.Check(); err != nil {
		t.Fatal(err)
	}
	now := r.nanos
	r.Worker = NewWorker(r.state, 0, r.gens[0], WorkerConfig{MACs: []config.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}, Seed: &testSeed})
	r.SetClock(now)
	r.expect(0, "tcp 10.0.0.6:2000 > 8.8.4.4:80 SYN seq=1", "tcp 192.0.2.6:5000 > 8.8.4.4:80 SYN seq=1")
	if s := r.onlyOf(func(s *session.Session) bool { return s.Flags&session.Given != 0 }); s.PrivatePort() != 1000 {
		t.Errorf("the closed session is that of port %d", s.PrivatePort())
	}
}

// The ports of a share that rest are in use as far as anybody else is concerned: the census counts
// them.
func TestCensusCountsRestingPorts(t *testing.T) {
	r := newShare(t, "5000-5003", "")
	for i := range 4 {
		r.send(0, fmt.Sprintf("udp 10.0.0.6:%d > 8.8.8.8:7", 1000+i))
	}
	in := func() int {
		names := r.gens[0].VPCNames(r.cfg)
		return r.state.TakeCensus(names).SNATPorts["v"]
	}
	if got := in(); got != 4 {
		t.Fatalf("%d ports are in use, expected 4", got)
	}
	r.after(6 * time.Minute)
	r.Expire(r.Capacity())
	if r.sessions.Len() != 0 {
		t.Fatal("the sessions go on")
	}
	if got := in(); got != 4 {
		t.Errorf("%d ports are in use, expected 4 that rest", got)
	}
	r.after(10 * time.Minute)
	r.Expire(r.Capacity())
	if got := in(); got != 0 {
		t.Errorf("%d ports are in use after their rest", got)
	}
}
