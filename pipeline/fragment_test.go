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
	"weir/pipeline/drop"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/packettext"
)

// post is a rig whose buffers are counted over many bursts: fragments stay in theirs.
type post struct {
	*rig
	last uintptr
	away map[uintptr]bool // handles that are in the worker
}

type leaving struct {
	port  int
	frame []byte
}

func newPost(t testing.TB, text string) *post {
	p := &post{rig: newRig(t, text, config.MAC{2, 0, 0, 0, 9, 9}), away: map[uintptr]bool{}}
	p.stock()
	return p
}

// stock fills up the spare buffers, as the driver does.
func (p *post) stock() {
	for s := &p.Spare; s.N < MaxSpare; s.N++ {
		p.last++
		p.away[p.last] = true
		s.Handles[s.N], s.Data[s.N] = p.last, make([]byte, 9100)
	}
}

// put takes frames through the worker in one burst and returns what leaves.
func (p *post) put(port int, frames ...[]byte) []leaving {
	p.t.Helper()
	var b Burst
	b.Port, b.N = port, len(frames)
	for i, f := range frames {
		p.last++
		p.away[p.last] = true
		b.Packets[i].Data, b.Packets[i].Handle = bytes.Clone(f), p.last
	}
	p.Process(&b)
	return p.collect()
}

// collect empties the queues. Every buffer comes back once, and none is lost.
func (p *post) collect() (out []leaving) {
	p.t.Helper()
	back := func(h uintptr) {
		if !p.away[h] {
			p.t.Fatalf("buffer %d came back twice", h)
		}
		delete(p.away, h)
	}
	for port := range p.Out {
		q := &p.Out[port]
		for i := range q.N {
			back(q.Handles[i])
			out = append(out, leaving{port, bytes.Clone(q.Frames[i])})
		}
		p.Sent(port, q.N)
	}
	for _, h := range p.Done {
		back(h)
	}
	p.Done = p.Done[:0]
	p.balanced()
	if n := p.pieces.waiting() + p.holding + p.Spare.N; n != len(p.away) {
		p.t.Fatalf("%d buffers are away, the worker has %d", len(p.away), n)
	}
	return out
}

// pass lets time go by in turns of the loop.
func (p *post) pass(d time.Duration) []leaving {
	p.after(d)
	p.Release()
	return p.collect()
}

// cut makes fragments of a frame, at these offsets of what lies behind its IP header.
func cut(frame []byte, id uint32, at ...int) (pieces [][]byte) {
	six := frame[12] == 0x86
	head := header.EthernetSize + 40
	if !six {
		head = header.EthernetSize + int(frame[header.EthernetSize]&15)*4
	}
	data := frame[head:]
	at = append(append([]int{0}, at...), len(data))
	for i := range len(at) - 1 {
		piece := bytes.Clone(frame[:head])
		word := uint16(at[i] / 8)
		more := i < len(at)-2
		if six {
			word *= 8
			if more {
				word |= 1
			}
			f := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte{piece[header.EthernetSize+6], 0}, word), id)
			piece[header.EthernetSize+6] = header.ProtocolFragment
			piece = append(append(piece, f...), data[at[i]:at[i+1]]...)
			binary.BigEndian.PutUint16(piece[header.EthernetSize+4:], uint16(len(piece)-header.EthernetSize-40))
		} else {
			if more {
				word |= 0x2000
			}
			piece = append(piece, data[at[i]:at[i+1]]...)
			binary.BigEndian.PutUint16(piece[header.EthernetSize+4:], uint16(id))
			binary.BigEndian.PutUint16(piece[header.EthernetSize+6:], word)
			ip := header.IPv4(piece[header.EthernetSize:])
			ip.SetTotalLength(uint16(len(ip)))
			ip.UpdateChecksum()
		}
		pieces = append(pieces, piece)
	}
	return pieces
}

// fragmentOf tells what of a datagram a frame holds, by the RFCs and not by weir's parser.
func fragmentOf(frame []byte) (id uint32, at int, more bool, data []byte) {
	ip := frame[header.EthernetSize:]
	if frame[12] == 0x86 {
		f := ip[40:]
		if ip[6] != 44 {
			return 0, 0, false, f
		}
		word := binary.BigEndian.Uint16(f[2:])
		return binary.BigEndian.Uint32(f[4:]), int(word &^ 7), word&1 != 0, f[8:]
	}
	word := binary.BigEndian.Uint16(ip[6:])
	return uint32(binary.BigEndian.Uint16(ip[4:])), int(word&0x1fff) * 8, word&0x2000 != 0, ip[int(ip[0]&15)*4:]
}

// join puts the datagram together that frames are the pieces of: what a receiver makes of them. The
// frame it returns has the header of the first piece, without a Fragment header, and
// identification 0.
func join(t testing.TB, frames [][]byte) []byte {
	t.Helper()
	slices.SortStableFunc(frames, func(a, b []byte) int {
		_, x, _, _ := fragmentOf(a)
		_, y, _, _ := fragmentOf(b)
		return x - y
	})
	var whole []byte
	var first uint32
	for i, f := range frames {
		if err := packettext.Verify(f); err != nil {
			t.Fatalf("%v: %s", err, packettext.Format(f))
		}
		id, at, more, data := fragmentOf(f)
		if i == 0 {
			head := header.EthernetSize + 40
			if f[12] != 0x86 {
				head = header.EthernetSize + int(f[header.EthernetSize]&15)*4
			}
			whole, first = bytes.Clone(f[:head]), id
			if f[12] == 0x86 && f[header.EthernetSize+6] == 44 {
				whole[header.EthernetSize+6] = f[header.EthernetSize+40]
			}
		}
		head := header.EthernetSize + 40
		if f[12] != 0x86 {
			head = header.EthernetSize + int(whole[header.EthernetSize]&15)*4
		}
		if len(whole)-head != at || id != first || more != (i < len(frames)-1) || !bytes.Equal(f[:12], frames[0][:12]) {
			t.Fatalf("piece %d of %d does not fit behind %d bytes of datagram %d: %s", i, len(frames), len(whole)-head, first, packettext.Format(f))
		}
		whole = append(whole, data...)
	}
	if whole[12] == 0x86 {
		binary.BigEndian.PutUint16(whole[header.EthernetSize+4:], uint16(len(whole)-header.EthernetSize-40))
	} else {
		unnamed(whole)
	}
	if err := packettext.Verify(whole); err != nil {
		t.Fatalf("put together: %v: %s", err, packettext.Format(whole))
	}
	return whole
}

// unnamed takes fragment fields and identification off an IPv4 frame, but DF.
func unnamed(frame []byte) []byte {
	if frame[12] != 0x86 {
		ip := header.IPv4(frame[header.EthernetSize:])
		ip.SetID(0)
		ip.SetFragment(binary.BigEndian.Uint16(ip[6:])&header.IPv4DontFragment, 0)
		ip.SetTotalLength(uint16(len(ip)))
		ip.UpdateChecksum()
	}
	return frame
}

func framesOf(t testing.TB, port int, out []leaving) (frames [][]byte) {
	t.Helper()
	for _, s := range out {
		if s.port != port {
			t.Fatalf("left by port %d, not %d: %s", s.port, port, packettext.Format(s.frame))
		}
		frames = append(frames, s.frame)
	}
	return frames
}

var orders = [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}

const text80 = `"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-+0123456789abcdef"`

// RFC 4787 REQ-14: a datagram in three pieces, in every order, in bursts of their own or in one,
// both families, 1:1 and SNAT, out and in, UDP with and without checksum, TCP, echo. What leaves,
// put together, is what the whole datagram becomes.
func TestFragmentOrders(t *testing.T) {
	p, n := newPost(t, rigConfig), 0
	for _, proto := range []string{"udp", "udp0", "tcp", "echo"} {
		for _, six := range []bool{false, true} {
			for _, snat := range []bool{false, true} {
				for _, inbound := range []bool{false, true} {
					for _, order := range orders {
						for _, together := range []bool{false, true} {
							if proto == "udp0" && six {
								continue
							}
							n++
							id := uint32(n * 7)
							private, remote, public := "10.0.0.5", "8.8.8.8", "192.0.2.5"
							if snat {
								private, public = "10.0.0.6", "192.0.2.6"
							}
							if six {
								private, remote, public = "fd00::5", "2001:4860::8", "2001:db8:1::5"
								if snat {
									private, public = "fd00::6", "2001:db8:1::6"
								}
							}
							bracket := func(a string, port int) string {
								if six {
									a = "[" + a + "]"
								}
								return fmt.Sprintf("%s:%d", a, port)
							}
							line := func(from string, fromPort int, to string, toPort int, reply bool) string {
								switch {
								case proto == "tcp" && reply:
									return fmt.Sprintf("tcp %s > %s SYN,ACK %s", bracket(from, fromPort), bracket(to, toPort), text80)
								case proto == "tcp":
									return fmt.Sprintf("tcp %s > %s SYN %s", bracket(from, fromPort), bracket(to, toPort), text80)
								case proto == "echo":
									kind, what := "icmp", "echo-request"
									if six {
										kind = "icmp6"
									}
									number := fromPort
									if reply {
										what, number = "echo-reply", toPort
									}
									return fmt.Sprintf("%s %s %s > %s id=%d seq=3 %s", kind, what, from, to, number, text80)
								case proto == "udp0":
									return fmt.Sprintf("udp %s > %s sum=0 %s", bracket(from, fromPort), bracket(to, toPort), text80)
								}
								return fmt.Sprintf("udp %s > %s %s", bracket(from, fromPort), bracket(to, toPort), text80)
							}
							name := fmt.Sprintf("%s six=%v snat=%v in=%v %v together=%v", proto, six, snat, inbound, order, together)
							p.forget()
							out := parseLine(t, 0, line(private, 4000, remote, 53, false))
							port, frame := 0, out
							if inbound {
								left := p.put(0, out)
								if len(left) != 1 {
									t.Fatalf("%s: the whole packet does not leave", name)
								}
								port = 1
								external := 4000
								if t := left[0].frame; snat && proto == "echo" {
									_, _, _, data := fragmentOf(t)
									external = int(binary.BigEndian.Uint16(data[4:]))
								} else if snat {
									_, _, _, data := fragmentOf(t)
									external = int(binary.BigEndian.Uint16(data))
								}
								frame = parseLine(t, 1, line(remote, 53, public, external, true))
							}
							pieces := cut(frame, id, 24, 56)
							var got []leaving
							if together {
								got = p.put(port, pieces[order[0]], pieces[order[1]], pieces[order[2]])
							} else {
								for _, i := range order {
									got = append(got, p.put(port, pieces[i])...)
								}
							}
							whole := p.put(port, frame)
							if len(got) != 3 || len(whole) != 1 {
								t.Fatalf("%s: %d of 3 pieces leave, %d whole packets: %+v", name, len(got), len(whole), p.counters.Dropped)
							}
							if _, at, _, _ := fragmentOf(got[0].frame); at != 0 {
								t.Errorf("%s: the piece at %d leaves before the first", name, at)
							}
							joined := join(t, framesOf(t, 1-port, got))
							if want := unnamed(whole[0].frame); !bytes.Equal(joined, want) {
								t.Fatalf("%s:\ngot  %s\nwant %s", name, packettext.Format(joined), packettext.Format(want))
							}
							if p.sessions.Len() != 1 {
								t.Errorf("%s: %d sessions", name, p.sessions.Len())
							}
							p.settled(name)
						}
					}
				}
			}
		}
	}
	if n != 7*2*2*6*2 {
		t.Errorf("%d cases", n)
	}
}

// settled fails the test unless nothing is remembered of any datagram.
func (p *post) settled(name string) {
	p.t.Helper()
	p.consistent()
	for side, f := range p.pieces.sides {
		if f.waiting != 0 || f.lists[waiting].n != 0 || f.lists[following].n != 0 {
			p.t.Fatalf("%s: side %d: %d pieces wait, %d datagrams without, %d with their first", name, side, f.waiting, f.lists[waiting].n, f.lists[following].n)
		}
	}
}

// consistent holds the tables against themselves.
func (p *post) consistent() {
	p.t.Helper()
	for side, f := range p.pieces.sides {
		var entries, held, free, freeHeld int
		for class := range f.lists {
			n := 0
			for i := f.lists[class].head; i != 0; i = f.datagrams[i].links[ofSide].next {
				d := &f.datagrams[i]
				n++
				if int(d.class) != class || f.find(&d.key, d.hash) != i {
					p.t.Fatalf("side %d: datagram %d is in the wrong list or bucket", side, i)
				}
				w := 0
				for s := d.head; s != 0; s = f.held[s].next {
					w++
				}
				if w != int(d.numWaiting) || (class == waiting) != (w > 0) {
					p.t.Fatalf("side %d: datagram %d of class %d: %d pieces wait, it says %d", side, i, class, w, d.numWaiting)
				}
				held += w
			}
			if n != int(f.lists[class].n) {
				p.t.Fatalf("side %d: class %d has %d, says %d", side, class, n, f.lists[class].n)
			}
			entries += n
		}
		owned, ownedWaiting := 0, 0
		for i := range f.holders {
			o := &f.holders[i]
			ownedWaiting += int(o.waiting)
			for class := range o.lists {
				owned += int(o.lists[class].n)
			}
			if o.waiting > maxWaitingEach || o.lists[following].n > maxDatagramsEach {
				p.t.Fatalf("side %d: an owner has more than his share: %+v", side, o)
			}
		}
		for i := f.free; i != 0; i = f.datagrams[i].chain {
			free++
		}
		for i := f.freeHeld; i != 0; i = f.held[i].next {
			freeHeld++
		}
		if held != f.waiting || ownedWaiting != held || owned != entries || entries+free != maxDatagrams || held+freeHeld != maxWaiting {
			p.t.Fatalf("side %d: %d pieces wait (says %d, owners %d, free %d), %d datagrams (owners %d, free %d)",
				side, held, f.waiting, ownedWaiting, freeHeld, entries, owned, free)
		}
	}
	if len(p.pieces.followers) != 0 || len(p.pieces.complete) != 0 {
		p.t.Fatal("followers are left behind")
	}
}

// A piece waits two seconds, and the ports of a first piece are known for thirty.
func TestFragmentTimeouts(t *testing.T) {
	p := newPost(t, rigConfig)
	pieces := cut(parseLine(t, 0, "udp 10.0.0.5:1 > 8.8.8.8:2 "+text80), 5, 24, 56)
	p.put(0, pieces[1])
	p.pass(2 * time.Second)
	if p.pieces.waiting() != 1 {
		t.Fatal("gone after 2 s")
	}
	p.pass(time.Millisecond)
	if p.pieces.waiting() != 0 || p.counters.Dropped[drop.FragmentTimeout] != 1 {
		t.Fatalf("after 2.001 s %d wait; %d timed out", p.pieces.waiting(), p.counters.Dropped[drop.FragmentTimeout])
	}
	p.settled("after the first's absence")
	p.put(0, pieces[0])
	p.pass(30 * time.Second)
	if got := p.put(0, pieces[1]); len(got) != 1 {
		t.Fatal("after 30 s the ports are forgotten")
	}
	p.pass(time.Millisecond)
	p.settled("after 30.001 s")
	p.put(0, pieces[2])
	p.Abandon()
	p.collect()
	p.settled("after Abandon")
}

// What waits when a data plane dies is counted as restart by the next.
func TestFragmentsOfADeadDataPlane(t *testing.T) {
	p := newPost(t, rigConfig)
	for _, f := range cut(parseLine(t, 0, "udp 10.0.0.5:1 > 8.8.8.8:2 "+text80), 5, 24, 56)[1:] {
		p.put(0, f)
	}
	if p.counters.Held != 2 {
		t.Fatalf("%d held", p.counters.Held)
	}
	Sweep(p.state, p.gen, p.nanos)
	if c := p.counters; c.Held != 0 || c.Dropped[drop.Restart] != 2 {
		t.Errorf("%d held, %d dropped as restart", c.Held, c.Dropped[drop.Restart])
	}
}

// No datagram has more than 16 pieces waiting; one in many pieces passes all the same when they
// come in order.
func TestFragmentsOfOneDatagram(t *testing.T) {
	p := newPost(t, rigConfig)
	line := "udp 10.0.0.6:1 > 8.8.8.8:2 len=" + fmt.Sprint(8*200)
	var at []int
	for i := 1; i < 200; i++ {
		at = append(at, 8*i)
	}
	pieces := cut(parseLine(t, 0, line), 5, at...)
	var got []leaving
	for _, f := range pieces {
		got = append(got, p.put(0, f)...)
	}
	join(t, framesOf(t, 1, got))
	p.settled("200 pieces")

	// Backwards: 16 wait.
	pieces = cut(parseLine(t, 0, line), 6, at...)
	slices.Reverse(pieces)
	got = nil
	for _, f := range pieces {
		got = append(got, p.put(0, f)...)
	}
	if len(got) != 17 || p.counters.Dropped[drop.FragmentLimit] != uint64(len(pieces)-17) {
		t.Errorf("%d pieces leave, %d over the limit", len(got), p.counters.Dropped[drop.FragmentLimit])
	}
	// Every second one: too many gaps.
	pieces = cut(parseLine(t, 0, line), 7, at...)
	got = nil
	for i := 0; i < len(pieces); i += 2 {
		got = append(got, p.put(0, pieces[i])...)
	}
	if len(got) != maxRanges {
		t.Errorf("%d pieces with gaps between them leave, want %d", len(got), maxRanges)
	}
	p.pass(31 * time.Second)
	p.settled("31 s later")
}

// tenants are two VPCs; the flood comes from one, or from outside to one's addresses.
var tenants = strings.Replace(strings.Replace(rigConfig, "vpcs:\n", `vpcs:
  - name: other
    attach: [{port: in2, addresses: [10.0.0.1/16, "fd00::1/64"]}]
    subnets: [10.0.0.0/16, "fd00::/64"]
    routes: [{to: 0.0.0.0/0, gateway: g}, {to: "::/0", gateway: g}]
    instances:
      - {name: one, addresses: [10.0.0.5, "fd00::5"], mac: "02:00:00:00:01:05", external: {floating: [192.0.2.105, "2001:db8:1::105"]}}
      - {name: shared, addresses: [10.0.0.6], mac: "02:00:00:00:01:06", external: {snat: [{address: 192.0.2.106, ports: 1024-65535}]}}
`, 1), "  - {name: out,", "  - {name: in2, device: net_null2, side: inside}\n  - {name: out,", 1)

// A flood of fragments of one tenant, or from outside to one address: firsts without the rest, the
// rest without firsts, overlaps, from many addresses. Another tenant's flows, whole and in pieces,
// in order and not, out and in, stay what they are; the flooded address's own whole packets pass;
// and nothing is left of it all.
func TestFragmentFlood(t *testing.T) {
	for _, f := range []struct {
		name string
		port int
		make func(n int) []byte
	}{
		{"without firsts", 0, func(n int) []byte { return piece4("10.0.0.5", "8.8.8.8", n, 64, true) }},
		{"without firsts, to many", 0, func(n int) []byte {
			return piece4("10.0.0.6", fmt.Sprintf("9.%d.%d.1", n>>8&255, n&255), n>>4, 64, false)
		}},
		{"firsts", 0, func(n int) []byte { return piece4("10.0.0.5", "8.8.8.8", n, 0, true) }},
		{"firsts through SNAT", 0, func(n int) []byte { return piece4("10.0.0.6", "8.8.8.8", n, 0, true) }},
		{"from outside without firsts", 2, func(n int) []byte { return piece4("9.9.9.9", "192.0.2.5", n, 64, true) }},
		{"from outside without firsts, from many to many", 2, func(n int) []byte {
			return piece4(fmt.Sprintf("9.%d.%d.1", n>>8&255, n&255), []string{"192.0.2.5", "192.0.2.6", "192.0.2.20", "192.0.2.21", "192.0.2.22", "192.0.2.30", "192.0.2.77"}[n%7], n>>4, 64, true)
		}},
		{"from outside, firsts", 2, func(n int) []byte { return piece4("9.9.9.9", "192.0.2.5", n, 0, true) }},
		{"overlaps", 0, func(n int) []byte { return piece4("10.0.0.5", "8.8.8.8", n>>1, 64+n&1*8, true) }},
	} {
		t.Run(f.name, func(t *testing.T) {
			frames := 100_000
			if testing.Short() {
				frames = 10_000
			}
			p := newPost(t, tenants)
			rnd := rand.New(rand.NewPCG(1, 1))
			out := parseLine(t, 1, "udp 10.0.0.5:1000 > 8.8.8.8:53 "+text80)
			in := parseLine(t, 2, "udp 8.8.8.8:53 > 192.0.2.105:1000 "+text80)
			six := parseLine(t, 1, "udp [fd00::5]:1000 > [2001:4860::8]:53 "+text80)
			snat := parseLine(t, 1, "udp 10.0.0.6:1000 > 8.8.8.8:53 "+text80)
			golden := map[string]struct {
				port  int
				frame []byte
				want  []byte
			}{}
			own := parseLine(t, 0, "udp 10.0.0.5:1000 > 8.8.8.8:53 "+text80)
			ownIn := parseLine(t, 2, "udp 8.8.8.8:53 > 192.0.2.5:1000 "+text80)
			for name, g := range map[string]leaving{"out": {1, out}, "in": {2, in}, "six": {1, six}, "snat": {1, snat}, "own out": {0, own}, "own in": {2, ownIn}} {
				whole := p.put(g.port, g.frame)
				if len(whole) != 1 {
					t.Fatalf("%s: no golden flow", name)
				}
				golden[name] = struct {
					port  int
					frame []byte
					want  []byte
				}{g.port, g.frame, unnamed(whole[0].frame)}
			}
			id := uint32(0)
			for n := 0; n < frames; n += 32 {
				var burst [][]byte
				for i := range 32 {
					burst = append(burst, f.make(n+i))
				}
				p.put(f.port, burst...)
				p.after(100 * time.Microsecond)
				p.Release()
				p.collect()
				if n%256 != 0 {
					continue
				}
				for name, g := range golden {
					if got := p.put(g.port, g.frame); len(got) != 1 || !bytes.Equal(unnamed(got[0].frame), g.want) {
						t.Fatalf("%s: the whole packet: %d leave", name, len(got))
					}
					if strings.HasPrefix(name, "own") { // whose fragments share what the flood takes
						continue
					}
					id++
					var got []leaving
					for _, i := range orders[rnd.IntN(6)] {
						got = append(got, p.put(g.port, cut(g.frame, id, 24, 56)[i])...)
					}
					if len(got) != 3 || !bytes.Equal(join(t, framesOf(t, got[0].port, got)), g.want) {
						t.Fatalf("%s: the fragments of another tenant: %d of 3 leave", name, len(got))
					}
				}
			}
			p.consistent()
			if p.pieces.waiting() > 2*maxWaiting {
				t.Errorf("%d pieces wait", p.pieces.waiting())
			}
			p.pass(31 * time.Second)
			p.settled("after the flood")
		})
	}
}

// piece4 is a UDP fragment of 8 or more bytes.
func piece4(from, to string, id, at int, more bool) []byte {
	m := ""
	if more {
		m = ":more"
	}
	line := fmt.Sprintf("ip proto=17 %s > %s frag=%d:%d%s hex:03e8003500c80000 len=8", from, to, id&0xffff, at, m)
	b, err := packettext.Parse(neighborMAC + " > 02:00:00:00:00:01 " + line)
	if err != nil {
		panic(err)
	}
	if !strings.HasPrefix(from, "10.") {
		b[5] = 3
	}
	return b
}

// RFC 6864, RFC 4963: guests behind one address choose the same identifications towards one
// receiver; it can tell their datagrams apart, for as long as 16 bits allow, and the pieces of one
// datagram stay together.
func TestIdentificationThroughSNAT(t *testing.T) {
	text := strings.Replace(rigConfig, "ports: 1024-65535}, {address", "ports: 1024-30000}, {address", 1)
	text = strings.Replace(text, "      - {name: several", "      - {name: second, addresses: [10.0.0.16], mac: \"02:00:00:00:01:16\", external: {snat: [{address: 192.0.2.6, ports: 30001-65535}]}}\n      - {name: several", 1)
	p := newPost(t, text)
	a, b := parseLine(t, 0, "udp 10.0.0.6:1000 > 8.8.8.8:53 \"first guest\" "+text80), parseLine(t, 0, "udp 10.0.0.16:1000 > 8.8.8.8:53 \"other guest\" "+text80)
	seen := map[uint32]bool{}
	for n := range 20_000 {
		x, y := cut(a, uint32(n&3), 24, 56), cut(b, uint32(n&3), 24, 56)
		got := framesOf(t, 1, p.put(0, x[2], y[1], x[0], y[2], y[0], x[1]))
		datagrams := map[uint32][][]byte{}
		for _, f := range got {
			id, _, _, _ := fragmentOf(f)
			datagrams[id] = append(datagrams[id], f)
		}
		if len(got) != 6 || len(datagrams) != 2 {
			t.Fatalf("round %d: %d pieces of %d datagrams", n, len(got), len(datagrams))
		}
		texts := ""
		for id, frames := range datagrams {
			if seen[id] {
				t.Fatalf("round %d: identification %d again after %d", n, id, len(seen))
			}
			seen[id] = true
			texts += string(join(t, frames)[42:53])
		}
		if texts != "first guestother guest" && texts != "other guestfirst guest" {
			t.Fatalf("round %d: %q", n, texts)
		}
		// A whole one that may come to be in pieces; one that must not may keep its own.
		got = framesOf(t, 1, p.put(0, b))
		id, _, _, _ := fragmentOf(got[0])
		if seen[id] {
			t.Fatalf("round %d: identification %d of a whole packet again", n, id)
		}
		seen[id] = true
	}
	for _, c := range []struct {
		line string
		kept bool
	}{
		{"udp 10.0.0.6:1000 > 8.8.8.8:53 ipid=77 df", true},
		{"udp 10.0.0.5:1000 > 8.8.8.8:53 ipid=77", true}, // 1:1: its own
		{"udp 10.0.0.6:1000 > 8.8.8.8:53 ipid=77", false},
		{"ip proto=17 10.0.0.6 > 8.8.8.8 frag=77:0:more df hex:03e80035006400000000000000000000", false},
	} {
		got := p.put(0, parseLine(t, 0, c.line))
		if id, _, _, _ := fragmentOf(got[0].frame); (id == 77) != c.kept {
			t.Errorf("%s leaves with identification %d", c.line, id)
		}
	}
}

// RFC 4787 REQ-13a, RFC 791 §3.2: packets that are too long and may be fragmented leave in pieces
// that fit, in order, with the options that go into each; put together they are what they were.
// Sizes around every edge, several MTUs, fragments that are cut again.
func TestFragmentation(t *testing.T) {
	for _, mtu := range []int{68, 100, 576, 1280, 1499, 1500} {
		text := strings.Replace(rigConfig, "side: outside,", fmt.Sprintf("side: outside, mtu: %d,", mtu), 1)
		if mtu < 1280 {
			text = dropIPv6(text)
		}
		p := newPost(t, text)
		for _, options := range []string{"", "ipopt=01010101", "ipopt=94040000", "ipopt=0707040000000000", "ipopt=07070400000000019404000000",
			"ipopt=" + strings.Repeat("01", 36) + "94040000", "ipopt=" + strings.Repeat("94040000", 10)} {
			hlen := 20 + len(strings.TrimPrefix(options, "ipopt="))/2
			hlen = (hlen + 3) &^ 3
			for _, packets := range []int{1, 2, 3, 7} {
				for edge := -9; edge <= 9; edge++ {
					size := packets*((mtu-hlen)&^7) + edge - 8 // of UDP's payload
					if size < 24 || size > 8900 {
						continue
					}
					frame := parseLine(t, 0, fmt.Sprintf("udp 10.0.0.5:1 > 8.8.8.8:2 ipid=5 %s len=%d", options, size))
					fragmented := p.counters.Fragmented
					got := framesOf(t, 1, p.put(0, frame))
					if len(got) == 0 || uint64(len(got)-1) != p.counters.Fragmented-fragmented {
						t.Fatalf("mtu %d, %q, %d bytes: %d pieces, counted %d extra", mtu, options, size, len(got), p.counters.Fragmented-fragmented)
					}
					if fits := hlen+8+size <= mtu; fits != (len(got) == 1) {
						t.Fatalf("mtu %d, %q, %d bytes: %d pieces", mtu, options, size, len(got))
					}
					last := -1
					for i, f := range got {
						_, at, _, _ := fragmentOf(f)
						if len(f)-header.EthernetSize > mtu || at <= last {
							t.Fatalf("mtu %d, %q: a piece of %d at %d, behind one at %d", mtu, options, len(f)-header.EthernetSize, at, last)
						}
						last = at
						if i > 0 && bytes.Contains(f[header.EthernetSize+20:header.EthernetSize+int(f[header.EthernetSize]&15)*4], []byte{7, 7}) {
							t.Errorf("mtu %d: a record route option in a later piece", mtu)
						}
						if strings.Contains(options, "94040000") && !bytes.Contains(f[header.EthernetSize+20:header.EthernetSize+int(f[header.EthernetSize]&15)*4], []byte{0x94, 4, 0, 0}) {
							t.Errorf("mtu %d: no router alert in piece %d", mtu, i)
						}
					}
					// Not in pieces by another link: translated alike.
					want := bytes.Clone(frame)
					copy(want[26:30], []byte{192, 0, 2, 5})
					want[header.EthernetSize+8]--
					joined := join(t, got)
					copy(want, joined[:12])
					u := header.UDP(want[header.EthernetSize+hlen:])
					copy(u[6:8], joined[header.EthernetSize+hlen+6:])
					if !bytes.Equal(joined, unnamed(want)) {
						t.Fatalf("mtu %d, %q:\ngot  %s\nwant %s", mtu, options, packettext.Format(joined), packettext.Format(want))
					}
					p.stock()
				}
			}
		}
		// A fragment that is too long is cut further, and keeps its place.
		pieces := cut(parseLine(t, 0, "udp 10.0.0.5:1 > 8.8.8.8:2 len=3000"), 5, 1504)
		got := append(p.put(0, pieces[0]), p.put(0, pieces[1])...)
		p.stock()
		join(t, framesOf(t, 1, got))
	}
}

// dropIPv6 takes what is IPv6 out of rigConfig: its links may not be narrower than 1280 bytes.
func dropIPv6(text string) string {
	for _, s := range []string{`, "2001:db8::2/64"`, `, {address: "2001:db8::1", mac: "02:00:00:00:02:01"}`, `, "2001:db8:1::/64"`, `, "2001:db8:2::/48"`, `, "fd00::1/64"`, `, "fd00::/64"`,
		`, {to: "::/0", gateway: g}`, `, "2001:db8:1::5"`, `, "2001:db8:2::/64"`, `, {address: "2001:db8:1::6", ports: 1024-65535}`, `, "2001:db8:1::20", "2001:db8:1::21"`} {
		text = strings.Replace(text, s, "", 1)
	}
	for _, s := range []string{"5", "6", "7", "9"} {
		text = strings.Replace(text, `, "fd00::`+s+`"`, "", 1)
	}
	return text
}

// Without buffers for the pieces a packet is dropped; what the link refuses of them is no packet of
// its own.
func TestFragmentationWithoutRoom(t *testing.T) {
	p := newPost(t, rigConfig)
	long := parseLine(t, 0, "udp 10.0.0.5:1 > 8.8.8.8:2 len=4500") // four pieces
	for p.Spare.N = 2; p.Spare.N < MaxSpare; p.Spare.N += MaxSpare {
		for h := range p.away {
			if !slices.Contains(p.Spare.Handles[:2], h) {
				delete(p.away, h)
			}
		}
		if got := p.put(0, long); len(got) != 0 || p.counters.Dropped[drop.TooBig] != 1 || p.Spare.N != 2 {
			t.Fatalf("%d pieces leave, %d dropped as too big, %d buffers left", len(got), p.counters.Dropped[drop.TooBig], p.Spare.N)
		}
	}
	p.Spare.N = 0
	p.away = map[uintptr]bool{}
	for n := range 5 {
		p.stock()
		var b Burst
		p.last++
		b.N, b.Packets[0].Data, b.Packets[0].Handle = 1, bytes.Clone(long), p.last
		p.away[p.last] = true
		before := *p.counters
		p.Process(&b)
		if p.Out[1].N != 4 {
			t.Fatalf("%d pieces", p.Out[1].N)
		}
		for i := range n {
			delete(p.away, p.Out[1].Handles[i])
		}
		p.Sent(1, n)
		c := p.counters
		forwarded, fragmented, full := c.Forwarded-before.Forwarded, c.Fragmented-before.Fragmented, c.Dropped[drop.TxFull]-before.Dropped[drop.TxFull]
		want := [3]uint64{1, uint64(max(n, 1) - 1), 0}
		if n == 0 {
			want = [3]uint64{0, 0, 1}
		}
		if [3]uint64{forwarded, fragmented, full} != want {
			t.Errorf("%d of 4 pieces sent: forwarded %d, fragmented %d, tx_full %d", n, forwarded, fragmented, full)
		}
		p.collect()
	}
}

// A packet that is too long waits whole for its neighbor.
func TestFragmentationAfterHold(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	p := &post{rig: r, away: map[uintptr]bool{}}
	p.stock()
	if got := p.put(0, parseLine(t, 0, "udp 10.0.0.5:1 > 198.51.100.77:2 len=4500")); len(got) != 0 || r.holding != 1 {
		t.Fatalf("%d leave, %d held", len(got), r.holding)
	}
	r.resolve(1, inet.Addr{Lo: 0xffff_c633_644d})
	r.Release()
	if got := p.collect(); len(got) != 4 {
		t.Fatalf("%d pieces leave", len(got))
	} else {
		join(t, framesOf(t, 1, got))
	}
}

// Fragments that do not need ports do not wait: within the VPC, to and from attached prefixes,
// protocols without ports.
func TestFragmentsThatNeedNoPorts(t *testing.T) {
	p := newPost(t, rigConfig)
	for _, c := range []struct {
		port       int
		line, want string
	}{
		{0, "ip proto=17 10.0.0.5 > 10.0.0.6 frag=1:64 len=8", "ip proto=17 10.0.0.5 > 10.0.0.6 frag=1:64 len=8"},
		{0, "ip proto=17 203.0.113.17 > 8.8.8.8 frag=1:64 len=8", "ip proto=17 203.0.113.17 > 8.8.8.8 frag=1:64 len=8"},
		{0, "ip proto=17 2001:db8:2::9 > 2001:4860::8 frag=1:64 len=8", "ip proto=17 2001:db8:2::9 > 2001:4860::8 frag=1:64 len=8"},
		{1, "ip proto=17 8.8.8.8 > 203.0.113.17 frag=1:64:more len=8", "ip proto=17 8.8.8.8 > 203.0.113.17 frag=1:64:more len=8"},
		{1, "ip proto=17 8.8.8.8 > 203.0.113.17 frag=1:64 len=16", "drop fragment_overlap"},
		{0, "ip proto=47 10.0.0.5 > 8.8.8.8 frag=1:64 len=8", "ip proto=47 192.0.2.5 > 8.8.8.8 frag=1:64 len=8"},
		{0, "ip proto=136 10.0.0.5 > 8.8.8.8 frag=1:64 len=8", "ip proto=136 192.0.2.5 > 8.8.8.8 frag=1:64 len=8"},
		{0, "ip proto=47 fd00::5 > 2001:4860::8 frag=1:64 len=8", "ip proto=47 2001:db8:1::5 > 2001:4860::8 frag=1:64 len=8"},
		{0, "ip proto=47 10.0.0.6 > 8.8.8.8 frag=1:64 len=8", "drop snat_protocol"},
		{0, "ip proto=51 10.0.0.5 > 8.8.8.8 frag=1:64 len=8", "drop untranslatable"},
		{0, "ip proto=17 10.0.0.5 > 100.64.0.1 frag=1:64 len=8", "drop route_drop"},
		{0, "ip proto=17 10.0.0.77 > 8.8.8.8 frag=1:64 len=8", "drop antispoof"},
		{0, "ip proto=17 10.0.0.5 > 8.8.8.8 frag=1:64 len=8", "held"},
	} {
		dropped := p.counters.Dropped
		got := "held"
		if out := p.put(c.port, parseLine(t, c.port, c.line)); len(out) == 1 {
			got = bare(out[0].frame)
		}
		for r, n := range p.counters.Dropped {
			if n > dropped[r] {
				got = "drop " + drop.Reason(r).String()
			}
		}
		if got != c.want {
			t.Errorf("%s into port %d:\n  got  %s\n  want %s", c.line, c.port, got, c.want)
		}
	}
}

// Nothing on the way of fragments, and none of the pieces that weir makes, allocates.
func TestFragmentsAllocateNothing(t *testing.T) {
	p := newPost(t, rigConfig)
	var frames [][]byte
	for _, line := range []string{"udp 10.0.0.5:1 > 8.8.8.8:2 " + text80, "tcp 10.0.0.6:1 > 8.8.8.8:2 SYN " + text80, "udp [fd00::6]:1 > [2001:4860::8]:2 " + text80} {
		pieces := cut(parseLine(t, 0, line), 1, 24, 56)
		frames = append(frames, pieces[2], pieces[0], pieces[1])
	}
	frames = append(frames, parseLine(t, 0, "udp 10.0.0.5:1 > 8.8.8.8:2 len=4500"), piece4("10.0.0.5", "8.8.8.8", 7, 64, true), piece4("10.0.0.5", "8.8.8.8", 8, 64, true))
	data := make([][]byte, len(frames))
	for i, f := range frames {
		data[i] = bytes.Clone(f)
	}
	var spare [MaxSpare][]byte
	for i := range spare {
		spare[i] = make([]byte, 2048)
	}
	var b Burst
	if n := testing.AllocsPerRun(500, func() {
		b.N = len(frames)
		for i, f := range frames {
			copy(data[i], f)
			b.Packets[i].Data = data[i]
		}
		p.Spare.N = copy(p.Spare.Data[:], spare[:])
		p.Process(&b)
		p.drain()
		p.after(3 * time.Second)
		p.Release()
		p.drain()
		p.Expire(8)
	}); n != 0 {
		t.Errorf("%v allocations a burst", n)
	}
	if c := p.counters; c.Dropped[drop.FragmentTimeout] != 2*501 || c.Fragmented != 3*501 || c.Forwarded != 10*501 {
		t.Errorf("the bursts do not do what they should: %d timed out, %d fragmented, %d forwarded", c.Dropped[drop.FragmentTimeout], c.Fragmented, c.Forwarded)
	}
}

// FuzzFragments sends any sequence of pieces of few datagrams, from both sides, in bursts of any
// length: tables agree with themselves, buffers come back, and nothing is left half a minute later.
func FuzzFragments(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
	f.Add(bytes.Repeat([]byte{0x10, 0x01, 0x22}, 40))
	f.Add(bytes.Repeat([]byte{0x81, 0x7f, 0x00, 0x33, 0xe0}, 60))
	p := newPost(f, rigConfig)
	from := []string{"10.0.0.5", "10.0.0.6", "10.0.0.7", "fd00::5", "fd00::6"}
	to := []string{"192.0.2.5", "192.0.2.6", "203.0.113.17", "2001:db8:1::5", "2001:db8:1::6"}
	f.Fuzz(func(t *testing.T, script []byte) {
		p.t = t
		p.forget()
		var burst [2][][]byte
		flush := func() {
			for port := range burst {
				if len(burst[port]) > 0 {
					p.put(port, burst[port]...)
					burst[port] = nil
				}
			}
			p.stock()
		}
		for i := 0; i+2 < len(script) && i < 600; i += 3 {
			who, where, how := int(script[i]), int(script[i+1]), int(script[i+2])
			port, i := who&1, who>>1%5
			src, dst := from[i], "8.8.8.8"
			if i > 2 {
				dst = "2001:4860::8"
			}
			if port == 1 {
				src, dst = dst, to[i]
			}
			proto := []int{17, 6, 1, 47}[how&3]
			if i > 2 && proto == 1 {
				proto = 58
			}
			more := ""
			if how&4 != 0 {
				more = ":more"
			}
			line := fmt.Sprintf("ip proto=%d %s > %s frag=%d:%d%s hex:0800003500c80000000000005002 len=%d", proto, src, dst, who>>5&3, where&31*8, more, 2+how>>3&7*8)
			burst[port] = append(burst[port], parseLine(t, port, line))
			if how&0x40 != 0 || len(burst[port]) == MaxBurst {
				flush()
			}
			if how&0x80 != 0 {
				p.pass(time.Duration(where) * 20 * time.Millisecond)
			}
		}
		flush()
		p.consistent()
		p.pass(31 * time.Second)
		p.settled("at the end")
	})
}

// Fragments to an external address of weir's own turn back as the whole datagram does, in any order
// (RFC 4787 REQ-9, REQ-14).
func TestFragmentsTurnBack(t *testing.T) {
	p := newPost(t, rigConfig)
	id := uint32(0)
	for _, line := range []string{
		"udp 10.0.0.5:1000 > 192.0.2.30:53 " + text80, "udp 10.0.0.6:1000 > 192.0.2.30:53 " + text80, "tcp 10.0.0.6:1000 > 192.0.2.5:53 SYN " + text80,
		"icmp echo-request 10.0.0.6 > 192.0.2.30 id=9 " + text80, "udp [fd00::6]:1000 > [2001:db8:1::5]:53 " + text80,
		"icmp6 echo-request fd00::5 > 2001:db8:1::20 id=9 " + text80,
	} {
		for _, order := range orders {
			for _, together := range []bool{false, true} {
				p.forget()
				id++
				frame := parseLine(t, 0, line)
				pieces := cut(frame, id, 24, 56)
				var got []leaving
				if together {
					got = p.put(0, pieces[order[0]], pieces[order[1]], pieces[order[2]])
				} else {
					for _, i := range order {
						got = append(got, p.put(0, pieces[i])...)
					}
				}
				whole := p.put(0, frame)
				if len(got) != 3 || len(whole) != 1 {
					t.Fatalf("%s %v %v: %d of 3 pieces come, %d whole ones; dropped %v", line, order, together, len(got), len(whole), p.counters.Dropped)
				}
				if joined, want := join(t, framesOf(t, 0, got)), unnamed(whole[0].frame); !bytes.Equal(joined, want) {
					t.Fatalf("%s:\ngot  %s\nwant %s", line, packettext.Format(joined), packettext.Format(want))
				}
				p.settled(line)
			}
		}
	}
}

// Whichever worker receives a piece, the owner of its remote address has them all, also of what
// turns back to yet another owner.
func TestFragmentsOfSeveralWorkers(t *testing.T) {
	c := newCrew(t, 3, rigConfig)
	rnd := rand.New(rand.NewPCG(3, 3))
	for n := range 600 {
		port, src, dst, out := 0, "10.0.0.6", fmt.Sprintf("9.%d.%d.9", n>>8, n&255), 1
		switch n % 3 {
		case 1:
			src, dst, out = "10.0.0.6", []string{"192.0.2.5", "192.0.2.20", "192.0.2.30"}[n/3%3], 0
		case 2:
			port, src, dst, out = 1, dst, "192.0.2.5", 0
		}
		lines := []string{
			fmt.Sprintf("udp %s:%d > %s:53 frag=%d:0:more ulen=80 len=24", src, 1+n, dst, n),
			fmt.Sprintf("ip proto=17 %s > %s frag=%d:32:more len=24", src, dst, n),
			fmt.Sprintf("ip proto=17 %s > %s frag=%d:56 len=24", src, dst, n),
		}
		var got []string
		for _, i := range orders[rnd.IntN(6)] {
			if s := c.send(rnd.IntN(3), port, lines[i]); s != "" {
				got = append(got, strings.Split(s, "; ")...)
			}
		}
		if len(got) != 3 || !strings.Contains(got[0], fmt.Sprint(out)+" > udp") {
			t.Fatalf("%q: %q", lines, got)
		}
		first := strings.Fields(got[0])
		from, _, _ := strings.Cut(first[3], ":")
		to, _, _ := strings.Cut(first[5], ":")
		for _, s := range got[1:] {
			if !strings.HasPrefix(s, fmt.Sprintf("%d > ip proto=17 %s > %s frag=", out, from, to)) {
				t.Fatalf("%q: %q", lines, got)
			}
		}
	}
	c.owned()
	if sum := c.sum(); sum.Handed == 0 || sum.Held != 0 {
		t.Errorf("%d handed over, %d held", sum.Handed, sum.Held)
	}
}

// What is let in to a mapping is let in whole, also where there is no room for a session by which
// its later pieces would be known.
func TestInvitedFragmentsWithoutSession(t *testing.T) {
	text := strings.NewReplacer("vpcs:", "sessions: {filtering: endpoint-independent}\nvpcs:", "{name: shared,", "{name: shared, limits: {per_instance: 1},").Replace(rigConfig)
	p := newPost(t, text)
	mapped := p.put(0, parseLine(t, 0, "udp 10.0.0.6:1000 > 8.8.8.8:53"))
	frame := parseLine(t, 1, "udp 9.9.9.9:7 > "+strings.Fields(bare(mapped[0].frame))[1]+" "+text80)
	for _, order := range orders {
		pieces := cut(frame, uint32(order[0]*3+order[1]), 24, 56)
		got := p.put(1, pieces[order[0]], pieces[order[1]], pieces[order[2]])
		if len(got) != 3 {
			t.Errorf("%v: %d of 3 pieces pass: %v", order, len(got), p.counters.Dropped)
			continue
		}
		if got, want := bare(join(t, framesOf(t, 0, got))), "udp 9.9.9.9:7 > 10.0.0.6:1000 "+text80; got != want {
			t.Errorf("%v: %s, expected %s", order, got, want)
		}
	}
	if n := p.sessions.Len(); n != 1 {
		t.Errorf("%d sessions, expected the one that the limit allows", n)
	}
}
