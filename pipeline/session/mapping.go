// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"unsafe"

	"weir/pipeline/fault"
	"weir/pipeline/inet"
	"weir/pipeline/memory"
)

// Mapping is the external endpoint that SNAT gives an internal one, for all remote endpoints (RFC 4787 REQ-1). It lives while
// sessions hold it, and rests when none does: the internal endpoint gets it back at once, another one not before the rest
// is over (RFC 6888 REQ-8).
//
// All workers share mappings. A worker finds one in a chain that other workers may add to at the head, and that only the reaper,
// one of the workers, takes away from. What the reaper took away is used again when every worker has begun another turn, so what a
// worker finds in a turn stays what it is until the turn's end.
type Mapping struct {
	Private inet.Addr
	word    uint64 // mappingState<<32 | how many sessions hold it
	VPC     uint32 // slot
	Address uint32 // slot of the external address
	last    uint32 // millisecond at which the last session let go
	inside  uint32 // 1 + index of the next in the chain by internal endpoint
	outside uint32 // and by external endpoint; of a free one: the next free one
	limbo   uint32 // 1 + index of the next that the reaper took away after it
	gone    uint32 // millisecond of a turn that began after the reaper took it away

	PrivatePort, ExternalPort uint16
	Protocol                  PortSpace
	_                         [7]byte
}

// PortSpace is one of the separate port spaces of an external address.
type PortSpace uint8

const (
	TCPPorts PortSpace = iota
	UDPPorts
	EchoIdentifiers
	PortSpaces // how many there are
)

// States of a mapping's word.
const (
	mappingFree = iota << 32
	mappingLive
	mappingGone // the reaper has it
	holdsMask   = 1<<32 - 1
)

// wordsPerSpace is a bit for each port.
const wordsPerSpace = 65536 / 64

// mappingsHeader holds what all workers change.
type mappingsHeader struct {
	Secret Secret
	free   uint64 // how often it changed <<32 | 1 + index of the first free mapping
	_      [7]uint64
	live   uint64 // how many are not free
	top    uint64 // none was ever used from here on
	_      [6]uint64
}

// MappingsRegion is where the parts lie in a segment.
type MappingsRegion struct {
	Header, Mappings, Inside, Outside, Ports, InUse uint64
	Capacity, Addresses                             uint64
}

// ReserveMappings adds room for capacity mappings over so many external addresses to the layout of a segment.
func ReserveMappings(l *memory.Layout, capacity, addresses int) MappingsRegion {
	return MappingsRegion{
		Header:    memory.Add[mappingsHeader](l, 1),
		Mappings:  memory.Add[Mapping](l, capacity),
		Inside:    memory.Add[uint64](l, capacity/2+1),
		Outside:   memory.Add[uint64](l, capacity/2+1),
		Ports:     memory.Add[uint64](l, addresses*int(PortSpaces)*wordsPerSpace),
		InUse:     memory.Add[uint32](l, addresses),
		Capacity:  uint64(capacity),
		Addresses: uint64(addresses),
	}
}

// Mappings is one worker's view of all mappings.
type Mappings struct {
	h        *mappingsHeader
	secret   Secret
	mappings []Mapping
	inside   []uint64 // chains: how often it changed <<32 | 1 + index of the first
	outside  []uint64
	ports    []uint64 // a bit for each port that is used or rests, by address and port space
	inUse    []uint32 // mappings of each address

	// The reaper's.
	walk                uint32
	limboHead, limboEnd uint32 // 1 + index
	fresh               uint32 // 1 + index of the first in limbo that has no time yet
}

// OpenMappings returns a view of what lies at r. Fresh memory needs Init, used memory Rebuild.
func OpenMappings(s *memory.Segment, r MappingsRegion) *Mappings {
	n, addresses := int(r.Capacity), int(r.Addresses)
	m := &Mappings{
		h:        memory.At[mappingsHeader](s, r.Header),
		mappings: memory.Slice[Mapping](s, r.Mappings, n),
		inside:   memory.Slice[uint64](s, r.Inside, n/2+1),
		outside:  memory.Slice[uint64](s, r.Outside, n/2+1),
		ports:    memory.Slice[uint64](s, r.Ports, addresses*int(PortSpaces)*wordsPerSpace),
		inUse:    memory.Slice[uint32](s, r.InUse, addresses),
	}
	m.secret = m.h.Secret
	return m
}

// Init makes an empty set of zeroed memory.
func (m *Mappings) Init(secret Secret) {
	m.h.Secret, m.secret = secret, secret
	m.Rebuild()
}

// Rebuild makes chains, ports and the list of free ones anew from the mappings themselves, none of which is held afterwards: the
// sessions hold them again. No worker may run.
func (m *Mappings) Rebuild() {
	m.secret = m.h.Secret
	clear(m.inside)
	clear(m.outside)
	clear(m.ports)
	clear(m.inUse)
	m.h.free, m.h.live = 0, 0
	m.limboHead, m.limboEnd, m.fresh, m.walk = 0, 0, 0, 0
	for i := len(m.mappings) - 1; i >= 0; i-- { // so that the list gives low indexes first
		e, ref := &m.mappings[i], uint32(i)
		if e.word&^holdsMask != mappingLive || int(e.Address) >= len(m.inUse) || e.Protocol >= PortSpaces || !m.claim(e.Address, e.Protocol, e.ExternalPort) {
			e.word = mappingFree
			e.outside = uint32(m.h.free)
			m.h.free = uint64(ref + 1)
			continue
		}
		e.word = mappingLive
		push(&e.inside, m.insideChain(e.VPC, e.Private, e.PrivatePort, e.Protocol, e.Address), ref)
		push(&e.outside, m.outsideChain(e.Address, e.Protocol, e.ExternalPort), ref)
		m.inUse[e.Address]++
		m.h.live++
	}
}

// push puts ref at the head of a chain that nobody else changes.
func push(next *uint32, head *uint64, ref uint32) {
	*next = uint32(*head)
	*head = *head>>32<<32 + 1<<32 | uint64(ref+1)
}

// Len returns how many mappings there are, resting ones too.
func (m *Mappings) Len() int { return int(atomic.LoadUint64(&m.h.live)) }

// Capacity returns how many there can be.
func (m *Mappings) Capacity() int { return len(m.mappings) }

// Addresses returns how many SNAT addresses there is room for.
func (m *Mappings) Addresses() int { return len(m.inUse) }

// InUse returns how many mappings, resting ones too, an external address has.
func (m *Mappings) InUse(address uint32) int { return int(atomic.LoadUint32(&m.inUse[address])) }

// At returns mapping ref, which is held or was found in this turn.
func (m *Mappings) At(ref uint32) *Mapping { return &m.mappings[ref] }

func (m *Mappings) insideChain(vpc uint32, private inet.Addr, port uint16, space PortSpace, address uint32) *uint64 {
	k := Key{Local: private, Remote: inet.Addr{Lo: uint64(address)}, word: uint64(port) | uint64(space)<<48, mask: 1, VPC: vpc}
	i, _ := bits.Mul64(m.secret.hash(&k), uint64(len(m.inside)))
	return &m.inside[i]
}

func (m *Mappings) outsideChain(address uint32, space PortSpace, port uint16) *uint64 {
	k := Key{Remote: inet.Addr{Lo: uint64(address)}, word: uint64(port)<<32 | uint64(space)<<48, mask: 2}
	i, _ := bits.Mul64(m.secret.hash(&k), uint64(len(m.outside)))
	return &m.outside[i]
}

// PortRange is a range of an external address's ports, both ends included.
type PortRange struct{ First, Last uint16 }

// Hold finds the mapping of an internal endpoint on an external address, with a port in one of ranges, and holds it once more; None
// if there is none.
func (m *Mappings) Hold(vpc uint32, private inet.Addr, port uint16, space PortSpace, address uint32, ranges []PortRange) uint32 {
	return m.holdFrom(atomic.LoadUint64(m.insideChain(vpc, private, port, space, address)), vpc, private, port, space, address, ranges)
}

// holdFrom is Hold from the chain with this head.
func (m *Mappings) holdFrom(head uint64, vpc uint32, private inet.Addr, port uint16, space PortSpace, address uint32, ranges []PortRange) uint32 {
	for at := uint32(head); at != 0; {
		e := &m.mappings[at-1]
		if e.PrivatePort == port && e.VPC == vpc && e.Protocol == space && e.Address == address && e.Private == private && within(ranges, e.ExternalPort) && e.hold() {
			return at - 1
		}
		at = atomic.LoadUint32(&e.inside)
	}
	return None
}

func within(ranges []PortRange, port uint16) bool {
	for _, r := range ranges {
		if r.First <= port && port <= r.Last {
			return true
		}
	}
	return false
}

// hold counts one more session, unless the reaper has the mapping.
func (e *Mapping) hold() bool {
	for {
		w := atomic.LoadUint64(&e.word)
		if w&^holdsMask != mappingLive {
			return false
		}
		if atomic.CompareAndSwapUint64(&e.word, w, w+1) {
			return true
		}
	}
}

// Adopt lets s hold the mapping that it names, after Rebuild, unless that has become another's.
func (m *Mappings) Adopt(s *Session) bool {
	if int(s.Mapping) >= len(m.mappings) {
		return false
	}
	e := &m.mappings[s.Mapping]
	return e.Private == s.Private && e.VPC == s.VPC && e.PrivatePort == s.PrivatePort() && e.ExternalPort == s.ExternalPort() && e.hold()
}

// Settle puts, after the sessions have adopted theirs, the mappings that are held before those that rest: when a process died between two
// mappings of one internal endpoint, the endpoint goes on with the one that its sessions have.
func (m *Mappings) Settle() {
	for i := range m.inside {
		var held, rest uint32
		for at := uint32(m.inside[i]); at != 0; {
			e := &m.mappings[at-1]
			after := e.inside
			if e.Held() {
				e.inside, held = held, at
			} else {
				e.inside, rest = rest, at
			}
			at = after
		}
		for held != 0 {
			e := &m.mappings[held-1]
			held, e.inside, rest = e.inside, rest, held
		}
		m.inside[i] = next(m.inside[i], rest)
	}
}

// Release lets one session go of a mapping, at millisecond now.
func (m *Mappings) Release(ref uint32, now uint32) {
	e := &m.mappings[ref]
	atomic.StoreUint32(&e.last, now) // first: from the last hold on, the reaper looks at it
	atomic.AddUint64(&e.word, ^uint64(0))
}

// Held reports whether a session holds the mapping.
func (e *Mapping) Held() bool {
	w := atomic.LoadUint64(&e.word)
	return w&^holdsMask == mappingLive && w&holdsMask != 0
}

// FindOutside returns the mapping that has a port of an external address and is held, or None.
func (m *Mappings) FindOutside(address uint32, space PortSpace, port uint16) uint32 {
	for at := uint32(atomic.LoadUint64(m.outsideChain(address, space, port))); at != 0; {
		e := &m.mappings[at-1]
		if e.ExternalPort == port && e.Address == address && e.Protocol == space && e.Held() {
			return at - 1
		}
		at = atomic.LoadUint32(&e.outside)
	}
	return None
}

// What Create says.
type Created uint8

const (
	Mapped       Created = iota
	NoPort               // every port of the ranges is used or rests
	MappingsFull         // no room for another mapping
)

// Create makes a mapping of an internal endpoint at millisecond now, with a random port of ranges, and holds it; or holds the one that another worker
// made in the meantime.
func (m *Mappings) Create(vpc uint32, private inet.Addr, port uint16, space PortSpace, address uint32, ranges []PortRange, random *rand.ChaCha8, now uint32) (uint32, Created) {
	external, ok := m.takePort(address, space, ranges, random)
	if !ok {
		return None, NoPort
	}
	ref, ok := m.alloc()
	if !ok {
		m.freePort(address, space, external)
		return None, MappingsFull
	}
	e := &m.mappings[ref]
	e.Private, e.VPC, e.Address, e.PrivatePort, e.ExternalPort, e.Protocol, e.last = private, vpc, address, port, external, space, now
	fault.Point("mapping.filled")
	atomic.StoreUint64(&e.word, mappingLive|1)
	fault.Point("mapping.published")
	chain := m.insideChain(vpc, private, port, space, address)
	for {
		head := atomic.LoadUint64(chain)
		if other := m.holdFrom(head, vpc, private, port, space, address, ranges); other != None {
			atomic.StoreUint64(&e.word, mappingFree) // nobody has seen it
			m.freePort(address, space, external)
			m.release(ref)
			return other, Mapped
		}
		atomic.StoreUint32(&e.inside, uint32(head))
		if atomic.CompareAndSwapUint64(chain, head, next(head, ref+1)) {
			break
		}
	}
	fault.Point("mapping.half-linked")
	chain = m.outsideChain(address, space, external)
	for {
		head := atomic.LoadUint64(chain)
		atomic.StoreUint32(&e.outside, uint32(head))
		if atomic.CompareAndSwapUint64(chain, head, next(head, ref+1)) {
			break
		}
	}
	atomic.AddUint32(&m.inUse[address], 1)
	return ref, Mapped
}

// next is the word of a chain or of the free list after a change: whoever saw an earlier one fails to compare and swap.
func next(head uint64, first uint32) uint64 { return (head>>32+1)<<32 | uint64(first) }

// alloc takes a mapping off the free list.
func (m *Mappings) alloc() (uint32, bool) {
	for {
		head := atomic.LoadUint64(&m.h.free)
		at := uint32(head)
		if at == 0 {
			return None, false
		}
		if atomic.CompareAndSwapUint64(&m.h.free, head, next(head, atomic.LoadUint32(&m.mappings[at-1].outside))) {
			atomic.AddUint64(&m.h.live, 1)
			for top := atomic.LoadUint64(&m.h.top); top < uint64(at) && !atomic.CompareAndSwapUint64(&m.h.top, top, uint64(at)); {
				top = atomic.LoadUint64(&m.h.top)
			}
			return at - 1, true
		}
	}
}

// release puts a mapping on the free list.
func (m *Mappings) release(ref uint32) {
	for {
		head := atomic.LoadUint64(&m.h.free)
		atomic.StoreUint32(&m.mappings[ref].outside, uint32(head))
		if atomic.CompareAndSwapUint64(&m.h.free, head, next(head, ref+1)) {
			atomic.AddUint64(&m.h.live, ^uint64(0))
			return
		}
	}
}

func (m *Mappings) portWord(address uint32, space PortSpace, word uint32) *uint64 {
	return &m.ports[(address*uint32(PortSpaces)+uint32(space))*wordsPerSpace+word]
}

// claim takes a port unless it is used or rests.
func (m *Mappings) claim(address uint32, space PortSpace, port uint16) bool {
	bit := uint64(1) << (port & 63)
	return atomic.OrUint64(m.portWord(address, space, uint32(port>>6)), bit)&bit == 0
}

func (m *Mappings) freePort(address uint32, space PortSpace, port uint16) {
	atomic.AndUint64(m.portWord(address, space, uint32(port>>6)), ^(uint64(1) << (port & 63)))
}

// portGuesses is how many random ports are tried before the words are searched: enough for a range that is half full.
const portGuesses = 4

// takePort takes a random free port of ranges (RFC 6056 §3.3.1: random, and the next free one if it is taken). The search of
// a full range reads each of its words once: 1,024 for all ports of an address.
func (m *Mappings) takePort(address uint32, space PortSpace, ranges []PortRange, random *rand.ChaCha8) (uint16, bool) {
	total := Ports(ranges)
	var at uint32
	for range portGuesses {
		at = uint32(random.Uint64() >> 32 * uint64(total) >> 32)
		if port := PortAt(ranges, at); m.claim(address, space, port) {
			return port, true
		}
	}
	// From a random place to the end of its range, through the others, and up to that place again.
	i := 0
	for size := uint32(ranges[0].Last-ranges[0].First) + 1; at >= size; size = uint32(ranges[i].Last-ranges[i].First) + 1 {
		at -= size
		i++
	}
	start := uint32(ranges[i].First) + at
	if port, ok := m.search(address, space, start, uint32(ranges[i].Last), random); ok {
		return port, true
	}
	for j := 1; j < len(ranges); j++ {
		r := ranges[(i+j)%len(ranges)]
		if port, ok := m.search(address, space, uint32(r.First), uint32(r.Last), random); ok {
			return port, true
		}
	}
	if at == 0 {
		return 0, false
	}
	return m.search(address, space, uint32(ranges[i].First), start-1, random)
}

// Ports returns how many ports the ranges have.
func Ports(ranges []PortRange) (n uint32) {
	for _, r := range ranges {
		n += uint32(r.Last-r.First) + 1
	}
	return n
}

// PortAt returns the port that is number n among all of ranges, from 0.
func PortAt(ranges []PortRange, n uint32) uint16 {
	for _, r := range ranges {
		size := uint32(r.Last-r.First) + 1
		if n < size {
			return r.First + uint16(n)
		}
		n -= size
	}
	return ranges[0].First
}

// search takes the first free port from first to last, but a random one of its word.
func (m *Mappings) search(address uint32, space PortSpace, first, last uint32, random *rand.ChaCha8) (uint16, bool) {
	for word := first >> 6; word <= last>>6; word++ {
		mask := ^uint64(0)
		if word == first>>6 {
			mask <<= first & 63
		}
		if word == last>>6 {
			mask &= ^uint64(0) >> (63 - last&63)
		}
		for {
			free := ^atomic.LoadUint64(m.portWord(address, space, word)) & mask
			if free == 0 {
				break
			}
			turn := int(random.Uint64() & 63)
			bit := (bits.TrailingZeros64(bits.RotateLeft64(free, -turn)) + turn) & 63
			if port := uint16(word<<6 | uint32(bit)); m.claim(address, space, port) {
				return port, true
			}
		}
	}
	return 0, false
}

// Reap takes those of the next n mappings away that rested long enough: rest milliseconds without a session, at millisecond now. What it
// took away earlier is free when every worker has begun a turn after it: turns[w] is when worker w began its last one. One
// worker calls it.
func (m *Mappings) Reap(n int, now, rest uint32, oldest uint32) {
	// What the last call took away went after its turn had begun: it is gone for those who begin a turn from this one on.
	for at := m.fresh; at != 0; at = m.mappings[at-1].limbo {
		m.mappings[at-1].gone = now
	}
	m.fresh = 0
	for m.limboHead != 0 {
		e := &m.mappings[m.limboHead-1]
		if int32(oldest-e.gone) <= 0 {
			break
		}
		ref := m.limboHead - 1
		if m.limboHead = e.limbo; m.limboHead == 0 {
			m.limboEnd = 0
		}
		atomic.StoreUint64(&e.word, mappingFree)
		m.release(ref)
	}
	top := uint32(atomic.LoadUint64(&m.h.top))
	for range min(n, int(top)) {
		if m.walk >= top {
			m.walk = 0
		}
		ref := m.walk
		m.walk++
		e := &m.mappings[ref]
		if atomic.LoadUint64(&e.word) != mappingLive {
			continue // free, or held
		}
		if idle := now - atomic.LoadUint32(&e.last); idle < rest || int32(idle) < 0 || !atomic.CompareAndSwapUint64(&e.word, mappingLive, mappingGone) {
			continue
		}
		m.unlink(m.insideChain(e.VPC, e.Private, e.PrivatePort, e.Protocol, e.Address), ref, func(e *Mapping) *uint32 { return &e.inside })
		fault.Point("mapping.half-unlinked")
		m.unlink(m.outsideChain(e.Address, e.Protocol, e.ExternalPort), ref, func(e *Mapping) *uint32 { return &e.outside })
		fault.Point("mapping.unlinked")
		m.freePort(e.Address, e.Protocol, e.ExternalPort)
		atomic.AddUint32(&m.inUse[e.Address], ^uint32(0))
		e.limbo = 0
		if m.fresh == 0 {
			m.fresh = ref + 1
		}
		if m.limboEnd == 0 {
			m.limboHead = ref + 1
		} else {
			m.mappings[m.limboEnd-1].limbo = ref + 1
		}
		m.limboEnd = ref + 1
	}
}

// unlink takes ref out of a chain, whose head others may change meanwhile. What it leads to stays: somebody may stand on it.
func (m *Mappings) unlink(chain *uint64, ref uint32, link func(*Mapping) *uint32) {
	for {
		head := atomic.LoadUint64(chain)
		if uint32(head) == ref+1 {
			if atomic.CompareAndSwapUint64(chain, head, next(head, atomic.LoadUint32(link(&m.mappings[ref])))) {
				return
			}
			continue
		}
		for at := uint32(head); at != 0; {
			l := link(&m.mappings[at-1])
			after := atomic.LoadUint32(l)
			if after == ref+1 {
				atomic.StoreUint32(l, atomic.LoadUint32(link(&m.mappings[ref])))
				return
			}
			at = after
		}
		return // a mapping that died half-linked with its process
	}
}

// A mapping is a cache line: this does not compile when that changes.
var _ [0]byte = [unsafe.Sizeof(Mapping{}) - 64]byte{}
