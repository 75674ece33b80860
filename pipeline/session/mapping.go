// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"unsafe"

	"weir/pipeline/fault"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/memory"
)

// Mapping is the external endpoint that SNAT gives an internal one, for all remote endpoints (RFC
// 4787 REQ-1). It lives while sessions hold it, and rests when none does: the internal endpoint
// gets it back at once, another subscriber's not before the rest is over (RFC 6888 REQ-8), another
// one of the same subscriber when no port is free. After a TCP connection that was closed properly
// nothing rests.
//
// All workers share mappings. A worker finds one in a chain that other workers may add to at the
// head, and that only the reaper, one of the workers, takes away from. What the reaper took away is
// used again when every worker has begun another turn, so what a worker finds in a turn stays what
// it is until the turn's end.
type Mapping struct {
	Private inet.Addr
	word    uint64 // how often it changed, whether it rests, state, how many sessions hold it
	VPC     uint32 // slot
	Address uint32 // slot of the external address
	last    uint32 // millisecond at which the last session let go whose port has to rest
	inside  uint32 // 1 + index of the next in the chain by internal endpoint
	outside uint32 // and by external endpoint; of a free one: the next free one
	limbo   uint32 // 1 + index of the next that the reaper took away after it, or that yielded before it
	gone    uint32 // millisecond of a turn that began after the reaper took it away

	PrivatePort, ExternalPort uint16
	Protocol                  PortSpace
	_                         [7]byte // spare, nobody's
}

// PortSpace is one of the separate port spaces of an external address.
type PortSpace uint8

const (
	TCPPorts PortSpace = iota
	UDPPorts
	EchoIdentifiers
	PortSpaces // how many there are
)

// SpaceOf returns the port space of an IP protocol; false: SNAT does not translate it.
func SpaceOf(proto uint8) (PortSpace, bool) {
	switch proto {
	case header.ProtocolTCP:
		return TCPPorts, true
	case header.ProtocolUDP:
		return UDPPorts, true
	case header.ProtocolICMP, header.ProtocolICMPv6:
		return EchoIdentifiers, true
	}
	return 0, false
}

// States of a mapping's word.
const (
	mappingFree = iota << 32
	mappingLive
	mappingGone    // the reaper has it
	mappingYielded // it has lost its port: the reaper will have it
	stateMask      = 3 << 32
	holdsMask      = 1<<32 - 1
	mappingRests   = 1 << 34 // a session let go of it after which the port has to rest
	mappingStep    = 1 << 40 // each hold and each release count one: what has come and gone is seen
)

const (
	wordsPerSpace  = 65536 / 64 // a bit for each port
	wordsPerGroup  = 16
	portsPerGroup  = 64 * wordsPerGroup
	groupsPerSpace = wordsPerSpace / wordsPerGroup
)

// leastRest is how long, in milliseconds, a port rests in any case before another endpoint gets it.
const leastRest = 1000

// longestRest is the longest that the configuration may ask for. What has not been let go of for as
// long has rested.
const longestRest = 24 * 3600 * 1000

// mappingsHeader holds what all workers change.
type mappingsHeader struct {
	Secret Secret
	free   uint64 // how often it changed <<32 | 1 + index of the first free mapping
	room   uint64 // for how many addresses there is memory; control changes it
	_      [6]uint64
	live   uint64 // how many are not free
	top    uint64 // none was ever used from here on
	yields uint64 // 1 + index of the last one that yielded its port, and that the reaper has not seen
	_      [5]uint64
}

// MappingsRegion is where the parts lie in a segment.
type MappingsRegion struct {
	Header, Mappings, Inside, Outside, Ports, Taken, Resting, InUse uint64
	Capacity, Addresses                                             uint64
}

// ReserveMappings adds room for capacity mappings to the layout of a segment, and for their ports
// on so many external addresses at most to that of one that grows: memory for them comes when
// control grows it (see PortBytes), and then SetRoom.
func ReserveMappings(l, growing *memory.Layout, capacity, addresses int) MappingsRegion {
	return MappingsRegion{
		Header:    memory.Add[mappingsHeader](l, 1),
		Mappings:  memory.Add[Mapping](l, capacity),
		Inside:    memory.Add[uint64](l, capacity/2+1),
		Outside:   memory.Add[uint64](l, capacity/2+1),
		Ports:     memory.Add[uint64](growing, addresses*int(PortSpaces)*wordsPerSpace),
		Taken:     memory.Add[uint32](growing, addresses*int(PortSpaces)*groupsPerSpace),
		Resting:   memory.Add[uint64](growing, addresses*int(PortSpaces)*wordsPerSpace),
		InUse:     memory.Add[uint32](growing, addresses),
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
	taken    []uint32 // how many of these bits are set, by address, port space and group of words
	resting  []uint64 // a bit for each port whose mapping nobody holds; it may be set for others too
	inUse    []uint32 // mappings of each address

	// The reaper's.
	walk                uint32
	yielded             uint32 // 1 + index of the next that yielded
	limboHead, limboEnd uint32 // 1 + index
	fresh               uint32 // 1 + index of the first in limbo that has no time yet
}

// What an external address takes in the sections Ports and InUse.
const (
	PortBytes  = uint64(PortSpaces) * wordsPerSpace * 8 // of those that are taken, and again of those that rest
	TakenBytes = uint64(PortSpaces) * groupsPerSpace * 4
	InUseBytes = 4
)

// OpenMappings returns a view of what lies at r in a segment and in one that grows. Fresh memory
// needs Init, used memory Rebuild.
func OpenMappings(s, growing *memory.Segment, r MappingsRegion) *Mappings {
	n, addresses := int(r.Capacity), int(r.Addresses)
	m := &Mappings{
		h:        memory.At[mappingsHeader](s, r.Header),
		mappings: memory.Slice[Mapping](s, r.Mappings, n),
		inside:   memory.Slice[uint64](s, r.Inside, n/2+1),
		outside:  memory.Slice[uint64](s, r.Outside, n/2+1),
		ports:    memory.Slice[uint64](growing, r.Ports, addresses*int(PortSpaces)*wordsPerSpace),
		taken:    memory.Slice[uint32](growing, r.Taken, addresses*int(PortSpaces)*groupsPerSpace),
		resting:  memory.Slice[uint64](growing, r.Resting, addresses*int(PortSpaces)*wordsPerSpace),
		inUse:    memory.Slice[uint32](growing, r.InUse, addresses),
	}
	m.secret = m.h.Secret
	return m
}

// Init makes an empty set of zeroed memory.
func (m *Mappings) Init(secret Secret) {
	m.h.Secret, m.secret = secret, secret
	m.Rebuild()
}

// Rebuild makes chains, ports and the list of free ones anew from the mappings themselves, none of
// which is held afterwards: the sessions hold them again. No worker may run.
func (m *Mappings) Rebuild() {
	m.secret = m.h.Secret
	clear(m.inside)
	clear(m.outside)
	room := m.Addresses()
	clear(m.ports[:room*int(PortSpaces)*wordsPerSpace])
	clear(m.taken[:room*int(PortSpaces)*groupsPerSpace])
	clear(m.resting[:room*int(PortSpaces)*wordsPerSpace])
	clear(m.inUse[:room])
	m.h.free, m.h.live, m.h.yields, m.h.top = 0, 0, 0, 0
	m.limboHead, m.limboEnd, m.fresh, m.walk, m.yielded = 0, 0, 0, 0, 0
	for i := len(m.mappings) - 1; i >= 0; i-- { // so that the list gives low indexes first
		e, ref := &m.mappings[i], uint32(i)
		if e.word&stateMask != mappingLive || int(e.Address) >= room || e.Protocol >= PortSpaces || !m.claim(e.Address, e.Protocol, e.ExternalPort) {
			e.word = mappingFree
			e.outside = uint32(m.h.free)
			m.h.free = uint64(ref + 1)
			continue
		}
		e.word = mappingLive | e.word&mappingRests
		m.h.top = max(m.h.top, uint64(ref)+1)
		m.rest(e)
		push(&e.inside, m.insideChain(e.VPC, e.Private, e.PrivatePort, e.Protocol, e.Address), ref)
		push(&e.outside, m.outsideChain(e.Address, e.Protocol, e.ExternalPort), ref)
		m.inUse[e.Address]++
		m.h.live++
	}
}

// damaged is what a worker says that meets something in its tables that its own code does not
// write. It dies of it, and the next data plane makes everything but sessions and mappings anew.
const damaged = "session: the memory of the tables has been damaged"

// walk counts the steps along a chain. With a keyed hash none comes near to longestChain, unless it
// leads to itself.
type walk int

const longestChain = 1 << 14

func (w *walk) step() {
	if *w++; *w > longestChain {
		panic(damaged)
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

// Addresses returns for how many SNAT addresses there is memory.
func (m *Mappings) Addresses() int { return int(atomic.LoadUint64(&m.h.room)) }

// SetRoom says for how many SNAT addresses there is memory.
func (m *Mappings) SetRoom(addresses int) { atomic.StoreUint64(&m.h.room, uint64(addresses)) }

// InUse returns how many mappings, resting ones too, an external address has.
func (m *Mappings) InUse(address uint32) int {
	if int(address) >= m.Addresses() {
		return 0
	}
	return int(atomic.LoadUint32(&m.inUse[address]))
}

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

// Hold finds the mapping of an internal endpoint on an external address, with a port in one of
// ranges, and holds it once more; None if there is none.
func (m *Mappings) Hold(vpc uint32, private inet.Addr, port uint16, space PortSpace, address uint32, ranges []PortRange) uint32 {
	return m.holdFrom(atomic.LoadUint64(m.insideChain(vpc, private, port, space, address)), vpc, private, port, space, address, ranges)
}

// holdFrom is Hold from the chain with this head.
func (m *Mappings) holdFrom(head uint64, vpc uint32, private inet.Addr, port uint16, space PortSpace, address uint32, ranges []PortRange) uint32 {
	var steps walk
	for at := uint32(head); at != 0; steps.step() {
		e := &m.mappings[at-1]
		if e.PrivatePort == port && e.VPC == vpc && e.Protocol == space && e.Address == address && e.Private == private && within(ranges, e.ExternalPort) && m.hold(e) {
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

// hold counts one more session, unless the mapping has become the reaper's or somebody has its
// port.
func (m *Mappings) hold(e *Mapping) bool {
	for {
		w := atomic.LoadUint64(&e.word)
		if w&stateMask != mappingLive {
			return false
		}
		if atomic.CompareAndSwapUint64(&e.word, w, w+mappingStep+1) {
			if w&holdsMask == 0 {
				m.wake(e)
			}
			return true
		}
	}
}

// rest and wake set and clear a port's bit among those that rest. Whoever ends the rest clears it
// before letting go again, so of a port that rests it is always set.
func (m *Mappings) rest(e *Mapping) {
	atomic.OrUint64(&m.restingOf(e.Address, e.Protocol)[e.ExternalPort>>6], 1<<(e.ExternalPort&63))
}

func (m *Mappings) wake(e *Mapping) {
	atomic.AndUint64(&m.restingOf(e.Address, e.Protocol)[e.ExternalPort>>6], ^(uint64(1) << (e.ExternalPort & 63)))
}

// Adopt lets s, whose external address has a slot, hold the mapping that it names, after Rebuild,
// unless that is another's, or has become so.
func (m *Mappings) Adopt(s *Session, address uint32) bool {
	space, ok := SpaceOf(s.Proto())
	if !ok || int(s.Mapping) >= len(m.mappings) {
		return false
	}
	e := &m.mappings[s.Mapping]
	return e.is(s) && e.Address == address && e.Protocol == space && m.hold(e)
}

// is reports whether a mapping has the endpoints of a session.
func (e *Mapping) is(s *Session) bool {
	return e.Private == s.Private && e.VPC == s.VPC && e.PrivatePort == s.PrivatePort() && e.ExternalPort == s.ExternalPort()
}

// Forsake lets the mapping rest, at millisecond now, that s named, which Rebuild is about to end.
func (m *Mappings) Forsake(s *Session, now uint32) {
	if int(s.Mapping) >= len(m.mappings) {
		return
	}
	if e := &m.mappings[s.Mapping]; e.word&stateMask == mappingLive && e.is(s) {
		e.word |= mappingRests
		e.last = now
	}
}

// Settle, at millisecond now, lets no mapping have been let go of in the future, and puts, after
// the sessions have adopted theirs, the mappings that are held before those that rest: when a
// process died between two mappings of one internal endpoint, the endpoint goes on with the one
// that its sessions have.
func (m *Mappings) Settle(now uint32) {
	for i := range m.mappings[:m.h.top] {
		if e := &m.mappings[i]; int32(now-e.last) < 0 {
			e.last = now
		}
	}
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

// Release lets one session go of a mapping, at millisecond now. If it is the last, the mapping
// rests.
func (m *Mappings) Release(ref uint32, now uint32) {
	e := &m.mappings[ref]
	atomic.StoreUint32(&e.last, now) // first: from the last hold on, the reaper looks at it
	for {
		w := atomic.LoadUint64(&e.word)
		if atomic.CompareAndSwapUint64(&e.word, w, (w+mappingStep-1)|mappingRests) {
			if w&holdsMask == 1 {
				m.rest(e)
			}
			return
		}
	}
}

// Close lets one session go of a mapping, at millisecond now, whose port need not rest for it: a
// TCP connection that both sides have closed (RFC 6888 REQ-8 a). If it is the last, and no other
// asked for a rest, the port is free at once.
func (m *Mappings) Close(ref uint32, now uint32) {
	e := &m.mappings[ref]
	for {
		w := atomic.LoadUint64(&e.word)
		last := w&holdsMask == 1
		yields := last && (w&mappingRests == 0 || now-atomic.LoadUint32(&e.last) > longestRest)
		after := w + mappingStep - 1
		if yields {
			after |= mappingYielded
		}
		if atomic.CompareAndSwapUint64(&e.word, w, after) {
			switch {
			case yields:
				m.freePort(e.Address, e.Protocol, e.ExternalPort)
				m.yield(ref)
			case last:
				m.rest(e)
			}
			return
		}
	}
}

// yield leaves a mapping that has lost its port to the reaper, which need not find it by its walk:
// closed connections may be many.
func (m *Mappings) yield(ref uint32) {
	for {
		first := atomic.LoadUint64(&m.h.yields)
		atomic.StoreUint32(&m.mappings[ref].limbo, uint32(first))
		if atomic.CompareAndSwapUint64(&m.h.yields, first, uint64(ref+1)) {
			return
		}
	}
}

// Held reports whether a session holds the mapping.
func (e *Mapping) Held() bool {
	w := atomic.LoadUint64(&e.word)
	return w&stateMask == mappingLive && w&holdsMask != 0
}

// FindOutside returns the mapping that has a port of an external address and is held, or None.
func (m *Mappings) FindOutside(address uint32, space PortSpace, port uint16) uint32 {
	var steps walk
	for at := uint32(atomic.LoadUint64(m.outsideChain(address, space, port))); at != 0; steps.step() {
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
	NoPort               // no port of the ranges is free, nor has one rested for long enough
	MappingsFull         // no room for another mapping
)

// Create is CreateToward for nobody in particular.
func (m *Mappings) Create(vpc uint32, private inet.Addr, port uint16, space PortSpace, address uint32, ranges []PortRange, random *rand.ChaCha8, now uint32) (uint32, Created) {
	ref, _, result := m.CreateToward(nil, vpc, private, port, space, address, ranges, random, now)
	return ref, result
}

// CreateToward makes a mapping of an internal endpoint at millisecond now, with a random port of
// ranges, and holds it; or holds the one that another worker made in the meantime. alone says that
// no session has the port with that remote endpoint.
func (m *Mappings) CreateToward(to *Toward, vpc uint32, private inet.Addr, port uint16, space PortSpace, address uint32, ranges []PortRange, random *rand.ChaCha8, now uint32) (ref uint32, alone bool, result Created) {
	external, found := m.takePort(to, address, space, ranges, random)
	if found == unfit {
		if ref, external, found, result = m.takeOver(to, vpc, private, address, space, ranges, random, now); result != Mapped {
			return None, false, result
		}
	} else {
		var ok bool
		if ref, ok = m.alloc(); !ok {
			m.freePort(address, space, external)
			return None, false, MappingsFull
		}
	}
	made := m.publish(ref, vpc, private, port, space, address, external, ranges, now)
	return made, made == ref && found == fits, Mapped
}

// anyPort is all ports.
var anyPort = []PortRange{{0, 65535}}

// Regain finds or makes, at millisecond now, the mapping of an internal endpoint with a certain
// port of an external address, and holds it; None if the endpoint has only another one there, or
// another endpoint has the port.
func (m *Mappings) Regain(vpc uint32, private inet.Addr, port uint16, space PortSpace, address uint32, external uint16, now uint32) uint32 {
	only := [1]PortRange{{external, external}}
	ref := m.Hold(vpc, private, port, space, address, only[:])
	if ref != None {
		return ref
	}
	if ref = m.Hold(vpc, private, port, space, address, anyPort); ref == None {
		if !m.claim(address, space, external) {
			return None
		}
		var ok bool
		if ref, ok = m.alloc(); !ok {
			m.freePort(address, space, external)
			return None
		}
		ref = m.publish(ref, vpc, private, port, space, address, external, anyPort, now)
	}
	if m.mappings[ref].ExternalPort != external {
		m.Close(ref, now) // as if it had not been held
		return None
	}
	return ref
}

// publish fills a mapping from alloc, whose port is taken, and links it, or gives both back and
// holds the one that another worker made.
func (m *Mappings) publish(ref, vpc uint32, private inet.Addr, port uint16, space PortSpace, address uint32, external uint16, ranges []PortRange, now uint32) uint32 {
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
			return other
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
	return ref
}

// next is the word of a chain or of the free list after a change: whoever saw an earlier one fails
// to compare and swap.
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
			if atomic.LoadUint64(&m.mappings[at-1].word)&stateMask != mappingFree {
				panic(damaged)
			}
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

// Reap takes up to n mappings away that have yielded their ports, and those of the next n that
// rested long enough: rest milliseconds without a session, at millisecond now. What it took away
// earlier is free when every worker has begun a turn after it: oldest is when the first of
// their last turns began. One worker calls it.
func (m *Mappings) Reap(n int, now, rest uint32, oldest uint32) {
	// What the last call took away went after its turn had begun: it is gone for those who begin a
	// turn from this one on.
	left := len(m.mappings) // in limbo at the most
	for at := m.fresh; at != 0; at = m.mappings[at-1].limbo {
		m.mappings[at-1].gone = now
		if left--; left < 0 {
			panic(damaged)
		}
	}
	m.fresh, left = 0, len(m.mappings)
	for ; m.limboHead != 0; left-- {
		if left == 0 {
			panic(damaged)
		}
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
	for range n {
		if m.yielded == 0 {
			m.yielded = uint32(atomic.SwapUint64(&m.h.yields, 0))
		}
		if m.yielded == 0 {
			break
		}
		ref := m.yielded - 1
		m.yielded = m.mappings[ref].limbo
		atomic.StoreUint64(&m.mappings[ref].word, mappingGone)
		m.takeAway(ref, false)
	}
	top := uint32(atomic.LoadUint64(&m.h.top))
	for range min(n, int(top)) {
		if m.walk >= top {
			m.walk = 0
		}
		ref := m.walk
		m.walk++
		e := &m.mappings[ref]
		if w, ok := e.over(now, rest); ok && e.take(w) {
			m.takeAway(ref, true)
		}
	}
}

// takeAway takes a mapping that is gone out of the chains, and frees its port if that is its still.
func (m *Mappings) takeAway(ref uint32, port bool) {
	e := &m.mappings[ref]
	m.unlink(m.insideChain(e.VPC, e.Private, e.PrivatePort, e.Protocol, e.Address), ref, func(e *Mapping) *uint32 { return &e.inside })
	fault.Point("mapping.half-unlinked")
	m.unlink(m.outsideChain(e.Address, e.Protocol, e.ExternalPort), ref, func(e *Mapping) *uint32 { return &e.outside })
	fault.Point("mapping.unlinked")
	if port {
		m.wake(e) // before somebody else has the port
		m.freePort(e.Address, e.Protocol, e.ExternalPort)
	}
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

// over reports whether nobody holds a mapping any more and its rest is over, and the word that says
// so.
func (e *Mapping) over(now, rest uint32) (w uint64, ok bool) {
	w = atomic.LoadUint64(&e.word)
	switch {
	case w&(stateMask|holdsMask) != mappingLive:
		return w, false
	case w&mappingRests == 0:
		return w, true
	}
	idle := now - atomic.LoadUint32(&e.last)
	return w, idle >= rest && int32(idle) >= 0
}

// take makes a mapping whose word is still w the reaper's. A session that has held it meanwhile,
// and let go, has changed the word.
func (e *Mapping) take(w uint64) bool {
	return atomic.CompareAndSwapUint64(&e.word, w, w&^stateMask&^holdsMask&^mappingRests|mappingGone)
}

// unlink takes ref out of a chain, whose head others may change meanwhile. What it leads to stays:
// somebody may stand on it.
func (m *Mappings) unlink(chain *uint64, ref uint32, link func(*Mapping) *uint32) {
	var steps walk
	for {
		head := atomic.LoadUint64(chain)
		if uint32(head) == ref+1 {
			if atomic.CompareAndSwapUint64(chain, head, next(head, atomic.LoadUint32(link(&m.mappings[ref])))) {
				return
			}
			continue
		}
		for at := uint32(head); at != 0; steps.step() {
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
