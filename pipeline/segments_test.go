// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

// said is a segment of a dialogue: who says it, its flags and how many bytes it has.
type said struct {
	side  int
	flags string
	n     int
}

// dialogues are connections whose segments are long enough to be cut, to where nothing is left to
// say.
var dialogues = []struct {
	name string
	said []said
	end  session.State
}{
	{"data both ways", []said{{0, "PSH,ACK", 80}, {1, "ACK", 0}, {1, "PSH,ACK", 80}, {0, "PSH,ACK", 80}, {1, "PSH,ACK", 80}}, session.TCPOpen},
	{"FIN from inside first", []said{{0, "FIN,ACK", 80}, {1, "ACK", 0}, {1, "FIN,ACK", 80}, {0, "ACK", 0}}, session.TCPClosing},
	{"FIN from outside first", []said{{1, "FIN,ACK", 80}, {0, "ACK", 0}, {0, "FIN,ACK", 80}, {1, "ACK", 0}}, session.TCPClosing},
	{"an answer without data", []said{{0, "FIN,ACK", 80}, {1, "FIN,ACK", 0}, {0, "ACK", 0}}, session.TCPClosing},
	{"the same from outside", []said{{1, "FIN,ACK", 80}, {0, "FIN,ACK", 0}, {1, "ACK", 0}}, session.TCPClosing},
	{"both at once", []said{{0, "PSH,FIN,ACK", 80}, {1, "PSH,FIN,ACK", 80}, {0, "ACK", 0}, {1, "ACK", 0}}, session.TCPClosing},
	{"one side goes on", []said{{0, "FIN,ACK", 80}, {1, "PSH,ACK", 80}, {0, "ACK", 0}, {1, "PSH,ACK", 80}}, session.TCPOpen},
	{"FIN behind data in pieces", []said{{0, "PSH,ACK", 80}, {0, "FIN,ACK", 0}, {1, "FIN,ACK", 0}, {0, "ACK", 0}}, session.TCPClosing},
	{"reset behind data, from outside", []said{{1, "PSH,ACK", 80}, {1, "RST", 0}}, session.TCPClosing},
	{"reset behind data, from inside", []said{{0, "PSH,ACK", 80}, {0, "RST,ACK", 0}}, session.TCPClosing},
	{"reset with data", []said{{1, "RST,ACK", 80}}, session.TCPClosing},
	{"data refutes a reset", []said{{1, "RST,ACK", 0}, {1, "PSH,ACK", 80}, {0, "PSH,ACK", 80}}, session.TCPOpen},
	{"opened anew with data", []said{{0, "FIN,ACK", 80}, {1, "FIN,ACK", 80}, {0, "SYN", 80}, {1, "SYN,ACK", 80}, {0, "ACK", 0}, {1, "PSH,ACK", 80}}, session.TCPOpen},
}

// A TCP segment in two or three pieces, in every order, in bursts of their own or in one, both
// families, 1:1 and SNAT: once all have passed, the session is exactly what it is after the whole
// segment.
func TestSegmentsInPieces(t *testing.T) {
	whole, parts := newPost(t, rigConfig), newPost(t, rigConfig)
	id := uint32(0)
	for _, c := range dialogues {
		for _, six := range []bool{false, true} {
			for _, snat := range []bool{false, true} {
				for _, at := range [][]int{{24}, {80}, {24, 56}, {40, 48}} {
					for _, order := range orders {
						for _, together := range []bool{false, true} {
							if len(at) == 1 && order[2] != 2 {
								continue
							}
							name := fmt.Sprintf("%s six=%v snat=%v cut=%v %v together=%v", c.name, six, snat, at, order, together)
							whole.forget()
							parts.forget()
							conversation, external := new(talk), ""
							steps := slices.Concat([]said{{0, "SYN", 0}, {1, "SYN,ACK", 0}, {0, "ACK", 0}}, c.said)
							for i, s := range steps {
								line := conversation.line(s, six, snat, external)
								frame := parseLine(t, s.side, line)
								out := whole.put(s.side, frame)
								if len(out) != 1 {
									t.Fatalf("%s: %s does not pass: %v", name, line, whole.counters.Dropped)
								}
								if external == "" {
									external = strings.Fields(bare(out[0].frame))[1]
								}
								passed := 0
								if s.n == 0 {
									passed = len(parts.put(s.side, frame))
								} else {
									id++
									pieces := cut(frame, id, at...)
									var burst [][]byte
									for _, i := range order[:len(pieces)] {
										burst = append(burst, pieces[i])
									}
									if together {
										passed = len(parts.put(s.side, burst...))
									} else {
										for _, f := range burst {
											passed += len(parts.put(s.side, f))
										}
									}
									passed -= len(pieces) - 1
								}
								if passed != 1 {
									t.Fatalf("%s: %s does not pass in pieces: %v", name, line, parts.counters.Dropped)
								}
								got, want := *parts.only(), *whole.only()
								if got != want {
									t.Fatalf("%s, step %d, %s:\nin pieces %+v\nwhole     %+v", name, i, line, got, want)
								}
							}
							if got := parts.only().State(); got != c.end {
								t.Fatalf("%s: %v at the end, want %v", name, got, c.end)
							}
							parts.settled(name)
						}
					}
				}
			}
		}
	}
}

// line is a segment of a connection between port 5000 of an instance and a server; external is its
// external endpoint.
func (c *talk) line(s said, six, snat bool, external string) string {
	private, remote := "10.0.0.5:5000", "8.8.8.8:443"
	if snat {
		private = "10.0.0.6:5000"
	}
	if six {
		if private, remote = "[fd00::5]:5000", "[2001:4860::8]:443"; snat {
			private = "[fd00::6]:5000"
		}
	}
	if s.side == inSide {
		return fmt.Sprintf("tcp %s > %s %s", private, remote, c.say(inSide, s.flags, s.n))
	}
	return fmt.Sprintf("tcp %s > %s %s", remote, external, c.say(outSide, s.flags, s.n))
}

// Between two instances by their external addresses, a segment in pieces counts for the sessions of
// both.
func TestHairpinnedSegmentsInPieces(t *testing.T) {
	var all [2][]session.Session
	for cutting := range all {
		p := newPost(t, rigConfig)
		c := new(talk)
		server, client := "192.0.2.21:80", ""
		for i, s := range []said{{0, "SYN", 0}, {1, "SYN,ACK", 0}, {0, "ACK", 0}, {0, "PSH,ACK", 80}, {1, "ACK", 0}, {1, "FIN,ACK", 80}, {0, "FIN,ACK", 80}, {1, "ACK", 0}} {
			line := "tcp 10.0.0.6:5000 > " + server + " "
			if s.side == 1 {
				line = "tcp 10.0.0.7:80 > " + client + " "
			}
			frame := parseLine(t, 0, line+c.say(s.side, s.flags, s.n))
			frames := [][]byte{frame}
			if s.n > 0 && cutting == 1 {
				frames = cut(frame, uint32(i), 24, 56)
			}
			out := p.put(0, frames...)
			if len(out) != len(frames) {
				t.Fatalf("%s: %d of %d pass: %v", line, len(out), len(frames), p.counters.Dropped)
			}
			if client == "" {
				client = strings.Fields(bare(out[0].frame))[1]
			}
			for ref := range uint32(p.sessions.Capacity()) {
				if s := p.sessions.At(ref); s.State() != session.Free {
					all[cutting] = append(all[cutting], *s)
				}
			}
		}
	}
	if n := len(all[0]); n != 2*8 || all[0][n-1].State() != session.TCPClosing || all[0][n-2].State() != session.TCPClosing {
		t.Fatalf("whole segments leave %+v, want two sessions in closing", all[0])
	}
	for i := range all[0] {
		if all[1][i] != all[0][i] {
			t.Fatalf("after step %d:\nin pieces %+v\nwhole     %+v", i/2, all[1][i], all[0][i])
		}
	}
}

// Who sees nothing of a connection does it no more harm by segments in pieces than by whole ones:
// every combination of flags but a reset, at random numbers, in every order; also pieces that claim
// to come from the external address of another instance.
func TestForgedSegmentsInPieces(t *testing.T) {
	p := newPost(t, rigConfig)
	rnd := rand.New(rand.NewPCG(9, 9))
	external, c := p.connect()
	p.collect()
	p.put(0, parseLine(t, 0, "tcp 10.0.0.6:5000 > 8.8.8.8:443 "+c.say(0, "PSH,ACK", 80)))
	before := *p.only()
	forge := func(from, to string, n int) (passed int) {
		flags := uint8(n) &^ tcpRST
		frame := parseLine(t, 1, fmt.Sprintf("tcp %s > %s ACK seq=%d ack=%d len=80", from, to, rnd.Uint32()|1<<31, rnd.Uint32()|1<<31))
		frame[header.EthernetSize+20+13] = flags
		for _, i := range orders[n%len(orders)] {
			passed += len(p.put(1, cut(frame, uint32(n), 24, 56)[i]))
		}
		return passed
	}
	passed := 0
	for n := range 4 * 256 {
		passed += forge("8.8.8.8:443", external, n)
		if got := *p.only(); got != before {
			t.Fatalf("forged pieces, round %d, changed the session:\n got %+v\nwant %+v", n, got, before)
		}
	}
	if passed != 3*4*256 {
		t.Errorf("%d pieces passed, want all, as whole segments do: %v", passed, p.counters.Dropped)
	}
	p.forget()
	// The server's side of a hairpinned connection takes nothing that comes by a port.
	client := strings.Fields(bare(p.put(0, parseLine(t, 0, "tcp 10.0.0.6:5000 > 192.0.2.21:80 SYN seq=1000"))[0].frame))[1]
	p.put(0, parseLine(t, 0, "tcp 10.0.0.7:80 > "+client+" SYN,ACK seq=2000 ack=1001"))
	from, to := netip.MustParseAddrPort(client), netip.MustParseAddr("192.0.2.21")
	s := p.liveSession(session.OutsideKey(inet.FromNetip(to), inet.FromNetip(from.Addr()), 80, from.Port(), header.ProtocolTCP))
	if s == nil || s.Flags&session.Hairpin == 0 {
		t.Fatalf("no hairpinned session from %s", client)
	}
	before = *s
	fin := parseLine(t, 1, "tcp "+client+" > 192.0.2.21:80 FIN,ACK seq=1001 ack=2001 len=80") // its numbers fit
	for i, order := range orders {
		for _, j := range order {
			p.put(1, cut(fin, uint32(i), 24, 56)[j])
		}
		if *s != before {
			t.Fatalf("pieces from outside changed a hairpinned session:\n got %+v\nwant %+v", *s, before)
		}
	}
}
