// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
)

// chiSquare is how far counts, of which each has the same chance, are from being alike; and what is
// exceeded once in a thousand times.
func chiSquare(counts map[uint16]int, n int) (chi, limit float64) {
	mean := float64(n) / float64(len(counts))
	for _, c := range counts {
		chi += (float64(c) - mean) * (float64(c) - mean) / mean
	}
	freedom := float64(len(counts) - 1)
	root := 1 - 2/(9*freedom) + 3.09*math.Sqrt(2/(9*freedom)) // Wilson and Hilferty
	return chi, freedom * root * root * root
}

// Each free port has the same chance, however full the share is, and wherever the used ones lie.
func TestPortsAreUniform(t *testing.T) {
	shares := map[string][]PortRange{
		"1024":      {{1024, 2047}},
		"unaligned": {{1000, 1630}, {3000, 3392}},
		"groups":    {{1, 4100}, {8192, 10239}},
	}
	for name, ranges := range shares {
		total := int(Ports(ranges))
		for _, fill := range []int{0, 50, 95, 99} {
			for _, pattern := range []string{"scattered", "front", "gap"} {
				t.Run(fmt.Sprint(name, "/", fill, "/", pattern), func(t *testing.T) {
					m, _ := newMappings(t, 8)
					random := newRand(11)
					order := rand.New(rand.NewPCG(8, 9)).Perm(total)
					for i := range total * fill / 100 {
						at := i
						switch pattern {
						case "scattered":
							at = order[i]
						case "gap": // one free port alone, the others beside each other
							at = i + 1
						}
						m.claim(1, TCPPorts, PortAt(ranges, uint32(at)))
					}
					counts := map[uint16]int{}
					for i := range total {
						if port := PortAt(ranges, uint32(i)); m.wordsOf(1, TCPPorts)[port>>6]>>(port&63)&1 == 0 {
							counts[port] = 0
						}
					}
					n := 50 * len(counts)
					if len(counts) < 100 {
						n = 500 * len(counts)
					}
					for range n {
						port, found := m.takePort(nil, 1, TCPPorts, ranges, random)
						if _, free := counts[port]; !free || found != fits {
							t.Fatalf("port %d is chosen, which is not free (%d)", port, found)
						}
						counts[port]++
						m.freePort(1, TCPPorts, port)
					}
					// The generator's seed is fixed.
					if chi, limit := chiSquare(counts, n); chi > limit {
						t.Errorf("chi-square over %d free ports is %.1f, expected below %.1f", len(counts), chi, limit)
					}
				})
			}
		}
	}
}

// A session that comes and goes between the reaper's two readings of a mapping starts its rest
// again.
func TestReapSeesWhatCameAndWent(t *testing.T) {
	m, _ := newMappings(t, 8)
	ranges := []PortRange{{2000, 2000}}
	ref, _ := m.Create(1, private(1), 5, UDPPorts, 1, ranges, newRand(1), 0)
	m.Release(ref, 0)
	e := m.At(ref)
	w, ok := e.over(5000, 1000)
	if !ok {
		t.Fatal("five seconds after its last session, a mapping has not rested for one")
	}
	if got := m.Hold(1, private(1), 5, UDPPorts, 1, ranges); got != ref {
		t.Fatalf("the endpoint gets mapping %d, expected %d", int32(got), ref)
	}
	m.Release(ref, 5000)
	if e.take(w) {
		t.Fatal("the reaper takes a mapping whose session has ended in this millisecond")
	}
	m.Reap(8, 5999, 1000, 5999)
	if got := m.Hold(1, private(1), 5, UDPPorts, 1, ranges); got != ref {
		t.Errorf("999 ms later the endpoint gets mapping %d, expected %d", int32(got), ref)
	}
}

// What rests is another's of the same subscriber after a second, when no port is free, and the
// longest at rest comes first; another subscriber waits for the reaper.
func TestRestingPortsAreTakenOver(t *testing.T) {
	m, _ := newMappings(t, 64)
	random := newRand(2)
	ranges := []PortRange{{2000, 2003}}
	var refs []uint32
	for i := range 4 {
		ref, result := m.Create(1, private(1), uint16(i), UDPPorts, 1, ranges, random, 0)
		if result != Mapped {
			t.Fatal(result)
		}
		refs = append(refs, ref)
	}
	for i, ref := range []uint32{refs[2], refs[0], refs[3], refs[1]} {
		m.Release(ref, uint32(1000+i))
	}
	refuse := func(vpc uint32, host int, now uint32) {
		t.Helper()
		if ref, result := m.Create(vpc, private(host), 99, UDPPorts, 1, ranges, random, now); result != NoPort {
			t.Fatalf("at %d ms host %d of VPC %d gets mapping %d (%d), expected a refusal", now, host, vpc, int32(ref), result)
		}
	}
	refuse(1, 1, 1999)
	refuse(1, 2, 50_000) // another instance, whose the range is now
	refuse(2, 1, 50_000)
	if got := m.Hold(1, private(1), 3, UDPPorts, 1, ranges); got != refs[3] {
		t.Fatalf("its own endpoint gets mapping %d, expected %d", int32(got), refs[3])
	}
	taken := map[uint32]bool{}
	for i, want := range []uint32{refs[2], refs[0], refs[1]} {
		ref, result := m.Create(1, private(1), uint16(10+i), UDPPorts, 1, ranges, random, 2003)
		if result != Mapped || m.At(ref).ExternalPort != m.At(want).ExternalPort || ref == want {
			t.Fatalf("mapping %d with port %d (%d), expected the port that has rested longest, %d", int32(ref), m.At(ref).ExternalPort, result, m.At(want).ExternalPort)
		}
		taken[ref] = true
		if got := m.FindOutside(1, UDPPorts, m.At(ref).ExternalPort); got != ref {
			t.Errorf("port %d leads to mapping %d, expected %d", m.At(ref).ExternalPort, int32(got), ref)
		}
	}
	refuse(1, 1, 50_000)
	if got := m.Hold(1, private(1), 2, UDPPorts, 1, ranges); got != None {
		t.Errorf("an endpoint whose port is another's gets mapping %d", got)
	}
	holds := map[uint32]uint32{refs[3]: 1}
	for ref := range taken {
		holds[ref] = 1
	}
	if err := m.Check(holds); err != nil {
		t.Error(err)
	}
	m.Reap(64, 3000, 120_000, 3000)
	m.Reap(0, 3000, 120_000, 3001)
	if n := m.Len(); n != 4 {
		t.Errorf("%d mappings after the reaper's round, expected 4", n)
	}
	m.Rebuild()
	if n := m.Len(); n != 4 {
		t.Errorf("%d mappings after a rebuild, expected 4", n)
	}
}

// A process that dies when it has taken a resting port and not published what it took it for leaves
// the port free.
func TestTakenOverAndDied(t *testing.T) {
	m, _ := newMappings(t, 8)
	ranges := []PortRange{{2000, 2000}}
	ref, _ := m.Create(1, private(1), 5, UDPPorts, 1, ranges, newRand(1), 0)
	m.Release(ref, 0)
	if _, _, _, result := m.takeOver(nil, 1, private(1), 1, UDPPorts, ranges, newRand(2), 9000); result != Mapped {
		t.Fatal(result)
	}
	m.Rebuild()
	if err := m.Check(map[uint32]uint32{}); err != nil || m.Len() != 0 {
		t.Errorf("%d mappings, %v", m.Len(), err)
	}
	if _, result := m.Create(2, private(2), 5, UDPPorts, 1, ranges, newRand(1), 9000); result != Mapped {
		t.Errorf("the port is not free (%d)", result)
	}
}

// The search for a resting port, which is the dearest, allocates nothing.
func TestTakingOverDoesNotAllocate(t *testing.T) {
	m, _ := newMappings(t, 256)
	random := newRand(3)
	ranges := []PortRange{{2000, 2099}}
	now := uint32(0)
	next := func() uint32 {
		now += 100
		ref, result := m.Create(1, private(1), uint16(now/100), UDPPorts, 1, ranges, random, now)
		if result != Mapped {
			t.Fatalf("at %d ms: %d", now, result)
		}
		m.Release(ref, now)
		m.Reap(8, now, 1<<30, now)
		return ref
	}
	for range 100 {
		next()
	}
	if n := testing.AllocsPerRun(1000, func() { next() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if n := m.Len(); n > 102 {
		t.Errorf("%d mappings of 100 ports: what has lost its port is not taken away", n)
	}
}

// After a connection that was closed the port is free at once, unless another session's end asks
// for a rest.
func TestClosedDoesNotRest(t *testing.T) {
	m, _ := newMappings(t, 8)
	ranges := []PortRange{{2000, 2000}}
	begin := func(port uint16, now uint32) uint32 {
		t.Helper()
		ref, result := m.Create(1, private(1), port, TCPPorts, 1, ranges, newRand(1), now)
		if result != Mapped {
			t.Fatalf("endpoint %d is refused (%d)", port, result)
		}
		return ref
	}
	a := begin(1, 0)
	m.Hold(1, private(1), 1, TCPPorts, 1, ranges)
	m.Close(a, 100)
	if _, result := m.Create(1, private(1), 2, TCPPorts, 1, ranges, newRand(1), 100); result != NoPort {
		t.Fatalf("a port that a session holds is given away (%d)", result)
	}
	m.Close(a, 100)
	b := begin(2, 100)
	if got := m.Regain(1, private(1), 1, TCPPorts, 1, 2000, 100); got != None {
		t.Fatalf("the first endpoint gets mapping %d with a port that is the second's", got)
	}
	m.Close(b, 101)
	c := m.Regain(1, private(1), 1, TCPPorts, 1, 2000, 102)
	if c == None || m.At(c).ExternalPort != 2000 || m.At(c).PrivatePort != 1 {
		t.Fatalf("the first endpoint does not get its port again: mapping %d", int32(c))
	}
	// One ends without having been closed, and then one closes: the rest is that of the former.
	m.Hold(1, private(1), 1, TCPPorts, 1, ranges)
	m.Release(c, 5000)
	m.Close(c, 5500)
	if _, result := m.Create(1, private(1), 3, TCPPorts, 1, ranges, newRand(1), 5999); result != NoPort {
		t.Fatalf("a port does not rest after a session that was not closed (%d)", result)
	}
	m.Reap(8, 6500, 120_000, 6500)
	if err := m.Check(map[uint32]uint32{}); err != nil {
		t.Error(err)
	}
	d := begin(3, 6000)
	m.Close(d, 40*24*3600*1000)
	if err := m.Check(map[uint32]uint32{}); err != nil {
		t.Error(err)
	}
}

// Several workers that take resting ports from each other's endpoints, close and release, never
// give a port to two endpoints, nor an endpoint two ports.
func TestTakeOversShared(t *testing.T) {
	ranges := []PortRange{{1020, 1035}}
	var refusals, takenOver atomic.Int64
	c := contest{endpoints: 24, seed: 17, pace: 400, rest: 100_000}
	c.begin = func(w *contestant, n int, now uint32) (uint32, error) {
		ref := w.Hold(1, private(1), uint16(n), UDPPorts, 2, ranges)
		if ref != None {
			return ref, nil
		}
		ref, result := w.Create(1, private(1), uint16(n), UDPPorts, 2, ranges, w.ports, now)
		switch result {
		case Mapped:
			takenOver.Add(1)
			return ref, nil
		case NoPort:
			refusals.Add(1)
			return None, nil
		case MappingsFull: // a worker's turn lasts while it waits for a core
			return None, nil
		}
		return None, fmt.Errorf("refused: %d", result)
	}
	c.held = func(*contestant, uint32) error {
		runtime.Gosched() // on a loaded machine one would else be through before the others begin
		return nil
	}
	c.release = func(w *contestant, ref, now uint32) {
		if w.IntN(2) == 0 {
			w.Close(ref, now)
		} else {
			w.Release(ref, now)
		}
	}
	c.run(t)
	if refusals.Load() == 0 || takenOver.Load() < contestRounds/10 {
		t.Errorf("%d refusals, %d new mappings: nothing was fought for", refusals.Load(), takenOver.Load())
	}
}
