// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"weir/config"
	"weir/pipeline/memory"
	"weir/pipeline/session"
)

// damageSenders are instances of rigConfig, and the sources that their packets may have outside.
var damageSenders = []struct{ private, external string }{
	{"10.0.0.5", "192.0.2.5"},
	{"10.0.0.6", "192.0.2.6"},
	{"10.0.0.7", "192.0.2.20 192.0.2.21 192.0.2.22"},
	{"10.0.0.8", "192.0.2.30"},
	{"[fd00::5]", "[2001:db8:1::5]"},
	{"[fd00::6]", "[2001:db8:1::6]"},
	{"[fd00::7]", "[2001:db8:1::20] [2001:db8:1::21]"},
}

// damageLines is traffic of all of them: port i to a remote address.
func damageLines(i int) (lines []string, external []string) {
	for _, s := range damageSenders {
		remote := "8.8.8.8"
		if strings.HasPrefix(s.private, "[") {
			remote = "[2001:4860::8]"
		}
		for _, line := range []string{"udp %s:%d > %s:53", "tcp %s:%d > %s:443 SYN seq=100"} {
			lines = append(lines, fmt.Sprintf(line, s.private, 5000+i, remote))
			external = append(external, s.external)
		}
	}
	return lines, external
}

// Bits of the state that flip anywhere cost one crash at the most. What the next data plane finds,
// it makes a state of in which all packets have a source of their own instance's, and that agrees
// with itself.
func TestDamagedState(t *testing.T) {
	trials := 1000
	if testing.Short() {
		trials = 150
	}
	var crashes atomic.Int32
	t.Cleanup(func() { t.Logf("%d of %d trials crashed once", crashes.Load(), trials) })
	for seed := range uint64(trials) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 1))
			r := newRigFor(t, rigConfig, config.MAC{2, 0, 0, 0, 9, 9}, 256, 1)
			for i := range 6 {
				lines, _ := damageLines(i)
				for _, line := range lines {
					r.send(0, line)
				}
			}
			r.unconfirm(3)
			r.damage(rnd)
			if r.survives(rnd) {
				r.damage(rnd)
			} else {
				crashes.Add(1)
			}

			now := r.nanos
			r.state.Restore()
			Sweep(r.state, r.gens[0], now)
			if err := r.state.Check(); err != nil {
				t.Fatal(err)
			}
			r.Worker = NewWorker(r.state, 0, r.gens[0], WorkerConfig{MACs: r.macsOf(), AssumeMAC: config.MAC{2, 0, 0, 0, 9, 9}, Seed: &testSeed})
			r.SetClock(now)
			for i := range 12 { // half of them new
				lines, external := damageLines(i)
				for n, line := range lines {
					got := r.send(0, line)
					words := strings.Fields(got)
					if words[0] == "drop" || words[0] == "held" {
						continue // such as by a limit that is used up
					}
					source := words[1][:strings.LastIndexByte(words[1], ':')]
					if !strings.Contains(" "+external[n]+" ", " "+source+" ") {
						t.Fatalf("%s: leaves as %s; its instance has %s", line, got, external[n])
					}
					if answer := r.send(1, fmt.Sprintf("%s %s > %s%s", words[0], words[3], words[1], map[string]string{"tcp": " SYN,ACK seq=7 ack=101"}[words[0]])); !strings.Contains(answer, "> "+strings.Fields(line)[1]) {
						t.Fatalf("%s: the answer to %s arrives as %s", line, got, answer)
					}
				}
			}
			r.after(3 * time.Second)
			r.Expire(r.Capacity())
			if err := r.state.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// damage flips up to 40 bits: of live sessions, of mappings, of anything but the counters, or of
// limits and lists.
func (r *rig) damage(rnd *rand.Rand) {
	segment := r.state.Segment
	counters := uint64(uintptr(unsafe.Pointer(r.counters)) - uintptr(unsafe.Pointer(memory.At[byte](segment, 0))))
	place := func() *byte {
		switch rnd.IntN(4) {
		case 0:
			for range 1000 {
				if s := r.sessions.At(rnd.Uint32N(uint32(r.Capacity()))); s.Load() != 0 {
					return &(*[unsafe.Sizeof(session.Session{})]byte)(unsafe.Pointer(s))[rnd.IntN(int(unsafe.Sizeof(*s)))]
				}
			}
		case 1:
			m := r.mappings.At(rnd.Uint32N(32))
			return &(*[unsafe.Sizeof(session.Mapping{})]byte)(unsafe.Pointer(m))[rnd.IntN(int(unsafe.Sizeof(*m)))]
		case 2:
			u := &r.state.Instances[rnd.IntN(16)]
			if rnd.IntN(2) == 0 {
				return &(*[unsafe.Sizeof(*u)]byte)(unsafe.Pointer(u))[rnd.IntN(int(unsafe.Sizeof(*u)))]
			}
			l := &r.unconfirmed[rnd.IntN(16)]
			return &(*[unsafe.Sizeof(*l)]byte)(unsafe.Pointer(l))[rnd.IntN(int(unsafe.Sizeof(*l)))]
		}
		for {
			at := rnd.Uint64N(segment.Size())
			if rnd.IntN(4) == 0 {
				at = rnd.Uint64N(1 << 16) // header, mappings
			}
			if at < counters || at >= counters+uint64(unsafe.Sizeof(*r.counters)) {
				return memory.At[byte](segment, at)
			}
		}
	}
	for range 1 + rnd.IntN(40) {
		*place() ^= 1 << rnd.IntN(8)
	}
}

// survives lets the worker that runs go on, and reports whether it does.
func (r *rig) survives(rnd *rand.Rand) (yes bool) {
	defer func() { recover() }() // it dies of what it meets
	for i := range 8 {
		lines, _ := damageLines(i)
		for _, line := range lines {
			port := 0
			if rnd.IntN(3) == 0 {
				port, line = 1, outsideTo(i, "192.0.2.20")
			}
			var b Burst
			b.Port, b.N = port, 1
			b.Packets[0].Data = parseLine(r.t, port, line)
			r.Process(&b)
			for p := range r.Out {
				r.Sent(p, r.Out[p].N)
			}
			r.Done = r.Done[:0]
		}
	}
	r.Expire(r.Capacity())
	return true
}
