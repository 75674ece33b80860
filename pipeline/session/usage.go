// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/bits"
	"sync/atomic"

	"weir/pipeline/memory"
)

// EachResting calls f with the slot of the VPC of each mapping that nobody holds, and whose port
// therefore rests. Workers go on meanwhile.
func (m *Mappings) EachResting(f func(vpc uint32)) {
	for ref := range min(m.Used(), len(m.mappings)) {
		if e := memory.Read(&m.mappings[ref]); e.word&(stateMask|holdsMask) == mappingLive {
			f(e.VPC)
		}
	}
}

// PortUse returns how many ports of a range of an external address are taken, and how many of those
// rest. Others change them meanwhile. With ports that are overloaded, none is ever taken.
func (m *Mappings) PortUse(address uint32, space PortSpace, r PortRange) (taken, resting int) {
	if int(address) >= m.Addresses() {
		return 0, 0
	}
	used, rests := m.wordsOf(address, space), m.restingOf(address, space)
	for word := r.First >> 6; word <= r.Last>>6; word++ {
		mask := ^uint64(0)
		if word == r.First>>6 {
			mask <<= r.First & 63
		}
		if word == r.Last>>6 {
			mask &= ^uint64(0) >> (63 - r.Last&63)
		}
		bit := atomic.LoadUint64(&used[word]) & mask
		taken += bits.OnesCount64(bit)
		resting += bits.OnesCount64(bit & atomic.LoadUint64(&rests[word]))
	}
	return taken, resting
}
