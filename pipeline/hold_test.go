// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// resolve makes a neighbor known.
func (r *rig) resolve(port int, addr inet.Addr) {
	r.t.Helper()
	if _, err := r.state.Neighbors.Set(attach.Port(port), addr, state.NeighborReachable, config.MAC{2, 0, 0, 0, 7, 7}); err != nil {
		r.t.Fatal(err)
	}
}

// inside4 is 10.0.hi.lo.
func inside4(n int) inet.Addr { return inet.Addr{Lo: 0xffff_0a00_0000 + uint64(n)} }

// Packets wait for a neighbor: three for each, each port's share of 256 in all; the rest is
// dropped. Control is asked for every neighbor, whether its packets found room or not.
func TestHoldBounds(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	send := func(host, n int) string {
		return r.send(0, fmt.Sprintf("udp 10.0.0.5:1000 > 10.0.%d.%d:%d", host>>8, host&255, n))
	}
	share := maxHeld / 2 // of two ports
	held := 0
	for host := 100; host < 160; host++ {
		for n := range 5 {
			got, want := send(host, 1+n), "held"
			if n >= 3 || held == share {
				want = "drop neighbor_unresolved"
			}
			if got != want {
				t.Fatalf("packet %d to host %d, %d are held: %s, want %s", n, host, held, got, want)
			}
			if got == "held" {
				held++
			}
			if n == 0 {
				m := r.punts.Peek()
				if m == nil || m.Kind != state.PuntResolve || m.Addr != inside4(host) || m.At != attach.Port(0) {
					t.Fatalf("control was not asked for host %d: %+v", host, m)
				}
				r.punts.Pop()
			}
			if held == share {
				r.punts.Reset() // what found no room asks with each packet
			}
		}
	}
	if held != share {
		t.Errorf("%d held, want %d", held, share)
	}
	// They wait for 3 seconds, and not longer.
	r.after(3 * time.Second)
	if r.Release(); r.holding != share {
		t.Errorf("%d held after 3 s, want %d", r.holding, share)
	}
	r.after(time.Millisecond)
	r.Done = r.Done[:0]
	if r.Release(); r.holding != 0 || len(r.Done) != share {
		t.Errorf("%d held, %d freed after 3 s; want 0, %d", r.holding, len(r.Done), share)
	}
	r.balanced()
}

// What was held leaves in the order in which it came, when its neighbor is known, and nothing else
// does.
func TestRelease(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	for n := range 3 {
		for host := 100; host < 110; host++ {
			r.expect(0, fmt.Sprintf("udp 10.0.0.5:%d > 10.0.0.%d:9", 1000+n, host), "held")
		}
	}
	for host := 100; host < 110; host += 2 {
		r.resolve(0, inside4(host))
	}
	r.Release()
	if n := r.Out[0].N; n != 15 || r.holding != 15 {
		t.Fatalf("%d released, %d held; want 15, 15", n, r.holding)
	}
	last := map[string]uint16{}
	for i := range r.Out[0].N {
		f := r.Out[0].Frames[i]
		if f[0] != 2 || f[5] != 7 || f[11] != 1 {
			t.Errorf("Ethernet addresses % x", f[:12])
		}
		dst := string(f[30:34])
		if p := portOf(f); p <= last[dst] {
			t.Errorf("to % x: port %d after %d", dst, p, last[dst])
		} else {
			last[dst] = p
		}
	}
	r.drain()
	r.balanced()
	r.Abandon()
	if r.holding != 0 {
		t.Error("Abandon leaves some")
	}
	r.balanced()
}

// The fragments of a datagram are one of the three that wait for a neighbor, in whatever order they
// come, of both families and from either side: the first large datagram is not lost. A flood of
// pieces is bounded all the same.
func TestHoldFragments(t *testing.T) {
	for _, c := range []struct {
		name, line string
		port, out  int
		hop        inet.Addr
		size       int
		pieces     int
	}{
		{"v4, within the VPC", "udp 10.0.0.5:1000 > 10.0.0.100:9 len=60000", 0, 0, inside4(100), 1480, 41},
		{"v4, outwards by SNAT", "udp 10.0.0.6:1000 > 198.51.100.77:9 len=4400", 0, 1, inet.Addr{Lo: 0xffff_c633_644d}, 1480, 3},
		{"v6, outwards by 1:1", "udp [fd00::5]:1000 > [2001:db8::77]:9 len=4400", 0, 1, inet.Addr{Hi: 0x20010db8_00000000, Lo: 0x77}, 1448, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, rigConfig, config.MAC{})
			whole := parseLine(t, c.port, c.line)
			var at []int
			for n := c.size; n < len(whole)-header.EthernetSize-header.IPv6Size; n += c.size {
				at = append(at, n)
			}
			hold := func(id uint32) (held int) {
				pieces := cut(whole, id, at...)
				if len(pieces) != c.pieces {
					t.Fatalf("%d pieces, want %d", len(pieces), c.pieces)
				}
				for i := range pieces {
					if f := r.process(c.port, pieces[i])[0]; f.held {
						held++
					}
				}
				return held
			}
			if n := hold(1); n != c.pieces {
				t.Fatalf("%d of %d pieces are held", n, c.pieces)
			}
			r.resolve(c.out, c.hop)
			r.Release()
			if n := r.Out[c.out].N; n != c.pieces || r.holding != 0 {
				t.Errorf("%d leave, %d are held; want %d, 0", n, r.holding, c.pieces)
			}
			var frames [][]byte
			for i := range r.Out[c.out].N {
				frames = append(frames, r.Out[c.out].Frames[i])
			}
			join(t, frames)
			r.drain()
			r.balanced()
		})
	}
	r := newRig(t, rigConfig, config.MAC{})
	send := func(line string) string { return r.send(0, line) }
	for n := range 3 {
		for at := range 2 {
			if got := send(fmt.Sprintf("ip proto=47 10.0.0.5 > 10.0.0.100 frag=%d:%d:more len=80", n, 80*at)); got != "held" {
				t.Fatalf("datagram %d, piece %d: %s", n, at, got)
			}
		}
	}
	const full = "drop neighbor_unresolved"
	for _, line := range []string{"ip proto=47 10.0.0.5 > 10.0.0.100 frag=3:0:more len=80", "ip proto=48 10.0.0.5 > 10.0.0.100 frag=2:160:more len=80",
		"ip proto=47 10.0.0.6 > 10.0.0.100 frag=2:160:more len=80", "udp 10.0.0.5:1 > 10.0.0.100:2"} {
		if got := send(line); got != full {
			t.Errorf("%s: %s, want it dropped", line, got)
		}
	}
	for at := 2; at < 200; at++ {
		want := "held"
		if 6+at-2 >= maxHeldFrames {
			want = full
		}
		if got := send(fmt.Sprintf("ip proto=47 10.0.0.5 > 10.0.0.100 frag=0:%d:more len=80", 80*at)); got != want {
			t.Fatalf("piece %d: %s, want %s", at, got, want)
		}
	}
	if got := send("udp 10.0.0.5:1 > 10.0.0.101:2"); got != "held" {
		t.Errorf("another neighbor's packet: %s", got)
	}
}
