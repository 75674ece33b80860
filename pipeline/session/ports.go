// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/bits"
	"math/rand/v2"
	"sync/atomic"

	"weir/pipeline/inet"
)

// Toward is the remote endpoint of the flow that a new mapping is for, and the table of the worker
// that owns it, and so all sessions with it.
type Toward struct {
	Table            *Table
	External, Remote inet.Addr
	RemotePort       uint16
	Proto            uint8
	Seq              uint32 // of TCP, the SYN's
}

// suit is how well a port suits a new flow.
type suit uint8

const (
	unfit    suit = iota // a session has it with that remote endpoint
	givesWay             // one that the flow may end has
	fits
)

// suit looks for a session that has a port with that remote endpoint.
func (t *Toward) suit(port uint16) suit {
	if t == nil {
		return fits
	}
	k := OutsideKey(t.External, t.Remote, port, t.RemotePort, t.Proto)
	ref := t.Table.Find(&k)
	switch {
	case ref == None:
		return fits
	case t.Table.sessions[ref].GivesWay(t.Seq):
		return givesWay
	}
	return unfit
}

// GivesWay reports whether a session may end for a flow from another internal endpoint that needs
// its port, and begins with a SYN of number seq: it began from outside and nobody answered, or it
// is closed, and a server that still remembers it takes the SYN for a new connection, because its
// number is beyond all that the old one sent (RFC 9293 §3.6.1, RFC 6191).
func (s *Session) GivesWay(seq uint32) bool {
	return s.State() == Unconfirmed || s.Closed() && int32(seq-s.End[0]) > 0
}

const (
	// portGuesses is how many random ports are tried before the free ones are counted: enough for a
	// range that is half full.
	portGuesses = 4
	// portWindow is how many ports are looked at closely: free ones for one without a session,
	// resting ones for the longest at rest.
	portWindow = 64
	// overtaken is how often the search for a resting port begins again because another worker was
	// faster.
	overtaken = 3
)

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

// below draws a number below n.
func below(n uint32, random *rand.ChaCha8) uint32 {
	return uint32(random.Uint64() >> 32 * uint64(n) >> 32)
}

// The words of a port space.
func (m *Mappings) wordsOf(address uint32, space PortSpace) *[wordsPerSpace]uint64 {
	return (*[wordsPerSpace]uint64)(m.ports[(int(address)*int(PortSpaces)+int(space))*wordsPerSpace:])
}

func (m *Mappings) takenOf(address uint32, space PortSpace) *[groupsPerSpace]uint32 {
	return (*[groupsPerSpace]uint32)(m.taken[(int(address)*int(PortSpaces)+int(space))*groupsPerSpace:])
}

func (m *Mappings) restingOf(address uint32, space PortSpace) *[wordsPerSpace]uint64 {
	return (*[wordsPerSpace]uint64)(m.resting[(int(address)*int(PortSpaces)+int(space))*wordsPerSpace:])
}

// claim takes a port unless it is used or rests.
func (m *Mappings) claim(address uint32, space PortSpace, port uint16) bool {
	word, bit := &m.wordsOf(address, space)[port>>6], uint64(1)<<(port&63)
	if atomic.LoadUint64(word)&bit != 0 || atomic.OrUint64(word, bit)&bit != 0 {
		return false
	}
	atomic.AddUint32(&m.takenOf(address, space)[port/portsPerGroup], 1)
	return true
}

func (m *Mappings) freePort(address uint32, space PortSpace, port uint16) {
	atomic.AndUint64(&m.wordsOf(address, space)[port>>6], ^(uint64(1) << (port & 63)))
	atomic.AddUint32(&m.takenOf(address, space)[port/portsPerGroup], ^uint32(0))
}

// takePort takes a free port of ranges, each with the same chance (RFC 6056 §3.3.1): one that fits,
// else one whose session gives way. Where few are free they are counted, in groups of 1,024, so
// that the fullest address costs a look at 64 counts and 16 words.
func (m *Mappings) takePort(to *Toward, address uint32, space PortSpace, ranges []PortRange, random *rand.ChaCha8) (uint16, suit) {
	total := Ports(ranges)
	words := m.wordsOf(address, space)
	for range portGuesses {
		port := PortAt(ranges, below(total, random))
		if atomic.LoadUint64(&words[port>>6])>>(port&63)&1 == 0 && to.suit(port) == fits && m.claim(address, space, port) {
			return port, fits
		}
	}
	free := portSet{words: words, taken: m.takenOf(address, space), flip: ^uint64(0), ranges: ranges}
	n := free.count()
	if n == 0 {
		return 0, unfit
	}
	// One first: it nearly always fits, and to find more of them costs more.
	i, first := free.at(below(n, random))
	if port := uint16(first); to.suit(port) == fits && m.claim(address, space, port) {
		return port, fits
	}
	return m.takeSome(to, address, space, &free, i, first, n, random)
}

// takeSome is takePort among up to 64 of n free ports, from a place on and around.
func (m *Mappings) takeSome(to *Toward, address uint32, space PortSpace, free *portSet, i int, first, n uint32, random *rand.ChaCha8) (uint16, suit) {
	var list [portWindow]uint16
	port, found := uint16(0), unfit
	for left := free.from(i, first, list[:min(n, portWindow)]); left > 0; {
		at := below(uint32(left), random)
		candidate := list[at]
		left--
		list[at] = list[left]
		switch to.suit(candidate) {
		case fits:
			if m.claim(address, space, candidate) {
				if found != unfit {
					m.freePort(address, space, port)
				}
				return candidate, fits
			}
		case givesWay:
			if found == unfit && m.claim(address, space, candidate) {
				port, found = candidate, givesWay
			}
		}
	}
	return port, found
}

// takeOver finds, at millisecond now, the port that has rested longest of up to 64 of ranges, takes
// it from its mapping, and returns it with a mapping from alloc. The range is one subscriber's, for
// whom ports need not rest (RFC 6888 REQ-8 b); what has been another's before does.
func (m *Mappings) takeOver(to *Toward, vpc uint32, private inet.Addr, address uint32, space PortSpace, ranges []PortRange, random *rand.ChaCha8, now uint32) (ref uint32, port uint16, found suit, result Created) {
	rest := portSet{words: m.restingOf(address, space), ranges: ranges}
	for range overtaken {
		n := rest.count()
		if n == 0 {
			break
		}
		var list [portWindow]uint16
		i, first := rest.at(below(n, random))
		best := None
		var word uint64
		var longest uint32
		found = unfit
		for _, candidate := range list[:rest.from(i, first, list[:min(n, portWindow)])] {
			at := m.restingAt(address, space, candidate)
			if at == None {
				continue
			}
			e := &m.mappings[at]
			if e.VPC != vpc || e.Private != private {
				continue
			}
			w := atomic.LoadUint64(&e.word)
			idle := now - atomic.LoadUint32(&e.last)
			if w&mappingRests == 0 {
				idle = longestRest
			}
			if w&(stateMask|holdsMask) != mappingLive || idle < leastRest || int32(idle) < 0 || found == fits && idle <= longest {
				continue
			}
			if s := to.suit(candidate); s > found || s == found && s != unfit && idle > longest {
				best, word, longest, port, found = at, w, idle, candidate, s
			}
		}
		if best == None {
			break
		}
		ref, ok := m.alloc()
		if !ok {
			return None, 0, unfit, MappingsFull
		}
		if e := &m.mappings[best]; atomic.CompareAndSwapUint64(&e.word, word, word+mappingStep|mappingYielded) {
			m.wake(e)
			m.yield(best)
			return ref, port, found, Mapped
		}
		m.release(ref)
	}
	return None, 0, unfit, NoPort
}

// restingAt returns the mapping of a port that nobody holds, or None.
func (m *Mappings) restingAt(address uint32, space PortSpace, port uint16) uint32 {
	var steps walk
	for at := uint32(atomic.LoadUint64(m.outsideChain(address, space, port))); at != 0; steps.step() {
		e := &m.mappings[at-1]
		if e.ExternalPort == port && e.Address == address && e.Protocol == space && atomic.LoadUint64(&e.word)&(stateMask|holdsMask) == mappingLive {
			return at - 1
		}
		at = atomic.LoadUint32(&e.outside)
	}
	return None
}

// portSet is the ports of ranges whose bit is set; or those whose bit is not: then flip is all
// ones, and taken counts those that are set. Others change the bits meanwhile: then one near to
// what was asked for will do.
type portSet struct {
	words  *[wordsPerSpace]uint64
	taken  *[groupsPerSpace]uint32
	flip   uint64
	ranges []PortRange
}

// word returns the bits of a word between two ports.
func (p *portSet) word(word, first, last uint32) uint64 {
	x := atomic.LoadUint64(&p.words[word]) ^ p.flip
	if word == first>>6 {
		x &= ^uint64(0) << (first & 63)
	}
	if word == last>>6 {
		x &= ^uint64(0) >> (63 - last&63)
	}
	return x
}

// group returns how many ports of a group, all of which lie in a range, are in the set.
func (p *portSet) group(g uint32) (n uint32) {
	if p.taken != nil {
		return portsPerGroup - min(atomic.LoadUint32(&p.taken[g]), portsPerGroup)
	}
	words := (*[wordsPerGroup]uint64)(p.words[g*wordsPerGroup:])
	for i := range words {
		if x := atomic.LoadUint64(&words[i]); x != 0 { // which is rare
			n += uint32(bits.OnesCount64(x))
		}
	}
	return n
}

// count returns how many ports are in the set.
func (p *portSet) count() (total uint32) {
	for _, r := range p.ranges {
		first, last := uint32(r.First), uint32(r.Last)
		for at := first; at <= last; {
			if at%portsPerGroup == 0 {
				end := (last + 1) / portsPerGroup
				for g := at / portsPerGroup; g < end; g++ {
					total += p.group(g)
				}
				if at = max(at, end*portsPerGroup); at > last {
					break
				}
			}
			total += uint32(bits.OnesCount64(p.word(at>>6, first, last)))
			at = at&^63 + 64
		}
	}
	return total
}

// at returns the place of number k of the set: which range, and which port.
func (p *portSet) at(k uint32) (int, uint32) {
	for i, r := range p.ranges {
		first, last := uint32(r.First), uint32(r.Last)
		for at := first; at <= last; {
			if at%portsPerGroup == 0 {
				end := (last + 1) / portsPerGroup
				for g := at / portsPerGroup; g < end; g++ {
					n := p.group(g)
					if k < n {
						break
					}
					k -= n
					at += portsPerGroup
				}
				if at > last {
					break
				}
				if at/portsPerGroup < end {
					words := (*[wordsPerGroup]uint64)(p.words[at>>6:])
					for w := range words {
						x := atomic.LoadUint64(&words[w]) ^ p.flip
						n := uint32(bits.OnesCount64(x))
						if k < n {
							return i, at + uint32(w)<<6 + nth(x, k)
						}
						k -= n
					}
					at += portsPerGroup // fewer than were counted
					continue
				}
			}
			x := p.word(at>>6, first, last)
			if n := uint32(bits.OnesCount64(x)); k >= n {
				k -= n
				at = at&^63 + 64
				continue
			}
			return i, at&^63 + nth(x, k)
		}
	}
	return 0, uint32(p.ranges[0].First) // fewer than were counted
}

// nth returns the place of bit k of those that are set.
func nth(x uint64, k uint32) uint32 {
	for ; k > 0; k-- {
		x &= x - 1
	}
	return uint32(bits.TrailingZeros64(x))
}

// from fills list with ports of the set, from a place on and around, and returns how many there
// are.
func (p *portSet) from(i int, port uint32, list []uint16) (n int) {
	for j := range len(p.ranges) + 1 {
		r := p.ranges[(i+j)%len(p.ranges)]
		first, last := uint32(r.First), uint32(r.Last)
		switch {
		case j == 0:
			first = port
		case j == len(p.ranges) && port == first:
			return n
		case j == len(p.ranges):
			last = port - 1
		}
		for word := first >> 6; word <= last>>6; word++ {
			for x := p.word(word, first, last); x != 0; x &= x - 1 {
				if n == len(list) {
					return n
				}
				list[n] = uint16(word<<6 + uint32(bits.TrailingZeros64(x)))
				n++
			}
		}
		if n == len(list) {
			return n
		}
	}
	return n
}
