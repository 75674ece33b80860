// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"weir/pipeline/inet"
	"weir/pipeline/memory"
)

const testAddresses = 4

// newMappings makes a set in a segment of its own, and returns what opens further views of it.
func newMappings(t testing.TB, capacity int) (*Mappings, func() *Mappings) {
	t.Helper()
	var l memory.Layout
	r := ReserveMappings(&l, &l, capacity, testAddresses)
	s, err := memory.New("mappings", l.Size(), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	m := OpenMappings(s, s, r)
	m.SetRoom(testAddresses)
	m.Init(randomSecret(rand.New(rand.NewPCG(3, 4))))
	return m, func() *Mappings { return OpenMappings(s, s, r) }
}

func private(n int) inet.Addr { return inet.Addr{Lo: 0xffff_0a00_0000 + uint64(n)} }

func newRand(n uint64) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}) }

// endpoint is the slow, obvious form of a mapping.
type endpoint struct {
	vpc     uint32
	host    int
	port    uint16
	space   PortSpace
	address uint32
}

// One worker's mappings agree with maps over many random holds, releases, rests and rebuilds.
func TestMappingsAgreeWithMaps(t *testing.T) {
	const rest = 1000
	m, _ := newMappings(t, 60)
	r := rand.New(rand.NewPCG(1, 2))
	random := newRand(1)
	type model struct {
		ref, holds, last uint32
		port             uint16
	}
	type port struct {
		address uint32
		space   PortSpace
		port    uint16
	}
	live := map[endpoint]*model{}
	owner := map[port]endpoint{}
	ranges := []PortRange{{2000, 2007}, {60, 69}} // over the edge of a word
	now := uint32(0xffff_f000)                    // the clock wraps
	refused := 0
	steps := 200_000
	if testing.Short() {
		steps = 20_000
	}
	for step := range steps {
		now += r.Uint32N(20)
		e := endpoint{1 + r.Uint32N(2), r.IntN(4), uint16(r.UintN(4)), PortSpace(r.UintN(3)), r.Uint32N(2)}
		switch k := live[e]; {
		case r.IntN(3) > 0:
			ref := m.Hold(e.vpc, private(e.host), e.port, e.space, e.address, ranges)
			if (ref != None) != (k != nil) {
				t.Fatalf("step %d: hold of %+v gives %d, expected %v", step, e, int32(ref), k)
			}
			if k == nil {
				var result Created
				if ref, result = m.Create(e.vpc, private(e.host), e.port, e.space, e.address, ranges, random, now); result != Mapped {
					taken := 0
					for p := range owner {
						if p.address == e.address && p.space == e.space {
							taken++
						}
					}
					if result == NoPort && taken != 18 || result == MappingsFull && m.Len() != 60 {
						t.Fatalf("step %d: refused (%d) with %d of 18 ports taken and %d mappings", step, result, taken, m.Len())
					}
					refused++
					continue
				}
				k = &model{ref: ref, port: m.At(ref).ExternalPort}
				p := port{e.address, e.space, k.port}
				if o, taken := owner[p]; taken || !within(ranges, k.port) {
					t.Fatalf("step %d: %+v gets port %d, which is %+v's", step, e, k.port, o)
				}
				live[e], owner[p] = k, e
			}
			k.holds++
			if ref != k.ref || m.At(ref).ExternalPort != k.port {
				t.Fatalf("step %d: %+v has mapping %d, port %d; expected %d, %d", step, e, ref, m.At(ref).ExternalPort, k.ref, k.port)
			}
		case k != nil && k.holds > 0:
			m.Release(k.ref, now)
			k.holds--
			k.last = now
		}
		m.Reap(60, now, rest, now)
		for e, k := range live {
			if k.holds == 0 && now-k.last >= rest {
				delete(owner, port{e.address, e.space, k.port})
				delete(live, e)
				continue
			}
			got := m.FindOutside(e.address, e.space, k.port)
			if (got == k.ref) != (k.holds > 0) {
				t.Fatalf("step %d: port %d of %+v leads to %d, expected %d held %d times", step, k.port, e, int32(got), k.ref, k.holds)
			}
		}
		if step%5000 == 0 {
			holds := map[uint32]uint32{}
			for _, k := range live {
				holds[k.ref] = k.holds
			}
			if err := m.Check(holds); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			m.Rebuild()
			for e, k := range live {
				for range k.holds {
					s := Session{Private: private(e.host), VPC: e.vpc, Mapping: k.ref, word: Word(e.port, 1, k.port, [PortSpaces]uint8{6, 17, 1}[e.space], UDP)}
					if !m.Adopt(&s, e.address) {
						t.Fatalf("step %d: mapping %d is lost by a rebuild", step, k.ref)
					}
				}
			}
			if err := m.Check(holds); err != nil {
				t.Fatalf("step %d: rebuilt: %v", step, err)
			}
		}
	}
	if refused == 0 {
		t.Error("nothing was ever refused")
	}
}

// shared notes who holds what, how many times, and that nobody else does.
type shared struct{ word atomic.Uint64 } // owner<<32 | how many times

func (s *shared) take(owner uint64) (other uint64, ok bool) {
	for {
		was := s.word.Load()
		if n := was & 0xffff_ffff; n != 0 && was>>32 != owner {
			return was >> 32, false
		} else if s.word.CompareAndSwap(was, owner<<32|(n+1)) {
			return 0, true
		}
	}
}

func (s *shared) drop() { s.word.Add(^uint64(0)) }

// contest is several workers that begin flows of the same endpoints at once. One of them reaps.
type contest struct {
	endpoints  int
	seed       uint64
	pace, rest uint32                                                         // milliseconds: that eight rounds of a worker take, and that ports rest
	begin      func(w *contestant, n int, now uint32) (ref uint32, err error) // None: not this time
	held       func(w *contestant, ref uint32) error                          // while nobody else may have it
	release    func(w *contestant, ref, now uint32)
}

// contestant is a worker of a contest.
type contestant struct {
	*Mappings
	*rand.Rand
	ports *rand.ChaCha8
}

// run lets them contend, and fails if a port is two endpoints' or an endpoint has two ports.
func (c *contest) run(t *testing.T) {
	const workers = 4
	first, open := newMappings(t, 4096)
	var clock atomic.Uint32
	clock.Store(1)
	var turns [workers]atomic.Uint32
	var ports [65536]shared // by endpoints
	used := make([]shared, c.endpoints)
	var wg sync.WaitGroup
	for i := range workers {
		w := &contestant{first, rand.New(rand.NewPCG(c.seed, uint64(i))), newRand(uint64(i))}
		if i > 0 {
			w.Mappings = open()
		}
		wg.Go(func() {
			for round := range contestRounds {
				now := clock.Load()
				turns[i].Store(now)
				if round%8 == 0 {
					clock.Add(c.pace)
				}
				n := w.IntN(c.endpoints)
				ref, err := c.begin(w, n, now)
				if err != nil {
					t.Error(err)
					return
				} else if ref == None {
					continue
				}
				port := w.At(ref).ExternalPort
				if other, ok := ports[port].take(uint64(n)); !ok {
					t.Errorf("port %d is endpoint %d's and %d's", port, other, n)
					return
				}
				if other, ok := used[n].take(uint64(port)); !ok {
					t.Errorf("endpoint %d has ports %d and %d", n, other, port)
					return
				}
				if err := c.held(w, ref); err != nil {
					t.Error(err)
					return
				}
				used[n].drop()
				ports[port].drop()
				c.release(w, ref, clock.Load())
				if i == 0 {
					oldest := now
					for i := range turns {
						if turn := turns[i].Load(); int32(turn-oldest) < 0 {
							oldest = turn
						}
					}
					w.Reap(64, now, c.rest, oldest)
				}
			}
			turns[i].Store(clock.Load() + 1<<20)
		})
	}
	wg.Wait()
	if err := first.Check(map[uint32]uint32{}); err != nil {
		t.Error(err)
	}
}

const contestRounds = 20_000 // of each worker

// Several workers that begin flows of the same endpoints at once never give an endpoint two ports,
// nor a port to two endpoints.
func TestMappingsShared(t *testing.T) {
	ranges := []PortRange{{1024, 1055}}
	c := contest{endpoints: 12, seed: 7, pace: 1, rest: 3}
	c.begin = func(w *contestant, n int, now uint32) (uint32, error) {
		ref := w.Hold(1, private(n), 7, UDPPorts, 2, ranges)
		if ref == None {
			var result Created
			if ref, result = w.Create(1, private(n), 7, UDPPorts, 2, ranges, w.ports, now); result != Mapped {
				return None, fmt.Errorf("refused: %d", result) // 32 ports, of which at most 12 are used and few rest
			}
		}
		return ref, nil
	}
	c.held = func(w *contestant, ref uint32) error {
		port := w.At(ref).ExternalPort
		if got := w.FindOutside(2, UDPPorts, port); got != ref && got != None { // None: linked in a moment
			return fmt.Errorf("port %d leads to mapping %d, expected %d", port, got, ref)
		}
		return nil
	}
	c.release = func(w *contestant, ref, now uint32) { w.Release(ref, now) }
	c.run(t)
}

// A process died between publishing its mapping and finding that another worker had linked one of
// the same endpoint: the one that sessions hold stays.
func TestTwinsSettle(t *testing.T) {
	m, _ := newMappings(t, 60)
	ranges := []PortRange{{1000, 1999}}
	loser, _ := m.alloc()
	m.claim(1, UDPPorts, 1500)
	e := &m.mappings[loser]
	e.Private, e.VPC, e.Address, e.PrivatePort, e.ExternalPort, e.Protocol = private(1), 1, 1, 5, 1500, UDPPorts
	e.word = mappingLive | 1
	held, _ := m.Create(1, private(1), 5, UDPPorts, 1, ranges, newRand(1), 0)
	s := &Session{Private: private(1), VPC: 1, Mapping: held, word: Word(5, 53, m.At(held).ExternalPort, 17, UDP)}
	m.Rebuild()
	if !m.Adopt(s, 1) {
		t.Fatal("not adopted")
	}
	m.Settle(0)
	if got := m.Hold(1, private(1), 5, UDPPorts, 1, ranges); got != held {
		t.Errorf("the endpoint has mapping %d with a session, and gets %d for the next", held, int32(got))
	}
	if err := m.Check(map[uint32]uint32{held: 2}); err != nil {
		t.Error(err)
	}
}

// Ports are spread evenly over the range, and one follows from none before it (RFC 6056 §3.1).
func TestPortsAreRandom(t *testing.T) {
	const n, buckets = 10_000, 64
	m, _ := newMappings(t, n)
	ranges := []PortRange{{1024, 65535}}
	random := newRand(9)
	var count [buckets]int
	var last, sum float64
	near := 0
	for i := range n {
		ref, result := m.Create(1, private(i), 1, TCPPorts, 0, ranges, random, 1)
		if result != Mapped {
			t.Fatal(result)
		}
		port := float64(m.At(ref).ExternalPort - 1024)
		count[int(port)*buckets/64512]++
		if d := port - last; i > 0 && d > -64 && d < 64 {
			near++
		}
		const mean = 64512. / 2
		sum += (port - mean) * (last - mean)
		last = port
	}
	chi := 0.
	for _, c := range count {
		d := float64(c) - n/buckets
		chi += d * d / (n / buckets)
	}
	// 63 degrees of freedom, p = 0.001: 103.4. The generator's seed is fixed.
	if chi > 103.4 {
		t.Errorf("chi-square over %d buckets is %.1f, expected below 103.4", buckets, chi)
	}
	if variance := 64512. * 64512. / 12; sum/n/variance > 0.04 || sum/n/variance < -0.04 {
		t.Errorf("ports that follow each other correlate by %.3f, expected none", sum/n/variance)
	}
	if near > n/100 { // 0.2 % by chance
		t.Errorf("%d of %d ports lie next to the one before", near, n)
	}
}

// Two starts have different sequences; a range of one port gives that port; a full one none.
func TestPortsAtTheEdges(t *testing.T) {
	for _, ranges := range [][]PortRange{{{1, 1}}, {{65535, 65535}}, {{63, 64}}, {{1, 65535}}, {{5, 9}, {100, 131}, {9000, 9000}}} {
		m, _ := newMappings(t, 65535)
		total := int(Ports(ranges))
		seen := map[uint16]bool{}
		for i := range total {
			ref, result := m.Create(1, private(i), 1, EchoIdentifiers, 3, ranges, newRand(uint64(i)), 1)
			if result != Mapped {
				t.Fatalf("%v: refused at %d of %d", ranges, i, total)
			}
			port := m.At(ref).ExternalPort
			if seen[port] || !within(ranges, port) {
				t.Fatalf("%v: port %d is given twice, or out of range", ranges, port)
			}
			seen[port] = true
		}
		if _, result := m.Create(1, private(total), 1, EchoIdentifiers, 3, ranges, newRand(1), 1); result != NoPort && total < 65535 {
			t.Errorf("%v: a full range gives one more (%d)", ranges, result)
		}
	}
	a, _ := newMappings(t, 64)
	b, _ := newMappings(t, 64)
	same := 0
	for i := range 32 {
		x, _ := a.Create(1, private(i), 1, UDPPorts, 0, []PortRange{{1024, 65535}}, newRand(100), 1)
		y, _ := b.Create(1, private(i), 1, UDPPorts, 0, []PortRange{{1024, 65535}}, newRand(200), 1)
		if a.At(x).ExternalPort == b.At(y).ExternalPort {
			same++
		}
	}
	if same > 2 {
		t.Errorf("%d of 32 ports are the same with another seed", same)
	}
}

func TestMappingsDoNotAllocate(t *testing.T) {
	m, _ := newMappings(t, 64)
	random := newRand(3)
	now := uint32(0)
	if n := testing.AllocsPerRun(1000, func() {
		now++
		ref, _ := m.Create(1, private(int(now)), 1, UDPPorts, 0, []PortRange{{1024, 2047}}, random, now)
		m.Release(ref, now)
		m.Reap(64, now, 0, now)
		m.Reap(64, now, 0, now+1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// The cost of one more mapping in a range that is empty, half full, all but full, and full.
func BenchmarkCreate(b *testing.B) {
	const ports = 64512
	for _, fill := range []struct {
		name string
		n    int
	}{{"0", 0}, {"50", ports / 2}, {"99", ports * 99 / 100}, {"99.9", ports * 999 / 1000}, {"100", ports}} {
		b.Run(fill.name, func(b *testing.B) {
			m, _ := newMappings(b, ports+64)
			random := newRand(4)
			ranges := []PortRange{{1024, 65535}}
			for i := range fill.n {
				m.Create(1, private(i), 1, UDPPorts, 0, ranges, random, 1)
			}
			now := uint32(2)
			for b.Loop() {
				ref, result := m.Create(1, private(-1), 1, UDPPorts, 0, ranges, random, now)
				if result == Mapped {
					b.StopTimer()
					m.Release(ref, now)
					m.walk = ref
					m.Reap(1, now, 0, now)
					m.Reap(0, now, 0, now+1)
					now += 2
					b.StartTimer()
				}
			}
		})
	}
}
